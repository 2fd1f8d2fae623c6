"""Which photo a name in a file of the user means, and lists of photos.

Our names are paths below the photo folder with forward slashes. Lists from other programs and systems write the same photo as
`./a.jpg`, `sub\\a.jpg`, `/data/photos/a.jpg`, `IMG.JPG` for `IMG.jpg`, or with letters that are composed in another way.
"""

from __future__ import annotations

import difflib
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sfm_lightglue.mistakes import count_of, shown, warn_once
from sfm_lightglue.text_files import SEPARATOR, numbered_lines, read_text, split_columns

Entry = TypeVar("Entry")

MAX_GAPS = 40
"""Number of blanks, commas or semicolons in a line after which no name is searched."""


@dataclass(frozen=True)
class PhotoList:
    """The photos of a list of the user."""

    names: list[str]
    """Photos that exist, sorted, each once."""
    missing: dict[str, int]
    """Listed name that is no photo of the folder -> number of its first line."""


class PhotoNames:
    """Finds photos by the names that people write.

    Args:
        names: Names of the photos: paths below the photo folder.
        folder: The photo folder. With it, absolute paths are understood, and paths that begin with the name of the folder.
    """

    def __init__(self, names: Iterable[str], folder: Path | str | None = None) -> None:
        self.names = sorted(set(names))
        self._known = set(self.names)
        self._similar: dict[str, list[str]] = {}
        for name in self.names:
            self._similar.setdefault(folded(name), []).append(name)
        self._found: dict[str, str | None] = {}
        self._folder = None if folder is None else Path(folder)
        self._prefixes = [] if folder is None else _prefixes(Path(folder))
        self.has_separators = any(re.search(r"[\s,;]", name) for name in self.names)
        """Whether a name contains what separates columns in lists: a blank, a comma or a semicolon."""

    def __contains__(self, text: str) -> bool:
        """Whether `text` is exactly the name of a photo."""
        return text in self._known

    def find(self, text: str) -> str | None:
        """The photo that `text` means; None if there is none, or if several differ only in case or Unicode form.

        An exact name comes first. Then `./`, backslashes, blanks around the name and the photo folder in front of it are removed.
        Last, letter case and Unicode forms are ignored; `warn_of_other_letters` tells which names needed that.
        """
        if text not in self._found:  # long lists repeat names
            self._found[text] = text if text in self._known else self._search(text)
        return self._found[text]

    def match(self, path: Path | str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """The entries of the file `path` by photo, in the order of the photos. Entries of other names are left out.

        An entry with exactly the name of a photo comes before one whose name only means it.

        Raises: ValueError if there are entries, but none is for a photo.
        """
        found = {text: name for text in entries if (name := self.find(text)) is not None}
        if entries and self.names and not found:
            first = next(iter(entries))
            raise ValueError(
                f"{path} has {len(entries)} names, but none is a photo of the {len(self.names)}: {self.describe(first)}"
            )
        self.warn_of_other_letters(path, found)
        by_photo = {name: text for text, name in found.items()} | {name: name for name in found if name in self}
        return {name: entries[by_photo[name]] for name in self.names if name in by_photo}

    def is_other_file(self, text: str) -> bool:
        """Whether `text` is a file of the photo folder that is not among the names, such as a photo that cannot be decoded."""
        if self._folder is None or self.find(text) is not None:
            return False
        below = [name for name in self._candidates(text) if not name.startswith(("/", "../"))]
        return any(os.path.isfile(self._folder / name) for name in below)  # noqa: PTH113 - Path.is_file raises for long names

    def describe(self, text: str) -> str:
        """An unknown name for a message: with the photos that differ only in case or Unicode form, or the closest name."""
        twins = next(filter(None, (self._similar.get(folded(name)) for name in self._candidates(text))), [])
        if len(twins) > 1:
            return f"{shown(text)} (could be any of {', '.join(map(shown, twins))})"
        close = difflib.get_close_matches(text, self.names, n=1)
        return shown(text) + (f" (closest: {shown(close[0])})" if close else "")

    def warn_of_other_letters(self, path: Path | str, found: Mapping[str, str]) -> None:
        """Logs a warning if names of the file `path` only fit photos with other letter case or in another Unicode form.

        Args:
            path: The file.
            found: Name in the file -> photo.
        """
        others = {text: name for text, name in found.items() if text != name and name not in self._candidates(text)}
        if others:
            text, name = min(others.items())
            count = count_of(len(others), "name has", "names have")
            warn_once(
                f"{path}: {count} other letter case or another Unicode form than the photos, for example {shown(text)} for "
                f"{shown(name)}"
            )

    def _search(self, text: str) -> str | None:
        candidates = self._candidates(text)
        found = next((name for name in candidates if name in self._known), None)
        if found is not None:
            return found
        for name in candidates:
            if len(similar := self._similar.get(folded(name), [])) == 1:
                return similar[0]
        return None

    def _candidates(self, text: str) -> list[str]:
        """Paths below the photo folder that `text` may mean, the most literal one first."""
        if not text.strip():
            return []
        path = posixpath.normpath(text.strip().replace("\\", "/"))
        return [path, *(path[len(prefix) :] for prefix in self._prefixes if path.startswith(prefix))]


def read_photo_list(path: Path | str, photos: PhotoNames) -> PhotoList:
    """The photos that a list names: one on each line, in any order.

    Further columns are ignored, as in hloc's lists of queries. Names are found as in `PhotoNames.find`. Comments (#), blank lines
    and a first line of column titles are skipped.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not text, or none of its names is a photo.
    """
    lines = numbered_lines(read_text(path, "list of photos"))
    found: dict[str, str] = {}
    missing: dict[str, int] = {}
    for number, line in lines:
        text = _listed_name(line, photos)
        if (name := photos.find(text)) is not None:
            found[text] = name
        elif not line.lstrip().startswith("#") and not (number == lines[0][0] and len(lines) > 1 and "." not in text):
            missing.setdefault(text, number)
    photos.warn_of_other_letters(path, found)
    if not found:
        first = next(iter(missing), None)
        shown = "it is empty" if first is None else f"line {missing[first]} is {photos.describe(first)}"
        raise ValueError(f"the list of photos {path} names none of the {len(photos.names)} photos: {shown}")
    return PhotoList(sorted(set(found.values())), missing)


def _listed_name(line: str, photos: PhotoNames) -> str:
    """The name that begins a line: the longest beginning that is a photo, else the first column."""
    line = line.strip()
    if photos.find(line) is not None:
        return line
    if photos.has_separators:
        for gap in reversed([*re.finditer(SEPARATOR, line)][:MAX_GAPS]):
            if photos.find(line[: gap.start()]) is not None:
                return line[: gap.start()]
    return split_columns(line)[0]


def folded(name: str) -> str:
    """A spelling that is equal for names that differ only in letter case or in the Unicode form of their letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _prefixes(folder: Path) -> list[str]:
    """What may stand in front of a name: the folder as given, absolute, without links, and its last parts. Longest first."""
    spellings = {folder.as_posix(), folder.absolute().as_posix(), folder.resolve().as_posix()}
    for path in (folder.absolute(), folder.resolve()):
        spellings |= {"/".join(path.parts[-num_parts:]) for num_parts in range(1, len(path.parts))}
    return [f"{spelling.rstrip('/')}/" for spelling in sorted(spellings, key=lambda text: (-len(text), text))]
