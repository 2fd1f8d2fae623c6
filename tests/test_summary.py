"""`summary.json`: records of the stages, and what is said of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sfm_lightglue import __version__
from sfm_lightglue.summary import STAGES, describe, recorded, write_json


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_records_of_stages_are_merged_in_the_order_of_the_flow(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for stage in reversed(STAGES):
        with recorded(path, stage, {}) as record:
            record["of"] = stage
    stages = read(path)["stages"]
    assert list(stages) == list(STAGES)
    assert [record["of"] for record in stages.values()] == list(STAGES)


def test_a_stage_that_runs_again_replaces_its_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for value in (1, 2):
        with recorded(path, "extract", {"about": value}) as record:
            record["value"] = value
        if value == 1:
            with recorded(path, "match", {"about": value}) as record:
                record["value"] = value
    summary = read(path)
    assert [record["value"] for record in summary["stages"].values()] == [2, 1]
    assert summary["about"] == 2


def test_time_memory_and_versions_are_recorded(tmp_path: Path) -> None:
    with recorded(tmp_path / "summary.json", "extract", {}):
        sum(range(10**6))
    summary = read(tmp_path / "summary.json")
    record = summary["stages"]["extract"]
    assert 0 < record["cpu_seconds"] <= record["seconds"] + 0.5  # other threads may add to the CPU's
    assert record["peak_memory_mb"] is None or 5 < record["peak_memory_mb"] < 10**6
    assert summary["versions"]["sfm_lightglue"] == __version__
    assert {"torch", "pycolmap"} <= set(summary["versions"])


def test_a_stage_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with recorded(path, "extract", {}):
        pass
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), recorded(path, "match", {}):
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"value": 1})
    write = Path.write_text

    def half(self: Path, text: str, **arguments: Any) -> int:
        write(self, text[:5], **arguments)
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="the disk is full"):
            write_json(path, {"value": 2})
    assert read(path) == {"value": 1}
    write_json(path, {"value": 3})
    assert read(path) == {"value": 3}
    assert os.listdir(tmp_path) == ["summary.json"]  # noqa: PTH208 - hidden files too


def test_names_of_photos_stay_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"skipped": {"ü/東京 1.jpg": "broken"}})
    assert "ü/東京 1.jpg" in (tmp_path / "summary.json").read_bytes().decode("utf-8")


def test_nothing_that_is_no_json_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "summary.json", {"value": float("nan")})
    assert not (tmp_path / "summary.json").exists()


def model(folder: str, num_images: int) -> dict[str, Any]:
    return {
        "folder": folder,
        "num_images": num_images,
        "num_points": 100,
        "mean_track_length": 3.14159,
        "mean_reprojection_error_px": 0.666,
    }


def make_summary(**reconstruct: Any) -> dict[str, Any]:
    result = {"seconds": 2.0, "models": [], "largest": None, "num_images": 9, "unregistered": [], **reconstruct}
    weights = [{"licence": "MIT"}]
    return {"stages": {"extract": {"seconds": 1.26, "skipped": {}, "weights": weights}, "reconstruct": result}}


def test_a_model_is_described_in_a_line() -> None:
    assert describe(make_summary(models=[model("0", 9)], largest="0")).splitlines() == [
        "reconstruction/0: 9 of 9 images, 100 points, track length 3.14, reprojection error 0.67 px",
        "time: extract 1.3 s, reconstruct 2.0 s",
        "licences of the weights: MIT",
    ]


def test_the_largest_of_several_models_is_marked() -> None:
    lines = describe(make_summary(models=[model("0", 3), model("1", 6)], largest="1")).splitlines()
    assert lines[0].startswith("reconstruction/0: 3 of 9 images")
    assert lines[1].startswith("reconstruction/1 (largest): 6 of 9 images")


def test_what_went_wrong_is_described() -> None:
    names = [f"{number}.jpg" for number in range(8)]
    summary = make_summary(unregistered=names)
    summary["stages"]["extract"] |= {"skipped": {"broken.jpg": "the file is empty"}, "weights": []}
    lines = describe(summary).splitlines()
    assert lines[:3] == [
        "nothing could be reconstructed",
        "not registered: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 3 more",
        "skipped photos: broken.jpg (reasons in summary.json)",
    ]
    assert lines[-1] == "licences of the weights: none used"
