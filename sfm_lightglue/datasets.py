"""Datasets by name: what there is, where it lies, fetching what is not on this machine.

A dataset is a folder of `datasets/` that ships its photos in `images/`, or says in `files.tsv` where to fetch them: one file a
line, `path TAB bytes TAB sha256 TAB addresses`, `-` for what is unknown. Fetched files go to `datasets/NAME` in the download
cache. Description, licence and origin are the comment at the head of `configs/dataset/NAME.yaml`.
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

from sfm_lightglue.download import FetchError, WrongFileError, cache_dir, fetch, is_right
from sfm_lightglue.registry import closest
from sfm_lightglue.settings import fingerprint

logger = logging.getLogger(__name__)

STAMP = ".verified"
"""File in the folder of a dataset: says that its files were hashed, and found right."""


@dataclass(frozen=True)
class DatasetFile:
    """One line of `files.tsv`. A `.zip` is unpacked: its photos (all below a folder `images`) become `images/`."""

    path: str
    size: int | None
    """Bytes."""
    sha256: str | None
    urls: tuple[str, ...]


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset as listed."""

    name: str
    description: str
    licence: str
    origin: str
    files: tuple[DatasetFile, ...]
    """What is fetched; empty for a dataset that ships with the package."""
    folder: Path
    """Where it is or will be: holds `images/` and, with ground truth, `poses.txt`."""
    is_present: bool

    @property
    def size(self) -> int | None:
        """Bytes to fetch in all, None where unknown."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def is_verified(self) -> bool:
        """True where the SHA-256 of every file to fetch is known."""
        return all(file.sha256 for file in self.files)


def list_datasets() -> list[DatasetEntry]:
    """All datasets, by name. Nothing is fetched."""
    root = _shipped("datasets")
    names = [path.name for path in root.iterdir() if (path / "files.tsv").is_file() or (path / "images").is_dir()]
    return [_entry(name) for name in sorted(names)]


def dataset_folder(name: str) -> str:
    """The folder of a dataset, whether or not its photos are there yet: the resolver behind `${dataset_folder:NAME}`.

    Raises: ValueError that names the closest dataset.
    """
    return str(_find(name).folder)


def ensure_dataset(name: str) -> Path:
    """The folder of a dataset, fetched first where anything is missing or wrong.

    Files are hashed once, whoever put them there, and known afterwards by size and time.
    """
    entry = _find(name)
    return entry.folder if entry.is_present and _is_stamped(entry.folder, entry.files) else fetch_dataset(name)


def fetch_dataset(name: str, destination: Path | str | None = None) -> Path:
    """Fetch what is missing or damaged of a dataset into `destination` (default: the download cache); the folder it is in.

    A dataset that ships with the package is where it is: nothing is fetched or copied.

    Raises: ValueError for an unknown name or wrong content, ConnectionError where files cannot be had.
    """
    entry = _find(name)
    if not entry.files:
        return entry.folder
    folder = Path(destination).expanduser() if destination else entry.folder
    missing = [file for file in entry.files if not _is_done(folder, file, check_hash=True)]
    for file in missing:
        if (folder / file.path).is_file():
            logger.warning("%s is not the file of dataset %s (%s): it is fetched", folder / file.path, name, _expected(file))
    logger.info("dataset %s: %s", name, f"fetching {len(missing)} files to {folder}" if missing else f"complete in {folder}")
    logger.info("dataset %s: licence: %s", name, entry.licence)
    total = None if any(file.size is None for file in missing) else sum(file.size or 0 for file in missing)
    with tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        for file in missing:
            try:
                fetch(file.urls, folder / file.path, sha256=file.sha256, size=file.size, bar=bar)
            except (FetchError, WrongFileError) as error:
                message = f"dataset {name} is not complete. {error}\n(or use photos of your own: dataset=folder)"
                raise type(error)(message, error.reasons) from error
            if file.path.endswith(".zip"):
                _unpack_images(folder / file.path, folder / "images")
    if _has_cameras(entry.files):
        write_poses(folder / "gt_dense_cameras", folder / "poses.txt")
    if _hashed(entry.files):
        with contextlib.suppress(OSError):  # a folder that cannot be written is hashed each time
            (folder / STAMP).write_text(_stamp(folder, entry.files))
    return folder


def write_poses(cameras: Path, poses: Path) -> None:
    """Write the folder of ground-truth cameras (`PHOTO.camera` of Strecha's benchmark) as one `poses.txt`."""
    lines = ["# name qw qx qy qz tx ty tz fx fy cx cy width height (x_cam = R X + t, centre of the top-left pixel at 0.5)"]
    for path in sorted(cameras.glob("*.camera")):
        try:
            lines.append(pose_line(path.stem, *read_camera(path.read_text())))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    part = poses.with_name(poses.name + ".part")
    part.write_text("\n".join(lines) + "\n")
    part.replace(poses)


def read_camera(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """Intrinsics (3, 3), rotation (3, 3) and translation (3,) of cam_from_world, and (width, height), of a `.camera` text.

    The text holds K in rows 0-2, a row of zeros, the rotation of world_from_cam in rows 4-6, the camera centre, the size. K is
    in COLMAP's pixel origin as it stands: no shift fits the photos better (0.1 px at most, within the error of that fit).
    """
    numbers = np.array(text.split(), np.float64)
    if numbers.size != 26:
        raise ValueError(f"expected the 26 numbers of a camera (K, 0 0 0, R, centre, size), found {numbers.size}")
    left, _, right = np.linalg.svd(numbers[12:21].reshape(3, 3).T)  # R has 6 digits: back to a rotation
    rotation = left @ right
    return numbers[:9].reshape(3, 3), rotation, -rotation @ numbers[21:24], (int(numbers[24]), int(numbers[25]))


def pose_line(name: str, intrinsics: np.ndarray, rotation: np.ndarray, translation: np.ndarray, size: tuple[int, int]) -> str:
    """One line of `poses.txt`: the photo's name, cam_from_world as quaternion and translation, pinhole intrinsics, size in px."""
    pinhole = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
    values = [*_quaternion(rotation), *translation, *pinhole]
    return " ".join([name, *(f"{value:.12g}" for value in values), *map(str, size)])


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """(4,) unit quaternion w, x, y, z with w >= 0 of a rotation (3, 3).

    Source: the eigenvector of Davenport's K matrix (Bar-Itzhack 2000), which has no singular case.
    """
    trace = np.trace(rotation)
    matrix = np.empty((4, 4))
    matrix[0, 0] = trace
    matrix[0, 1:] = matrix[1:, 0] = (rotation - rotation.T)[[2, 0, 1], [1, 2, 0]]
    matrix[1:, 1:] = rotation + rotation.T - trace * np.eye(3)
    quaternion = np.linalg.eigh(matrix)[1][:, -1]
    return np.where(quaternion[0] < 0, -quaternion, quaternion)


def _find(name: str) -> DatasetEntry:
    entries = {entry.name: entry for entry in list_datasets()}
    if name not in entries:
        raise ValueError(f"no dataset is named {name!r}. {closest(name, entries)}")
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
    """The first line of the comment at the head of a YAML file, and its `key: value` lines."""
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
    if file.path.endswith(".zip"):  # the archive itself is removed once it is unpacked
        return (folder / "images").is_dir()
    return is_right(folder / file.path, file.sha256 if check_hash else None, file.size)


def _expected(file: DatasetFile) -> str:
    return f"expected {'any number of' if file.size is None else file.size} bytes with SHA-256 {file.sha256 or 'unknown'}"


def _hashed(files: Sequence[DatasetFile]) -> list[DatasetFile]:
    """Those whose hash is known, and which are kept as they are."""
    return [file for file in files if file.sha256 and not file.path.endswith(".zip")]


def _is_stamped(folder: Path, files: Sequence[DatasetFile]) -> bool:
    stamp = folder / STAMP
    return not _hashed(files) or (stamp.is_file() and stamp.read_text() == _stamp(folder, files))


def _stamp(folder: Path, files: Sequence[DatasetFile]) -> str:
    """Changes with the expected hashes, and with size or time of a file."""
    found = [(file.path, file.sha256, (folder / file.path).stat()) for file in _hashed(files)]
    return fingerprint([(path, sha256, about.st_size, about.st_mtime_ns) for path, sha256, about in found])


def _has_cameras(files: Sequence[DatasetFile]) -> bool:
    return any(file.path.endswith(".camera") for file in files)


def _unpack_images(archive: Path, images: Path) -> None:
    """Unpack what lies below a folder `images` of the zip, all or nothing, and remove the zip.

    Raises: ValueError for what is no zip, holds no photos, or names files outside its own folder.
    """
    part = images.with_name(images.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _extract(archive, part)
    except (zipfile.BadZipFile, zlib.error, ValueError) as error:
        shutil.rmtree(part, ignore_errors=True)
        archive.unlink()
        raise ValueError(f"{archive} was removed, it is not the zip of photos expected: {error}") from error
    part.replace(images)
    archive.unlink()


def _extract(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            name = PureWindowsPath(member.filename)  # knows /, \ and drive letters
            if name.anchor or ".." in name.parts:
                raise ValueError(f"it would write outside its folder ({member.filename!r})")
            if "images" in name.parts[:-1] and not member.is_dir():
                path = target.joinpath(*name.parts[name.parts.index("images") + 1 :])
                path.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    if not target.is_dir():
        raise ValueError("no folder named images in it")


def _shipped(kind: str) -> Path:
    """The folder `configs` or `datasets`: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    return package / kind if (package / kind).is_dir() else package.parent / kind
