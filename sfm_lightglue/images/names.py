"""Names of photos that look alike or that other programs misread, the names of masks, and warnings that are given once."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from sfm_lightglue.mistakes import count_of
from sfm_lightglue.mistakes import tell_once as tell_once
from sfm_lightglue.mistakes import warn_once as warn_once
from sfm_lightglue.photo_names import folded


def stem(name: str) -> str:
    """The name without its extension."""
    return name.removesuffix(PurePosixPath(name).suffix)


def mask_names(name: str) -> list[str]:
    """Names, without extension, of the mask of the photo `name`: as COLMAP adds .png, with the photo's stem, and with _mask."""
    return [name, stem(name), f"{stem(name)}_mask"]


def explain_difference(name0: str, name1: str) -> str:
    """For a message: the difference between two names with the same `folded` spelling."""
    if name0.casefold() == name1.casefold():
        return f"{name0} and {name1} differ only in upper and lower case"
    return f"{_with_form(name0)} and {_with_form(name1)} look alike, but their letters are composed differently"


def similar_name(name: str, names: Iterable[str]) -> str:
    """A sentence about the first of `names` that looks like the missing `name`; empty if there is none."""
    alike = next((other for other in names if other != name and folded(other) == folded(name)), None)
    return "" if alike is None else f"There is a similar name: {explain_difference(name, alike)}"


def warn_of_twins(folder: Path, names: Sequence[str]) -> None:
    """Warns, once for a folder, of names that differ only in case or in Unicode's composition of letters."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(folded(name), []).append(name)
    twins = [group for group in spellings.values() if len(group) > 1]
    if twins:
        warn_once(
            f"{folder} has {count_of(len(twins), 'pair')} of names that Windows and macOS treat as one name: "
            f"{explain_difference(*twins[0][:2])}. They are used as different photos"
        )


def warn_of_spaces(names: Sequence[str]) -> None:
    """Warns, once, of names with spaces: COLMAP writes them to images.txt, and its reader cuts them at the first space."""
    if spaced := [name for name in names if " " in name]:
        warn_once(
            f"{count_of(len(spaced), 'name of a photo has', 'names of photos have')} spaces, for example '{spaced[0]}': COLMAP's "
            "reader of images.txt cuts them. "
            "Its binary files and the database are not affected"
        )


def _with_form(name: str) -> str:
    """The name with its letters beyond ASCII as escapes too: forms of Unicode look the same in print."""
    form = next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)), "mixed form")
    return f"{name} ({form}: {ascii(name)[1:-1]})"
