"""Speed of LightGlue on stored features: this package compared with the original code, kornia and transformers.

    python benchmarks/matching.py DATA [--keypoints 512 1024 2048 4096] [--engines NAME ...] [--rounds 5] [--device cpu]

DATA holds `fountain_p11/images`. README.md beside this file describes how the figures are measured, and more options.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matchers import DESCRIPTIONS, MATCHERS, Found, PairMatcher, default_matchers
from matching_worker import NUM_PHOTOS, USES, IndexPair, index_pair, load_features, measure_throughput
from measure import LOG, append_section, clock_of, last_json, markdown_table, run_process, script, section

from sfm_lightglue.api import create_extractor
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.products import Features

logger = logging.getLogger(__name__)

PHOTOS = "fountain_p11/images"
PAIRS_12 = ((0, 1), (3, 4), (7, 8), (2, 4), (3, 5), (4, 7), (7, 9), (0, 5), (1, 6), (3, 9), (0, 8), (0, 10))
"""Pairs of photos, from neighbours to the widest baseline."""
PAIRS_4 = ((0, 1), (2, 4), (7, 9), (3, 9))
MEMORY_PAIR = (3, 9)
"""The pair that needs most layers, out of the four pairs above."""


@dataclass(frozen=True)
class Timings:
    """Times of one matcher in seconds, for each round and call."""

    prepare: np.ndarray
    """float64 (rounds, calls): preparing one image, as the mean over the images of the call."""
    match: np.ndarray
    """float64 (rounds, calls): matching all pairs of the call."""
    num_pairs: int
    """Number of pairs in all calls."""

    @property
    def match_seconds(self) -> float:
        """Seconds per pair without preparing its images: medians over the rounds, summed over the calls."""
        return float(np.median(self.match, axis=0).sum()) / self.num_pairs

    @property
    def prepare_seconds(self) -> float:
        """Seconds to prepare an image."""
        return float(np.median(self.prepare, axis=0).mean())

    def pair_seconds(self, uses: int) -> float:
        """Seconds per pair, including the preparation of its two images, if each image is in `uses` pairs."""
        return self.match_seconds + 2 * self.prepare_seconds / uses


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(1)
    names = options.engines or default_matchers(options.device)
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(options.cache or temporary)
        for num_keypoints in options.keypoints:
            file = features_file(options.data, cache, num_keypoints)
            pairs = options.pairs or default_pairs(num_keypoints)
            if options.throughput:
                text = throughput_section(names, file, num_keypoints, pairs, options)
            else:
                text = timing_section(names, file, num_keypoints, pairs, options)
            print(text, flush=True)
            if options.results:
                append_section(options.results, text)


def timing_section(
    names: Sequence[str], file: Path, num_keypoints: int, pairs: Sequence[IndexPair], options: argparse.Namespace
) -> str:
    """The tables for one number of keypoints, one table for each batch size."""
    features = load_features(file, num_keypoints)
    matchers = create_matchers(names, options.device, strict=bool(options.engines))
    memory = measure_memory(list(matchers), file, num_keypoints, pairs, options.device) if options.memory else {}
    tables = []
    for batch in options.batch:
        calls = in_batches(pairs, batch)
        found = {name: match_all(matcher, features, calls) for name, matcher in matchers.items()}
        timings = measure(matchers, features, calls, options.rounds, clock_of(options.device))
        tables.append(comparison_table(timings, found, features, calls, memory, f"{batch} a call"))
    unit = "process CPU time, one thread" if options.device == "cpu" else "wall time between synchronisations"
    settings = {
        "features": described(features),
        "pairs": f"{len(pairs)}: {' '.join(f'{i}-{j}' for i, j in pairs)}",
        "time": f"{unit}; medians of {options.rounds} rounds, engines in turn for each call",
        "charged": f"1/{USES} of preparing both images to each pair; `x official, alone` charges all of it",
    }
    return section(f"Matching, {num_keypoints} keypoints, {options.device}", settings, tables, options.device)


def throughput_section(
    names: Sequence[str], file: Path, num_keypoints: int, pairs: Sequence[IndexPair], options: argparse.Namespace
) -> str:
    """Pairs per second on all cores, for three ways to share the cores."""
    cores = num_cores()
    ways: tuple[tuple[int, int, int], ...] = ((1, 1, cores), (1, cores, 1), (cores, 1, 1)) if cores > 1 else ((1, 1, 1),)
    if options.device != "cpu":
        ways = ((1, 1, 1), (1, 2, 1))
    rows = []
    for name in names:
        try:
            rates = [
                measure_throughput(name, file, num_keypoints, pairs, options.throughput, options.device, way) for way in ways
            ]
        except RuntimeError as error:
            if options.engines:
                raise
            logger.warning("%s is left out: %s", name, str(error).strip().splitlines()[-1])
            continue
        rows.append([DESCRIPTIONS[name], *(f"{rate:.2f}" for rate in rates)])
    titles = [f"{processes} x {workers} x {threads}" for processes, workers, threads in ways]
    settings = {
        "features": described(load_features(file, num_keypoints)),
        "pairs": f"{len(pairs)}, in whole rounds for at least {options.throughput:g} s of wall time",
        "columns": "pairs/s by processes x Python threads x torch threads",
        "charged": f"an image is prepared anew after {USES} uses",
    }
    table = markdown_table(["engine", *titles], rows)
    return section(f"Matching throughput, {num_keypoints} keypoints, {options.device}", settings, [table], options.device)


# --- measuring -----------------------------------------------------------------------------------------------------------


def create_matchers(names: Sequence[str], device: str, *, strict: bool) -> dict[str, PairMatcher]:
    """The matchers by name. If not `strict`, matchers without their package are left out."""
    matchers = {}
    for name in names:
        try:
            matchers[name] = MATCHERS[name](device)
        except ImportError as error:  # includes PackageNotFoundError
            if strict:
                raise
            logger.warning("%s is left out: %s", name, error)
    return matchers


def match_all(matcher: PairMatcher, features: Sequence[Features], calls: Sequence[Sequence[IndexPair]]) -> list[Found]:
    """Matches of all pairs. This also warms up everything that is made at first use."""
    with torch.inference_mode():
        prepared = {i: matcher.prepare(features[i]) for i in images_of(itertools.chain.from_iterable(calls))}
        return [found for call in calls for found in matcher.match([(prepared[i], prepared[j]) for i, j in call])]


@torch.inference_mode()
def measure(
    matchers: Mapping[str, PairMatcher],
    features: Sequence[Features],
    calls: Sequence[Sequence[IndexPair]],
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, Timings]:
    """Times of all matchers. Their order rotates from call to call, so that other load on the machine affects all equally."""
    prepare = {name: np.zeros((rounds, len(calls))) for name in matchers}
    match = {name: np.zeros((rounds, len(calls))) for name in matchers}
    names = list(matchers)
    for round_, (number, call) in itertools.product(range(rounds), enumerate(calls)):
        turn = (round_ + number) % len(names)
        images = images_of(call)
        for name in names[turn:] + names[:turn]:
            matcher = matchers[name]
            start = clock()
            prepared = {i: matcher.prepare(features[i]) for i in images}
            middle = clock()
            matcher.match([(prepared[i], prepared[j]) for i, j in call])
            prepare[name][round_, number] = (middle - start) / len(images)
            match[name][round_, number] = clock() - middle
    num_pairs = sum(len(call) for call in calls)
    return {name: Timings(prepare[name], match[name], num_pairs) for name in names}


def measure_memory(
    names: Sequence[str], file: Path, num_keypoints: int, pairs: Sequence[IndexPair], device: str
) -> dict[str, float]:
    """Extra memory, MB, for matching one pair. Each matcher runs in its own process."""
    pair = MEMORY_PAIR if MEMORY_PAIR in pairs else pairs[0]
    arguments = file, "--keypoints", num_keypoints, "--device", device, "--pairs", "{}-{}".format(*pair)
    return {
        name: last_json(run_process(script("matching_worker.py", "memory", name, *arguments)).output)["extra_mb"]
        for name in names
    }


# --- comparing -----------------------------------------------------------------------------------------------------------


def comparison_table(
    timings: Mapping[str, Timings],
    found: Mapping[str, Sequence[Found]],
    features: Sequence[Features],
    calls: Sequence[Sequence[IndexPair]],
    memory: Mapping[str, float],
    title: str,
) -> str:
    """One row for each matcher."""
    images0 = [features[i] for call in calls for i, _ in call]
    header = [title, "pairs/s", "x official", "x official, alone", "x kornia", "ms an image", "same as official"]
    header += ["keypoints as kornia", "layers", "extra MB"]
    rows = []
    for name, timing in timings.items():
        ratios = [
            f"{timings[peer].pair_seconds(uses) / timing.pair_seconds(uses):.2f}" if peer in timings else "-"
            for peer, uses in (("official", USES), ("official", 1), ("kornia", USES))
        ]
        row = [DESCRIPTIONS[name], f"{1 / timing.pair_seconds(USES):.2f}", *ratios, f"{1000 * timing.prepare_seconds:.1f}"]
        row.append(f"{common_share(found[name], found['official']):.4f}" if "official" in found else "-")
        row.append(f"{equal_share(found[name], found['kornia'], images0):.4f}" if "kornia" in found else "-")
        row.append(f"{np.mean([pair.stop_layer for pair in found[name]]):.2f}")
        rows.append([*row, f"{memory[name]:.0f}" if name in memory else "-"])
    return markdown_table(header, rows)


def common_share(found: Sequence[Found], expected: Sequence[Found]) -> float:
    """|A and B| / |A or B| of the two sets of matches of a pair, averaged over the pairs. It is 1 if both sets are empty."""
    shares = []
    for pair, reference in zip(found, expected, strict=True):
        matches, others = ({tuple(row) for row in result.indices.tolist()} for result in (pair, reference))
        shares.append(len(matches & others) / len(matches | others) if matches | others else 1.0)
    return float(np.mean(shares))


def equal_share(found: Sequence[Found], expected: Sequence[Found], images0: Sequence[Features]) -> float:
    """Share of the keypoints of image 0 with the same partner, or without one, in both results; mean over the pairs."""
    shares = []
    for pair, reference, image0 in zip(found, expected, images0, strict=True):
        dense = np.full((2, len(image0)), -1)
        for row, result in zip(dense, (pair, reference), strict=True):
            row[result.indices[:, 0]] = result.indices[:, 1]
        shares.append((dense[0] == dense[1]).mean())
    return float(np.mean(shares))


# --- input ---------------------------------------------------------------------------------------------------------------


def features_file(data: Path, cache: Path, num_keypoints: int) -> Path:
    """File of ALIKED's features of all photos, strongest first. Up to 2048 come from 1024 px, more from 1600 px."""
    resize_max, max_keypoints = (1024, max(2048, num_keypoints)) if num_keypoints <= 2048 else (1600, max(4096, num_keypoints))
    file = cache / f"aliked_{resize_max}_{max_keypoints}.h5"
    extractor = create_extractor("aliked", device="cpu", resize_max=resize_max, max_keypoints=max_keypoints)
    extract_features(data / PHOTOS, file, extractor, if_settings_changed="recompute")  # existing features are kept
    return file


def default_pairs(num_keypoints: int) -> Sequence[IndexPair]:
    return PAIRS_12 if num_keypoints <= 512 else PAIRS_4


def in_batches(pairs: Sequence[IndexPair], batch: int) -> list[list[IndexPair]]:
    """Calls of `batch` pairs each. Pairs are repeated until the last call is full."""
    count = -(-len(pairs) // batch) * batch
    repeated = [pairs[k % len(pairs)] for k in range(count)]
    return [repeated[k : k + batch] for k in range(0, count, batch)]


def images_of(pairs: itertools.chain[IndexPair] | Sequence[IndexPair]) -> list[int]:
    return sorted({image for pair in pairs for image in pair})


def described(features: Sequence[Features]) -> str:
    counts = sorted({len(image) for image in features})
    return f"ALIKED n16 of {PHOTOS}, {counts[0]} to {counts[-1]} keypoints, float32 from float16 on disk"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--keypoints", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--engines", nargs="+", choices=sorted(MATCHERS), help="default: all installed ones")
    parser.add_argument(
        "--pairs", type=index_pair, nargs="+", metavar="I-J", help="default: 12 pairs at 512 keypoints, 4 pairs above"
    )
    parser.add_argument("--all-pairs", action="store_true", help="the 55 pairs of the 11 photos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="pairs per call")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--throughput", type=float, metavar="SECONDS", help="measure pairs/s on all cores instead, wall time")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features for the next call")
    parser.add_argument("--results", type=Path, default=LOG, help="file to append to")
    parser.add_argument("--no-append", dest="results", action="store_const", const=None)
    options = parser.parse_args(arguments)
    if options.all_pairs:
        options.pairs = list(itertools.combinations(range(NUM_PHOTOS), 2))
    return options


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s")
    main()
