"""The set `aligned_series`: photos of a fixed camera under different light, of which each pixel shows the same place.

It has no folder of its own. DATA holds the photos in the folders SCENES. Keypoints and matches are compared with the identity:
a place moves by less than about a pixel between two photos. What really moves (people, cars, clouds, shadows) lowers all figures
a little. Pairs of a photo by night and a photo by day are reported by themselves.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from photo_pairs import MAX_ERROR_PX, SEED, MatchedPair, Names, match_listed, matched_pairs

from sfm_lightglue.api import create_matcher
from sfm_lightglue.evaluation.pairs import repeatability
from sfm_lightglue.images import list_images, load_image
from sfm_lightglue.products import Matches

ALIGNED_SERIES = "aligned_series"
PHOTOS = "train_photos_light/aligned"
SCENES = (f"{PHOTOS}/amos_16", f"{PHOTOS}/tilde_mexico")
"""Folders in DATA. Both cameras show the same monument, so features can be trained on the other scenes without having seen it."""
MAX_NIGHT = 40.0
"""Largest mean brightness, 0..255, of a photo by night. The darkest photo by day or at dusk has 86."""
PAIRS_A_SCENE = 12
"""Number of pairs of each scene that are both by day, and largest number by day and night."""
STRATA = ("day and night", "by day")


def aligned_scores(folder: Path, out: Path, overrides: Sequence[str]) -> dict[str, str]:
    """Keypoints found again, and right nearest neighbours and matches: means over the pairs of each stratum.

    `folder` is DATA/aligned_series, which need not exist.
    """
    images = folder.parent / PHOTOS
    strata = aligned_pairs(images, [Path(scene).name for scene in SCENES])
    names = [pair for pairs in strata.values() for pair in pairs]
    found = dict(zip(names, matched_pairs(match_listed(images, out, overrides, names), names), strict=True))
    columns = {"keypoints": f"{np.mean([len(pair.features0) for pair in found.values()]):.0f}"}
    for stratum, pairs in strata.items():
        scores = [aligned_pair_scores(found[pair]) for pair in pairs]
        columns |= {
            f"{stratum} ({len(pairs)}): {key}": f"{np.mean([score[key] for score in scores]):.{1 if key.endswith('%') else 0}f}"
            for key in scores[0]
        }
    return columns


def aligned_pairs(images: Path, scenes: Sequence[str]) -> dict[str, list[Names]]:
    """The pairs of each stratum that has some, by photo names relative to `images`. The same photos give the same choice.

    Pairs of photos by night, both, are left out.
    """
    strata: dict[str, list[Names]] = {stratum: [] for stratum in STRATA}
    for scene in scenes:
        names = [f"{scene}/{name}" for name in list_images(images / scene)]
        is_night = {name: float(load_image(images, name).pixels.mean()) <= MAX_NIGHT for name in names}
        pairs, choice = list(combinations(sorted(names), 2)), random.Random(SEED)
        for stratum, num_night in zip(STRATA, (1, 0), strict=True):
            those = [pair for pair in pairs if sum(is_night[name] for name in pair) == num_night]
            strata[stratum] += sorted(choice.sample(those, min(PAIRS_A_SCENE, len(those))))
    return {stratum: pairs for stratum, pairs in strata.items() if pairs}


def aligned_pair_scores(pair: MatchedPair) -> Mapping[str, float]:
    """The figures of one pair of photos with the same pixels.

    Keypoints found again are those with a keypoint of the other photo within MAX_ERROR_PX, both ways. Nearest neighbours are
    mutual, by descriptors alone. They and the matches are right if their keypoints are within MAX_ERROR_PX.
    """
    both = pair.features0, pair.features1
    share, _ = repeatability(both[0].keypoints, both[1].keypoints, np.eye(3), both[0].image_size, both[1].image_size)
    neighbours = create_matcher("nearest_neighbor", mutual=True, max_ratio=None, max_distance=None)(*both)
    right_neighbours, right_matches = num_right(pair, neighbours), num_right(pair, pair.matches)
    return {
        "found again %": 100 * share,
        "right neighbours": right_neighbours,
        "right neighbours %": 100 * right_neighbours / max(len(neighbours), 1),
        "right matches": right_matches,
        "right matches %": 100 * right_matches / max(len(pair.matches), 1),
    }


def num_right(pair: MatchedPair, matches: Matches) -> int:
    """Number of matches whose keypoints are within MAX_ERROR_PX of each other."""
    index0, index1 = matches.indices.T
    return int(np.sum(np.hypot(*(pair.features0.keypoints[index0] - pair.features1.keypoints[index1]).T) <= MAX_ERROR_PX))
