"""What the matching will take, in time and on disk, measured on a few pairs before it starts.

The sample is matched as the stage does it, by as many threads at a time, because they slow each other down. Its matches are not
kept. A table of rates by device and matcher would be wrong by a factor of 2 to 4, because time depends on the keypoints, the
overlap of the photos, the kernels and what else the machine does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.execution.devices import chosen_devices, suitable_num_workers
from sfm_lightglue.execution.executor import ExecutionOptions
from sfm_lightglue.execution.threads import torch_threads
from sfm_lightglue.features.extractor import Extractor, extract_upright
from sfm_lightglue.images import UnreadableImage, load_image
from sfm_lightglue.matches.matcher import BatchedMatcher, Matcher
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.orientation import upright_features
from sfm_lightglue.products import Features, Pair
from sfm_lightglue.storage import H5Reader, pairs_in_segments

logger = logging.getLogger(__name__)

MIN_PAIRS = 100
"""With fewer pairs to match nothing is measured: the progress bar soon says the same."""
MAX_SAMPLED = 16
SHARE_SAMPLED = 1 / 20
"""At most this share of the pairs is measured, and at most `MAX_SAMPLED`."""
MAX_SECONDS = 3.0
"""No thread measures a further pair after this time."""
BYTES_PER_PAIR, BYTES_PER_MATCH = 500, 26
"""Size of a pair in matches.h5, verification.h5 and database.db: 22 to 28 bytes a match (fountain-P11, Herz-Jesus-P8)."""
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
        start = time.perf_counter()
        sample = [(reader.features(pair.name0), reader.features(pair.name1)) for pair in chosen]
        seconds_to_read = (time.perf_counter() - start) / (2 * len(sample))
    num_images = len({name for pair in missing for name in (pair.name0, pair.name1)})
    estimate = _measure(sample, len(missing), matcher, execution)
    return dataclasses.replace(estimate, seconds=estimate.seconds + num_images * seconds_to_read)


def estimate_run(
    images: Path, names: Sequence[str], num_pairs: int, extractor: Extractor, matcher: Matcher, execution: ExecutionOptions
) -> tuple[float, Estimate] | None:
    """Seconds of the extraction, and what the matching takes, from three photos; None if they cannot be read."""
    readable = []
    for i in np.linspace(0, len(names) - 1, 5).astype(int)[1:-1].tolist():
        with contextlib.suppress(UnreadableImage):
            load_image(images, names[i])
            readable.append(names[i])
    if len(readable) < 2:
        return None
    found, seconds = _timed(
        lambda name: extract_upright(extractor, load_image(images, name)), readable, execution, max_seconds=math.inf
    )
    sample = [(found[0], found[1]), (found[-1], found[0])]
    return seconds * len(names), _measure(sample, num_pairs, matcher, execution)


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


def _measure(
    sample: Sequence[tuple[Features, Features]], num_pairs: int, matcher: Matcher, execution: ExecutionOptions
) -> Estimate:
    """The time of `num_pairs` pairs, if they take as long as the sample."""
    upright = [(upright_features(features0), upright_features(features1)) for features0, features1 in sample]
    if isinstance(matcher, BatchedMatcher):
        size = max(1, min(matcher.batch_size, len(upright)))
        batches: list[Any] = [
            [(matcher.prepare(features0), matcher.prepare(features1)) for features0, features1 in upright[start : start + size]]
            for start in range(0, len(upright), size)
        ]
        found, seconds = _timed(matcher.match_many, batches, execution)
        matches = [each for batch in found for each in batch]
        seconds *= len(found) / max(len(matches), 1)
    else:
        matches, seconds = _timed(lambda pair: matcher(*pair), upright, execution)
    mean = float(np.mean([len(each) for each in matches]))
    gigabytes = num_pairs * (BYTES_PER_PAIR + BYTES_PER_MATCH * mean) / 1e9
    return Estimate(num_pairs, seconds * num_pairs, gigabytes, len(matches))


def _timed(
    function: Callable[[Any], Any], items: Sequence[Any], execution: ExecutionOptions, max_seconds: float = MAX_SECONDS
) -> tuple[list[Any], float]:
    """The results, and seconds a call if all workers of the run are at work.

    The items are shared out to as many threads as a worker of the run has, or one for each item if there are fewer. The first
    call is repeated, because it also loads code.
    """
    function(items[0])
    devices = chosen_devices(execution.device)
    num_workers = execution.num_workers or suitable_num_workers(devices[0])
    num_threads = min(num_workers, len(items))

    def share(first: int) -> tuple[list[Any], float]:
        start, results = time.perf_counter(), []
        for item in items[first::num_threads]:
            results.append(function(item))
            if time.perf_counter() - start > max_seconds:
                break
        return results, time.perf_counter() - start

    with torch_threads(num_workers), ThreadPoolExecutor(num_threads) as pool:
        shares = list(pool.map(share, range(num_threads)))
    rate = sum(len(results) / seconds for results, seconds in shares) * num_workers / num_threads * len(devices)
    return [result for results, _ in shares for result in results], 1 / rate
