"""What the rows of the table of situations are made of: small photos, a scene with known points, and the commands."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pycolmap
from known_scene import FOCAL, KnownScene, make_database
from PIL import Image as PILImage

from sfm_lightglue import cli
from sfm_lightglue.run_folder import RunFolder

DEMO = Path(__file__).resolve().parents[2] / "datasets" / "demo" / "images"
SIZE = (320, 240)
"""Size of the photos (width, height), px."""
SIFT = ("features=sift", "features.resize_max=320", "features.max_keypoints=300", "matches=nearest_neighbor")
SUPERPOINT = ("features.resize_max=320", "features.max_keypoints=300", "features.enlarge_max=1")
FROM_FILES = ("features=imported", "features.path=scene/features.h5", "matches=imported", "matches.path=scene/matches.h5")
SCENE = ("+dataset=folder", "dataset.images=scene/images", "output=out", *FROM_FILES)
"""A run over the files of `scene`, with cameras that are known: only geometry is computed."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    text: str
    """Everything it printed and logged."""

    def refuses(self, *words: str) -> bool:
        """True if it failed with one short message that has all these words."""
        assert self.status != 0, self.text
        assert "Traceback" not in self.text, self.text
        missing = [word for word in words if word not in self.text]
        assert not missing, f"{missing} missing in: {self.text}"
        return True

    def works(self, *words: str) -> bool:
        """True if it succeeded and printed all these words."""
        assert self.status == 0, self.text
        missing = [word for word in words if word not in self.text]
        assert not missing, f"{missing} missing in: {self.text}"
        return True


def command(*arguments: str) -> Outcome:
    """The command in this process."""
    printed, root = io.StringIO(), logging.getLogger()
    handlers, level, argv = root.handlers[:], root.level, sys.argv[:]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = cli.main(list(arguments))
    finally:
        root.handlers[:], sys.argv[:] = handlers, argv
        root.setLevel(level)
    return Outcome(status, printed.getvalue())


def extract(*overrides: str, images: str = "photos") -> Outcome:
    """The stage `extract` over a folder of photos, with SIFT, into `out`."""
    return command("extract", "+dataset=folder", f"dataset.images={images}", "output=out", *SIFT, *overrides)


@functools.cache
def demo_photo(index: int, size: tuple[int, int] = SIZE) -> PILImage.Image:
    """A photo of the demo scene, resized."""
    with PILImage.open(DEMO / f"{index:02d}.jpg") as photo:
        return photo.resize(size, PILImage.Resampling.LANCZOS)


def save_photos(folder: str = "photos", names: Sequence[str] = ("00.jpg", "01.jpg", "02.jpg")) -> None:
    """Neighbouring photos of the demo scene under these names."""
    for index, name in enumerate(names):
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        demo_photo(index).save(path, quality=95)


def exif(orientation: int = 1, position: tuple[float, float, float] | None = None) -> PILImage.Exif:
    """EXIF tags: the orientation, and a GPS position as latitude and longitude (degrees) and altitude (m)."""
    tags = PILImage.Exif()
    tags[0x0112] = orientation
    if position is not None:
        latitude, longitude, altitude = position
        tags[0x8825] = {1: "N", 2: _degrees(latitude), 3: "E", 4: _degrees(longitude), 5: b"\x00", 6: altitude}
    return tags


def _degrees(value: float) -> tuple[float, float, float]:
    whole = int(value)
    minutes = int((value - whole) * 60)
    return float(whole), float(minutes), round(((value - whole) * 60 - minutes) * 60, 6)


def keypoints(name: str, output: str = "out") -> np.ndarray:
    """float32 (n, 2): the keypoints of a photo in `features.h5`."""
    with h5py.File(Path(output) / "features.h5", "r") as file:
        return np.asarray(file[name]["keypoints"])


def photo_names(output: str = "out") -> list[str]:
    """The photos that have features."""
    with RunFolder(Path(output)).open_features() as reader:
        return sorted(reader.names())


def save_scene(
    num_images: int = 5,
    *,
    names: Sequence[str] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    num_points: int = 100,
) -> KnownScene:
    """Photos, features and matches of the scene with known points, in `scene`."""
    scene = KnownScene(num_images, num_points)
    scene.names = list(names or scene.names)
    for name in scene.names:
        (Path("scene/images") / name).parent.mkdir(parents=True, exist_ok=True)
    chosen = pairs or [(i, j) for i in range(num_images) for j in range(i + 1, num_images)]
    make_database(Path("scene"), scene, range(num_images), chosen)
    (Path("scene") / "database.db").unlink()
    return scene


def run_scene(*overrides: str, command_name: str = "run") -> Outcome:
    """A run over the files of the scene, into `out`, with its known camera."""
    return command(command_name, *SCENE, f"database.intrinsics=SIMPLE_PINHOLE,{FOCAL},320,240", *overrides)


def write_hdf5(path: str, groups: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """An HDF5 file of another program."""
    with h5py.File(path, "w") as file:
        for name, datasets in groups.items():
            for key, values in datasets.items():
                file[f"{name}/{key}"] = values


def models(output: str = "out") -> list[pycolmap.Reconstruction]:
    """The models of a run, in the order of their numbers."""
    folder = Path(output) / "reconstruction"
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    return [pycolmap.Reconstruction(folder / str(number)) for number in numbers]


def num_registered(output: str = "out") -> int:
    """Photos in model 0."""
    return int(models(output)[0].num_reg_images())


def pairs_of(output: str = "out") -> set[tuple[str, str]]:
    """The pairs in `pairs.txt`."""
    return {tuple(sorted(line.split())) for line in (Path(output) / "pairs.txt").read_text().splitlines()}  # type: ignore[misc]
