"""The matches of several kinds of features side by side: `features=[sift,superpoint]`.

Each kind has a file of its own, `matches-sift.h5`. `matches.h5` is joined from them: the matches of all kinds of a pair, with the
indices of `features.h5`, in which the keypoints of the kinds follow each other. A pair is verified with the matches of all kinds
together. Scores are those of the matchers: LightGlue's probabilities beside similarities of descriptors.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfm_lightglue.products import Matches, Pair, sorted_pairs
from sfm_lightglue.storage import H5Reader, PartOfFeatures, ShardStore, is_joined, match_key, matches_to_group

CLASS = "sfm_lightglue.matches.several:join_matches"


@dataclass(frozen=True)
class SeveralOptions:
    """The group `matches` holds the options of each kind's matcher below the name of the kind."""

    name: str

    def __post_init__(self) -> None:
        raise ValueError("matches=several goes with several kinds of features: give a list, such as features=[sift,superpoint]")


class SeveralMatchers:
    """Stands for the list in tables of plug-ins. Each kind has its own matcher."""

    @classmethod
    def create(cls, options: SeveralOptions, device: str) -> SeveralMatchers:
        """Not used: the options cannot be made."""
        raise NotImplementedError


def join_matches(
    features: Path | str,
    files: Mapping[str, Path | str],
    pairs: Sequence[Pair],
    output: Path | str,
    *,
    only: Mapping[str, Collection[Pair]] | None = None,
    if_settings_changed: str = "refuse",
) -> None:
    """Writes the matches of several kinds of features of each pair to one file. Other pairs in it are kept.

    Args:
        features: The file of `join_features`.
        files: File of matches of each kind by the name of the kind, in the order of the kinds; it may be missing if `only` asks
            for no pair of it. The matches were made from the features of the kind.
        pairs: The pairs; each must be in the files of its kinds, unless one of its photos has no features of the kind.
        output: The joined file.
        only: Kind -> the pairs of which it is wanted; all pairs of kinds that are not named.
        if_settings_changed: `refuse` or `recompute` a file that was not joined. A joined file is always brought up to date.

    Raises:
        SettingsChanged: If `output` was not joined.
        KeyError: If a pair was not matched.

    Example:
        >>> pairs = select_pairs(list_images(photos), "sequential", overlap=2)
        >>> nearest = create_matcher("nearest_neighbor", max_ratio=0.8)
        >>> report = match_pairs(out / "sift.h5", pairs, out / "sift-matches.h5", nearest)
        >>> files = {"sift": out / "sift-matches.h5", "superpoint": out / "matches.h5"}
        >>> join_matches(out / "both.h5", files, pairs, out / "both-matches.h5")
    """
    wanted_of = {kind: set(some) for kind, some in (only or {}).items()}
    ordered = sorted_pairs(pairs)
    names = sorted({name for pair in ordered for name in (pair.name0, pair.name1)})
    with contextlib.ExitStack() as stack:
        joined = stack.enter_context(H5Reader(features))
        readers = {kind: stack.enter_context(H5Reader(path)) for kind, path in files.items() if wanted_of.get(kind, True)}
        settings = {"class": CLASS, "kinds": [*files], "features": joined.fingerprint}
        stamps = dict(zip(names, joined.stamps(names), strict=True))
        parts = {name: {part.kind: part for part in joined.kinds(name)} for name in names}
        sizes = dict(zip(names, joined.num_keypoints_of(names).tolist(), strict=True))
        wanted = [_kinds_of(pair, parts, [*readers], wanted_of) for pair in ordered]
        origins = _origins(readers, ordered, wanted, parts)
        pair_stamps = [
            f"{stamps[pair.name0]} {stamps[pair.name1]} {origin}" for pair, origin in zip(ordered, origins, strict=True)
        ]
        changed = "recompute" if is_joined(output) else if_settings_changed
        with ShardStore(output, settings, if_settings_changed=changed) as store:
            for i in store.missing_places(ordered, pair_stamps):
                pair, kinds = ordered[i], wanted[i]
                found = [_shifted(readers[kind], kind, pair, parts) for kind in kinds]
                store.add(match_key(pair.name0, pair.name1), matches_to_group(_joined(found), sizes[pair.name0]), pair_stamps[i])
            store.merge()


def _kinds_of(
    pair: Pair, parts: Mapping[str, Mapping[str, PartOfFeatures]], kinds: Sequence[str], only: Mapping[str, set[Pair]]
) -> list[str]:
    """The kinds of which a pair has matches: both photos have its features, and it is wanted."""
    both = parts[pair.name0].keys() & parts[pair.name1].keys()
    return [kind for kind in kinds if kind in both and (kind not in only or pair in only[kind])]


def _origins(
    readers: Mapping[str, H5Reader],
    pairs: Sequence[Pair],
    wanted: Sequence[Sequence[str]],
    parts: Mapping[str, Mapping[str, PartOfFeatures]],
) -> list[str]:
    """For each pair, a hash of what its matches are joined from: the matches of its kinds, and where their keypoints begin.

    It stays if photos get another kind of features of which the pair has no matches. Its geometry then stays too.
    """
    rows: list[list[tuple[str, str, int, int, str]]] = [[] for _ in pairs]
    for kind, reader in readers.items():
        places = [place for place, kinds in enumerate(wanted) if kind in kinds]
        for place, stamp in zip(places, reader.match_stamps([pairs[place] for place in places]), strict=True):
            part0, part1 = (parts[name][kind] for name in (pairs[place].name0, pairs[place].name1))
            rows[place].append((kind, reader.fingerprint, part0.start, part1.start, stamp))
    return [hashlib.sha256(repr(row).encode()).hexdigest()[:16] for row in rows]


def _shifted(reader: H5Reader, kind: str, pair: Pair, parts: Mapping[str, Mapping[str, PartOfFeatures]]) -> Matches:
    """The matches of a kind with the indices of the joined features. Raises: KeyError if the pair was not matched."""
    found = reader.find_matches(pair.name0, pair.name1)
    if found is None:
        raise KeyError(f"{reader.path} has no matches of {pair.name0!r} and {pair.name1!r}: run the stage match first")
    starts = [parts[name][kind].start for name in (pair.name0, pair.name1)]
    return Matches(found.indices + np.array(starts, np.int32), found.scores, found.stop_layer)


def _joined(found: Sequence[Matches]) -> Matches:
    """The matches of all kinds, whose indices ascend from kind to kind."""
    if not found:
        return Matches(np.zeros((0, 2), np.int32), np.zeros(0, np.float32))
    indices = np.concatenate([matches.indices for matches in found])
    scores = np.concatenate([matches.scores for matches in found])
    return Matches(indices, scores, max(matches.stop_layer for matches in found))
