"""Features from a file that another program wrote in hloc's format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sfm_lightglue.features.extractor import kept_by_mask
from sfm_lightglue.files import check_one_file, sha256_of
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Image
from sfm_lightglue.storage import H5Reader, check_features


@dataclass(frozen=True)
class ImportedOptions:
    """Options; configs/features holds the values."""

    name: str
    path: str


class ImportedExtractor:
    """Finds the features of a photo by its name.

    The file may hold keypoints alone; the size of the image is then taken from the photo, and the matches must be imported too.
    Keypoints stored in half precision stay as they were rounded; all further arithmetic is in float32. A keypoint that lies
    outside the photo by up to a pixel, or by the rounding, is put back onto the edge. A photo whose numbers are not valid is
    skipped with the reason. A file that points to other files or declares huge arrays is refused as a whole.
    """

    turns_photos = False
    """Keypoints come from the file, in the stored frame. Features of a photo that was turned keep the orientation in the file."""
    keeps_all_keypoints = True
    """Transparent parts of a photo drop no keypoints: imported matches refer to all of them."""

    def __init__(self, options: ImportedOptions, source: WeightsRecord) -> None:
        self.options, self.weights = options, (source,)

    @classmethod
    def create(cls, options: ImportedOptions, device: str) -> ImportedExtractor:
        """The extractor for `options.path`; the device is not used.

        Raises: FileNotFoundError if the file is missing, ValueError if it is not HDF5 or is refused, see `storage/safety.py`.
        """
        path = Path(options.path)
        check_one_file(path, "features.path")
        with H5Reader(path) as reader:
            reader.check_links()
        return cls(options, WeightsRecord(path.name, str(path), sha256_of(path), "unknown (imported file)", False))

    def __call__(self, image: Image) -> Features:
        """The stored features of the photo; a mask drops keypoints where it is False.

        Raises: KeyError if the file lacks the photo; ValueError if the file was made from a photo of another size, or has numbers
        that are not finite or out of range.
        """
        with H5Reader(self.options.path) as reader:
            features = reader.features(image.name, image_size=image.size)
            is_half = reader.keypoints_are_half(image.name)
        check_features(features, f"{self.options.path}: {image.name}")
        edge = np.array(image.size, np.float32) - np.float32(0.5)
        keypoints = features.keypoints
        beyond = keypoints >= np.array(image.size, np.float32)  # beyond the half pixel by which conventions differ
        if is_half:
            beyond |= (keypoints > edge) & (keypoints - edge <= np.spacing(edge.astype(np.float16)).astype(np.float32))
        keypoints = np.where(beyond, edge, np.maximum(keypoints, np.float32(-0.5)))
        features = replace(features, keypoints=keypoints)
        return features if image.mask is None else _select(features, kept_by_mask(image.mask, features.keypoints))


def check_has_descriptors(path: Path | str) -> None:
    """Raises: ValueError if the file has keypoints without descriptors: these can only be matched by a file of matches."""
    with H5Reader(path) as reader:
        missing = [name for name in reader.names() if not reader.has_descriptors(name)]
    if missing:
        raise ValueError(
            f"features.path={path} has no descriptors of {len(missing)} images, such as {missing[0]!r}: give their matches with "
            "matches=imported matches.path=FILE, and choose pairs that need no descriptors"
        )


def _select(features: Features, kept: np.ndarray) -> Features:
    """The features of the keypoints (n,) for which `kept` (bool, n) is True, in their order."""
    arrays = {name: getattr(features, name) for name in ("keypoints", "scores", "descriptors", "scales", "orientations")}
    return replace(features, **{name: array[kept] for name, array in arrays.items() if array is not None})
