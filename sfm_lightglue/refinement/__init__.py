"""Finer keypoints: the verified keypoints of all photos are moved to the same points of the surface, with sub-pixel precision.

Detectors find a keypoint in a resized photo, and each photo shows another error of half a pixel or more. Small patches of the
photos themselves, around the keypoints of a track, are aligned with each other here (`alignment.py`, `points.py`), after the
verification and before the mapper. `stage.py` writes `keypoints.h5`; `features.h5` keeps what the detector found.
"""

from sfm_lightglue.refinement.stage import (
    NO_REFINEMENT,
    RefinementOptions,
    RefinementReport,
    find_refined,
    is_too_small_for,
    refine_keypoints,
)

__all__ = ["NO_REFINEMENT", "RefinementOptions", "RefinementReport", "find_refined", "is_too_small_for", "refine_keypoints"]
