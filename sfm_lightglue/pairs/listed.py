"""Pairs that the user lists in a text file."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.pair_files import read_pair_list
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.photo_names import PhotoNames
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
        return listed_pairs(self.options.path, collection.names, images=collection.images, skip_unknown=self.options.skip_unknown)

    def check(self, collection: Collection) -> None:
        """Reads the list and raises the errors of `listed_pairs`. It needs no features."""
        self(collection)


def listed_pairs(
    path: Path | str, names: Iterable[str], *, images: Path | str | None = None, skip_unknown: bool = False
) -> list[Pair]:
    """The pairs of a text file, sorted, with the reason `list`.

    Pairs of photos that are in the folder but have no features, because they cannot be decoded, are skipped with a warning.

    Args:
        path: Text file with a line `name0 name1` for each pair; see `pair_files.read_pair_list` for what else is understood.
        names: The images of the collection.
        images: Folder of the photos. With it, absolute paths are understood.
        skip_unknown: Skip pairs of images that are not among `names`, with a warning.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line cannot be read as two names; or an image is not among `names`, unless `skip_unknown`. The message
            gives the first unknown names with their lines and the closest known ones.
    """
    photos = PhotoNames(names, images)
    listed = read_pair_list(path, photos)
    unknown = {name: number for name, number in sorted(listed.unknown.items()) if not photos.is_other_file(name)}
    if unknown and not skip_unknown:
        shown = "; ".join(f"line {number}: {photos.describe(name)}" for name, number in [*unknown.items()][:5])
        raise ValueError(
            f"{path} names {len(unknown)} images that are not in the collection of {len(photos.names)}: {shown}"
            f"{' ...' if len(unknown) > 5 else ''}. Names are paths below the image folder; skip_unknown=true skips these pairs"
        )
    if listed.num_unknown_pairs:
        num_pairs = len(listed.pairs) + listed.num_unknown_pairs
        logger.warning(
            "%s: skipped %d of %d pairs with images outside the collection or without features, for example %r",
            *(path, listed.num_unknown_pairs, num_pairs, min(listed.unknown)),
        )
    return listed.pairs
