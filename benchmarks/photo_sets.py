"""Accuracy on photo sets with ground truth: each set reconstructed by the command line, one row of a table each.

    python benchmarks/photo_sets.py DATA OUTPUT [key=value ...]

DATA holds one folder a set, with `images/` and, where there is ground truth, `poses.txt` in the format that
`sfm_lightglue.evaluation.poses` reads. Overrides go to every run, such as `features=disk database.intrinsics=single`.
Sets named in SEQUENCES are matched along the sequence; sets without poses have no intrinsics either.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SEQUENCES = ("kitti00_20",)


def main() -> None:
    data, output, *overrides = sys.argv[1:]
    chosen = [override.split("=", 1)[1].split("+") for override in overrides if override.startswith("sets=")]
    overrides = [override for override in overrides if not override.startswith("sets=")]
    names = chosen[0] if chosen else sorted(path.parent.name for path in Path(data).glob("*/images"))
    print(f"{'set':18}{'images':>10}{'points':>8}{'px':>6}{'AUC@1':>8}{'@3':>7}{'@5':>7}{'@10':>7}{'mean pos':>11}{'seconds':>9}")
    for name in names:
        print(row(name, Path(data) / name, Path(output) / name, overrides), flush=True)


def row(name: str, folder: Path, output: Path, overrides: list[str]) -> str:
    """Reconstructs and evaluates one set."""
    poses = folder / "poses.txt"
    settings = [f"dataset.images={folder / 'images'}", f"output={output}"]
    if poses.exists():
        settings += [f"dataset.poses={poses}"]
        if not any(override.startswith("database.intrinsics=") for override in overrides):
            settings += ["database.intrinsics=poses"]
    if name in SEQUENCES:
        settings += ["pairs=sequential"]
    command = [sys.executable, "-m", "sfm_lightglue"]
    subprocess.run([*command, "run", "+dataset=folder", *settings, *overrides], check=True, capture_output=True)
    summary = json.loads((output / "summary.json").read_text())["stages"]
    models = summary["reconstruct"]["models"]
    largest = next((model for model in models if model["folder"] == summary["reconstruct"]["largest"]), None)
    seconds = sum(stage["seconds"] for stage in summary.values())
    text = f"{name:18}{sum_images(models):>6}/{summary['reconstruct']['num_images']:<3}"
    text += f"{largest['num_points']:>8}{largest['mean_reprojection_error_px']:6.2f}" if largest else f"{0:>8}{'-':>6}"
    if not poses.exists():
        return f"{text}{'':40}{seconds:9.1f}"
    subprocess.run([*command, "evaluate", *settings], check=True, capture_output=True)
    evaluation = json.loads((output / "evaluation.json").read_text())
    auc, position = evaluation["auc"], evaluation["position_error_mean"]
    scores = "".join(f"{auc[threshold]:7.1f}" for threshold in ("1", "3", "5", "10"))
    return f"{text} {scores}{position if position is not None else float('nan'):11.4f}{seconds:9.1f}"


def sum_images(models: list[dict[str, object]]) -> str:
    """Images of each model, largest first: `9` or `7+3`."""
    return "+".join(str(count) for count in sorted((int(str(model["num_images"])) for model in models), reverse=True)) or "0"


if __name__ == "__main__":
    main()
