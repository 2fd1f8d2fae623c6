"""Features from a file that another program wrote in hloc's format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sfm_lightglue.download import sha256_of
from sfm_lightglue.features.extractor import kept_by_mask
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Image
from sfm_lightglue.storage import H5Reader


@dataclass(frozen=True)
class ImportedOptions:
    """Options; configs/features holds the values."""

    name: str
    path: str


class ImportedExtractor:
    """Finds the features of a photo by its name.

    Keypoints stored in half precision stay as they were rounded; all further arithmetic is in float32. Rounding can move a
    keypoint beyond the right or the lower edge of the photo; this keypoint is put back onto the edge.
    """

    turns_photos = False
    """Keypoints come from the file, in the stored frame. Features of a photo that was turned keep the orientation in the file."""

    def __init__(self, options: ImportedOptions, source: WeightsRecord) -> None:
        self.options, self.weights = options, (source,)

    @classmethod
    def create(cls, options: ImportedOptions, device: str) -> ImportedExtractor:
        """The extractor for `options.path`; the device is not used. Raises: FileNotFoundError if the file is missing."""
        path = Path(options.path)
        if not path.is_file():
            raise FileNotFoundError(f"features.path={path} does not exist")
        return cls(options, WeightsRecord(path.name, str(path), sha256_of(path), "unknown (imported file)", False))

    def __call__(self, image: Image) -> Features:
        """The stored features of the photo; a mask drops keypoints where it is False.

        Raises: KeyError if the file lacks the photo; ValueError if the file was made from a photo of another size.
        """
        with H5Reader(self.options.path) as reader:
            features = reader.features(image.name)
            is_half = reader.keypoints_are_half(image.name)
        if features.image_size != image.size:
            raise ValueError(
                f"{self.options.path}: {image.name} has image_size {features.image_size}, the photo has {image.size}"
            )
        if is_half:
            edge = np.array(image.size, np.float32) - np.float32(0.5)
            rounded = features.keypoints - edge <= np.spacing(edge.astype(np.float16)).astype(np.float32)
            features = replace(features, keypoints=np.where(rounded, np.minimum(features.keypoints, edge), features.keypoints))
        return features if image.mask is None else _select(features, kept_by_mask(image.mask, features.keypoints))


def _select(features: Features, kept: np.ndarray) -> Features:
    """The features of the keypoints (n,) for which `kept` (bool, n) is True, in their order."""
    arrays = {name: getattr(features, name) for name in ("keypoints", "scores", "descriptors", "scales", "orientations")}
    return replace(features, **{name: array[kept] for name, array in arrays.items() if array is not None})
