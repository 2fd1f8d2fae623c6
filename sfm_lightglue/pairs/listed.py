"""Pairs that the user lists in a text file."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.pair_files import read_pairs
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.products import Pair

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListOptions:
    """Options of `configs/pairs/list.yaml`."""

    name: str
    path: str
    """Text file with a line `name0 name1` for each pair."""
    skip_unknown: bool
    """True skips pairs of images that are not in the collection; False refuses the file."""


class ListedPairs:
    """The pairs of a text file."""

    def __init__(self, options: ListOptions) -> None:
        self.options = options

    @classmethod
    def create(cls, options: ListOptions) -> ListedPairs:
        """The source with these options."""
        return cls(options)

    def __call__(self, collection: Collection) -> list[Pair]:
        """See `listed_pairs`."""
        return listed_pairs(self.options.path, collection.names, skip_unknown=self.options.skip_unknown)


def listed_pairs(path: Path | str, names: Iterable[str], *, skip_unknown: bool = False) -> list[Pair]:
    """The pairs of a text file, sorted, with the reason `list`.

    Args:
        path: Text file with a line `name0 name1` for each pair; see `pair_files.read_pairs`.
        names: The images of the collection.
        skip_unknown: Skip pairs of images that are not among `names`, with a warning.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line does not contain two names; or an image is not among `names`, unless `skip_unknown`. The message lists
            the first unknown names with the closest known ones.
    """
    pairs, known = read_pairs(path), set(names)
    unknown = sorted({name for pair in pairs for name in (pair.name0, pair.name1)} - known)
    if unknown and not skip_unknown:
        shown = "; ".join(_with_closest(name, sorted(known)) for name in unknown[:5])
        raise ValueError(
            f"{path} names {len(unknown)} images that are not in the collection of {len(known)}: {shown}"
            f"{' ...' if len(unknown) > 5 else ''}. Names are paths below the image folder; skip_unknown=true skips these pairs"
        )
    kept = [pair for pair in pairs if pair.name0 in known and pair.name1 in known]
    if len(kept) < len(pairs):
        logger.warning("%s: skipped %d of %d pairs with images outside the collection", path, len(pairs) - len(kept), len(pairs))
    return kept


def _with_closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name!r}" + (f" (closest: {close[0]!r})" if close else "")
