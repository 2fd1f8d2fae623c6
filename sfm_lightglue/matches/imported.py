"""Matches from a file that another program wrote in hloc's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.files import check_one_file, sha256_of
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches
from sfm_lightglue.storage import H5Reader


@dataclass(frozen=True)
class ImportedOptions:
    """Options; configs/matches holds the values."""

    name: str
    path: str
    min_score: float | None
    """Smallest score of a match that is kept; None keeps all."""


class ImportedMatcher:
    """Finds the matches of two images by their names, in either order, under the old and the new form of hloc's keys."""

    def __init__(self, options: ImportedOptions, source: WeightsRecord) -> None:
        self.options, self.weights = options, (source,)

    @classmethod
    def create(cls, options: ImportedOptions, device: str) -> ImportedMatcher:
        """The matcher for `options.path`; the device is not used.

        Raises: FileNotFoundError if the file is missing, ValueError if it is not HDF5 or is refused, see `storage/safety.py`.
        """
        path = Path(options.path)
        check_one_file(path, "matches.path")
        with H5Reader(path) as reader:
            reader.check_links()
        return cls(options, WeightsRecord(path.name, str(path), sha256_of(path), "unknown (imported file)", False))

    def __call__(self, features0: Features, features1: Features) -> Matches:
        """The stored matches with a score of at least `min_score`.

        Raises: KeyError if the file lacks the pair; ValueError if indices or scores are not valid for these features.
        """
        with H5Reader(self.options.path) as reader:
            matches = reader.find_matches(features0.name, features1.name)
        if matches is None:
            raise KeyError(f"{self.options.path} has no matches of {features0.name!r} and {features1.name!r}")
        sizes = len(features0), len(features1)
        if len(matches) and (matches.indices.max(axis=0) >= sizes).any():
            raise ValueError(
                f"{self.options.path}: the matches of {features0.name} and {features1.name} are not valid: largest indices "
                f"{matches.indices.max(axis=0).tolist()}, but the images have {sizes} keypoints; they belong to other features"
            )
        if self.options.min_score is None:
            return matches
        keep = matches.scores >= self.options.min_score
        return Matches(matches.indices[keep], matches.scores[keep], matches.stop_layer)
