"""Benchmarks of LightGlue: compares features with their matchers, and measures what adaptivity saves and costs.

    python benchmarks/lightglue.py DATA OUT [--features superpoint aliked disk sift] [--lightglue-weights FILE_OR_NAME]
        [--sets homography_seq,fountain_p11] [--parts kinds adaptivity] [--adaptive superpoint] [--networks FILE_OR_NAME ...]
        [--depth off 0.9 0.95 0.99] [--width off 0.95 0.99] [--pairs 15]

The part `kinds` is features.py with `--matcher lightglue`. DATA, OUT and the figures are described there.

The part `adaptivity` matches pairs of `--adaptive-sets` with each combination of thresholds, and with each of `--networks` (by
default the network of the part `kinds`). It reports layers, share of dropped points, time and accuracy. Pairs of easy sets stop
early. LightGlue takes longest for pairs with little or nothing in common. Features are read from OUT. The time is the network's
alone, without the preparation of photos; on a CPU it is the CPU time of one thread.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import features
import numpy as np
from measure import append_section, clock_of, cpu_seconds, markdown_table, section
from photo_pairs import (
    SEED,
    MatchedPair,
    Names,
    corner_auc,
    different_places,
    extract_listed,
    listed_pairs,
    num_epipolar,
    num_verified,
    pose_auc,
    read_marked_pairs,
)

from sfm_lightglue.config import compose_config
from sfm_lightglue.engine.results import PairMatches
from sfm_lightglue.evaluation.pairs import homography_precision, read_homographies
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.threads import torch_threads
from sfm_lightglue.matches.lightglue import LightGlueMatcher
from sfm_lightglue.poses import PosedCamera, read_poses
from sfm_lightglue.products import Features, Matches
from sfm_lightglue.run_context import Run
from sfm_lightglue.storage import H5Reader

KINDS = ("superpoint", "aliked", "disk", "sift")
ADAPTIVE_SETS = (
    *("fountain_p11", "homography_seq", "scannet_pairs15"),
    *("illumination_pairs4", "phototourism9", features.DIFFERENT_PLACES),
)
MAIN = ("AUC@3 px", "AUC@10 deg", "correct", "verified matches", "false pairs")
"""Main scores. The table over all sets shows the first of these scores that a set has."""

PairScores = Callable[[Run, Sequence[MatchedPair]], Mapping[str, float]]


@dataclass(frozen=True)
class PairSet:
    """Pairs of a photo set, and the function that scores their matches."""

    images: Path
    pairs: Sequence[Names]
    scores: PairScores


@dataclass(frozen=True)
class Outcome:
    """Result of one set with one network and its thresholds."""

    found: Sequence[PairMatches]
    seconds: float
    scores: Mapping[str, float]

    @property
    def layers(self) -> float:
        return float(np.mean([pair.stop_layer for pair in self.found]))

    @property
    def dropped(self) -> float:
        """Share of the points that were dropped before the last layer of their pair."""
        reached = [(prune >= pair.stop_layer).numpy() for pair in self.found for prune in (pair.prune0, pair.prune1)]
        return 1 - float(np.mean(np.concatenate(reached)))

    @property
    def columns(self) -> dict[str, str]:
        cost = {"layers": f"{self.layers:.2f}", "dropped %": f"{100 * self.dropped:.1f}"}
        time = {"ms a pair": f"{1e3 * self.seconds / len(self.found):.0f}"}
        matches = {"matches": f"{np.mean([len(pair.indices) for pair in self.found]):.0f}"}
        return {**cost, **time, **matches, **{key: f"{value:.1f}" for key, value in self.scores.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    kinds = options.features if "kinds" in options.parts else []
    networks = load_networks(options) if "adaptivity" in options.parts else {}
    facts, tables = features.facts(options, [*kinds, *([options.adaptive] if networks else [])]), []
    if kinds:
        facts |= features.matcher_facts(options)
        tables += [features.table(options.data / name, options) for name in options.sets]
    if networks:
        facts["adaptivity"] = f"{options.adaptive}, at most {options.pairs} pairs a set; depth_confidence / width_confidence"
        weights = [record for network in networks.values() for record in network.weights]
        facts["adaptivity's weights"] = "; ".join(map(features.weights_fact, weights))
        with torch_threads(num_cores()):
            tables += adaptivity(networks, options)
    text = section("LightGlue", facts, tables)
    print(text)
    if options.results:
        append_section(options.results, text)


# --- adaptivity ----------------------------------------------------------------------------------------------------------


def adaptivity(networks: Mapping[str, LightGlueMatcher], options: argparse.Namespace) -> list[str]:
    """A table over all sets, then a table for each set. Each network and pair of thresholds has a row."""
    outcomes: dict[str, dict[tuple[str, ...], Outcome]] = {}
    for name in options.adaptive_sets:
        start, folder = cpu_seconds(), options.data / name
        outcomes[name] = outcomes_of_set(folder, networks, options)
        print(f"adaptivity, {name} ({cpu_seconds() - start:.0f} CPU s)", file=sys.stderr, flush=True)
    return [table_over_sets(outcomes), *(table_of_set(name, found) for name, found in outcomes.items())]


def load_networks(options: argparse.Namespace) -> dict[str, LightGlueMatcher]:
    """The networks of `--networks` by name, or the network of the part `kinds`."""
    given = features.overrides(options.adaptive, options)
    if not options.networks:
        return {"": load_network(given)}
    names = [Path(weights).name for weights in options.networks]
    labels = names if len(set(names)) == len(names) else options.networks
    found = [load_network([*given, f"matches.weights={weights}"]) for weights in options.networks]
    return dict(zip(labels, found, strict=True))


def load_network(overrides: Sequence[str]) -> LightGlueMatcher:
    """The LightGlue of the configuration. Raises: ValueError if the configuration has another matcher."""
    matcher = Run.create(compose_config(overrides)).matcher()
    if not isinstance(matcher, LightGlueMatcher):
        raise ValueError(f"adaptivity needs LightGlue, found the matcher {type(matcher).__name__}: do not override matches")
    return matcher


def outcomes_of_set(
    folder: Path, networks: Mapping[str, LightGlueMatcher], options: argparse.Namespace
) -> dict[tuple[str, ...], Outcome]:
    """The results by thresholds, and by network if there are several."""
    chosen = pair_set(folder, options.pairs)
    out = features.output_of(options.adaptive, folder, options)
    run = extract_listed(chosen.images, out, features.overrides(options.adaptive, options), chosen.pairs)
    with H5Reader(run.folder.features) as reader:
        photos = {name: reader.features(name) for name in sorted({name for pair in chosen.pairs for name in pair})}
    outcomes = {}
    for name, matcher in networks.items():
        states = {photo: matcher.prepare(found) for photo, found in photos.items()}
        pairs = [(states[name0], states[name1]) for name0, name1 in chosen.pairs]
        matcher.match_many(pairs[: matcher.batch_size])  # the first call takes longer
        for depth, width in itertools.product(options.depth, options.width):
            found, seconds = timed(matcher, pairs, depth, width)
            matched = [_matched(photos, names, pair) for names, pair in zip(chosen.pairs, found, strict=True)]
            key = *([name] if len(networks) > 1 else []), f"{_threshold(depth)} / {_threshold(width)}"
            outcomes[key] = Outcome(found, seconds, chosen.scores(run, matched))
    return outcomes


def timed(matcher: LightGlueMatcher, pairs: Sequence[tuple], depth: float, width: float) -> tuple[list[PairMatches], float]:
    """The matches that the engine finds with the thresholds, and the time in seconds."""
    matcher.engine.settings = replace(matcher.engine.settings, depth_confidence=depth, width_confidence=width)
    clock, found = clock_of(matcher.device), []
    start = clock()
    for first in range(0, len(pairs), matcher.batch_size):
        found += matcher.engine.match_many(pairs[first : first + matcher.batch_size])
    return found, clock() - start


def table_over_sets(outcomes: Mapping[str, Mapping[tuple[str, ...], Outcome]]) -> str:
    """The table over all sets: pairs per second and layers over all pairs, and the main score of each set."""
    main_scores = {
        name: next(key for key in MAIN if key in next(iter(found.values())).scores) for name, found in outcomes.items()
    }
    rows = []
    for key in next(iter(outcomes.values())):
        each = [found[key] for found in outcomes.values()]
        count, seconds = sum(len(outcome.found) for outcome in each), sum(outcome.seconds for outcome in each)
        layers = sum(outcome.layers * len(outcome.found) for outcome in each) / count
        scores = [f"{outcome.scores[main_scores[name]]:.1f}" for name, outcome in zip(outcomes, each, strict=True)]
        rows.append([", ".join(key), f"{count / seconds:.2f}", f"{layers:.2f}", *scores])
    return markdown_table(["all", "pairs/s", "layers", *(f"{name} {main}" for name, main in main_scores.items())], rows)


def table_of_set(name: str, outcomes: Mapping[tuple[str, ...], Outcome]) -> str:
    """The table of one set, with all figures."""
    head = next(iter(outcomes.values())).columns
    return markdown_table([name, *head], [[", ".join(key), *found.columns.values()] for key, found in outcomes.items()])


def _matched(photos: Mapping[str, Features], names: Names, found: PairMatches) -> MatchedPair:
    indices = found.indices.numpy().astype(np.int32)
    return MatchedPair(photos[names[0]], photos[names[1]], Matches(indices, found.scores.numpy(), found.stop_layer))


def _threshold(value: float) -> str:
    return "off" if value < 0 else f"{value:g}"


# --- what is measured ----------------------------------------------------------------------------------------------------


def pair_set(folder: Path, count: int) -> PairSet:
    """At most `count` pairs of a set, the same each time. The ground truth of the set decides how they are scored."""

    def some(pairs: Sequence[Names]) -> list[Names]:
        return sorted(random.Random(SEED).sample(pairs, min(count, len(pairs))))

    images, listed = folder / "images", folder / "pairs.txt"
    if folder.name == features.DIFFERENT_PLACES:
        return PairSet(folder.parent, some(different_places(folder.parent)), false_scores)
    if (folder / "homographies.txt").exists():
        homographies = read_homographies(folder / "homographies.txt")
        return PairSet(images, some(list(homographies)), planar_scores(homographies))
    if (folder / "correspondences.txt").exists():
        return PairSet(images, some(listed_pairs(folder / "correspondences.txt")), marked_scores(folder / "correspondences.txt"))
    if (folder / "poses.txt").exists():
        truth = read_poses(folder / "poses.txt")
        pairs = listed_pairs(listed) if listed.exists() else list(itertools.combinations(sorted(truth), 2))
        return PairSet(images, some(pairs), posed_scores(truth))
    return PairSet(images, some(listed_pairs(listed)), verified_scores)


def planar_scores(homographies: Mapping[Names, np.ndarray]) -> PairScores:
    """AUC of the corner error, and the mean number of matches within 3 px."""

    def scores(_: Run, pairs: Sequence[MatchedPair]) -> dict[str, float]:
        auc = corner_auc(pairs, homographies)
        correct = [len(pair.matches) * homography_precision(*pair.points, homographies[pair.names]) for pair in pairs]
        return {**{f"AUC@{threshold} px": auc[threshold] for threshold in ("3", "5")}, "correct": float(np.mean(correct))}

    return scores


def posed_scores(truth: Mapping[str, PosedCamera]) -> PairScores:
    """AUC of the relative poses, and the mean number of matches on the true epipolar lines (`num_epipolar`)."""

    def scores(_run: Run, pairs: Sequence[MatchedPair]) -> dict[str, float]:
        auc, _ = pose_auc(pairs, truth)
        correct = [num_epipolar(pair, truth) for pair in pairs]
        return {**{f"AUC@{threshold} deg": area for threshold, area in auc.items()}, "correct": float(np.mean(correct))}

    return scores


def marked_scores(path: Path) -> PairScores:
    """Mean number of correct matches, judged by the points marked by hand."""
    marked = {(pair.name0, pair.name1): pair for pair in read_marked_pairs(path)}

    def scores(_: Run, pairs: Sequence[MatchedPair]) -> dict[str, float]:
        return {"correct": float(np.mean([marked[pair.names].num_correct(*pair.points) for pair in pairs]))}

    return scores


def verified_scores(run: Run, pairs: Sequence[MatchedPair]) -> dict[str, float]:
    """Number of verified pairs, and mean number of verified matches."""
    counts = num_verified(run, pairs)
    return {"verified pairs": float(np.count_nonzero(counts)), "verified matches": float(np.mean(counts))}


def false_scores(run: Run, pairs: Sequence[MatchedPair]) -> dict[str, float]:
    """Number of pairs that are verified by mistake."""
    return {"false pairs": float(np.count_nonzero(num_verified(run, pairs)))}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = features.parser(__doc__)
    parser.set_defaults(matcher="lightglue", features=list(KINDS))

    def threshold(text: str) -> float:
        return -1.0 if text in ("off", "-1") else float(text)

    parser.add_argument("--parts", nargs="+", choices=("kinds", "adaptivity"), default=["kinds", "adaptivity"])
    parser.add_argument("--adaptive", choices=[kind for kind in features.KINDS if kind != "sift"], default="superpoint")
    parser.add_argument("--adaptive-sets", type=lambda text: text.split(","), default=list(ADAPTIVE_SETS))
    parser.add_argument("--networks", nargs="+", metavar="FILE_OR_NAME", help="LightGlue weights for the features of --adaptive")
    parser.add_argument("--depth", nargs="+", type=threshold, default=[-1.0, 0.9, 0.95, 0.99])
    parser.add_argument("--width", nargs="+", type=threshold, default=[-1.0, 0.95, 0.99])
    parser.add_argument("--pairs", type=int, default=15, help="number of pairs of each set, for adaptivity")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
