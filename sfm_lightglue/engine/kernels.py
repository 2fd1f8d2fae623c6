"""Compiled kernels for LightGlue and SuperPoint on x86-64 CPUs with AVX512 or AVX2: `kernels.cpp`, called by `kernel_calls.py`.

The library comes with the wheel, or `load_kernels` compiles it once for each user, if there is a compiler; see
`kernel_library.py`. Without it torch computes the same. The environment variable `SFM_LIGHTGLUE_KERNELS=0` turns the kernels off;
`avx2` takes those for AVX2 on a CPU with AVX512 too.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import time
from functools import cache
from pathlib import Path

import torch

from sfm_lightglue.download import cache_dir
from sfm_lightglue.engine.kernel_calls import Kernels
from sfm_lightglue.engine.kernel_library import (
    PREBUILT,
    compile_library,
    has_compiler,
    is_whole,
    is_x86,
    libraries,
    source_key,
)

logger = logging.getLogger(__name__)

SWITCH = "SFM_LIGHTGLUE_KERNELS"
SWITCHES = ("", "0", "1", "avx2")
"""Its values; without one, or with 1, the kernels are on."""
COMPILE_S = 30.0
"""Longest time that `load_kernels` waits for a compiler, s. It takes two to four seconds on a free core."""
TRY_AGAIN_S = 24 * 3600.0
"""After a compiler has failed, `load_kernels` tries it again this much later, s."""


def compile_kernels(compiler: str | None = None) -> Path:
    """Compiles the library for this CPU; its path in the cache folder.

    Args:
        compiler: As in `compile_library`.

    Raises: RuntimeError if there is no compiler, none succeeds, or this CPU has neither AVX512 nor AVX2.
    """
    instructions = usable_instructions()
    if is_x86() and instructions is None:
        raise RuntimeError("the kernels are for CPUs with AVX512 or AVX2, and this one has neither: runs are slower without")
    path = compile_library(_folder(), instructions or "avx2", compiler)
    if instructions:
        _failure(instructions).unlink(missing_ok=True)
    return path


def load_kernels(*, may_compile: bool = False) -> Kernels | None:
    """The compiled kernels; None if there are none, this CPU cannot run them, or SFM_LIGHTGLUE_KERNELS=0.

    A library that cannot be loaded counts as none. If there is no other, a warning says so.

    Args:
        may_compile: If there is no library but a compiler, the library is compiled. That happens once for each user, takes about
            three seconds and never raises. After a failure it is tried again the next day.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in SWITCHES:
        _say_once(logging.WARNING, f"{SWITCH}={switch!r} is not known, and the kernels stay on: expected 0 or avx2")
    instructions = None if is_off() else usable_instructions()
    if instructions is None:
        return None
    kernels, problem = _open_best(instructions)
    if kernels is None and may_compile and _compile_quietly(instructions):
        kernels, problem = _open_best(instructions)
    if problem and kernels is None:
        _say_once(logging.WARNING, f"{problem}: the run is slower without them; compile them again by the command `kernels`")
    return kernels


def would_help() -> bool:
    """Whether compiled kernels would make the networks faster here: this CPU has the instructions, and none are in use."""
    return not is_off() and usable_instructions() is not None and load_kernels() is None


def is_off() -> bool:
    """Whether the environment turns the kernels off."""
    return os.environ.get(SWITCH) == "0"


def usable_instructions() -> str | None:
    """The fastest set of `kernel_library.INSTRUCTIONS` that this CPU has, and the environment allows; None if it has none.

    What torch finds counts, so that ATEN_CPU_CAPABILITY=avx2 masks AVX512 here too.
    """
    capability = torch.backends.cpu.get_cpu_capability() if is_x86() else ""
    if capability == "AVX512" and os.environ.get(SWITCH) != "avx2":
        return "avx512"
    return "avx2" if capability in ("AVX512", "AVX2") else None


def _compile_quietly(instructions: str) -> bool:
    """Compiles the library unless that failed lately. Whether it was compiled.

    On macOS a compiler must be asked for: without the developer tools its command opens a window.
    """
    failure = _failure(instructions)
    try:
        failed_lately = failure.exists() and time.time() - failure.stat().st_mtime < TRY_AGAIN_S
        if sys.platform == "darwin" or failed_lately or not has_compiler():
            return False
        begin = time.perf_counter()
        path = compile_library(_folder(), instructions, timeout_s=COMPILE_S)
    except (RuntimeError, OSError, ValueError) as error:
        _say_once(logging.INFO, "the compiler failed, so this run is without compiled kernels: the command `kernels` says why")
        logger.debug("%s", error)
        try:
            failure.parent.mkdir(parents=True, exist_ok=True)
            failure.write_text(f"{error}\n", encoding="utf-8")
        except OSError:
            logger.debug("%s cannot be written", failure)
        return False
    logger.info("compiled the kernels for this user, in %.1f s: %s", time.perf_counter() - begin, path)
    return True


def _failure(instructions: str) -> Path:
    """The file that says that the compiler failed."""
    return _folder() / f"{instructions}-{source_key(instructions)}.failed"


def _open_best(instructions: str) -> tuple[Kernels | None, str]:
    """The kernels of the best library that can be loaded; and without one, what is wrong with the best that cannot."""
    problem = ""
    for path in (path for folder in (_folder(), PREBUILT) for path in reversed(libraries([folder], instructions))):
        try:
            library = open_library(path)
            if library.supported():
                return Kernels(library), ""
        except (OSError, AttributeError, ValueError) as error:
            problem = problem or f"the compiled kernels {path} cannot be loaded ({error})"
    return None, problem


@cache
def _say_once(level: int, text: str) -> None:
    """Logs a text once in a process: the kernels are loaded for each network."""
    logger.log(level, text)


def _folder() -> Path:
    return cache_dir() / "kernels"


def open_library(path: Path) -> ctypes.CDLL:
    """A library of kernels. Raises: OSError for a damaged file or one that is no library, AttributeError for another library."""
    if not is_whole(path):
        raise OSError("its content has changed")
    library = ctypes.CDLL(str(path))
    library.supported.argtypes = ()
    return library
