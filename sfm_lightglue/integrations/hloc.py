"""Our extractors and matchers as plug-ins of hloc (github.com/cvg/Hierarchical-Localization). hloc itself is not changed.

    from hloc import extract_features, match_features
    from sfm_lightglue.integrations import hloc as ours

    ours.register()
    features = extract_features.main(ours.extractor_conf(), images, outputs)
    match_features.main(ours.matcher_conf(), pairs, features.stem, outputs)

hloc finds a plug-in by importing `hloc.matchers.NAME` and taking the one subclass of its BaseModel that is defined there.
`register` adds modules with these classes to `sys.modules`. It also works for forks with the same contract, such as imcui.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import numpy as np
import torch

from sfm_lightglue import __version__
from sfm_lightglue.api import create_extractor, create_matcher
from sfm_lightglue.products import Features, Image
from sfm_lightglue.settings import fingerprint
from sfm_lightglue.storage.values import check_features, checked_image_size

MODULE = "sfm_lightglue"


def register(package: str = "hloc") -> None:
    """Registers `sfm_lightglue` as an extractor and as a matcher of `package`: hloc, or a fork such as `imcui.hloc`.

    Raises: ImportError if the package is not installed.
    """
    base = importlib.import_module(f"{package}.utils.base_model").BaseModel
    for kind, methods in (("extractors", _EXTRACTOR), ("matchers", _MATCHER)):
        parent = importlib.import_module(f"{package}.{kind}")
        module = types.ModuleType(f"{parent.__name__}.{MODULE}")
        # hloc accepts a class only if its __module__ is the name of the module
        plugin = type("SfmLightGlue", (base,), {**methods, "__module__": module.__name__})
        module.SfmLightGlue = plugin  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
        setattr(parent, MODULE, module)


def extractor_conf(name: str = "superpoint", *, resize_max: int | None = 1600, **options: Any) -> dict[str, Any]:
    """A configuration for hloc's `extract_features.main`.

    Args:
        name: extractor, as in configs/features.
        resize_max: hloc shrinks photos to this longest side, px; None keeps their size.
        options: options of the extractor, as in configs/features.
    """
    conf = {
        "model": {"name": MODULE, "extractor": name, "options": dict(sorted(options.items()))},
        "preprocessing": {"grayscale": False, "resize_max": resize_max},
    }
    return {"output": _file_name(f"feats-sfm-lightglue-{name}", conf), **conf}


def matcher_conf(trained_for: str = "superpoint-open", **options: Any) -> dict[str, Any]:
    """A configuration for hloc's `match_features.main`.

    Args:
        trained_for: features that LightGlue was trained for, as in configs/matches/lightglue.yaml.
        options: other options of that file.
    """
    trained_for = options.pop("head", trained_for)  # its name before version 0.11
    conf = {"model": {"name": MODULE, "trained_for": trained_for, "options": dict(sorted(options.items()))}}
    return {"output": _file_name(f"matches-sfm-lightglue-{trained_for}", conf), **conf}


def _file_name(start: str, conf: dict[str, Any]) -> str:
    """A name that differs for each configuration and version: hloc reuses an existing file whatever its configuration was."""
    return f"{start}-{fingerprint([__version__, str(conf)])[:8]}"


def _init_extractor(self: Any, conf: dict[str, Any]) -> None:
    self.extractor = create_extractor(conf["extractor"], **{**conf["options"], "resize_max": None})


def _extract(self: Any, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """keypoints (1, n, 2) px of the given image, scores (1, n), descriptors (1, d, n); scales and oris (1, n) if known."""
    image = data["image"]  # 1 c h w, RGB or grey, 0..1
    pixels = (image[0].permute(1, 2, 0).cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
    features = self.extractor(Image("image", np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels))
    arrays = {
        "keypoints": features.keypoints,
        "scores": features.scores,
        "descriptors": np.ascontiguousarray(features.descriptors.T),
        "scales": features.scales,
        "oris": features.orientations,
    }
    return {key: torch.from_numpy(array)[None].to(image.device) for key, array in arrays.items() if array is not None}


def _init_matcher(self: Any, conf: dict[str, Any]) -> None:
    if "head" in conf:
        raise ValueError(f"the key 'head' of the configuration is now called 'trained_for': 'trained_for': {conf['head']!r}")
    options = {"guided_matching": False, **conf["options"]}  # hloc's keypoints are px of the whole photo, at an unknown scale
    self.matcher = create_matcher("lightglue", trained_for=conf["trained_for"], **options)


def _match(self: Any, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """matches0 (1, n0) with -1 for no match, matching_scores0 (1, n0)."""
    features0, features1 = _features(data, 0), _features(data, 1)
    matches = self.matcher(features0, features1)
    count = len(features0)
    return {
        "matches0": torch.from_numpy(matches.matches0(count))[None],
        "matching_scores0": torch.from_numpy(matches.matching_scores0(count))[None],
    }


def _features(data: dict[str, torch.Tensor], side: int) -> Features:
    """Features of image `side` (0 or 1) from hloc's input: descriptors (1, d, n), keypoints in px of the full image, size
    [width, height]. Raises: ValueError if numbers are not finite or out of range."""

    def array(key: str) -> np.ndarray | None:
        value = data.get(f"{key}{side}")
        return None if value is None else value[0].detach().cpu().numpy().astype(np.float32)

    keypoints, descriptors, size = array("keypoints"), array("descriptors"), array("image_size")
    if keypoints is None or descriptors is None:
        raise ValueError(f"keypoints{side} and descriptors{side} are needed, found {sorted(data)}")
    if size is None:  # an old feature file; hloc gives an `image` tensor with the right shape and undefined content
        size = np.array(data[f"image{side}"].shape[:-3:-1], np.float32)
    scores = array("scores") if f"scores{side}" in data else array("keypoint_scores")
    features = Features(
        keypoints,
        np.ones(len(keypoints), np.float32) if scores is None else scores,
        descriptors.T,
        checked_image_size(size, f"image {side}"),
        scales=array("scales"),
        orientations=array("oris"),
    )
    check_features(features, f"image {side}")
    return features


_EXTRACTOR = {
    "default_conf": {"extractor": "superpoint", "options": {}},
    "required_inputs": ["image"],
    "_init": _init_extractor,
    "_forward": _extract,
}
_MATCHER = {
    "default_conf": {"trained_for": "superpoint-open", "options": {}},
    "required_inputs": ["keypoints0", "keypoints1", "descriptors0", "descriptors1"],
    "_init": _init_matcher,
    "_forward": _match,
}
