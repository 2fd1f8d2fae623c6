"""The benchmark of features compares what it says, and scores matches and photos with known answers rightly."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from sfm_lightglue.products import Features, Matches

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SHIFT = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]], np.float64)
"""Fundamental matrix of a camera that moves along x: a point stays in its line."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of the folder as a module. The scripts import each other by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def features_at(points: np.ndarray, name: str = "") -> Features:
    """Features with these keypoints (n, 2), in a photo of 600 x 400 px. The descriptor of keypoint i is the unit vector i."""
    descriptors = np.eye(len(points), dtype=np.float32)
    return replace(Features(points.astype(np.float32), np.ones(len(points), np.float32), descriptors, (600, 400)), name=name)


def matches_of(*indices: tuple[int, int]) -> Matches:
    return Matches(np.array(indices, np.int32).reshape(-1, 2), np.ones(len(indices), np.float32))


def sideways_points(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 (count, 2), (count, 2): points at random depths, seen by two cameras beside each other."""
    rng = np.random.default_rng(seed)
    points0 = rng.uniform([100, 0], [600, 400], (count, 2))
    return points0, points0 - np.column_stack([rng.uniform(20, 100, count), np.zeros(count)])


def test_distances_to_epipolar_lines(benchmark: Callable[[str], ModuleType]) -> None:
    distances = benchmark("hard_light").epipolar_distances
    points0 = np.array([[10.0, 20.0], [30.0, 40.0]])
    assert distances(SHIFT, points0, points0 + np.array([5, 0])) == pytest.approx([0, 0])
    assert distances(SHIFT, points0, points0 + np.array([5, 4])) == pytest.approx([4, 4])
    # Lines of image 1 are twice as dense as those of image 0: y1 = 2 y0. A point 4 px off in image 1 is 2 px off in image 0.
    scaled = np.array([[0, 0, 0], [0, 0, -1], [0, 2, 0]], np.float64)
    assert distances(scaled, points0, points0 * [1, 2] + np.array([0, 4])) == pytest.approx([3, 3])
    assert np.isinf(distances(None, points0, points0)).all()


def test_matches_are_judged_by_the_marked_points(benchmark: Callable[[str], ModuleType]) -> None:
    hard_light, photo_pairs = benchmark("hard_light"), benchmark("photo_pairs")
    marked0, marked1 = sideways_points(20, seed=0)
    marked1[:5, 1] += 4.5  # at 4.5 px of their lines: within 5, 6, ... 10 px, not within 1 to 4
    marked = photo_pairs.MarkedPair("s/a_A.jpg", "s/a_B.jpg", marked0, marked1)
    points0, points1 = sideways_points(60, seed=1)
    both = features_at(points0), features_at(points1)
    found = hard_light.marked_geometry(marked, photo_pairs.MatchedPair(*both, matches_of(*((i, i) for i in range(60)))))
    assert found.label == "a" and found.num_matches == 60 and found.is_found
    assert found.within == pytest.approx({3: 0.75, 5: 1, 10: 1})
    assert found.maa == pytest.approx([0.75 + 0.25 * 6 / 10] * len(hard_light.RANSAC_SEEDS))
    assert found.num_correct == marked.num_correct(points0.astype(np.float32), points1.astype(np.float32)) > 50


def test_few_or_wrong_matches_give_no_geometry(benchmark: Callable[[str], ModuleType]) -> None:
    hard_light, photo_pairs = benchmark("hard_light"), benchmark("photo_pairs")
    marked = photo_pairs.MarkedPair("a.jpg", "b.jpg", *sideways_points(20, seed=0))
    points0, points1 = sideways_points(60, seed=1)
    both = features_at(points0), features_at(points1)
    few = hard_light.marked_geometry(marked, photo_pairs.MatchedPair(*both, matches_of(*((i, i) for i in range(7)))))
    assert not few.is_found and few.maa.max() == 0 and few.within == {3: 0, 5: 0, 10: 0} and few.label == marked.label
    shuffled = zip(range(60), np.random.default_rng(2).permutation(60), strict=True)
    wrong = hard_light.marked_geometry(marked, photo_pairs.MatchedPair(*both, matches_of(*shuffled)))
    assert wrong.num_matches == 60 and not wrong.is_found and wrong.maa.mean() < hard_light.MIN_MAA
    enough = hard_light.marked_geometry(marked, photo_pairs.MatchedPair(*both, matches_of(*((i, i) for i in range(8)))))
    assert enough.is_found


def test_pairs_without_a_geometry_are_compared_with_other_kinds(benchmark: Callable[[str], ModuleType]) -> None:
    hard_light = benchmark("hard_light")

    def pair(label: str, maa: tuple[float, float], num_matches: int = 50, correct: float = 10) -> object:
        return hard_light.MarkedGeometry(label, num_matches, correct, dict.fromkeys((3, 5, 10), maa[0]), np.array(maa))

    ours = [pair("x", (0.8, 0.6)), pair("y", (0.05, 0.05)), pair("z", (0.0, 0.0), num_matches=3, correct=0)]
    other = [pair("x", (0.0, 0.0)), pair("y", (0.5, 0.5)), pair("z", (0.0, 0.1))]
    scores = hard_light.hard_light_scores(ours, [other])
    assert scores["mAA@10"] == "25.0"
    assert scores["its deviation over seeds"] == "3.3"  # means of the seeds: 28.3 and 21.7
    assert scores["within 5 px %"] == "28.3"
    assert (scores["correct"], scores["mean correct"], scores["matches"]) == ("20", "6.7", "34")
    assert (scores["no geometry"], scores["which another kind has"]) == ("2", "1")
    assert scores["x: mAA, correct"] == "70, 10"
    assert hard_light.hard_light_scores(ours)["which another kind has"] == "0"
    assert hard_light.hard_light_scores(other, [ours])["which another kind has"] == "1"


def test_pairs_of_all_sources_are_named_by_their_folders(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    hard_light = benchmark("hard_light")
    for source in hard_light.SOURCES:
        (tmp_path / source).mkdir()
        (tmp_path / source / "correspondences.txt").write_text("# A B\na.jpg b.jpg 1 2 3 4\na.jpg b.jpg 5 6 7 8\n", "utf-8")
    pairs = hard_light.marked_light_pairs(tmp_path)
    assert [pair.name1 for pair in pairs] == ["light_pairs10/images/b.jpg", "illumination_pairs4/images/b.jpg"]
    assert pairs[1].points1.tolist() == [[3, 4], [7, 8]]


def test_pairs_by_day_and_night_are_all_taken(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned = benchmark("aligned_series")
    brightness = {"square": [5, 30, 90, 120, 200], "tower": [100, 110, 120]}
    for scene, values in brightness.items():
        (tmp_path / scene).mkdir()
        for i, value in enumerate(values):
            Image.new("L", (32, 24), value).save(tmp_path / scene / f"{i}.png")
    found = aligned.aligned_pairs(tmp_path, list(brightness))
    nights = [(f"square/{night}.png", f"square/{day}.png") for night in (0, 1) for day in (2, 3, 4)]
    assert found["day and night"] == nights
    days = [(f"{scene}/{i}.png", f"{scene}/{j}.png") for scene, k in (("square", 2), ("tower", 0)) for i, j in pairs_from(k)]
    assert found["by day"] == days
    monkeypatch.setattr(aligned, "PAIRS_A_SCENE", 2)
    few = aligned.aligned_pairs(tmp_path, list(brightness))
    assert [len(few["day and night"]), len(few["by day"])] == [2, 4]
    assert few == aligned.aligned_pairs(tmp_path, list(brightness)) and set(few["by day"]) < set(days)
    assert list(aligned.aligned_pairs(tmp_path, ["tower"])) == ["by day"]


def pairs_from(first: int) -> list[tuple[int, int]]:
    return [(first, first + 1), (first, first + 2), (first + 1, first + 2)]


def test_keypoints_and_matches_are_right_in_the_same_place(benchmark: Callable[[str], ModuleType]) -> None:
    aligned, photo_pairs = benchmark("aligned_series"), benchmark("photo_pairs")
    points0 = np.array([[10, 10], [50, 50], [90, 90], [130, 130]])
    points1 = points0 + np.array([[2, 0], [0, 3], [4, 0], [200, 0]])  # two within 3 px
    pair = photo_pairs.MatchedPair(features_at(points0), features_at(points1), matches_of((0, 0), (2, 2), (3, 0)))
    assert aligned.aligned_pair_scores(pair) == pytest.approx(
        {
            "found again %": 50,
            "right neighbours": 2,  # all four are mutual nearest neighbours
            "right neighbours %": 50,
            "right matches": 1,
            "right matches %": 100 / 3,
        }
    )
    without = photo_pairs.MatchedPair(pair.features0, features_at(np.zeros((0, 2))), matches_of())
    assert set(aligned.aligned_pair_scores(without).values()) == {0}


def test_equal_enlargement_is_a_row_beside_the_default(benchmark: Callable[[str], ModuleType]) -> None:
    features = benchmark("features")

    def rows(*enlarge: str) -> list[tuple[str, str]]:
        options = features._parse(["data", "out", "--features", "superpoint", "aliked", *enlarge])
        return [(row.kind, row.enlargement) for row in features.rows_of(options)]

    assert rows() == [("superpoint", "2 (default)"), ("aliked", "1 (default)")]
    assert rows("--enlarge", "default", "2") == [*rows(), ("aliked", "2")]  # superpoint's row would be the same
    assert rows("--enlarge", "1.5") == [("superpoint", "1.5"), ("aliked", "1.5")]
    assert rows("--overrides", "features.enlarge_max=3") == [("superpoint", "3"), ("aliked", "3")]


def test_each_enlargement_keeps_its_own_features(benchmark: Callable[[str], ModuleType]) -> None:
    features = benchmark("features")
    options = features._parse(["data", "out", "--enlarge", "default", "2"])
    assert features.output_of("aliked", Path("data/set"), options) == Path("out/aliked_nearest_neighbor/set")
    assert features.output_of("aliked", Path("data/set"), options, "2") == Path("out/aliked_nearest_neighbor_enlarge2/set")
    assert "features.enlarge_max=2" in features.overrides("aliked", options, "2")
    assert not any("enlarge_max" in override for override in features.overrides("aliked", options))


@pytest.mark.parametrize("text", ["0.5", "twice", "nan", "inf"])
def test_impossible_enlargements_are_refused(benchmark: Callable[[str], ModuleType], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"found '{text}'"):
        benchmark("features")._enlargement(text)


def test_sets_without_a_folder_name_the_one_that_is_missing(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    features = benchmark("features")
    for name, folder in (("hard_light14", "light_pairs10/images"), ("aligned_series", "train_photos_light/aligned/amos_16")):
        with pytest.raises(FileNotFoundError, match=f"has no {folder}: choose sets with --sets"):
            features.main([str(tmp_path), str(tmp_path / "out"), "--sets", name, "--no-append"])


@pytest.mark.slow
def test_the_sets_are_measured_from_their_photos(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hard_light, aligned, features = benchmark("hard_light"), benchmark("aligned_series"), benchmark("features")
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(60, 256, (40, 60), np.uint8))
    photo = np.asarray(small.resize((300, 200), Image.Resampling.BICUBIC))
    for source in hard_light.SOURCES:  # the second photo is the first one, 10 px to the left
        (tmp_path / source / "images").mkdir(parents=True)
        for name, first in (("x_A.png", 0), ("x_B.png", 10)):
            Image.fromarray(photo[:, first : first + 280]).save(tmp_path / source / "images" / name)
        points = rng.uniform([20, 10], [270, 190], (12, 2))
        rows = [f"x_A.png x_B.png {x} {y} {x - 10} {y}" for x, y in points]
        (tmp_path / source / "correspondences.txt").write_text("\n".join(rows), encoding="utf-8")
    for scene in aligned.SCENES:
        (tmp_path / scene).mkdir(parents=True)
        for name, factor in (("day.png", 1.0), ("dusk.png", 0.7), ("night.png", 0.1)):
            Image.fromarray((photo * factor).astype(np.uint8)).save(tmp_path / scene / name)
    options = ["--features", "sift", "--sets", "hard_light14,aligned_series", "--enlarge", "1", "2", "--keypoints", "300"]
    features.main([str(tmp_path), str(tmp_path / "out"), *options, "--no-append"])
    text = capsys.readouterr().out
    assert "| hard_light14 | largest enlargement | mAA@10 |" in text
    assert text.count("| sift | 1 (default) |") == text.count("| sift | 2 |") == 2
    assert "day and night (4): right neighbours |" in text and "by day (2): found again % |" in text
