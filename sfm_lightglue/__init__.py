"""Structure from Motion with learned features: photos in, a verified COLMAP reconstruction out.

The functions of the Python API are listed in `__all__` and loaded on first use, so that `import sfm_lightglue` is cheap.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import zlib  # noqa: F401

# pycolmap 4.2.1 exports its own static zlib. If it is imported before the system's libz, later users of libz (gzip, PNG
# writing, np.savez_compressed) bind to that copy and corrupt the heap. Loading libz first keeps the two apart.
with contextlib.suppress(OSError):
    ctypes.CDLL("libz.so.1")

__version__ = "0.10.0"

_API = {
    "Features": "products",
    "Image": "products",
    "Matches": "products",
    "Pair": "products",
    "create_extractor": "api",
    "create_matcher": "api",
    "load_image": "api",
    "match_images": "api",
    "run": "api",
    "list_images": "images",
    "extract_features": "features.stage",
    "select_pairs": "api",
    "match_pairs": "matches.stage",
    "build_database": "api",
    "reconstruct": "api",
}
__all__ = sorted(_API)


def __getattr__(name: str) -> object:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_API[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
