"""Local features compared: the same matcher, number of keypoints and resolution for all, on photo sets with ground truth.

    python benchmarks/features.py DATA OUT [--features aliked disk sift xfeat superpoint] [--superpoint-weights FILE_OR_NAME]
        [--sets homography_seq,fountain_p11] [--matcher nearest_neighbor|lightglue] [--lightglue-weights FILE_OR_NAME]
        [--keypoints 2048] [--resize 1024]

DATA holds one folder a set, with `images/` and one of these beside it, which decides what is measured:

- `homographies.txt` (`A B h11 ... h33`, x_B ~ H x_A): keypoints and matches against the homographies.
- `correspondences.txt` (`A B xA yA xB yB`, points marked by hand, centre of the top-left pixel at (0, 0)): correct matches.
- `pairs.txt` and `poses.txt`: relative poses of these pairs.
- `pairs.txt` alone: their verified matches.
- `poses.txt` alone, or nothing: the set is reconstructed by the command line, as by photo_sets.py.

The set `different_places` is no folder: pairs of photos of different places (`retrieval_groups.txt` in DATA, and the pairs of
homographies and marked points), none of which should be verified.

OUT keeps features and matches for the next call; what was made with other settings or weights is computed anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from measure import RESULTS, append_section, cpu_seconds, markdown_table, section
from photo_pairs import (
    MatchedPair,
    corner_auc,
    different_places,
    homography_recall,
    listed_pairs,
    match_listed,
    matched_pairs,
    num_epipolar,
    num_verified,
    pose_auc,
    read_marked_pairs,
)
from photo_sets import reconstruct_set

from sfm_lightglue.config import compose_config
from sfm_lightglue.download import sha256_of
from sfm_lightglue.evaluation.matches import evaluate_matched_homographies
from sfm_lightglue.evaluation.pairs import read_homographies
from sfm_lightglue.networks.weights import WeightsRecord, find_weights
from sfm_lightglue.pipeline import Run
from sfm_lightglue.poses import read_poses
from sfm_lightglue.storage import H5Reader

KINDS = ("aliked", "disk", "sift", "xfeat", "superpoint")
DIFFERENT_PLACES = "different_places"
SETS = (
    *("homography_seq", "illumination_pairs4", "scannet_pairs15", "phototourism9", DIFFERENT_PLACES),
    *("fountain_p11", "herzjesu_p8", "lund_door12", "temple_sparse16", "tum_fr2_desk20", "sacre_coeur10"),
)
# Its scores are similarities of descriptors, which mean another thing for each kind of features, and most of its matches
# can be wrong: the verification looks at the geometry alone and takes COLMAP's own number of trials.
NEAREST_NEIGHBOR = (
    *("matches=nearest_neighbor", "matches.mutual=true", "matches.max_distance=null"),
    *("geometries.min_mean_score=0", "geometries.max_num_trials=10000"),
)
MAX_RATIO = 0.8
"""Of SIFT where the others have LightGlue: the classic baseline."""
DESCRIPTIONS = {
    "nearest_neighbor": "mutual nearest neighbours, no ratio test",
    "lightglue": f"LightGlue with the weights of each; sift: mutual nearest neighbours, ratio test {MAX_RATIO}",
}
Scores = Mapping[str, str]
"""Head of a column -> what stands in it."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    folders = [name for name in options.sets if name != DIFFERENT_PLACES]
    if missing := [name for name in folders if not (options.data / name / "images").is_dir()]:
        raise FileNotFoundError(f"{options.data} has no {missing[0]}/images: choose sets with --sets")
    tables = [table(options.data / name, options) for name in options.sets]
    text = section("Features", facts(options, options.features) | matcher_facts(options), tables)
    print(text)
    if options.results:
        append_section(options.results, text)


def facts(options: argparse.Namespace, kinds: Sequence[str]) -> dict[str, str]:
    """What was compared, and with which weights of the features."""
    told = {
        "features": f"at most {options.keypoints} keypoints, longest side {options.resize} px",
        "matches": DESCRIPTIONS[options.matcher],
    }
    if "superpoint" in kinds:
        path = find_weights(compose_config(overrides("superpoint", options)).features.weights)
        told["superpoint's weights"] = f"{path.name}, SHA-256 {sha256_of(path)[:12]}"
    if options.overrides:
        told["overrides"] = " ".join(options.overrides)
    return told


def matcher_facts(options: argparse.Namespace) -> dict[str, str]:
    """Weights of SuperPoint's matcher, where it is compared and has some."""
    if "superpoint" not in options.features:
        return {}
    matcher = Run(compose_config(overrides("superpoint", options))).matcher()
    return {"superpoint's weights of the matcher": "; ".join(map(weights_fact, matcher.weights))} if matcher.weights else {}


def weights_fact(weights: WeightsRecord) -> str:
    """Name and content of a file."""
    return f"{Path(weights.name).name}, SHA-256 {weights.sha256[:12]}"


def table(folder: Path, options: argparse.Namespace) -> str:
    """One set: a row for each kind of features."""
    score, rows = scoring(folder), {}
    for kind in options.features:
        start = cpu_seconds()
        rows[kind] = score(folder, output_of(kind, folder, options), overrides(kind, options))
        told = ", ".join(f"{key} {value}" for key, value in rows[kind].items())
        print(f"{folder.name}, {kind}: {told} ({cpu_seconds() - start:.0f} CPU s)", file=sys.stderr, flush=True)
    return markdown_table([folder.name, *next(iter(rows.values()))], [[kind, *row.values()] for kind, row in rows.items()])


def output_of(kind: str, folder: Path, options: argparse.Namespace) -> Path:
    """Where features and matches of a set are kept."""
    return options.out / f"{kind}_{options.matcher}" / folder.name


def overrides(kind: str, options: argparse.Namespace) -> list[str]:
    """Of the configuration, for one kind of features."""
    sizes = f"features.max_keypoints={options.keypoints}", f"features.resize_max={options.resize}"
    given = kind == "superpoint" and options.superpoint_weights
    weights = [f"features.weights={options.superpoint_weights}"] if given else []
    recompute = "execution.if_settings_changed=recompute"
    return [f"features={kind}", *sizes, *weights, *_matcher(kind, options), recompute, *options.overrides]


def _matcher(kind: str, options: argparse.Namespace) -> list[str]:
    if options.matcher == "nearest_neighbor":
        return [*NEAREST_NEIGHBOR, "matches.max_ratio=null"]
    if kind == "sift":
        return [*NEAREST_NEIGHBOR, f"matches.max_ratio={MAX_RATIO}"]
    given = kind == "superpoint" and options.lightglue_weights
    return ["matches=lightglue", *([f"matches.weights={options.lightglue_weights}"] if given else [])]


# --- what is measured ----------------------------------------------------------------------------------------------------


def scoring(folder: Path) -> Callable[[Path, Path, Sequence[str]], Scores]:
    """How a set is measured: by the ground truth that it has."""
    if folder.name == DIFFERENT_PLACES:
        return different_places_scores
    if (folder / "homographies.txt").exists():
        return homography_scores
    if (folder / "correspondences.txt").exists():
        return marked_scores
    if (folder / "pairs.txt").exists():
        return relative_pose_scores if (folder / "poses.txt").exists() else verified_scores
    return reconstruction_scores


def homography_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Means over the pairs: repeatability, precision and recall at 3 px, AUC of the corners' error under the estimated one."""
    homographies = read_homographies(folder / "homographies.txt")
    run = match_listed(folder / "images", out, overrides, homographies)
    found = matched_pairs(run, homographies)
    recalls = map(homography_recall, found, homographies.values())
    with H5Reader(run.features) as reader:
        counts = [len(reader.features(name)) for name in sorted({name for pair in homographies for name in pair})]
    scores = evaluate_matched_homographies(run.features, run.matches, homographies)
    return {
        "keypoints": f"{np.mean(counts):.0f}",
        "repeatability %": f"{100 * scores['repeatability_3px']:.1f}",
        "localisation px": _fixed(scores["localisation_error_px"], 2),
        **{f"AUC@{threshold} px": f"{area:.1f}" for threshold, area in corner_auc(found, homographies).items()},
        "precision %": f"{100 * scores['precision_3px']:.1f}",
        "recall %": f"{100 * np.nanmean(list(recalls)):.1f}",
        "matches": f"{scores['mean_matches']:.0f}",
    }


def relative_pose_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Of the poses that RANSAC finds from the matches, with the true intrinsics; matches on the true epipolar lines."""
    pairs = listed_pairs(folder / "pairs.txt")
    found = matched_pairs(match_listed(folder / "images", out, overrides, pairs), pairs)
    truth = read_poses(folder / "poses.txt")
    auc, num_failed = pose_auc(found, truth)
    correct = np.mean([num_epipolar(pair, truth) for pair in found])
    areas = {f"AUC@{threshold} deg": f"{area:.1f}" for threshold, area in auc.items()}
    return {**areas, "no pose": f"{num_failed:g}", "correct": f"{correct:.1f}", "matches": _mean_matches(found)}


def marked_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Number of correct matches of each pair (`MarkedPair.num_correct`), their mean, and the mean number of all matches."""
    pairs = read_marked_pairs(folder / "correspondences.txt")
    names = [(pair.name0, pair.name1) for pair in pairs]
    found = matched_pairs(match_listed(folder / "images", out, overrides, names), names)
    correct = {pair.label: pair.num_correct(*matched.points) for pair, matched in zip(pairs, found, strict=True)}
    columns = {label: f"{count:.0f}" for label, count in correct.items()}
    return {**columns, "mean correct": f"{np.mean(list(correct.values())):.1f}", "matches": _mean_matches(found)}


def verified_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Of pairs that show the same place, without ground truth: their verified matches."""
    pairs = listed_pairs(folder / "pairs.txt")
    run = match_listed(folder / "images", out, overrides, pairs)
    found = matched_pairs(run, pairs)
    counts = num_verified(run, found)
    return {
        "verified pairs": f"{np.count_nonzero(counts)}/{len(counts)}",
        "verified matches of each": " ".join(map(str, counts)),
        "mean": f"{np.mean(counts):.1f}",
        "matches": _mean_matches(found),
    }


def different_places_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Of pairs that show nothing in common: how many pass the verification all the same."""
    pairs = different_places(folder.parent)
    run = match_listed(folder.parent, out, overrides, pairs)
    found = matched_pairs(run, pairs)
    counts = num_verified(run, found)
    largest = max(len(pair.matches) for pair in found)
    false = {"false pairs": f"{np.count_nonzero(counts)}/{len(counts)}", "verified matches of these": f"{sum(counts)}"}
    return {**false, "matches": _mean_matches(found), "most matches": str(largest)}


def reconstruction_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Of the largest model; with poses the intrinsics are known."""
    result = reconstruct_set(folder, out, overrides)
    size = {"registered": f"{result.registered}/{result.num_images}", "points": str(result.num_points)}
    if result.auc is None:
        return {**size, "reprojection px": _fixed(result.reprojection_error_px, 2)}
    areas = {f"AUC@{threshold} deg": f"{result.auc[threshold]:.1f}" for threshold in ("1", "5")}
    return {**size, **areas, "mean position error": _fixed(result.position_error, 4)}


def _mean_matches(pairs: Sequence[MatchedPair]) -> str:
    return f"{np.mean([len(pair.matches) for pair in pairs]):.0f}"


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    return parser(__doc__).parse_args(arguments)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Of the arguments that lightglue.py has too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--features", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--superpoint-weights", metavar="FILE_OR_NAME", help="in the place of those of the configuration")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS), help="with commas between them")
    parser.add_argument("--matcher", choices=tuple(DESCRIPTIONS), default="nearest_neighbor")
    parser.add_argument("--lightglue-weights", metavar="FILE_OR_NAME", help="superpoint's, in the place of the default")
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--resize", type=int, default=1024, help="longest side, px")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="of the configuration of every run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to append to")
    parser.add_argument("--no-append", dest="results", action="store_const", const=None)
    return parser


if __name__ == "__main__":
    main()
