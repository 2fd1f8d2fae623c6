"""Where on the earth a model lies: local east-north-up coordinates around an origin, and the file `georeference.json`.

The file lies in the folder of a model that was aligned with GPS positions. In this model x is east, y is north and z is up, in
metres.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfm_lightglue.files import write_json

FILE_NAME = "georeference.json"
"""Name of the file in the folder of a model."""


@dataclass(frozen=True)
class Origin:
    """The place with the local coordinates (0, 0, 0). East, north and up are those of the WGS84 ellipsoid at this place.

    Heights are of the kind that the photos give: above sea level from most cameras, above the ellipsoid from some drones.
    """

    latitude_deg: float
    longitude_deg: float
    altitude_m: float

    @classmethod
    def between(cls, positions: np.ndarray) -> Origin:
        """The origin in the middle of positions (n, 3): latitude and longitude in degrees, altitude in m; n is at least 1.

        It is the median in earth-centred coordinates, so that a wild position does not move it and the date line does no harm.
        It is rounded to 1e-8 degrees and 1 mm.
        """
        middle = np.median(earth_centered(positions), axis=0)
        latitude, longitude, _ = _gps_transform().ecef_to_ellipsoid(middle[None])[0]
        return cls(round(float(latitude), 8), round(float(longitude), 8), round(float(np.median(positions[:, 2])), 3))

    def to_local(self, positions: npt.ArrayLike) -> np.ndarray:
        """float64 (n, 3): east, north, up in m of positions (n, 3): latitude and longitude in degrees, altitude in m."""
        local: np.ndarray = _gps_transform().ellipsoid_to_enu(_rows(positions), *self._reference)
        return local

    def to_geodetic(self, points: npt.ArrayLike) -> np.ndarray:
        """float64 (n, 3): latitude and longitude in degrees (WGS84) and altitude in m of points (n, 3): east, north, up in m."""
        geodetic: np.ndarray = _gps_transform().enu_to_ellipsoid(_rows(points), *self._reference)
        return geodetic

    @property
    def _reference(self) -> tuple[float, float, float]:
        return self.latitude_deg, self.longitude_deg, self.altitude_m


@dataclass(frozen=True)
class Residual:
    """How far the centre of a camera is from its GPS position."""

    horizontal_m: float
    vertical_m: float
    """Positive if the camera is above its position."""
    is_inlier: bool
    """False if the position disagrees with the others. It was not used."""


@dataclass(frozen=True)
class Georeference:
    """What `georeference.json` says about a model."""

    origin: Origin
    scale: float
    """Metres for each unit of the mapper's model."""
    rotation: np.ndarray
    """float64 (3, 3)."""
    translation: np.ndarray
    """float64 (3,), m. It has been applied: x_local = scale * rotation @ x_mapper + translation."""
    residuals: Mapping[str, Residual]
    """By the name of each photo that has a position, sorted."""
    rotation_error_deg: float
    """Standard deviation of the turn that the positions determine worst, from the residuals."""

    @property
    def median_residual_m(self) -> float:
        """Median distance of all cameras with a position from it, in space."""
        return float(np.median([np.hypot(one.horizontal_m, one.vertical_m) for one in self.residuals.values()]))

    def to_geodetic(self, points: npt.ArrayLike) -> np.ndarray:
        """float64 (n, 3): latitude and longitude in degrees (WGS84) and altitude in m of points (n, 3) of the model."""
        return self.origin.to_geodetic(points)

    def to_local(self, positions: npt.ArrayLike) -> np.ndarray:
        """float64 (n, 3): points of the model at positions (n, 3): latitude and longitude in degrees, altitude in m."""
        return self.origin.to_local(positions)

    def statistics(self) -> dict[str, Any]:
        """Residuals of each photo and their medians, for JSON."""
        horizontal = [one.horizontal_m for one in self.residuals.values()]
        vertical = [abs(one.vertical_m) for one in self.residuals.values()]
        return {
            "num_positions": len(self.residuals),
            "num_inliers": sum(one.is_inlier for one in self.residuals.values()),
            "median_residual_m": round(self.median_residual_m, 4),
            "median_horizontal_residual_m": round(float(np.median(horizontal)), 4),
            "median_vertical_residual_m": round(float(np.median(vertical)), 4),
            "rotation_error_deg": round(self.rotation_error_deg, 3),
            "residuals": {
                name: {
                    "horizontal_m": round(one.horizontal_m, 4),
                    "vertical_m": round(one.vertical_m, 4),
                    "is_inlier": one.is_inlier,
                }
                for name, one in self.residuals.items()
            },
        }

    def to_json(self) -> dict[str, Any]:
        """The content of `georeference.json`."""
        return {
            "coordinates": "x east, y north, z up, in metres from the origin",
            "origin": {
                "latitude_deg": self.origin.latitude_deg,
                "longitude_deg": self.origin.longitude_deg,
                "altitude_m": self.origin.altitude_m,
                "crs": "EPSG:4979 (WGS84) if the photos give heights above the ellipsoid; most give heights above sea level",
            },
            "local_from_mapper": {
                "about": "x_local = scale * rotation @ x_mapper + translation; it has been applied to this model",
                "scale": self.scale,
                "rotation": self.rotation.tolist(),
                "translation": self.translation.tolist(),
            },
            **self.statistics(),
        }


def read_georeference(model: Path | str) -> Georeference | None:
    """The georeference of the model in the folder `model`, such as `reconstruction/0`; None if the model has none.

    Raises: ValueError if `georeference.json` is damaged.

    Example:
        >>> read_georeference(out / "run" / "reconstruction" / "0") is None  # these photos have no GPS positions
        True
    """
    path = Path(model) / FILE_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        origin, applied = content["origin"], content["local_from_mapper"]
        return Georeference(
            Origin(*(float(origin[key]) for key in ("latitude_deg", "longitude_deg", "altitude_m"))),
            float(applied["scale"]),
            np.array(applied["rotation"], np.float64).reshape(3, 3),
            np.array(applied["translation"], np.float64).reshape(3),
            {name: Residual(**residual) for name, residual in content["residuals"].items()},
            float(content["rotation_error_deg"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): delete it and run the stage reconstruct again") from error


def write_georeference(model: Path | str, georeference: Georeference) -> None:
    """Writes `georeference.json` into the folder of a model."""
    write_json(Path(model) / FILE_NAME, georeference.to_json())


def earth_centered(positions: npt.ArrayLike) -> np.ndarray:
    """float64 (n, 3), m: earth-centred coordinates of positions (n, 3): latitude and longitude in degrees, altitude in m."""
    coordinates: np.ndarray = _gps_transform().ellipsoid_to_ecef(_rows(positions))
    return coordinates


def _rows(points: npt.ArrayLike) -> np.ndarray:
    return np.asarray(points, np.float64).reshape(-1, 3)


def _gps_transform() -> Any:
    import pycolmap  # here, so that reading the files of a run does not load it

    return pycolmap.GPSTransform(pycolmap.GPSTransformEllipsoid.WGS84)
