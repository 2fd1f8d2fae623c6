"""The contract of a pair source, and the function that creates a source from its options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from sfm_lightglue.pairs import PAIR_SOURCES
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.products import Pair
from sfm_lightglue.registry import load_class


@dataclass(frozen=True)
class Choice:
    """Which sources give the pairs, and why."""

    sources: tuple[str, ...]
    """Names of the sources."""
    because: str
    """The reason, as a part of a sentence; empty if the user has chosen."""

    def __str__(self) -> str:
        return " + ".join(self.sources) + (f", because {self.because}" if self.because else "")


class PairSource(Protocol):
    """Chooses the pairs of a collection that are worth matching. The same collection gives the same pairs.

    The options are a frozen dataclass, named by the annotation of `options` in `create`. Its fields are the keys of the YAML
    file; one of them is `name`.

    A source may also have a method `check(collection)`. It raises ValueError or FileNotFoundError for mistakes that are known
    before features are extracted, in a few seconds: the collection then has names, photos, poses and positions, but no features.

    A source that compares whole images may have a method `descriptor_options(collection)`, which returns the
    `GlobalDescriptorOptions` with which it does, or None. Shards then divide the work of describing the images.

    A source that decides by itself how it finds pairs says so in a method `choose(collection)`, which returns a `Choice`.
    """

    @classmethod
    def create(cls, options: Any) -> PairSource:
        """The source with these options."""
        ...

    def __call__(self, collection: Collection) -> list[Pair]:
        """Pairs of `collection.names` in any order, each with its reason. Repeated pairs are merged later."""
        ...


def found_pairs(source: PairSource, collection: Collection) -> list[Pair]:
    """The pairs of a source as a list, whatever it iterates over. Raises: ValueError if it gives anything but pairs."""
    found: Any = source(collection)
    if not isinstance(found, Iterable):
        raise ValueError(f"{type(source).__name__} gave {type(found).__name__}, expected a list of Pair")
    pairs = list(found)
    wrong = next((pair for pair in pairs if not isinstance(pair, Pair)), None)
    if wrong is not None:
        raise ValueError(f"{type(source).__name__} gave {wrong!r}, expected a list of Pair")
    return pairs


def check_source(source: PairSource, collection: Collection) -> None:
    """Calls `source.check(collection)` if the source has this method.

    Args:
        source: The source, of this package or of the user.
        collection: All photos, also those that cannot be decoded; without features.

    Raises: ValueError or FileNotFoundError for mistakes that would only show after the extraction.
    """
    if callable(check := getattr(source, "check", None)):
        check(collection)


def descriptor_options(source: PairSource, collection: Collection) -> Any:
    """The `GlobalDescriptorOptions` with which a source compares whole images; None if it does not."""
    get = getattr(source, "descriptor_options", None)
    return get(collection) if callable(get) else None


def create_source(options: Any) -> PairSource:
    """The pair source that its options describe.

    Args:
        options: Dataclass whose `name` is a key of `PAIR_SOURCES` or `package.module:Class`.

    Raises:
        ValueError: No source has this name. The message names the closest one.
    """
    source: PairSource = load_class(options.name, PAIR_SOURCES, "pairs").create(options)  # type: ignore[attr-defined]
    return source
