"""The stage pairs -> matches: reads `features.h5` and the pairs, writes `matches.h5`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.execution.local import num_cores, progress_bar, run_jobs, torch_threads
from sfm_lightglue.lookup import plugin_settings
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.storage import H5Reader, Item, ShardStore, check_match_keys, match_key, matches_to_item

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatchingReport:
    """What the stage did."""

    num_pairs: int
    """Pairs with matches on disk, of those asked for."""
    num_computed: int
    """Those of them computed now; the rest were there."""
    mean_matches: float
    """Matches per pair, of the pairs computed now."""
    mean_stop_layer: float
    """Network layers per pair (LightGlue's adaptive depth), of the pairs computed now."""


def match_pairs(
    features: Path | str,
    pairs: Iterable[Pair],
    output: Path | str,
    matcher: Matcher,
    *,
    num_workers: int = 0,
    if_settings_changed: str = "refuse",
) -> MatchingReport:
    """Matches of all pairs in the file `output`; pairs that are already there are kept.

    A pair is matched again where the features of one of its images changed. `num_workers` is the number of pairs in work at a
    time, 0 for one per core; `if_settings_changed` is `refuse` or `recompute`.

    Raises: SettingsChanged where `output` was made with other settings, KeyError where an image of a pair has no features,
    ValueError for the first matches that do not fit the features.
    """
    num_workers = num_workers or num_cores()
    ordered = sorted({Pair(min(pair.name0, pair.name1), max(pair.name0, pair.name1)) for pair in pairs})
    check_match_keys({name for pair in ordered for name in (pair.name0, pair.name1)})
    by_key = {match_key(pair.name0, pair.name1): pair for pair in ordered}
    num_matches, num_layers = [], []

    with H5Reader(features) as reader:
        reading = threading.Lock()  # h5py serialises anyway; the lock keeps a pair's two reads together

        def match(key: str) -> tuple[Item, Matches]:
            with reading:
                features0, features1 = (reader.features(name) for name in (by_key[key].name0, by_key[key].name1))
            found = matcher(features0, features1)
            _check(found, features0, features1)
            return matches_to_item(found, len(features0)), found

        settings = {**plugin_settings(matcher), "features": reader.fingerprint}
        with ShardStore(output, settings, if_settings_changed=if_settings_changed) as store:
            image_stamps = _image_stamps(reader, ordered)
            stamps = {key: f"{image_stamps[pair.name0]} {image_stamps[pair.name1]}" for key, pair in by_key.items()}
            todo = store.missing(stamps)
            with torch_threads(num_workers), progress_bar(len(stamps), "match", "pair", len(stamps) - len(todo)) as bar:
                for key, result in run_jobs(match, todo, num_workers):
                    if isinstance(result, Exception):
                        raise result
                    store.add(key, result[0], stamps[key])
                    num_matches.append(len(result[1]))
                    num_layers.append(result[1].stop_layer)
                    bar.update()
            store.merge()
    count = max(1, len(num_matches))
    return MatchingReport(len(stamps), len(num_matches), sum(num_matches) / count, sum(num_layers) / count)


def _image_stamps(reader: H5Reader, pairs: Iterable[Pair]) -> dict[str, str]:
    """Content stamp of each image in the pairs; one that has no features raises a KeyError that names the closest."""
    names = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
    return {name: reader.stamp(name) or reader.features(name).name for name in names}


def _check(matches: Matches, features0: Features, features1: Features) -> None:
    """Raises: ValueError where a matcher breaks its contract, or matches were imported that belong to other features."""
    count, sizes = len(matches), (len(features0), len(features1))
    if matches.indices.shape != (count, 2) or matches.scores.shape != (count,):
        problem = f"indices, scores have shapes {matches.indices.shape}, {matches.scores.shape}, expected (k, 2), (k,)"
    elif count and (matches.indices.min() < 0 or (matches.indices.max(axis=0) >= sizes).any()):
        problem = f"largest indices {matches.indices.max(axis=0).tolist()}, but the images have {sizes} keypoints"
    else:
        return
    raise ValueError(f"the matches of {features0.name} and {features1.name} are not valid: {problem}")
