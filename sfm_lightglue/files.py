"""Files that are written whole or not at all, files that others wrote, hashes of files, and locks between processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def written_whole(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`. When the block ends, the file that was written there becomes `path`.

    The file reaches the disk before it is renamed, so `path` is never half a file, even after a power cut. If the block raises,
    `path` keeps its old content. A killed process leaves `NAME.PID.tmp` behind; `remove_stale` deletes it.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale(path: Path | str, ending: str = "") -> None:
    """Deletes the temporary files `NAME.PID.tmp` + `ending` that killed processes left beside `path`. Folders stay.

    Call it only while no other process writes `path`.
    """
    for stale in temporary_files(path, ending):
        if stale.is_file():
            stale.unlink(missing_ok=True)


def remove_stale_folders(path: Path, mark: str) -> None:
    """Deletes the folders `NAME.PID.tmp` with a file `mark` that killed processes left beside the folder `path`.

    If the process was killed between two renames, the old folder `NAME.PID.tmp.old` becomes `path` again.

    Call it only while no other process writes `path`.
    """
    for old in filter(_is_folder, temporary_files(path, ".old")):
        if os.path.lexists(path):
            shutil.rmtree(old)
        else:
            old.rename(path)
    for stale in filter(_is_folder, temporary_files(path)):
        if (stale / mark).is_file() or {*stale.iterdir()} <= {*temporary_files(stale / mark)}:
            shutil.rmtree(stale)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def temporary_files(path: Path | str, ending: str = "") -> list[Path]:
    """Paths `NAME.PID.tmp` + `ending` beside `path`, sorted: of `written_whole`, and of killed processes."""
    path = Path(path)
    pattern = re.compile(re.escape(path.name) + r"\.\d+\.tmp" + re.escape(ending))
    return sorted(other for other in path.parent.glob("*.tmp*") if pattern.fullmatch(other.name))


FOLDER_MARK = "complete.json"
"""In the folder `NAME.shards`, this file says that the segments there stand for the file `NAME`, see `storage/`."""


def result_exists(path: Path | str) -> bool:
    """Whether a file of a run exists, or the segments that stand for it if it is large."""
    return os.path.exists(path) or os.path.exists(f"{path}.shards/{FOLDER_MARK}")  # noqa: PTH110 - faster, and on network drives


def check_one_file(path: Path | str, what: str) -> None:
    """Raises: FileNotFoundError if `path` is no file, also if a run keeps it in segments. `what` names the option."""
    if Path(path).is_file():
        return
    if result_exists(path):
        raise FileNotFoundError(
            f"{what}={path} is a large result that the run keeps in the folder {path}.shards; the command "
            "`export hloc OUT FOLDER` writes it as one file"
        )
    raise FileNotFoundError(f"{what}={path} does not exist")


def foreign_file(path: Path | str) -> ValueError:
    """The error for a file or folder that no run has written and that a run would replace."""
    return ValueError(
        f"{path} was not written by sfm_lightglue, or was changed since: a run would replace it. Move it away, or choose another "
        "output folder (output=DIR)"
    )


def free_path(path: Path, label: str) -> Path:
    """The first of `NAME.LABEL-1.ENDING`, `NAME.LABEL-2.ENDING`, ... beside `path` that does not exist."""
    number = 1
    while os.path.lexists(candidate := path.with_name(f"{path.stem}.{label}-{number}{path.suffix}")):
        number += 1
    return candidate


def read_own_json(path: Path, beginnings: tuple[str, ...]) -> dict[str, Any] | None:
    """The content of a JSON file that starts with one of `beginnings` (white space does not count), as `write_json` writes it.

    None if the file is damaged: empty, cut, or full of zeros after a power cut.

    Raises: ValueError, see `foreign_file`, if it begins in another way, so that no run can have written it.
    """
    data = path.read_bytes() if path.is_file() else b"not a file"
    text = re.sub(r"\s", "", data.rstrip(b"\0").decode("utf-8", "replace"))
    if not any(text.startswith(start) or start.startswith(text) for start in beginnings):
        raise foreign_file(path)
    with contextlib.suppress(ValueError):
        content = json.loads(data)
        if isinstance(content, dict):
            return content
    return None


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented UTF-8 JSON, whole or not at all. Raises: ValueError for NaN and infinity."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def sha256_of(path: Path, *, skip: int = 0) -> str:
    """SHA-256 of a file without its first `skip` bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(skip)
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path | str, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock file `path` during the block, so that only one process at a time is inside. A killed process frees it.

    Yields True. On file systems without locks (some network drives) it logs a warning, yields False and goes on.

    Raises: BlockingIOError if `wait` is False and another process holds the lock.
    """
    # A soft lock, which filelock would fall back to, is only a file: a killed process would leave it behind.
    lock = filelock.FileLock(path, timeout=-1 if wait else 0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BlockingIOError(f"another process holds the lock {path}") from error
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s): do not start a second process there", path, error)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
