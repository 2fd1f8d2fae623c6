"""Pictures of matches for a run: a few pairs with many, some and few inliers, as a quick check of the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sfm_lightglue.files import foreign_file, remove_stale
from sfm_lightglue.images import load_image
from sfm_lightglue.orientation import turn_pixels, upright_features
from sfm_lightglue.products import Pair
from sfm_lightglue.report.draw import is_marked
from sfm_lightglue.report.matches import draw_matches
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import H5Reader, PartOfFeatures

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""The drawn pairs, as positions in the list of verified pairs sorted by number of inliers: 0 is the first, 1 the last."""
NAMES = (*(f"matches_{rank}.jpg" for rank in range(len(SHARES))), "reconstruction.png")
"""Of the pictures that a run draws."""


def draw_match_gallery(images: Path, run: RunFolder) -> list[str]:
    """Draws a few pairs into the folder `plots` of a run; returns the paths of the pictures, relative to the run's folder.

    Verified matches have the colours of their scores, rejected ones are grey.

    Args:
        images: folder of the photos.
        run: output folder in which the stages up to `verify` have run.
    """
    with run.open_features() as features, run.open_matches() as matches, run.open_verification() as verified:
        counts = {pair: verified.num_inliers(pair.name0, pair.name1) for pair in run.read_pairs()}
        ranked = sorted((pair for pair in counts if counts[pair]), key=lambda pair: (counts[pair], pair))
        chosen = list(dict.fromkeys(ranked[round(share * (len(ranked) - 1))] for share in SHARES)) if ranked else []
        run.plots.mkdir(exist_ok=True)
        for stale in _pictures(run):
            if stale.name.startswith("matches_") and _is_ours(stale, run):
                stale.unlink()
        for name in NAMES:
            remove_stale(run.plots / name)
        return [
            _draw(images, pair, features, matches, verified, run.plots / f"matches_{rank}.jpg").relative_to(run.path).as_posix()
            for rank, pair in enumerate(chosen)
        ]


def drawn_pictures(run: RunFolder, state: str) -> list[str] | None:
    """The pictures that an earlier call drew of this `freshness.state_of` the run; None if any is missing or of another state."""
    record = run.read_summary()["stages"].get("plots", {})
    files = record.get("files", [])
    if record.get("drawn_from") != state or not all((run.path / name).is_file() for name in files):
        return None
    return [str(name) for name in files]


def check_pictures(run: RunFolder) -> None:
    """Raises: ValueError if a picture that `draw_match_gallery` or `draw_reconstruction` would replace is not from a run."""
    if os.path.lexists(run.plots) and not run.plots.is_dir():
        raise foreign_file(run.plots)
    for picture in _pictures(run):
        if not _is_ours(picture, run):
            raise foreign_file(picture)


def _pictures(run: RunFolder) -> list[Path]:
    """Existing paths of the pictures that a run draws."""
    return [run.plots / name for name in NAMES if os.path.lexists(run.plots / name)]


def _is_ours(picture: Path, run: RunFolder) -> bool:
    """Whether a run drew the picture. Version 0.10 did not mark pictures, but listed them in summary.json.

    An empty file counts: versions before this one left it if they were killed.
    """
    if not picture.is_file() or is_marked(picture) or picture.stat().st_size == 0:
        return picture.is_file()
    listed: list[str] = []
    with contextlib.suppress(ValueError):  # a summary.json of another program lists no pictures of ours
        listed = run.read_summary()["stages"].get("plots", {}).get("files", [])
    has_marks = any((run.path / name).is_file() and is_marked(run.path / name) for name in listed)
    return not has_marks and picture.relative_to(run.path).as_posix() in listed


def _draw(images: Path, pair: Pair, features: H5Reader, matches: H5Reader, verified: H5Reader, path: Path) -> Path:
    """Draws one pair to `path`, both photos upright; returns `path`."""
    found = matches.find_matches(pair.name0, pair.name1)
    if found is None:
        raise KeyError(f"{matches.path} has no matches of {pair.name0!r} and {pair.name1!r}")
    inliers = verified.geometry(pair.name0, pair.name1).inlier_matches
    is_inlier = np.isin(found.indices[:, 0], inliers[:, 0])
    stored = [features.features(name, with_descriptors=False) for name in (pair.name0, pair.name1)]
    draw_matches(
        turn_pixels(load_image(images, pair.name0).pixels, stored[0].orientation),
        turn_pixels(load_image(images, pair.name1).pixels, stored[1].orientation),
        upright_features(stored[0]).keypoints[found.indices[:, 0]],
        upright_features(stored[1]).keypoints[found.indices[:, 1]],
        found.scores,
        path,
        inliers=is_inlier,
        title=f"{pair.name0} - {pair.name1}",
        note=_of_kinds(features.kinds(pair.name0), found.indices[:, 0], is_inlier),
    )
    return path


def _of_kinds(kinds: Sequence[PartOfFeatures], indices: np.ndarray, is_inlier: np.ndarray) -> str:
    """How many matches of each of several kinds of features are verified; empty for one kind."""
    if len(kinds) < 2:
        return ""
    within = [(part.kind, (indices >= part.start) & (indices < part.start + part.count)) for part in kinds]
    return ", ".join(f"{kind}: {(some & is_inlier).sum()} of {some.sum()}" for kind, some in within)
