"""What a report says about the run as a whole: the verdict, key figures, stages, settings and files."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.changed_options import changed_options
from sfm_lightglue.files import result_exists
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.pair_table import PairNumbers
from sfm_lightglue.reasons import REGISTERED
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.stages import STAGES
from sfm_lightglue.summary import Summary
from sfm_lightglue.tables import PairRow, PhotoRow

FILES = {
    "summary.json": "what every stage did",
    "photos.tsv": "a table of all photos",
    "pairs.tsv": "a table of all pairs",
    "features.h5": "keypoints, scores and descriptors",
    "matches.h5": "matches and scores",
    "verification.h5": "two-view geometries",
    "orientations.tsv": "photos that may lie on their side",
    "escalation.tsv": "pairs that have all kinds of features",
    "database.db": "COLMAP database",
    "reconstruction": "COLMAP models",
    "plots": "pictures of matches and of the model",
    "evaluation.json": "scores against ground truth",
    "logs": "logs",
}
"""Files of a run that the page links, if they exist."""
FEW = 0.5
"""A run that registered less than this part of the photos gets a warning."""


def verdict_of(summary: Summary, photos: Sequence[PhotoRow]) -> tuple[str, str]:
    """`good`, `warning` or `failed`, and a sentence."""
    total, posed = len(photos), sum(photo.model is not None for photo in photos)
    if summary.failure:
        return "failed", sentence(f"The run failed: {summary.failure.partition('. All files are kept')[0]}")
    models = summary.folder.models()
    if not models:
        open_stages = [stage.name for stage in STAGES if stage.name not in summary.seconds]
        after = f"the stages {', '.join(summary.seconds)} have finished" if summary.seconds else "no stage has finished"
        return (
            "warning",
            f"The run is not complete: {after}, the next one is {open_stages[0]}." if open_stages else "There is no model.",
        )
    text = f"{posed} of {total} photos have a pose"
    if len(models) > 1:
        largest = sum(photo.verdict == REGISTERED for photo in photos)
        return "warning", f"{text}, in {len(models)} separate models; the largest has {largest}."
    return "warning" if posed < FEW * total else "good", f"{text}."


def sentence(text: str) -> str:
    """The text with a point at its end."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def tiles_of(
    photos: Sequence[PhotoRow], pairs: Sequence[PairRow], figures: Mapping[str, float], seconds: float
) -> list[tuple[str, Any]]:
    """Key figures by name, in the order of the page."""
    numbers = PairNumbers.of(pairs)
    verified, matched = int(numbers.verified.sum()), int(numbers.matched.sum())
    keypoints = [photo.keypoints for photo in photos if photo.keypoints]
    return [
        ("photos with a pose", f"{sum(photo.model is not None for photo in photos)} of {len(photos)}"),
        *([("verified pairs", f"{verified} of {matched}")] if matched else []),
        *([("keypoints per photo", round(float(np.median(keypoints))))] if keypoints else []),
        *figures.items(),
        *([("time of all stages", duration(seconds))] if seconds else []),
    ]


def duration(seconds: float) -> str:
    """A time for people: `42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def messages_of(summary: Summary) -> list[str]:
    """Sentences of the stages that explain the result."""
    messages = []
    if summary.extraction and summary.extraction.skipped:
        messages.append(f"{count_of(len(summary.extraction.skipped), 'photo')} could not be used; the table of photos says why.")
    messages += _about_kinds(summary)
    messages += [sentence(text) for text in (summary.verification.lenses if summary.verification else [])]
    messages += [sentence(text) for text in (summary.database.cameras if summary.database else [])]
    if found := summary.reconstruction:
        messages += [sentence(text) for text in (*found.cameras, *found.joining, *found.discarded)]
    for folder, alignment in (summary.content.get("stages", {}).get("reconstruct", {}).get("alignment") or {}).items():
        if isinstance(alignment, Mapping) and "reason" in alignment:
            messages.append(f"Model {folder} was not aligned with GPS: {sentence(str(alignment['reason']))}")
    return messages


def _about_kinds(summary: Summary) -> list[str]:
    """A sentence for each of several kinds of features: keypoints, and matches of its pairs."""
    stages = summary.content.get("stages", {})
    extracted, matched = (stages.get(stage, {}).get("kinds") or {} for stage in ("extract", "match"))
    sentences = []
    for kind, record in extracted.items():
        found = f"{kind}: {round(record['mean_keypoints'])} keypoints in each of {count_of(record['num_images'], 'photo')}"
        if pairs := matched.get(kind):
            found += f", {round(pairs['mean_matches'])} matches in each of {count_of(pairs['num_pairs'], 'pair')} (means)"
        sentences.append(f"{found}.")
    return sentences


def run_columns(run: RunFolder, summary: Summary) -> dict[str, Any]:
    """Stages, settings, weights, files and versions for the section "Run" of the page."""
    stages = summary.content.get("stages", {})
    kept = ("seconds", "cpu_seconds", "peak_memory_mb")
    weights = {
        (str(item.get("name") or Path(str(item.get("path", "weights"))).name), str(item.get("licence", "")))
        for record in stages.values()
        for item in record.get("weights", [])
    }
    return {
        "stages": [{"name": name, **{key: record[key] for key in kept if key in record}} for name, record in stages.items()],
        "settings": settings_of(summary.content.get("configuration"), summary.content.get("dataset", {})),
        "weights": sorted(weights),
        "versions": list(summary.content.get("versions", {}).items()),
        "files": [(name, about) for name, about in FILES.items() if result_exists(run.path / name)],
    }


def settings_of(configuration: Mapping[str, Any] | None, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Options that differ from the defaults, as texts, and a note if there are none or they are not known."""
    if not configuration:
        return {"changed": [], "note": "The run does not say with which settings it was made."}
    changed = changed_options({**configuration, "dataset": dataset})
    rows = [(key, shown(value), shown(default)) for key, (value, default) in changed.items()]
    return {"changed": rows, "note": "" if rows else "All options have their default values."}


def shown(value: Any) -> str:
    """A value of an option as in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def made_by(summary: Summary) -> str:
    """Which version made the run, and the local time of the page, to the minute."""
    version = summary.content.get("versions", {}).get("sfm_lightglue", "")
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return f"Report of a run of sfm_lightglue {version}, made {now}"
