"""What the matching will take, measured on a sample with a matcher of a known speed."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from pathlib import Path

import numpy as np
import pytest

from sfm_lightglue.config import bind_pairs, compose_config
from sfm_lightglue.estimate import described_size, described_time, estimate_matching, log_matching, num_parallel
from sfm_lightglue.execution.executor import ExecutionOptions
from sfm_lightglue.execution.shards import Shard
from sfm_lightglue.matches.stage import match_pairs
from sfm_lightglue.pairs.budget import SelectionOptions, expected_pairs
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.run_options import resolve
from sfm_lightglue.storage import ShardStore, features_to_group

NAMES = [f"{i}.jpg" for i in range(12)]
PAIRS = [Pair(*ends) for ends in itertools.combinations(NAMES, 2)]
NO_LIMITS = SelectionOptions(rounds=1, min_partners=1, max_pairs=None, max_pairs_per_image=None)


@dataclasses.dataclass(frozen=True)
class SlowOptions:
    name: str = "slow"


class SlowMatcher:
    """Takes 5 ms a pair and finds 100 matches."""

    weights = ()
    options = SlowOptions()

    @classmethod
    def create(cls, options: SlowOptions, device: str) -> SlowMatcher:
        return cls()

    def __call__(self, features0: Features, features1: Features) -> Matches:
        time.sleep(0.005)
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


def test_the_time_of_all_pairs_follows_from_a_few(features: Path, tmp_path: Path) -> None:
    estimate = estimate_matching(features, tmp_path / "matches.h5", PAIRS, SlowMatcher(), execution(2))
    assert estimate is not None
    assert (estimate.num_pairs, estimate.num_measured) == (66, 3)
    assert 66 * 0.005 / 1.7 <= estimate.seconds < 3 * 66 * 0.005 / 1.7  # a busy machine sleeps longer
    assert estimate.gigabytes == pytest.approx(66 * (500 + 26 * 100) / 1e9)
    assert num_parallel(execution(3)) == pytest.approx(2.4)


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
