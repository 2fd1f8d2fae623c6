"""Pictures of matches for a run: a few pairs with many, some and few inliers, as a quick check of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfm_lightglue.images import load_image
from sfm_lightglue.pair_files import read_pairs
from sfm_lightglue.products import Pair
from sfm_lightglue.report.matches import plot_matches
from sfm_lightglue.storage import H5Reader

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""The drawn pairs, as positions in the list of verified pairs sorted by number of inliers: 0 is the first, 1 the last."""


def draw_match_gallery(images: Path, features: Path, matches: Path, pairs: Path, output: Path) -> list[str]:
    """Draws a few pairs into `output/plots`; returns the paths of the pictures, relative to `output`.

    Verified matches have the colours of their scores, rejected ones are grey.

    Args:
        images: folder of the photos.
        features: file of features.
        matches: file of matches.
        pairs: list of pairs.
        output: folder of the run, with `verification.h5`.
    """
    with H5Reader(features) as feature_reader, H5Reader(matches) as reader, H5Reader(output / "verification.h5") as verified:
        counts = {pair: verified.num_inliers(pair.name0, pair.name1) for pair in read_pairs(pairs)}
        ranked = sorted((pair for pair in counts if counts[pair]), key=lambda pair: (counts[pair], pair))
        chosen = list(dict.fromkeys(ranked[round(share * (len(ranked) - 1))] for share in SHARES)) if ranked else []
        folder = output / "plots"
        folder.mkdir(exist_ok=True)
        for stale in folder.glob("matches_*.jpg"):
            stale.unlink()
        return [
            _draw(images, pair, feature_reader, reader, verified, folder / f"matches_{rank}.jpg").relative_to(output).as_posix()
            for rank, pair in enumerate(chosen)
        ]


def _draw(images: Path, pair: Pair, features: H5Reader, matches: H5Reader, verified: H5Reader, path: Path) -> Path:
    """Draws one pair to `path`; returns `path`."""
    found = matches.find_matches(pair.name0, pair.name1)
    if found is None:
        raise KeyError(f"{matches.path} has no matches of {pair.name0!r} and {pair.name1!r}")
    inliers = verified.geometry(pair.name0, pair.name1).inlier_matches
    plot_matches(
        load_image(images, pair.name0).pixels,
        load_image(images, pair.name1).pixels,
        features.features(pair.name0).keypoints[found.indices[:, 0]],
        features.features(pair.name1).keypoints[found.indices[:, 1]],
        found.scores,
        path,
        inliers=np.isin(found.indices[:, 0], inliers[:, 0]),
        title=f"{pair.name0} - {pair.name1}",
    )
    return path
