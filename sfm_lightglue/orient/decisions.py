"""`orientations.tsv`: the photos that were tried in four turns, and what was decided."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.files import foreign_file, written_whole
from sfm_lightglue.orientation import check_orientation


@dataclass(frozen=True)
class Decision:
    """What was decided for a photo."""

    name: str
    orientation: int
    """Code of EXIF that turns the stored photo upright."""
    turned: bool
    """True if the pictures decided it, False if the photo keeps the orientation that it had."""
    reason: str
    inliers: int
    """Verified matches of the best turn, in small pictures."""
    group: int
    """Number of photos in the group that the photo was compared with. A photo that was not turned is tried again if it grows."""
    content: str
    """Hash of the photo's file. A decision for another content does not count."""


COLUMNS = tuple(field.name for field in dataclasses.fields(Decision))


def read_decisions(path: Path, images: Path) -> dict[str, Decision]:
    """The decisions by name for photos that still have the content they were made for; empty if there is no file.

    Raises: ValueError if the file is damaged, or if no run has written it.
    """
    decisions = _read(path) if path.is_file() else []
    return {known.name: known for known in decisions if known.content == content_hash(images / known.name)}


def _read(path: Path) -> list[Decision]:
    """All decisions in the file. Raises: ValueError if it is damaged, or if no run has written it."""
    header, data = "\t".join(COLUMNS), path.read_bytes()
    begin = data.rstrip(b"\0").split(b"\n", 1)[0]
    if not header.encode().startswith(begin):
        raise foreign_file(path)
    try:
        first, *lines = data.decode("utf-8").rstrip("\n").split("\n")
        if first != header:
            raise ValueError("it is cut")
        return [_parse(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, `orient` makes it again") from error


def write_decisions(path: Path, decisions: Iterable[Decision]) -> None:
    """Writes the decisions, sorted by name, whole or not at all."""
    ordered = sorted(decisions, key=lambda decision: decision.name)
    rows = [(_quoted(decision.name), *dataclasses.astuple(decision)[1:]) for decision in ordered]
    lines = ["\t".join(map(str, row)) for row in [COLUMNS, *rows]]
    with written_whole(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_output(path: Path) -> None:
    """Raises: ValueError if the table exists and is damaged, or no run has written it."""
    if path.is_file():
        _read(path)
    elif os.path.lexists(path):
        raise foreign_file(path)


def turned_orientations(decisions: Mapping[str, Decision]) -> dict[str, int]:
    """Name -> code of EXIF for the photos that the pictures turned."""
    return {name: decision.orientation for name, decision in decisions.items() if decision.turned}


def content_hash(path: Path) -> str:
    """Hash of a file; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def _quoted(name: str) -> str:
    """The name; in JSON's notation if a tab or a line break in it would break the table."""
    return json.dumps(name, ensure_ascii=False) if name.startswith('"') or {"\t", "\n", "\r"} & {*name} else name


def _parse(line: str) -> Decision:
    name, orientation, turned, reason, inliers, group, content = line.split("\t")
    check_orientation(int(orientation))
    if turned not in ("True", "False"):
        raise ValueError(f"turned is {turned!r}")
    return Decision(
        json.loads(name) if name.startswith('"') else name,
        int(orientation),
        turned == "True",
        reason,
        int(inliers),
        int(group),
        content,
    )
