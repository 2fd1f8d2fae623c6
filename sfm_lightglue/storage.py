"""The files between the stages: features, matches and verified matches in HDF5, in hloc's layout. The only user of h5py.

While a stage runs, its results go to shards, `OUT/features.h5.shards/000000.h5` ...: each written to a temporary name,
synchronised to disk and renamed, so that a killed process leaves whole shards or none. When the stage is complete they are
merged into `OUT/features.h5` by the same rename. What the files hold is what is done; a stage resumes by asking for the rest.

Layout (readable by hloc): `name/{keypoints, scores, descriptors, image_size}` for features, `name0/name1/{matches0,
matching_scores0}` with `/` in names replaced by `-` for matches. Keypoints are float32: float16 would round them to whole
pixels above 1024. The root of each file holds the settings it was made with, as JSON, and their fingerprint.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfm_lightglue.products import Features, Matches
from sfm_lightglue.settings import describe_changes, fingerprint

logger = logging.getLogger(__name__)

MAX_OPEN_FILES = 32
LIBVER = ("v110", "v110")
"""Format of HDF5 1.10, with checksums: what HDF5 2.0 writes as `latest`, the HDF5 1.14 of older h5py cannot read."""


@dataclass(frozen=True)
class GroupData:
    """What is stored under one key: datasets, and attributes of the group ("") or of a dataset."""

    datasets: Mapping[str, np.ndarray]
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def features_to_group(features: Features) -> GroupData:
    """hloc's layout: keypoints float32, descriptors (d, n) and scores float16."""
    datasets: dict[str, np.ndarray] = {
        "keypoints": features.keypoints.astype(np.float32),
        "scores": features.scores.astype(np.float16),
        "descriptors": np.ascontiguousarray(features.descriptors.T.astype(np.float16)),
        "image_size": np.asarray(features.image_size, np.int64),
    }
    if features.scales is not None and features.orientations is not None:
        datasets |= {"scales": features.scales.astype(np.float32), "oris": features.orientations.astype(np.float32)}
    return GroupData(datasets, {"keypoints": {"uncertainty": float(features.pixel_scale)}})


def features_from_group(group: h5py.Group, name: str) -> Features:
    """Features of hloc's groups too: half-precision keypoints, `keypoint_scores`, absent scores or uncertainty.

    Raises: KeyError for a missing dataset, ValueError where the datasets do not belong together.
    """
    for required in ("keypoints", "descriptors", "image_size"):
        if required not in group:
            raise KeyError(f"{group.file.filename}: {name} has no dataset {required!r}, only {sorted(group)}")
    keypoints = group["keypoints"]
    count = keypoints.shape[0]
    scores = next((group[key] for key in ("scores", "keypoint_scores", "score") if key in group), None)
    shapes = keypoints.shape, group["descriptors"].shape, (count,) if scores is None else scores.shape
    if shapes != ((count, 2), (group["descriptors"].shape[0], count), (count,)):
        raise ValueError(
            f"{group.file.filename}: {name} has keypoints, descriptors, scores of shapes {shapes}, expected (n, 2), (d, n), (n,)"
        )
    return Features(
        keypoints=keypoints[()].astype(np.float32),
        scores=np.ones(count, np.float32) if scores is None else scores[()].astype(np.float32),
        descriptors=group["descriptors"][()].astype(np.float32).T,
        image_size=(int(group["image_size"][0]), int(group["image_size"][1])),
        pixel_scale=float(keypoints.attrs.get("uncertainty", 1.0)),
        scales=group["scales"][()].astype(np.float32) if "scales" in group else None,
        orientations=group["oris"][()].astype(np.float32) if "oris" in group else None,
        name=name,
    )


def matches_to_group(matches: Matches, num_keypoints0: int) -> GroupData:
    """hloc's layout: one entry per keypoint of image 0, int16 where the indices fit, else int32."""
    matches0 = matches.matches0(num_keypoints0)
    dtype = np.int16 if matches0.max(initial=-1) <= np.iinfo(np.int16).max else np.int32
    scores0 = matches.matching_scores0(num_keypoints0).astype(np.float16)
    attributes = {"": {"stop_layer": matches.stop_layer}}
    return GroupData({"matches0": matches0.astype(dtype), "matching_scores0": scores0}, attributes)


def matches_from_group(group: h5py.Group) -> Matches:
    """Matches of a group `name0/name1`; absent scores count as 1."""
    matches0 = group["matches0"][()].astype(np.int64)
    scores = group["matching_scores0"][()] if "matching_scores0" in group else np.ones(len(matches0))
    return Matches.from_dense(matches0, scores.astype(np.float32), int(group.attrs.get("stop_layer", 0)))


def match_key(name0: str, name1: str) -> str:
    """hloc's key of a pair."""
    return f"{name0.replace('/', '-')}/{name1.replace('/', '-')}"


def check_match_keys(names: Iterable[str]) -> None:
    """Raises: ValueError where two images would share a key (`a/b.jpg` and `a-b.jpg`)."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.replace("/", "-"), name)
        if other != name:
            raise ValueError(f"images {other!r} and {name!r} have the same key {match_key(other, name)!r}: rename one of them")


@contextlib.contextmanager
def _explained_damage(path: Path, errors: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turns what h5py raises (OSError, RuntimeError, KeyError ..., by what is damaged) into a ValueError that says what to do."""
    try:
        yield
    except errors as error:
        raise ValueError(f"{path} is not a readable HDF5 file ({error}): delete it to compute it again") from error


class H5Reader:
    """A features or matches file, ours or hloc's, opened for reading: a context manager."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __enter__(self) -> H5Reader:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist: run the stage that writes it first")
        with _explained_damage(self.path):
            self.file = h5py.File(self.path, "r")
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the settings the file was made with; for foreign files, of the path's content size and name."""
        return str(self.file.attrs.get("fingerprint", f"foreign {self.path.name} {self.path.stat().st_size}"))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the file was made with; empty for foreign files."""
        return dict(json.loads(self.file.attrs.get("settings", "{}")))

    def names(self) -> list[str]:
        """Sorted keys of all features."""
        with _explained_damage(self.path):
            return sorted(_leaf_groups(self.file))

    def stamp(self, key: str) -> str:
        """What tells the content of an item from another: its stamp, in foreign files a hash; empty where there is no item."""
        if key not in self.file:
            return ""
        with _explained_damage(self.path):
            if stamp := self.file[key].attrs.get("stamp"):
                return str(stamp)
            return fingerprint({name: hashlib.sha256(data[()]).hexdigest() for name, data in self.file[key].items()})

    def features(self, name: str) -> Features:
        """Raises: KeyError that names the closest image."""
        if name not in self.file:
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f", did you mean {close[0]!r}?" if close else f"; it holds {len(self.names())} images"
            raise KeyError(f"{self.path} has no features of image {name!r}{hint}")
        with _explained_damage(self.path, (OSError, RuntimeError)):
            return features_from_group(self.file[name], name)

    def image_size(self, name: str) -> tuple[int, int]:
        """(width, height) px of the photo, without reading its features."""
        width, height = self.file[name]["image_size"][()]
        return int(width), int(height)

    def pixel_scale(self, name: str) -> float:
        """Size of a detection pixel in px of the photo, without reading its features; 1 where the file does not say."""
        return float(self.file[name]["keypoints"].attrs.get("uncertainty", 1.0))

    def find_matches(self, name0: str, name1: str) -> Matches | None:
        """Matches of the pair under any of hloc's keys, either way round; None where there are none."""
        key, flipped = self._find_pair(name0, name1)
        if not key:
            return None
        with _explained_damage(self.path, (OSError, RuntimeError)):
            matches = matches_from_group(self.file[key])
        return _flip(matches) if flipped else matches

    def match_stamp(self, name0: str, name1: str) -> str:
        """The `stamp` of the matches that `find_matches` finds; empty where there are none."""
        key, _ = self._find_pair(name0, name1)
        return self.stamp(key) if key else ""

    def _find_pair(self, name0: str, name1: str) -> tuple[str, bool]:
        """The pair's key, empty where there is none, and whether it is stored the other way round."""
        for key, flipped in _pair_keys(name0, name1):
            if key in self.file and "matches0" in self.file[key]:
                return key, flipped
        return "", False

    def global_descriptors(self, names: Iterable[str]) -> np.ndarray:
        """float32 (n, d): hloc's `global_descriptor` of each image."""
        names = list(names)
        missing = [name for name in names if name not in self.file or "global_descriptor" not in self.file[name]]
        if missing:
            raise KeyError(f"{self.path} has no global_descriptor of {len(missing)} images, the first is {missing[0]!r}")
        return np.stack([self.file[name]["global_descriptor"][()].astype(np.float32) for name in names])

    def item(self, key: str) -> GroupData:
        """Everything stored under the key."""
        return _read_item(self.file[key])


def _pair_keys(name0: str, name1: str) -> Iterator[tuple[str, bool]]:
    """The four keys hloc has used, and whether the pair is stored the other way round."""
    for separator in ("/", "_"):
        for first, second, flipped in ((name0, name1, False), (name1, name0, True)):
            yield f"{first.replace('/', '-')}{separator}{second.replace('/', '-')}", flipped


def _flip(matches: Matches) -> Matches:
    order = np.argsort(matches.indices[:, 1], kind="stable")
    return Matches(matches.indices[order][:, ::-1].copy(), matches.scores[order], matches.stop_layer)


def _leaf_groups(group: h5py.Group, prefix: str = "") -> Iterator[str]:
    """Keys of all groups that hold datasets."""
    for name, child in group.items():
        if isinstance(child, h5py.Dataset):
            yield prefix.rstrip("/")
            return
        yield from _leaf_groups(child, f"{prefix}{name}/")


class SettingsChanged(ValueError):
    """The file on disk was made with other settings than this run asks for."""


class ShardStore:
    """Crash-safe writer of one stage's results: a context manager around shards and their merged file.

    `stamps` maps each key that is complete on disk to its content stamp (what it was computed from). Leaving the context,
    also by an exception or Ctrl-C, keeps all that was added.
    """

    def __init__(
        self,
        path: Path | str,
        settings: Mapping[str, Any],
        *,
        if_settings_changed: str = "refuse",
        shard_items: int = 64,
        shard_seconds: float = 20,
    ) -> None:
        self.path, self.shards = Path(path), Path(f"{path}.shards")
        self.settings = json.loads(json.dumps(settings, sort_keys=True))
        self.fingerprint = fingerprint(self.settings)
        self.if_settings_changed = if_settings_changed
        self.shard_items, self.shard_seconds = shard_items, shard_seconds
        self.stamps: dict[str, str] = {}
        self._places: dict[str, Path] = {}  # key -> file with its newest item
        self._buffer: dict[str, GroupData] = {}
        self._buffer_since = 0.0
        self._next_shard = 0

    def __enter__(self) -> ShardStore:
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder, expected the name of a file such as {self.path}.h5")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for stale in (*self.shards.glob("*.tmp"), self.path.with_name(f"{self.path.name}.tmp")):
            stale.unlink(missing_ok=True)
        shards = sorted(self.shards.glob("*.h5"))
        self._next_shard = int(shards[-1].stem) + 1 if shards else 0
        for path in (self.path, *shards):
            if path.exists():
                self._load(path)
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()

    def missing(self, stamps: Mapping[str, str]) -> list[str]:
        """Keys of `stamps`, in their order, that are not on disk or were computed from something else."""
        return [key for key, stamp in stamps.items() if self.stamps.get(key) != stamp]

    def add(self, key: str, item: GroupData, stamp: str) -> None:
        """Keep the result; it is on disk after at most `shard_items` results or `shard_seconds`."""
        if not self._buffer:
            self._buffer_since = time.monotonic()
        attributes = {**item.attributes, "": {**item.attributes.get("", {}), "stamp": stamp}}
        self._buffer[key] = GroupData(item.datasets, attributes)
        self.stamps[key] = stamp
        if len(self._buffer) >= self.shard_items or time.monotonic() - self._buffer_since > self.shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered as one shard."""
        if not self._buffer:
            return
        self.shards.mkdir(exist_ok=True)
        path = self.shards / f"{self._next_shard:06d}.h5"
        with self._write(path) as file:
            for key in sorted(self._buffer):
                _write_item(file, key, self._buffer[key])
        self._places |= dict.fromkeys(self._buffer, path)
        self._next_shard += 1
        self._buffer = {}

    def merge(self, drop: Iterable[str] = ()) -> None:
        """Bring all shards into the merged file and remove them; without the keys of `drop`, which are no longer true."""
        self.flush()
        dropped, shards = self.stamps.keys() & set(drop), sorted(self.shards.glob("*.h5"))
        if not dropped and not shards and self.path.exists():
            return
        for key in dropped:
            del self.stamps[key], self._places[key]
        with self._write(self.path) as merged:
            for key, item in _read_items(self._places):  # written anew: h5py's copy would keep traces of the shards' order
                _write_item(merged, key, item)
        self._places = dict.fromkeys(self._places, self.path)
        for shard in shards:
            shard.unlink()
        with contextlib.suppress(OSError):
            self.shards.rmdir()

    def _load(self, path: Path) -> None:
        """Take in the keys of a file, after its settings were checked. Shards are read whole: what is damaged is left out."""
        is_shard = path != self.path
        try:
            with _explained_damage(path), h5py.File(path, "r") as file:
                old, settings = str(file.attrs.get("fingerprint", "")), json.loads(file.attrs.get("settings", "{}"))
                stamps = {key: str(file[key].attrs.get("stamp", "")) for key in _leaf_groups(file)}
                for key in stamps if is_shard else ():
                    _read_item(file[key])
        except ValueError as error:
            if not is_shard:
                raise
            logger.warning("%s is damaged (%s) and its results are computed again", path, error.__cause__)
            path.unlink()
            return
        if old != self.fingerprint:
            self._settings_changed(path, old, settings)
            return
        self.stamps |= stamps
        self._places |= dict.fromkeys(stamps, path)

    def _settings_changed(self, path: Path, old_fingerprint: str, old: Mapping[str, Any]) -> None:
        if not old_fingerprint:
            raise SettingsChanged(f"{path} was not written by sfm_lightglue: choose another output folder")
        if self.if_settings_changed != "recompute":
            raise SettingsChanged(
                f"{path} was made with other settings ({describe_changes(old, self.settings)}): choose another output folder, "
                f"or say execution.if_settings_changed=recompute to replace it"
            )
        logger.warning("%s was made with other settings (%s): it is replaced", path, describe_changes(old, self.settings))
        path.unlink()

    @contextlib.contextmanager
    def _write(self, path: Path) -> Iterator[h5py.File]:
        """An empty HDF5 file that appears under its name, whole and on disk, when the block ends."""
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            with h5py.File(temporary, "w", libver=LIBVER) as file:
                file.attrs["settings"] = json.dumps(self.settings, sort_keys=True)
                file.attrs["fingerprint"] = self.fingerprint
                yield file
        except (OSError, RuntimeError) as error:  # h5py raises either
            raise OSError(f"{path} could not be written, is the disk full? ({error})") from error
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(path)


def _read_item(group: h5py.Group) -> GroupData:
    datasets = dict(group.items())
    attributes = {name: dict(dataset.attrs) for name, dataset in datasets.items()}
    return GroupData({name: dataset[()] for name, dataset in datasets.items()}, {"": dict(group.attrs), **attributes})


def _read_items(places: Mapping[str, Path]) -> Iterator[tuple[str, GroupData]]:
    """Sorted keys and their items from the files of `places`, few of which are open at a time."""
    files: dict[Path, h5py.File] = {}  # the least recently used first
    try:
        for key in sorted(places):
            path = places[key]
            with _explained_damage(path):
                files[path] = files.pop(path, None) or h5py.File(path, "r")
                item = _read_item(files[path][key])
            yield key, item
            if len(files) > MAX_OPEN_FILES:
                files.pop(next(iter(files))).close()
    finally:
        for file in files.values():
            file.close()


def _write_item(file: h5py.File, key: str, item: GroupData) -> None:
    group = file.require_group(key)
    for name in sorted(item.datasets):
        array = item.datasets[name]
        # gzip takes two thirds off matches (mostly -1) at 0.2 ms a pair; on features it costs 33 ms an image for 7 %
        options = {"compression": 1} if name in ("matches0", "matching_scores0") and array.size > 64 else {}
        group.create_dataset(name, data=array, **options)
    for target, values in item.attributes.items():
        (group[target] if target else group).attrs.update(values)
