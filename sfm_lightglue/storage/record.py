"""One stored result, whatever the form on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class GroupData:
    """The content of one HDF5 group."""

    datasets: Mapping[str, np.ndarray]
    """Arrays by name."""
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Attributes by name. The key "" has the attributes of the group, and the name of a dataset has its attributes."""


class Record(ABC):
    """A result. `layout.py` and `safety.py` read it like an HDF5 group, with the same names."""

    file: Any
    """Has the path of the file as `filename`."""
    name: str
    """`/` and the key."""
    attrs: Mapping[str, Any]
    """Attributes of the result."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a dataset `name`."""

    @abstractmethod
    def find(self, name: str) -> Any | None:
        """The dataset `name`, like an HDF5 dataset, or None if there is none."""

    @abstractmethod
    def numeric(self) -> Iterator[tuple[str, Any]]:
        """The datasets of numbers by name, see `safety.numeric_datasets`."""

    @abstractmethod
    def matches(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Indices (k, 2) and scores (k,) if matches are stored as a list, else None."""

    @abstractmethod
    def __iter__(self) -> Iterator[str]:
        """Names of the datasets, sorted; in files of other programs maybe of other members too."""
