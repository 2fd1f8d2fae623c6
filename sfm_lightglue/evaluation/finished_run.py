"""Scores of everything in an output folder against the ground truth of its dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfm_lightglue.evaluation.matches import evaluate_matched_homographies, evaluate_matched_poses, table
from sfm_lightglue.evaluation.pairs import posed_pairs, read_homographies
from sfm_lightglue.evaluation.reconstruction import evaluate_reconstruction, read_reconstruction_poses, warn_of_upright_poses
from sfm_lightglue.files import remove_stale, result_exists, write_json
from sfm_lightglue.poses import read_poses
from sfm_lightglue.run_folder import RunFolder


def evaluate_run(folder: RunFolder, images: str | None, poses: str | None, pairs: str | None, homographies: str | None) -> str:
    """Scores against the ground truth, written to `evaluation.json` and returned as tables.

    The largest model and the matches of `pairs` are compared with `poses`, matches also with `homographies`.

    Args:
        folder: The output folder of a run.
        images: Folder of the photos.
        poses: File of the true poses.
        pairs: File of the pairs whose relative poses are compared.
        homographies: File of the true homographies.
    """
    scores: dict[str, Any] = {}
    tables = []
    truth = read_poses(Path(poses)) if poses else {}
    if truth and (folder.reconstruction.exists() or not pairs):
        estimated = read_reconstruction_poses(folder.reconstruction)
        evaluation = evaluate_reconstruction(estimated, truth)
        if result_exists(folder.features):
            with folder.open_features() as features:
                warn_of_upright_poses(estimated, truth, features.orientations(estimated))
        scores |= evaluation.to_json()
        tables.append(evaluation.table())
    if truth and pairs:
        scores["pairs"] = evaluate_matched_poses(folder.features, folder.matches, posed_pairs(pairs, truth, images), truth)
        tables.append(table("relative poses of pairs", scores["pairs"]))
    if homographies:
        matrices = read_homographies(homographies)
        scores["homographies"] = evaluate_matched_homographies(folder.features, folder.matches, matrices)
        tables.append(table("homographies", scores["homographies"]))
    remove_stale(folder.evaluation)
    write_json(folder.evaluation, scores)
    return "\n".join(tables)
