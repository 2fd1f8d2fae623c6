"""The command `benchmark`: configurations x sets of pairs with ground truth -> Markdown and CSV."""

from __future__ import annotations

import csv
import datetime
import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sfm_lightglue.config import compose_config, split_jobs
from sfm_lightglue.evaluation.estimators import check_estimator
from sfm_lightglue.evaluation.provenance import hardware, markdown_table, versions
from sfm_lightglue.evaluation.public_sets import open_set
from sfm_lightglue.evaluation.scores import FoundMatches, Protocol, Scores, homography_scores, pose_scores
from sfm_lightglue.evaluation.sets import BenchmarkSet, Resize, TruePair, resized_set
from sfm_lightglue.execution.devices import chosen_devices
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.files import foreign_file, written_whole
from sfm_lightglue.mistakes import MISTAKES, raise_together
from sfm_lightglue.overrides import literal
from sfm_lightglue.pair_files import write_pairs
from sfm_lightglue.pipeline import match
from sfm_lightglue.products import Matches, Pair
from sfm_lightglue.registry import closest
from sfm_lightglue.run_context import Run

KEYS = ("sets", "estimator", "max_error_px", "resize", "seeds")
"""Options of the command; all others are overrides of the configuration."""
MANY_PAIRS = 100
"""Sets with more pairs are evaluated with one seed of RANSAC, smaller ones with ten, because theirs are noisy."""
FILES = {"benchmark.md": "# Benchmark, ", "benchmark.csv": "set,layout,pairs,"}
"""What the command writes -> how each file begins."""
NO_MATCHES = Matches(np.zeros((0, 2), np.int32), np.zeros(0, np.float32))


T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    data: Path
    output: Path
    sets: tuple[str, ...] = ()
    """Names of folders in `data`; empty: `data` itself if it is a set, else all sets in it."""
    estimator: str = "colmap"
    max_errors_px: tuple[float, ...] = ()
    resize: str = "protocol"
    """`protocol` is the size of each published protocol, `none` that of the files, `short:480` or `long:1600` another one."""
    seeds: int | None = None
    """None: one for sets of more than MANY_PAIRS pairs, else ten."""
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """The result of one configuration on one set."""

    set: BenchmarkSet
    configuration: str
    scores: Scores
    protocol: Protocol


def parse(data: Path, output: Path, arguments: Iterable[str]) -> Options:
    """The options of a command line. Raises: ValueError for a value that is not understood."""
    own: dict[str, str] = {}
    overrides: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in KEYS and equals:
            own[key] = value
        else:
            overrides.append(argument)
    try:
        errors = tuple(float(number) for number in own.get("max_error_px", "").split(",") if number)
        seeds = int(own["seeds"]) if "seeds" in own else None
    except ValueError as error:
        raise ValueError(f"{error}: max_error_px=1,2,3 are numbers of px, seeds=10 is a whole number") from error
    if any(not number > 0 for number in errors) or (seeds is not None and seeds < 1):
        raise ValueError("max_error_px and seeds must be positive")
    resize = own.get("resize", "protocol")
    _resize_of(resize, None)
    names = tuple(name for name in own.get("sets", "").split(",") if name)
    return Options(data, output, names, own.get("estimator", "colmap"), errors, resize, seeds, tuple(overrides))


def benchmark(options: Options) -> str:
    """Measures all configurations on all sets, writes `benchmark.md` and `benchmark.csv`, and returns the Markdown.

    Everything that can be known is checked first. Features and matches stay in the output folder; a second call continues.

    Raises: FileNotFoundError or ValueError with all mistakes.
    """
    mistakes: list[Exception] = []
    sets = _attempt(lambda: open_sets(options), mistakes) or []
    jobs = _attempt(lambda: split_jobs(options.overrides), mistakes) or []
    for job in jobs:
        _attempt(functools.partial(_check_job, job), mistakes)
    for kind in sorted({"homography" if each.is_planar else "pose" for each in sets}):
        _attempt(functools.partial(check_estimator, options.estimator, kind), mistakes)
    _attempt(functools.partial(_check_files, options.output), mistakes)
    raise_together(mistakes)
    labels = _labels(jobs)
    rows = []
    for each in sets:
        resize = _resize_of(options.resize, each.resize)
        shown = resized_set(each, resize, options.output / "resized" / f"{each.name}_{resize}".replace(":", ""))
        for job, label in zip(jobs, labels, strict=True):
            rows.append(measure(shown, job, label, options))
    text = markdown(rows, options, jobs[0])
    options.output.mkdir(parents=True, exist_ok=True)
    for name, content in zip(FILES, (text, table(rows)), strict=True):
        with written_whole(options.output / name) as part:
            part.write_text(content, encoding="utf-8", newline="")
    return text


def open_sets(options: Options) -> list[BenchmarkSet]:
    """The sets that were asked for. Raises: FileNotFoundError or ValueError with all mistakes."""
    if not options.data.is_dir():
        raise FileNotFoundError(f"{options.data} does not exist: expected a folder of benchmark sets, or one set")
    folders = sorted(path for path in options.data.iterdir() if path.is_dir())
    if not options.sets:
        try:
            return [open_set(options.data)]
        except ValueError as error:
            found = [opened for folder in folders if (opened := _known(folder)) is not None]
            if not found:
                raise ValueError(f"{error}, and no folder in it has one") from error
            return found
    mistakes: list[Exception] = []
    names = [folder.name for folder in folders]
    for name in options.sets:
        if name not in names:
            mistakes.append(FileNotFoundError(f"{options.data} has no set {name!r}. {closest(name, names)}"))
    known = [options.data / name for name in options.sets if name in names]
    sets = [_attempt(functools.partial(open_set, folder), mistakes) for folder in known]
    raise_together(mistakes)
    return [each for each in sets if each is not None]


def measure(shown: BenchmarkSet, job: Sequence[str], label: str, options: Options) -> Row:
    """The scores of one configuration on a set."""
    out = options.output / shown.name / (label.replace("/", "_") or "default")
    run = match_pairs_of(shown, out, [*job, *_detector_size(shown, job)])
    found = found_matches(run, shown.pairs)
    seeds = options.seeds or (1 if len(shown.pairs) > MANY_PAIRS else 10)
    protocol = Protocol(options.estimator, options.max_errors_px, seeds, in_photo_pixels=shown.resize is not None)
    scores = (homography_scores if shown.is_planar else pose_scores)(shown.pairs, found, protocol)
    return Row(shown, label, scores, protocol)


def match_pairs_of(shown: BenchmarkSet, out: Path, overrides: Sequence[str]) -> Run:
    """Computes features and matches of the pairs of a set, unless `out` has them already."""
    given = ["dataset=folder", f"dataset.images={literal(shown.images)}", f"output={literal(out)}"]
    run = Run.create(compose_config([*given, *overrides, "execution.if_settings_changed=recompute"]))
    with run.folder.locked():
        extract_features(
            shown.images,
            run.folder.features,
            run.extractor(),
            names=shown.names,
            executor=run.executor(),
            if_settings_changed=run.execution.if_settings_changed,
        )
        write_pairs(run.folder.pairs, sorted({Pair(pair.name0, pair.name1) for pair in shown.pairs}))
        match(run)
    return run


def found_matches(run: Run, pairs: Sequence[TruePair]) -> list[FoundMatches]:
    """The stored matches of the pairs; none for a pair that has none."""
    found = []
    with run.folder.open_features() as features, run.folder.open_matches() as reader:
        for pair in pairs:
            both = [features.features(name, with_descriptors=False) for name in (pair.name0, pair.name1)]
            matches = reader.find_matches(pair.name0, pair.name1) or NO_MATCHES
            points = [each.keypoints[matches.indices[:, side]] for side, each in enumerate(both)]
            count = (len(both[0]) + len(both[1])) / 2
            found.append(FoundMatches(points[0], points[1], matches.scores, count, both[0].image_size))
    return found


# --- tables --------------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], options: Options, job: Sequence[str]) -> str:
    """The facts and a table for each set. `job` is a configuration, which gives the device."""
    device = chosen_devices(compose_config(list(job)).execution.device)[0]
    facts = {
        "hardware": hardware(device),
        "software": versions(),
        "estimator": options.estimator,
        "overrides": " ".join(options.overrides) or "none",
    }
    lines = [f"# Benchmark, {datetime.date.today().isoformat()}", "", *(f"- {key}: {value}" for key, value in facts.items())]
    for each in dict.fromkeys(row.set.name for row in rows):
        mine = [row for row in rows if row.set.name == each]
        lines += ["", f"## {each}", "", _about(mine[0]), ""]
        header = ["configuration", *mine[0].scores.values, "limit px"]
        lines.append(markdown_table(header, [_cells(row) for row in mine]))
    return "\n".join([*lines, ""])


def _about(row: Row) -> str:
    """How a set was measured, in one sentence."""
    limits = "" if math.isnan(row.scores.max_error_px) else ", limits in px of the images"
    if not row.set.is_planar and not row.protocol.in_photo_pixels:
        limits = ", limits in px of images with a longest side of 1024 px"
    size = f"images resized to {row.set.resize}" if row.set.resize else "images as they are"
    seeds = f"mean over {row.protocol.num_seeds} seeds" if row.protocol.num_seeds > 1 else "one seed"
    return f"{len(row.set.pairs)} pairs, layout {row.set.layout}, {size}, {row.protocol.estimator}, {seeds}{limits}."


def _cells(row: Row) -> list[str]:
    counts = ("matches", "keypoints")
    cells = [f"{value:.0f}" if name in counts else f"{value:.1f}" for name, value in row.scores.values.items()]
    return [
        row.configuration or "default",
        *cells,
        "-" if math.isnan(row.scores.max_error_px) else f"{row.scores.max_error_px:g}",
    ]


def table(rows: Sequence[Row]) -> str:
    """The same as CSV, a line for each set and configuration, with all digits."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores.values))
    head = ["set", "layout", "pairs", "configuration", *names, "estimator", "limit px", "seeds", "resize", "date", "software"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        values = [f"{row.scores.values[name]:.6g}" if name in row.scores.values else "" for name in names]
        protocol = [row.protocol.estimator, row.scores.max_error_px, row.protocol.num_seeds, row.set.resize or "none"]
        facts = [datetime.date.today().isoformat(), versions()]
        writer.writerow([row.set.name, row.set.layout, len(row.set.pairs), row.configuration, *values, *protocol, *facts])
    return file.getvalue()


# --- details -------------------------------------------------------------------------------------------------------------


def _attempt(work: Callable[[], T], mistakes: list[Exception]) -> T | None:
    """The result of `work`; None if it raises a mistake of the user, which is kept in the list."""
    try:
        return work()
    except MISTAKES as error:
        mistakes.append(error)
        return None


def _check_job(job: Sequence[str]) -> None:
    """Raises: ValueError if the overrides of a configuration are wrong."""
    Run.create(compose_config([*job, "dataset.name=benchmark"]))


def _check_files(output: Path) -> None:
    """Raises: ValueError if a file that would be replaced is not from this command."""
    for name, start in FILES.items():
        path = output / name
        if path.exists() and not path.read_bytes().startswith(start.encode()):
            raise foreign_file(path)


def _known(folder: Path) -> BenchmarkSet | None:
    """The set in a folder; None if it has no known layout."""
    try:
        return open_set(folder)
    except ValueError:
        return None


def _resize_of(text: str, of_protocol: Resize | None) -> Resize | None:
    """The size that an option asks for. Raises: ValueError if it is not understood."""
    if text in ("protocol", "none"):
        return of_protocol if text == "protocol" else None
    side, _, px = text.partition(":")
    if side not in ("short", "long") or not px.isdigit() or int(px) < 1:
        raise ValueError(f"resize={text} is not understood: expected protocol, none, or a side and px like short:480, long:1600")
    return Resize(side, int(px))


def _detector_size(shown: BenchmarkSet, job: Sequence[str]) -> list[str]:
    """Overrides that let detectors see resized images as they are, unless the command line gives them."""
    if shown.resize is None:
        return []
    known = compose_config(list(job)).features
    given = {override.partition("=")[0].lstrip("+") for override in job}
    sizes = {"resize_max": "null", "enlarge_max": "1"}
    return [f"features.{key}={value}" for key, value in sizes.items() if key in known and f"features.{key}" not in given]


def _labels(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Short names of configurations: the values of the overrides that differ between them, else of all."""
    common = set.intersection(*(set(job) for job in jobs)) if len(jobs) > 1 else set()
    return [" ".join(_short(override) for override in job if override not in common) for job in jobs]


def _short(override: str) -> str:
    """`xfeat` for `features=xfeat`; options keep their name: `max_keypoints=2048`."""
    key, _, value = override.partition("=")
    return value if "." not in key else f"{key.rpartition('.')[2]}={value}"
