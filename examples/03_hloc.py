"""Exchange features, pairs and matches with hloc, in both directions.

    python examples/03_hloc.py [PHOTOS [OUTPUT]]

hloc need not be installed, because the programs only share files. Inside hloc, call
`sfm_lightglue.integrations.hloc.register()` to choose our networks by name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py

from sfm_lightglue import create_extractor, create_matcher, extract_features, list_images, match_pairs, run, select_pairs
from sfm_lightglue.pair_files import write_pairs

PHOTOS = Path(__file__).resolve().parents[1] / "datasets" / "demo" / "images"


def main(photos: str = str(PHOTOS), output: str = "outputs/hloc") -> None:
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)

    # Files that hloc.reconstruction and hloc.triangulation read. hloc writes the same layout.
    features, pairs_file, matches = folder / "feats.h5", folder / "pairs.txt", folder / "matches.h5"
    extract_features(photos, features, create_extractor("superpoint", max_keypoints=512, resize_max=640, enlarge_max=1))
    pairs = select_pairs(list_images(photos), "sequential", overlap=2, quadratic_overlap=False)
    write_pairs(pairs_file, pairs)
    match_pairs(features, pairs, matches, create_matcher("lightglue"))
    with h5py.File(features) as file:
        name = list_images(photos)[0]
        shapes = {key: value.shape for key, value in file[name].items()}
        print(f"{features} stores {name} in hloc's layout: {shapes}")

    # The other direction: a run that reads features, pairs and matches from files of hloc.
    summary = run(
        *(photos, folder / "from_hloc"),
        *("features=imported", f"features.path={features}"),
        *("pairs=list", f"pairs.path={pairs_file}"),
        *("matches=imported", f"matches.path={matches}"),
    )
    print(summary)


if __name__ == "__main__":
    main(*sys.argv[1:])
