"""Kills stages at random moments, runs them again, and compares the files with the files of an undisturbed run.

Killed are `verify` and the extension of the database over results in segments, and `merge` of two shards of `match`. Compared are
the bytes of the files that hloc reads (`export hloc`), and all rows of the database.

python benchmarks/kills.py FOLDER [--kills 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import multiprocessing
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from sfm_lightglue import pipeline
from sfm_lightglue.cameras import Camera, CameraAssignment
from sfm_lightglue.config import compose_config
from sfm_lightglue.database import write_database
from sfm_lightglue.execution.shards import planned_stages
from sfm_lightglue.geometries.stage import verify_pairs
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.merge import merge_shards
from sfm_lightglue.pairs.exhaustive import exhaustive_pairs
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.run_context import Run
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import ShardStore, features_to_group, match_key, matches_to_group, shards
from sfm_lightglue.storage.merging import write_single_file

NUM_PHOTOS, NUM_POINTS, SIZE = 36, 300, (1000, 800)
NAMES = [f"walk/{i:03d}.jpg" for i in range(NUM_PHOTOS)]
PAIRS = exhaustive_pairs(NAMES)
CAMERA = Camera("SIMPLE_PINHOLE", SIZE, (900.0, 500.0, 400.0), True)
OPTIONS = VerificationOptions(2.0, 20, 0.0, 0.9999, 200, 0, None, 0.3)
MERGE_ITEMS = 100
"""More results stay in segments."""


def verify_and_write(folder: Path, pairs: list[Pair]) -> None:
    """Verifies pairs and writes the database."""
    run, cameras = RunFolder(folder), dict.fromkeys(NAMES, CAMERA)
    verify_pairs(run.features, run.matches, pairs, run.verification, OPTIONS, cameras, names=NAMES)
    assignment = CameraAssignment(cameras, dict.fromkeys(NAMES, "one"))
    write_database(run.features, run.matches, run.verification, pairs, run.database, assignment, names=NAMES)


TASKS: dict[str, Callable[[Path], None]] = {
    "verify and database": lambda folder: verify_and_write(folder, PAIRS),
    "merge, one file": lambda folder: (merge_shards(folder), None)[1],
    "merge, segments": lambda folder: (merge_shards(folder), None)[1],
}


def prepare_walk(folder: Path) -> None:
    """Features and matches of points seen from a walk, in segments; one pair of ten has wrong matches. Half is verified."""
    generator = np.random.default_rng(0)
    points = generator.uniform((-6, -4, 6), (6, 4, 14), (NUM_POINTS, 3))
    run, scores = RunFolder(folder), np.ones(NUM_POINTS, np.float32)
    folder.mkdir(parents=True)
    with ShardStore(run.features, {"plugin": "points"}) as store:
        for i, name in enumerate(NAMES):
            seen = points - (0.05 * i, 0.02 * i, 0)
            keypoints = (seen[:, :2] / seen[:, 2:] * 900 + (500, 400)).astype(np.float32)
            features = Features(np.clip(keypoints, 0, np.array(SIZE) - 1), scores, np.zeros((NUM_POINTS, 2), np.float32), SIZE)
            store.add(name, features_to_group(features), name)
        store.merge()
    with ShardStore(run.matches, {"plugin": "points"}) as store:
        for number, pair in enumerate(PAIRS):
            index1 = generator.permutation(NUM_POINTS) if number % 10 == 0 else np.arange(NUM_POINTS)
            indices = np.stack([np.arange(NUM_POINTS), index1], axis=1)[: 100 + number % 200].astype(np.int32)
            matches = Matches(indices, scores[: len(indices)], 3)
            store.add(match_key(pair.name0, pair.name1), matches_to_group(matches, NUM_POINTS), f"{pair.name0} {pair.name1}")
        store.merge()
    verify_and_write(folder, PAIRS[: len(PAIRS) // 2])


def prepare_shards(folder: Path) -> None:
    """The results of two shards of `match`, and what comes before: crops of a picture of noise, SIFT."""
    photos = folder.with_name("photos")
    if not photos.exists():
        photos.mkdir(parents=True)
        coarse = np.random.default_rng(0).integers(0, 256, (36, 48, 3), np.uint8)
        noise = PILImage.fromarray(coarse).resize((384, 288), PILImage.Resampling.BICUBIC)
        for i in range(18):
            noise.crop((6 * i, 3 * i, 240 + 6 * i, 200 + 3 * i)).save(photos / f"{i:02d}.png")
    given = ["dataset=folder", f"dataset.images='{photos}'", f"output='{folder}'", "features=sift", "matches=nearest_neighbor"]
    for stage in ("extract", "pairs"):
        pipeline.run_stage(Run.create(compose_config(given)), stage)
    for number in (1, 2):
        pipeline.run_stage(Run.create(compose_config([*given, "execution=shards", f"execution.shard={number}/2"])), "match")


def content(folder: Path) -> dict[str, str]:
    """Hashes of what is read from a folder."""
    found = {}
    for name in ("matches.h5", "verification.h5"):
        with contextlib.suppress(FileNotFoundError):
            write_single_file(folder / name, folder / f"{name}.exported")
            found[name] = hashlib.sha256((folder / f"{name}.exported").read_bytes()).hexdigest()
    if (database := folder / "database.db").exists():
        with contextlib.closing(sqlite3.connect(database)) as connection:
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                rows = sorted(map(repr, connection.execute(f"SELECT * FROM {table}")))
                found[table] = hashlib.sha256("".join(rows).encode()).hexdigest()
    return found


def run_child(task: str, folder: Path, kill_after: float | None) -> tuple[bool, float]:
    """Runs a task in a process of its own. Returns whether it came to its end, and the seconds that it worked."""
    context = multiprocessing.get_context("forkserver")  # a process that has imported everything, and that forks
    context.set_forkserver_preload(["sfm_lightglue.pipeline", "sfm_lightglue.merge"])
    begins = context.Event()
    child = context.Process(target=work, args=(task, folder, begins))
    child.start()
    while child.is_alive() and not begins.wait(0.1):
        pass
    start = time.perf_counter()
    child.join(kill_after)
    if child.is_alive():
        child.kill()
    child.join()
    assert child.exitcode in (0, -9), f"{task} ended with status {child.exitcode}"
    return child.exitcode == 0, time.perf_counter() - start


def work(task: str, folder: Path, begins: Any) -> None:
    """The child."""
    logging.disable()
    set_merge_items(task)
    begins.set()
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stderr(nothing):  # progress bars
        TASKS[task](folder)


def test(task: str, folder: Path, num_kills: int, generator: np.random.Generator) -> None:
    """Kills a task `num_kills` times, each time in a fresh copy of its input, and then lets it end."""
    template, trial = folder / task.replace(", ", "_").replace(" ", "_"), folder / "trial"
    if task.startswith("merge"):
        template = template / "out"
    if not template.exists():
        set_merge_items(task)
        (prepare_shards if task.startswith("merge") else prepare_walk)(template)
    expected: dict[str, str] = {}
    seconds, num_killed, num_ended = 0.0, 0, 0
    while num_killed < num_kills:
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(template, trial, symlinks=True)
        is_ended, taken = run_child(task, trial, generator.uniform(0, seconds) if expected else None)
        num_killed, num_ended = num_killed + (not is_ended), num_ended + is_ended
        if not is_ended and (not task.startswith("merge") or planned_stages(trial / "shards")):
            is_ended, _ = run_child(task, trial, None)
        else:
            seconds = max(taken, 0.9 * seconds)
        found = content(trial)
        expected = expected or found
        assert found == expected, f"{task}: {[name for name in expected if found.get(name) != expected[name]]} differ"
        left = [path for path in trial.rglob("*.tmp*") if path.is_file()]
        assert not left, f"{task} left {left}"
        print(f"{num_killed}", end=" ", flush=True)
    print(f"{task}: {num_killed} kills in {seconds:.1f} s of work, the same {', '.join(expected)}", flush=True)


def set_merge_items(task: str) -> None:
    """Makes small results stay in segments, unless the task is about one file."""
    if task != "merge, one file":
        shards.MERGE_ITEMS = MERGE_ITEMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for task in TASKS:
        test(task, given.folder.absolute(), given.kills, np.random.default_rng(given.seed))


if __name__ == "__main__":
    main()
