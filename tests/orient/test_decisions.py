"""orientations.tsv: written whole, read back, and only for photos that still have their content."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_lightglue.orient.decisions import Decision, content_hash, read_decisions, turned_orientations, write_decisions


def decisions(folder: Path, names: list[str]) -> list[Decision]:
    for name in names:
        (folder / name).write_bytes(name.encode())
    return [Decision(name, 6, name != "b", f"because {name!r}", 120, 9, content_hash(folder / name)) for name in names]


def test_decisions_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = decisions(tmp_path, ["b", "a b", 'quo"ted', '"', "tab\there", "line\nbreak", "ü\u2028"])
    path = tmp_path / "orientations.tsv"
    write_decisions(path, written)
    assert read_decisions(path, tmp_path) == {decision.name: decision for decision in written}
    before = path.read_bytes()
    write_decisions(path, reversed(written))
    assert path.read_bytes() == before
    assert turned_orientations(read_decisions(path, tmp_path)) == {d.name: 6 for d in written if d.name != "b"}


def test_a_decision_for_a_photo_with_other_content_does_not_count(tmp_path: Path) -> None:
    write_decisions(tmp_path / "orientations.tsv", decisions(tmp_path, ["a", "b", "c"]))
    (tmp_path / "a").write_bytes(b"another photo")
    (tmp_path / "b").unlink()
    assert [*read_decisions(tmp_path / "orientations.tsv", tmp_path)] == ["c"]


def test_no_file_means_no_decisions(tmp_path: Path) -> None:
    assert read_decisions(tmp_path / "orientations.tsv", tmp_path) == {}


@pytest.mark.parametrize("damage", ["", "something else", "cut", "code", "flag", "\udcff"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "orientations.tsv"
    write_decisions(path, decisions(tmp_path, ["a"]))
    text = path.read_text()
    new = {"cut": text[:-20], "code": text.replace("\t6\t", "\t12\t"), "flag": text.replace("True", "maybe")}.get(damage, damage)
    path.write_bytes(new.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"orientations\.tsv (is damaged .*: delete it|was not written)"):
        read_decisions(path, tmp_path)
