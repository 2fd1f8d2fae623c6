"""The compiled library of the kernels: how it is made from `kernels.cpp`, and its name. Only the standard library is imported,
because the build of a wheel reads this file (`hatch_build.py`).

A library is for one set of instructions. Its name is INSTRUCTIONS-SOURCE-COMPILER-CONTENT.so, with hashes of the source and the
flags, of the compiler, and of the file itself. A library of another version, or a damaged one, is therefore never loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "kernels.cpp"
INCLUDED = tuple(
    FOLDER / name
    for name in (
        "attention_amx.h",
        "first_layer.h",
        "integers.h",
        "nearest.h",
        "vectors_avx2.h",
        "vectors_avx512.h",
        "winograd.h",
    )
)
PREBUILT = FOLDER / "compiled"
"""Folder of the libraries that come with the wheel, if any do."""
COMPILERS = ("c++", "g++", "clang++")
# Not -march=native: a library serves all CPUs that have these instructions. Without exceptions it does not need libstdc++.
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-exceptions", "-fno-rtti")
LINKER_FLAGS = ("-Wl,--as-needed",) if sys.platform == "linux" else ()
INSTRUCTIONS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
    "avx2": ("-mavx2", "-mfma"),
}
"""Set of instructions -> flags of the compiler, the fastest first."""


def is_x86() -> bool:
    """Whether this is an x86-64 CPU."""
    return platform.machine().lower() in ("x86_64", "amd64")


def compile_library(folder: Path, instructions: str, compiler: str | None = None, timeout_s: float | None = None) -> Path:
    """Compiles the library for a set of instructions; its path in `folder`.

    Args:
        folder: is made if it does not exist.
        instructions: A key of `INSTRUCTIONS`.
        compiler: A command. None: $CXX, or without it the first of `COMPILERS` that succeeds.
        timeout_s: Longest time of a compiler, s; None for no limit.

    Raises: RuntimeError if there is no compiler or none succeeds, with their messages and what to do. OSError if the folder
    cannot be written.
    """
    if not is_x86():
        raise RuntimeError(f"the kernels are for x86-64 CPUs, this one is {platform.machine()}: runs are slower without")
    reasons = []
    for command in _commands(compiler):
        if shutil.which(command[0]) is None:
            reasons.append(f"{command[0]}: not found")
            continue
        try:
            return _compile(folder, instructions, command, timeout_s)
        except subprocess.CalledProcessError as error:
            reasons.append(f"{shlex.join(error.cmd)} failed with {error.returncode}:\n{error.stderr.strip()}")
        except subprocess.TimeoutExpired as error:
            reasons.append(f"{shlex.join(error.cmd)} did not end within {error.timeout:.0f} s")
    raise RuntimeError(
        "the kernels could not be compiled; runs work without them, more slowly.\n  "
        + "\n  ".join(reasons)
        + "\nInstall g++ 10 or clang++ 9 or later, or name a compiler in the environment variable CXX."
    )


def has_compiler() -> bool:
    """Whether a compiler that `compile_library` would try is on the path. Raises: RuntimeError if $CXX is not a command."""
    return any(shutil.which(command[0]) for command in _commands(None))


def _commands(compiler: str | None) -> list[list[str]]:
    """The compilers to try, each as a list of words. Raises: RuntimeError for a command with an open quotation."""
    given = compiler or os.environ.get("CXX", "")
    try:
        words = shlex.split(given)
    except ValueError as error:
        raise RuntimeError(f"the compiler {given} is not a command: {error}. Change the environment variable CXX.") from error
    return [words] if words else [[command] for command in COMPILERS]


def libraries(folders: Sequence[Path], instructions: str) -> list[Path]:
    """The libraries of this source in the folders; several come from several compilers. The best choice is the last: the newest
    of the first folder that has one."""
    for folder in folders:
        found = filter(Path.is_file, folder.glob(f"{instructions}-{source_key(instructions)}-*.so"))
        if paths := sorted(found, key=lambda path: path.stat().st_mtime_ns):
            return paths
    return []


def is_whole(path: Path) -> bool:
    """Whether the content of a library is the one in its name. Loading a truncated library would end the process with SIGBUS."""
    return path.stem.endswith(_key(path.read_bytes()))


def source_key(instructions: str) -> str:
    """16 digits for the source and the flags."""
    texts = [path.read_text("utf-8") for path in (SOURCE, *INCLUDED)]
    return _key("\0".join([*texts, *FLAGS, *INSTRUCTIONS[instructions]]).encode())


def _key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _compile(folder: Path, instructions: str, compiler: list[str], timeout_s: float | None) -> Path:
    """Raises: CalledProcessError, TimeoutExpired or OSError."""

    def run(*arguments: str) -> str:
        command = [*compiler, *arguments]
        options = {"capture_output": True, "text": True, "errors": "replace"}
        return subprocess.run(command, check=True, timeout=timeout_s, stdin=subprocess.DEVNULL, **options).stdout  # type: ignore[call-overload,no-any-return]

    key = _key("\0".join([*compiler, run("--version")]).encode())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # in the same folder: a rename cannot leave half a file
        part = Path(temporary) / "kernels.so"
        run(*FLAGS, *INSTRUCTIONS[instructions], str(SOURCE), *LINKER_FLAGS, "-o", str(part))
        return part.replace(folder / f"{instructions}-{source_key(instructions)}-{key}-{_key(part.read_bytes())}.so")
