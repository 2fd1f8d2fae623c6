"""What early rejection saves and costs: all photos of several places against each other.

    python benchmarks/early_rejection.py DATA OUT [--pairs 2000] [--keypoints 2048] [--trained-for superpoint-open]

DATA holds the photos and `retrieval_groups.txt` with lines `set/images/photo group`. Photos of one group show the same place.
Pairs inside a group may overlap. Pairs of different groups do not, and the benchmark takes a random sample of them (0 = all).
Both kinds are matched with and without `matches.early_rejection`, in low precision, by one thread. All matches are then verified.
A true pair is a pair inside a group that is verified without early rejection.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import torch
from measure import LOG, append_section, markdown_table, section

from sfm_lightglue.api import create_extractor, create_matcher
from sfm_lightglue.config import bind, compose_config
from sfm_lightglue.database import build_database
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.matches.stage import MatchingReport, match_pairs
from sfm_lightglue.products import Pair
from sfm_lightglue.storage import H5Reader


def read_groups(data: Path) -> dict[str, str]:
    """Photo, relative to `data`, -> the place that it shows."""
    lines = (data / "retrieval_groups.txt").read_text().splitlines()
    return dict(line.split() for line in lines if line.strip() and not line.startswith("#"))


def timed_matching(features: Path, pairs: list[Pair], output: Path, matcher: object) -> tuple[float, MatchingReport]:
    """CPU seconds a pair, everything included: reading, preparing each photo, writing."""
    start = time.process_time()
    report = match_pairs(features, pairs, output, matcher, num_workers=1, cache_mb=4000)  # type: ignore[arg-type]
    return (time.process_time() - start) / max(1, report.num_computed), report


def verified_pairs(data: Path, features: Path, matches: Path, pairs: list[Pair], output: Path) -> set[Pair]:
    options = bind(VerificationOptions, compose_config([]).geometries, "geometries")
    build_database(data, features, matches, pairs, output, options, intrinsics="exif", camera_model="SIMPLE_RADIAL")
    with H5Reader(output.with_name("verification.h5")) as verified:
        found = {pair: verified.num_inliers(pair.name0, pair.name1) for pair in pairs}
    return {pair for pair, num_inliers in found.items() if num_inliers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of different places to match, 0 for all")
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--trained-for", default="aliked")
    parser.add_argument("--results", type=Path, default=LOG)
    parser.add_argument("--no-append", action="store_true")
    arguments = parser.parse_args()
    groups, out = read_groups(arguments.data), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    extractor = create_extractor(arguments.trained_for.removesuffix("-open"), max_keypoints=arguments.keypoints)
    extract_features(arguments.data, out / "features.h5", extractor, names=sorted(groups))

    everything = [Pair(name0, name1) for name0, name1 in combinations(sorted(groups), 2)]
    kinds = defaultdict(list)
    for pair in everything:
        kinds["may overlap" if groups[pair.name0] == groups[pair.name1] else "no overlap"].append(pair)
    num_apart = len(kinds["no overlap"])
    if arguments.pairs:
        kinds["no overlap"] = sorted(random.Random(0).sample(kinds["no overlap"], min(arguments.pairs, num_apart)))

    torch.set_num_threads(1)
    seconds, layers, verified = {}, {}, {}
    for skip in (False, True):
        matcher = create_matcher("lightglue", trained_for=arguments.trained_for, precision="low", early_rejection=skip)
        for kind, pairs in kinds.items():
            name = f"{kind.replace(' ', '_')}_{'ended' if skip else 'full'}"
            seconds[kind, skip], report = timed_matching(out / "features.h5", pairs, out / f"{name}.h5", matcher)
            layers[kind, skip] = report.mean_stop_layer
            folder = out / name
            folder.mkdir(exist_ok=True)
            inputs = arguments.data, out / "features.h5", out / f"{name}.h5", pairs, folder / "database.db"
            verified[kind, skip] = verified_pairs(*inputs)
    rows = []
    for kind, pairs in kinds.items():
        before, after = verified[kind, False], verified[kind, True]
        rows.append(
            [
                f"{kind}, {len(pairs)}" + (f" of {num_apart}" if kind == "no overlap" else ""),
                *(f"{1e3 * seconds[kind, skip]:.0f}" for skip in (False, True)),
                f"{seconds[kind, False] / seconds[kind, True]:.2f}",
                f"{layers[kind, False]:.2f} / {layers[kind, True]:.2f}",
                f"{len(before)} / {len(after)}",
                f"{len(before - after)} ({100 * len(before - after) / max(1, len(before)):.2f} %)",
            ]
        )
    header = ["pairs", "CPU ms a pair", "ended early", "ratio", "layers, without / with", "verified", "verified pairs lost"]
    lost = [f"- {pair.name0} {pair.name1}" for pair in sorted(verified["may overlap", False] - verified["may overlap", True])]
    tables = [markdown_table(header, rows), *(["\n".join(["Lost:", "", *lost])] if lost else [])]
    settings = {
        "photos": f"{len(groups)} of {len(set(groups.values()))} places",
        "features": f"{arguments.trained_for}, {arguments.keypoints}",
    }
    text = section("Early rejection", settings, tables)
    print(text)
    if not arguments.no_append:
        append_section(arguments.results, text)


if __name__ == "__main__":
    main()
