"""Measures the store of matches without a network: writes, merges, opens and reads random matches. Prints one line of JSON.

python benchmarks/store.py NUM_PAIRS FOLDER
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import PeakMemory

from sfm_lightglue.products import Matches
from sfm_lightglue.storage import H5Reader, ShardStore, match_key, matches_to_group

NUM_KEYPOINTS = 2048
NUM_MATCHES = 300
"""Matches of each pair: about the mean over all pairs of a walk around an object."""
NUM_VARIANTS = 64
"""Number of different matches, made beforehand and used in turn."""


def main() -> None:
    num_pairs, folder = int(sys.argv[1]), Path(sys.argv[2])
    names, variants = pair_names(num_pairs), random_matches()
    settings = {"plugin": "random matches"}
    steps: dict[str, dict[str, float]] = {}
    with ShardStore(folder / "matches.h5", settings) as store:
        with measured(steps, "add"):
            for number, (name0, name1) in enumerate(names):
                item = matches_to_group(variants[number % NUM_VARIANTS], NUM_KEYPOINTS)
                store.add(match_key(name0, name1), item, "stamp")
            store.flush()
        with measured(steps, "merge"):
            store.merge()
    with measured(steps, "resume"), ShardStore(folder / "matches.h5", settings) as store:
        missing = store.missing({match_key(*pair): "stamp" for pair in names})
    with measured(steps, "read"), H5Reader(folder / "matches.h5") as reader:
        num_read = sum(reader.find_matches(*pair) is not None for pair in names)
    if missing or num_read != num_pairs:
        raise RuntimeError(f"{len(missing)} of {num_pairs} pairs are missing, {num_read} were read")
    file_mb = (folder / "matches.h5").stat().st_size / 2**20
    about = f"{NUM_MATCHES} random matches a pair among {NUM_KEYPOINTS} keypoints"
    print(json.dumps({"steps": steps, "file_mb": file_mb, "about": about}))


def pair_names(count: int) -> list[tuple[str, str]]:
    """The first `count` pairs of enough photos, in the order in which they are matched."""
    num_images = int(np.ceil(0.5 + np.sqrt(0.25 + 2 * count)))
    names = [f"walk/{index:05d}.jpg" for index in range(num_images)]
    return list(itertools.islice(itertools.combinations(names, 2), count))


def random_matches() -> list[Matches]:
    generator = np.random.default_rng(0)
    variants = []
    for _ in range(NUM_VARIANTS):
        index0 = np.sort(generator.choice(NUM_KEYPOINTS, NUM_MATCHES, replace=False))
        index1 = generator.choice(NUM_KEYPOINTS, NUM_MATCHES, replace=False)
        scores = generator.uniform(0.1, 1, NUM_MATCHES).astype(np.float32)
        variants.append(Matches(np.stack([index0, index1], axis=1).astype(np.int32), scores, 5))
    return variants


@contextlib.contextmanager
def measured(steps: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    """Records wall and CPU seconds, and peak memory above the memory at the start."""
    peak, start, cpu = PeakMemory("cpu"), time.perf_counter(), time.process_time()
    yield
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    steps[name] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "extra_mb": peak.extra_mb()}


if __name__ == "__main__":
    main()
