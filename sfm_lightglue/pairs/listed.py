"""Pairs that the user lists in a text file."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from pathlib import Path

from sfm_lightglue.pair_files import read_pairs
from sfm_lightglue.products import Pair

logger = logging.getLogger(__name__)


def listed_pairs(path: Path | str, names: Iterable[str], *, skip_unknown: bool = False) -> list[Pair]:
    """The pairs of the file, whose images must be among `names`; pairs of others are left out where `skip_unknown`.

    Raises: ValueError that lists the first unknown names and the closest known ones; and as `read_pairs`.
    """
    pairs, known = read_pairs(path), set(names)
    unknown = sorted({name for pair in pairs for name in (pair.name0, pair.name1)} - known)
    if unknown and not skip_unknown:
        shown = "; ".join(_with_closest(name, sorted(known)) for name in unknown[:5])
        raise ValueError(
            f"{path} names {len(unknown)} images that are not in the collection of {len(known)}: {shown}"
            f"{' ...' if len(unknown) > 5 else ''}. Names are paths below the image folder; skip_unknown leaves such pairs out"
        )
    kept = [pair for pair in pairs if pair.name0 in known and pair.name1 in known]
    if len(kept) < len(pairs):
        logger.warning("%s: %d of %d pairs have images that are not in the collection", path, len(pairs) - len(kept), len(pairs))
    return kept


def _with_closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name!r}" + (f" (closest: {close[0]!r})" if close else "")
