"""The API reference: every name in `sfm_lightglue.__all__`, and what plug-ins implement."""

from __future__ import annotations

import importlib
import inspect

import sfm_lightglue

PLUG_IN_MODULES = {
    "sfm_lightglue.features.extractor": ("Extractor", "BatchExtractor"),
    "sfm_lightglue.matches.matcher": ("Matcher", "BatchedMatcher", "PreparedImage"),
    "sfm_lightglue.pairs.pairing": ("PairSource",),
    "sfm_lightglue.execution.executor": ("Executor",),
}
FUNCTIONS = ("run", "match_images", "create_extractor", "create_matcher", "list_images", "load_image", "extract_features")
FUNCTIONS += ("select_pairs", "match_pairs", "build_database", "reconstruct")
FUNCTIONS += ("plot_matches", "plot_keypoints", "plot_pairs", "plot_reconstruction")
"""In the order in which a reader needs them; others follow."""
INTRODUCTION = """\
# API

All names below `sfm_lightglue` are imported with `from sfm_lightglue import NAME`. Pixels, orders of names and transforms follow
the [conventions](conventions.md). Options have the names and defaults of the [options reference](options.md). Examples of use are
in the [Python guide](../guide/python.md).
"""


def text() -> str:
    """The Markdown of the page."""
    protocols = [f"{module}.{name}" for module, names in PLUG_IN_MODULES.items() for name in names]
    elsewhere = {getattr(importlib.import_module(module), name) for module, names in PLUG_IN_MODULES.items() for name in names}
    public = {name: getattr(sfm_lightglue, name) for name in sfm_lightglue.__all__}
    functions = [name for name, value in public.items() if inspect.isfunction(value)]
    functions.sort(key=lambda name: FUNCTIONS.index(name) if name in FUNCTIONS else len(FUNCTIONS))
    errors = [name for name, value in public.items() if inspect.isclass(value) and issubclass(value, BaseException)]
    records = [name for name, value in public.items() if name not in {*functions, *errors} and value not in elsewhere]
    sections = [INTRODUCTION, "## Functions", *(_directive("autofunction", f"sfm_lightglue.{name}") for name in functions)]
    sections += ["## Records", *(_directive("autoclass", f"sfm_lightglue.{name}") for name in records)]
    if errors:
        sections += ["## Errors", *(_directive("autoexception", f"sfm_lightglue.{name}") for name in errors)]
    sections += ["## Protocols of plug-ins", "[Plug-ins](../guide/plugins.md) shows complete examples."]
    return "\n\n".join([*sections, *(_directive("autoclass", path) for path in protocols)])


def _directive(directive: str, path: str) -> str:
    options = {
        "autofunction": [],
        "autoclass": [":members:", ":undoc-members:", ":special-members: __call__", ":exclude-members: __init__"],
        "autoexception": [":show-inheritance:", ":exclude-members: __init__, __new__"],
    }[directive]
    return "\n".join(["```{eval-rst}", f".. {directive}:: {path}", *(f"   {option}" for option in options), "```"])
