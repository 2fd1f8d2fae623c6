"""Local features compared: the same matcher, number of keypoints and resolution for all, on photo sets with ground truth.

    python benchmarks/features.py DATA OUT [--features aliked disk sift xfeat superpoint] [--superpoint-weights FILE_OR_NAME]
        [--sets homography_seq,fountain_p11] [--matcher nearest_neighbor|lightglue] [--keypoints 2048] [--resize 1024]

DATA holds one folder a set, with `images/` and one of these beside it, which decides what is measured:

- `homographies.txt` (`A B h11 ... h33`, x_B ~ H x_A): keypoints and matches against the homographies.
- `correspondences.txt` (`A B xA yA xB yB`, points marked by hand, centre of the top-left pixel at (0, 0)): correct matches.
- `pairs.txt` and `poses.txt`: relative poses of these pairs.
- `poses.txt` alone, or nothing: the set is reconstructed by the command line, as by photo_sets.py.

OUT keeps features and matches for the next call; what was made with other settings or weights is computed anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from measure import RESULTS, append_section, markdown_table, section
from photo_sets import reconstruct_set

from sfm_lightglue.config import compose_config
from sfm_lightglue.evaluation.matches import evaluate_matched_homographies, evaluate_matched_poses
from sfm_lightglue.evaluation.pairs import read_homographies
from sfm_lightglue.evaluation.poses import read_poses
from sfm_lightglue.fetch import sha256_of
from sfm_lightglue.geometry import sampson_error
from sfm_lightglue.networks.weights import find_weights
from sfm_lightglue.pairs.listed import read_pairs, write_pairs
from sfm_lightglue.pipeline import Run, extract, locked, match
from sfm_lightglue.products import Pair
from sfm_lightglue.storage import H5Reader

KINDS = ("aliked", "disk", "sift", "xfeat", "superpoint")
SETS = (
    *("homography_seq", "illumination_pairs4", "scannet_pairs15"),
    *("fountain_p11", "herzjesu_p8", "lund_door12", "tum_fr2_desk20", "sacre_coeur10"),
)
MATCHERS = {
    # Its scores are similarities of descriptors, which mean another thing for each kind of features, and most of its matches
    # can be wrong: the verification looks at the geometry alone and takes COLMAP's own number of trials.
    "nearest_neighbor": (
        *("matches.mutual=true", "matches.max_ratio=null", "matches.max_distance=null"),
        *("database.min_mean_score=0", "database.max_num_trials=10000"),
    ),
    "lightglue": (),
}
"""Overrides that come with each matcher."""
DESCRIPTIONS = {"nearest_neighbor": "mutual nearest neighbours, no ratio test", "lightglue": "LightGlue with the weights of each"}
MAX_ERROR_PX = 3.0
"""Sampson distance of a correct match, px of the photos; the points marked by hand are within 2.1 px."""
NUM_NEIGHBOURS, MAX_SHIFT_PX = 5, 60.0
"""How a correct match agrees with marked points near by; each marked point of the four pairs does with the others."""

Scores = Mapping[str, str]
"""Head of a column -> what stands in it."""


@dataclass(frozen=True)
class MarkedPair:
    """Points of the same places in two images, marked by hand."""

    name0: str
    name1: str
    points0: np.ndarray
    """float64 (m, 2), px, centre of the top-left pixel at (0, 0)."""
    points1: np.ndarray
    """float64 (m, 2), row by row the same places."""

    @property
    def label(self) -> str:
        """Head of the column."""
        return f"{Path(self.name0).stem} {Path(self.name1).stem}"

    def num_correct(self, points0: np.ndarray, points1: np.ndarray) -> float:
        """Number of correct ones among matched points (n, 2), (n, 2), estimated: those that agree with the marked points, less
        the wrong ones that do so by chance.

        A match agrees where it lies within MAX_ERROR_PX of the epipolar geometry fitted to the marked points, and within
        MAX_SHIFT_PX of where one of the NUM_NEIGHBOURS nearest of them would place it: moved like that point, its offset from
        there turned and scaled by the affinity fitted to all. How likely a wrong match agrees is how often the first point of
        a match does with the second one of another, over all such pairs: of n matches, c of them correct, c + chance (n - c)
        are expected to agree.
        """
        if len(points0) == 0:
            return 0.0
        fundamental, places = self._fundamental(), self._places(points0)

        def agreeing(shift: int) -> float:
            partners = np.roll(points1, shift, axis=0)
            near = (np.linalg.norm(places - partners[:, None], axis=2) <= MAX_SHIFT_PX).any(axis=1)
            return float(np.mean(near & (sampson_error(fundamental, points0, partners) <= MAX_ERROR_PX)))

        chance = float(np.mean([agreeing(shift) for shift in range(1, len(points0))] or [0.0]))
        return len(points0) * max(0.0, (agreeing(0) - chance) / (1 - chance)) if chance < 1 else 0.0

    def _fundamental(self) -> np.ndarray:
        """(3, 3). Raises: ValueError where the marked points do not determine it."""
        options = pycolmap.RANSACOptions(max_error=MAX_ERROR_PX, max_num_trials=10000, random_seed=0)
        estimate = pycolmap.estimate_fundamental_matrix(self.points0, self.points1, options)
        if estimate is None:
            raise ValueError(f"the {len(self.points0)} points marked in {self.name0} and {self.name1} fit no two views")
        return estimate["F"]

    def _places(self, points0: np.ndarray) -> np.ndarray:
        """float64 (n, k, 2): where each of the nearest marked points places points (n, 2) in image 1."""
        ones = np.ones(len(self.points0))
        affinity = np.linalg.lstsq(np.column_stack([self.points0, ones]), self.points1, rcond=None)[0][:2]
        offsets = points0[:, None] - self.points0
        nearest = np.argsort(np.linalg.norm(offsets, axis=2), axis=1)[:, :NUM_NEIGHBOURS]
        return self.points1[nearest] + np.take_along_axis(offsets, nearest[..., None], axis=1) @ affinity


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    if missing := [name for name in options.sets if not (options.data / name / "images").is_dir()]:
        raise FileNotFoundError(f"{options.data} has no {missing[0]}/images: choose sets with --sets")
    tables = [table(options.data / name, options) for name in options.sets]
    facts = {
        "features": f"at most {options.keypoints} keypoints, longest side {options.resize} px",
        "matches": DESCRIPTIONS[options.matcher],
    }
    if "superpoint" in options.features:
        path = find_weights(compose_config(overrides("superpoint", options)).features.weights)
        facts["superpoint's weights"] = f"{path.name}, SHA-256 {sha256_of(path)[:12]}"
    if options.overrides:
        facts["overrides"] = " ".join(options.overrides)
    text = section("Features", facts, tables)
    print(text)
    if options.results:
        append_section(options.results, text)


def table(folder: Path, options: argparse.Namespace) -> str:
    """One set: a row for each kind of features."""
    score, rows = scoring(folder), {}
    for kind in options.features:
        rows[kind] = score(folder, options.out / f"{kind}_{options.matcher}" / folder.name, overrides(kind, options))
        told = ", ".join(f"{key} {value}" for key, value in rows[kind].items())
        print(f"{folder.name}, {kind}: {told}", file=sys.stderr, flush=True)
    return markdown_table([folder.name, *next(iter(rows.values()))], [[kind, *row.values()] for kind, row in rows.items()])


def overrides(kind: str, options: argparse.Namespace) -> list[str]:
    """Of the configuration, for one kind of features."""
    sizes = f"features.max_keypoints={options.keypoints}", f"features.resize_max={options.resize}"
    given = kind == "superpoint" and options.superpoint_weights
    weights = [f"features.weights={options.superpoint_weights}"] if given else []
    matcher = f"matches={options.matcher}", *MATCHERS[options.matcher]
    recompute = "execution.if_settings_changed=recompute"
    return [f"features={kind}", *sizes, *weights, *matcher, recompute, *options.overrides]


# --- what is measured ----------------------------------------------------------------------------------------------------


def scoring(folder: Path) -> Callable[[Path, Path, Sequence[str]], Scores]:
    """How a set is measured: by the ground truth that it has."""
    if (folder / "homographies.txt").exists():
        return homography_scores
    if (folder / "correspondences.txt").exists():
        return marked_scores
    if (folder / "pairs.txt").exists() and (folder / "poses.txt").exists():
        return relative_pose_scores
    return reconstruction_scores


def homography_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Means over the pairs: repeatability and precision at 3 px, AUC of the corners' error under the estimated homography."""
    homographies = read_homographies(folder / "homographies.txt")
    run = match_listed(folder, out, overrides, homographies)
    with H5Reader(run.features) as reader:
        counts = [len(reader.features(name)) for name in sorted({name for pair in homographies for name in pair})]
    scores = evaluate_matched_homographies(run.features, run.matches, homographies)
    return {
        "keypoints": f"{np.mean(counts):.0f}",
        "repeatability %": f"{100 * scores['repeatability_3px']:.1f}",
        "localisation px": _fixed(scores["localisation_error_px"], 2),
        **{f"AUC@{threshold} px": f"{area:.1f}" for threshold, area in scores["auc_px"].items()},
        "precision %": f"{100 * scores['precision_3px']:.1f}",
        "matches": f"{scores['mean_matches']:.0f}",
    }


def relative_pose_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Of the poses that RANSAC finds from the matches, with the true intrinsics."""
    pairs = [(pair.name0, pair.name1) for pair in read_pairs(folder / "pairs.txt")]
    run = match_listed(folder, out, overrides, pairs)
    scores = evaluate_matched_poses(run.features, run.matches, pairs, read_poses(folder / "poses.txt"))
    areas = {f"AUC@{threshold} deg": f"{area:.1f}" for threshold, area in scores["auc"].items()}
    return {**areas, "no pose": str(scores["num_failed"]), "matches": f"{scores['mean_matches']:.0f}"}


def marked_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Number of correct matches of each pair (`MarkedPair.num_correct`), their mean, and the mean number of all matches."""
    pairs = read_marked_pairs(folder / "correspondences.txt")
    run = match_listed(folder, out, overrides, [(pair.name0, pair.name1) for pair in pairs])
    correct, counts = {}, []
    with H5Reader(run.features) as features, H5Reader(run.matches) as matches:
        for pair in pairs:
            keypoints0, keypoints1 = (features.features(name).keypoints for name in (pair.name0, pair.name1))
            found = matches.find_matches(pair.name0, pair.name1)
            indices = np.zeros((0, 2), np.int32) if found is None else found.indices
            correct[pair.label] = pair.num_correct(keypoints0[indices[:, 0]], keypoints1[indices[:, 1]])
            counts.append(len(indices))
    columns = {label: f"{count:.0f}" for label, count in correct.items()}
    return {**columns, "mean correct": f"{np.mean(list(correct.values())):.1f}", "matches": f"{np.mean(counts):.0f}"}


def reconstruction_scores(folder: Path, out: Path, overrides: Sequence[str]) -> Scores:
    """Of the largest model; with poses the intrinsics are known."""
    result = reconstruct_set(folder, out, overrides)
    size = {"registered": f"{result.registered}/{result.num_images}", "points": str(result.num_points)}
    if result.auc is None:
        return {**size, "reprojection px": _fixed(result.reprojection_error_px, 2)}
    areas = {f"AUC@{threshold} deg": f"{result.auc[threshold]:.1f}" for threshold in ("1", "5")}
    return {**size, **areas, "mean position error": _fixed(result.position_error, 4)}


def match_listed(folder: Path, out: Path, overrides: Sequence[str], pairs: Iterable[tuple[str, str]]) -> Run:
    """Features of the set's photos and matches of the pairs, computed where they are not in `out` yet."""
    run = Run(compose_config(["dataset=folder", f"dataset.images={folder / 'images'}", f"output={out}", *overrides]))
    with locked(run.output):
        extract(run)
        write_pairs(run.pairs, sorted(Pair(min(names), max(names)) for names in pairs))
        match(run)
    return run


def read_marked_pairs(path: Path) -> list[MarkedPair]:
    """Raises: ValueError with the number of the line that is not understood."""
    points: dict[tuple[str, str], list[list[float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name0, name1, *values = line.split()
            x0, y0, x1, y1 = map(float, values)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}; expected `A B xA yA xB yB`") from error
        points.setdefault((name0, name1), []).append([x0, y0, x1, y1])
    return [MarkedPair(*names, *np.hsplit(np.array(rows), 2)) for names, rows in points.items()]


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--features", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--superpoint-weights", metavar="FILE_OR_NAME", help="in the place of those of the configuration")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS), help="with commas between them")
    parser.add_argument("--matcher", choices=tuple(MATCHERS), default="nearest_neighbor")
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--resize", type=int, default=1024, help="longest side, px")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="of the configuration of every run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to append to")
    parser.add_argument("--no-append", dest="results", action="store_const", const=None)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
