"""Downloads of single files: several addresses, resumed transfers, checksums.

A file is downloaded as `NAME.part` and gets its name when it is complete and its checksum is right. A killed download leaves the
`.part` file, from which the next one continues.

Environment variables: `SFM_LIGHTGLUE_CACHE` is the folder of all downloads. `SFM_LIGHTGLUE_MIRROR` is the address of a folder
with the same file names; it is tried first. `SFM_LIGHTGLUE_OFFLINE=1` forbids the network.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import logging
import os
import queue
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from sfm_lightglue import __version__
from sfm_lightglue.files import locked, sha256_of

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0
"""Longest wait for the next bytes."""
CONNECT_S = 4.0
"""Longest wait for the first connection to a host, and for its name."""
CONTINUATIONS = 3
"""How often a cut transfer is continued at the same address. It stops earlier if a connection brings no new bytes."""
AGAIN_S = 60.0
"""After this time a host is tried again, s."""
BLOCK_BYTES = 1 << 16


class FetchError(ConnectionError):
    """No address served the file. `reasons` maps each address to the reason."""

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})


class WrongFileError(ValueError):
    """An address served another file than expected. `reasons` maps each address to the reason."""

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})


_tried_hosts: dict[tuple[str, int], tuple[float, str | None]] = {}
"""Host and port -> until when it need not be tried again, and why no connection could be made, if none could."""


class _Unreachable(Exception):
    """One address failed. The text says why."""


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    sha256: str | None,
    size: int | None,
    progress: bool = True,
    bar: tqdm | None = None,
) -> None:
    """Downloads the file to `path`, from the first of `urls` that serves it. Does nothing if the file is already there.

    Args:
        urls: Addresses, tried in order after the mirror.
        path: File to write. Its folder is created.
        sha256: Expected hash, 64 hexadecimal digits; None skips this check.
        size: Expected size in bytes; None skips this check.
        progress: Shows a progress bar.
        bar: Counts the bytes in this bar instead of a new one.

    Raises:
        FetchError: No address served the file. The message lists all addresses tried.
        WrongFileError: An address served other content. The message lists all addresses tried.
        OSError: The disk is full or read-only.
    """
    if matches_checksum(path, sha256, size):
        return
    if is_offline():
        raise _failure(path, {url: "not tried because SFM_LIGHTGLUE_OFFLINE is set" for url in urls}, wrong=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    own_bar = tqdm(unit="B", unit_scale=True, desc=path.name, leave=False, disable=None if progress and bar is None else True)
    counter = _Counter(own_bar if bar is None else bar)  # a bar of unknown length has no truth value
    reasons, wrong = {}, False
    with _lock(path.with_name(path.name + ".lock")), own_bar:
        if matches_checksum(path, sha256, size):  # another process was faster
            return
        for url in _with_mirror(urls, path.name):
            logger.info("fetching %s from %s", path.name, url)
            try:
                _download(url, part, sha256, size, counter)
                part.replace(path)
                return
            except (_Unreachable, WrongFileError) as error:
                reasons[url] = str(error)
                wrong |= isinstance(error, WrongFileError)
    raise _failure(path, reasons, wrong)


def read_page(url: str) -> str:
    """The text of a page, such as the list of files of a package index.

    Raises: FetchError if the address does not answer.
    """
    try:
        with _open(url, 0) as response:
            return b"".join(iter(lambda: _read(response), b"")).decode()
    except _Unreachable as error:
        raise FetchError(f"{url} could not be read: {error}", {url: str(error)}) from error


def matches_checksum(path: Path, sha256: str | None, size: int | None) -> bool:
    """True if the file exists and has this SHA-256 and this size in bytes. None skips a check."""
    return path.is_file() and size in (None, path.stat().st_size) and (sha256 is None or sha256_of(path) == sha256)


def sha256_once(path: Path) -> str:
    """SHA-256 of a file, computed once per process (48 MB take 35 ms) and again if the file's size or time changes."""
    about = path.stat()
    return _sha256_as_of(path, about.st_size, about.st_mtime_ns)


@functools.cache
def _sha256_as_of(path: Path, size: int, changed_ns: int) -> str:
    return sha256_of(path)


def cache_dir() -> Path:
    """Folder of all downloads: $SFM_LIGHTGLUE_CACHE, or $XDG_CACHE_HOME/sfm_lightglue, or ~/.cache/sfm_lightglue."""
    if own := os.environ.get("SFM_LIGHTGLUE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sfm_lightglue"


def is_offline() -> bool:
    """True if the environment forbids the network: SFM_LIGHTGLUE_OFFLINE is set, and not to 0."""
    return os.environ.get("SFM_LIGHTGLUE_OFFLINE", "0").lower() not in ("", "0", "false", "no")


def _with_mirror(urls: Sequence[str], name: str) -> list[str]:
    mirror = os.environ.get("SFM_LIGHTGLUE_MIRROR")
    return [*([f"{mirror.rstrip('/')}/{name}"] if mirror else []), *urls]


def _failure(path: Path, reasons: Mapping[str, str], wrong: bool) -> FetchError | WrongFileError:
    tried = "".join(f"\n  {url}: {reason}" for url, reason in reasons.items())
    message = f"{path.name} could not be downloaded:{tried}\nGet it another way and put it at {path}"
    return WrongFileError(message, reasons) if wrong else FetchError(message, reasons)


class _Counter:
    """Shows in a bar how much of one file has arrived, also after a transfer starts again."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar
        self.counted = 0

    def at(self, position: int, total: int | None = None) -> None:
        """Moves the bar to `position`, in bytes of the file. `total` sets the length of a bar that has none."""
        if total is not None and self.bar.total is None:
            self.bar.total = total
        self.bar.update(position - self.counted)
        self.counted = position


def _download(url: str, part: Path, sha256: str | None, size: int | None, counter: _Counter) -> None:
    """Fills `part` from one address and checks it. If an old `part` turns out wrong, the download starts again."""
    leftover = _length(part) > 0
    try:
        _transfer_all(url, part, size, counter)
        _check(part, sha256, size)
    except WrongFileError:
        part.unlink(missing_ok=True)
        counter.at(0)
        if not leftover:
            raise
        _download(url, part, sha256, size, counter)


def _transfer_all(url: str, part: Path, size: int | None, counter: _Counter) -> None:
    """Fills `part` to its full length. Cut connections are continued."""
    for remaining in reversed(range(CONTINUATIONS + 1)):
        before = _length(part)
        if size is not None and before >= size:
            return
        try:
            _transfer(url, part, size, counter)
            return
        except _Unreachable:
            if not remaining or _length(part) <= before:
                raise


def _transfer(url: str, part: Path, size: int | None, counter: _Counter) -> None:
    """One connection: appends the missing bytes, or starts again if the server cannot continue."""
    start = _length(part)
    with _open(url, start) as response:
        continued = start > 0 and response.status == 206
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise WrongFileError(f"the server sent another range than requested ({start}-)")
        position = start if continued else 0
        length = response.headers.get("Content-Length")
        total = size if length is None else position + int(length)
        if size is not None and total != size:
            raise _Unreachable(f"the file there has {total} bytes, expected {size}")
        counter.at(position, total)
        with part.open("ab" if continued else "wb") as stream:
            while block := _read(response):
                stream.write(block)
                position += len(block)
                counter.at(position)
    if total is not None and position < total:
        raise _Unreachable(f"connection cut after {position} of {total} bytes")


def _open(url: str, start: int) -> http.client.HTTPResponse:
    if problem := _find_problem(url):
        raise _Unreachable(problem)
    headers = {"User-Agent": f"sfm-lightglue/{__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        request = urllib.request.Request(url, headers=headers)
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        return response
    except urllib.error.HTTPError as error:
        if error.code == 416:
            raise WrongFileError(f"it is not longer than the {start} bytes downloaded before") from error
        raise _Unreachable(f"HTTP {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise _Unreachable(f"no answer within {TIMEOUT_S:g} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not an address
        raise _Unreachable(str(getattr(error, "reason", error))) from error


def _find_problem(url: str) -> str | None:
    """Why no connection to the host of the address can be made; None if one can, or if a proxy makes it."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname):
        return None
    host = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    until, problem = _tried_hosts.get(host, (0.0, None))
    if time.monotonic() > until:
        problem = _try_to_connect(*host)
        _tried_hosts[host] = time.monotonic() + AGAIN_S, problem
    return problem


def _try_to_connect(host: str, port: int) -> str | None:
    """Why no connection can be made; None if one can.

    A thread tries it: the search for a name may take half a minute without network, and cannot be given a limit.
    """
    answers: queue.Queue[str | None] = queue.Queue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), CONNECT_S).close()
            answers.put(None)
        except OSError as error:
            answers.put(str(error))

    threading.Thread(target=connect, daemon=True).start()
    try:
        return answers.get(timeout=CONNECT_S)
    except queue.Empty:
        return f"no connection within {CONNECT_S:g} s"


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Unreachable(f"connection cut ({error})") from error


def _check(part: Path, sha256: str | None, size: int | None) -> None:
    if size not in (None, found_size := _length(part)):
        raise WrongFileError(f"it has {found_size} bytes, expected {size}")
    if sha256 is not None and (found := sha256_of(part)) != sha256:
        raise WrongFileError(f"its SHA-256 is {found}, expected {sha256}")


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, so that two processes never write one download. Removes the file afterwards."""
    with locked(path):
        try:
            yield
        finally:
            with contextlib.suppress(PermissionError):  # Windows removes no open file; there filelock does it
                path.unlink(missing_ok=True)
