"""Features that another program computed, in hloc's file format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.fetch import sha256_of
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Image
from sfm_lightglue.storage import H5Reader


@dataclass(frozen=True)
class ImportedOptions:
    """Options; the values stand in configs/features."""

    name: str
    path: str


class ImportedExtractor:
    """Looks features up by the photo's name. Half-precision keypoints stay rounded, but no further arithmetic is in half."""

    def __init__(self, options: ImportedOptions, source: WeightsRecord) -> None:
        self.options, self.weights = options, (source,)

    @classmethod
    def create(cls, options: ImportedOptions, device: str) -> ImportedExtractor:
        """Raises: FileNotFoundError where the file is missing."""
        path = Path(options.path)
        if not path.is_file():
            raise FileNotFoundError(f"features.path={path} does not exist")
        return cls(options, WeightsRecord(path.name, str(path), sha256_of(path), "of the imported file", False))

    def __call__(self, image: Image) -> Features:
        """Raises: KeyError where the file lacks the photo, ValueError where it was made from a photo of another size."""
        with H5Reader(self.options.path) as reader:
            features = reader.features(image.name)
        if features.image_size != image.size:
            raise ValueError(
                f"{self.options.path}: {image.name} has image_size {features.image_size}, the photo has {image.size}"
            )
        return features
