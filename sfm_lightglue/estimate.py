"""What the matching will take, in time and on disk, measured on a few pairs before it starts.

The pairs of the sample are matched as the stage does, but their matches are not kept. A table of rates by device and matcher
would be wrong by a factor of 2 to 4, because time depends on the keypoints, the overlap of the photos, the kernels and what else
the machine does.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.execution.devices import chosen_devices, suitable_num_workers
from sfm_lightglue.execution.executor import ExecutionOptions
from sfm_lightglue.features.extractor import Extractor, extract_upright
from sfm_lightglue.images import UnreadableImage, load_image
from sfm_lightglue.matches.matcher import BatchedMatcher, Matcher
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.orientation import upright_features
from sfm_lightglue.products import Features, Pair
from sfm_lightglue.storage import H5Reader, pairs_in_segments

logger = logging.getLogger(__name__)

MIN_PAIRS = 20
"""With fewer pairs to match nothing is measured: they take as long as the sample."""
MAX_SAMPLED = 16
SHARE_SAMPLED = 1 / 20
"""At most this share of the pairs is measured, and at most `MAX_SAMPLED`."""
MAX_SECONDS = 3.0
"""No further pair is measured after this time."""
BYTES_PER_PAIR, BYTES_PER_MATCH = 500, 26
"""Size of a pair in matches.h5, verification.h5 and database.db: 22 to 28 bytes a match (fountain-P11, Herz-Jesus-P8)."""
GAIN = 0.7
"""What a further thread adds to the speed of the first: they share memory and the writing of results. With 1.0, the times of five
sets were 1.2 to 1.6 times what was announced."""
MANY_PAIRS = 5000
"""From this number of expected pairs on, photos are measured before the extraction too: it takes minutes then."""


@dataclass(frozen=True)
class Estimate:
    """What the work will take."""

    num_pairs: int
    """Pairs to match."""
    seconds: float
    gigabytes: float
    """Size of the results of these pairs."""
    num_measured: int
    """Pairs that were measured."""

    def __str__(self) -> str:
        return (
            f"{count_of(self.num_pairs, 'pair')} to match, about {described_time(self.seconds)} and "
            f"{described_size(self.gigabytes)} ({count_of(self.num_measured, 'pair')} measured)"
        )


def estimate_matching(
    features: Path | str, matches: Path | str, pairs: Sequence[Pair], matcher: Matcher, execution: ExecutionOptions
) -> Estimate | None:
    """What matching those `pairs` takes that are not stored yet, from a sample of them; None if it is not worth measuring.

    Args:
        features: File of features.
        matches: File of matches; it need not exist.
        pairs: Each once.
        matcher: The matcher of the run on its first device.
        execution: Devices and workers of the run.
    """
    missing = _missing(matches, pairs)
    if len(missing) < MIN_PAIRS:
        return None
    count = min(MAX_SAMPLED, max(2, int(len(missing) * SHARE_SAMPLED)))
    chosen = [missing[i] for i in np.linspace(0, len(missing) - 1, count + 2).astype(int)[1:-1].tolist()]
    with H5Reader(features) as reader:
        sample = [(reader.features(pair.name0), reader.features(pair.name1)) for pair in chosen]
    return _measure(sample, len(missing), matcher, num_parallel(execution))


def estimate_run(
    images: Path, names: Sequence[str], num_pairs: int, extractor: Extractor, matcher: Matcher, execution: ExecutionOptions
) -> tuple[float, Estimate] | None:
    """Seconds of the extraction, and what the matching takes, from three photos; None if they cannot be read."""
    photos = []
    for i in np.linspace(0, len(names) - 1, 5).astype(int)[1:-1].tolist():
        try:
            photos.append(load_image(images, names[i]))
        except UnreadableImage:
            continue
    if len(photos) < 2:
        return None
    found, seconds = _timed(lambda photo: extract_upright(extractor, photo), photos)
    sample = [(found[0], found[1]), (found[-1], found[0])]
    parallel = num_parallel(execution)
    return seconds * len(names) / parallel, _measure(sample, num_pairs, matcher, parallel)


def log_matching(
    features: Path | str, matches: Path | str, pairs: Sequence[Pair], matcher: Matcher, execution: ExecutionOptions
) -> None:
    """Logs `estimate_matching`. A fault in the sample is left to the stage, which says which pair has it."""
    try:
        estimate = estimate_matching(features, matches, pairs, matcher, execution)
    except Exception:
        logger.debug("no estimate of the matching", exc_info=True)
        return
    if estimate is not None:
        logger.info("plan: %s", estimate)


def log_run(
    images: Path, names: Sequence[str], num_pairs: int, extractor: Extractor, matcher: Matcher, execution: ExecutionOptions
) -> None:
    """Logs `estimate_run`. A fault in the sample is left to the stages."""
    try:
        found = estimate_run(images, names, num_pairs, extractor, matcher, execution)
    except Exception:
        logger.debug("no estimate of the run", exc_info=True)
        return
    if found is not None:
        logger.info("plan: about %s for the features; at most %s", described_time(found[0]), found[1])


def num_parallel(execution: ExecutionOptions) -> float:
    """How many times as fast all workers or GPUs are as one. Each further worker of a CPU counts `GAIN`."""
    devices = chosen_devices(execution.device)
    if devices != ["cpu"]:
        return len(devices)
    return 1 + GAIN * ((execution.num_workers or suitable_num_workers("cpu")) - 1)


def described_time(seconds: float) -> str:
    """A duration for people: `40 s`, `7 minutes`, `2.5 hours`, `3.1 days`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def described_size(gigabytes: float) -> str:
    """A size for people."""
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{max(1000 * gigabytes, 1):.0f} MB"


def _missing(matches: Path | str, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that have no matches on disk."""
    is_stored = pairs_in_segments(Path(matches), pairs)
    with contextlib.suppress(FileNotFoundError), H5Reader(matches) as reader:
        is_stored |= reader.match_counts_of(pairs)[:, 0] >= 0
    return [pairs[i] for i in np.flatnonzero(~is_stored).tolist()]


def _measure(sample: Sequence[tuple[Features, Features]], num_pairs: int, matcher: Matcher, parallel: float) -> Estimate:
    """The time of the sample as that of `num_pairs` pairs."""
    upright = [(upright_features(features0), upright_features(features1)) for features0, features1 in sample]
    if isinstance(matcher, BatchedMatcher):
        size = max(1, min(matcher.batch_size, len(upright)))
        batches: list[Any] = [
            [(matcher.prepare(features0), matcher.prepare(features1)) for features0, features1 in upright[start : start + size]]
            for start in range(0, len(upright), size)
        ]
        found, seconds = _timed(matcher.match_many, batches)
        matches = [each for batch in found for each in batch]
        seconds *= len(found) / max(len(matches), 1)
    else:
        matches, seconds = _timed(lambda pair: matcher(*pair), upright)
    mean = float(np.mean([len(each) for each in matches]))
    gigabytes = num_pairs * (BYTES_PER_PAIR + BYTES_PER_MATCH * mean) / 1e9
    return Estimate(num_pairs, seconds * num_pairs / parallel, gigabytes, len(matches))


def _timed(function: Callable[[Any], Any], items: Sequence[Any]) -> tuple[list[Any], float]:
    """The results, and seconds a call. The first call is repeated, because it also loads code. It ends after `MAX_SECONDS`."""
    function(items[0])
    start, results = time.perf_counter(), []
    for item in items:
        results.append(function(item))
        if time.perf_counter() - start > MAX_SECONDS:
            break
    return results, (time.perf_counter() - start) / len(results)
