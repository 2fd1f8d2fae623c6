"""Measures peak memory or throughput for `matching.py`, in its own process. Prints one line of JSON.

python benchmarks/matching_worker.py memory|throughput ENGINE FEATURES --keypoints N --pairs 0-1 2-4 [...]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from matchers import MATCHERS, PairMatcher
from measure import PeakMemory, last_json, script

from sfm_lightglue.products import Features
from sfm_lightglue.storage import H5Reader

IndexPair = tuple[int, int]
"""Two photos, by their index in the sorted folder."""
NUM_PHOTOS = 11
USES = NUM_PHOTOS - 1
"""Number of pairs of each photo if all 11 are matched with each other. They share what is computed once per photo."""
WARM_UP_KEYPOINTS = 64


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    features = load_features(options.features, options.keypoints)
    matcher = MATCHERS[options.engine](options.device)
    warm_up(matcher, features)
    if options.what == "memory":
        print(json.dumps({"extra_mb": memory_of(matcher, features, options.pairs, options.device)}))
        return
    print("ready", flush=True)
    sys.stdin.readline()  # all processes start together
    with ThreadPoolExecutor(options.workers) as pool:
        rates = pool.map(lambda first: rate_of(matcher, features, first, options), range(options.workers))
        print(json.dumps({"pairs_per_second": sum(rates)}))


def index_pair(text: str) -> IndexPair:
    """The pair in a text like `0-10`."""
    first, second = text.split("-")
    return int(first), int(second)


def load_features(file: Path, num_keypoints: int) -> list[Features]:
    """The strongest keypoints of each photo, in the order of names. Keypoints are moved into the photo, as kornia requires."""
    with H5Reader(file) as reader:
        return [strongest(reader.features(name), num_keypoints) for name in reader.names()]


def strongest(features: Features, num_keypoints: int) -> Features:
    width, height = features.image_size
    keypoints = features.keypoints[:num_keypoints].clip((0, 0), (width - 1, height - 1)).astype("float32")
    descriptors = features.descriptors[:num_keypoints].copy()
    return dataclasses.replace(features, keypoints=keypoints, scores=features.scores[:num_keypoints], descriptors=descriptors)


@torch.inference_mode()
def warm_up(matcher: PairMatcher, features: Sequence[Features]) -> None:
    """Matches one pair with few keypoints, to make everything that is made at first use and touch little memory."""
    image0, image1 = (matcher.prepare(strongest(image, WARM_UP_KEYPOINTS)) for image in features[:2])
    matcher.match([(image0, image1)])


@torch.inference_mode()
def memory_of(matcher: PairMatcher, features: Sequence[Features], pairs: Sequence[IndexPair], device: str) -> float:
    """Peak memory, MB, while the pairs are matched one by one, above the memory with network and features loaded."""
    peak = PeakMemory(device)
    for i, j in pairs:
        matcher.match([(matcher.prepare(features[i]), matcher.prepare(features[j]))])
    return peak.extra_mb()


@torch.inference_mode()
def rate_of(matcher: PairMatcher, features: Sequence[Features], first: int, options: argparse.Namespace) -> float:
    """Pairs per second of one thread, over whole rounds of the pairs. Each thread starts at another pair."""
    torch.set_num_threads(options.threads)
    offset = first * len(options.pairs) // options.workers
    order = [*options.pairs[offset:], *options.pairs[:offset]]
    uses = dict.fromkeys(range(len(features)), 0)
    prepared: dict[int, Any] = {}
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < options.seconds:
        for pair in order:
            for image in pair:
                if uses[image] % USES == 0:
                    prepared[image] = matcher.prepare(features[image])
                uses[image] += 1
            matcher.match([(prepared[pair[0]], prepared[pair[1]])])
        count += len(order)
    return count / (time.perf_counter() - start)


def measure_throughput(
    engine: str,
    file: Path,
    num_keypoints: int,
    pairs: Sequence[IndexPair],
    seconds: float,
    device: str,
    way: tuple[int, int, int],
) -> float:
    """Pairs per second of all workers together. `way` is (processes, Python threads each, torch threads each).

    Raises: RuntimeError if a process fails. The message has the end of its standard error.
    """
    processes, workers, threads = way
    options = "--keypoints", num_keypoints, "--pairs", *(f"{i}-{j}" for i, j in pairs), "--seconds", seconds
    sharing = "--device", device, "--workers", workers, "--threads", threads
    command = script("matching_worker.py", "throughput", engine, file, *options, *sharing)
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(processes)]
    for process in running:
        _stream(process.stdout).readline()  # `ready`, or nothing if the process ended
    for process in running:
        with contextlib.suppress(BrokenPipeError):
            _stream(process.stdin).write("go\n")
            _stream(process.stdin).flush()
    ended = [(*process.communicate(), process.returncode) for process in running]
    for _, errors, status in ended:
        if status:
            raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{errors[-2000:]}")
    return sum(last_json(output)["pairs_per_second"] for output, _, _ in ended)


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "throughput"))
    parser.add_argument("engine", choices=sorted(MATCHERS))
    parser.add_argument("features", type=Path)
    parser.add_argument("--keypoints", type=int, required=True)
    parser.add_argument("--pairs", type=index_pair, nargs="+", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workers", type=int, default=1, help="Python threads")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each Python thread")
    return parser.parse_args()


if __name__ == "__main__":
    main()
