"""From photos to a model, each pipeline as a process of its own, in turn: this package, COLMAP with SIFT, and kornia's networks.

    python benchmarks/photos_to_model.py DATA OUT                              one run of each, as a table in RESULTS.md
    python benchmarks/photos_to_model.py DATA OUT --rounds 3                   medians of three runs
    python benchmarks/photos_to_model.py DATA OUT --sets herzjesu_p8 --pipelines default colmap-sift

Nothing is known about the cameras, and all pairs are matched. COLMAP takes the photos at full size with its own defaults.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from measure import BENCHMARKS, ProcessCost, markdown_table, run_process, script, section

import sfm_lightglue  # noqa: F401  loads libz before pycolmap
from sfm_lightglue import __version__
from sfm_lightglue.evaluation.provenance import hardware
from sfm_lightglue.evaluation.reconstruction import evaluate_reconstruction, read_reconstruction_poses
from sfm_lightglue.poses import read_poses

RESULTS = BENCHMARKS / "RESULTS.md"
OURS = {
    "default": (),
    "fast": ("+experiment=fast",),
    "quality": ("+experiment=quality",),
    "float32": ("features.precision=float32", "matches.precision=float32"),
    "aliked": ("features=aliked",),
    "sift": ("features=sift",),
}
"""Pipelines of this package -> overrides."""
COLMAP, KORNIA = "colmap-sift", "kornia"
NAMES = {COLMAP: "COLMAP, SIFT (pycolmap)", KORNIA: "kornia, ALIKED + LightGlue"}
SETS = "fountain_p11", "herzjesu_p8", "lund_door12", "sacre_coeur10"
HEADER = ("pipeline", "s", "from-to", "CPU s", "x COLMAP", "x kornia", "peak MB", "photos", "points", "AUC@1", "AUC@5")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    if options.colmap:
        run_colmap(options.data, options.out)
        return
    text = compare(options)
    print(text)
    if options.results:
        put_section(options.results, text)


def run_colmap(images: Path, out: Path) -> None:
    """COLMAP's own pipeline with its defaults: SIFT at full size, all pairs, the incremental mapper."""
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.Level.WARNING.value
    database = out / "database.db"
    (out / "reconstruction").mkdir(parents=True)
    pycolmap.extract_features(database, images)
    pycolmap.match_exhaustive(database)
    pycolmap.incremental_mapping(database, images, out / "reconstruction")


def compare(options: argparse.Namespace) -> str:
    """Runs all pipelines in turn, in an order that rotates; returns a table for each set."""
    tables = []
    for name in options.sets:
        costs: dict[str, list[ProcessCost]] = {pipeline: [] for pipeline in options.pipelines}
        for round_ in range(options.rounds):
            turn = round_ % len(options.pipelines)
            for pipeline in (*options.pipelines[turn:], *options.pipelines[:turn]):
                out = options.out / name / f"{pipeline}_{round_}"
                if out.exists():
                    raise ValueError(f"{out} exists already: choose another OUT, or remove it")
                costs[pipeline].append(run_process(command_of(pipeline, options, name, out)))
                print(f"{name}, {pipeline}: {costs[pipeline][-1].seconds:.1f} s", file=sys.stderr, flush=True)
        folders = {pipeline: options.out / name / f"{pipeline}_0" for pipeline in costs}
        poses = options.data / name / "poses.txt"
        rows = [[NAMES.get(each, each), *times_of(each, costs), *accuracy_of(folders[each], poses)] for each in costs]
        tables.append(f"### {name}\n\n{markdown_table(HEADER, rows)}")
    runs = "one run each, one after the other" if options.rounds == 1 else f"medians of {options.rounds} rounds in turn"
    facts = {
        "time": f"{runs}, of whole processes; ours also write tables, pictures and the page",
        **({"load": options.load} if options.load else {}),
    }
    return section(f"Version {__version__}, {hardware('cpu')}", facts, tables)


def command_of(pipeline: str, options: argparse.Namespace, name: str, out: Path) -> list[str]:
    """The command that makes a model in the folder `out` from the photos of a set."""
    images = options.data / name / "images"
    if pipeline == COLMAP:
        return script("photos_to_model.py", images, out, "--colmap")
    if pipeline == KORNIA:
        return script("kornia_pipeline.py", options.data, out, "--set", name, "--unknown-cameras")
    photos = ["+dataset=folder", f"dataset.images={images}", f"output={out}"]
    return [sys.executable, "-m", "sfm_lightglue", "run", *photos, "pairs=exhaustive", *OURS[pipeline], *options.overrides]


def times_of(pipeline: str, costs: Mapping[str, Sequence[ProcessCost]]) -> list[str]:
    """Seconds and their range, CPU seconds, how often it fits into the time of COLMAP and of kornia, and memory."""
    seconds = {each: statistics.median(cost.seconds for cost in runs) for each, runs in costs.items()}
    own = [cost.seconds for cost in costs[pipeline]]
    ratios = [f"{seconds[each] / seconds[pipeline]:.2f}" if each in seconds else "-" for each in (COLMAP, KORNIA)]
    cpu, peak = (statistics.median(getattr(cost, key) for cost in costs[pipeline]) for key in ("cpu_seconds", "peak_mb"))
    span = f"{min(own):.1f}-{max(own):.1f}" if len(own) > 1 else "-"
    return [f"{seconds[pipeline]:.1f}", span, f"{cpu:.1f}", *ratios, f"{peak:.0f}"]


def accuracy_of(folder: Path, poses: Path) -> list[str]:
    """Photos and points of the largest model, and the accuracy of all registered photos, if true poses are known."""
    from sfm_lightglue.model_files import read_model
    from sfm_lightglue.reconstruction.models import model_folders, rank_of

    models = sorted(map(read_model, model_folders(folder / "reconstruction")), key=rank_of)
    if not models:
        return ["0", "0", "-", "-"]
    found = [str(models[0].num_reg_images()), str(models[0].num_points3D())]
    if not poses.is_file():
        return [*found, "-", "-"]
    scores = evaluate_reconstruction(read_reconstruction_poses(folder / "reconstruction"), read_poses(poses)).auc
    return [*found, *(f"{scores[threshold]:.1f}" for threshold in ("1", "5"))]


def put_section(path: Path, text: str) -> None:
    """Writes a section into the file of results. The one of the same version and machine before it is replaced."""
    title = text.splitlines()[0].rpartition(",")[0]  # without the date
    head = "# From photos to a model\n\nOne section for each version and machine, written by `photos_to_model.py`.\n\n"
    sections = re.split(r"(?m)^(?=## )", path.read_text(encoding="utf-8") if path.exists() else head)
    kept = [each.rstrip() for each in sections if each.split("\n")[0].rpartition(",")[0] != title or not each.startswith("## ")]
    path.write_text("\n\n".join([*kept, text.rstrip()]) + "\n", encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="folders with images/ in DATA")
    pipelines = [*OURS, COLMAP, KORNIA]
    usual = ["default", "aliked", COLMAP, KORNIA]
    parser.add_argument("--pipelines", nargs="+", choices=pipelines, default=usual)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each pipeline")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="overrides for this package")
    parser.add_argument("--load", default="", help="what else the machine does, for the record")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file with a section for each version and machine")
    parser.add_argument("--no-append", dest="results", action="store_const", const=None)
    parser.add_argument("--colmap", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
