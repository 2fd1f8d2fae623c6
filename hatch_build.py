"""Hatchling's hook: compiles the kernels of LightGlue into a wheel for x86-64, if there is a compiler.

SFM_LIGHTGLUE_BUILD_KERNELS in the environment: `auto` (default) makes a wheel without kernels, for any machine, if they cannot be
compiled; `1` fails then; `0` never compiles them. An editable install has none: the first run compiles them.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
SWITCH = "SFM_LIGHTGLUE_BUILD_KERNELS"


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds a library for each set of instructions to the wheel, and the platform to its name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles the libraries. Raises: ValueError for another value of the switch, RuntimeError if it is 1 and they fail."""
        wanted = os.environ.get(SWITCH, "auto")
        if wanted not in ("0", "1", "auto"):
            raise ValueError(f"{SWITCH}={wanted!r}: expected 0, 1 or auto")
        if self.target_name != "wheel" or version == "editable" or wanted == "0":
            return
        library = _library_module()
        self.folder = tempfile.TemporaryDirectory()
        try:
            paths = [library.compile_library(Path(self.folder.name), instructions) for instructions in library.INSTRUCTIONS]
        except (RuntimeError, OSError) as error:
            if wanted == "1":
                raise
            self.app.display_warning(f"a wheel without compiled kernels: {error}")
            return
        inside = library.PREBUILT.relative_to(ROOT).as_posix()
        build_data["force_include"] |= {str(path): f"{inside}/{path.name}" for path in paths}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes the compiled files from the folder of temporary files."""
        if hasattr(self, "folder"):
            self.folder.cleanup()


def _library_module() -> ModuleType:
    """The module `kernel_library`, without the package and what that imports."""
    path = ROOT / "sfm_lightglue" / "engine" / "kernel_library.py"
    spec = importlib.util.spec_from_file_location("kernel_library", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
