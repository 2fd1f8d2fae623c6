"""Accuracy on photo sets with ground truth. The command line reconstructs each set; a table has one row per set.

    python benchmarks/photo_sets.py DATA OUTPUT [sets=NAME+NAME] [key=value ...]

DATA holds one folder per set, with `images/` and, if there is ground truth, `poses.txt` in the format that
`sfm_lightglue.poses` reads. Overrides, for example `features=disk database.intrinsics=single`, go to every run. Sets in SEQUENCES
are matched along the sequence. Sets without poses have no known intrinsics.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import run_process

SEQUENCES = ("kitti00_20",)


@dataclass(frozen=True)
class SetResult:
    """Result of one set."""

    name: str
    registered: str
    """Number of images of each model, largest first, like `9` or `7+3`."""
    num_images: int
    num_points: int
    """Points of the largest model; 0 without a model."""
    reprojection_error_px: float | None
    """Mean reprojection error of the largest model."""
    auc: Mapping[str, float] | None
    """Pose AUC in percent by threshold in degrees; None without ground truth."""
    position_error: float | None
    """Mean error of the camera positions, in the unit of the ground truth; None without ground truth or model."""
    seconds: float
    """Time of all stages."""


def main() -> None:
    data, output, *overrides = sys.argv[1:]
    chosen = [override.split("=", 1)[1].split("+") for override in overrides if override.startswith("sets=")]
    overrides = [override for override in overrides if not override.startswith("sets=")]
    names = chosen[0] if chosen else sorted(path.parent.name for path in Path(data).glob("*/images"))
    print(f"{'set':18}{'images':>10}{'points':>8}{'px':>6}{'AUC@1':>8}{'@3':>7}{'@5':>7}{'@10':>7}{'mean pos':>11}{'seconds':>9}")
    for name in names:
        print(row(reconstruct_set(Path(data) / name, Path(output) / name, overrides)), flush=True)


def reconstruct_set(folder: Path, output: Path, overrides: Sequence[str]) -> SetResult:
    """Reconstructs and evaluates one set."""
    poses = folder / "poses.txt"
    settings = [f"dataset.images={folder / 'images'}", f"output={output}"]
    if poses.exists():
        settings += [f"dataset.poses={poses}"]
        if not any(override.startswith("database.intrinsics=") for override in overrides):
            settings += ["database.intrinsics=poses"]
    if folder.name in SEQUENCES:
        settings += ["pairs=sequential"]
    command = [sys.executable, "-m", "sfm_lightglue"]
    run_process([*command, "run", "+dataset=folder", *settings, *overrides])
    evaluation: dict[str, Any] = {"auc": None, "position_error_mean": None}
    if poses.exists():
        run_process([*command, "evaluate", *settings])
        evaluation = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))["stages"]
    result = summary["reconstruct"]
    largest = next((model for model in result["models"] if model["folder"] == result["largest"]), None)
    return SetResult(
        name=folder.name,
        registered=sum_images(result["models"]),
        num_images=result["num_images"],
        num_points=largest["num_points"] if largest else 0,
        reprojection_error_px=largest["mean_reprojection_error_px"] if largest else None,
        auc=evaluation["auc"],
        position_error=evaluation["position_error_mean"],
        seconds=sum(stage["seconds"] for stage in summary.values()),
    )


def row(result: SetResult) -> str:
    """The result as a row under the header that `main` prints."""
    text = f"{result.name:18}{result.registered:>6}/{result.num_images:<3}{result.num_points:>8}"
    text += "     -" if result.reprojection_error_px is None else f"{result.reprojection_error_px:6.2f}"
    if result.auc is None:
        return f"{text}{'':40}{result.seconds:9.1f}"
    scores = "".join(f"{result.auc[threshold]:7.1f}" for threshold in ("1", "3", "5", "10"))
    position = float("nan") if result.position_error is None else result.position_error
    return f"{text} {scores}{position:11.4f}{result.seconds:9.1f}"


def sum_images(models: list[dict[str, object]]) -> str:
    """Number of images of each model, largest first, like `9` or `7+3`."""
    return "+".join(str(count) for count in sorted((int(str(model["num_images"])) for model in models), reverse=True)) or "0"


if __name__ == "__main__":
    main()
