"""Cost of the pipeline: each stage of a reconstruction, the growth with the number of photos, and the store alone.

    python benchmarks/stages.py DATA OUT [parts=pipeline+growth+store] [sizes=11+22+44+88] [stored=100+1000+10000+100000]
        [results=FILE|none] [key=value ...]

DATA holds one folder per set, with `images/`. Other overrides, for example `features.max_keypoints=1024`, go to every stage. The
command line runs each stage in its own process. Time and memory are measured for the whole process, from its start to its end.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import LOG, append_section, last_json, markdown_table, run_process, script, section

STAGES = ("extract", "pairs", "match", "verify", "database", "reconstruct")
FOUNTAIN = "fountain_p11"
GROWTH_SETS = (
    *(FOUNTAIN, "herzjesu_p8", "lund_door12", "sacre_coeur10", "drone_brighton18", "monstree_exif10", "temple_sparse16"),
    "kitti00_20",
)
"""Sets that are joined in this order, so that all photos differ: repeated photos would match at once."""
DEFAULTS = {"parts": "pipeline+growth+store", "sizes": "11+22+44+88", "stored": "100+1000+10000+100000", "results": str(LOG)}


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage of one run."""

    stage: str
    seconds: float
    """Wall time of the process."""
    inner_seconds: float
    """Time within the stage, from summary.json. The rest of the wall time is starting Python and importing torch."""
    cpu_seconds: float
    peak_mb: float
    num_items: int
    """Number of photos, or of pairs for stages that work on pairs."""


def main(arguments: Sequence[str] | None = None) -> None:
    data, output, *given = sys.argv[1:] if arguments is None else arguments
    chosen = dict(DEFAULTS)
    overrides = []
    for argument in given:
        key, _, value = argument.partition("=")
        if key in chosen:
            chosen[key] = value
        else:
            overrides.append(argument)
    parts = {"pipeline": pipeline_section, "growth": growth_section, "store": store_section}
    for part in chosen["parts"].split("+"):
        if part not in parts:
            raise ValueError(f"unknown part {part!r}: choose from {', '.join(parts)}")
        text = parts[part](Path(data), Path(output), overrides, chosen)
        print(text, flush=True)
        if chosen["results"] != "none":
            append_section(Path(chosen["results"]), text)


def pipeline_section(data: Path, output: Path, overrides: Sequence[str], chosen: dict[str, str]) -> str:
    """The cost of each stage for fountain_p11 with its known intrinsics."""
    known = [f"dataset.poses={data / FOUNTAIN / 'poses.txt'}", "database.intrinsics=poses"]
    costs = run_stages(data / FOUNTAIN / "images", new_folder(output / "pipeline"), [*known, *overrides])
    header = ["stage", "s", "of that in the stage", "CPU s", "peak MB", "ms an item"]
    rows = [[cost.stage, *_seconds(cost), per_item(cost)] for cost in costs]
    rows.append(["all", *(f"{sum(values):.1f}" for values in zip(*(_times(cost) for cost in costs), strict=True)), "", ""])
    settings = {"photos": f"{FOUNTAIN}, {costs[0].num_items}", "overrides": " ".join(overrides) or "none"}
    return section("Stages", settings, [markdown_table(header, rows)])


def growth_section(data: Path, output: Path, overrides: Sequence[str], chosen: dict[str, str]) -> str:
    """The cost for more and more photos from different sets."""
    rows = []
    for size in map(int, chosen["sizes"].split("+")):
        folder = new_folder(output / f"growth_{size}")
        names = joined_sets(data, folder / "images", size)
        for cost in run_stages(folder / "images", folder / "run", overrides):
            rows.append([f"{size} photos, {cost.stage}", str(cost.num_items), *_seconds(cost), per_item(cost)])
    header = ["stage", "items", "s", "of that in the stage", "CPU s", "peak MB", "ms an item"]
    settings = {"photos": f"from {', '.join(names)}", "items": "photos, or pairs for match and verify"}
    settings["overrides"] = " ".join(overrides) or "none"
    return section("Growth with the photos", settings, [markdown_table(header, rows)])


def store_section(data: Path, output: Path, overrides: Sequence[str], chosen: dict[str, str]) -> str:
    """The cost of writing, merging and reading matches, measured by store.py."""
    rows = []
    for num_pairs in map(int, chosen["stored"].split("+")):
        folder = new_folder(output / f"store_{num_pairs}")
        cost = last_json(run_process(script("store.py", num_pairs, folder)).output)
        shutil.rmtree(folder)
        steps = [f"{cost['steps'][step]['seconds']:.2f}" for step in ("add", "merge", "resume", "read")]
        per_pair = 1000 * sum(step["cpu_seconds"] for step in cost["steps"].values()) / num_pairs
        peak = max(step["extra_mb"] for step in cost["steps"].values())
        rows.append([str(num_pairs), *steps, f"{per_pair:.2f}", f"{peak:.0f}", f"{cost['file_mb']:.1f}"])
    header = ["pairs", "add s", "merge s", "resume s", "read s", "CPU ms a pair", "extra MB", "file MB"]
    return section("Store of matches", {"matches": cost["about"]}, [markdown_table(header, rows)])


def run_stages(images: Path, folder: Path, overrides: Sequence[str]) -> list[StageCost]:
    """Runs each stage by the command line. `folder` must be new, because existing results are not computed again."""
    settings = ["+dataset=folder", f"dataset.images={images}", f"output={folder}", *overrides]
    costs: list[StageCost] = []
    for stage in STAGES:
        cost = run_process([sys.executable, "-m", "sfm_lightglue", stage, *settings])
        record = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["stages"][stage]
        inner = record["seconds"]
        costs.append(StageCost(stage, cost.seconds, inner, cost.cpu_seconds, cost.peak_mb, num_items(record, costs)))
    return costs


def num_items(record: dict[str, Any], earlier: Sequence[StageCost]) -> int:
    """Number of pairs of the stage, or of extracted photos if it has no pairs."""
    if "num_pairs" in record and earlier[-1].stage != "extract":
        return int(record["num_pairs"])
    return int(record.get("num_images") or earlier[0].num_items)


def joined_sets(data: Path, images: Path, size: int) -> list[str]:
    """Copies the first `size` photos of the sets to `images/SET/`. Returns the sets.

    Raises: ValueError if there are fewer photos.
    """
    photos = [path for name in GROWTH_SETS for path in sorted((data / name / "images").glob("*.*"))][:size]
    if len(photos) < size:
        raise ValueError(f"{data} holds {len(photos)} photos of {', '.join(GROWTH_SETS)}, sizes= asks for {size}: give less")
    for photo in photos:
        target = images / photo.parent.parent.name / photo.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, target)
    return list(dict.fromkeys(photo.parent.parent.name for photo in photos))


def new_folder(path: Path) -> Path:
    """The path. Raises: ValueError if it exists, because finished stages take no time."""
    if path.exists():
        raise ValueError(f"{path} exists already: choose another OUT, or remove it")
    path.mkdir(parents=True)
    return path


def per_item(cost: StageCost) -> str:
    return f"{1000 * cost.inner_seconds / max(1, cost.num_items):.1f}"


def _times(cost: StageCost) -> tuple[float, float, float]:
    return cost.seconds, cost.inner_seconds, cost.cpu_seconds


def _seconds(cost: StageCost) -> list[str]:
    return [*(f"{value:.1f}" for value in _times(cost)), f"{cost.peak_mb:.0f}"]


if __name__ == "__main__":
    main()
