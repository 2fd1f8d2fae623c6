"""The stage pairs -> matches: reads `features.h5` and the pairs, writes `matches.h5`."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.continued_choices import log_stored_choices, with_stored_choices
from sfm_lightglue.execution.cache import BoundedCache
from sfm_lightglue.execution.executor import Executor, checked_results
from sfm_lightglue.execution.portable import PortablePlugin
from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.execution.shards import Shard
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.matches.matcher import BatchedMatcher, Matcher
from sfm_lightglue.orientation import upright_features
from sfm_lightglue.products import Features, Matches, Pair, sorted_pairs
from sfm_lightglue.settings import plugin_settings
from sfm_lightglue.storage import GroupData, H5Reader, ShardStore, check_match_keys, match_key, matches_to_group

logger = logging.getLogger(__name__)

GROUP = 32
"""Number of images in a group, see `_batches`. Two groups with 2048 keypoints take 64 x 6.7 MB of cache (LightGlue, float32)."""


@dataclass(frozen=True)
class MatchingReport:
    """What a call of `match_pairs` did."""

    num_pairs: int
    """Requested pairs that have matches on disk now."""
    mean_matches: float
    """Mean number of matches of these pairs; 0 without any."""
    mean_stop_layer: float
    """Mean number of network layers of these pairs (LightGlue's adaptive depth); 0 without any."""
    precision: str = ""
    """`float32` or `low`, in which the network computed them; empty for matchers without that option."""
    num_computed: int = 0
    """Pairs matched in this call; the others were already stored. A summary does not have it: it is about the files."""
    num_guided: int = 0
    """Requested pairs whose matches come from those of the strongest keypoints (`matches.guided_matching`)."""
    num_unmatched: int = 0
    """Requested pairs without any match, such as those that `matches.early_rejection` ended."""


def match_pairs(
    features: Path | str,
    pairs: Iterable[Pair],
    output: Path | str,
    matcher: Matcher,
    *,
    executor: Executor | None = None,
    num_workers: int = 0,
    cache_mb: float = 1000,
    if_settings_changed: str = "refuse",
    shard: Shard | None = None,
    kind: str = "",
) -> MatchingReport:
    """Writes the matches of all pairs to a file. Pairs that are already stored there are kept.

    A pair is matched again if the features of one of its images changed.

    Args:
        features: File of features, from the stage `extract` or from hloc.
        pairs: In any order and orientation; duplicates are matched once.
        output: HDF5 file in hloc's format.
        matcher: See `create_matcher`. In other processes the executor creates it again from its class and options.
        executor: Decides where the pairs are matched; None for threads of this process.
        num_workers: Number of these threads, 0 for one per core. Not used if an executor is given.
        cache_mb: Memory of each process for images that are kept for their next pair, MB.
        if_settings_changed: `refuse` or `recompute` matches in `output` that were made with other settings.
        shard: The share of this process, if several divide the work (`execution=shards`); the report is then about this share.
        kind: Name of the features in the progress bar, if there are several kinds.

    Returns:
        The numbers of pairs and matches.

    Raises:
        SettingsChanged: If `output` was made with other settings.
        KeyError: If an image of a pair has no features.
        ValueError: If the matches of a pair do not fit its features.
        ChildProcessError: If a process of the executor dies.

    Example:
        >>> pairs = select_pairs(list_images(photos), "sequential", overlap=2)
        >>> report = match_pairs(out / "features.h5", pairs, out / "matches.h5", create_matcher("lightglue"))
        >>> report.num_pairs
        5
    """
    ordered = sorted_pairs(pairs)
    chosen, matcher = matcher, with_stored_choices(matcher, output, is_shared=shard is not None)
    names = sorted({*map(attrgetter("name0"), ordered), *map(attrgetter("name1"), ordered)})
    check_match_keys(names)
    with H5Reader(features) as reader:
        settings = {**plugin_settings(matcher), "features": reader.fingerprint}
        stamps = _image_stamps(reader, names)
    writer = "" if shard is None else shard.writer
    with ShardStore(output, settings, if_settings_changed=if_settings_changed, writer=writer) as store:
        wanted = ordered
        if shard is not None:
            keys = [match_key(pair.name0, pair.name1) for pair in ordered]
            wanted = [ordered[place] for place in shard.share(keys, store.has_pairs(ordered))]
        if todo := store.missing_pairs(wanted, stamps):
            log_stored_choices(chosen, matcher, output)
        recipe = functools.partial(_open_worker, PortablePlugin(matcher), Path(features), int(cache_mb * 1e6))
        batches = _batches(todo, matcher)
        jobs = checked_results(executor or ThreadExecutor(num_workers), recipe, batches)
        bar = progress_bar(len(wanted), f"match {kind}".strip(), "pair", len(wanted) - len(todo))
        with bar, contextlib.closing(jobs):  # after an error, the jobs end before the error is raised
            for batch, results in jobs:
                if isinstance(results, Exception):
                    raise results
                for pair, result in zip(batch, results, strict=True):
                    store.add(match_key(pair.name0, pair.name1), result, f"{stamps[pair.name0]} {stamps[pair.name1]}")
                bar.update(len(batch))
        store.merge()
    precision = getattr(getattr(matcher, "options", None), "precision", "")
    if shard is not None:
        return MatchingReport(len(wanted), 0.0, 0.0, precision, num_computed=len(todo))
    with H5Reader(output) as reader:
        counts = np.maximum(reader.match_counts_of(ordered), 0)
        guides = getattr(getattr(matcher, "options", None), "guided_matching", False)
        num_guided = reader.num_guided(ordered) if guides else 0
    num_matches, num_layers = counts.mean(axis=0).tolist() if ordered else (0.0, 0.0)
    num_unmatched = int((counts[:, 0] == 0).sum()) if ordered else 0
    return MatchingReport(len(ordered), num_matches, num_layers, precision, len(todo), num_guided, num_unmatched)


@contextlib.contextmanager
def _open_worker(matcher: PortablePlugin[Matcher], features: Path, max_bytes: int, device: str) -> Iterator[_Worker]:
    """The recipe of this stage: a worker with its own matcher, open file of features and cache."""
    with H5Reader(features) as reader:
        yield _Worker(matcher.on(device), reader, max_bytes)


class _Worker:
    """Matches batches of pairs; reads and prepares each image once while the cache has room. Several threads may call it."""

    def __init__(self, matcher: Matcher, reader: H5Reader, max_bytes: int) -> None:
        self.matcher, self.reader = matcher, reader
        self.reading = threading.Lock()  # h5py serialises single reads, but not the several reads of an image
        self.images = BoundedCache(self._load, lambda loaded: loaded[1].num_bytes, max_bytes)

    def __call__(self, batch: tuple[Pair, ...]) -> list[GroupData]:
        images = [(self.images(pair.name0), self.images(pair.name1)) for pair in batch]
        prepared = [(image0[1], image1[1]) for image0, image1 in images]
        if isinstance(self.matcher, BatchedMatcher):
            found = _match_many(self.matcher, prepared)
        else:
            found = [self.matcher(features0, features1) for features0, features1 in prepared]
        for pair, matches, ((size0, _), (size1, _)) in zip(batch, found, images, strict=True):
            _check(matches, pair, (size0, size1))
        return [matches_to_group(matches, size0) for matches, ((size0, _), _) in zip(found, images, strict=True)]

    def _load(self, name: str) -> tuple[int, Any]:
        """Number of keypoints, and the matcher's input: a `PreparedImage` for a batched matcher, else the features."""
        with self.reading:
            features = upright_features(self.reader.features(name))
        _check_numbers(features, name)
        return len(features), self.matcher.prepare(features) if isinstance(self.matcher, BatchedMatcher) else features


def _check_numbers(features: Features, name: str) -> None:
    """Raises: ValueError for NaN or infinity, which files of other programs may contain. A network would make of them what it
    likes, for integers even matches."""
    arrays = {key: getattr(features, key) for key in ("keypoints", "scores", "descriptors", "scales", "orientations")}
    wrong = [key for key, array in arrays.items() if array is not None and not np.isfinite(array).all()]
    if wrong:
        raise ValueError(
            f"the features of {name!r} cannot be matched: NaN or infinity in its {', '.join(wrong)}. "
            "Remove the photo from the file and extract or import it again"
        )


def _match_many(matcher: BatchedMatcher, pairs: Sequence[tuple[Any, Any]]) -> list[Matches]:
    """The matches of all pairs. If the GPU has too little memory, half of the pairs are matched at a time.

    Raises: MemoryError if there is too little memory for a single pair; the message says what to do.
    """
    import torch  # here, not at the top: a run with nothing to do does not need it

    try:
        return matcher.match_many(pairs)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "MPS backend out of memory" not in str(error):
            raise
        if len(pairs) == 1:
            raise MemoryError(
                f"the GPU has too little memory for a pair ({str(error).splitlines()[0]}): choose execution.num_workers=1, "
                "matches.precision=low or a smaller features.max_keypoints"
            ) from error
        logger.info("the GPU has too little memory for %d pairs at a time; trying %d", len(pairs), (len(pairs) + 1) // 2)
    (torch.mps if torch.backends.mps.is_available() else torch.cuda).empty_cache()
    middle = (len(pairs) + 1) // 2
    return _match_many(matcher, pairs[:middle]) + _match_many(matcher, pairs[middle:])


def _batches(pairs: Sequence[Pair], matcher: Matcher) -> list[tuple[Pair, ...]]:
    """The pairs in batches of the matcher's size, in an order in which pairs of the same image are close together.

    Images are divided into groups of `GROUP`, and pairs of the same two groups follow each other. If pairs were sorted by name
    alone, and the cache were smaller than the collection, nearly every pair would have to prepare its images again.
    """
    names = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
    group = {name: i // GROUP for i, name in enumerate(names)}
    in_groups = sorted(pairs, key=lambda pair: (group[pair.name0], group[pair.name1], pair))
    size = matcher.batch_size if isinstance(matcher, BatchedMatcher) else 1
    return [tuple(in_groups[start : start + size]) for start in range(0, len(in_groups), size)]


def _image_stamps(reader: H5Reader, names: Sequence[str]) -> dict[str, str]:
    """Content stamp of each image. Raises: KeyError that names the closest image if one has no features."""
    stamps = dict(zip(names, reader.stamps(names), strict=True))
    for name in names:
        if not stamps[name]:
            reader.features(name)  # raises
    return stamps


def _check(matches: Matches, pair: Pair, sizes: tuple[int, int]) -> None:
    """Raises: ValueError if a matcher breaks its contract, or imported matches belong to other features."""
    count = len(matches)
    if matches.indices.shape != (count, 2) or matches.scores.shape != (count,):
        problem = f"indices, scores have shapes {matches.indices.shape}, {matches.scores.shape}, expected (k, 2), (k,)"
    elif count and (matches.indices.min() < 0 or (matches.indices.max(axis=0) >= sizes).any()):
        problem = f"largest indices {matches.indices.max(axis=0).tolist()}, but the images have {sizes} keypoints"
    else:
        return
    raise ValueError(f"the matches of {pair.name0} and {pair.name1} are not valid: {problem}")
