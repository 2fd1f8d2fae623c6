"""The images among which pairs are selected, and everything that a pair source may ask about them."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfm_lightglue.execution.executor import Executor
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.images import UnreadableImage, read_header, read_time
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.photo_names import PhotoNames
from sfm_lightglue.pose_priors import find_positions, listed_positions
from sfm_lightglue.poses import PosedCamera, read_poses
from sfm_lightglue.positions import GeoPosition
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import H5Reader

if TYPE_CHECKING:
    import pycolmap


class Collection:
    """Names of images, and what is known about them. Everything but the names is read when a source first asks for it.

    A context manager: leaving it closes the file of features. Poses, positions and times are kept after the first use.
    Descriptors are read again at each call, because together they may exceed the memory.

    Args:
        names: The images: paths below the image folder, in any order.
        images: Folder of the photos.
        features: HDF5 file of local features.
        poses: File of camera poses; see `poses.py` for its format.
        positions: File of GPS positions; see `position_files.py` for its forms. None takes them from the EXIF of the photos.
        device: Device of torch on which a source may compute: `cpu`, `cuda` or `cuda:0`.
        load_descriptors: Gives the local descriptors (n, d) of an image by name, in place of the file of features.
        run: Output folder in which sources keep what they compute from the features. None keeps nothing.
        make_executor: Makes what decides where images are described for a run; None for threads of this process.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        images: Path | str | None = None,
        features: Path | str | None = None,
        poses: Path | str | None = None,
        positions: Path | str | None = None,
        device: str = "cpu",
        load_descriptors: Callable[[str], np.ndarray] | None = None,
        run: RunFolder | None = None,
        make_executor: Callable[[], Executor] = ThreadExecutor,
    ) -> None:
        self.names = tuple(sorted(set(names)))
        """The names, each once, sorted."""
        self.device = device
        self.images = images
        """Folder of the photos; None if it is not known."""
        self.run = run
        """Output folder in which sources keep what they compute; None if they keep nothing."""
        self.weights: dict[str, WeightsRecord] = {}
        """Files of weights that sources have used, by name. A run records them, with their licences."""
        self.make_executor = make_executor
        """Makes what decides where images are described."""
        self.features = features
        """File of local features; None if it is not known."""
        self._poses, self._positions = poses, positions
        self._load_descriptors = load_descriptors
        self._times: dict[str, float] = {}
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()
        self.__dict__.pop("_reader", None)

    def image_size(self, name: str) -> tuple[int, int]:
        """(width, height) px of the photo as stored, from the features, or from the photo if there are none."""
        if self.features is not None:
            return self._reader.image_size(name)
        return read_header(self._folder / name).size

    def descriptors(self, name: str) -> np.ndarray:
        """float32 (n, d): the local descriptors of an image.

        Raises:
            KeyError: The file of features does not contain the image.
            ValueError: The collection has no file of features, or it has keypoints without descriptors.
        """
        if self._load_descriptors is not None:
            return self._load_descriptors(name)
        descriptors = self._reader.features(name).descriptors
        if len(descriptors) and not descriptors.shape[1]:
            raise ValueError(
                f"{self.features} has no descriptors of {name!r}, which these pairs need: give pairs.global_descriptors=FILE "
                "or choose pairs=exhaustive or pairs=list"
            )
        return descriptors

    @property
    def feature_weights(self) -> tuple[str, ...]:
        """SHA-256 of the weights that the local features were made with; empty if the file of features does not say."""
        settings = {} if self._load_descriptors is not None else self._reader.settings
        return tuple(settings.get("weights", ()))

    @property
    def feature_fingerprint(self) -> str:
        """Fingerprint of the settings that the local features were made with; empty if the file of features does not say."""
        return self._reader.fingerprint if self._load_descriptors is None and self._reader.settings else ""

    def feature_stamp(self, name: str) -> str:
        """Content id of the local features of an image."""
        return "" if self._load_descriptors is not None else self._reader.stamp(name)

    @functools.cached_property
    def has_descriptors(self) -> bool:
        """Whether local descriptors can be read: False if features were imported without any. True before the extraction."""
        if self.features is None or self._load_descriptors is not None:
            return True
        return any(self._reader.has_descriptors(name) for name in self.names[:1])

    def global_descriptors(self, path: Path | str) -> np.ndarray:
        """float32 (len(names), d): hloc's `global_descriptor` of each image from an HDF5 file, in the order of `names`.

        Raises:
            FileNotFoundError: The file does not exist.
            KeyError: The file lacks an image.
        """
        with H5Reader(path) as reader:
            return reader.global_descriptors(self.names)

    def without_global_descriptor(self, path: Path | str) -> list[str]:
        """The images that an HDF5 file has no `global_descriptor` of, without photos that cannot be read and would be skipped.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is not HDF5.
        """
        with H5Reader(path) as reader:
            missing = reader.without_global_descriptor(self.names)
        return [name for name in missing if self.images is None or _is_readable(Path(self.images) / name)]

    def model(self, path: Path | str) -> pycolmap.Reconstruction:
        """The COLMAP model in the folder `path`, such as `reconstruction/0` of an earlier run.

        Raises:
            FileNotFoundError: The folder does not exist.
            ValueError: The model is damaged.
        """
        from sfm_lightglue.model_files import read_model  # imported here: other pair sources need no pycolmap

        return read_model(path)

    @functools.cached_property
    def positions(self) -> dict[str, GeoPosition]:
        """GPS positions by name, in the order of `names`. Images without a position are missing.

        Raises:
            FileNotFoundError: The file of positions does not exist.
            ValueError: The file is damaged or has none of the images, or the collection has neither a file nor photos.
        """
        if self._positions is not None:
            return listed_positions(self._positions, self.names)
        return find_positions(self._folder, self.names)

    def times(self, names: Sequence[str] | None = None) -> dict[str, float]:
        """EXIF's times of exposure of `names` (None: of all photos): seconds of the camera's clock. Others are missing.

        Raises: ValueError if the collection has no photos.
        """
        names = self.names if names is None else names
        self._times |= {name: _time(self._folder / name) for name in names if name not in self._times}
        return {name: self._times[name] for name in names if not math.isnan(self._times[name])}

    @property
    def has_places(self) -> bool:
        """Whether positions can be asked for: there is a file of positions, or there are photos."""
        return self._positions is not None or self.images is not None

    def sample_positions(self, names: Sequence[str]) -> int:
        """How many of `names` have a GPS position. Raises: as `positions`."""
        if self._positions is not None:
            return sum(name in self.positions for name in names)
        return len(find_positions(self._folder, names))

    @functools.cached_property
    def poses(self) -> dict[str, PosedCamera]:
        """Camera poses by name, in the order of `names`. Images without a pose are missing.

        Raises:
            FileNotFoundError: The file of poses does not exist.
            ValueError: The file is damaged or has none of the images, or the collection has no file of poses.
        """
        if self._poses is None:
            raise ValueError("these pairs need camera poses: give dataset.poses=FILE (poses=FILE in Python)")
        return PhotoNames(self.names, self.images).match(self._poses, read_poses(self._poses))

    @functools.cached_property
    def _reader(self) -> H5Reader:
        if self.features is None:
            raise ValueError("these pairs need local descriptors: give features=FILE")
        return self._opened.enter_context(H5Reader(self.features))

    @property
    def _folder(self) -> Path:
        if self.images is None:
            raise ValueError("these pairs need the photos: give dataset.images=DIR (images=DIR in Python)")
        return Path(self.images)


def _time(photo: Path) -> float:
    try:
        return read_time(photo)
    except UnreadableImage:
        return math.nan


def _is_readable(photo: Path) -> bool:
    try:
        read_header(photo)
    except UnreadableImage:
        return False
    return True
