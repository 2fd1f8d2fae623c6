"""What the matching will take, measured on a sample with a matcher of a known speed."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfm_lightglue import pipeline, products
from sfm_lightglue.config import bind_pairs, compose_config
from sfm_lightglue.estimate import described_size, described_time, estimate_matching, estimate_run, log_matching
from sfm_lightglue.execution.executor import ExecutionOptions
from sfm_lightglue.execution.shards import Shard
from sfm_lightglue.matches.stage import match_pairs
from sfm_lightglue.pairs.budget import SelectionOptions, expected_pairs
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.run_context import Run
from sfm_lightglue.run_options import resolve
from sfm_lightglue.storage import ShardStore, features_to_group

NAMES = [f"{i}.jpg" for i in range(12)]
PAIRS = [Pair(*ends) for ends in itertools.combinations(NAMES, 2)]
NO_LIMITS = SelectionOptions(rounds=1, min_partners=1, max_pairs=None, max_pairs_per_image=None)


@dataclasses.dataclass(frozen=True)
class SlowOptions:
    name: str = "slow"


class SlowMatcher:
    """Takes 5 ms a pair, or more, and finds 100 matches."""

    weights = ()
    options = SlowOptions()

    def __init__(self, seconds: float = 0.005) -> None:
        self.seconds = seconds

    @classmethod
    def create(cls, options: SlowOptions, device: str) -> SlowMatcher:
        return cls()

    def __call__(self, features0: Features, features1: Features) -> Matches:
        time.sleep(self.seconds)
        return Matches(np.arange(100, dtype=np.int32)[:, None].repeat(2, axis=1), np.ones(100, np.float32))


@pytest.fixture
def features(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    with ShardStore(tmp_path / "features.h5", {}) as store:
        for name in NAMES:
            keypoints = generator.uniform(0, 100, (100, 2)).astype(np.float32)
            found = Features(keypoints, np.ones(100, np.float32), np.ones((100, 4), np.float32), (100, 100), name=name)
            store.add(name, features_to_group(found), name)
        store.merge()
    return tmp_path / "features.h5"


def execution(num_workers: int) -> ExecutionOptions:
    config = compose_config(["execution.device=cpu", f"execution.num_workers={num_workers}"])
    options: ExecutionOptions = resolve(config).execution.options
    return options


@pytest.fixture(autouse=True)
def _few_pairs_are_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfm_lightglue.estimate.MIN_PAIRS", 20)


def test_the_time_of_all_pairs_follows_from_a_few(features: Path, tmp_path: Path) -> None:
    estimate = estimate_matching(features, tmp_path / "matches.h5", PAIRS, SlowMatcher(0.05), execution(2))
    assert estimate is not None
    assert (estimate.num_pairs, estimate.num_measured) == (66, 3)
    assert 66 * 0.05 / 2 <= estimate.seconds < 2 * 66 * 0.05 / 2  # a busy machine sleeps longer
    assert estimate.gigabytes == pytest.approx(66 * (500 + 26 * 100) / 1e9)


def test_pairs_that_are_stored_count_no_more(features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    arguments = features, tmp_path / "matches.h5"
    match_pairs(features, PAIRS[:30], tmp_path / "matches.h5", SlowMatcher(), num_workers=4)
    log_matching(*arguments, PAIRS, SlowMatcher(), execution(1))
    assert "plan: 36 pairs to match, about 1 s and 1 MB (2 pairs measured)" in caplog.text
    assert estimate_matching(*arguments, PAIRS[:40], SlowMatcher(), execution(1)) is None  # 10 pairs: not worth it


def test_pairs_in_segments_of_shards_count_no_more(features: Path, tmp_path: Path) -> None:
    arguments = features, tmp_path / "matches.h5"
    shard = Shard(tmp_path / "shards", "match", 1, 2, {"options": {}, "run": {}})
    match_pairs(features, PAIRS, tmp_path / "matches.h5", SlowMatcher(), num_workers=4, shard=shard)
    assert not (tmp_path / "matches.h5").exists()
    estimate = estimate_matching(*arguments, PAIRS, SlowMatcher(), execution(1))
    assert estimate is not None and estimate.num_pairs == 33


class SlowExtractor:
    """Takes 0.1 s a photo and finds ten keypoints."""

    weights = ()
    options = SlowOptions()

    def __call__(self, image: products.Image) -> Features:
        time.sleep(0.1)
        ones = np.ones((10, 4), np.float32)
        return Features(ones[:, :2], ones[:, 0], ones, image.size, name=image.name)


def test_before_the_extraction_three_photos_are_measured(tmp_path: Path) -> None:
    for name in NAMES[:5]:
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    arguments = 6000, SlowExtractor(), SlowMatcher(0.05), execution(2)
    (tmp_path / NAMES[2]).write_text("no photo")  # the second of the three
    found = estimate_run(tmp_path, NAMES[:5], *arguments)
    assert found is not None
    seconds, estimate = found
    assert 5 * 0.1 / 2 <= seconds < 2 * 5 * 0.1 / 2
    assert estimate.num_pairs == 6000 and 6000 * 0.05 / 2 <= estimate.seconds < 2 * 6000 * 0.05 / 2
    (tmp_path / NAMES[1]).write_text("no photo either")
    assert estimate_run(tmp_path, NAMES[:5], *arguments) is None


def test_a_run_with_many_pairs_says_so_before_the_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    noise = np.random.default_rng(0).integers(0, 255, (5, 120, 160), np.uint8)
    (tmp_path / "photos").mkdir()
    for name, pixels in zip(NAMES, noise, strict=False):
        Image.fromarray(pixels).resize((320, 240)).save(tmp_path / "photos" / name)
    monkeypatch.setattr(pipeline, "STAGES", ())
    options = ["dataset=folder", f"dataset.images={tmp_path / 'photos'}", f"output={tmp_path / 'out'}"]
    run = Run.create(compose_config([*options, "features=sift", "matches=nearest_neighbor"]))
    pipeline.run_all(run)
    assert "plan: 5 photos, at most 10 pairs (pairs=auto)" in caplog.text and "for the features" not in caplog.text
    monkeypatch.setattr(pipeline, "MANY_PAIRS", 10)
    pipeline.run_all(run)
    told = r"plan: about \d+ s for the features; at most 10 pairs to match, about \d+ s and 1 MB \(2 pairs measured\)"
    assert re.search(told, caplog.text)


def test_a_fault_in_the_sample_is_left_to_the_stage(tmp_path: Path) -> None:
    log_matching(tmp_path / "no.h5", tmp_path / "matches.h5", PAIRS, SlowMatcher(), execution(1))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (40, "40 s"), (420, "7 minutes"), (9000, "2.5 hours"), (267840, "3.1 days")]
)
def test_times_are_told_for_people(seconds: float, text: str) -> None:
    assert described_time(seconds) == text
    assert (described_size(0.0012), described_size(4.0)) == ("1 MB", "4.0 GB")


@pytest.mark.parametrize(
    ("overrides", "num_photos", "expected"),
    [
        ([], 200, 19900),
        ([], 201, 201 * (20 + 20 + 10)),
        (["pairs=exhaustive"], 2000, 1999000),
        (["pairs=retrieval"], 2000, 40000),
        (["pairs=retrieval"], 10, 45),
        (["pairs=[retrieval,sequential]", "pairs.sequential.quadratic_overlap=false"], 1000, 30000),
        (["pairs=list", "pairs.path=x.txt"], 1000, None),
    ],
)
def test_the_largest_number_of_pairs_is_known_before_the_extraction(
    overrides: list[str], num_photos: int, expected: int | None
) -> None:
    options = bind_pairs(compose_config(overrides).pairs)
    assert expected_pairs(options, num_photos, NO_LIMITS) == (None if expected is None else min(expected, num_photos**2 // 2))
    if expected is not None:
        assert expected_pairs(options, num_photos, dataclasses.replace(NO_LIMITS, max_pairs=7)) == 7
