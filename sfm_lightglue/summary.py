"""`summary.json`: what a run has on disk, time and memory of each stage, and the versions; and the same as a typed record.

The records of the stages are about the files, not about the last call: a run that finds all its files up to date writes the same
records, but for times and memory. Facts of each photo and each pair are in `photos.tsv` and `pairs.tsv`, see `tables.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import logging
import platform
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sfm_lightglue import __version__
from sfm_lightglue.database import DatabaseReport
from sfm_lightglue.features.stage import ExtractionReport
from sfm_lightglue.files import result_exists, write_json
from sfm_lightglue.geometries.stage import VerificationReport
from sfm_lightglue.matches.stage import MatchingReport
from sfm_lightglue.mistakes import count_of, shortened
from sfm_lightglue.pairs.second_round import RoundReport
from sfm_lightglue.pairs.stage import SelectionReport
from sfm_lightglue.reconstruction import ModelReport, ReconstructionReport
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.stage_lines import stage_line
from sfm_lightglue.stages import stage_names
from sfm_lightglue.tables import read_photos

logger = logging.getLogger(__name__)

Report = TypeVar("Report")

TIMES = ("seconds", "cpu_seconds", "peak_memory_mb")
"""What the record of a stage says about its work, and not about its results."""

NEARLY_ALL = 0.1
"""If fewer than this part of the photos have keypoints, the lack of keypoints is the reason of a failure."""


@dataclass(frozen=True)
class Summary(Mapping[str, Any]):
    """What a run did. The report of a stage is None if that stage has not run yet."""

    folder: RunFolder
    """The output folder. It opens the features, matches, geometries and models."""
    extraction: ExtractionReport | None
    num_pairs: int | None
    """Pairs of images selected for matching."""
    selection: SelectionReport | None
    """Which pair sources were used, why, and how connected the photos are by their pairs."""
    matching: MatchingReport | None
    verification: VerificationReport | None
    database: DatabaseReport | None
    reconstruction: ReconstructionReport | None
    expansion: tuple[RoundReport, ...]
    """What each later round of pairs added; empty without `pairs.rounds=2`."""
    seconds: Mapping[str, float]
    """Name of each stage -> wall-clock time of its last run, s."""
    licences: tuple[str, ...]
    """Licences of all weights used, sorted."""
    content: Mapping[str, Any]
    """Everything in summary.json."""

    @classmethod
    def read(cls, folder: RunFolder | Path | str) -> Summary:
        """The summary of the run in the output folder `folder`, finished or not."""
        folder = folder if isinstance(folder, RunFolder) else RunFolder(Path(folder))
        content = folder.read_summary()
        stages = content["stages"]
        reconstruction = stages.get("reconstruct")
        if reconstruction is not None:
            registered = _registered(folder, reconstruction["models"])
            models = [
                _report(ModelReport, {"registered": registered.get(model["folder"], []), **model})
                for model in reconstruction["models"]
            ]
            reconstruction = {**reconstruction, "models": models}
        return cls(
            folder=folder,
            extraction=_report(ExtractionReport, stages.get("extract")),
            num_pairs=stages.get("pairs", {}).get("num_pairs"),
            selection=_report(SelectionReport, stages.get("pairs")),
            matching=_report(MatchingReport, stages.get("match")),
            verification=_report(VerificationReport, stages.get("verify")),
            database=_report(DatabaseReport, stages.get("database")),
            reconstruction=_report(ReconstructionReport, reconstruction),
            expansion=tuple(RoundReport(**each) for each in stages.get("expand", {}).get("rounds", [])),
            seconds={name: stage["seconds"] for name, stage in stages.items()},
            licences=tuple(sorted({weights["licence"] for stage in stages.values() for weights in stage.get("weights", [])})),
            content=content,
        )

    @property
    def failure(self) -> str:
        """Why the run counts as failed, with numbers; empty if it does not, or if `reconstruct` has not run yet.

        It has failed if nothing was reconstructed, or with `strict=true` if fewer than half of the photos are registered.
        """
        if self.reconstruction is None:
            return ""
        if not self.reconstruction.models:
            return f"nothing was reconstructed: {self._likely_reason()}. All files are kept in {self.folder.path}"
        skipped = len(self.extraction.skipped) if self.extraction else 0
        total = self.reconstruction.num_images + skipped
        registered = self.reconstruction.num_images - len(self.reconstruction.unregistered)
        if self.content.get("configuration", {}).get("strict") is True and 2 * registered < total:
            half = f"{registered} of {total} photos are registered, fewer than half (strict=true)"
            return f"{half}. All files are kept in {self.folder.path}"
        return ""

    def _likely_reason(self) -> str:
        """The first stage whose numbers explain why there is no model."""
        extraction, verification = self.extraction, self.verification
        if extraction and extraction.num_images < 2:
            total = extraction.num_images + len(extraction.skipped)
            return f"{extraction.num_images} of {total} photos could be used, and two are needed"
        if reason := self._lack_of_keypoints():
            return reason
        if self.num_pairs == 0:
            return "no pairs of photos were selected; check the options of `pairs`"
        if verification and verification.num_verified_pairs == 0:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in verification.rejected_because.items())
            pictures = any(self.folder.plots.glob("*.*"))
            return (
                f"none of {verification.num_pairs} pairs has a two-view geometry ({reasons or 'no matches'}); the photos may "
                "show different things or overlap too little, or other features may match them"
                + (f": look at {self.folder.plots}" if pictures else "")
            )
        return self._lack_of_models()

    def _lack_of_keypoints(self) -> str:
        """That nearly all photos have no keypoints, and why; empty if it is not so."""
        if self.extraction is None or not result_exists(self.folder.features):
            return ""
        with self.folder.open_features() as reader:
            counts = {name: reader.num_keypoints(name) for name in reader.names()}
        empty = [name for name, count in counts.items() if count == 0]
        if not empty or len(counts) - len(empty) >= max(2, NEARLY_ALL * len(counts)):
            return ""
        why = "the photos may be black, blank or very blurred"
        if self.extraction.num_masks:
            why = (
                f"{self.extraction.num_masks} photos have a mask, and its black or transparent parts get no keypoints: look "
                "whether the masks are black throughout, or black and white are swapped (dataset.masks)"
            )
        return f"{len(empty)} of {len(counts)} photos have no keypoints, such as {shortened(empty)}; {why}"

    def _lack_of_models(self) -> str:
        """Why the mapper found no model, although pairs were verified."""
        verification = self.verification
        options = self.content.get("configuration", {}).get("reconstruction", {})
        verified = "the database has verified pairs"
        if not verification and self.folder.database.is_file() and not _has_verified_pairs(self.folder.database):
            return "the database has no verified pairs of photos: verify its matches first, for example with COLMAP's matchers"
        if verification:
            verified = f"{verification.num_verified_pairs} of {verification.num_pairs} pairs were verified"
        smallest = options.get("min_model_size")
        found = "; ".join(dict.fromkeys(self.reconstruction.discarded if self.reconstruction else [])) or (
            f"the mapper found no first pair with enough parallax, or every model had fewer than {smallest} photos "
            "(reconstruction.min_model_size)"
        )
        advice = "Look whether the verified pairs show the same thing (report.html). If so, more keypoints may help "
        return f"{verified}, but {found}. {advice}(features.max_keypoints), or photos from more places"

    def __getitem__(self, key: str) -> Any:
        """A part of summary.json, such as `summary["stages"]`, as `run` returned it before version 0.11."""
        return self.content[key]

    def __iter__(self) -> Iterator[str]:
        """The parts of summary.json."""
        return iter(self.content)

    def __len__(self) -> int:
        """Number of parts of summary.json."""
        return len(self.content)

    def __str__(self) -> str:
        """A few lines for the terminal: time and licences, the models, what was lost, and where everything is."""
        if not self.seconds:
            return f"no stage has finished in {self.folder.path}"
        lines = ["time: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())]
        lines.append(f"licences of the weights: {', '.join(self.licences) or 'none used'}")
        lines += _describe_models(self.reconstruction)
        lines += self._describe_lost()
        places = [("report", self.folder.report), ("pictures", self.folder.plots)]
        if self.reconstruction and self.reconstruction.largest is not None:
            places.insert(0, ("model", self.folder.reconstruction / self.reconstruction.largest))
        return "\n".join([*lines, *(f"{what}: {path.resolve()}" for what, path in places if path.exists())])

    def _describe_lost(self) -> list[str]:
        """Lines about the photos that are only in smaller models and those that are in none, and the file with the reasons."""
        lost = {
            *(self.reconstruction.unregistered if self.reconstruction else []),
            *(self.extraction.skipped if self.extraction else {}),
        }
        apart, reasons = lost & self._posed(), f"; reasons in {self.folder.photo_table.resolve()}"
        lost -= apart
        lines = [f"in smaller models: {count_of(len(apart), 'photo')}{'' if lost else reasons}"] if apart else []
        if lost:
            return [*lines, f"lost: {count_of(len(lost), 'photo')}: {shortened(sorted(lost), 5)}{reasons}"]
        return [*lines, "lost: no photo"] if self.reconstruction else lines

    def _posed(self) -> set[str]:
        """The photos that are in any model, as far as `photos.tsv` says it."""
        with contextlib.suppress(OSError, ValueError):
            return {photo.photo for photo in read_photos(self.folder.photo_table) if photo.model is not None}
        return set()


@contextlib.contextmanager
def recorded(folder: RunFolder, stage: str, about: Mapping[str, Any], *, adds: bool = False) -> Iterator[dict[str, Any]]:
    """Writes the record of a stage to summary.json when the block ends: time, memory, and what the block puts into the record.

    `about` describes the whole run, for example its configuration. Records of other stages are kept. If `adds` is true, the
    stage is repeated in this run, and its times are added to those before. If the block raises, the file stays as it is.

    Raises: ValueError, before the block, if no run has written the file.
    """
    folder.read_summary()
    _reset_peak_memory()
    start, cpu = time.perf_counter(), time.process_time()
    record: dict[str, Any] = {}
    yield record
    computed = {key: record.pop(key) for key in ("num_computed",) if key in record}  # of this call, not of the files
    record = {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_memory_mb": _peak_memory_mb(),
        **record,
    }
    stages = folder.read_summary()["stages"]
    if adds and stage in stages:
        record |= {key: round(record[key] + stages[stage][key], 3) for key in ("seconds", "cpu_seconds")}
    stages[stage] = record
    ordered = {name: stages[name] for name in stage_names() if name in stages}
    write_json(folder.summary, {"stages": ordered, **about, "versions": _versions()})
    if line := stage_line(stage, {**record, **computed}):
        logger.info("%s", line)


def facts_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The content of summary.json without what differs from run to run although the results are the same: time and memory."""
    stages = summary.get("stages", {})
    kept = {name: {key: value for key, value in record.items() if key not in TIMES} for name, record in stages.items()}
    return {**summary, "stages": kept}


def _report(report: type[Report], record: Mapping[str, Any] | None) -> Report | None:
    """The fields of the dataclass `report` from a stage's record; None if there is no record, or one of another version."""
    if record is None:
        return None
    try:
        return report(**{field.name: record[field.name] for field in dataclasses.fields(report) if field.name in record})  # type: ignore[arg-type]
    except TypeError:  # a field without a default is missing
        return None


def _registered(folder: RunFolder, models: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Names of the registered photos by folder of the model, from `photos.tsv`; empty if it is missing or damaged."""
    registered: dict[str, list[str]] = {}
    if models:
        with contextlib.suppress(OSError, ValueError, TypeError):
            for row in read_photos(folder.photo_table):
                registered.setdefault(str(row.model), []).append(row.photo)
    return registered


def _has_verified_pairs(database: Path) -> bool:
    """Whether a database that somebody else has built has verified pairs."""
    with contextlib.closing(sqlite3.connect(database)) as rows:
        return bool(rows.execute("SELECT EXISTS (SELECT 1 FROM two_view_geometries WHERE rows > 0)").fetchone()[0])


def _describe_models(result: ReconstructionReport | None) -> list[str]:
    """A line for each model."""
    if result is None:
        return []
    lines = []
    for model in result.models:
        mark = " (largest)" if model.folder == result.largest and len(result.models) > 1 else ""
        lines.append(
            f"reconstruction/{model.folder}{mark}: {model.num_images} of {result.num_images} photos registered, "
            f"{model.num_points} points, track length {model.mean_track_length:.2f}, "
            f"reprojection error {model.mean_reprojection_error_px:.2f} px"
        )
    return lines or ["nothing could be reconstructed"]


@functools.cache
def _versions() -> dict[str, str]:
    packages = ("torch", "pycolmap", "kornia", "h5py", "numpy", "hydra-core")
    return {"sfm_lightglue": __version__, "python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in packages
    }


def _reset_peak_memory() -> None:
    """Resets the peak memory of this process, so that each stage shows its own. Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb() -> int | None:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)
    return None
