"""Several kinds of features side by side: `features=[sift,superpoint]`.

Each kind has a file of its own, `features-sift.h5`, with everything that the extractor gave. `features.h5` is joined from them:
the keypoints of all kinds one after the other, without descriptors, which only matchers of their own kind understand. Each photo
has the attribute `kinds`, which says where the keypoints of a kind begin, see `PartOfFeatures`.

Two kinds often find the same corner. Their keypoints are never matched with each other, so they end in two tracks, each with at
most one keypoint of a photo. A corner of two kinds counts twice in the model, as two points.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.storage import H5Reader, ShardStore, is_joined, joined_features_to_group

CLASS = "sfm_lightglue.features.several:join_features"


@dataclass(frozen=True)
class SeveralOptions:
    """The group `features` holds the options of each kind below its name; without any, there is nothing to join."""

    name: str

    def __post_init__(self) -> None:
        raise ValueError("features=several joins the kinds of a list: give one, such as features=[sift,superpoint]")


class SeveralExtractors:
    """Stands for the list in tables of plug-ins. Each kind has its own extractor."""

    @classmethod
    def create(cls, options: SeveralOptions, device: str) -> SeveralExtractors:
        """Not used: the options cannot be made."""
        raise NotImplementedError


def join_features(
    files: Mapping[str, Path | str],
    output: Path | str,
    *,
    names: Sequence[str] | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
    if_settings_changed: str = "refuse",
) -> None:
    """Writes the keypoints of several kinds of features of each photo to one file, one kind after the other.

    Descriptors stay in the files of the kinds. Photos of `output` that are not among `names` stay as they are.

    Args:
        files: File of features of each kind by the name of the kind, in the order in which their keypoints follow each other. A
            file may be missing if `only` asks for no photo of it.
        output: The joined file.
        names: The photos; None for all photos of the files. A photo that no file has is dropped from the joined file.
        only: Kind -> the photos of which it is wanted; all photos of kinds that are not named.
        if_settings_changed: `refuse` or `recompute` a file that was not joined. A joined file is always brought up to date.

    Raises:
        SettingsChanged: If `output` was not joined.
        ValueError: If the files differ in the size or the turn of a photo.

    Example:
        >>> files = {"sift": out / "sift.h5", "superpoint": out / "features.h5"}
        >>> report = extract_features(photos, files["sift"], create_extractor("sift", max_keypoints=500))
        >>> join_features(files, out / "both.h5")
    """
    only = only or {}
    output = Path(output)
    with contextlib.ExitStack() as stack:
        readers = {kind: stack.enter_context(H5Reader(path)) for kind, path in files.items() if only.get(kind, True)}
        names = sorted({name for reader in readers.values() for name in reader.names()}) if names is None else names
        wanted = {kind: set(only.get(kind, names)) for kind in readers}
        settings = {"class": CLASS, "kinds": [*files]}
        parts = _parts(readers, wanted, names)
        stamps = {name: _joined_stamp(readers, found) for name, found in parts.items() if found}
        changed = "recompute" if is_joined(output) else if_settings_changed
        with ShardStore(output, settings, if_settings_changed=changed) as store:
            for name in store.missing(stamps):
                features = {kind: readers[kind].features(name, with_descriptors=False) for kind in parts[name]}
                is_masked = any(readers[kind].is_masked(name) for kind in features)
                store.add(name, joined_features_to_group(features, is_masked=is_masked), stamps[name])
            store.merge(drop=[name for name in names if name not in stamps])


def _parts(readers: Mapping[str, H5Reader], wanted: Mapping[str, set[str]], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """For each photo, the kinds that have features of it and are wanted, with their stamps."""
    stamps = {kind: dict(zip(names, reader.stamps(list(names)), strict=True)) for kind, reader in readers.items()}

    def of_photo(name: str) -> dict[str, str]:
        return {kind: found[name] for kind, found in stamps.items() if found[name] and name in wanted[kind]}

    return {name: of_photo(name) for name in names}


def _joined_stamp(readers: Mapping[str, H5Reader], stamps: Mapping[str, str]) -> str:
    """The stamp of a photo in the joined file: a hash of its kinds, their settings and stamps, in order.

    It has the settings of the kinds, and not the file: the others stay valid if a kind gets its first photo.
    """
    parts = [[kind, readers[kind].fingerprint, stamp] for kind, stamp in stamps.items()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
