"""Use your own feature extractor in the pipeline, without changing the package.

    python examples/02_own_extractor.py [PHOTOS [OUTPUT]]

The class below describes the corners of a regular grid by the pixels around them: a poor extractor, but a complete one. To choose
it on the command line, write the file `$SFM_LIGHTGLUE_CONFIGS/features/grid.yaml` with the lines

    name: my_module:GridExtractor
    step: 16

and add `features=grid matches=nearest_neighbor` to a command.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfm_lightglue import Features, Image, create_matcher, extract_features, list_images, load_image, match_pairs, select_pairs
from sfm_lightglue.features.extractor import kept_by_mask
from sfm_lightglue.report.matches import draw_keypoints

PHOTOS = Path(__file__).resolve().parents[1] / "datasets" / "demo" / "images"
RADIUS = 4
"""Half the size of the described patch, px."""


@dataclass(frozen=True)
class GridOptions:
    """The keys of the YAML file."""

    name: str
    step: int
    """Distance between keypoints, px."""


class GridExtractor:
    """Keypoints on a regular grid, described by the grey values around them."""

    weights = ()  # this extractor loads no weights; others list a record of each file here

    def __init__(self, options: GridOptions) -> None:
        self.options = options  # stored with the results, so that results of other options are recognised

    @classmethod
    def create(cls, options: GridOptions, device: str) -> GridExtractor:
        return cls(options)

    def __call__(self, image: Image) -> Features:
        width, height = image.size
        x = np.arange(RADIUS, width - RADIUS, self.options.step)
        y = np.arange(RADIUS, height - RADIUS, self.options.step)
        keypoints = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)
        if image.mask is not None:
            keypoints = keypoints[kept_by_mask(image.mask, keypoints)]
        grey = image.pixels.mean(axis=2, dtype=np.float32)
        patches = [grey[y - RADIUS : y + RADIUS, x - RADIUS : x + RADIUS].ravel() for x, y in keypoints.astype(int)]
        patches = np.reshape(patches, (len(keypoints), 4 * RADIUS**2))
        patches = patches - patches.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(patches, axis=1)
        return Features(keypoints, norms, patches / np.maximum(norms, 1e-6)[:, None], image.size)


def main(photos: str = str(PHOTOS), output: str = "outputs/own_extractor") -> None:
    folder = Path(output)
    extractor = GridExtractor(GridOptions("grid", step=16))
    report = extract_features(photos, folder / "features.h5", extractor)
    print(f"{report.num_images} photos, {report.mean_keypoints:.0f} keypoints each")

    image = load_image(Path(photos) / list_images(photos)[0])  # a picture shows whether the keypoints are plausible
    features = extractor(image)
    draw_keypoints(image.pixels, features.keypoints, features.scores, folder / "keypoints.jpg", title=image.name)

    pairs = select_pairs(list_images(photos), "sequential", overlap=1, quadratic_overlap=False)
    matched = match_pairs(folder / "features.h5", pairs, folder / "matches.h5", create_matcher("nearest_neighbor"))
    print(f"{matched.num_pairs} pairs, {matched.mean_matches:.0f} matches each")


if __name__ == "__main__":
    main(*sys.argv[1:])
