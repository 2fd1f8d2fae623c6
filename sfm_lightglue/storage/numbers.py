"""Numbers about the two-view geometries of many pairs: a row of an array for each pair instead of a record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sfm_lightglue.products import TwoViewGeometry
from sfm_lightglue.storage.layout import CONFIGURATIONS

ROW = np.dtype(
    [
        ("config", np.int8),
        ("reason", np.int8),
        ("num_matches", np.int32),
        ("num_agreeing", np.int32),
        ("num_needed", np.int32),
        ("num_stationary", np.int32),
        ("max_error_px", np.float64),
        ("mean_score", np.float64),
        ("confirmed", np.float64),
    ]
)
"""Fields of `TwoViewGeometry`. -1 and NaN mean that a number is not known. `config` is COLMAP's number, -1 if the pair was not
verified yet; `reason` is an index into `REASONS`."""
REASONS = ("", "few matches", "few inliers", "low score")
"""Values of `TwoViewGeometry.rejected_because`."""
LOW_SCORE = REASONS.index("low score")
DEGENERATE = CONFIGURATIONS.index("DEGENERATE")


@dataclass(frozen=True)
class GeometryNumbers:
    """What is known about the geometries of some pairs, without inlier matches and matrices."""

    rows: np.ndarray
    """(p,) of type `ROW`."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def found(self) -> np.ndarray:
        """bool (p,): the pairs that were verified or rejected."""
        return np.asarray(self.rows["config"] >= 0)

    @property
    def verified(self) -> np.ndarray:
        """bool (p,): the pairs with a valid geometry."""
        return np.asarray(self.found & (self.rows["config"] != DEGENERATE))

    @property
    def low_score(self) -> np.ndarray:
        """bool (p,): the pairs that were rejected for their scores alone."""
        return np.asarray(self.found & (self.rows["reason"] == LOW_SCORE))

    @property
    def num_verified(self) -> int:
        """Number of pairs with a valid geometry."""
        return int(self.verified.sum())

    @property
    def num_inliers(self) -> int:
        """Verified matches of all pairs together."""
        return int(self.rows["num_agreeing"][self.verified].sum(dtype=np.int64))

    def replace(self, geometries: Mapping[int, TwoViewGeometry]) -> None:
        """Replaces the numbers of some pairs, by position, with those of new geometries."""
        for index, geometry in geometries.items():
            self.rows[index] = row_of(geometry)

    def geometry(self, index: int) -> TwoViewGeometry | None:
        """The geometry of a pair without inlier matches and matrices; None if the pair was not verified yet."""
        config, reason, num_matches, agreeing, needed, stationary, max_error_px, mean_score, confirmed = self.rows[index].item()
        if config < 0:
            return None
        return TwoViewGeometry(
            configuration=CONFIGURATIONS[config],
            inlier_matches=NO_MATCHES,
            num_matches=num_matches,
            max_error_px=max_error_px,
            rejected_because=REASONS[reason],
            num_stationary=stationary,
            num_agreeing=None if agreeing < 0 else agreeing,
            num_needed=None if needed < 0 else needed,
            mean_score=None if mean_score != mean_score else mean_score,  # NaN
            confirmed=None if confirmed != confirmed else confirmed,
        )


NO_MATCHES = np.zeros((0, 2), np.int32)


def unknown_numbers(count: int) -> GeometryNumbers:
    """The numbers of pairs that were not verified yet."""
    return GeometryNumbers(np.full(count, np.array(row_of(None), ROW)))


def numbers_of(geometries: Iterable[TwoViewGeometry | None]) -> GeometryNumbers:
    """The numbers of some geometries, None for a pair that was not verified yet."""
    return GeometryNumbers(np.fromiter(map(row_of, geometries), ROW))


def row_of(geometry: TwoViewGeometry | None) -> tuple[float, ...]:
    """The row of a geometry, in the order of `ROW`."""
    if geometry is None:
        return (-1, 0, 0, -1, -1, 0, 0.0, np.nan, np.nan)
    known = geometry.num_agreeing, geometry.num_needed
    return (
        CONFIGURATIONS.index(geometry.configuration),
        REASONS.index(geometry.rejected_because) if geometry.rejected_because in REASONS else 0,
        geometry.num_matches,
        *(-1 if number is None else number for number in known),
        geometry.num_stationary,
        geometry.max_error_px,
        np.nan if geometry.mean_score is None else geometry.mean_score,
        np.nan if geometry.confirmed is None else geometry.confirmed,
    )
