"""Compares local features on photo sets with ground truth: same number of keypoints, same longest side, same kind of matcher.

    python benchmarks/features.py DATA OUT [--features aliked disk sift xfeat superpoint raco] [--superpoint-weights FILE_OR_NAME]
        [--sets homography_seq,fountain_p11] [--matcher nearest_neighbor|lightglue] [--lightglue-weights FILE_OR_NAME]
        [--keypoints 2048] [--resize 1024] [--enlarge default 2]

DATA holds one folder per set. Each has `images/`, and one of these files beside it decides what is measured:

- `homographies.txt` (`A B h11 ... h33`, x_B ~ H x_A): keypoints and matches, compared with the homographies.
- `correspondences.txt` (`A B xA yA xB yB`, points marked by hand, centre of the top-left pixel at (0, 0)): number of correct
  matches.
- `pairs.txt` and `poses.txt`: the relative poses of these pairs.
- `pairs.txt` alone: the verified matches of these pairs.
- `poses.txt` alone, or none: the command line reconstructs the set, as in photo_sets.py.

Three sets have no folder of their own:

- `different_places`: none of its pairs should be verified. They come from `retrieval_groups.txt` in DATA, and from the pairs of
  homographies and marked points.
- `hard_light14`: the pairs of `light_pairs10` and `illumination_pairs4`; see hard_light.py.
- `aligned_series`: photos of fixed cameras, in `train_photos_light/aligned`; see aligned_series.py.

Small photos are enlarged by default as each kind of features says. `--enlarge default 2` measures a second time with the same
limit for all kinds.

OUT keeps features and matches for the next call. They are computed again if settings or weights change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aligned_series import ALIGNED_SERIES, SCENES, aligned_scores
from hard_light import HARD_LIGHT, SOURCES, hard_light_geometries, hard_light_scores
from measure import LOG, append_section, cpu_seconds, markdown_table, section
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
from sfm_lightglue.evaluation.matches import evaluate_matched_homographies
from sfm_lightglue.evaluation.pairs import read_homographies
from sfm_lightglue.files import sha256_of
from sfm_lightglue.networks.weights import WeightsRecord, find_weights
from sfm_lightglue.poses import read_poses
from sfm_lightglue.run_context import Run
from sfm_lightglue.storage import H5Reader

KINDS = ("aliked", "disk", "sift", "xfeat", "superpoint", "raco")
DEFAULT_KINDS = tuple(kind for kind in KINDS if kind != "raco")
"""RaCo's weights are on no package index, so they are not always at hand."""
DIFFERENT_PLACES = "different_places"
SETS = (
    *("homography_seq", "illumination_pairs4", "scannet_pairs15", "phototourism9", DIFFERENT_PLACES),
    *(HARD_LIGHT, ALIGNED_SERIES),
    *("fountain_p11", "herzjesu_p8", "lund_door12", "temple_sparse16", "tum_fr2_desk20", "sacre_coeur10"),
)
FOLDERS = {DIFFERENT_PLACES: (), HARD_LIGHT: tuple(f"{name}/images" for name in SOURCES), ALIGNED_SERIES: SCENES}
"""Folders in DATA that the sets without a folder of their own need."""
OWN = "default"
"""Value of --enlarge: the enlargement that the configuration of the features gives."""
# The scores of nearest neighbours are similarities of descriptors, which differ between kinds of features, and most matches may
# be wrong. The verification therefore uses the geometry alone, and COLMAP's own number of trials.
NEAREST_NEIGHBOR = (
    *("matches=nearest_neighbor", "matches.mutual=true", "matches.max_distance=null"),
    *("geometries.min_mean_score=0", "geometries.max_num_trials=10000"),
)
MAX_RATIO = 0.8
"""Ratio test of SIFT when the other features are matched by LightGlue: the classic baseline."""
DESCRIPTIONS = {
    "nearest_neighbor": "mutual nearest neighbours, no ratio test",
    "lightglue": f"LightGlue with the weights of each; sift: mutual nearest neighbours, ratio test {MAX_RATIO}",
}
Scores = Mapping[str, str]
"""Head of a column -> text of the cell."""


@dataclass(frozen=True)
class Row:
    """A kind of features with a limit of the enlargement: a row of each table."""

    kind: str
    enlarge: str
    """A value of --enlarge."""
    enlargement: str
    """Largest factor by which small photos are enlarged, and whether it is the default of this kind."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    folders = [folder for name in options.sets for folder in FOLDERS.get(name, (f"{name}/images",))]
    if missing := [folder for folder in folders if not (options.data / folder).is_dir()]:
        raise FileNotFoundError(f"{options.data} has no {missing[0]}: choose sets with --sets")
    tables = [table(options.data / name, options) for name in options.sets]
    text = section("Features", facts(options, options.features) | matcher_facts(options), tables)
    print(text)
    if options.results:
        append_section(options.results, text)


def facts(options: argparse.Namespace, kinds: Sequence[str]) -> dict[str, str]:
    """What was compared, and the weights of the features."""
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
    """The weights of SuperPoint's matcher, if SuperPoint is compared and its matcher has weights."""
    if "superpoint" not in options.features:
        return {}
    matcher = Run.create(compose_config(overrides("superpoint", options))).matcher()
    return {"superpoint's weights of the matcher": "; ".join(map(weights_fact, matcher.weights))} if matcher.weights else {}


def weights_fact(weights: WeightsRecord) -> str:
    """Name and hash of a file of weights."""
    return f"{Path(weights.name).name}, SHA-256 {weights.sha256[:12]}"


def table(folder: Path, options: argparse.Namespace) -> str:
    """The table of one set, with a row for each kind of features and each limit of the enlargement."""
    measure = hard_light_geometries if folder.name == HARD_LIGHT else scoring(folder)
    found: dict[Row, Any] = {}
    for row in rows_of(options):
        start = cpu_seconds()
        found[row] = measure(folder, output_of(row.kind, folder, options, row.enlarge), overrides(row.kind, options, row.enlarge))
        told = ", ".join(f"{key} {value}" for key, value in columns(folder, {row: found[row]})[row].items())
        which = f"{folder.name}, {row.kind}, largest enlargement {row.enlargement}"
        print(f"{which}: {told} ({cpu_seconds() - start:.0f} CPU s)", file=sys.stderr, flush=True)
    rows = columns(folder, found)
    header = [folder.name, "largest enlargement", *next(iter(rows.values()))]
    return markdown_table(header, [[row.kind, row.enlargement, *cells.values()] for row, cells in rows.items()])


def columns(folder: Path, found: Mapping[Row, Any]) -> Mapping[Row, Scores]:
    """The cells of each row. Those of `hard_light14` also compare the kinds of features."""
    if folder.name != HARD_LIGHT:
        return found
    others = {row: [found[other] for other in found if other.kind != row.kind] for row in found}
    return {row: hard_light_scores(pairs, others[row]) for row, pairs in found.items()}


def rows_of(options: argparse.Namespace) -> list[Row]:
    """The rows of each table. A limit that is also the default of a kind gives one row."""
    rows: dict[tuple[str, float], Row] = {}
    for enlarge in options.enlarge:
        for kind in options.features:
            factor, default = (
                float(compose_config(given).features.enlarge_max)
                for given in (overrides(kind, options, enlarge), [f"features={kind}"])
            )
            told = f"{factor:g}{' (default)' if factor == default else ''}"
            rows.setdefault((kind, factor), Row(kind, enlarge, told))
    return list(rows.values())


def output_of(kind: str, folder: Path, options: argparse.Namespace, enlarge: str = OWN) -> Path:
    """The folder that keeps the features and matches of a set."""
    return options.out / f"{kind}_{options.matcher}{'' if enlarge == OWN else f'_enlarge{enlarge}'}" / folder.name


def overrides(kind: str, options: argparse.Namespace, enlarge: str = OWN) -> list[str]:
    """Overrides of the configuration for one kind of features."""
    sizes = [f"features.max_keypoints={options.keypoints}", f"features.resize_max={options.resize}"]
    if enlarge != OWN:
        sizes.append(f"features.enlarge_max={enlarge}")
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
    """The function that measures a set. The ground truth of the set decides."""
    if folder.name == DIFFERENT_PLACES:
        return different_places_scores
    if folder.name == ALIGNED_SERIES:
        return aligned_scores
    if (folder / "homographies.txt").exists():
        return homography_scores
    if (folder / "correspondences.txt").exists():
        return marked_scores
    if (folder / "pairs.txt").exists():
        return relative_pose_scores if (folder / "poses.txt").exists() else verified_scores
    return reconstruction_scores


def homography_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Means over the pairs: repeatability, precision and recall at 3 px, AUC of the corner error of estimated homographies."""
    homographies = read_homographies(folder / "homographies.txt")
    run = match_listed(folder / "images", out, overrides, homographies)
    found = matched_pairs(run, homographies)
    recalls = map(homography_recall, found, homographies.values())
    with H5Reader(run.folder.features) as reader:
        counts = [len(reader.features(name)) for name in sorted({name for pair in homographies for name in pair})]
    scores = evaluate_matched_homographies(run.folder.features, run.folder.matches, homographies)
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
    """AUC of the poses that RANSAC finds with the true intrinsics, and the matches on the true epipolar lines."""
    pairs = listed_pairs(folder / "pairs.txt")
    found = matched_pairs(match_listed(folder / "images", out, overrides, pairs), pairs)
    truth = read_poses(folder / "poses.txt")
    auc, num_failed = pose_auc(found, truth)
    correct = np.mean([num_epipolar(pair, truth) for pair in found])
    areas = {f"AUC@{threshold} deg": f"{area:.1f}" for threshold, area in auc.items()}
    return {**areas, "no pose": f"{num_failed:g}", "correct": f"{correct:.1f}", "matches": _mean_matches(found)}


def marked_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Number of correct matches of each pair (`MarkedPair.num_correct`), their mean, and the mean number of matches."""
    pairs = read_marked_pairs(folder / "correspondences.txt")
    names = [(pair.name0, pair.name1) for pair in pairs]
    found = matched_pairs(match_listed(folder / "images", out, overrides, names), names)
    correct = {pair.label: pair.num_correct(*matched.points) for pair, matched in zip(pairs, found, strict=True)}
    columns = {label: f"{count:.0f}" for label, count in correct.items()}
    return {**columns, "mean correct": f"{np.mean(list(correct.values())):.1f}", "matches": _mean_matches(found)}


def verified_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """The verified matches of pairs that show the same place, without ground truth."""
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
    """Number of pairs without a common place that are verified by mistake."""
    pairs = different_places(folder.parent)
    run = match_listed(folder.parent, out, overrides, pairs)
    found = matched_pairs(run, pairs)
    counts = num_verified(run, found)
    largest = max(len(pair.matches) for pair in found)
    false = {"false pairs": f"{np.count_nonzero(counts)}/{len(counts)}", "verified matches of these": f"{sum(counts)}"}
    return {**false, "matches": _mean_matches(found), "most matches": str(largest)}


def reconstruction_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Figures of the largest model. If the set has poses, its intrinsics are known."""
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


def _enlargement(text: str) -> str:
    """A value of --enlarge. Raises: argparse.ArgumentTypeError if it is neither `default` nor a factor from 1."""
    if text != OWN:
        try:
            if not 1 <= float(text) < float("inf"):
                raise ValueError
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {OWN}, or a factor from 1, found {text!r}") from None
    return text


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    return parser(__doc__).parse_args(arguments)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of the arguments that this script shares with lightglue.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--features", nargs="+", choices=KINDS, default=list(DEFAULT_KINDS))
    parser.add_argument("--superpoint-weights", metavar="FILE_OR_NAME", help="instead of the weights of the configuration")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS), help="separated by commas")
    parser.add_argument("--matcher", choices=tuple(DESCRIPTIONS), default="nearest_neighbor")
    parser.add_argument("--lightglue-weights", metavar="FILE_OR_NAME", help="weights for superpoint, instead of the default")
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--resize", type=int, default=1024, help="longest side, px")
    parser.add_argument(
        "--enlarge",
        nargs="+",
        type=_enlargement,
        default=[OWN],
        metavar="FACTOR",
        help="largest factor by which smaller photos are enlarged, up to --resize; 1: never; default: as each kind is configured",
    )
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="overrides for every run")
    parser.add_argument("--results", type=Path, default=LOG, help="file to append to")
    parser.add_argument("--no-append", dest="results", action="store_const", const=None)
    return parser


if __name__ == "__main__":
    main()
