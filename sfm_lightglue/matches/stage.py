"""The stage pairs -> matches: reads `features.h5` and the pairs, writes `matches.h5`."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sfm_lightglue.execution.cache import BoundedCache
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.processes import run_jobs_in_processes
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.threads import run_jobs, torch_threads
from sfm_lightglue.matches.matcher import BatchedMatcher, Matcher
from sfm_lightglue.products import Matches, Pair
from sfm_lightglue.settings import plugin_settings
from sfm_lightglue.storage import GroupData, H5Reader, ShardStore, check_match_keys, match_key, matches_to_group

logger = logging.getLogger(__name__)

GROUP = 32
"""Images; two groups at 2048 keypoints are 64 x 6.7 MB in the cache (LightGlue, float32)."""


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
    in_processes: Sequence[Callable[[], Matcher]] = (),
    num_workers: int = 0,
    cache_mb: float = 1000,
    if_settings_changed: str = "refuse",
) -> MatchingReport:
    """Matches of all pairs in the file `output`; pairs that are already there are kept.

    A pair is matched again where the features of one of its images changed. Where `in_processes` is given, each of its functions,
    which must be picklable, creates the same matcher in a process of its own, such as for another GPU, and `matcher` itself only
    tells settings and batch size. `num_workers` is the number of threads that match, in each process, 0 for one per core;
    `cache_mb` the memory there for images that are kept for their next pair; `if_settings_changed` is `refuse` or `recompute`.

    Raises: SettingsChanged where `output` was made with other settings, KeyError where an image of a pair has no features,
    ValueError for the first matches that do not fit the features, ChildProcessError where a process dies.
    """
    num_workers = num_workers or num_cores()
    ordered = sorted(set(pairs))
    check_match_keys({name for pair in ordered for name in (pair.name0, pair.name1)})
    by_key = {match_key(pair.name0, pair.name1): pair for pair in ordered}
    num_matches, num_layers = [], []

    with H5Reader(features) as reader:
        settings = {**plugin_settings(matcher), "features": reader.fingerprint}
        with ShardStore(output, settings, if_settings_changed=if_settings_changed) as store:
            image_stamps = _image_stamps(reader, ordered)
            stamps = {key: f"{image_stamps[pair.name0]} {image_stamps[pair.name1]}" for key, pair in by_key.items()}
            todo = store.missing(stamps)
            batches = _batches([by_key[key] for key in todo], matcher)
            jobs = _run(batches, _Work(matcher, reader, int(cache_mb * 1e6)), in_processes, num_workers)
            bar = progress_bar(len(stamps), "match", "pair", len(stamps) - len(todo))
            with torch_threads(num_workers), bar, contextlib.closing(jobs):  # at an error workers end before it goes on
                for batch, results in jobs:
                    if isinstance(results, Exception):
                        raise results
                    for pair, result in zip(batch, results, strict=True):
                        key = match_key(pair.name0, pair.name1)
                        store.add(key, result.item, stamps[key])
                        num_matches.append(result.num_matches)
                        num_layers.append(result.num_layers)
                    bar.update(len(batch))
            store.merge()
    count = max(1, len(num_matches))
    return MatchingReport(len(stamps), len(num_matches), sum(num_matches) / count, sum(num_layers) / count)


class _Result(NamedTuple):
    """What is kept of a pair."""

    item: GroupData
    num_matches: int
    num_layers: int


class _Work:
    """Matches batches of pairs, with each image read and prepared once while the cache has room. Called from several threads."""

    def __init__(self, matcher: Matcher, reader: H5Reader, max_bytes: int) -> None:
        self.matcher, self.reader, self.max_bytes = matcher, reader, max_bytes
        self.reading = threading.Lock()  # h5py serialises anyway, but not the several reads of an image
        self.images = BoundedCache(self._load, lambda loaded: loaded[1].num_bytes, max_bytes)

    def __call__(self, batch: tuple[Pair, ...]) -> list[_Result]:
        images = [(self.images(pair.name0), self.images(pair.name1)) for pair in batch]
        prepared = [(image0[1], image1[1]) for image0, image1 in images]
        if isinstance(self.matcher, BatchedMatcher):
            found = _match_many(self.matcher, prepared)
        else:
            found = [self.matcher(features0, features1) for features0, features1 in prepared]
        for pair, matches, ((size0, _), (size1, _)) in zip(batch, found, images, strict=True):
            _check(matches, pair, (size0, size1))
        return [
            _Result(matches_to_group(matches, size0), len(matches), matches.stop_layer)
            for matches, ((size0, _), _) in zip(found, images, strict=True)
        ]

    def _load(self, name: str) -> tuple[int, Any]:
        """Number of keypoints of an image, and what the matcher wants of it: its features or a `PreparedImage`."""
        with self.reading:
            features = self.reader.features(name)
        return len(features), self.matcher.prepare(features) if isinstance(self.matcher, BatchedMatcher) else features


def _match_many(matcher: BatchedMatcher, pairs: Sequence[tuple[Any, Any]]) -> list[Matches]:
    """The matches of all pairs; half as many at a time where a GPU has no memory for them.

    Raises: MemoryError where it has none for a single pair; the text says what to do.
    """
    try:
        return matcher.match_many(pairs)
    except torch.OutOfMemoryError as error:
        if len(pairs) == 1:
            raise MemoryError(
                f"the GPU has no memory for a pair ({str(error).splitlines()[0]}): choose execution.num_workers=1, "
                "matches.precision=low or fewer features.max_keypoints"
            ) from error
        logger.info("no memory for %d pairs at a time, %d are tried", len(pairs), (len(pairs) + 1) // 2)
    torch.cuda.empty_cache()
    middle = (len(pairs) + 1) // 2
    return _match_many(matcher, pairs[:middle]) + _match_many(matcher, pairs[middle:])


def _run(
    batches: Sequence[tuple[Pair, ...]], work: _Work, in_processes: Sequence[Callable[[], Matcher]], num_workers: int
) -> Generator[tuple[tuple[Pair, ...], list[_Result] | Exception], None, None]:
    """Each batch with its results, or the exception it raised, in order of completion."""
    recipes = [functools.partial(_open_work, create, work.reader.path, work.max_bytes) for create in in_processes]
    yield from run_jobs_in_processes(recipes, batches, num_workers) if recipes else run_jobs(work, batches, num_workers)


@contextlib.contextmanager
def _open_work(create: Callable[[], Matcher], features: Path, max_bytes: int) -> Iterator[_Work]:
    """In a process of its own."""
    with H5Reader(features) as reader:
        yield _Work(create(), reader, max_bytes)


def _batches(pairs: Sequence[Pair], matcher: Matcher) -> list[tuple[Pair, ...]]:
    """The pairs in an order in which an image's partners come soon after each other, cut into batches as the matcher wants them.

    Pairs of two groups of `GROUP` images are neighbours: sorted by name alone, a collection larger than the cache would have
    each image prepared for nearly every pair anew.
    """
    names = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
    group = {name: i // GROUP for i, name in enumerate(names)}
    in_groups = sorted(pairs, key=lambda pair: (group[pair.name0], group[pair.name1], pair))
    size = matcher.batch_size if isinstance(matcher, BatchedMatcher) else 1
    return [tuple(in_groups[start : start + size]) for start in range(0, len(in_groups), size)]


def _image_stamps(reader: H5Reader, pairs: Iterable[Pair]) -> dict[str, str]:
    """Content stamp of each image in the pairs; one that has no features raises a KeyError that names the closest."""
    names = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
    return {name: reader.stamp(name) or reader.features(name).name for name in names}


def _check(matches: Matches, pair: Pair, sizes: tuple[int, int]) -> None:
    """Raises: ValueError where a matcher breaks its contract, or matches were imported that belong to other features."""
    count = len(matches)
    if matches.indices.shape != (count, 2) or matches.scores.shape != (count,):
        problem = f"indices, scores have shapes {matches.indices.shape}, {matches.scores.shape}, expected (k, 2), (k,)"
    elif count and (matches.indices.min() < 0 or (matches.indices.max(axis=0) >= sizes).any()):
        problem = f"largest indices {matches.indices.max(axis=0).tolist()}, but the images have {sizes} keypoints"
    else:
        return
    raise ValueError(f"the matches of {pair.name0} and {pair.name1} are not valid: {problem}")
