"""The list of stages, from which the command line, the summary and the help take their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.stages import STAGES, find_stage, stage_names, writer_of


def test_each_stage_reads_only_what_stages_before_it_write() -> None:
    written: set[str] = set()
    for stage in STAGES:
        assert set(stage.reads) <= written, stage.name
        written |= set(stage.writes)


def test_each_stage_has_a_function() -> None:
    assert all(callable(stage.load()) for stage in STAGES)
    assert len({stage.function for stage in STAGES}) == len(STAGES)


def test_the_files_of_the_stages_are_those_of_the_run_folder() -> None:
    properties = [value for value in vars(RunFolder).values() if isinstance(value, property)]
    folder = RunFolder(Path("out"))
    known = {value.fget(folder).name for value in properties if value.fget}
    assert {file for stage in STAGES for file in stage.writes} <= known


def test_a_missing_file_is_named_with_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"features.h5 does not exist: run the stage extract first"):
        find_stage("match").check_inputs(tmp_path)
    (tmp_path / "features.h5").touch()
    with pytest.raises(FileNotFoundError, match=r"pairs.txt does not exist: run the stage pairs first"):
        find_stage("match").check_inputs(tmp_path)


def test_unknown_stages_and_files_are_refused() -> None:
    with pytest.raises(KeyError, match="expected one of extract, pairs"):
        find_stage("extrac")
    with pytest.raises(KeyError, match=r"no stage writes 'x.h5'"):
        writer_of("x.h5")
    assert stage_names()[0] == "extract"
