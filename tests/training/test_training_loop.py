"""The training loop, with a task that takes no time: learning a linear map."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sfm_lightglue.training.curves import History
from sfm_lightglue.training.loop import (
    RESUME_FILE,
    LoopOptions,
    learning_rate_share,
    make_optimizers,
    seeded_generator,
    train,
    update_average,
)


class Batches(Dataset[dict[str, Tensor]]):
    """Item `step` is random, with `step` as the seed."""

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return {"x": x, "y": x @ torch.arange(8.0).view(4, 2) / 4}


class LinearTask:
    """Predicts y from x by two linear layers with batch normalisation between them. Muon trains the first layer's weight."""

    def __init__(self, fails_at: int | None = None, **settings: Any) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
        self.hidden: Sequence[str] = ["0.weight"]
        self.data: Dataset[dict[str, Tensor]] = Batches()
        self.settings = {"name": "linear", "loop": {"learning_rate": 0.1}, **settings}
        self.fails_at, self.num_losses, self.validated = fails_at, 0, 0
        self.steps: list[int] = []

    def losses(self, item: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.num_losses += 1
        self.steps.append(step)
        if self.num_losses == self.fails_at:
            raise ConnectionError("the machine went down")
        loss = (self.module(item["x"]) - item["y"]).square().mean()
        return loss, {"loss": loss}

    def validate(self, module: nn.Module) -> dict[str, float]:
        assert not module.training
        self.validated += 1
        with torch.no_grad():
            x = Batches()[10_000]
            return {"error": (module(x["x"]) - x["y"]).abs().mean().item()}

    def export(self, module: nn.Module, path: Path, steps: int, history: History) -> None:
        torch.save({"state": module.state_dict(), "steps": steps, "last": history.last("validation")}, path)


def exported(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:  # torch would take a path of this name for safetensors
        return torch.load(file)


@pytest.fixture(autouse=True)
def nothing_but_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plots: they take longer than everything else here."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def options(shipped) -> LoopOptions:
    small = {"steps": 40, "warmup_steps": 5, "log_every": 5, "save_every": 10, "validate_every": 8, "data_workers": 0}
    return replace(shipped.loop, learning_rate=0.05, average_decay=0.9, **small)


def rows(output: Path) -> list[tuple[int, str, str, float]]:
    with (output / "curves.csv").open() as file:
        return [(int(row["step"]), row["kind"], row["figure"], float(row["value"])) for row in csv.DictReader(file)]


# --- schedule and average --------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_stays_and_falls(shipped) -> None:
    options = replace(shipped.loop, steps=1000, warmup_steps=100, cooldown=0.3)
    shares = [learning_rate_share(step, options) for step in range(1000)]
    assert shares[0] == pytest.approx(0.01) and shares[49] == pytest.approx(0.5)
    assert shares[99:701] == [1.0] * 602
    assert shares[850] == pytest.approx(0.5) and shares[999] == pytest.approx(1 / 300)


@pytest.mark.parametrize(("warmup_steps", "cooldown"), [(0, 0.0), (1, 0.0)])
def test_without_warm_up_and_cool_down_the_learning_rate_is_constant(shipped, warmup_steps: int, cooldown: float) -> None:
    options = replace(shipped.loop, steps=10, warmup_steps=warmup_steps, cooldown=cooldown)
    assert [learning_rate_share(step, options) for step in range(10)] == [1.0] * 10


def test_a_longer_run_has_the_same_learning_rates_until_the_shorter_one_cools_down(shipped) -> None:
    short, long = (replace(shipped.loop, steps=steps, cooldown=0.25, warmup_steps=20) for steps in (400, 1000))
    assert all(learning_rate_share(step, short) == learning_rate_share(step, long) for step in range(300))


def test_the_average_follows_parameters_and_statistics_and_copies_counters() -> None:
    average, module = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    for value, buffer in zip(module.parameters(), module.buffers(), strict=False):
        nn.init.constant_(value, 5.0)
        buffer.fill_(9.0)
    module.num_batches_tracked.fill_(7)
    before = {key: value.clone() for key, value in average.state_dict().items()}
    update_average(average, module, 0.75)
    for key, value in average.state_dict().items():
        if key == "num_batches_tracked":
            assert value == 7
        else:
            torch.testing.assert_close(value, 0.75 * before[key] + 0.25 * module.state_dict()[key])


def test_the_generator_of_a_step_depends_only_on_seed_and_step() -> None:
    draws = {key: torch.rand(4, generator=seeded_generator("cpu", *key)) for key in ((0, 0), (0, 1), (1, 0), (0, 2**40))}
    assert len({tuple(value.tolist()) for value in draws.values()}) == 4
    assert torch.equal(torch.rand(4, generator=seeded_generator("cpu", 0, 1)), draws[0, 1])


def test_hidden_kernels_go_to_muon_and_all_others_to_adamw(options: LoopOptions) -> None:
    task = LinearTask()
    optimizers = make_optimizers(task.module, task.hidden, options)
    counts = {name: [list(value.shape) for value in each.param_groups[0]["params"]] for name, each in optimizers.items()}
    assert counts == {"muon": [[6, 4]], "adamw": [[6], [6], [6], [2, 6], [2]]}


# --- a run -----------------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_writes_all_its_files(options: LoopOptions, tmp_path: Path) -> None:
    task = LinearTask()
    path = train(task, options, tmp_path, "cpu")
    assert path == tmp_path / "weights.safetensors"
    found = rows(tmp_path)
    assert [row[0] for row in found if row[2] == "loss"] == list(range(5, 41, 5))
    assert [row[0] for row in found if row[2] == "error"] == list(range(8, 41, 8))
    losses = [row[3] for row in found if row[2] == "loss"]
    assert losses[-1] < 0.5 * losses[0]
    written = exported(path)
    assert written["steps"] == 40 and written["last"] == {"error": found[-1][3]}
    stored = torch.load(tmp_path / RESUME_FILE)
    assert (stored["step"], stored["settings"]) == (40, task.settings)
    for key, value in stored["average"].items():
        assert torch.equal(written["state"][key], value)  # the average is what is exported
    assert not torch.equal(stored["average"]["2.weight"], stored["module"]["2.weight"])


def test_a_point_of_the_curves_is_the_mean_over_its_steps(options: LoopOptions, tmp_path: Path) -> None:
    recorded: list[float] = []

    class Recording(LinearTask):
        def losses(self, item: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
            loss, metrics = super().losses(item, step)
            recorded.append(loss.item())
            return loss, metrics

    train(Recording(), options, tmp_path, "cpu")
    means = [row[3] for row in rows(tmp_path) if row[2] == "loss"]
    assert means == pytest.approx([sum(recorded[i : i + 5]) / 5 for i in range(0, 40, 5)])


@pytest.mark.parametrize("fails_at", [11, 17, 23, 31, 40])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(options: LoopOptions, tmp_path: Path, fails_at: int) -> None:
    train(LinearTask(), options, tmp_path / "whole", "cpu")
    with pytest.raises(ConnectionError):
        train(LinearTask(fails_at), options, tmp_path / "cut", "cpu")
    rest = LinearTask()
    train(rest, options, tmp_path / "cut", "cpu")
    assert rest.steps == list(range((fails_at - 1) // 10 * 10, 40))
    assert (tmp_path / "cut" / "curves.csv").read_bytes() == (tmp_path / "whole" / "curves.csv").read_bytes()
    states = [torch.load(tmp_path / name / RESUME_FILE) for name in ("whole", "cut")]
    for part in ("module", "average"):
        assert all(torch.equal(value, states[1][part][key]) for key, value in states[0][part].items())


def test_a_finished_run_exports_again_and_can_be_made_longer(
    options: LoopOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = train(LinearTask(), options, tmp_path, "cpu")
    path.unlink()
    again = LinearTask()
    with caplog.at_level(logging.INFO):
        train(again, options, tmp_path, "cpu")
    assert (again.num_losses, again.validated) == (0, 0) and path.is_file()
    assert f"resuming from step 40 of {tmp_path / RESUME_FILE}" in caplog.text
    longer = LinearTask()
    train(longer, replace(options, steps=60), tmp_path, "cpu")
    assert longer.num_losses == 20 and exported(path)["steps"] == 60


def test_other_settings_are_refused_and_named(options: LoopOptions, tmp_path: Path) -> None:
    train(LinearTask(), options, tmp_path, "cpu")
    before = (tmp_path / RESUME_FILE).read_bytes()
    with pytest.raises(
        ValueError, match=r"other settings \(loop.learning_rate: 0.1 -> 0.2, name: linear -> cubic\): give another"
    ):
        train(LinearTask(name="cubic", loop={"learning_rate": 0.2}), options, tmp_path, "cpu")
    assert (tmp_path / RESUME_FILE).read_bytes() == before


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(options: LoopOptions, tmp_path: Path) -> None:
    class Diverging(LinearTask):
        def losses(self, item: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
            loss, metrics = super().losses(item, step)
            return (loss * float("nan"), {"loss": loss * float("nan")}) if self.num_losses > 18 else (loss, metrics)

    with pytest.raises(ValueError, match=r"the loss is nan at step 20: lower the learning rate"):
        train(Diverging(), options, tmp_path, "cpu")
    stored = torch.load(tmp_path / RESUME_FILE)
    assert stored["step"] == 10
    assert all(value.isfinite().all() for value in stored["module"].values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"save_every": 12}, "training.loop.save_every must be a multiple of log_every, found 12 and 5"),
        ({"log_every": 0}, "training.loop.log_every must be 1 or more, found 0"),
        ({"steps": 0}, "training.loop.steps must be 1 or more, found 0"),
    ],
)
def test_impossible_options_are_refused(options: LoopOptions, changes: dict[str, int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        replace(options, **changes)
