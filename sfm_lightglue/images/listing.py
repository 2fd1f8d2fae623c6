"""The photos of a folder."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sfm_lightglue.files import result_exists
from sfm_lightglue.images.masks_among_photos import masks_beside_photos, part_of
from sfm_lightglue.images.names import mask_names, similar_name, tell_once, warn_of_twins, warn_once
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.photo_names import folded

HEIC = (".heic", ".heif")
"""Readable only if the package pillow-heif is installed."""
EXTENSIONS = (
    *(".jpg", ".jpeg", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".avif"),
    *HEIC,
)
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".3gp", ".insv", ".360")
RAW = (
    ".cr2",
    ".cr3",
    ".crw",
    ".nef",
    ".nrw",
    ".arw",
    ".sr2",
    ".dng",
    ".raf",
    ".orf",
    ".rw2",
    ".pef",
    ".srw",
    ".x3f",
    ".3fr",
    ".iiq",
)
"""Raw files of cameras. No decoder here reads them."""
NO_PHOTOS = ("thumbs", "thumbnails", "@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found")
"""Folders, in lower case, that file managers and network storage fill with thumbnails and deleted files."""
SUMMARY_BEGINNING = b'{"stages":{'
"""The beginning of `summary.json`, without white space."""
OUTPUTS = ("features.h5", "pairs.tsv", "matches.h5", "verification.h5", "database.db", "reconstruction/settings.json")
"""Files of a run. A folder with two of them is an output."""
MASKS = ("mask", "masks")
"""Names, in lower case, of folders that may hold the masks of the photos beside them."""


def list_images(folder: Path | str, *, without: Iterable[Path | str] = (), masks: Path | str | None = None) -> list[str]:
    """Names of all photos in a folder. The file extension decides what is a photo.

    Some files are skipped: hidden folders, the `._*` files that macOS writes beside photos, folders of thumbnails and of deleted
    files, outputs of earlier runs and of COLMAP's dense reconstruction, a folder `masks` with the masks of the photos, links to a
    folder above or to one that is already listed, and file names that are not UTF-8. The log names each of these folders once.

    Args:
        folder: Folder of the photos, searched recursively. Linked folders are followed.
        without: Folders and files to skip. Paths outside `folder` have no effect.
        masks: Folder of masks, or one mask, that is in use. It is skipped. If the folder holds photos too, only the pictures
            that are masks of others are skipped.

    Returns:
        Paths relative to `folder`, with forward slashes, sorted. All other functions use these names.

    Raises:
        FileNotFoundError: If the folder does not exist or contains no photos. The message says what was found instead.

    Example:
        >>> list_images(photos)
        ['00.jpg', '01.jpg', '02.jpg', '03.jpg']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(_no_folder(folder))
    shared = None if masks is None else _shared_with_masks(folder, Path(masks))
    files = _find_files(folder, [*without, *([masks] if masks is not None and shared is None else [])])
    names = [name for name in files if _extension(name) in EXTENSIONS]
    names = _without_masks(folder, names if shared is None else _without_used_masks(folder, names, shared))
    if not names:
        raise FileNotFoundError(_no_photos(folder, files))
    if raw := [name for name in files if _extension(name) in RAW]:
        tell_once(f"the raw files of {folder} are left out ({_counted(raw)}): raw files are not read")
    if videos := [name for name in files if _extension(name) in VIDEOS]:
        tell_once(f"the videos of {folder} are left out ({_counted(videos)}). {how_to_use_videos(folder / videos[0])}")
    warn_of_twins(folder, names)
    return names


def find_pictures(folder: Path) -> list[str]:
    """Sorted names of all pictures below a folder, by extension, without those that `list_images` skips by their folder."""
    return [name for name in _find_files(folder) if _extension(name) in EXTENSIONS]


def how_to_use_videos(video: Path) -> str:
    """What to do with a video, for messages."""
    path = shlex.quote(str(video))
    return (
        f"Make photos of it first: python -m sfm_lightglue frames {path} FOLDER (it needs pip install 'sfm-lightglue[video]'), "
        f"or ffmpeg -i {path} -vf fps=2 -q:v 2 FOLDER/%05d.jpg"
    )


# --- walking ---------------------------------------------------------------------------------------------------------------


def _find_files(root: Path, without: Iterable[Path | str] = ()) -> list[str]:
    """Sorted names, relative to `root`, of all files below it. Each folder is entered once, and linked folders last."""
    return _Walk(root, without).names()


class _Walk:
    """Finds the files below a folder."""

    def __init__(self, root: Path, without: Iterable[Path | str]) -> None:
        self._root, self._names = root, list[str]()
        self._links: deque[tuple[Path, str]] = deque()
        """Links to folders that have not been followed yet, with the beginning of the names of their files."""
        self._seen = {str(root.resolve())}
        """Real paths of the folders that were entered."""
        self._left_out = {str(Path(path).resolve()) for path in without} - self._seen

    def names(self) -> list[str]:
        """Sorted names of the files, relative to the folder."""
        self._enter(self._root, "")
        while self._links:
            self._follow(*self._links.popleft())
        return sorted(self._names)

    def _follow(self, link: Path, prefix: str) -> None:
        """Enters the folder that a link points to, unless it was entered already."""
        target, holder = link.resolve(), link.parent.resolve()
        if target == holder or target in holder.parents:
            warn_once(f"{link} is left out: it links to {target}, which contains it")
        elif str(target) in self._seen:
            warn_once(f"{link} is left out: the folder that it links to, {target}, is listed already")
        elif str(target) not in self._left_out:
            self._seen.add(str(target))
            self._enter(link, prefix)

    def _enter(self, folder: Path, prefix: str) -> None:
        """Adds the files of a folder and of its subfolders, and notes the links."""
        try:
            entries = sorted(os.scandir(folder.resolve()), key=lambda entry: entry.name)  # real paths
        except OSError as error:
            warn_once(f"{folder} is left out: it cannot be read ({error})")
            return
        for entry in entries:
            if entry.path in self._left_out or not _is_text(folder, entry.name):
                continue
            try:
                self._add(entry, folder, prefix)
            except OSError as error:  # a link to itself, or a broken disk
                warn_once(f"{folder / entry.name} is left out: it cannot be read ({error})")

    def _add(self, entry: os.DirEntry[str], folder: Path, prefix: str) -> None:
        if entry.is_dir():
            self._enter_subfolder(entry, folder / entry.name, f"{prefix}{entry.name}/")
        elif entry.is_file():
            self._names.extend([prefix + entry.name] if not entry.name.startswith("._") else [])
        elif entry.is_symlink():
            warn_once(f"{folder / entry.name} is left out: the file that it links to does not exist")

    def _enter_subfolder(self, entry: os.DirEntry[str], path: Path, prefix: str) -> None:
        if reason := _why_no_photos(path):
            _tell_left_out(path, reason)
        elif entry.is_symlink():
            self._links.append((path, prefix))
        elif entry.path in self._seen:
            warn_once(f"{path} is left out: it is listed already, through a link")
        else:
            self._seen.add(entry.path)
            self._enter(path, prefix)


def _why_no_photos(folder: Path) -> str:
    """Why the pictures in a folder are no photos; empty if they may be."""
    if folder.name.startswith("."):
        return "it is hidden"
    if folder.name.casefold() in NO_PHOTOS:
        return "by its name it holds thumbnails or deleted files"
    if _is_output(folder) or (folder.name == "plots" and _is_output(folder.parent)):
        return "it is the output of a run"
    if (folder / "stereo" / "patch-match.cfg").exists() or (folder / "stereo" / "depth_maps").is_dir():
        return "it belongs to a dense reconstruction, and its pictures are copies"
    return ""


@functools.cache
def _tell_left_out(folder: Path, reason: str) -> None:
    """Logs, once, that a folder is left out. Folders without pictures, such as `.git`, are not mentioned."""
    if any(_extension(file) in EXTENSIONS for _, _, files in os.walk(folder) for file in files):
        tell_once(f"{folder} is left out: {reason}")


def _is_output(folder: Path) -> bool:
    """Whether this package wrote its results to the folder, also if `summary.json` is damaged or missing."""
    try:
        with (folder / "summary.json").open("rb") as summary:
            if re.sub(rb"\s", b"", summary.read(1000)).startswith(SUMMARY_BEGINNING):
                return True
    except OSError:
        pass
    return sum(result_exists(folder / name) for name in OUTPUTS) >= 2


def _without_masks(folder: Path, names: list[str]) -> list[str]:
    """The names without masks of other photos: `a.jpg.png` beside `a.jpg`, and folders called `mask` or `masks`.

    A folder is left out only if at least half of its pictures are named like masks of other photos: it may hold photos of masks.
    """
    known = {*names}
    beside = {name for name in names if name.lower().endswith(".png") and name[:-4] in known}
    if beside:
        warn_once(
            f"{folder}: {count_of(len(beside), 'mask')} left out, such as {min(beside)}. To use them, give dataset.masks={folder}"
        )
    inside: dict[str, list[str]] = {}
    for name in names:
        above = [path for path in PurePosixPath(name).parents if path.name.casefold() in MASKS]
        if above and name not in beside:
            inside.setdefault(above[-1].as_posix(), []).append(name)
    masks = beside.union(*inside.values())
    photos = [name for name in names if name not in masks]
    fitting = {folded(mask) for name in photos for mask in mask_names(PurePosixPath(name).name)} | {"mask"}
    for masks_folder, group in inside.items():
        if photos and 2 * sum(folded(PurePosixPath(name).stem) in fitting for name in group) >= len(group):
            path = folder / masks_folder
            warn_once(f"{path} is left out: it holds masks of the photos. To use them, give dataset.masks={path}")
        else:
            masks -= {*group}
    return [name for name in names if name not in masks]


def _shared_with_masks(folder: Path, masks: Path) -> str | None:
    """How the names of photos in the folder `masks` begin, if it holds photos and their masks; None if it holds no photos."""
    part = part_of(folder, masks) if masks.is_dir() else None
    return part if part == "" or (part and masks_beside_photos(find_pictures(masks))) else None


def _without_used_masks(folder: Path, names: list[str], part: str) -> list[str]:
    """The names without the masks among those that begin with `part`."""
    masks = {part + name for name in masks_beside_photos(name.removeprefix(part) for name in names if name.startswith(part))}
    if masks:
        tell_once(
            f"{folder / part}: {count_of(len(masks), 'picture is a mask', 'pictures are masks')} and no photos, "
            f"such as {min(masks)}"
        )
    return [name for name in names if name not in masks]


def _is_text(folder: Path, name: str) -> bool:
    """False for file names that are not UTF-8. Neither HDF5 nor COLMAP can store them."""
    if (printable := name.encode("utf-8", "backslashreplace").decode()) != name:
        warn_once(f"{folder / printable} is left out because its file name is not UTF-8: rename it")
        return False
    return True


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


# --- messages --------------------------------------------------------------------------------------------------------------


def _no_folder(folder: Path) -> str:
    """What is wrong with a path that is no folder."""
    if folder.is_file():
        if _extension(folder.name) in VIDEOS:
            return f"{folder} is a video, not a folder of photos. {how_to_use_videos(folder)}"
        return f"{folder} is a file, not a folder of photos: give the folder that holds the photos (dataset.images=DIR)"
    beside = sorted(path.name for path in folder.parent.iterdir()) if folder.parent.is_dir() else []
    message = f"image folder {folder} does not exist: give a folder of photos (dataset.images=DIR)"
    return f"{message}. {similar}" if (similar := similar_name(folder.name, beside)) else message


def _no_photos(folder: Path, files: list[str]) -> str:
    """Why a folder has no photos, and what it has instead."""
    if videos := [name for name in files if _extension(name) in VIDEOS]:
        return f"{folder} contains no photos, but {_counted(videos)}. {how_to_use_videos(folder / videos[0])}"
    if raw := [name for name in files if _extension(name) in RAW]:
        return f"{folder} contains no photos, but raw files ({_counted(raw)}): convert them to JPEG, PNG or TIFF first"
    message = f"{folder} contains no photos: expected files that end in {' '.join(EXTENSIONS)}"
    return f"{message}; found {_counted(files)}" if files else message


def _counted(files: list[str]) -> str:
    """Numbers of files by extension."""
    counts = Counter(_extension(name) or "without extension" for name in files)
    return ", ".join(f"{count} {extension}" for extension, count in counts.most_common(4))
