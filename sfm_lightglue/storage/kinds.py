"""Features of several kinds in one group: the keypoints of the kinds one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfm_lightglue.products import Features
from sfm_lightglue.storage.layout import features_to_group
from sfm_lightglue.storage.record import GroupData

KINDS = "kinds"
"""Attribute of a group of joined features."""


@dataclass(frozen=True)
class PartOfFeatures:
    """The keypoints of one kind among those of a photo."""

    kind: str
    start: int
    """Index of its first keypoint."""
    count: int
    pixel_scale: float
    """`Features.pixel_scale` of this kind."""


def joined_features_to_group(features: Mapping[str, Features], *, is_masked: bool = False) -> GroupData:
    """The keypoints of all kinds of a photo, in the order of the kinds, with their scores and without descriptors.

    Scores of different kinds cannot be compared. `Features.pixel_scale` is the smallest one of the kinds, which suits the final
    adjustment: coarser keypoints weigh less. The attribute `kinds` (JSON) has a row for each kind: name, first keypoint, number
    and pixel scale.

    Args:
        features: At least one kind. All are of the same photo.
        is_masked: Whether a part of the photo was masked out.

    Raises: ValueError if the kinds differ in the size or the orientation of the photo.
    """
    first, *others = features.values()
    for other in others:
        if (other.image_size, other.orientation) != (first.image_size, first.orientation):
            raise ValueError(
                f"the kinds of features of {first.name!r} differ in the size or turn of the photo "
                f"({first.image_size}, {first.orientation}; {other.image_size}, {other.orientation}): run the stage extract again"
            )
    joined = Features(
        keypoints=np.concatenate([each.keypoints for each in features.values()]),
        scores=np.concatenate([each.scores for each in features.values()]),
        descriptors=np.zeros((sum(map(len, features.values())), 0), np.float32),
        image_size=first.image_size,
        pixel_scale=min(each.pixel_scale for each in features.values()),
        name=first.name,
        orientation=first.orientation,
    )
    group = features_to_group(joined)
    starts = np.cumsum([0, *map(len, features.values())]).tolist()
    rows = [[kind, start, len(each), each.pixel_scale] for (kind, each), start in zip(features.items(), starts, strict=False)]
    attributes: dict[str, Any] = {**group.attributes.get("", {}), KINDS: json.dumps(rows)} | (
        {"is_masked": True} if is_masked else {}
    )
    return GroupData(group.datasets, {**group.attributes, "": attributes})


def comparable_scores(scores: np.ndarray, parts: Sequence[PartOfFeatures]) -> np.ndarray:
    """The scores (n,) of the keypoints of a photo; of several kinds, 0 to 1 by rank within each kind, to show them together."""
    if len(parts) < 2:
        return scores
    ranked = np.zeros(len(scores))
    for part in parts:
        places = slice(part.start, part.start + part.count)
        ranked[places] = np.argsort(np.argsort(scores[places], kind="stable"), kind="stable") / max(1, part.count - 1)
    return ranked


def parts_of_features(text: str, place: str) -> tuple[PartOfFeatures, ...]:
    """The parts of a photo from the attribute `kinds`; empty if there is none. Raises: ValueError that begins with `place`."""
    if not text:
        return ()
    try:
        rows = [PartOfFeatures(str(kind), int(start), int(count), float(scale)) for kind, start, count, scale in json.loads(text)]
    except (ValueError, TypeError):
        raise ValueError(f"{place} has kinds={text!r:.80}, expected rows of name, start, number and scale") from None
    return tuple(rows)
