"""`report.html` shows what is in the folder of a run, whatever the photos are called and however far the run came."""

from __future__ import annotations

import base64
import json
import logging
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stub_run import SEEN, SIZE, STEP, StubScene, make_run

from sfm_lightglue import presentation
from sfm_lightglue.commands.report import main as report_command
from sfm_lightglue.files import write_json
from sfm_lightglue.report import pictures
from sfm_lightglue.report.draw import MARK
from sfm_lightglue.report.packing import PACKED_TYPES, histogram, packed, script_json
from sfm_lightglue.report.page import build_report
from sfm_lightglue.run_folder import RunFolder

NAMES = [f"{index:02d}.jpg" for index in range(8)]
ODD_NAMES = ["<img src=x onerror=alert(1)>.jpg", 'quote"and&.jpg', "Überwald 写真.jpg", "</script><b>.jpg", "${data}.jpg"]


def content_of_page(page: Path) -> dict[str, Any]:
    """The data inside the page, with the compressed texts."""
    text = page.read_text(encoding="utf-8")
    content = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    for group, key in ((content, "photos"), (content["pairs"], "reasons")):
        assert group[key]["type"] == "json"
        group[key] = json.loads(zlib.decompress(base64.b64decode(group[key]["data"])))
    return content


def unpacked(array: dict[str, str]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(array["data"])), PACKED_TYPES[array["type"]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Eight photos, of which the last one has no pose."""
    return make_run(tmp_path_factory.mktemp("run"), NAMES, georeferenced=True)


@pytest.fixture(scope="module")
def content(run: RunFolder) -> dict[str, Any]:
    return content_of_page(build_report(run))


def test_photos_and_pairs_have_their_numbers(content: dict[str, Any]) -> None:
    photos, pairs = content["photos"], content["pairs"]
    assert photos["photo"] == NAMES and photos["keypoints"] == [SEEN] * 8
    assert photos["verdict"] == ["registered"] * 7 + ["unregistered"] and photos["reason"][-1] and not photos["reason"][0]
    first, second, inliers = (unpacked(pairs[key]) for key in ("photo0", "photo1", "inliers"))
    verdicts = [pairs["verdicts"][code] for code in unpacked(pairs["verdict"])]
    assert len(first) == 8 * 7 // 2 - 1  # all but the first with the last
    for i, j, count, verdict in zip(first, second, inliers, verdicts, strict=True):
        assert (verdict, count) == (("verified", SEEN - STEP * (j - i) - 3) if j < 7 else ("rejected", 0)), (i, j)
    assert content["state"] == "good" and "7 of 8 photos" in content["verdict"]


def test_the_3d_view_has_the_cameras_and_points_of_the_model(run: RunFolder, content: dict[str, Any]) -> None:
    (model,), scene = content["models"], StubScene(NAMES)
    poses, points = unpacked(model["poses"]).reshape(-1, 7), unpacked(model["points"]).reshape(-1, 3)
    for pose, (w, x, y, z, *center) in zip(scene.poses, poses, strict=False):
        np.testing.assert_allclose(center, -pose[:, :3].T @ pose[:, 3], atol=1e-4)
        forward = [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]  # as in web/scene.js
        np.testing.assert_allclose(forward, pose[2, :3], atol=1e-5)
    expected = np.array([point.xyz for _, point in sorted(run.open_model(run.models()[0]).points3D.items())])
    np.testing.assert_allclose(points * model["step"] + model["low"], expected, atol=model["step"])
    left, top, right, bottom = unpacked(model["extents"]).reshape(-1, 4)[0]
    assert (right - left, bottom - top) == pytest.approx((SIZE[0] / 300, SIZE[1] / 300))
    assert model["up"] == [0, 0, 1]  # georeferenced
    positions = unpacked(model["gps"]["positions"]).reshape(-1, 3)
    np.testing.assert_allclose(positions[:7], poses[:, 4:], atol=0.01)  # m
    assert list(unpacked(model["gps"]["photos"])) == list(range(7))  # of the photos in the model


def test_errors_are_measured_in_px_of_the_photo_and_of_the_detector(content: dict[str, Any]) -> None:
    """The keypoints of the stub have noise of 0.4 px in x and y, and one pixel of the detector is two of the photo."""
    charts = {chart["title"]: chart for chart in content["histograms"]}
    medians = [
        float(re.match(r"median ([\d.]+)", charts[title]["note"])[1]) for title in charts if title.startswith("Reprojection")
    ]
    assert medians[0] == pytest.approx(0.4 * 1.1774, rel=0.15)  # median of a Rayleigh distribution
    assert medians[1] == pytest.approx(medians[0] / 2, rel=0.02)
    assert sum(charts["LightGlue's stop layer"]["counts"]) == 27
    (residuals,) = content["residuals"]
    assert unpacked(residuals["count"]).sum() == 7 * SEEN - 2 * STEP  # points that only one photo sees are no points


def test_lines_join_the_matched_keypoints(content: dict[str, Any]) -> None:
    scene = StubScene(NAMES)
    lines = content["matches"]["0"]  # photos 0 and 1
    places = unpacked(lines["places"]).reshape(-1, 4) / 65535
    expected = np.concatenate([scene.keypoints(0)[STEP:], scene.keypoints(1)[: SEEN - STEP]], axis=1)
    np.testing.assert_allclose(places, (expected + 0.5) / np.array([*SIZE, *SIZE]), atol=2e-5)
    assert unpacked(lines["inliers"]).sum() == SEEN - STEP - 3
    assert [entry["photo"] for entry in content["keypoints"]] == [7]


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    """Names appear in the data only, where no `<` is left, and in the head escaped. The template is filled once."""
    run = make_run(tmp_path, ODD_NAMES)
    text = build_report(run).read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2 and "<img src=x" not in text and "<b>" not in text
    assert content_of_page(run.report)["photos"]["photo"] == sorted(ODD_NAMES)
    assert script_json({"a": "</script>\u2028&"}) == '{"a":"\\u003c/script\\u003e\\u2028\\u0026"}'
    assert json.loads(script_json({"a": "</script>\u2028&", "b": float("nan")})) == {"a": "</script>\u2028&", "b": None}


def test_the_page_is_the_only_file_and_names_no_address(run: RunFolder) -> None:
    build_report(run)
    text = run.report.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in text and "https:" not in text and not run.report_pictures.exists()
    assert run.report.stat().st_size < 400_000


def test_pictures_of_many_photos_are_files_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_EMBEDDED", 4)
    run = make_run(tmp_path, NAMES)
    content = content_of_page(build_report(run))
    assert content["pictures"] == [f"report/{index:05}.jpg" for index in range(8)]
    assert all(MARK.encode() in (run.path / source).read_bytes() for source in content["pictures"])
    assert content["large"]["0"].startswith("data:image/jpeg")
    build_report(run)
    (run.report_pictures / "00003.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"00003\.jpg was not written by sfm_lightglue"):
        build_report(run)


@pytest.mark.parametrize(
    "missing", [["reconstruction"], ["reconstruction", "verification.h5"], ["matches.h5", "pairs.txt"], ["features.h5"]]
)
def test_half_finished_runs_have_a_page(run: RunFolder, tmp_path: Path, missing: list[str]) -> None:
    shutil.copytree(run.path, tmp_path / "half")
    half = RunFolder(tmp_path / "half")
    for name in ["database.db", *missing]:
        path = half.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    stages = {"extract": {"seconds": 1.0}}
    write_json(half.summary, {"stages": stages, "dataset": half.read_summary()["dataset"]})
    content = content_of_page(build_report(half))
    if "reconstruction" in missing:
        assert "not complete" in content["verdict"] and "the next one is pairs" in content["verdict"]
        assert content["state"] == "warning" and not content["models"]


def test_photos_that_moved_leave_a_note(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "moved")
    moved = RunFolder(tmp_path / "moved")
    write_json(moved.summary, moved.read_summary() | {"dataset": {"images": str(tmp_path / "gone")}})
    content = content_of_page(build_report(moved))
    assert content["pictures"] == [""] * 8 and "not where they were" in content["picture_note"]
    assert len(content["models"]) == 1


def test_files_of_other_people_are_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, NAMES[:3])
    run.report.write_text("mine")
    with pytest.raises(ValueError, match=r"report\.html was not written by sfm_lightglue"):
        build_report(run)
    assert run.report.read_text() == "mine"


def test_a_fault_in_the_report_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(run: RunFolder, tables: object) -> Path:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(presentation, "build_report", fail)
    with caplog.at_level(logging.WARNING):
        presentation.write_report(RunFolder(tmp_path))
    assert "report.html was not written: a bug" in caplog.text


def test_the_command_needs_one_folder_of_a_run(tmp_path: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["a", "b"], ["--opne"]):
        with pytest.raises(ValueError, match=r"usage: report OUT \[--open\]"):
            report_command(arguments)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        report_command([str(tmp_path / "typo")])
    with pytest.raises(FileNotFoundError, match="holds no run"):
        report_command([str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    for argument in (str(run.path), f"output={run.path}"):
        assert report_command([argument]) == 0
        assert capsys.readouterr().out.strip() == str(run.report.resolve())


def test_arrays_survive_packing() -> None:
    for name, dtype in PACKED_TYPES.items():
        array = np.arange(12).reshape(3, 4).astype(dtype)
        assert packed(array)["type"] == name
        np.testing.assert_array_equal(unpacked(packed(array)), array.ravel())
    with pytest.raises((KeyError, ValueError)):
        packed(np.zeros(2, np.complex64))


def test_a_histogram_counts_every_value_once() -> None:
    many = np.array([*[1, 1, 2, 3, 3, 3] * 100, 1000])  # the last one is above the 99th percentile
    chart = histogram("counts", many)
    assert chart["edges"] == [0, 1, 2, 3, 4] and chart["counts"] == [0, 200, 100, 301]
    assert chart["note"].endswith("1 above 3 are in the last bar")
    chart = histogram("lengths", np.array([2, 2, 3, 4]), low=2)
    assert chart["edges"] == [2, 3, 4, 5] and chart["counts"] == [2, 1, 1]
    chart = histogram("errors", np.array([0.5, np.nan, np.inf, 1.5]))
    assert sum(chart["counts"]) == 2 and chart["note"].startswith("median 1;")
    assert histogram("nothing", np.zeros(0)) is None
    chart = histogram("equal", np.array([0.25, 0.25]))
    assert sum(chart["counts"]) == 2
