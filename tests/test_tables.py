"""`photos.tsv` and `pairs.tsv`: every photo and every pair with what became of it, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.tables import PairRow, PhotoRow, read_pairs, read_photos, tables_of, write_table

PHOTO = PhotoRow("ü 1.jpg", 640, 480, 512, 3, 2, 90, 71, 0.75, 0, 40, 0.5, "registered", "", "")
LOST = PhotoRow("lost.jpg", None, None, None, 0, 0, 0, 0, None, None, 0, None, "unreadable", "it\tis cut\n", "save it again")
PAIR = PairRow("a.jpg", "b.jpg", "retrieval#3", 0.25, 40, 30, 0.75, 0.5, "CALIBRATED", "verified", "", "")


def test_tables_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    write_table(tmp_path / "photos.tsv", [PHOTO, LOST], PhotoRow)
    write_table(tmp_path / "pairs.tsv", [PAIR], PairRow)
    photo, lost = read_photos(tmp_path / "photos.tsv")
    assert photo == PHOTO and read_pairs(tmp_path / "pairs.tsv") == [PAIR]
    assert lost.reason == "it is cut" and lost.model is lost.mean_score is None
    lines = (tmp_path / "photos.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and {line.count("\t") for line in lines} == {14}


def test_a_table_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos.tsv").write_text("photo\tstars\n")
    with pytest.raises(ValueError, match="is not a table"):
        read_photos(tmp_path / "photos.tsv")


def test_a_folder_without_a_run_has_empty_tables(tmp_path: Path) -> None:
    tables = tables_of(RunFolder(tmp_path))
    assert tables.photos == [] and tables.pairs == []
