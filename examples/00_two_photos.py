"""Match two photos and read the result.

    python examples/00_two_photos.py [IMAGE0 IMAGE1]

Without arguments it matches two photos of the demo scene.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sfm_lightglue import create_extractor, create_matcher, match_images

PHOTOS = Path(__file__).resolve().parents[1] / "datasets" / "demo" / "images"


def main(image0: str, image1: str) -> None:
    extractor = create_extractor("superpoint", max_keypoints=1024)  # options as in configs/features/superpoint.yaml
    matcher = create_matcher("lightglue")  # options as in configs/matches/lightglue.yaml
    result = match_images(image0, image1, extractor=extractor, matcher=matcher)

    print(f"{len(result.keypoints0)} and {len(result.keypoints1)} keypoints, {len(result.scores)} matches")
    print("the five best matches, x y in pixels of each photo:")
    for index in (-result.scores).argsort(kind="stable")[:5]:
        (x0, y0), (x1, y1) = result.matched_keypoints0[index], result.matched_keypoints1[index]
        print(f"  ({x0:6.1f}, {y0:6.1f}) - ({x1:6.1f}, {y1:6.1f})   score {result.scores[index]:.2f}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [str(PHOTOS / "04.jpg"), str(PHOTOS / "06.jpg")]))
