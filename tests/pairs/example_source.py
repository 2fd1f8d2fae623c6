"""A pair source outside the package: each photo with the photos taken nearest to it, by the GPS positions in their EXIF."""

from dataclasses import dataclass

import numpy as np

from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.products import Pair


@dataclass(frozen=True)
class NearestOptions:
    name: str
    num_neighbours: int  # number of nearest photos that each photo is paired with


class NearestPairs:
    def __init__(self, options: NearestOptions) -> None:
        self.options = options

    @classmethod
    def create(cls, options: NearestOptions) -> "NearestPairs":
        return cls(options)

    def __call__(self, collection: Collection) -> list[Pair]:
        names, places = list(collection.positions), collection.positions.values()
        north = np.radians([place.latitude_deg for place in places])
        east = np.radians([place.longitude_deg for place in places]) * np.cos(north[:1])  # one site: latitudes are almost equal
        distances = np.hypot(north[:, None] - north, east[:, None] - east)
        nearest = np.argsort(distances, axis=1, kind="stable")[:, 1 : self.options.num_neighbours + 1]
        return [Pair(names[i], names[j], f"nearest#{rank}") for i in range(len(names)) for rank, j in enumerate(nearest[i], 1)]
