"""Matches that another program computed, in hloc's file format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.download import sha256_of
from sfm_lightglue.networks.weights import WeightsRecord
from sfm_lightglue.products import Features, Matches
from sfm_lightglue.storage import H5Reader


@dataclass(frozen=True)
class ImportedOptions:
    """Options; the values stand in configs/matches."""

    name: str
    path: str
    min_score: float | None


class ImportedMatcher:
    """Looks matches up by the names of the two images, under any of hloc's keys, either way round."""

    def __init__(self, options: ImportedOptions, source: WeightsRecord) -> None:
        self.options, self.weights = options, (source,)

    @classmethod
    def create(cls, options: ImportedOptions, device: str) -> ImportedMatcher:
        """Raises: FileNotFoundError where the file is missing."""
        path = Path(options.path)
        if not path.is_file():
            raise FileNotFoundError(f"matches.path={path} does not exist")
        return cls(options, WeightsRecord(path.name, str(path), sha256_of(path), "of the imported file", False))

    def __call__(self, features0: Features, features1: Features) -> Matches:
        """Raises: KeyError where the file lacks the pair."""
        with H5Reader(self.options.path) as reader:
            matches = reader.find_matches(features0.name, features1.name)
        if matches is None:
            raise KeyError(f"{self.options.path} has no matches of {features0.name!r} and {features1.name!r}")
        if self.options.min_score is None:
            return matches
        keep = matches.scores >= self.options.min_score
        return Matches(matches.indices[keep], matches.scores[keep], matches.stop_layer)
