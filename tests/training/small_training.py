"""A small training through the real command: once undisturbed, once killed and resumed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from generated_photos import write_photos

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = (
    "training.commit=0123abc",
    *("execution.device=cpu", "execution.num_workers=1", "features.max_keypoints=128"),
    *("training.teacher.photo_size=128", "training.teacher.views=1"),
    *("training.views.width=64", "training.views.height=64", "training.views.pairs=2", "training.views.max_points=48"),
    *("training.loop.steps=36", "training.loop.warmup_steps=4", "training.loop.log_every=4"),
    *("training.loop.save_every=12", "training.loop.validate_every=16"),
    *("training.validation.photos=4", "training.validation.width=128", "training.validation.height=96"),
)
"""Overrides for a training of 36 steps. It takes 13 s of CPU time, half of it for starting."""
SECONDS_TO_SAVE = 300


@dataclass(frozen=True)
class Trained:
    """The same training twice."""

    photos: Path
    whole: Path
    """Output of the undisturbed run."""
    killed: Path
    """Output of the run that was killed and resumed."""
    stdout: str
    """Standard output of the undisturbed run."""
    statuses: tuple[int, ...]
    """Exit statuses of the processes of the killed run, in order."""
    steps_at_kills: tuple[int, ...]
    """Step in `resume.pt` at each kill."""


def train_twice(folder: Path) -> Trained:
    """Both runs at once. The killed one is killed twice after a save; it makes batches in a process and has no matplotlib."""
    (folder / "without" / "matplotlib").mkdir(parents=True)
    (folder / "without" / "matplotlib" / "__init__.py").write_text("raise ImportError")
    write_photos(folder / "photos", 10)
    (folder / "photos" / "broken.jpg").write_bytes(b"no photo")
    whole = _start(folder, "whole", str(REPOSITORY), data_workers=0)
    try:
        statuses, steps = _train_with_kills(folder)
        assert whole.wait() == 0, (folder / "whole.err").read_text()
    finally:
        whole.kill()
    stdout = (folder / "whole.out").read_text()
    return Trained(folder / "photos", folder / "whole", folder / "killed", stdout, tuple(statuses), tuple(steps))


def _train_with_kills(folder: Path) -> tuple[list[int], list[int]]:
    """The fields `statuses` and `steps_at_kills` of `Trained`."""
    moments = random.Random(0)
    statuses, steps = [], []
    for kills_left in (2, 1, 0):
        before = _time_of_save(folder / "killed")
        process = _start(folder, "killed", f"{folder / 'without'}{os.pathsep}{REPOSITORY}", data_workers=1)
        if kills_left:
            _wait_for_save(process, folder / "killed", before)
            time.sleep(moments.uniform(0, 0.4))
            assert process.poll() is None, (folder / "killed.err").read_text()
            process.kill()
            steps.append(torch.load(folder / "killed" / "resume.pt", weights_only=True)["step"])
        statuses.append(process.wait())
    return statuses, steps


def _start(folder: Path, output: str, python_path: str, *, data_workers: int) -> subprocess.Popen[bytes]:
    """Starts a training. Its output and errors are appended to the files OUTPUT.out and OUTPUT.err."""
    command = [sys.executable, "-m", "sfm_lightglue", "train", f"data.images={folder / 'photos'}", f"output={folder / output}"]
    with (folder / f"{output}.out").open("ab") as stdout, (folder / f"{output}.err").open("ab") as stderr:
        return subprocess.Popen(
            [*command, *SMALL, f"training.loop.data_workers={data_workers}"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
            stdout=stdout,
            stderr=stderr,
        )


def _time_of_save(output: Path) -> int:
    path = output / "resume.pt"
    return path.stat().st_mtime_ns if path.is_file() else 0


def _wait_for_save(process: subprocess.Popen[str], output: Path, before: int) -> None:
    end = time.monotonic() + SECONDS_TO_SAVE
    while _time_of_save(output) == before and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
