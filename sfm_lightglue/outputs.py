"""Checks, before a stage starts, that it will replace only files that a run has written.

Our files are recognised by a mark inside, never by the name alone: HDF5 files by their fingerprint, `pairs.txt` by `pairs.tsv`,
`orientations.tsv`, `escalation.tsv` and `photos.tsv` by their first lines, `database.db` by SQLite's application id,
`reconstruction/` by its `settings.json`, `reconstruction.clusters/` too, pictures and `report.html` by a comment, JSON files by
their keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from sfm_lightglue import database, storage
from sfm_lightglue.escalation import check_output as check_escalation
from sfm_lightglue.features.content_ids import ContentIds, ids_file
from sfm_lightglue.files import foreign_file, read_own_json
from sfm_lightglue.orient.decisions import check_output as check_decisions
from sfm_lightglue.pair_files import check_output as check_pairs
from sfm_lightglue.pairs.codebooks import check_output as check_codebook
from sfm_lightglue.reconstruction.clusters import ClustersFolder
from sfm_lightglue.reconstruction.folder import ModelsFolder
from sfm_lightglue.report.gallery import check_pictures
from sfm_lightglue.report.page import check_report
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.tables import check_photo_table

EVALUATION_BEGINNINGS = ('{"images":', '{"pairs":', '{"homographies":')
"""The first key in `evaluation.json`."""


def check_outputs(folder: RunFolder, stages: Iterable[str]) -> None:
    """Checks all files that `stages` write into the output folder of a run; `evaluate` and `report` are allowed
    among them. Decodes nothing.

    Raises: ValueError with a line for each file that no run has written, or that the user has changed. It says what to do.
    """
    problems = []
    for check in (_check_folders, RunFolder.read_summary, _check_photo_table, *(CHECKS[stage] for stage in stages)):
        try:
            check(folder)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def _check_folders(folder: RunFolder) -> None:
    for path in (folder.path, folder.logs, folder.shards):
        if os.path.lexists(path) and not path.is_dir():
            raise foreign_file(path)


def _check_photo_table(folder: RunFolder) -> None:
    check_photo_table(folder.photo_table)


def _check_pairs(folder: RunFolder) -> None:
    check_pairs(folder.pairs, folder.pair_reasons)
    storage.check_output(folder.global_descriptors)
    check_codebook(folder.codebook)


def _check_features(path: Path) -> None:
    storage.check_output(path)
    ContentIds(ids_file(path))


def check_evaluation(path: Path) -> None:
    """Raises: ValueError if `evaluation.json` exists and no run has written it."""
    if os.path.lexists(path):
        content = read_own_json(path, EVALUATION_BEGINNINGS)
        if content and not {"auc", "pairs", "homographies"} & content.keys():
            raise foreign_file(path)


def _check_reconstruction(folder: RunFolder) -> None:
    ModelsFolder(folder.reconstruction).check()
    ClustersFolder(folder.clusters).check()


CHECKS: dict[str, Callable[[RunFolder], None]] = {
    "extract": lambda folder: _check_features(folder.features),
    "pairs": _check_pairs,
    "match": lambda folder: storage.check_output(folder.matches),
    "verify": lambda folder: storage.check_output(folder.verification),
    "refine": lambda folder: storage.check_output(folder.keypoints),
    "orient": lambda folder: check_decisions(folder.orientations),
    "expand": lambda folder: check_pairs(folder.pairs, folder.pair_reasons),
    "escalate": lambda folder: check_escalation(folder.escalation),
    "database": lambda folder: database.check_output(folder.database),
    "reconstruct": _check_reconstruction,
    "plots": check_pictures,
    "report": check_report,
    "evaluate": lambda folder: check_evaluation(folder.evaluation),
}
"""The check of each stage."""
