"""Structure from Motion with learned features: photos in, a verified COLMAP reconstruction out.

The names of the Python API are loaded on first use, so that `import sfm_lightglue` is cheap.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import zlib  # noqa: F401
from typing import TYPE_CHECKING

from sfm_lightglue.renames import redirect_former_modules

# pycolmap 4.2.1 exports its own static zlib. If it is imported before the system's libz, later users of libz (gzip, PNG
# writing, np.savez_compressed) bind to that copy and corrupt the heap. Loading libz first keeps the two apart.
with contextlib.suppress(OSError):
    ctypes.CDLL("libz.so.1")

__version__ = "0.10.0"

redirect_former_modules()

if TYPE_CHECKING:  # what type checkers and editors see; at run time __getattr__ imports a name when it is first used
    from sfm_lightglue.api import build_database as build_database
    from sfm_lightglue.api import create_extractor as create_extractor
    from sfm_lightglue.api import create_matcher as create_matcher
    from sfm_lightglue.api import load_image as load_image
    from sfm_lightglue.api import match_images as match_images
    from sfm_lightglue.api import reconstruct as reconstruct
    from sfm_lightglue.api import run as run
    from sfm_lightglue.api import select_pairs as select_pairs
    from sfm_lightglue.cameras import Camera as Camera
    from sfm_lightglue.database import BuildReport as BuildReport
    from sfm_lightglue.database import DatabaseReport as DatabaseReport
    from sfm_lightglue.execution.executor import Executor as Executor
    from sfm_lightglue.features.extractor import Extractor as Extractor
    from sfm_lightglue.features.several import join_features as join_features
    from sfm_lightglue.features.stage import ExtractionReport as ExtractionReport
    from sfm_lightglue.features.stage import extract_features as extract_features
    from sfm_lightglue.geometries.stage import VerificationReport as VerificationReport
    from sfm_lightglue.georeference import Georeference as Georeference
    from sfm_lightglue.georeference import read_georeference as read_georeference
    from sfm_lightglue.image_matches import ImageMatches as ImageMatches
    from sfm_lightglue.images import UnreadableImage as UnreadableImage
    from sfm_lightglue.images import list_images as list_images
    from sfm_lightglue.matches.matcher import Matcher as Matcher
    from sfm_lightglue.matches.several import join_matches as join_matches
    from sfm_lightglue.matches.stage import MatchingReport as MatchingReport
    from sfm_lightglue.matches.stage import match_pairs as match_pairs
    from sfm_lightglue.pairs.collection import Collection as Collection
    from sfm_lightglue.pairs.pairing import PairSource as PairSource
    from sfm_lightglue.plots.pairs import plot_pairs as plot_pairs
    from sfm_lightglue.plots.photos import plot_keypoints as plot_keypoints
    from sfm_lightglue.plots.photos import plot_matches as plot_matches
    from sfm_lightglue.plots.scene import plot_reconstruction as plot_reconstruction
    from sfm_lightglue.products import Features as Features
    from sfm_lightglue.products import Image as Image
    from sfm_lightglue.products import Matches as Matches
    from sfm_lightglue.products import Pair as Pair
    from sfm_lightglue.products import TwoViewGeometry as TwoViewGeometry
    from sfm_lightglue.reconstruction import ModelReport as ModelReport
    from sfm_lightglue.reconstruction import ReconstructionReport as ReconstructionReport
    from sfm_lightglue.run_folder import RunFolder as RunFolder
    from sfm_lightglue.storage import SettingsChanged as SettingsChanged
    from sfm_lightglue.summary import Summary as Summary

_MODULES = {
    "api": (
        *("build_database", "create_extractor", "create_matcher", "load_image", "match_images"),
        *("reconstruct", "run", "select_pairs"),
    ),
    "cameras": ("Camera",),
    "database": ("BuildReport", "DatabaseReport"),
    "execution.executor": ("Executor",),
    "features.extractor": ("Extractor",),
    "features.several": ("join_features",),
    "features.stage": ("ExtractionReport", "extract_features"),
    "georeference": ("Georeference", "read_georeference"),
    "geometries.stage": ("VerificationReport",),
    "image_matches": ("ImageMatches",),
    "images": ("UnreadableImage", "list_images"),
    "matches.matcher": ("Matcher",),
    "matches.several": ("join_matches",),
    "matches.stage": ("MatchingReport", "match_pairs"),
    "pairs.collection": ("Collection",),
    "pairs.pairing": ("PairSource",),
    "plots.pairs": ("plot_pairs",),
    "plots.photos": ("plot_keypoints", "plot_matches"),
    "plots.scene": ("plot_reconstruction",),
    "products": ("Features", "Image", "Matches", "Pair", "TwoViewGeometry"),
    "reconstruction": ("ModelReport", "ReconstructionReport"),
    "run_folder": ("RunFolder",),
    "storage": ("SettingsChanged",),
    "summary": ("Summary",),
}
"""Module -> the names of the Python API that it holds; a test compares them with the imports above."""
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
