"""The whole pipeline written with kornia, as its user would do it. It is timed against `python -m sfm_lightglue run`.

    python benchmarks/kornia_pipeline.py DATA OUT                 features and matches by kornia, then our database and mapper
    python benchmarks/kornia_pipeline.py DATA OUT --compare 3     both in turn, three times: medians, ratio, accuracy

DATA holds `fountain_p11` with `images/` and `poses.txt`. Both use ALIKED n16, all pairs and known intrinsics. kornia's networks
get one photo and one pair at a time, with torch's default threads. From the verification on, both run the same code with the same
options.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kornia.feature import ALIKED, LightGlue
from measure import LOG, ProcessCost, append_section, markdown_table, run_process, script, section
from PIL import Image
from torch import Tensor

from sfm_lightglue.config import compose_config
from sfm_lightglue.networks.lightglue_checkpoints import convert_state_dict
from sfm_lightglue.networks.weights import load_weights
from sfm_lightglue.pair_files import read_pairs, write_pairs
from sfm_lightglue.pipeline import database, reconstruct_models, verify
from sfm_lightglue.products import Features, Matches, Pair, sorted_pairs
from sfm_lightglue.run_context import Run
from sfm_lightglue.storage import H5Reader, ShardStore, features_to_group, match_key, matches_to_group
from sfm_lightglue.summary import recorded

STAGES = ("extract", "match", "verify", "database", "reconstruct")
DETECTION_THRESHOLD = 0.2
"""The same as in configs/features/aliked.yaml."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """kornia's features of one photo."""

    keypoints: Tensor
    """float32 (n, 2), px of the resized photo."""
    scores: Tensor
    descriptors: Tensor
    size: tuple[int, int]
    """(width, height) px of the resized photo."""
    full_size: tuple[int, int]

    def to_kornia(self) -> dict[str, Tensor]:
        size = torch.tensor([self.size])
        return {"keypoints": self.keypoints[None], "descriptors": self.descriptors[None], "image_size": size}

    def to_features(self, name: str) -> Features:
        scale = np.array(self.full_size) / np.array(self.size)
        keypoints = (self.keypoints.numpy() + 0.5) * scale - 0.5
        arrays = keypoints.astype(np.float32), self.scores.numpy(), self.descriptors.numpy()
        return Features(*arrays, self.full_size, pixel_scale=float(scale.mean()), name=name)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    if not options.compare:
        run_with_kornia(options)
        return
    text = compare(options)
    print(text)
    if options.results:
        append_section(options.results, text)


def run_with_kornia(options: argparse.Namespace) -> None:
    """Writes kornia's features, pairs and matches as files of this package, then runs the other stages of the package."""
    run = Run.create(compose_config(settings(options, options.out)))
    options.out.mkdir(parents=True)
    with recorded(run.folder, "extract", {}):
        photos = detect_all(run.images, options)
        with ShardStore(run.folder.features, {"name": "kornia ALIKED"}) as store:
            for name, photo in photos.items():
                store.add(name, features_to_group(photo.to_features(name)), "photo")
            store.merge()
    chosen = read_pairs(options.pairs) if options.pairs else itertools.starmap(Pair, itertools.combinations(photos, 2))
    pairs = sorted_pairs(chosen)
    write_pairs(run.folder.pairs, pairs)
    with recorded(run.folder, "match", {}):
        matches = match_all(photos, pairs)
        with ShardStore(run.folder.matches, {"name": "kornia LightGlue"}) as store:
            for pair, found in matches.items():
                item = matches_to_group(found, len(photos[pair.name0].keypoints))
                store.add(match_key(pair.name0, pair.name1), item, "pair")
            store.merge()
    verify(run)
    database(run)
    reconstruct_models(run)


@torch.inference_mode()
def detect_all(images: Path, options: argparse.Namespace) -> dict[str, Photo]:
    """Features of each photo by kornia's ALIKED. Photos are resized to a longest side of `options.resize` px."""
    network = ALIKED("aliked-n16", max_num_keypoints=options.keypoints, detection_threshold=DETECTION_THRESHOLD).eval()
    network.load_state_dict(load_weights("aliked-n16")[0], strict=False)  # the module has a constant that the weights lack
    photos = {}
    for path in sorted(path for path in images.rglob("*") if path.is_file()):
        image = Image.open(path).convert("RGB")
        full_size = image.size
        factor = min(1, options.resize / max(full_size))
        image = image.resize((round(full_size[0] * factor), round(full_size[1] * factor)), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        found = network(pixels)[0]
        keypoints = found.keypoints.clamp(min=0).minimum(
            found.keypoints.new_tensor(image.size) - 1
        )  # LightGlue needs keypoints inside the photo
        photos[path.relative_to(images).as_posix()] = Photo(
            keypoints, found.keypoint_scores, found.descriptors, image.size, full_size
        )
    return photos


@torch.inference_mode()
def match_all(photos: Mapping[str, Photo], pairs: Sequence[Pair]) -> dict[Pair, Matches]:
    """Matches by kornia's LightGlue, one pair at a time."""
    network = LightGlue(features=None, input_dim=128).eval()  # type: ignore[arg-type]  # with a name it would download weights
    network.load_state_dict(convert_state_dict(load_weights("aliked-lightglue")[0]), strict=False)
    matches = {}
    for pair in pairs:
        found = network({"image0": photos[pair.name0].to_kornia(), "image1": photos[pair.name1].to_kornia()})
        matches0, scores0 = found["matches0"][0].numpy(), found["matching_scores0"][0].numpy()
        matches[pair] = Matches.from_dense(matches0, scores0, int(found["stop"]))
    return matches


# --- comparing -----------------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> str:
    """Runs both in turn. Returns medians of the whole processes and of their stages, and the accuracy of the last runs."""
    own = ["--set", options.set, "--keypoints", options.keypoints, "--resize", options.resize]
    own += ["--unknown-cameras"] if options.unknown_cameras else []
    costs: dict[str, list[ProcessCost]] = {"kornia": [], "ours": []}
    for round_ in range(options.compare):
        for name in ("kornia", "ours") if round_ % 2 == 0 else ("ours", "kornia"):
            out = options.out / f"{name}_{round_}"
            if out.exists():
                raise ValueError(f"{out} exists already: choose another OUT, or remove it")
            ours = [sys.executable, "-m", "sfm_lightglue", "run", *settings(options, out)]
            command = ours if name == "ours" else script("kornia_pipeline.py", options.data, out, *own)
            costs[name].append(run_process(command))
    folders = {name: [options.out / f"{name}_{round_}" for round_ in range(options.compare)] for name in costs}
    rows = [cost_row(name, costs[name], costs["kornia"], folders[name]) for name in costs]
    header = ["pipeline", "s", "x kornia", "CPU s", "peak MB", *(f"{stage} s" for stage in STAGES)]
    accuracies = [accuracy_row(name, folders[name][-1], options) for name in costs]
    accuracy_header = ["pipeline", "photos", "points", "mean matches", *(f"AUC@{threshold}" for threshold in (1, 3, 5, 10))]
    facts = {
        "photos": f"{options.set}, longest side {options.resize} px, at most {options.keypoints} keypoints, all pairs",
        "intrinsics": "estimated" if options.unknown_cameras else "known",
        "time": f"medians of {options.compare} runs in turn, of whole processes; ours also draws plots",
    }
    tables = [markdown_table(header, rows), markdown_table(accuracy_header, accuracies)]
    return section("The whole pipeline against kornia", facts, tables)


def cost_row(name: str, costs: Sequence[ProcessCost], reference: Sequence[ProcessCost], folders: Sequence[Path]) -> list[str]:
    seconds, reference_seconds = (statistics.median(cost.seconds for cost in group) for group in (costs, reference))
    cpu_seconds = statistics.median(cost.cpu_seconds for cost in costs)
    peak = statistics.median(cost.peak_mb for cost in costs)
    summaries = [read_json(folder / "summary.json")["stages"] for folder in folders]
    stages = [statistics.median(summary[stage]["seconds"] for summary in summaries) for stage in STAGES]
    row = [name, f"{seconds:.1f}", f"{reference_seconds / seconds:.2f}", f"{cpu_seconds:.1f}", f"{peak:.0f}"]
    return [*row, *(f"{value:.1f}" for value in stages)]


def accuracy_row(name: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Accuracy of the largest model, compared with the ground truth."""
    run_process([sys.executable, "-m", "sfm_lightglue", "evaluate", *settings(options, folder)])
    result, evaluation = read_json(folder / "summary.json")["stages"], read_json(folder / "evaluation.json")
    largest: dict[str, Any] = next(
        (model for model in result["reconstruct"]["models"] if model["folder"] == result["reconstruct"]["largest"]), {}
    )
    with H5Reader(folder / "matches.h5") as reader:
        counts = [
            len(matches) for pair in read_pairs(folder / "pairs.txt") if (matches := reader.find_matches(pair.name0, pair.name1))
        ]
    row = [name, str(largest.get("num_images", 0)), str(largest.get("num_points", 0)), f"{np.mean(counts or [0]):.0f}"]
    return [*row, *(f"{evaluation['auc'][threshold]:.1f}" for threshold in ("1", "3", "5", "10"))]


def settings(options: argparse.Namespace, out: Path) -> list[str]:
    """Overrides of the configuration for both pipelines."""
    data = options.data / options.set
    known = () if options.unknown_cameras else (f"dataset.poses={data / 'poses.txt'}", "database.intrinsics=poses")
    features = "features=aliked", f"features.max_keypoints={options.keypoints}", f"features.resize_max={options.resize}"
    return ["+dataset=folder", f"dataset.images={data / 'images'}", *known, *features, f"output={out}", *options.overrides]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--compare", type=int, metavar="N", default=0, help="run both pipelines N times")
    parser.add_argument("--set", default="fountain_p11", help="folder with images/ and poses.txt in DATA")
    parser.add_argument("--pairs", type=Path, help="file with the pairs that kornia matches, such as the pairs.txt of a run")
    parser.add_argument("--unknown-cameras", action="store_true", help="intrinsics are estimated, as by default")
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--resize", type=int, default=1024, help="longest side, px")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="overrides for this package")
    parser.add_argument("--results", type=Path, default=LOG, help="file to append to")
    parser.add_argument("--no-append", dest="results", action="store_const", const=None)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
