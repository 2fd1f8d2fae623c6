"""`reconstruction=auto`: maps with two mappers where both are possible, and keeps the models that agree better with the matches.

COLMAP's global mapper needs known focal lengths; then its models are sometimes better than those of the incremental mapper.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.mappers import ReconstructionOptions, image_names
from sfm_lightglue.reconstruction.models import model_folders, rank_of

logger = logging.getLogger(__name__)

MIN_GAIN = 0.002
"""The global mapper must agree this much better with the matches: the incremental one is more robust."""
MAX_COMPARED = 1000
"""With more photos, the global mapper alone is enough if it registers MIN_REGISTERED of them."""
MIN_REGISTERED = 0.95
MAX_PAIRS = 5000
"""Verified pairs that the agreement is measured on, spread over all of them."""


def map_with_best_mapper(
    database: Path, output: Path, options: ReconstructionOptions, run: Callable[[Path, ReconstructionOptions], bool]
) -> tuple[ReconstructionOptions, str, bool]:
    """Maps the scene into the folder `output` with the better mapper.

    Returns the options with the name of the chosen mapper, a sentence with the reason, and whether Ctrl-C was pressed. Logs it.

    Args:
        database: COLMAP database.
        output: folder of the models, without any.
        options: of the mappers.
        run: maps the database into a folder; returns whether Ctrl-C was pressed.
    """
    incremental, global_ = (replace(options, name=name) for name in ("incremental", "global"))
    num_guessed, num_images = _num_guessed_cameras(database), len(image_names(database))
    if num_guessed:
        interrupted = run(output, incremental)
        return incremental, _told(f"incremental mapper: {num_guessed} focal lengths are guesses"), interrupted
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        first, second = Path(folder) / "global", Path(folder) / "incremental"
        for path in (first, second):
            path.mkdir()
        interrupted = run(first, global_)
        score, num_registered = _score_of_largest(first, database, options)
        if interrupted or (num_images > MAX_COMPARED and num_registered >= MIN_REGISTERED * num_images):
            _move(first, output)
            return global_, _told(f"global mapper: it registered {num_registered} of {num_images} photos"), interrupted
        interrupted = run(second, incremental)
        other, num_other = _score_of_largest(second, database, options)
        chosen, source = (global_, first) if score > other + MIN_GAIN and not interrupted else (incremental, second)
        _move(source, output)
    said = (
        f"{chosen.name} mapper: {100 * score:.1f} % of the verified matches agree with the global model ({num_registered} of "
        f"{num_images} photos), {100 * other:.1f} % with the incremental one ({num_other})"
    )
    return chosen, _told(said), interrupted


def agreement(models: Sequence[pycolmap.Reconstruction], database: Path, max_errors_px: Sequence[float]) -> list[float]:
    """How well the poses and cameras of models agree with all verified matches, 0..1, for each of several error limits.

    The mean of 1 - (e / max_error_px)^2, at least 0, over the matches; e is the distance of a match from its epipolar plane, px.
    Matches of two photos that are in no common model count 0, those of photos in several models as in the best one. The mappers
    use only a part of these matches, in tracks.

    Args:
        models: models of one scene, or of several.
        database: the database that they were made from.
        max_errors_px: errors of this size or more count 0.
    """
    seen, limits = [SeenModel(model) for model in models], np.array(max_errors_px)[:, None]
    total, agreeing = 0, np.zeros(len(limits))
    with pycolmap.Database.open(database) as rows:
        counts = rows.read_two_view_geometry_num_inliers()
        pairs = [pair for pair, count in sorted(zip(*map(list, counts), strict=True)) if count]
        for pair_id in pairs[:: max(1, len(pairs) // MAX_PAIRS)]:
            image_ids = pycolmap.pair_id_to_image_pair(pair_id)
            matches = np.asarray(rows.read_two_view_geometry(*image_ids).inlier_matches)
            total += len(matches)
            errors_px = [each.epipolar_errors(image_ids, matches) for each in seen if each.has(image_ids)]
            if errors_px:
                agreeing += np.max([np.clip(1 - (each / limits) ** 2, 0, None).sum(axis=1) for each in errors_px], axis=0)
    return [float(value) for value in agreeing / max(total, 1)]


@dataclass(frozen=True)
class SeenModel:
    """A model with the rays of the keypoints of its photos, as far as they were asked for."""

    model: pycolmap.Reconstruction
    rays: dict[int, np.ndarray] = field(default_factory=dict)

    def has(self, image_ids: tuple[int, int]) -> bool:
        return all(self.model.exists_image(image_id) and self.model.image(image_id).has_pose for image_id in image_ids)

    def epipolar_errors(self, image_ids: tuple[int, int], matches: np.ndarray) -> np.ndarray:
        """float64 (n,): distance of the keypoints of the second image from the epipolar planes of those of the first, px."""
        image0, image1 = (self.model.image(image_id) for image_id in image_ids)
        rays0, rays1 = (self._rays(image_id)[matches[:, column]] for column, image_id in enumerate(image_ids))
        cam1_from_cam0 = image1.cam_from_world() * image0.cam_from_world().inverse()
        normals = np.cross(cam1_from_cam0.translation, rays0 @ cam1_from_cam0.rotation.matrix().T)
        sine = np.abs((normals * rays1).sum(axis=1)) / np.maximum(np.linalg.norm(normals, axis=1), 1e-12)
        camera = self.model.camera(image1.camera_id)
        px_per_radian = camera.width / (2 * np.pi) if camera.is_spherical() else camera.mean_focal_length()
        errors_px: np.ndarray = np.nan_to_num(sine * px_per_radian, nan=np.inf)
        return errors_px

    def _rays(self, image_id: int) -> np.ndarray:
        """float64 (n, 3): rays of the keypoints of an image, of length 1."""
        if image_id not in self.rays:
            image = self.model.image(image_id)
            keypoints = np.array([point.xy for point in image.points2D]).reshape(-1, 2)
            self.rays[image_id] = np.asarray(self.model.camera(image.camera_id).cam_ray_from_img(keypoints)).reshape(-1, 3)
        return self.rays[image_id]


def _score_of_largest(folder: Path, database: Path, options: ReconstructionOptions) -> tuple[float, int]:
    """The agreement of the largest model in a folder, and its number of photos; 0 without a model."""
    models = sorted((read_model(path) for path in model_folders(folder)), key=rank_of)
    return (agreement(models[:1], database, [options.max_error_px])[0], models[0].num_reg_images()) if models else (0.0, 0)


def _num_guessed_cameras(database: Path) -> int:
    with pycolmap.Database.open(database) as rows:
        return sum(not camera.has_prior_focal_length for camera in rows.read_all_cameras())


def _move(source: Path, output: Path) -> None:
    for folder in model_folders(source):
        shutil.move(folder, output / folder.name)


def _told(said: str) -> str:
    logger.info("%s", said)
    return said
