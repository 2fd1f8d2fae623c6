"""Former names of options and modules, and their current names. The former names still work, with a warning."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import re
import sys
import types
import warnings
from collections.abc import Sequence

logger = logging.getLogger(__name__)

RENAMED_OPTIONS = {
    "matches.head": "matches.trained_for",
    "matches.skip_hopeless": "matches.early_rejection",
    "database.max_error_px": "geometries.max_error_px",
    "database.min_num_inliers": "geometries.min_num_inliers",
    "database.min_mean_score": "geometries.min_mean_score",
    "database.confidence": "geometries.confidence",
    "database.max_num_trials": "geometries.max_num_trials",
    "database.seed": "geometries.seed",
}
"""Former key -> current key."""
REMOVED_OPTIONS = {
    "database.min_inlier_ratio": "it had no effect at its default 0; geometries.min_num_inliers and min_mean_score reject pairs",
    "database.name": "there is one kind of database",
    "experiment=default": "it set nothing",
}
"""Former key, or key=value -> why it was removed."""
RENAMED_MODULES = {
    "sfm_lightglue.lookup": "sfm_lightglue.registry",
    "sfm_lightglue.fetch": "sfm_lightglue.download",
    "sfm_lightglue.fetch_datasets": "sfm_lightglue.datasets",
    "sfm_lightglue.plugins": "sfm_lightglue.integrations",
    "sfm_lightglue.plugins.hloc": "sfm_lightglue.integrations.hloc",
    "sfm_lightglue.evaluation.poses": "sfm_lightglue.poses",
    "sfm_lightglue.engine.arithmetic": "sfm_lightglue.engine.numerics",
    "sfm_lightglue.engine.hopeless": "sfm_lightglue.engine.early_rejection",
    "sfm_lightglue.pairs.planner": "sfm_lightglue.pairs.stage",
}
"""Former module -> current module."""


def current_overrides(overrides: Sequence[str]) -> list[str]:
    """Command-line overrides with current option names. Renamed options are replaced and removed ones dropped, with a warning."""
    current = []
    for override in overrides:
        key, equals, value = override.partition("=")
        prefix, name = re.fullmatch(r"([+~]*)(.*)", key, re.DOTALL).groups()  # type: ignore[union-attr]  # always matches
        reason = REMOVED_OPTIONS.get(name) or REMOVED_OPTIONS.get(f"{name}={value}")
        if reason:
            logger.warning("the option %s was removed and is ignored: %s", override.lstrip("+"), reason)
            continue
        if name in RENAMED_OPTIONS:
            logger.warning("the option %s is now called %s", name, RENAMED_OPTIONS[name])
            name = RENAMED_OPTIONS[name]
        current.append(f"{prefix}{name}{equals}{value}")
    return current


def explain_former(option: str) -> str:
    """The current name of a former option, or why it was removed, as a sentence after a space; empty for other options."""
    if option in RENAMED_OPTIONS:
        return f" It is now called {RENAMED_OPTIONS[option]}."
    if option in REMOVED_OPTIONS:
        return f" It was removed: {REMOVED_OPTIONS[option]}."
    return ""


class _FormerModules:
    """Imports the current module if one of `RENAMED_MODULES` is imported by its former name.

    It is a finder and a loader. It has no base class, because `importlib.abc` would take a third of the time of `--help`.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in RENAMED_MODULES:
            return None
        is_package = name == "sfm_lightglue.plugins"
        return importlib.util.spec_from_loader(name, self, is_package=is_package)  # type: ignore[arg-type]  # no base class

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        new = RENAMED_MODULES[spec.name]
        warnings.warn(f"{spec.name} is now called {new}", DeprecationWarning, stacklevel=2)
        module = types.ModuleType(spec.name)
        module.__dict__.update({key: value for key, value in vars(importlib.import_module(new)).items() if key[:2] != "__"})
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """The content was copied when the module was created."""


def redirect_former_modules() -> None:
    """Lets `import` find the modules of former versions under their old names."""
    if not any(isinstance(finder, _FormerModules) for finder in sys.meta_path):
        sys.meta_path.append(_FormerModules())
