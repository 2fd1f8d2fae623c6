"""The command `match-pair`: matches two photos, prints the matches as a table or JSON, and draws them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfm_lightglue.api import load_image
from sfm_lightglue.cameras import GUESSED_FOCAL_FACTOR, Camera
from sfm_lightglue.config import compose_config
from sfm_lightglue.features.extractor import extract_upright
from sfm_lightglue.geometries.confirmation import judged_geometry
from sfm_lightglue.geometries.verification import VerificationOptions, verify_matches
from sfm_lightglue.image_matches import ImageMatches, image_matches
from sfm_lightglue.orientation import upright_features, upright_image
from sfm_lightglue.products import Features, Matches
from sfm_lightglue.report.matches import draw_matches
from sfm_lightglue.run_context import Run

NUM_ROWS = 10
"""Number of matches in the table. The JSON has all matches."""


@dataclass(frozen=True)
class PairResult:
    """Matches of two photos, and which matches are inliers of one two-view geometry."""

    matches: ImageMatches
    verified: np.ndarray
    """bool (k,): True for inliers."""
    picture: Path


def match_pair(image0: str, image1: str, overrides: Sequence[str], *, as_json: bool) -> str:
    """Matches two photos and draws them. Returns the text to print.

    Keypoints are px of the photos as they are stored. The picture shows the photos upright. It is named after them and goes to
    the option `output`, by default `outputs/match-pair`.

    Args:
        image0: Path of the first photo.
        image1: Path of the second photo.
        overrides: Overrides of the configuration, like `features=aliked`.
        as_json: Returns JSON with all matches instead of a table.

    Raises: UnreadableImage if a photo cannot be decoded, ValueError if an option is wrong.
    """
    run = Run.create(compose_config(["dataset.name=match-pair", *overrides]))
    extractor, matcher = run.extractor(), run.matcher()
    records = load_image(image0), load_image(image1)
    if run.options.orientation == "stored":
        records = dataclasses.replace(records[0], orientation=1), dataclasses.replace(records[1], orientation=1)
    features0, features1 = (extract_upright(extractor, record) for record in records)
    upright = upright_features(features0), upright_features(features1)
    matches = matcher(*upright)
    result = image_matches(features0, features1, matches)
    verified = _verify(features0, features1, matches, run.options.geometries)
    picture = run.folder.path / f"{Path(image0).stem}-{Path(image1).stem}.jpg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_matches(
        upright_image(records[0]).pixels,
        upright_image(records[1]).pixels,
        upright[0].keypoints[matches.indices[:, 0]],
        upright[1].keypoints[matches.indices[:, 1]],
        result.scores,
        picture,
        inliers=verified,
        title=f"{Path(image0).name} - {Path(image1).name}",
    )
    pair = PairResult(result, verified, picture)
    return _json(image0, image1, pair) if as_json else _table(image0, image1, pair)


def _verify(features0: Features, features1: Features, matches: Matches, options: VerificationOptions) -> np.ndarray:
    """bool (k,): True for the inliers of a two-view geometry with guessed focal lengths."""
    cameras = [
        Camera("SIMPLE_PINHOLE", size, (GUESSED_FOCAL_FACTOR * max(size), size[0] / 2, size[1] / 2), False).to_colmap()
        for size in (features0.image_size, features1.image_size)
    ]
    geometry = verify_matches(cameras[0], cameras[1], features0, features1, matches, options)
    if geometry.unsure_matches is not None:
        score = geometry.mean_score or 0.0  # there is no third photo
        geometry = judged_geometry(geometry, score, is_verified=score >= options.min_confirmed)
    return np.isin(matches.indices[:, 0], geometry.inlier_matches[:, 0])


def _table(image0: str, image1: str, pair: PairResult) -> str:
    matches = pair.matches
    order = np.argsort(-matches.scores, kind="stable")
    lines = [
        f"keypoints: {len(matches.keypoints0)} in {image0}, {len(matches.keypoints1)} in {image1}",
        f"matches: {len(matches.scores)}, verified: {int(pair.verified.sum())}, "
        f"mean score: {matches.scores.mean() if len(matches.scores) else 0:.3f}",
        f"picture: {pair.picture}",
        f"{'x0':>9}{'y0':>9}{'x1':>9}{'y1':>9}{'score':>8}  verified   (the {min(NUM_ROWS, len(order))} best)",
    ]
    for index in order[:NUM_ROWS]:
        points = np.concatenate([matches.matched_keypoints0[index], matches.matched_keypoints1[index]])
        mark = "yes" if pair.verified[index] else "no"
        lines.append("".join(f"{value:9.1f}" for value in points) + f"{matches.scores[index]:8.3f}  {mark}")
    return "\n".join(lines)


def _json(image0: str, image1: str, pair: PairResult) -> str:
    matches = pair.matches
    content = {
        "image0": image0,
        "image1": image1,
        "keypoints0": np.round(matches.keypoints0.astype(float), 3).tolist(),
        "keypoints1": np.round(matches.keypoints1.astype(float), 3).tolist(),
        "matches0": matches.matches0.tolist(),
        "matching_scores0": np.round(matches.matching_scores0.astype(float), 5).tolist(),
        "num_matches": len(matches.scores),
        "num_verified": int(pair.verified.sum()),
        "verified": pair.verified.tolist(),
        "picture": str(pair.picture),
    }
    return json.dumps(content)
