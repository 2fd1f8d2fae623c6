"""A few pictures of matches for a run folder: strong, middling and weak pairs, so that one look tells whether all is well."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfm_lightglue.images import load_image
from sfm_lightglue.pair_files import read_pairs
from sfm_lightglue.products import Pair
from sfm_lightglue.report.matches import plot_matches
from sfm_lightglue.storage import H5Reader, match_key

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Where in the ranking of verified pairs by number of inliers the drawn ones stand."""


def draw_match_gallery(images: Path, features: Path, matches: Path, pairs: Path, output: Path) -> list[str]:
    """Paths, relative to `output`, of pictures in `output/plots`: matches coloured by score, unverified ones grey."""
    with H5Reader(features) as feature_reader, H5Reader(matches) as reader, H5Reader(output / "verification.h5") as verified:
        counts = {pair: verified.file[match_key(pair.name0, pair.name1)]["inlier_matches"].shape[0] for pair in read_pairs(pairs)}
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
    found = matches.find_matches(pair.name0, pair.name1)
    if found is None:
        raise KeyError(f"{matches.path} has no matches of {pair.name0!r} and {pair.name1!r}")
    inliers = verified.item(match_key(pair.name0, pair.name1)).datasets["inlier_matches"]
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
