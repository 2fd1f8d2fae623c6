"""Verified pairs that the models contradict: their matches do not agree with the poses.

A single one is a wrong pair, for example of two sides of a building that look alike. If they are many, the models are in doubt
themselves: the mapper has followed wrong pairs, and true ones contradict them.

Source: Heinly, Dunn and Frahm, Correcting for Duplicate Scene Structure in Sparse 3D Reconstruction, ECCV 2014 (a finished model
is tested for observations that contradict it).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_lightglue.mistakes import count_of, shortened
from sfm_lightglue.model_files import read_model
from sfm_lightglue.reconstruction.choosing import SeenModel
from sfm_lightglue.reconstruction.fallbacks import ROUGHLY
from sfm_lightglue.reconstruction.models import model_folders

MIN_MATCHES = 50
"""Verified matches of a pair that is judged. Pairs with fewer are wrong more often, and mappers do not rely on them."""
MIN_AGREEING = 0.5
"""A model contradicts a pair if a smaller share of its matches agrees. In models of nine photo sets, of SIFT and of SuperPoint,
0.92 or more of the matches of each pair agree."""
DOUBTFUL_SHARE = 0.05
"""If the models contradict a larger share of the judged pairs, they are in doubt. Wrong models of rendered scenes with copies of
surfaces contradict 0.08 to 0.44 of them, models of nine photo sets none."""
MAX_PAIRS = 20_000
"""Pairs that are judged, spread over all of them."""


@dataclass(frozen=True)
class Contradictions:
    """Which verified pairs the models contradict."""

    num_judged: int
    """Pairs of two photos of one model with enough matches."""
    num_contradicted: int
    """Those that the models contradict."""
    photos: tuple[str, ...]
    """Photos of which more than `DOUBTFUL_SHARE` of the judged pairs are contradicted, sorted."""

    @property
    def in_doubt(self) -> bool:
        """Whether the models are in doubt, and not single pairs."""
        return self.num_contradicted > DOUBTFUL_SHARE * self.num_judged

    def sentence(self) -> str:
        """What is in doubt, and why."""
        return (
            f"the models may be wrong: they contradict {self.num_contradicted} of {count_of(self.num_judged, 'pair')} with "
            f"{MIN_MATCHES} or more verified matches, in {count_of(len(self.photos), 'photo')} ({shortened(self.photos)}). "
            "Places that look alike are the usual cause: take photos that show their surroundings too, or pairs=sequential"
        )


def find_contradictions(output: Path, database: Path, max_error_px: float) -> Contradictions:
    """The verified pairs that the models in the folder `output` contradict.

    A match agrees if a keypoint is at most ROUGHLY times `max_error_px` from the epipolar plane of the other. Pairs of photos
    that are in several models are judged by the one that agrees best. Pairs of photos of two models, or of none, are not judged.
    """
    seen = [SeenModel(read_model(folder)) for folder in model_folders(output)]
    judged, contradicted = Counter[str](), Counter[str]()
    with pycolmap.Database.open(database) as rows:
        names = {image.image_id: image.name for image in rows.read_all_images()}
        counts = zip(*map(list, rows.read_two_view_geometry_num_inliers()), strict=True)
        pair_ids = [pair_id for pair_id, count in sorted(counts) if count >= MIN_MATCHES]
        for pair_id in pair_ids[:: max(1, len(pair_ids) // MAX_PAIRS)]:
            image_ids = pycolmap.pair_id_to_image_pair(pair_id)
            if models := [model for model in seen if model.has(image_ids)]:
                matches = np.asarray(rows.read_two_view_geometry(*image_ids).inlier_matches)
                errors_px = [model.epipolar_errors(image_ids, matches) for model in models]
                share = max(float((each <= ROUGHLY * max_error_px).mean()) for each in errors_px)
                judged.update(names[each] for each in image_ids)
                contradicted.update(names[each] for each in image_ids if share < MIN_AGREEING)
    photos = sorted(name for name, count in contradicted.items() if count > DOUBTFUL_SHARE * judged[name])
    return Contradictions(judged.total() // 2, contradicted.total() // 2, tuple(photos))
