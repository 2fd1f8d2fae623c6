"""Datasets by name: lists them, finds their folders, and downloads missing files.

A dataset is a folder of `datasets/`. It contains its photos in `images/`, or a file `files.tsv` that lists the files to
download. Each line of `files.tsv` is `path TAB bytes TAB sha256 TAB addresses`; `-` means unknown. Downloaded files go to
`datasets/NAME` in the download cache. The description, licence and origin of a dataset are the comment at the head of
`configs/dataset/NAME.yaml`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from tqdm import tqdm

from sfm_lightglue.download import FetchError, WrongFileError, cache_dir, fetch, matches_checksum
from sfm_lightglue.poses import PosedCamera, write_poses
from sfm_lightglue.registry import closest
from sfm_lightglue.settings import fingerprint

logger = logging.getLogger(__name__)

STAMP = ".verified"
"""File in the folder of a dataset. It records that the hashes of all files were checked."""


@dataclass(frozen=True)
class DatasetFile:
    """One line of `files.tsv`. A `.zip` is unpacked: the photos below its folder `images` become `images/`."""

    path: str
    size: int | None
    """Size in bytes; None if unknown."""
    sha256: str | None
    urls: tuple[str, ...]


@dataclass(frozen=True)
class DatasetEntry:
    """What is known about one dataset."""

    name: str
    description: str
    licence: str
    origin: str
    files: tuple[DatasetFile, ...]
    """Files to download; empty for a dataset that ships with the package."""
    folder: Path
    """Folder of the dataset, whether or not it exists yet. It holds `images/` and, with ground truth, `poses.txt`."""
    is_present: bool
    """True if all files are there. Their hashes may not have been checked yet."""

    @property
    def size(self) -> int | None:
        """Total size of the downloads in bytes; None if it is unknown."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def is_verified(self) -> bool:
        """True if the SHA-256 of every download is known."""
        return all(file.sha256 for file in self.files)


def list_datasets() -> list[DatasetEntry]:
    """All datasets, sorted by name. Nothing is downloaded."""
    root = _shipped("datasets")
    names = [path.name for path in root.iterdir() if (path / "files.tsv").is_file() or (path / "images").is_dir()]
    return [_entry(name) for name in sorted(names)]


def dataset_folder(name: str) -> str:
    """The folder of a dataset, whether or not its photos are there yet. The configuration calls it as `${dataset_folder:NAME}`.

    Raises: ValueError if there is no dataset of this name. The message names the closest one.
    """
    return str(_find(name).folder)


def ensure_dataset(name: str) -> Path:
    """The folder of a dataset, after downloading files that are missing or damaged.

    Each file is hashed once, even if the user put it there. Later only its size and time are compared.

    Raises: ValueError for an unknown name or wrong content, ConnectionError if files cannot be downloaded.
    """
    entry = _find(name)
    return entry.folder if entry.is_present and _is_stamped(entry.folder, entry.files) else fetch_dataset(name)


def fetch_dataset(name: str, destination: Path | str | None = None) -> Path:
    """Downloads the files of a dataset that are missing or damaged. Returns the folder of the dataset.

    Args:
        name: Name of the dataset.
        destination: Folder to download to; None stands for the download cache. A dataset that ships with the package stays where
            it is: nothing is downloaded or copied.

    Raises:
        ValueError: The name is unknown, or a file has the wrong content.
        ConnectionError: A file cannot be downloaded.
    """
    entry = _find(name)
    if not entry.files:
        return entry.folder
    folder = Path(destination).expanduser() if destination else entry.folder
    missing = [file for file in entry.files if not _is_done(folder, file, check_hash=True)]
    for file in missing:
        if (folder / file.path).is_file():
            logger.warning(
                "%s is not the file of dataset %s (%s): downloading it again", folder / file.path, name, _expected(file)
            )
    logger.info("dataset %s: %s", name, f"downloading {len(missing)} files to {folder}" if missing else f"complete in {folder}")
    logger.info("dataset %s: licence: %s", name, entry.licence)
    total = None if any(file.size is None for file in missing) else sum(file.size or 0 for file in missing)
    with tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        for num_fetched, file in enumerate(missing):
            try:
                fetch(file.urls, folder / file.path, sha256=file.sha256, size=file.size, bar=bar)
            except (FetchError, WrongFileError) as error:
                lacking = f"{len(missing) - num_fetched} of {len(entry.files)} files are missing in {folder}"
                message = f"dataset {name} is not complete: {lacking}. {error}\n(or use photos of your own: dataset=folder)"
                raise type(error)(message, error.reasons) from error
            if file.path.endswith(".zip"):
                _unpack_images(folder / file.path, folder / "images")
    if _has_cameras(entry.files):
        convert_cameras(folder / "gt_dense_cameras", folder / "poses.txt")
    if _hashed(entry.files):
        with contextlib.suppress(OSError):  # a read-only folder is hashed each time
            (folder / STAMP).write_text(_stamp(folder, entry.files))
    return folder


def convert_cameras(cameras: Path, poses: Path) -> None:
    """Writes a folder of ground-truth cameras (`PHOTO.camera` of Strecha's benchmark) as one pose file.

    Raises: ValueError if a file is not a camera. The message names the file.
    """
    posed = {}
    for path in sorted(cameras.glob("*.camera")):
        try:
            posed[path.stem] = read_camera(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    write_poses(poses, posed)


def read_camera(text: str) -> PosedCamera:
    """The camera of a `.camera` text.

    The text holds K in rows 0-2, a row of zeros, the rotation of world_from_cam in rows 4-6, the camera centre, and the size. K
    already uses COLMAP's pixel origin: the shift that fits the photos best is at most 0.1 px, within the error of that fit.

    Raises: ValueError if the text does not hold 26 numbers.
    """
    numbers = np.array(text.split(), np.float64)
    if numbers.size != 26:
        raise ValueError(f"expected the 26 numbers of a camera (K, 0 0 0, R, centre, size), found {numbers.size}")
    left, _, right = np.linalg.svd(numbers[12:21].reshape(3, 3).T)  # R has 6 digits: the nearest rotation
    rotation = left @ right
    size = int(numbers[24]), int(numbers[25])
    return PosedCamera(rotation, -rotation @ numbers[21:24], numbers[:9].reshape(3, 3), size)


def _find(name: str) -> DatasetEntry:
    entries = {entry.name: entry for entry in list_datasets()}
    if name not in entries:
        raise ValueError(f"dataset {name!r} does not exist. {closest(name, entries)}")
    return entries[name]


def _entry(name: str) -> DatasetEntry:
    description, about = _read_comment(_shipped("configs") / "dataset" / f"{name}.yaml")
    manifest = _shipped("datasets") / name / "files.tsv"
    files = _read_manifest(manifest) if manifest.is_file() else ()
    folder = cache_dir() / "datasets" / name if files else manifest.parent
    present = all(_is_done(folder, file, check_hash=False) for file in files)
    present = present and (not _has_cameras(files) or (folder / "poses.txt").is_file())
    return DatasetEntry(name, description, about.get("licence", ""), about.get("origin", ""), files, folder, present)


def _read_comment(path: Path) -> tuple[str, dict[str, str]]:
    """The first line of the comment at the head of a YAML file, and the `key: value` lines of that comment."""
    lines = path.read_text().splitlines() if path.is_file() else []
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comment = [line.lstrip("# ") for line in lines[:end]]
    return (comment or [""])[0], dict(line.split(": ", 1) for line in comment[1:] if ": " in line)


def _read_manifest(path: Path) -> tuple[DatasetFile, ...]:
    files = []
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            name, size, sha256, urls = line.split("\t")
            files.append(
                DatasetFile(name, None if size == "-" else int(size), None if sha256 == "-" else sha256, tuple(urls.split()))
            )
    return tuple(files)


def _is_done(folder: Path, file: DatasetFile, *, check_hash: bool) -> bool:
    if file.path.endswith(".zip"):  # the archive is removed after it is unpacked
        return (folder / "images").is_dir()
    return matches_checksum(folder / file.path, file.sha256 if check_hash else None, file.size)


def _expected(file: DatasetFile) -> str:
    return f"expected {'any number of' if file.size is None else file.size} bytes with SHA-256 {file.sha256 or 'unknown'}"


def _hashed(files: Sequence[DatasetFile]) -> list[DatasetFile]:
    """Files with a known hash that are kept as they are."""
    return [file for file in files if file.sha256 and not file.path.endswith(".zip")]


def _is_stamped(folder: Path, files: Sequence[DatasetFile]) -> bool:
    stamp = folder / STAMP
    return not _hashed(files) or (stamp.is_file() and stamp.read_text() == _stamp(folder, files))


def _stamp(folder: Path, files: Sequence[DatasetFile]) -> str:
    """Content of the file `STAMP`. It depends on the expected hashes and on the size and time of each file."""
    found = [(file.path, file.sha256, (folder / file.path).stat()) for file in _hashed(files)]
    return fingerprint([(path, sha256, about.st_size, about.st_mtime_ns) for path, sha256, about in found])


def _has_cameras(files: Sequence[DatasetFile]) -> bool:
    return any(file.path.endswith(".camera") for file in files)


def _unpack_images(archive: Path, images: Path) -> None:
    """Unpacks everything below a folder `images` of the zip, all or nothing, and removes the zip.

    Raises: ValueError if it is not a zip, contains no photos, or names files outside its own folder.
    """
    part = images.with_name(images.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _extract(archive, part)
    except (zipfile.BadZipFile, zlib.error, ValueError) as error:
        shutil.rmtree(part, ignore_errors=True)
        archive.unlink()
        raise ValueError(f"{archive} was removed because it is not the expected zip of photos: {error}") from error
    part.replace(images)
    archive.unlink()


def _extract(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            name = PureWindowsPath(member.filename)  # splits at / and \, and knows drive letters
            if name.anchor or ".." in name.parts:
                raise ValueError(f"it would write outside its folder ({member.filename!r})")
            if "images" in name.parts[:-1] and not member.is_dir():
                path = target.joinpath(*name.parts[name.parts.index("images") + 1 :])
                path.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    if not target.is_dir():
        raise ValueError("it contains no folder named images")


def _shipped(kind: str) -> Path:
    """The folder `configs` or `datasets`: inside the installed package, or beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / ("dataset_files" if kind == "datasets" else kind)  # datasets.py has the other name
    return inside if inside.is_dir() else package.parent / kind
