"""Several kinds of features in one model, and escalation, against each kind alone: photos to model, with the defaults.

    python benchmarks/several_kinds.py DATA OUTPUT [sets=NAME+NAME] [modes=NAME+NAME] [rounds=N] [key=value ...]

DATA holds one folder per set, with `images/` and, if there is ground truth, `poses.txt` in the format that
`sfm_lightglue.poses` reads. Cameras are unknown to the runs. A run of OUTPUT that is there already is not repeated. With
`rounds=3` each run is made three times, in turn with the others, and times are medians. Overrides go to every run. Prints
Markdown. Times are those of whole processes; `of SIFT` is the CPU time divided by SIFT's.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from measure import markdown_table, run_process
from photo_sets import sum_images

BOTH = "features=[sift,superpoint]"
MODES = {
    "sift": ("features=sift",),
    "superpoint": ("features=superpoint",),
    "both": (BOTH,),
    "escalation": (BOTH, "matches.escalate=true"),
}
"""Name of a mode -> its overrides."""
COST = "cost.json"
NO_MODEL = 1
"""Exit status of a run that finds no model."""
Cost: TypeAlias = dict[str, float]
"""Seconds, CPU seconds and peak memory of a run, MB."""
HEADER = (
    "set",
    "mode",
    "registered",
    "points",
    "px",
    "AUC@1",
    "AUC@5",
    "position error",
    "CPU s",
    "of SIFT",
    "wall s",
    "MB",
    "pairs",
)


def main() -> None:
    data, output, *arguments = sys.argv[1:]
    given = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in ("sets", "modes", "rounds")]
    names = given["sets"].split("+") if "sets" in given else sorted(path.parent.name for path in Path(data).glob("*/images"))
    modes = given["modes"].split("+") if "modes" in given else [*MODES]
    rounds = range(int(given.get("rounds", 1)))
    rows: list[list[str]] = []
    for name in names:
        folders = {mode: [Path(output) / mode / f"{name}-{number}" for number in rounds] for mode in modes}
        for number in rounds:
            for mode in modes:
                reconstruct(Path(data) / name, folders[mode][number], [*MODES[mode], *overrides])
        costs = {mode: [json.loads((each / COST).read_text()) for each in folders[mode]] for mode in modes}
        rows += [row(name, mode, folders[mode][0], costs[mode], costs.get("sift")) for mode in modes]
    print(markdown_table(HEADER, rows))


def reconstruct(folder: Path, output: Path, overrides: Sequence[str]) -> None:
    """Reconstructs and evaluates one set, and writes what it cost beside the results."""
    if (output / COST).is_file():
        return
    command, settings = [sys.executable, "-m", "sfm_lightglue"], [f"dataset.images={folder / 'images'}", f"output={output}"]
    if (folder / "poses.txt").exists():
        settings += [f"dataset.poses={folder / 'poses.txt'}"]
    cost = run_process([*command, "run", "+dataset=folder", *settings, *overrides], good=(0, NO_MODEL))
    if (folder / "poses.txt").exists() and (output / "reconstruction").exists():
        run_process([*command, "evaluate", "+dataset=folder", *settings, *overrides])
    content = {"seconds": cost.seconds, "cpu_seconds": cost.cpu_seconds, "peak_mb": cost.peak_mb}
    (output / COST).write_text(json.dumps(content))


def row(name: str, mode: str, folder: Path, costs: Sequence[Cost], of_sift: Sequence[Cost] | None) -> list[str]:
    """A row of the table."""
    stages: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["stages"]
    result, auc, position = stages["reconstruct"], {"1": "", "5": ""}, ""
    largest = next((model for model in result["models"] if model["folder"] == result["largest"]), None)
    if (folder / "evaluation.json").is_file():
        evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        auc = {key: f"{value:.1f}" for key, value in evaluation["auc"].items()}
        position = f"{evaluation['position_error_mean']:.4g}" if evaluation["position_error_mean"] is not None else ""
    middle = {key: statistics.median(cost[key] for cost in costs) for key in costs[0]}
    ratio = f"{middle['cpu_seconds'] / statistics.median(cost['cpu_seconds'] for cost in of_sift):.2f}" if of_sift else ""
    return [
        name,
        mode,
        f"{sum_images(result['models'])} of {result['num_images']}",
        str(largest["num_points"] if largest else 0),
        f"{largest['mean_reprojection_error_px']:.2f}" if largest else "",
        auc["1"],
        auc["5"],
        position,
        f"{middle['cpu_seconds']:.0f}",
        ratio,
        f"{middle['seconds']:.0f}",
        f"{middle['peak_mb']:.0f}",
        f"{stages['escalate']['num_pairs']} of {stages['match']['num_pairs']}" if mode == "escalation" else "",
    ]


if __name__ == "__main__":
    main()
