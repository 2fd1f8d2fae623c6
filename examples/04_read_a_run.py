"""Read the results of a run from its output folder. Its configuration is not needed.

    python examples/04_read_a_run.py [OUTPUT]

OUTPUT is the folder of any run; by default that of the example 01_folder.py.
"""

from __future__ import annotations

import sys
from collections import Counter

from sfm_lightglue import RunFolder, Summary


def main(output: str = "outputs/example") -> None:
    folder = RunFolder(output)
    with folder.open_features() as features, folder.open_verification() as verification:
        print(f"{len(features.names())} photos with features")
        geometries = {pair: verification.geometry(pair.name0, pair.name1) for pair in folder.read_pairs()}

    verified = {pair: geometry for pair, geometry in geometries.items() if geometry.is_verified}
    print(f"{len(verified)} of {len(geometries)} pairs are verified")
    for reason, count in Counter(
        geometry.rejected_because for geometry in geometries.values() if not geometry.is_verified
    ).items():
        print(f"  {count} were rejected: {reason}")
    partners = Counter(name for pair in verified for name in (pair.name0, pair.name1))
    print(
        "photos with fewest verified partners:", ", ".join(f"{name} ({count})" for name, count in partners.most_common()[:-4:-1])
    )

    for model_folder in folder.models():
        model = folder.open_model(model_folder)
        print(f"{model_folder}: {model.num_reg_images()} images, {model.num_points3D()} points")
    print(f"licences of the weights: {', '.join(Summary.read(folder).licences)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
