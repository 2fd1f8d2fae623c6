"""The contract of a pair source, and the function that creates a source from its options."""

from __future__ import annotations

from typing import Any, Protocol

from sfm_lightglue.pairs import PAIR_SOURCES
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.products import Pair
from sfm_lightglue.registry import load_class


class PairSource(Protocol):
    """Chooses the pairs of a collection that are worth matching. The same collection gives the same pairs.

    The options are a frozen dataclass, named by the annotation of `options` in `create`. Its fields are the keys of the YAML
    file; one of them is `name`.
    """

    @classmethod
    def create(cls, options: Any) -> PairSource:
        """The source with these options."""
        ...

    def __call__(self, collection: Collection) -> list[Pair]:
        """Pairs of `collection.names` in any order, each with its reason. Repeated pairs are merged later."""
        ...


def create_source(options: Any) -> PairSource:
    """The pair source that its options describe.

    Args:
        options: Dataclass whose `name` is a key of `PAIR_SOURCES` or `package.module:Class`.

    Raises:
        ValueError: No source has this name. The message names the closest one.
    """
    source: PairSource = load_class(options.name, PAIR_SOURCES, "pairs").create(options)  # type: ignore[attr-defined]
    return source
