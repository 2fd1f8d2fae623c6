"""Reconstruct a folder of photos in one call, and read the summary.

    python examples/01_folder.py [PHOTOS [OUTPUT [KEY=VALUE ...]]]

Without arguments it reconstructs the demo scene from small copies of the photos, which is quick.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sfm_lightglue import run

PHOTOS = Path(__file__).resolve().parents[1] / "datasets" / "demo" / "images"
QUICK = ("features.resize_max=640", "features.enlarge_max=1", "features.max_keypoints=512")


def main(photos: str = str(PHOTOS), output: str = "outputs/example", *overrides: str) -> None:
    summary = run(photos, output, *overrides)  # overrides are written as on the command line

    print(summary)
    if summary.reconstruction is None or summary.reconstruction.largest is None:
        raise SystemExit("nothing was reconstructed: see the pictures in plots/")
    model = summary.folder.open_model(summary.folder.reconstruction / summary.reconstruction.largest)
    for image_id in sorted(model.reg_image_ids())[:3]:
        image = model.image(image_id)
        x, y, z = image.projection_center()
        print(f"{image.name} was taken from ({x:.2f}, {y:.2f}, {z:.2f}) in the frame of the model")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [str(PHOTOS), "outputs/example", *QUICK]))
