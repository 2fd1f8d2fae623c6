"""A small training through the real command: it learns, and being killed does not change its result."""

from __future__ import annotations

import csv
import importlib.util
import signal
from pathlib import Path
from typing import Any

import torch
from small_training import Trained

from sfm_lightglue.training.export import split
from sfm_lightglue.training.loop import RESUME_FILE
from sfm_lightglue.training.photos import prepare_photos, read_index


def metrics(output: Path, kind: str, name: str) -> list[float]:
    """The values of a metric in the order of the steps."""
    with (output / "curves.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if (row["kind"], row["metric"]) == (kind, name)]


def assert_equal(a: Any, b: Any) -> None:
    """Compares bit for bit, also tensors in nested dicts and lists."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        assert_equal(list(a.values()), list(b.values()))
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for each0, each1 in zip(a, b, strict=True):
            assert_equal(each0, each1)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


def test_the_losses_fall(trained: Trained) -> None:
    for name in ("loss", "keypoint_loss", "contrast_loss"):
        values = metrics(trained.whole, "training", name)
        assert len(values) == 36 // 4
        assert values[-1] < 0.8 * values[0]  # 0.3 to 0.4 where it was written
    assert metrics(trained.whole, "training", "teacher_cosine")[-1] > 0.3  # 0 at random


def test_photos_that_are_held_out_are_matched_better(trained: Trained) -> None:
    precision = metrics(trained.whole, "validation", "precision")
    assert len(precision) == 3  # after 16, 32 and 36 steps
    # Random matches are within 3 px of the right place in 0.2 % of the cases: 28 of 128 * 96 pixels.
    assert precision[-1] > max(5.0, precision[0])


def test_the_learning_rate_stays_and_falls(trained: Trained) -> None:
    values = metrics(trained.whole, "training", "learning_rate")
    assert values[:6] == [1.0] * 6 and values[6:] == sorted(values[6:], reverse=True)
    assert 0 < values[-1] < 0.1


def test_the_command_says_how_to_use_the_weights(trained: Trained) -> None:
    path = trained.whole / "weights.safetensors"
    assert trained.stdout == f"{path}\nuse it: features=superpoint features.weights={path}\n"
    assert path.is_file()


def test_a_broken_photo_is_left_out_with_a_line_in_the_log(trained: Trained) -> None:
    (log,) = (trained.whole / "logs").rglob("sfm_lightglue.log")
    assert "broken.jpg is left out: unreadable image" in log.read_text()
    assert len(list((trained.whole / "photos").iterdir())) == len(list((trained.whole / "teacher").iterdir())) == 10


def test_photos_that_are_held_out_are_not_trained_on(trained: Trained) -> None:
    names = sorted(path.name for path in trained.photos.glob("*.png"))
    photos = prepare_photos(trained.photos, names, trained.whole / "photos", 128, 1)  # these files exist already
    held_out, train = split(names, 4, 0)
    used = [photo for photo, _ in read_index(trained.whole / "index.json")]
    assert len(held_out) == 4 and used == [photos[name] for name in train]
    assert len({targets for _, targets in read_index(trained.whole / "index.json")}) == 6


def test_the_run_was_killed_twice_and_resumed_from_its_last_save(trained: Trained) -> None:
    assert trained.statuses == (-signal.SIGKILL, -signal.SIGKILL, 0)
    first, second = trained.steps_at_kills
    assert 0 < first < second < 36
    steps = [path.read_text() for path in sorted((trained.killed / "logs").rglob("sfm_lightglue.log"))]
    assert "resuming from step" not in steps[0]
    assert f"resuming from step {first} of" in steps[1]
    assert f"resuming from step {second} of" in steps[2]


def test_a_killed_run_ends_bit_for_bit_like_a_run_that_was_not_killed(trained: Trained) -> None:
    """The killed run also makes its batches in another process."""
    for name in ("curves.csv", "weights.safetensors", "to_teacher.safetensors"):
        assert (trained.killed / name).read_bytes() == (trained.whole / name).read_bytes()
    states = [torch.load(output / RESUME_FILE, weights_only=True) for output in (trained.killed, trained.whole)]
    assert_equal(*states)
    assert states[0]["step"] == 36


def test_with_matplotlib_the_curves_are_plotted(trained: Trained) -> None:
    assert (trained.whole / "curves.png").is_file() == (importlib.util.find_spec("matplotlib") is not None)
    assert not (trained.killed / "curves.png").exists()


def test_no_temporary_file_is_left(trained: Trained) -> None:
    assert not [path for output in (trained.whole, trained.killed) for path in output.rglob("*.tmp")]
