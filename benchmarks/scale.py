"""Measures the stage match with stub networks: random features and matches of many photos, through the real stages and files.

Prints a line of JSON for each step: seconds, rate, bytes a pair, and peak memory of the process (MB).

python benchmarks/scale.py FOLDER [--photos 2000] [--pairs 50000] [--keypoints 2048] [--matches 300] [--steps features,...]

Steps: `features` writes features.h5 and pairs.txt, `match` matches all pairs, `again` has nothing to do, `more` adds two pairs,
`read` reads the matches of 10,000 pairs, `size` adds up the files. `fill`, in place of `match`, writes the same file through the
store alone, without reading features. `scale_photos.py` has the steps of the extraction, and `scale_database.py` those after the
matches: verification, database and tables.
Each step runs in a process of its own, as a command does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scale_database
import scale_photos

from sfm_lightglue.matches.stage import match_pairs
from sfm_lightglue.pair_files import read_pairs, write_pairs
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.settings import plugin_settings
from sfm_lightglue.storage import H5Reader, ShardStore, features_to_group, match_key, matches_to_group

STEPS = ("features", "match", "again", "more", "read", "size")
NUM_VARIANTS = 64
"""Number of different features and matches, which are used in turn."""
NUM_READ = 10_000


@dataclass(frozen=True)
class StubOptions:
    """Options of the stub."""

    name: str
    num_keypoints: int
    num_matches: int


class StubMatcher:
    """Gives random matches at once. A batched matcher, so images are read and prepared once while the cache has room."""

    batch_size = 64

    def __init__(self, num_keypoints: int, num_matches: int) -> None:
        self.options = StubOptions("random matches", num_keypoints, num_matches)
        generator = np.random.default_rng(0)
        self.variants = [random_matches(generator, num_keypoints, num_matches) for _ in range(NUM_VARIANTS)]

    def prepare(self, features: Features) -> Features:
        """The input itself."""
        return features

    def match_many(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """A matches of the stub for each pair."""
        return [self.variants[number % NUM_VARIANTS] for number in range(len(pairs))]

    def __call__(self, features0: Features, features1: Features) -> Matches:
        return self.variants[0]


def random_matches(generator: np.random.Generator, num_keypoints: int, num_matches: int) -> Matches:
    index0 = np.sort(generator.choice(num_keypoints, num_matches, replace=False))
    index1 = generator.choice(num_keypoints, num_matches, replace=False)
    scores = generator.uniform(0.1, 1, num_matches).astype(np.float32)
    return Matches(np.stack([index0, index1], axis=1).astype(np.int32), scores, 5)


def pairs_of_neighbours(names: Sequence[str], count: int) -> list[Pair]:
    """`count` pairs of photos that are close together in a ring."""
    steps = -(-count // len(names))
    pairs = (Pair(name, names[(i + step) % len(names)]) for i, name in enumerate(names) for step in range(1, steps + 1))
    return sorted(set(pairs))[:count]


def write_features(path: Path, names: Iterable[str], num_keypoints: int) -> None:
    """Random features with descriptors of 128 numbers."""
    generator = np.random.default_rng(0)
    variants = []
    for _ in range(8):
        keypoints = generator.uniform(0, (4000, 3000), (num_keypoints, 2)).astype(np.float32)
        descriptors = generator.normal(size=(num_keypoints, 128)).astype(np.float32)
        scores = np.sort(generator.random(num_keypoints).astype(np.float32))[::-1]
        variants.append(features_to_group(Features(keypoints, scores, descriptors, (4000, 3000))))
    with ShardStore(path, {"plugin": "random features"}, shard_items=32) as store:
        for number, name in enumerate(names):
            store.add(name, variants[number % len(variants)], f"{number:016x}")
        store.merge()


def fill(features: Path, output: Path, pairs: Sequence[Pair], matcher: StubMatcher) -> float:
    """Stores matches of all pairs as the stage match would. Returns the seconds."""
    start = time.perf_counter()
    items = [matches_to_group(matches, matcher.options.num_keypoints) for matches in matcher.variants]
    with H5Reader(features) as reader:
        names = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
        stamps = dict(zip(names, reader.stamps(names), strict=True))
        settings = {**plugin_settings(matcher), "features": reader.fingerprint}
    with ShardStore(output, settings) as store:
        for number, pair in enumerate(pairs):
            stamp = f"{stamps[pair.name0]} {stamps[pair.name1]}"
            store.add(match_key(pair.name0, pair.name1), items[number % NUM_VARIANTS], stamp)
        store.merge()
    return time.perf_counter() - start


def run_step(step: str, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Runs one step and returns what it measured."""
    names = [f"walk/{i // 1000:03d}/{i:06d}.jpg" for i in range(given.photos)]
    features, matches, listed = folder / "features.h5", folder / "matches.h5", folder / "pairs.txt"
    start = time.perf_counter()
    if step == "features":
        write_features(features, names, given.keypoints)
        write_pairs(listed, pairs_of_neighbours(names, given.pairs))
        return {"photos_per_s": given.photos / (time.perf_counter() - start)}
    if step == "fill":
        pairs = read_pairs(listed)
        return {"pairs_per_s": len(pairs) / fill(features, matches, pairs, StubMatcher(given.keypoints, given.matches))}
    if step in ("match", "again", "more"):
        pairs = read_pairs(listed)
        read_s = time.perf_counter() - start
        if step == "more":
            pairs += [Pair(names[0], names[given.photos // 2]), Pair(names[1], names[given.photos // 2])]
        report = match_pairs(features, pairs, matches, StubMatcher(given.keypoints, given.matches), num_workers=1)
        seconds = time.perf_counter() - start
        found = {"read_pairs_s": read_s, "num_computed": report.num_computed, "mean_matches": report.mean_matches}
        return found | {"pairs_per_s": report.num_computed / seconds}
    if step in scale_photos.STEPS:
        return scale_photos.run_step(step, folder, names, given.keypoints)
    if step in scale_database.STEPS:
        added = [Pair(names[0], names[given.photos // 2]), Pair(names[1], names[given.photos // 2])]
        return scale_database.run_step(step, folder, names, added)
    if step == "read":
        pairs = read_pairs(listed)
        chosen = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[:NUM_READ]]
        start = time.perf_counter()
        with H5Reader(matches) as reader:
            reader.find_matches(chosen[0].name0, chosen[0].name1)
            open_s = time.perf_counter() - start
            for pair in chosen:
                reader.find_matches(pair.name0, pair.name1)
        return {"open_s": open_s, "us_a_pair": (time.perf_counter() - start - open_s) / len(chosen) * 1e6}
    files = [path for path in (matches, *folder.glob("matches.h5.shards/*")) if path.exists()]
    return {"num_files": len(files), "bytes_a_pair": sum(path.stat().st_size for path in files) / given.pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    for name, value in (("photos", 2000), ("pairs", 50_000), ("keypoints", 2048), ("matches", 300)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", default=",".join(STEPS))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    steps = given.steps.split(",")
    if len(steps) > 1:
        for step in steps:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--steps", step], check=True)
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, cpu = time.perf_counter(), time.process_time()
    found = run_step(steps[0], given.folder, given)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found |= {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak, "imports_mb": before}
    print(json.dumps({"step": steps[0], **{name: round(value, 4) for name, value in found.items()}}), flush=True)


if __name__ == "__main__":
    main()
