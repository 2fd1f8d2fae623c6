"""The normal equations of a model's bundle adjustment, without its points: what its observations say about poses and cameras.

COLMAP gives covariances as if the errors of all keypoints were independent. But the errors of a point are similar in all photos,
and those of neighbouring points too. So here a point, or a part of the scene, is one sample: the covariance is H^-1 B H^-1 of the
reduced normal equations H and the sum B of the squared gradients of the samples (sandwich estimator with clusters: Huber 1967;
Liang and Zeger 1986). Photos can also get cameras of their own, to compare what parts of the photos say, see `disagreement`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

POSE = 6
"""Parameters of a pose: turn of the camera (radians, about its x, y and z), then its centre (along the axes of the model)."""
GAUGE = 7
"""Parameters of a transform that moves, turns and scales a model, which observations do not determine."""
MIN_SINGULAR = 1e-13
"""Inverse of the largest condition number of normal equations with equal scales; larger ones leave a parameter undetermined."""


@dataclass(frozen=True)
class Estimate:
    """Solution of the normal equations."""

    step: np.ndarray
    """float64 (n,): by how much the parameters should change."""
    covariance: np.ndarray
    """float64 (n, n): of the parameters."""
    inverse: np.ndarray
    """float64 (n, n): the covariance if all residuals were independent and had the variance 1."""


@dataclass(frozen=True)
class NormalEquations:
    """Normal equations of poses and cameras, in a block for each two photos that see a common point.

    A block has the free parameters of the photo's camera, as many as the camera with the most has, then the POSE.
    """

    image_ids: list[int]
    camera_ids: list[int]
    """Of each photo."""
    num_free: Mapping[int, int]
    """Number of free parameters by camera."""
    num_observations: Mapping[int, int]
    """By camera."""
    pairs: np.ndarray
    """int64 (m, 2): two rows of `image_ids`, the smaller one first."""
    hessians: np.ndarray
    """float64 (m, b, b): the reduced normal equations."""
    gradients: Sequence[np.ndarray]
    """float64 (k, b) for each photo: of the samples that it sees."""
    samples: Sequence[np.ndarray]
    """int64 (k,) for each photo: numbers of these samples."""
    moves: np.ndarray
    """float64 (n, 6, 7): change of each POSE if the model is moved, turned and scaled."""
    slope: float
    """Mean derivative of the influence of an observation / its mean weight."""
    correction: float
    """Factor on covariances for the number of parameters and of observations."""

    def cameras(self, groups: Sequence[int] | None = None) -> Estimate | None:
        """Estimate of the free parameters of the cameras, by id; None if the observations do not determine them.

        Args:
            groups: number of the camera of each photo, from 0 without gaps, in place of `camera_ids`.
        """
        count, columns, gauge = self._columns(groups)
        inverse = self._inverse(columns, gauge, count)
        return None if inverse is None else self._estimate(columns, inverse, inverse[:count])

    def poses(self) -> Estimate | None:
        """Estimate of all parameters: the cameras', by id, then the poses', in the order of `image_ids`.

        Coordinates are those in which the model fits the true centres best (S-transformation: Baarda 1973; Molenaar 1981).
        """
        count, columns, gauge = self._columns(None)
        inverse = self._inverse(columns, gauge, len(gauge))
        if inverse is None:
            return None
        centers = np.zeros(len(gauge), bool)
        centers[count:] = np.tile(np.arange(POSE) >= 3, len(self.image_ids))
        fit = np.zeros((7, len(gauge)))
        fit[:, centers] = np.linalg.pinv(gauge[centers], rcond=1e-6)  # cameras on a line: turns about it are not determined
        fitted = inverse - inverse @ fit.T @ gauge.T
        return self._estimate(columns, fitted, fitted - gauge @ (fit @ fitted))

    def _columns(self, groups: Sequence[int] | None) -> tuple[int, np.ndarray, np.ndarray]:
        """Number of camera parameters; int64 (n, b) column of each parameter of a block, -1 for none; (columns, 7) gauge."""
        if groups is None:
            order = sorted({*self.camera_ids})
            groups = [order.index(camera_id) for camera_id in self.camera_ids]
        sizes = np.zeros(max(groups) + 1, int)
        for group, camera_id in zip(groups, self.camera_ids, strict=True):
            sizes[group] = self.num_free[camera_id]
        starts, count = np.cumsum(sizes) - sizes, int(sizes.sum())
        num_images, size = len(self.image_ids), self.gradients[0].shape[1]
        columns = np.full((num_images, size), -1)
        for row, group in enumerate(groups):
            columns[row, : sizes[group]] = starts[group] + np.arange(sizes[group])
        columns[:, size - POSE :] = count + np.arange(POSE * num_images).reshape(-1, POSE)
        gauge = np.concatenate([np.zeros((count, 7)), self.moves.reshape(-1, 7)])
        return count, columns, gauge

    def _estimate(self, columns: np.ndarray, inverse: np.ndarray, own: np.ndarray) -> Estimate:
        """Estimate of parameters of which `inverse` has the columns of the inverse, and `own` its rows too."""
        changes = np.zeros((1 + max(int(samples.max(initial=0)) for samples in self.samples), inverse.shape[1]))
        for row, (samples, gradients) in enumerate(zip(self.samples, self.gradients, strict=True)):
            is_free = columns[row] >= 0
            changes[samples] += gradients[:, is_free] @ inverse[columns[row, is_free]]
        covariance = self.correction / self.slope**2 * changes.T @ changes
        return Estimate(-changes.sum(axis=0) / self.slope, covariance, own)

    def _inverse(self, columns: np.ndarray, gauge: np.ndarray, count: int) -> np.ndarray | None:
        """The first `count` columns of the inverse; None if the equations are singular."""
        total = len(gauge)
        hessian = self._sum(self.hessians, columns, total)
        scale = np.sqrt(np.diag(hessian))
        if not np.isfinite(hessian).all() or not (scale > 0).all():
            return None
        free, _ = np.linalg.qr(scale[:, None] * gauge)
        scaled = hessian / scale[:, None] / scale + free @ free.T
        if np.linalg.cond(scaled, 1) > 1 / MIN_SINGULAR:
            return None
        wanted = np.eye(total)[:, :count] - free @ free[:count].T
        inverse: np.ndarray = np.linalg.solve(scaled, wanted) / scale[:, None] / scale[:count]
        return inverse

    def _sum(self, blocks: np.ndarray, columns: np.ndarray, total: int) -> np.ndarray:
        """float64 (total, total): the blocks of all pairs in their columns."""
        rows, others = columns[self.pairs[:, 0]], columns[self.pairs[:, 1]]
        places = np.where((rows[:, :, None] < 0) | (others[:, None] < 0), total**2, rows[:, :, None] * total + others[:, None])
        half = np.bincount(places.ravel(), blocks.ravel(), total**2 + 1)[:-1].reshape(total, total)
        is_same = self.pairs[:, 0] == self.pairs[:, 1]
        own = np.bincount(places[is_same].ravel(), blocks[is_same].ravel(), total**2 + 1)[:-1].reshape(total, total)
        both: np.ndarray = half + half.T - own
        return both


def normal_equations(
    model: pycolmap.Reconstruction,
    scale_px: float,
    cameras: Mapping[int, pycolmap.Camera],
    free: Mapping[int, Sequence[int]],
    image_ids: Sequence[int] | None = None,
    num_parts: int | None = None,
) -> NormalEquations | None:
    """The normal equations at the present poses, cameras and points; None if there are fewer observations than parameters.

    Args:
        model: the model; Cauchy's loss weights its observations.
        scale_px: scale of the loss.
        cameras: by id; they may have another model than those of `model` if they project as they do.
        free: positions of the parameters that are free, by id of the camera.
        image_ids: photos to use. Default: all registered ones.
        num_parts: number of parts of the scene that are samples, a power of two. Default: each point is a sample.
    """
    ids = sorted(model.reg_image_ids() if image_ids is None else image_ids)
    camera_ids = [model.image(image_id).camera_id for image_id in ids]
    num_free = {camera_id: len(free[camera_id]) for camera_id in {*camera_ids}}
    size = max(num_free.values()) + POSE
    positions = _Positions.of(model)
    seen = _merged([_linear(model, image_id, cameras, free, size, positions) for image_id in ids])
    squares = (seen.residuals**2).sum(axis=1)
    weights = 1 / (1 + squares / scale_px**2)
    num_residuals, num_points = 2 * len(weights), len(np.unique(seen.points))
    num_left = num_residuals - 3 * num_points
    num_params = POSE * len(ids) + sum(num_free.values())
    if num_left <= num_params - GAUGE:
        return None
    hessians, pairs, rows, points, gradients = _eliminate(seen, weights, len(ids))
    if num_parts is not None:
        points = _parts(positions(np.unique(seen.points)), num_parts)[points]
    numbers, totals = _by_sample(rows, points, gradients, len(ids))
    slope = float((weights**2).mean())
    spread = float((weights**2 * (1 + (2 * weights - 1) ** 2)).mean() / 2) - slope**2
    # Huber and Ronchetti, Robust Statistics (2009), section 7.6: few observations for each parameter.
    correction = (1 + (3 * num_points + num_params) / num_residuals * spread / slope**2) ** 2
    correction *= num_left / max(num_left - num_params, 1)
    counts = np.bincount(seen.rows, minlength=len(ids))
    num_observations = {camera_id: int(counts[np.array(camera_ids) == camera_id].sum()) for camera_id in num_free}
    return NormalEquations(
        image_ids=ids,
        camera_ids=camera_ids,
        num_free=num_free,
        num_observations=num_observations,
        pairs=pairs,
        hessians=hessians,
        gradients=totals,
        samples=numbers,
        moves=_moves(model, ids),
        slope=slope / float(weights.mean()),
        correction=correction,
    )


@dataclass(frozen=True)
class _Positions:
    """Where the points of a model are. They are read once: each call of COLMAP takes 2 us, and many photos see a point."""

    ids: np.ndarray
    """int64 (n,): of the points, ascending."""
    in_world: np.ndarray
    """float64 (n, 3)."""

    @classmethod
    def of(cls, model: pycolmap.Reconstruction) -> _Positions:
        ids = sorted(model.point3D_ids())
        return cls(np.array(ids, np.int64), np.array([model.point3D(point).xyz for point in ids]).reshape(-1, 3))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """float64 (k, 3): positions of the points with these ids."""
        found: np.ndarray = self.in_world[np.searchsorted(self.ids, points)]
        return found


@dataclass(frozen=True)
class _Observations:
    """Observations, sorted by photo, then by point."""

    rows: np.ndarray
    """int64 (n,): of the photo."""
    points: np.ndarray
    """int64 (n,): id of the point."""
    residuals: np.ndarray
    """float64 (n, 2): projection - keypoint, px."""
    by_photo: np.ndarray
    """float64 (n, 2, b): change of the projection by the parameters of a block."""
    by_point: np.ndarray
    """float64 (n, 2, 3): change of the projection by the position of the point."""


def _linear(
    model: pycolmap.Reconstruction,
    image_id: int,
    cameras: Mapping[int, pycolmap.Camera],
    free: Mapping[int, Sequence[int]],
    size: int,
    positions: _Positions,
) -> _Observations:
    """The observations of one photo; points that it cannot see are left out."""
    image = model.image(image_id)
    camera = cameras[image.camera_id]
    seen = image.get_observation_points2D()
    points = np.array([point.point3D_id for point in seen], np.int64)
    keypoints = np.array([point.xy for point in seen]).reshape(-1, 2)
    pose = image.cam_from_world().matrix()
    rotation = pose[:, :3]
    rays = positions(points) @ rotation.T + pose[:, 3]
    residuals = np.array(camera.img_from_cam(rays)).reshape(-1, 2) - keypoints
    by_ray, by_photo = _by_ray(camera, rays), np.zeros((len(rays), 2, size))
    for column, position in enumerate(free[image.camera_id]):
        by_photo[:, :, column] = _by_parameter(camera, rays, position)
    x, y, z = rays.T
    zero = np.zeros_like(x)
    turned = np.stack([zero, z, -y, -z, zero, x, y, -x, zero], axis=1).reshape(-1, 3, 3)
    by_photo[:, :, -POSE:-3], by_photo[:, :, -3:] = by_ray @ turned, -by_ray @ rotation
    is_good = np.isfinite(by_photo).all(axis=(1, 2)) & np.isfinite(residuals).all(axis=1)
    order = np.flatnonzero(is_good)[np.argsort(points[is_good], kind="stable")]
    rows = np.full(len(order), image_id)
    return _Observations(rows, points[order], residuals[order], by_photo[order], by_ray[order] @ rotation)


def _by_ray(camera: pycolmap.Camera, rays: np.ndarray) -> np.ndarray:
    """float64 (n, 2, 3): change of the projection by the coordinates of a point in the camera's frame."""
    step = 1e-6 * np.linalg.norm(rays, axis=1, keepdims=True)
    columns = [np.array(camera.img_from_cam(rays + step * axis)) - camera.img_from_cam(rays - step * axis) for axis in np.eye(3)]
    return np.stack([column.reshape(-1, 2) / (2 * step) for column in columns], axis=2)


def _by_parameter(camera: pycolmap.Camera, rays: np.ndarray, position: int) -> np.ndarray:
    """float64 (n, 2): change of the projection by a parameter of the camera."""
    lengths = {*camera.focal_length_idxs(), *camera.principal_point_idxs()}
    step, values = (1e-4 * max(camera.width, camera.height) if position in lengths else 1e-5), np.array(camera.params)
    found = []
    for sign in (1, -1):
        moved = values.copy()
        moved[position] += sign * step
        other = pycolmap.Camera(model=camera.model_name, width=camera.width, height=camera.height, params=moved.tolist())
        found.append(np.array(other.img_from_cam(rays)).reshape(-1, 2))
    change: np.ndarray = (found[0] - found[1]) / (2 * step)
    return change


def _merged(photos: Sequence[_Observations]) -> _Observations:
    """The observations of all photos of points that two or more of them see, with the rows of the photos."""
    rows = np.repeat(np.arange(len(photos)), [len(photo.points) for photo in photos])
    points = np.concatenate([photo.points for photo in photos])
    _, places, counts = np.unique(points, return_inverse=True, return_counts=True)
    kept = counts[places] >= 2
    arrays = (np.concatenate([getattr(photo, name) for photo in photos])[kept] for name in ("residuals", "by_photo", "by_point"))
    return _Observations(rows[kept], points[kept], *arrays)


def _eliminate(seen: _Observations, weights: np.ndarray, num_images: int) -> tuple[np.ndarray, ...]:
    """Hessians of the pairs, the pairs; and without the points: gradients, their photos and numbers of their points."""
    root = np.sqrt(weights)[:, None]
    by_photo, by_point = root[:, :, None] * seen.by_photo, root[:, :, None] * seen.by_point
    residuals = root * seen.residuals
    ids, places = np.unique(seen.points, return_inverse=True)
    own = _sums(np.einsum("nik,nil->nkl", by_point, by_point), places, len(ids))
    own += 1e-10 * np.trace(own, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    right = _sums(np.einsum("nik,ni->nk", by_point, residuals), places, len(ids))
    inverse = np.linalg.inv(own)
    cross = np.einsum("nik,nil->nkl", by_photo, by_point)
    scores = np.einsum("nik,ni->nk", by_photo, residuals)
    scores -= np.einsum("nkl,nl->nk", cross, np.einsum("nkl,nl->nk", inverse, right)[places])
    shares = cross @ np.linalg.cholesky(inverse)[places]
    starts = np.searchsorted(seen.rows, np.arange(num_images + 1)).tolist()
    of_photos = [by_photo[start:end].reshape(-1, by_photo.shape[2]) for start, end in itertools.pairwise(starts)]
    diagonal = [each.T @ each for each in of_photos]
    # A photo may see a point twice.
    first = np.flatnonzero(np.r_[True, (np.diff(seen.rows) != 0) | (np.diff(places) != 0)])
    if len(first) < len(places):
        scores, shares = np.add.reduceat(scores, first), np.add.reduceat(shares, first)
    rows, places = seen.rows[first], places[first]
    ends = np.searchsorted(rows, np.arange(num_images + 1))
    pairs, hessians = [], []
    for row, other, mine, its in _common(places, ends, len(ids)):
        pairs.append((row, other))
        hessians.append(-np.tensordot(shares[mine], shares[its], axes=((0, 2), (0, 2))))
        if row == other:
            hessians[-1] += diagonal[row]
    return np.array(hessians), np.array(pairs), rows, places, scores


def _parts(positions: np.ndarray, num_parts: int) -> np.ndarray:
    """int64 (n,): part of each point; parts are halved across their longest axis until there are `num_parts`."""
    parts = np.zeros(len(positions), np.int64)
    for _ in range(int(np.log2(num_parts))):
        for part in range(parts.max(initial=0), -1, -1):
            rows = np.flatnonzero(parts == part)
            if len(rows) == 0:  # fewer points than parts
                continue
            from_middle = positions[rows] - positions[rows].mean(axis=0)
            along = from_middle @ np.linalg.eigh(from_middle.T @ from_middle)[1][:, -1]
            along *= np.sign((along**3).sum())  # the same parts in coordinates that are turned
            order = np.argsort(along, kind="stable")
            parts[rows] = 2 * part
            parts[rows[order[len(rows) // 2 :]]] += 1
    return parts


def _by_sample(
    rows: np.ndarray, samples: np.ndarray, gradients: np.ndarray, num_images: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Numbers of the samples that each photo sees, and sums of their gradients."""
    numbers, totals = [], []
    for row in range(num_images):
        is_own = rows == row
        found, places = np.unique(samples[is_own], return_inverse=True)
        numbers.append(found)
        totals.append(_sums(gradients[is_own], places, len(found)))
    return numbers, totals


def _common(places: np.ndarray, ends: np.ndarray, num_points: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Each two photos with common points, the first one also with itself, and the positions of these points' observations."""
    for row in range(len(ends) - 1):
        position = np.full(num_points, -1)
        position[places[ends[row] : ends[row + 1]]] = np.arange(ends[row], ends[row + 1])
        for other in range(row, len(ends) - 1):
            mine = position[places[ends[other] : ends[other + 1]]]
            is_common = mine >= 0
            if is_common.any() or row == other:
                yield row, other, mine[is_common], ends[other] + np.flatnonzero(is_common)


def _sums(values: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """float64 (count, ...): sum of the values of each place."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    sums = np.stack([np.bincount(places, column, count) for column in flat.T], axis=1)
    return sums.reshape(count, *values.shape[1:])


def _moves(model: pycolmap.Reconstruction, ids: Sequence[int]) -> np.ndarray:
    """float64 (n, 6, 7): change of each POSE by a translation, rotation and scale of the model about the mean of the centres."""
    moves = np.zeros((len(ids), POSE, 7))
    centers = np.array([model.image(image_id).projection_center() for image_id in ids])
    for row, (x, y, z) in enumerate(centers - centers.mean(axis=0)):
        moves[row, :3, 3:6] = -model.image(ids[row]).cam_from_world().rotation.matrix()
        moves[row, 3:, :3] = np.eye(3)
        moves[row, 3:, 3:6] = [[0, z, -y], [-z, 0, x], [y, -x, 0]]
        moves[row, 3:, 6] = x, y, z
    return moves
