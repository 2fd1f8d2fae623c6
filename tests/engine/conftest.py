from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfm_lightglue.engine import kernels as kernels_module
from sfm_lightglue.engine.kernels import COMPILERS, Kernels, compile_kernels, load_kernels


@pytest.fixture(scope="session")
def kernels_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder, with only the compiled kernels in it."""
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no compiler")
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
    if loaded is None:
        pytest.skip("this CPU has no AVX512")
    return loaded


@pytest.fixture(scope="session")
def kernels_without_tiles(kernels_cache: Path, kernels: Kernels) -> Kernels:
    """The kernels as on a CPU without AMX."""
    (compiled,) = (kernels_cache / "kernels").iterdir()
    library = kernels_module._open(compiled)
    level = min(library.supported(), 2)
    library.supported = lambda: level  # type: ignore[assignment, misc]
    return Kernels(library)
