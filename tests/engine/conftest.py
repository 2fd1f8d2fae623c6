from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sfm_lightglue.engine.kernel_calls import Kernels
from sfm_lightglue.engine.kernel_library import INSTRUCTIONS, compile_library, has_compiler
from sfm_lightglue.engine.kernels import compile_kernels, load_kernels, usable_instructions


@pytest.fixture(scope="session")
def kernels_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder, with only the compiled kernels in it."""
    if not has_compiler():
        pytest.skip("no compiler")
    if usable_instructions() is None:
        pytest.skip("this CPU has neither AVX512 nor AVX2")
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFM_LIGHTGLUE_CACHE", str(folder))
        patch.delenv("SFM_LIGHTGLUE_KERNELS", raising=False)
        compile_kernels()
    yield folder


@pytest.fixture(scope="session")
def kernels(kernels_cache: Path) -> Kernels:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFM_LIGHTGLUE_CACHE", str(kernels_cache))
        patch.delenv("SFM_LIGHTGLUE_KERNELS", raising=False)
        loaded = load_kernels()
    assert loaded is not None
    return loaded


@pytest.fixture(scope="session", params=[*INSTRUCTIONS])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library for each set of instructions that this CPU has."""
    usable = usable_instructions()
    if usable is None or [*INSTRUCTIONS].index(request.param) < [*INSTRUCTIONS].index(usable):
        pytest.skip(f"this CPU has no {request.param}")
    if not has_compiler():
        pytest.skip("no compiler")
    return compile_library(tmp_path_factory.mktemp(request.param), request.param)
