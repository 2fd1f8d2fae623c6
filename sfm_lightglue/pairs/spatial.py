"""Each photo with the photos that were taken nearest to it, by GPS."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sfm_lightglue.georeference import earth_centered
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.global_descriptors import GlobalDescriptorOptions, check_global_descriptors, global_descriptors
from sfm_lightglue.pairs.near_points import near_points
from sfm_lightglue.pairs.union import union_pairs
from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.products import Pair
from sfm_lightglue.ranges import check_ranges

logger = logging.getLogger(__name__)

DEFAULT_NEIGHBOURS = 20
"""Similar images of a photo without a position if `num_neighbours` is None."""


@dataclass(frozen=True, kw_only=True)
class SpatialOptions(GlobalDescriptorOptions):
    """Options of `configs/pairs/spatial.yaml`. The global descriptors are only used for photos without a position."""

    name: str
    num_neighbours: int | None
    """Number of nearest photos that each photo is paired with; None pairs it with all within `max_distance_m`."""
    max_distance_m: float | None
    """Photos that are farther apart are not paired, m; None has no limit."""
    max_heading_difference_deg: float | None
    """Photos whose directions of view differ by more are not paired, degrees. Photos without a direction are paired with all."""
    without_position: str
    """What happens to photos without a position: `retrieval` pairs them with the most similar images, `skip` leaves them out."""
    min_score: float | None
    """Pairs by retrieval with a lower similarity (-1 to 1) are dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "pairs", num_neighbours=">= 1", max_distance_m="> 0", min_score=">= -1, <= 1")
        check_ranges(self, "pairs", max_heading_difference_deg="> 0, <= 180")
        if self.num_neighbours is None and self.max_distance_m is None:
            raise ValueError(
                "pairs.num_neighbours=null pairs each photo with all within a radius: give it, such as pairs.max_distance_m=50"
            )
        if self.without_position not in ("retrieval", "skip"):
            raise ValueError(f"pairs.without_position is {self.without_position!r}, expected retrieval or skip")


class SpatialPairs:
    """Each photo with the nearest ones, and photos without a position with the most similar ones."""

    def __init__(self, options: SpatialOptions) -> None:
        self.options = options

    @classmethod
    def create(cls, options: SpatialOptions) -> SpatialPairs:
        """The source with these options."""
        return cls(options)

    def check(self, collection: Collection) -> None:
        """Raises: ValueError or FileNotFoundError if no photo has a position, or a file of the options does not fit."""
        if not collection.positions:
            raise ValueError(
                f"pairs=spatial needs GPS positions, but none of the {len(collection.names)} photos has one: give "
                "dataset.positions=FILE, or choose pairs=retrieval"
            )
        check_global_descriptors(self.options, collection)

    def __call__(self, collection: Collection) -> list[Pair]:
        """See `nearest_pairs`. The reasons are `spatial#RANK`, and `retrieval#RANK` for photos without a position."""
        self.check(collection)
        options, positions = self.options, collection.positions
        pairs = nearest_pairs(positions, options.num_neighbours, options.max_distance_m, options.max_heading_difference_deg)
        others = {name for name in collection.names if name not in positions}
        if not others:
            return pairs
        done = "are paired by retrieval" if options.without_position == "retrieval" else "get no pairs"
        logger.warning("%d of %d photos have no position: they %s", len(others), len(collection.names), done)
        if options.without_position == "skip":
            return pairs
        from sfm_lightglue.pairs.nearest import top_k_pairs  # here, not at the top: it imports torch

        similar = top_k_pairs(
            collection.names,
            global_descriptors(options, collection),
            options.num_neighbours or DEFAULT_NEIGHBOURS,
            queries=others,
            min_score=options.min_score,
            device=collection.device,
        )
        return union_pairs([pairs, similar])


def nearest_pairs(
    positions: Mapping[str, GeoPosition],
    num_neighbours: int | None,
    max_distance_m: float | None = None,
    max_heading_difference_deg: float | None = None,
) -> list[Pair]:
    """Pairs of each photo with the nearest ones, sorted by name, with the reasons `spatial#RANK`.

    Distances are horizontal: altitudes are less precise, and often missing. They are rounded to mm; at equal distances the
    earlier name comes first. If two photos find each other, the pair is kept once, with the better rank.

    Args:
        positions: Position by name, in any order.
        num_neighbours: Number of nearest photos that each photo is paired with, at least 1; None for all within the distance.
        max_distance_m: Photos that are farther apart are not paired. Photos that have no other within this distance are logged.
        max_heading_difference_deg: Photos whose headings differ by more are not paired. Photos without one are paired with all.
    """
    names = sorted(positions)
    places = earth_centered([(positions[name].latitude_deg, positions[name].longitude_deg, 0.0) for name in names])
    headings = np.array([positions[name].heading_deg for name in names])
    limit_deg = np.inf if max_heading_difference_deg is None else max_heading_difference_deg

    def look_alike(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        difference = np.abs((headings[rows][:, None] - headings[columns] + 180) % 360 - 180)
        same: np.ndarray = ~(difference > limit_deg)  # NaN is no larger
        return same

    limit_m = np.inf if max_distance_m is None else max_distance_m
    ranks: dict[tuple[int, int], int] = {}
    alone = []
    mask = look_alike if np.isfinite(limit_deg) else None
    for first, near, _ in near_points(places, num_neighbours, limit_m, step=1e-3, allowed=mask):
        if not len(near):
            alone.append(names[first])
        for rank, second in enumerate(near.tolist(), start=1):
            key = min(first, second), max(first, second)
            ranks[key] = min(rank, ranks.get(key, rank))
    if alone and len(names) > 1:
        where = "" if max_distance_m is None else f" within {max_distance_m:g} m"
        view = "" if mask is None else f" that looks in a direction at most {limit_deg:g} degrees apart"
        logger.warning("%d photos have no other%s%s, the first is %s", len(alone), where, view, min(alone))
    return [Pair(names[first], names[second], f"spatial#{rank}") for (first, second), rank in sorted(ranks.items())]
