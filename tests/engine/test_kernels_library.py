"""The library of kernels: how it is compiled, found and refused."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sfm_lightglue.engine import kernel_library
from sfm_lightglue.engine import kernels as kernels_module
from sfm_lightglue.engine.kernel_calls import Kernels
from sfm_lightglue.engine.kernel_library import compile_library, has_compiler
from sfm_lightglue.engine.kernels import compile_kernels, load_kernels, usable_instructions, would_help


@pytest.fixture(autouse=True)
def kernels_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole suite can run with SFM_LIGHTGLUE_KERNELS=0, which would answer before the library is looked at. Messages that a
    process gives once are given again."""
    monkeypatch.delenv("SFM_LIGHTGLUE_KERNELS", raising=False)
    kernels_module._say_once.cache_clear()


def test_without_a_compiled_library_there_are_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels_module, "PREBUILT", tmp_path / "none")
    assert load_kernels() is None


def test_the_environment_turns_kernels_off(kernels_cache: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(kernels_cache))
    assert load_kernels() is not None
    monkeypatch.setenv("SFM_LIGHTGLUE_KERNELS", "0")
    assert load_kernels() is None


def test_a_cpu_without_the_instructions_gets_no_kernels(kernels_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(kernels_cache))
    monkeypatch.setattr(kernels_module, "open_library", lambda path: SimpleNamespace(supported=lambda: 0))
    assert load_kernels() is None


def test_a_cpu_without_bfloat16_gets_the_kernels_for_float32(
    kernels_cache: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_on_old_cpu(path: Path) -> ctypes.CDLL:
        """The library as on a CPU with AVX512 but without bfloat16."""
        library = ctypes.CDLL(str(path))
        library.supported = lambda: 1  # type: ignore[assignment, misc]
        return library

    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(kernels_cache))
    monkeypatch.setattr(kernels_module, "open_library", open_on_old_cpu)
    loaded = load_kernels()
    assert loaded is not None and not loaded.supports_bfloat16
    rows = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    found, expected = torch.empty_like(rows), torch.empty_like(rows)
    loaded.attention(rows, rows, rows, found, 4, 1.0)
    kernels.attention(rows, rows, rows, expected, 4, 1.0)
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="bfloat16 needs a CPU with AVX512-BF16"):
        loaded.add_bias(rows.bfloat16(), torch.zeros(256))


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no disassembler")
def test_functions_have_only_the_instructions_that_their_types_need(kernels_cache: Path, tmp_path: Path) -> None:
    compiled = compile_library(tmp_path, "avx512")
    lines = subprocess.run(["objdump", "-d", str(compiled)], check=True, capture_output=True, text=True).stdout.splitlines()
    function, with_bfloat16, with_vnni = "", set(), set()
    for line in lines:
        function = line if line.endswith(">:") else function
        if re.search(r"\tv\w*bf16", line):
            with_bfloat16.add(function)
        if "\tvpdp" in line:
            with_vnni.add(function)
    # Itanium mangling of template arguments: f is float, t is the unsigned short that holds a bfloat16.
    assert with_bfloat16 and all(re.search(r"I(t|Li\dEt|tLi\d)|_by_tiles", name) for name in with_bfloat16)
    assert with_vnni and all("Vnni" in name for name in with_vnni)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_damaged_library_is_reported_and_not_used(
    kernels_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: float
) -> None:
    (compiled,) = (kernels_cache / "kernels").iterdir()
    content = compiled.read_bytes()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / compiled.name).write_bytes(content[: int(part * len(content))])
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert load_kernels() is None
    assert "its content has changed" in caplog.text


def test_a_damaged_library_is_compiled_again_or_replaced_by_another(
    kernels_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (compiled,) = (kernels_cache / "kernels").iterdir()
    damaged = tmp_path / "kernels" / compiled.name
    damaged.parent.mkdir()
    damaged.write_bytes(b"")
    (damaged.parent / compiled.name.replace(compiled.stem[-16:], "0" * 16)).symlink_to(tmp_path / "nothing")
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels_module, "PREBUILT", tmp_path / "none")
    monkeypatch.setattr(kernels_module, "_compile_quietly", lambda instructions: bool(shutil.copy(compiled, damaged)))
    with caplog.at_level(logging.WARNING):
        assert load_kernels(may_compile=True) is not None
        damaged.unlink()  # this process has it in memory: to change the file itself would end the process
        damaged.write_bytes(b"")
        monkeypatch.setattr(kernels_module, "PREBUILT", compiled.parent)
        assert load_kernels() is not None
    assert not caplog.text


def test_what_is_wrong_with_the_kernels_is_said_once(
    tmp_path: Path, kernels_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (compiled,) = (kernels_cache / "kernels").iterdir()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / compiled.name).write_bytes(b"")
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels_module, "PREBUILT", tmp_path / "none")
    monkeypatch.setenv("SFM_LIGHTGLUE_KERNELS", "off")
    with caplog.at_level(logging.WARNING):
        assert load_kernels() is None and load_kernels() is None
    assert caplog.text.count("SFM_LIGHTGLUE_KERNELS='off' is not known, and the kernels stay on: expected 0 or avx2") == 1
    assert caplog.text.count("its content has changed") == 1


def test_a_library_of_something_else_is_reported_and_not_used(
    kernels_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (compiled,) = (kernels_cache / "kernels").iterdir()
    content = b"not a library"
    name = compiled.name.replace(compiled.stem[-16:], hashlib.sha256(content).hexdigest()[:16])
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / name).write_bytes(content)
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert load_kernels() is None
    assert "compile them again" in caplog.text


@pytest.mark.parametrize("included", [False, True])
def test_a_library_of_another_source_is_not_loaded(
    kernels_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, included: bool
) -> None:
    other = tmp_path / "kernels.cpp"
    original = kernel_library.INCLUDED[1] if included else kernel_library.SOURCE
    other.write_text(original.read_text("utf-8") + "// changed\n", "utf-8")
    if included:
        monkeypatch.setattr(kernel_library, "INCLUDED", (other, *kernel_library.INCLUDED[1:]))
    else:
        monkeypatch.setattr(kernel_library, "SOURCE", other)
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(kernels_cache))
    assert load_kernels() is None


def broken_compiler(folder: Path) -> str:
    """A compiler that prints its version and fails to compile."""
    path = folder / "broken c++"
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "error: no header immintrin.h" >&2\nexit 3\n')
    path.chmod(0o755)
    return f"'{path}'"


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", broken_compiler(tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)failed with 3:\nerror: no header immintrin\.h.*Install g\+\+"):
        compile_kernels()
    assert not list((tmp_path / "kernels").iterdir())


def test_a_machine_without_compiler_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"(?s)c\+\+: not found.*clang\+\+: not found.*Install g\+\+"):
        compile_kernels()


def test_a_compiler_that_is_no_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels_module, "PREBUILT", tmp_path / "none")
    monkeypatch.setenv("CXX", "g++ 'open")
    with pytest.raises(RuntimeError, match=r"the compiler g\+\+ 'open is not a command: .*CXX"):
        compile_library(tmp_path, "avx2")
    assert load_kernels(may_compile=True) is None
    found = has_compiler_without_cxx(monkeypatch)
    monkeypatch.setenv("CXX", "  ")
    assert has_compiler() == found


def has_compiler_without_cxx(monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.delenv("CXX")
    return has_compiler()


def test_other_processors_are_refused_before_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(RuntimeError, match="for x86-64 CPUs, this one is arm64"):
        compile_kernels()


@pytest.mark.parametrize(
    ("capability", "switch", "expected"),
    [
        ("AVX512", None, "avx512"),
        ("AVX512", "avx2", "avx2"),
        ("AVX2", None, "avx2"),
        ("DEFAULT", None, None),
        ("NO AVX", "avx2", None),
    ],
)
def test_the_fastest_instructions_of_the_cpu_are_used(
    monkeypatch: pytest.MonkeyPatch, capability: str, switch: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    if switch:
        monkeypatch.setenv("SFM_LIGHTGLUE_KERNELS", switch)
    assert usable_instructions() == expected
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert usable_instructions() is None


def test_the_first_use_compiles_the_kernels_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not has_compiler() or usable_instructions() is None or sys.platform == "darwin":
        pytest.skip("kernels are not compiled by themselves here")
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.setenv("SFM_LIGHTGLUE_KERNELS", "avx2")  # the smaller library
    monkeypatch.setattr(kernels_module, "PREBUILT", tmp_path / "none")
    assert load_kernels() is None and would_help()
    with caplog.at_level(logging.INFO):
        assert load_kernels(may_compile=True) is not None
        (compiled,) = (tmp_path / "kernels").iterdir()
        assert load_kernels(may_compile=True) is not None
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == [compiled.name]
    assert caplog.text.count("compiled the kernels") == 1 and not would_help()


def test_a_compiler_that_fails_is_not_asked_again_the_same_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if usable_instructions() is None or sys.platform == "darwin":
        pytest.skip("kernels are not compiled by themselves here")
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels_module, "PREBUILT", tmp_path / "none")
    monkeypatch.setenv("CXX", broken_compiler(tmp_path))
    with caplog.at_level(logging.INFO):
        assert load_kernels(may_compile=True) is None
        (failure,) = (tmp_path / "kernels").iterdir()
        assert "no header immintrin.h" in failure.read_text()
        assert load_kernels(may_compile=True) is None
        os.utime(failure, (0, 0))
        assert load_kernels(may_compile=True) is None and failure.stat().st_mtime > 0
    assert caplog.text.count("this run is without compiled kernels") == 1


def test_a_slow_compiler_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow"
    slow.write_text('#!/bin/sh\n[ "$1" = --version ] || exec sleep 30\n')
    slow.chmod(0o755)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(RuntimeError, match=r"did not end within 1 s"):
        compile_library(tmp_path / "folder", "avx2", str(slow), timeout_s=1.0)


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels").write_text("a file, no folder")
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels_module, "PREBUILT", tmp_path / "none")
    assert load_kernels(may_compile=True) is None


def test_the_library_of_the_wheel_is_used_without_a_compiler(
    kernels_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernels_module, "PREBUILT", kernels_cache / "kernels")
    assert load_kernels(may_compile=True) is not None and not (tmp_path / "kernels").exists()
