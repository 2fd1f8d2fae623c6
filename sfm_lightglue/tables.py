"""`photos.tsv` and `pairs.tsv`: what became of each photo and each pair of a run, why, and what to try.

`tables_of` computes both tables from the files of any run: finished, failed or half finished. It needs no configuration.
"""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from sfm_lightglue.files import foreign_file, result_exists, written_whole
from sfm_lightglue.pair_files import read_reasons
from sfm_lightglue.pair_table import PairRow as PairRow
from sfm_lightglue.pair_table import PairTable, PhotoSums
from sfm_lightglue.photo_names import PhotoNames, read_photo_list
from sfm_lightglue.products import Pair
from sfm_lightglue.reasons import Limits, PhotoFacts, RunFacts, group_sizes, judge_photo
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import numbers_of
from sfm_lightglue.storage.segment_folder import folder_of

logger = logging.getLogger(__name__)

Row = TypeVar("Row", "PhotoRow", "PairRow")


@dataclass(frozen=True)
class PhotoRow:
    """A line of `photos.tsv`. None, and an empty cell, is what is not known."""

    photo: str
    """Name of the photo."""
    width: int | None
    """px of the photo as it is stored."""
    height: int | None
    keypoints: int | None
    pairs: int
    """Pairs that were selected with it."""
    verified_pairs: int
    matches: int
    """Matches of all its pairs together."""
    inliers: int
    """Inliers of its verified pairs together."""
    mean_score: float | None
    """Mean matching score of these inliers, 0..1."""
    model: int | None
    """Number of the model's folder; None if no model has the photo."""
    points: int
    """Points of the model that it sees."""
    reprojection_error_px: float | None
    """Mean distance of its keypoints from these points, px of the photo."""
    verdict: str
    """One of `reasons.PHOTO_VERDICTS`."""
    reason: str
    """Why it is not in the largest model; empty if it is."""
    advice: str
    """What to try."""


@dataclass(frozen=True)
class Tables:
    """What became of all photos and pairs."""

    photos: list[PhotoRow]
    """In the order of their names."""
    pairs: Sequence[PairRow]
    """In the order of `pairs.txt`, or of `pairs.tsv` if it has the same pairs."""
    has_sources: bool = False
    """Whether `pairs.tsv` has exactly these pairs: then a run has selected them."""


# --- files ---------------------------------------------------------------------------------------------------------------


def read_photos(path: Path | str) -> list[PhotoRow]:
    """The rows of `photos.tsv`. Raises: FileNotFoundError, or ValueError if a run has not written the file."""
    return _read(Path(path), PhotoRow)


def read_pairs(path: Path | str) -> list[PairRow]:
    """The rows of `pairs.tsv` after a run. Raises: FileNotFoundError, or ValueError if a run has not written the file."""
    return _read(Path(path), PairRow)


def write_table(path: Path | str, rows: Iterable[PhotoRow] | Iterable[PairRow], kind: type[PhotoRow] | type[PairRow]) -> None:
    """Writes rows of `kind` with a header, separated by tabs, whole or not at all."""
    names = [field.name for field in fields(kind)]
    cells = operator.attrgetter(*names)
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(names) + "\n")
        file.writelines("\t".join(map(_cell, cells(row))) + "\n" for row in rows)


def write_tables(folder: RunFolder) -> Tables:
    """Writes `photos.tsv`, and `pairs.tsv` if the stage `pairs` has written the list of pairs. Returns both tables.

    A `pairs.txt` of the user gets no table: `pairs.tsv` is the proof that a run has written it.

    Raises: ValueError if a file of the run is damaged.
    """
    tables = tables_of(folder)
    write_table(folder.photo_table, tables.photos, PhotoRow)
    if tables.has_sources:
        write_table(folder.pair_reasons, tables.pairs, PairRow)
    return tables


def tables_are_current(folder: RunFolder) -> bool:
    """Whether the tables are newer than all files of the run that they are made from, but summary.json."""
    tables = [folder.photo_table, *([folder.pair_reasons] if folder.pairs.exists() else [])]
    if not all(table.is_file() for table in tables):
        return False
    results = [folder.features, folder.matches, folder.verification]
    files = [folder.pairs, *results, *map(folder_of, results), folder.reconstruction]
    files += [file for model in folder.models() for file in model.iterdir()]
    newest = max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)
    return newest <= min(table.stat().st_mtime_ns for table in tables)


def check_photo_table(path: Path) -> None:
    """Raises: ValueError if `photos.tsv` exists and no run has written it, see `files.foreign_file`."""
    if os.path.lexists(path):
        header = path.read_bytes().split(b"\n")[0] if path.is_file() else b""
        if header != "\t".join(field.name for field in fields(PhotoRow)).encode():
            raise foreign_file(path)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5f}"
    return " ".join(str(value).replace("\t", " ").splitlines()) if isinstance(value, str) else str(value)


def _read(path: Path, kind: type[Row]) -> list[Row]:
    header, *lines = path.read_bytes().decode("utf-8").split("\n")
    names = [field.name for field in fields(kind)]
    if header.split("\t")[: len(names)] != names:
        raise ValueError(f"{path} is not a table that a run has finished: expected the columns {', '.join(names)}")
    hints = get_type_hints(kind)
    return [
        kind(*(_value(cell, hints[name]) for name, cell in zip(names, line.split("\t"), strict=False))) for line in lines if line
    ]


def _value(cell: str, hint: Any) -> Any:
    if hint is str:
        return cell
    if not cell:
        return None
    return int(cell) if hint in (int, int | None) else float(cell)


# --- from the files of a run ---------------------------------------------------------------------------------------------


def tables_of(folder: RunFolder) -> Tables:
    """The tables of a run, from its files, whether it has finished or not.

    Photos that are no longer in the photo folder are left out, if the folder is known and exists.

    Raises: ValueError if a file of the run is damaged.
    """
    summary = folder.read_summary()
    skipped: dict[str, str] = summary["stages"].get("extract", {}).get("skipped", {})
    images = _read_images(folder, summary, skipped)
    pairs, has_sources = _listed_pairs(folder)
    table = _pair_table(folder, summary, pairs, {name: image.keypoints for name, image in images.items()})
    return Tables(_photo_rows(folder, images, skipped, table), table if pairs else [], has_sources)


@dataclass(frozen=True)
class _Image:
    """A photo in the file of features."""

    size: tuple[int, int]
    keypoints: int


def _read_images(folder: RunFolder, summary: Mapping[str, Any], skipped: Mapping[str, str]) -> dict[str, _Image]:
    """The photos that have features, by name, sorted."""
    if not result_exists(folder.features):
        return {}
    with folder.open_features() as reader:
        names = sorted({*_present(reader.names(), summary)} - skipped.keys())
        return {name: _Image(reader.image_size(name), reader.num_keypoints(name)) for name in names}


def _present(names: list[str], summary: Mapping[str, Any]) -> list[str]:
    """Those of the names that are still in the photo folder, and in the list of photos if there is one."""
    dataset = summary.get("dataset", {})
    if not dataset.get("images") or not Path(dataset["images"]).is_dir():
        return names
    images = Path(dataset["images"])
    names = [name for name in names if (images / name).exists()]
    if dataset.get("list") and Path(dataset["list"]).is_file():
        return read_photo_list(dataset["list"], PhotoNames(names, images)).names
    return names


def _pair_table(folder: RunFolder, summary: Mapping[str, Any], pairs: list[Pair], keypoints: Mapping[str, int]) -> PairTable:
    options = summary.get("configuration", {})
    size = options.get("reconstruction", {}).get("min_model_size")
    verification = options.get("geometries", {})
    numbers, num_matches = numbers_of([None] * len(pairs)), np.full(len(pairs), -1, np.int64)
    if result_exists(folder.verification):
        with folder.open_verification() as reader:
            numbers = reader.geometry_numbers(pairs)
            verification = reader.settings.get("options", verification)
    if result_exists(folder.matches) and not numbers.found.all():
        rows = np.flatnonzero(~numbers.found)
        with folder.open_matches() as reader:
            num_matches[rows] = reader.match_counts_of([pairs[row] for row in rows.tolist()])[:, 0]
    limits = Limits(verification.get("min_mean_score"), size, verification.get("min_confirmed"))
    return PairTable(pairs, numbers, num_matches, keypoints, limits)


def _listed_pairs(folder: RunFolder) -> tuple[list[Pair], bool]:
    """The pairs of `pairs.txt`, and whether `pairs.tsv` has the same ones.

    They have sources and scores if `pairs.tsv` has them, and its order, or are sorted if the two files differ.
    """
    if not folder.pairs.is_file():
        return [], False
    listed = folder.read_pairs()
    known = {pair: pair for pair in read_reasons(folder.pair_reasons)} if folder.pair_reasons.is_file() else {}
    if known.keys() == set(listed):
        return list(known), folder.pair_reasons.is_file()
    return [known.get(pair, pair) for pair in listed], False


@dataclass(frozen=True)
class _Placed:
    """A photo in a model."""

    model: int
    points: int
    error_px: float | None
    has_point: np.ndarray
    """bool (n,): whether each keypoint belongs to a point."""


def _read_models(folder: RunFolder) -> tuple[dict[str, _Placed], list[int]]:
    """The registered photos by name, and the number of photos of each model. A photo of several models counts in the first."""
    from sfm_lightglue.model_files import observations_of  # imported here: reading the tables must not load pycolmap

    placed: dict[str, _Placed] = {}
    sizes = []
    for path in folder.models():
        try:
            observed = observations_of(folder.open_model(path))
        except ValueError as error:
            logger.warning("%s", error)
            sizes.append(0)
            continue
        sizes.append(len(observed))
        for name, seen in observed.items():
            error_px = float(seen.errors_px.mean()) if len(seen.errors_px) else None
            placed.setdefault(name, _Placed(int(path.name), int(seen.has_point.sum()), error_px, seen.has_point))
    return placed, sizes


def _photo_rows(folder: RunFolder, images: Mapping[str, _Image], skipped: Mapping[str, str], pairs: PairTable) -> list[PhotoRow]:
    placed, sizes = _read_models(folder)
    model_of = {name: place.model for name, place in placed.items()}
    groups = dict(zip(pairs.photos, group_sizes(len(pairs.photos), pairs.verified_edges().tolist()), strict=True))
    median_keypoints = float(np.median([image.keypoints for image in images.values()] or [0]))
    run = RunFacts(pairs.limits, sizes, median_keypoints, _finished(folder))
    names, sums = sorted({*images, *skipped, *pairs.photos}), pairs.sums()
    known_points = _known_points(folder, pairs, [name for name in names if name not in placed], placed)
    rows = []
    for name in names:
        image, place, of_pairs = images.get(name), placed.get(name), sums.get(name, PhotoSums())
        facts = PhotoFacts(
            keypoints=None if image is None else image.keypoints,
            skipped=skipped.get(name, ""),
            model=None if place is None else place.model,
            partners=[] if place is not None and place.model == 0 else pairs.partners(name, model_of),
            group=groups.get(name, 1),
            known_points=known_points.get(name),
        )
        rows.append(
            PhotoRow(
                photo=name,
                width=None if image is None else image.size[0],
                height=None if image is None else image.size[1],
                keypoints=facts.keypoints,
                **asdict(of_pairs),
                model=facts.model,
                points=0 if place is None else place.points,
                reprojection_error_px=None if place is None else place.error_px,
                **judge_photo(facts, run)._asdict(),
            )
        )
    return rows


def _finished(folder: RunFolder) -> list[str]:
    """The stages among `pairs`, `verify` and `reconstruct` that have written their files."""
    files = {"pairs": folder.pairs, "verify": folder.verification}
    finished = [stage for stage, path in files.items() if result_exists(path)]
    if folder.models() or "reconstruct" in folder.read_summary()["stages"]:
        finished.append("reconstruct")
    return finished


def _known_points(folder: RunFolder, pairs: PairTable, waiting: Sequence[str], placed: Mapping[str, _Placed]) -> dict[str, int]:
    """For photos in no model: how many of their keypoints match a keypoint with a point of the largest model."""
    links = {
        name: [other for other in pairs.verified_partners(name) if other in placed and placed[other].model == 0]
        for name in waiting
    }
    if not any(links.values()):
        return {}
    counts = {}
    with folder.open_verification() as reader:
        for name, others in links.items():
            known = set[int]()
            for other in others:
                pair = Pair(name, other)
                matches = reader.geometry(pair.name0, pair.name1).inlier_matches
                own, theirs = matches.T if pair.name0 == name else matches.T[::-1]
                has_point = placed[other].has_point
                inside = theirs < len(has_point)  # features may have changed since the reconstruction
                known.update(own[inside][has_point[theirs[inside]]].tolist())
            if others:
                counts[name] = len(known)
    return counts
