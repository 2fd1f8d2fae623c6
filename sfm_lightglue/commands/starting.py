"""A quick start of the commands that load many modules."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

TORCH_LIBRARIES = (("libtorch_global_deps.so", "RTLD_GLOBAL"), ("libtorch_cpu.so", "RTLD_LOCAL"))
"""Libraries of torch in the order in which it loads them, and the scope of their names. The others take no time."""


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """No garbage is looked for inside the block: modules leave none, and looking for it takes a tenth of their time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def load_torch_ahead() -> threading.Thread | None:
    """Loads torch's largest library in a thread, so that the import of torch finds it loaded. None if torch is not on Linux.

    Python's own import would stop all threads meanwhile (0.15 s, and longer from a cold disk); a call through ctypes does not.
    A library that cannot be loaded is left to the import, which says why.
    """
    spec = importlib.util.find_spec("torch") if sys.platform == "linux" and "torch" not in sys.modules else None
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"

    def load() -> None:
        dlopen = ctypes.CDLL(None).dlopen
        dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
        for name, scope in TORCH_LIBRARIES:
            if not (folder / name).is_file() or not dlopen(os.fsencode(folder / name), os.RTLD_NOW | getattr(os, scope)):
                return

    thread = threading.Thread(target=load, name="load-torch")
    thread.start()
    return thread
