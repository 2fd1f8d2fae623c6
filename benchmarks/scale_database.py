"""Steps of `scale.py` after the matches: verification, database and tables with stub geometries.

`geometries` writes a two-view geometry for each pair at once, `verify` then has nothing to do, `verify_more` verifies the two
pairs of the step `more`. `database` writes all rows, `database_again` has nothing to do, `database_more` adds the two pairs.
`tables` writes photos.tsv and pairs.tsv.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sfm_lightglue import __version__
from sfm_lightglue.cameras import Camera, CameraAssignment
from sfm_lightglue.database import write_database
from sfm_lightglue.geometries.inputs import geometry_stamps, input_fingerprints
from sfm_lightglue.geometries.stage import verify_pairs
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.pair_files import read_pairs, write_reasons
from sfm_lightglue.products import Pair, TwoViewGeometry
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import H5Reader, ShardStore, geometry_to_group, match_key
from sfm_lightglue.tables import write_tables

STEPS = ("geometries", "verify", "verify_more", "database", "database_again", "database_more", "tables")
OPTIONS = VerificationOptions(2.0, 20, 0.0, 0.9999, 200, 0, 2.0, 0.3)
CAMERA = Camera("SIMPLE_RADIAL", (4000, 3000), (4800.0, 2000.0, 1500.0, 0.0), True)


def run_step(step: str, folder: Path, names: Sequence[str], added: Sequence[Pair]) -> dict[str, float]:
    """Runs one step and returns what it measured. `added` are the pairs that the steps with `more` in their name add."""
    run, cameras = RunFolder(folder), dict.fromkeys(names, CAMERA)
    start = time.perf_counter()
    pairs = read_pairs(run.pairs)
    found = {"read_pairs_s": time.perf_counter() - start}
    if step.endswith("more"):
        pairs += added
    if step == "geometries":
        fill(run, pairs, cameras)
    elif step.startswith("verify"):
        report = verify_pairs(run.features, run.matches, pairs, run.verification, OPTIONS, cameras, names=names)
        found["num_verified"] = report.num_verified_pairs
    elif step.startswith("database"):
        shared = CameraAssignment(cameras, dict.fromkeys(names, "one"))
        written = write_database(run.features, run.matches, run.verification, pairs, run.database, shared, names=names)
        found |= {"num_verified": written.num_verified_pairs, "bytes_a_pair": run.database.stat().st_size / len(pairs)}
    else:
        write_reasons(run.pair_reasons, pairs)
        start = time.perf_counter()
        write_tables(run)
        found["us_a_pair"] = (time.perf_counter() - start) / len(pairs) * 1e6
    return found


def fill(run: RunFolder, pairs: Sequence[Pair], cameras: dict[str, Camera]) -> None:
    """Writes geometries as the stage verify does, but does not compute them: every fifth pair is rejected."""
    with H5Reader(run.features) as features, H5Reader(run.matches) as matches:
        stamps = geometry_stamps(pairs, features, matches, cameras, check_origin=True)
        settings = {"options": asdict(OPTIONS), **input_fingerprints(features, matches), "version": __version__}
        inliers = [matches.find_matches(pair.name0, pair.name1).indices[:250] for pair in pairs[:64]]
    numbers = {"num_matches": 300, "max_error_px": 2.0, "num_needed": 30}
    variants = [
        TwoViewGeometry("CALIBRATED", found, E=np.eye(3), F=np.eye(3), num_agreeing=len(found), mean_score=0.7, **numbers)
        for found in inliers
    ]
    for i in range(4, len(variants), 5):
        variants[i] = TwoViewGeometry("DEGENERATE", inliers[i][:0], rejected_because="few inliers", num_agreeing=12, **numbers)
    items = [geometry_to_group(geometry) for geometry in variants]
    with ShardStore(run.verification, settings, shard_items=4096, shard_seconds=60) as store:
        for number, (pair, stamp) in enumerate(zip(pairs, stamps, strict=True)):
            store.add(match_key(pair.name0, pair.name1), items[number % len(items)], stamp)
        store.merge()
