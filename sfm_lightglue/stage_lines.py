"""What a stage did, in a line for the terminal and the log, from its record in summary.json."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from sfm_lightglue.mistakes import count_of

Record: TypeAlias = Mapping[str, Any]


def stage_line(stage: str, record: Record) -> str:
    """The line about a stage, such as `verify: 98 of 120 pairs verified, 12 x few matches, 10 x few inliers (3.2 s)`.

    It is empty for a stage that had nothing to do.
    """
    parts = ["done"]
    with contextlib.suppress(KeyError):  # a record with other fields, such as a benchmark's
        parts = [part for part in LINES[stage](record) if part]
    return f"{stage}: {', '.join(parts)} ({record['seconds']:.1f} s)" if parts else ""


def _new(record: Record) -> str:
    """How many results this call has added."""
    return f" ({record['num_computed']} new)" if "num_computed" in record else ""


def _precision(record: Record) -> str:
    return "in low precision" if record.get("precision") == "low" else ""


def _extract(record: Record) -> list[str]:
    empty, skipped = len(record["without_keypoints"]), len(record["skipped"])
    return [
        f"{count_of(record['num_images'], 'photo')}{_new(record)}, {record['mean_keypoints']:.0f} keypoints on average",
        _precision(record),
        f"{count_of(record['num_masks'], 'mask')}" if record["num_masks"] else "",
        f"{empty} without keypoints" if empty else "",
        f"{skipped} skipped" if skipped else "",
    ]


def _pairs(record: Record) -> list[str]:
    return [
        f"{count_of(record['num_pairs'], 'pair')} selected ({' + '.join(record['sources'])})",
        f"{record['num_before_limits'] - record['num_pairs']} left out by limits"
        if record["num_before_limits"] > record["num_pairs"]
        else "",
        _parts(record) if record["num_components"] > 1 else "",
    ]


def _parts(record: Record) -> str:
    """How connected the photos are."""
    return f"the photos are in {count_of(record['num_components'], 'part')}, the largest of {record['largest_component']}"


def _match(record: Record) -> list[str]:
    layers = record["mean_stop_layer"]
    return [
        f"{count_of(record['num_pairs'], 'pair')}{_new(record)}, {record['mean_matches']:.0f} matches on average",
        f"{layers:.1f} layers on average" if layers else "",
        f"{record['num_guided']} guided" if record.get("num_guided") else "",
        f"{record['num_unmatched']} without matches" if record.get("num_unmatched") else "",
        _precision(record),
    ]


def _verify(record: Record) -> list[str]:
    verified = f"{record['num_verified_pairs']} of {count_of(record['num_pairs'], 'pair')} verified"
    rejected = (f"{count} x {reason}" for reason, count in record["rejected_because"].items())
    confirmed = record.get("num_confirmed_pairs", 0)
    by_third = f"{confirmed} of them by third photos" if confirmed else ""
    return [verified, by_third, *rejected, _parts(record) if record.get("num_components", 1) > 1 else ""]


def _orient(record: Record) -> list[str]:
    return [f"{count_of(len(record['turned']), 'photo')} turned by the pictures, {record['num_tried']} tried"]


def _expand(record: Record) -> list[str]:
    if not record["rounds"]:
        return []
    return [f"{count_of(sum(each['num_pairs'] for each in record['rounds']), 'pair')} added"]


def _escalate(record: Record) -> list[str]:
    if "num_pairs" not in record:
        return ["no escalation (matches.escalate=false)"]
    weak = f"{count_of(len(record['weak']), 'weak photo')}"
    return [
        f"{count_of(record['num_pairs'], 'pair')} of {count_of(record['num_photos'], 'photo')} have all kinds of features",
        weak,
        *([f"{count_of(len(record['left_out']), 'photo')} left out by the first model"] if record.get("left_out") else []),
    ]


def _refine(record: Record) -> list[str]:
    if not record["refined"]:
        return ["keypoints stay as detected"]
    return [
        f"{record['num_aligned']} of {count_of(record['num_matched_keypoints'], 'matched keypoint')} aligned",
        f"by {record['median_move_px']:.2f} px (median)" if record["num_aligned"] else "",
        f"{count_of(len(record['skipped']), 'photo')} not readable" if record["skipped"] else "",
    ]


def _database(record: Record) -> list[str]:
    return [
        count_of(record["num_images"], "photo"),
        count_of(record["num_cameras"], "camera"),
        count_of(record["num_verified_pairs"], "verified pair"),
        f"{count_of(record['num_positions'], 'photo')} with a GPS position" if record["num_positions"] else "",
    ]


def _reconstruct(record: Record) -> list[str]:
    models = record["models"]
    if not models:
        return ["no model"]
    registered = record["num_images"] - len(record["unregistered"])
    largest = next(model for model in models if model["folder"] == record["largest"])
    return [
        f"{registered} of {count_of(record['num_images'], 'photo')} registered",
        f"{largest['num_points']} points",
        f"reprojection error {largest['mean_reprojection_error_px']:.2f} px",
        f"in the largest of {len(models)} models" if len(models) > 1 else "",
    ]


def _plots(record: Record) -> list[str]:
    return [count_of(len(record["files"]), "picture")]


LINES: dict[str, Callable[[Record], list[str]]] = {
    "extract": _extract,
    "pairs": _pairs,
    "match": _match,
    "verify": _verify,
    "orient": _orient,
    "expand": _expand,
    "escalate": _escalate,
    "refine": _refine,
    "database": _database,
    "reconstruct": _reconstruct,
    "plots": _plots,
}
"""The parts of the line about each stage; empty ones are left out."""
