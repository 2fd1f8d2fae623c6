"""The pairs of a report: the table of all pairs, the galleries, and the lines between matched keypoints."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sfm_lightglue.orientation import upright_features
from sfm_lightglue.pair_table import PairNumbers
from sfm_lightglue.products import Features
from sfm_lightglue.reasons import REJECTED, VERIFIED
from sfm_lightglue.report.packing import packed, packed_json
from sfm_lightglue.storage import H5Reader, comparable_scores
from sfm_lightglue.tables import PairRow, PhotoRow

MAX_PAIRS = 200_000
"""Pairs in the table of the page. With more pairs, all verified ones are kept first."""
MAX_DRAWN = 700
"""Pairs whose matches are stored in the page, besides the galleries."""
LINES = 200
"""Lines of a pair, an even choice."""
PER_GALLERY = 6
MAX_DOTS = 1000
"""Keypoints of a photo, those with the highest scores."""
MAX_UNREGISTERED = 12
"""Photos without a pose whose keypoints are shown."""


def kept_pairs(pairs: Sequence[PairRow], limit: int = MAX_PAIRS) -> list[PairRow]:
    """At most `limit` pairs in their order: the verified ones with most inliers, then those with most matches."""
    if len(pairs) <= limit:
        return list(pairs)
    numbers = PairNumbers.of(pairs)
    ranked = np.lexsort((-numbers.matches, -numbers.inliers, ~numbers.verified))
    return [pairs[i] for i in np.sort(ranked[:limit]).tolist()]


def _rank(pair: PairRow) -> tuple[int, int]:
    """A key for sorting: most inliers first, then most matches."""
    return -whole(pair.inliers), -whole(pair.matches)


def whole(value: float | None) -> int:
    """A count that may be missing, as a whole number."""
    return 0 if value is None or not math.isfinite(value) else int(value)


def pair_columns(pairs: Sequence[PairRow], photos: Mapping[str, int], num_all: int) -> dict[str, Any]:
    """The columns of the table of pairs for `web/tables.js`. Texts are stored once and referred to by number."""

    def numbers(values: Iterable[float], dtype: type = np.uint32) -> dict[str, str]:
        return packed(np.array(list(values), dtype))

    sources, source = _coded([pair.source for pair in pairs])
    verdicts, verdict = _coded([pair.verdict for pair in pairs])
    configurations, configuration = _coded([pair.configuration or "" for pair in pairs])
    reasons, reason = _coded([(pair.reason or "", pair.advice or "") for pair in pairs])
    note = f"{len(pairs)} of {num_all} pairs are listed; pairs.tsv has all." if len(pairs) < num_all else ""
    return {
        "note": note,
        "photo0": numbers(photos[pair.photo0] for pair in pairs),
        "photo1": numbers(photos[pair.photo1] for pair in pairs),
        "matches": numbers(whole(pair.matches) for pair in pairs),
        "inliers": numbers(whole(pair.inliers) for pair in pairs),
        "score": numbers((_shade(pair.mean_score) for pair in pairs), np.uint8),
        "sources": sources,
        "source": source,
        "verdicts": verdicts,
        "verdict": verdict,
        "configurations": configurations,
        "configuration": configuration,
        "reasons": packed_json(reasons),
        "reason": reason,
    }


def _shade(score: float | None) -> int:
    """A score of 0 to 1 as 1 to 255; 0 if it is missing."""
    return 0 if score is None or math.isnan(score) else 1 + round(254 * min(max(score, 0.0), 1.0))


def _coded(values: Sequence[Any]) -> tuple[list[Any], dict[str, str]]:
    """The different values in the order of their first use, and the number of each value."""
    known = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return list(known), packed(np.array([known[value] for value in values], np.uint32))


def choose_galleries(pairs: Sequence[PairRow]) -> dict[str, list[int]]:
    """Rows of pairs for each gallery: best, typical and weakest verified pairs, and rejected pairs with most matches.

    A pair is in one gallery only.
    """
    verified = sorted(
        (row for row, pair in enumerate(pairs) if pair.verdict == VERIFIED), key=lambda row: (-whole(pairs[row].inliers), row)
    )
    rejected = [row for row, pair in enumerate(pairs) if pair.verdict == REJECTED and whole(pair.matches)]
    size = min(PER_GALLERY, -(-len(verified) // 3))
    start = max(size, len(verified) // 2 - size // 2)
    return {
        "best": verified[:size],
        "typical": verified[start : max(start, min(start + size, len(verified) - size))],
        "weakest verified": verified[max(size, len(verified) - size) :][::-1],
        "rejected": sorted(rejected, key=lambda row: (-whole(pairs[row].matches), row))[:PER_GALLERY],
    }


def unregistered(photos: Sequence[PhotoRow]) -> list[int]:
    """Numbers of the photos without a pose that have been read, evenly chosen."""
    found = [number for number, photo in enumerate(photos) if photo.model is None and photo.keypoints is not None]
    return (
        found if len(found) <= MAX_UNREGISTERED else [found[round(i)] for i in np.linspace(0, len(found) - 1, MAX_UNREGISTERED)]
    )


class Lines:
    """Reads matches and keypoints for the page, in parts of the size of the upright photo.

    `stop_layers` has LightGlue's stop layer of each pair that was read; 0 for other matchers.
    """

    def __init__(self, features: H5Reader, matches: H5Reader | None, verified: H5Reader | None) -> None:
        self._features, self._matches, self._verified = features, matches, verified
        self.stop_layers: list[int] = []
        self._keypoints: Callable[[str], tuple[np.ndarray, np.ndarray]] = functools.lru_cache(256)(self._read_keypoints)

    def of_pair(self, name0: str, name1: str, limit: int = LINES) -> dict[str, Any] | None:
        """Lines of a pair for `web/matches.js`; None if it was not matched."""
        found = self._matches.find_matches(name0, name1) if self._matches else None
        if found is None:
            return None
        self.stop_layers.append(found.stop_layer)
        inliers = np.zeros(0, np.int64)
        if self._verified:
            try:
                inliers = self._verified.geometry(name0, name1).inlier_matches[:, 0]
            except KeyError:  # the stage verify has not come to this pair
                inliers = np.zeros(0, np.int64)
        rows = np.arange(len(found)) if len(found) <= limit else np.linspace(0, len(found) - 1, limit).round().astype(np.int64)
        indices = found.indices[rows]
        places = [self._keypoints(name)[0][indices[:, side]] for side, name in enumerate((name0, name1))]
        return {
            "places": packed(np.concatenate(places, axis=1).astype(np.uint16)),
            "scores": packed((255 * np.clip(found.scores[rows], 0, 1)).round().astype(np.uint8)),
            "inliers": packed(np.isin(indices[:, 0], inliers).astype(np.uint8)),
        }

    def of_photo(self, name: str) -> dict[str, Any]:
        """The strongest keypoints of a photo for `web/matches.js`; their scores span 0 to 1 by rank."""
        places, scores = self._keypoints(name)
        order = np.argsort(-scores, kind="stable")[:MAX_DOTS]
        low, high = (float(value) for value in np.percentile(scores, (5, 95))) if len(scores) else (0.0, 1.0)
        shades = np.clip((scores[order] - low) / max(high - low, 1e-9), 0, 1)
        return {"places": packed(places[order]), "scores": packed((255 * shades).round().astype(np.uint8))}

    def _read_keypoints(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """uint16 (n, 2): places of the keypoints in 65535ths of the upright photo, and their scores (n,)."""
        features: Features = upright_features(self._features.features(name, with_descriptors=False))
        places = (features.keypoints + 0.5) / np.array(features.image_size) * 65535
        scores = comparable_scores(np.asarray(features.scores, np.float64), self._features.kinds(name))
        return places.round().clip(0, 65535).astype(np.uint16), scores
