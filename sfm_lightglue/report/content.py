"""The content of a report: everything that `web/main.js` shows, collected from the files of a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.files import result_exists
from sfm_lightglue.pair_table import PairNumbers
from sfm_lightglue.pose_priors import find_positions
from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.report import model_statistics, pair_data, run_data
from sfm_lightglue.report.packing import histogram, packed_json
from sfm_lightglue.report.pictures import make_pictures
from sfm_lightglue.report.scene_data import scene_of
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import H5Reader
from sfm_lightglue.summary import Summary
from sfm_lightglue.tables import PairRow, PhotoRow, Tables

logger = logging.getLogger(__name__)

PHOTO_COLUMNS = (
    *("photo", "width", "height", "keypoints", "pairs", "verified_pairs", "matches", "inliers", "mean_score", "model", "points"),
    *("reprojection_error_px", "verdict", "reason", "advice"),
)
MAX_MODELS = 12
"""Models in the 3D view, the first ones."""


def content_of(run: RunFolder, tables: Tables) -> dict[str, Any]:
    """All data of the page `web/page.html` about a run: texts, numbers, lists and packed arrays."""
    summary = Summary.read(run)
    photos = sorted(tables.photos, key=lambda row: row.photo)
    number = {row.photo: i for i, row in enumerate(photos)}
    pairs = [pair for pair in pair_data.kept_pairs(tables.pairs) if pair.photo0 in number and pair.photo1 in number]
    galleries, lost = pair_data.choose_galleries(pairs), pair_data.unregistered(photos)
    with _opened(run) as readers:
        orientations, scales = _of_features(readers["features"], [*number])
        models, figures, histograms, residuals = _models(run, number, orientations, scales)
        lines, layers = _lines(readers, pairs, galleries, photos, lost)
        of_layers = histogram("LightGlue's stop layer", layers[layers > 0], "layers that ran", low=1)
        histograms = [*_histograms(photos, tables.pairs), *([of_layers] if of_layers else []), *histograms]
    in_galleries = {
        number[name] for rows in galleries.values() for row in rows for name in (pairs[row].photo0, pairs[row].photo1)
    }
    posed = [i for i, photo in enumerate(photos) if photo.model is not None]
    pictures = make_pictures(
        run.photos(), [*number], orientations, run.report_pictures, enlarged={*in_galleries, *lost}, posed=posed
    )
    state, verdict = run_data.verdict_of(summary, photos)
    name = run.path.resolve().name
    return {
        "title": f"{name}: {verdict}",
        "heading": name,
        "made": run_data.made_by(summary),
        "state": state,
        "verdict": verdict,
        "tiles": run_data.tiles_of(photos, tables.pairs, figures, sum(summary.seconds.values())),
        "messages": run_data.messages_of(summary),
        "photos": packed_json({column: [getattr(row, column) for row in photos] for column in PHOTO_COLUMNS}),
        "pairs": pair_data.pair_columns(pairs, number, len(tables.pairs)),
        "galleries": galleries,
        **lines,
        "models": models,
        "histograms": histograms,
        "residuals": residuals,
        "pictures": pictures.sources,
        "large": pictures.large,
        "atlas": pictures.atlas,
        "picture_note": pictures.note,
        **run_data.run_columns(run, summary),
    }


@contextlib.contextmanager
def _opened(run: RunFolder) -> Iterator[dict[str, H5Reader | None]]:
    """Readers of the files of features, matches and geometries; None if a file does not exist yet, or is damaged."""
    with contextlib.ExitStack() as stack:
        readers: dict[str, H5Reader | None] = {}
        for name, path in (("features", run.features), ("matches", run.matches), ("verification", run.verification)):
            try:
                readers[name] = stack.enter_context(H5Reader(path)) if result_exists(path) else None
            except ValueError as error:
                logger.warning("the report leaves out %s: %s", path, error)
                readers[name] = None
        yield readers


def _of_features(features: H5Reader | None, names: Sequence[str]) -> tuple[dict[str, int], dict[str, float]]:
    """The EXIF code and the pixel scale of each photo that has features."""
    if features is None:
        return {}, {}
    known = [name for name in names if features.has(name)]
    return features.orientations(known), {name: features.pixel_scale(name) for name in known}


def _models(
    run: RunFolder, number: Mapping[str, int], orientations: Mapping[str, int], scales: Mapping[str, float]
) -> tuple[list[dict[str, Any]], dict[str, float], list[dict[str, Any]], list[dict[str, Any]]]:
    """The models for the 3D view, and of the largest model the key figures, histograms and error maps."""
    scenes: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    charts: list[dict[str, Any]] = []
    maps: list[dict[str, Any]] = []
    for folder in run.models()[:MAX_MODELS]:
        try:
            model = run.open_model(folder)
        except ValueError as error:
            logger.warning("the report leaves out %s: %s", folder, error)
            continue
        registered = [model.image(image_id).name for image_id in model.reg_image_ids()]
        scenes.append(scene_of(folder.name, model, folder, number, orientations, _positions(run, registered, folder)))
        if len(scenes) > 1:
            continue
        residuals = model_statistics.measure_residuals(model, model_statistics.pixel_scales(scales))
        lengths, angles = model_statistics.measure_points(model)
        errors = np.linalg.norm(residuals.error, axis=1)
        figures = {
            "3D points": model.num_points3D(),
            "mean track length": round(model.compute_mean_track_length(), 2),
            "reprojection error, px": round(
                model.compute_mean_reprojection_error() or float(errors.sum() / max(1, len(errors))), 2
            ),
        }
        found = [
            histogram("Track length", lengths, "photos", low=2),
            histogram("Reprojection error", errors, "px of the photo"),
            histogram("Reprojection error in pixels of the detector", errors / residuals.pixel_scale, "px of the resized photo"),
            histogram("Triangulation angle", angles, "degrees, the largest of each point"),
        ]
        charts = [chart for chart in found if chart]
        maps = model_statistics.residual_maps(residuals, model)
    return scenes, figures, charts, maps


def _positions(run: RunFolder, names: Sequence[str], folder: Path) -> dict[str, GeoPosition]:
    """The GPS positions of photos, if the model is georeferenced and they can be read."""
    photos = run.photos()
    if photos is None or not (folder / "georeference.json").is_file():
        return {}
    try:
        return find_positions(photos, names, run.read_summary().get("dataset", {}).get("positions"))
    except (OSError, ValueError) as error:
        logger.warning("the report shows no GPS positions: %s", error)
        return {}


def _histograms(photos: Sequence[PhotoRow], pairs: Sequence[PairRow]) -> list[dict[str, Any]]:
    """Histograms of photos and pairs."""
    numbers = PairNumbers.of(pairs)
    is_verified, scores = numbers.verified, numbers.mean_score[numbers.matched]
    counts, inliers = numbers.matches, numbers.inliers
    found = [
        histogram("Keypoints of a photo", np.array([photo.keypoints for photo in photos if photo.keypoints is not None])),
        histogram("Matches of a pair", counts[numbers.matched]),
        histogram("Inliers of a verified pair", inliers[is_verified]),
        histogram(
            "Inlier ratio of a verified pair", inliers[is_verified] / np.maximum(counts[is_verified], 1), "inliers / matches"
        ),
        histogram(
            "Mean matching score of a pair",
            scores[~np.isnan(scores)],
        ),
    ]
    return [chart for chart in found if chart]


def _lines(
    readers: Mapping[str, H5Reader | None],
    pairs: Sequence[PairRow],
    galleries: Mapping[str, Sequence[int]],
    photos: Sequence[PhotoRow],
    lost: Sequence[int],
) -> tuple[dict[str, Any], np.ndarray]:
    """Lines of the pairs in the galleries and of as many others as there is room for, and keypoints of photos without a pose.

    The second part is the stop layer (n,) of each of these pairs; 0 for matchers without layers.
    """
    features = readers["features"]
    if features is None:
        return {"matches": {}, "keypoints": []}, np.zeros(0, np.int64)
    lines = pair_data.Lines(features, readers["matches"], readers["verification"])
    first = [row for rows in galleries.values() for row in rows]
    rows = list(dict.fromkeys([*first, *range(len(pairs))][: len(first) + pair_data.MAX_DRAWN]))
    rows = [row for row in rows if features.has(pairs[row].photo0) and features.has(pairs[row].photo1)]
    drawn = {str(row): found for row in rows if (found := lines.of_pair(pairs[row].photo0, pairs[row].photo1)) is not None}
    known = [i for i in lost if features.has(photos[i].photo)]
    keypoints = [{"photo": i, **lines.of_photo(photos[i].photo)} for i in known]
    return {"matches": drawn, "keypoints": keypoints}, np.array(lines.stop_layers, np.int64)
