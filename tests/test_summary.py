"""`summary.json`: records of the stages, and the typed summary that is read from them."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pycolmap
import pytest

from sfm_lightglue import __version__
from sfm_lightglue.features.stage import ExtractionReport
from sfm_lightglue.reconstruction import ModelReport
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.stages import stage_names
from sfm_lightglue.summary import Summary, recorded
from sfm_lightglue.tables import PhotoRow, write_table


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_records_of_stages_are_merged_in_the_order_of_the_flow(folder: RunFolder) -> None:
    for stage in reversed(stage_names()):
        with recorded(folder, stage, {}) as record:
            record["of"] = stage
    stages = folder.read_summary()["stages"]
    assert list(stages) == stage_names()
    assert [record["of"] for record in stages.values()] == stage_names()


def test_a_stage_that_runs_again_replaces_only_its_own_record(folder: RunFolder) -> None:
    for value in (1, 2):
        with recorded(folder, "extract", {"about": value}) as record:
            record["value"] = value
        if value == 1:
            with recorded(folder, "match", {"about": value}) as record:
                record["value"] = value
    summary = folder.read_summary()
    assert [record["value"] for record in summary["stages"].values()] == [2, 1]
    assert summary["about"] == 2


def test_time_memory_and_versions_are_recorded(folder: RunFolder) -> None:
    with recorded(folder, "extract", {}):
        sum(range(10**6))
    summary = folder.read_summary()
    record = summary["stages"]["extract"]
    assert 0 < record["cpu_seconds"] <= record["seconds"] + 0.5  # other threads may add to the CPU time
    assert record["peak_memory_mb"] is None or 5 < record["peak_memory_mb"] < 10**6
    assert summary["versions"]["sfm_lightglue"] == __version__
    assert {"torch", "pycolmap"} <= set(summary["versions"])


def test_a_stage_that_fails_leaves_the_file_as_it_was(folder: RunFolder) -> None:
    with recorded(folder, "extract", {}):
        pass
    before = folder.summary.read_bytes()
    with pytest.raises(KeyboardInterrupt), recorded(folder, "match", {}):
        raise KeyboardInterrupt
    assert folder.summary.read_bytes() == before
    assert [entry.name for entry in folder.path.iterdir()] == ["summary.json"]


def test_names_of_photos_stay_readable(folder: RunFolder) -> None:
    with recorded(folder, "extract", {}) as record:
        record["skipped"] = {"ü/東京 1.jpg": "broken"}
    assert "ü/東京 1.jpg" in folder.summary.read_bytes().decode("utf-8")


def model(name: str, num_images: int) -> dict[str, Any]:
    return {
        **{"folder": name, "num_images": num_images, "num_points": 100, "num_observations": 314, "registered": []},
        **{"mean_track_length": 3.14159, "mean_reprojection_error_px": 0.666},
    }


def write(folder: RunFolder, *, skipped: dict[str, str] | None = None, weights: int = 1, **reconstruct: Any) -> Summary:
    """The summary of a run with two stages, read back from its file."""
    result = {"seconds": 2.0, "models": [], "largest": None, "num_images": 9, "unregistered": [], **reconstruct}
    extract = {"seconds": 1.26, "num_images": 9, "num_computed": 9, "mean_keypoints": 5.0, "without_keypoints": []}
    extract |= {"skipped": skipped or {}, "weights": weights * [{"licence": "MIT"}]}
    folder.summary.write_text(json.dumps({"stages": {"extract": extract, "reconstruct": result}}))
    return Summary.read(folder)


def test_reports_are_typed_and_those_of_stages_that_did_not_run_are_none(folder: RunFolder) -> None:
    summary = write(folder, models=[model("0", 9)], largest="0")
    assert summary.extraction is not None and summary.extraction.num_images == 9
    assert summary.reconstruction is not None and summary.reconstruction.models[0].num_points == 100
    assert summary.matching is summary.verification is summary.database is summary.num_pairs is None
    assert summary.seconds == {"extract": 1.26, "reconstruct": 2.0}
    assert summary.licences == ("MIT",)
    assert summary["stages"]["reconstruct"]["models"] == [model("0", 9)]  # as the dictionary of former versions
    assert "stages" in summary and "nonsense" not in summary and list(summary) == list(summary.content)
    assert Summary.read(str(folder.path)).content == summary.content


def test_a_folder_without_a_run_has_an_empty_summary(folder: RunFolder) -> None:
    summary = Summary.read(folder)
    assert summary.extraction is None and summary.seconds == {} and summary.licences == ()
    assert str(summary) == f"no stage has finished in {folder.path}"


def test_a_model_is_described_in_a_line(folder: RunFolder) -> None:
    assert str(write(folder, models=[model("0", 9)], largest="0")).splitlines() == [
        "time: extract 1.3 s, reconstruct 2.0 s",
        "licences of the weights: MIT",
        "reconstruction/0: 9 of 9 photos registered, 100 points, track length 3.14, reprojection error 0.67 px",
        "lost: no photo",
    ]


def test_the_largest_of_several_models_is_marked(folder: RunFolder) -> None:
    lines = str(write(folder, models=[model("0", 3), model("1", 6)], largest="1")).splitlines()
    assert lines[2].startswith("reconstruction/0: 3 of 9 photos")
    assert lines[3].startswith("reconstruction/1 (largest): 6 of 9 photos")


def test_the_last_lines_say_where_everything_is(folder: RunFolder) -> None:
    (folder.reconstruction / "0").mkdir(parents=True)
    folder.plots.mkdir()
    lines = str(write(folder, models=[model("0", 9)], largest="0", joining=["models were joined"])).splitlines()
    assert lines[-2:] == [f"model: {folder.reconstruction.resolve()}/0", f"pictures: {folder.plots.resolve()}"]
    assert not [line for line in lines if "joined" in line], "the log says it"
    folder.report.touch()
    assert f"report: {folder.report.resolve()}" in str(Summary.read(folder)).splitlines()


def test_the_names_of_registered_photos_come_from_the_table(folder: RunFolder) -> None:
    row = PhotoRow("a.jpg", 640, 480, 512, 3, 2, 90, 71, 0.75, 0, 40, 0.5, "registered", "", "")
    other = dataclasses.replace(row, photo="b.jpg", model=None)
    write_table(folder.photo_table, [row, other], PhotoRow)
    entry = {key: value for key, value in model("0", 9).items() if key != "registered"}
    found = write(folder, models=[entry], largest="0").reconstruction
    assert found is not None and found.models[0].registered == ["a.jpg"]


def test_what_a_call_computed_is_not_recorded(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), recorded(folder, "match", {}) as record:
        record |= {"num_pairs": 3, "num_computed": 0, "mean_matches": 41.4, "mean_stop_layer": 0.0}
    assert "num_computed" not in folder.read_summary()["stages"]["match"]
    assert caplog.messages[0].startswith("match: 3 pairs (0 new), 41 matches on average (")


def test_what_went_wrong_is_described(folder: RunFolder) -> None:
    names = [f"{number}.jpg" for number in range(8)]
    lines = str(write(folder, unregistered=names, skipped={"broken.jpg": "the file is empty"}, weights=0)).splitlines()
    assert lines[1:] == [
        "licences of the weights: none used",
        "nothing could be reconstructed",
        f"lost: 9 photos: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 4 more; reasons in {folder.photo_table.resolve()}",
    ]


def test_photos_in_smaller_models_are_not_lost(folder: RunFolder) -> None:
    def row(name: str, number: int | None) -> PhotoRow:
        return PhotoRow(name, 8, 8, 5, 1, 1, 5, 5, 0.5, number, 3, 0.3, "other model", "", "")

    models = [model("0", 4), model("1", 2)]
    write_table(folder.photo_table, [row("a.jpg", 1), row("b.jpg", 1), row("c.jpg", None)], PhotoRow)
    place = f"; reasons in {folder.photo_table.resolve()}"
    lines = str(write(folder, models=models, largest="0", unregistered=["a.jpg", "b.jpg", "c.jpg"])).splitlines()
    assert lines[-2:] == ["in smaller models: 2 photos", f"lost: 1 photo: c.jpg{place}"]
    lines = str(write(folder, models=models, largest="0", unregistered=["a.jpg", "b.jpg"])).splitlines()
    assert lines[-2:] == [f"in smaller models: 2 photos{place}", "lost: no photo"]


@pytest.mark.parametrize(("strict", "unregistered", "failure"), [(True, 3, "1 of 4 photos"), (True, 2, ""), (False, 3, "")])
def test_a_strict_run_that_loses_half_of_the_photos_has_failed(
    folder: RunFolder, strict: bool, unregistered: int, failure: str
) -> None:
    model = {field.name: 0 for field in dataclasses.fields(ModelReport)} | {"folder": "0"}
    names = ["b", "c", "d"][:unregistered]
    with recorded(folder, "reconstruct", {"configuration": {"strict": strict}}) as record:
        record |= {"models": [model], "largest": "0", "num_images": 4, "unregistered": names}
    found = Summary.read(folder).failure
    assert found.startswith(failure) and bool(found) == bool(failure)


def test_the_reason_of_a_failure_is_in_the_numbers_of_the_stages(folder: RunFolder) -> None:
    assert Summary.read(folder).failure == ""
    with recorded(folder, "reconstruct", {"configuration": {"reconstruction": {"min_model_size": 3}}}) as record:
        record |= {"models": [], "largest": None, "num_images": 4, "unregistered": []}
    assert "every model had fewer than 3 photos" in Summary.read(folder).failure
    with recorded(folder, "pairs", {}) as record:
        record["num_pairs"] = 0
    assert "no pairs of photos were selected" in Summary.read(folder).failure
    with recorded(folder, "extract", {}) as record:
        record |= dataclasses.asdict(ExtractionReport(1, 9.0, [], {"b.jpg": "cut", "c.jpg": "cut"}))
    assert "1 of 3 photos could be used, and two are needed" in Summary.read(folder).failure


def test_a_discarded_model_is_the_reason_of_a_failure(folder: RunFolder) -> None:
    discarded = ["a model with 2 images is discarded: reconstruction.min_model_size=3"]
    with recorded(folder, "reconstruct", {}) as record:
        record |= {"models": [], "largest": None, "num_images": 4, "unregistered": [], "discarded": 2 * discarded}
    failure = Summary.read(folder).failure
    assert failure.count(discarded[0]) == 1 and "features.max_keypoints" in failure and "parallax" not in failure


def test_a_database_without_verified_pairs_is_the_reason(folder: RunFolder) -> None:
    with pycolmap.Database.open(folder.database):
        pass
    (content := json.loads(json.dumps(write(folder).content)))["stages"].pop("extract")
    folder.summary.write_text(json.dumps(content))
    assert "the database has no verified pairs of photos: verify its matches first" in Summary.read(folder).failure
