"""Finds what stands still in the frame although the camera moves: logos, car hoods, borders, time strips.

Matches in them say that the camera did not move, and bend the geometry of a pair. Some matches of the scene also stand still:
distant points in the direction of motion, and points that the camera keeps in view. Around these points the motion grows slowly
from zero. An overlay has sharp borders: inside, all matches stand still. Only regions of the frame that stand still in several
pairs count as overlays. Everything is measured in the stored frame of the photos, because overlays are part of the stored pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sfm_lightglue.products import Features, Matches

GRID = 32
"""Cells along the longer side of a photo."""
NEAR = 3.0
"""Matches that move up to NEAR times the limit are near. Scenery that hardly moves has more of them than of stationary ones: 8
times as many, if the motion grows linearly with the distance from a fixed point."""
MOVING = 4.0
"""A match moves if it moves more than this many times the limit."""
MIN_SHARE = 0.8
"""Smallest share of stationary matches among stationary and near ones, in a pair and in a cell. Overlays burnt into fountain-P11
have 0.99, scenery of lund_door12 with a median motion of 4 px has 0.15."""
MIN_STATIONARY, MIN_MOVING = 8, 20
"""A pair shows overlays if it has this many stationary matches, and this many that move."""
MIN_PAIRS = 3
"""Number of pairs that must show an overlay in a cell; fewer if the collection has fewer pairs."""
MAX_SAMPLED_PAIRS = 1000
"""Overlays are looked for in this many pairs, evenly spread over the list."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Overlays:
    """Regions of the frame that stand still, by (width, height) px of the photos."""

    max_error_px: float = 0.0
    """Largest motion of a stationary match, px of the resized image that the detector saw."""
    cells: Mapping[Size, frozenset[tuple[int, int]]] = field(default_factory=dict)
    """(column, row) of the cells of each region; a photo has `GRID` cells along its longer side."""

    def __bool__(self) -> bool:
        return any(self.cells.values())

    def to_settings(self) -> dict[str, list[tuple[int, int]]]:
        """The cells as values for JSON, sorted."""
        return {f"{size[0]}x{size[1]}": sorted(cells) for size, cells in sorted(self.cells.items())}

    def describe(self) -> str:
        """Where the regions lie, such as `rows 75-100 %, columns 0-100 %`, for the most common kind of photo.

        A region that ends within a cell of the frame's edge is said to reach it: detectors find nothing at the edge itself.
        """
        size, cells = max(self.cells.items(), key=lambda item: (len(item[1]), item[0]))
        shape = _grid_shape(size)
        spans = []
        for axis, name in ((1, "rows"), (0, "columns")):
            values = [cell[axis] for cell in cells]
            lowest, highest = min(values), max(values) + 1
            first = 0.0 if lowest <= 1 else lowest / shape[axis]
            last = 1.0 if highest >= shape[axis] - 1 else highest / shape[axis]
            spans.append(f"{name} {100 * first:.0f}-{100 * last:.0f} %")
        return ", ".join(spans)


def find_overlays(pairs: Iterable[tuple[Features, Features, Matches]], max_error_px: float) -> Overlays:
    """The regions that stand still in several pairs whose camera moves.

    Args:
        pairs: keypoints of both images, and matches. Descriptors are not used.
        max_error_px: largest motion of a stationary match, px of the resized image that the detector saw.
    """
    num_pairs: dict[Size, int] = {}
    counts: dict[Size, np.ndarray] = {}  # 4 columns rows: stationary, near, moving matches; pairs
    for features0, features1, matches in pairs:
        size = features0.image_size
        if features1.image_size != size or not len(matches):
            continue
        num_pairs[size] = num_pairs.get(size, 0) + 1
        motion = _motion(features0, features1, matches) / max_error_px
        stationary, near, moving = motion <= 1, (motion > 1) & (motion <= NEAR), motion > MOVING
        if stationary.sum() < max(MIN_STATIONARY, MIN_SHARE * (stationary | near).sum()) or moving.sum() < MIN_MOVING:
            continue
        table = counts.setdefault(size, np.zeros((4, *_grid_shape(size))))
        for side, features in enumerate((features0, features1)):
            columns, rows = _cells(features, matches.indices[:, side]).T
            for kind, chosen in enumerate((stationary, near, moving)):
                np.add.at(table[kind], (columns[chosen], rows[chosen]), 0.5)
        table[3] += _marks(_cells(features0, matches.indices[stationary, 0]), table.shape[1:])
    return Overlays(
        max_error_px, {size: _overlay_cells(table, min(MIN_PAIRS, num_pairs[size])) for size, table in sorted(counts.items())}
    )


def drop_stationary(features0: Features, features1: Features, matches: Matches, overlays: Overlays) -> Matches:
    """The matches without those that stand still in an overlay.

    All are kept if as many matches stand still outside the overlays as move: then the camera did not move.
    """
    cells = overlays.cells.get(features0.image_size)
    if not cells or features1.image_size != features0.image_size or not len(matches):
        return matches
    core = np.zeros(_grid_shape(features0.image_size), bool)
    core[tuple(np.array(sorted(cells)).T)] = True
    motion = _motion(features0, features1, matches) / overlays.max_error_px
    in_core, in_region = (mask[tuple(_cells(features0, matches.indices[:, 0]).T)] for mask in (core, _grown(core)))
    num_outside = int(((motion <= 1) & ~in_region).sum())
    if num_outside >= max(MIN_MOVING, int((motion > MOVING).sum())):
        return matches
    kept = ~((in_region & (motion <= 1)) | (in_core & (motion <= NEAR)))
    return Matches(matches.indices[kept], matches.scores[kept], matches.stop_layer)


def _overlay_cells(counts: np.ndarray, min_pairs: int) -> frozenset[tuple[int, int]]:
    stationary, near, moving, pairs = counts
    is_overlay = (stationary >= MIN_SHARE * (stationary + near)) & (stationary >= moving) & (pairs >= min_pairs)
    return frozenset((int(column), int(row)) for column, row in np.argwhere(is_overlay))


def _motion(features0: Features, features1: Features, matches: Matches) -> np.ndarray:
    """(k,): distance between the two positions of each match in the frame, detection px."""
    points0, points1 = features0.keypoints[matches.indices[:, 0]], features1.keypoints[matches.indices[:, 1]]
    pixel_scale = (features0.pixel_scale + features1.pixel_scale) / 2
    distance: np.ndarray = np.linalg.norm(points1 - points0, axis=1) / pixel_scale
    return distance


def _grid_shape(size: Size) -> tuple[int, int]:
    """Number of columns and rows of cells."""
    side = max(size) / GRID
    return max(1, int(np.ceil(size[0] / side))), max(1, int(np.ceil(size[1] / side)))


def _cells(features: Features, indices: np.ndarray) -> np.ndarray:
    """int64 (k, 2): column and row of the cell of each keypoint."""
    shape = np.array(_grid_shape(features.image_size))
    cells = (features.keypoints[indices] + 0.5) * GRID / max(features.image_size)
    clipped: np.ndarray = np.clip(cells.astype(np.int64), 0, shape - 1)
    return clipped


def _marks(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool (columns, rows): the given cells."""
    marked = np.zeros(shape, bool)
    marked[tuple(cells.T)] = True
    return marked


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask with the eight neighbours of each of its cells."""
    padded = np.pad(mask, 1)
    columns, rows = mask.shape
    grown: np.ndarray = np.logical_or.reduce([padded[i : i + columns, j : j + rows] for i in range(3) for j in range(3)])
    return grown
