"""Several kinds of features in one stage: the records about each kind as one, and its warnings without repetitions."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

Records = Mapping[str, Mapping[str, Any]]
"""Kind -> what the stage did for it; one entry if there is only one kind."""
OF_KIND = (
    "mean_keypoints",
    "num_images",
    "num_pairs",
    "mean_matches",
    "mean_stop_layer",
    "num_guided",
    "num_unmatched",
    "precision",
)
"""What a record says about each kind, if there are several. What differs from call to call is not among it."""


@contextlib.contextmanager
def warnings_once(logger: logging.Logger) -> Iterator[None]:
    """Each warning of `logger` is given once, such as that about a photo which no kind can read."""
    given = set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_repeated = record.levelno >= logging.WARNING and message in given
        given.add(message)
        return not is_repeated

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def joined_extraction(records: Records) -> dict[str, Any]:
    """The record of the stage `extract`: numbers of the first kind, which all photos have, and of the keypoints of all kinds.

    A photo is skipped if no kind could use it, and without keypoints if no kind found any.
    """
    if len(records) == 1:
        return dict(next(iter(records.values())))
    first, *others = records.values()
    skipped = {name: reason for name, reason in first["skipped"].items() if all(name in other["skipped"] for other in others)}
    num_images = max(record["num_images"] for record in records.values())
    keypoints = sum(record["num_images"] * record["mean_keypoints"] for record in records.values())
    without = [name for name in first["without_keypoints"] if all(name in other["without_keypoints"] for other in others)]
    return {
        **first,
        **_common(records),
        "num_images": num_images,
        "mean_keypoints": keypoints / max(1, num_images),
        "without_keypoints": without,
        "skipped": skipped,
        "transparent": sorted({name for record in records.values() for name in record["transparent"]}),
    }


def joined_matching(records: Records) -> dict[str, Any]:
    """The record of the stage `match`: matches of all kinds together."""
    if len(records) == 1:
        return dict(next(iter(records.values())))
    num_pairs = max(record["num_pairs"] for record in records.values())
    matches = sum(record["num_pairs"] * record["mean_matches"] for record in records.values())
    layers = max(record["mean_stop_layer"] for record in records.values())
    return {
        **_common(records),
        "num_pairs": num_pairs,
        "mean_matches": matches / max(1, num_pairs),
        "mean_stop_layer": layers,
        "num_guided": sum(record.get("num_guided", 0) for record in records.values()),
    }


def _common(records: Records) -> dict[str, Any]:
    """Weights, precision and number of results of all kinds, and the record of each."""
    return {
        "weights": [weights for record in records.values() for weights in record["weights"]],
        "precision": "low" if any(record["precision"] == "low" for record in records.values()) else "",
        "num_computed": max(record["num_computed"] for record in records.values()),
        "kinds": {kind: {key: record[key] for key in OF_KIND if key in record} for kind, record in records.items()},
    }
