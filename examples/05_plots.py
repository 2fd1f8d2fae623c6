"""Match two photos and plot the matches, with lines in the colours of their scores.

    python examples/05_plots.py [IMAGE0 IMAGE1 [PICTURE]]

Without arguments it matches two photos of the demo scene. The ending of PICTURE decides its format: png, pdf, svg. It needs the
extra `plots`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sfm_lightglue import match_images, plot_matches

PHOTOS = Path(__file__).resolve().parents[1] / "datasets" / "demo" / "images"


def main(image0: str = str(PHOTOS / "04.jpg"), image1: str = str(PHOTOS / "06.jpg"), picture: str = "matches.png") -> None:
    result = match_images(image0, image1, threshold=0.2)
    for point0, point1, score in zip(result.matched_keypoints0, result.matched_keypoints1, result.scores, strict=True):
        print(f"Keypoint at {point0} matches keypoint at {point1} with a score of {score:.2f}")
    figure = plot_matches(image0, image1, result)
    figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
