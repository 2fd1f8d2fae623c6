"""The training loop, the same for every network: steps, average, validation, curves, one file to go on from.

What is trained, on what, and what is exported is a `Task`. A run that is killed goes on from its last save and ends bit for bit
as if it had not been: batches are functions of the step, and the file holds everything else.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.features.superpoint import SuperPointOptions
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.settings import describe_changes
from sfm_lightglue.training.curves import History, write_curves
from sfm_lightglue.training.optimizer import Muon

logger = logging.getLogger(__name__)

RESUME_FILE = "resume.pt"


@dataclass(frozen=True)
class LoopOptions:
    """Options; the values stand in configs/training."""

    steps: int
    learning_rate: float
    """Of AdamW (Loshchilov & Hutter, arXiv:1711.05101), after `warmup_steps` and until the last part, `cooldown`."""
    weight_decay: float
    warmup_steps: int
    cooldown: float
    """Share of the steps, at the end, in which the learning rate falls linearly to 0. A run can be made longer until then."""
    max_gradient_norm: float
    average_decay: float
    """Of the exponential moving average of the weights, which is what is validated and exported."""
    log_every: int
    """Steps whose figures make one point of the curves."""
    save_every: int
    validate_every: int
    data_workers: int
    """Processes that make batches; 0: the training process does. Results do not depend on it."""

    def __post_init__(self) -> None:
        for key in ("steps", "log_every", "save_every", "validate_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"training.loop.{key} must be 1 or more, found {getattr(self, key)}")
        if self.save_every % self.log_every:  # a run that goes on would not know the figures of the steps before
            raise ValueError(
                f"training.loop.save_every must be a multiple of log_every, found {self.save_every} and {self.log_every}"
            )


@dataclass(frozen=True)
class MuonLoopOptions(LoopOptions):
    """Of a task with hidden kernels."""

    muon_learning_rate: float
    """Of Muon, which trains the weights that the task names `hidden`; AdamW trains the others."""
    muon_momentum: float
    muon_weight_decay: float


@dataclass(frozen=True)
class TrainingRun:
    """What a task is made from, besides its own options."""

    images: Path
    names: Sequence[str]
    """Of the photos in there."""
    output: Path
    device: str
    features: SuperPointOptions
    """How SuperPoint extracts: the one in training, or the one whose features are matched."""
    create_matcher: Callable[[], Matcher]
    """The matcher of the configuration."""
    processes: int
    """That prepare photos."""


class Task(Protocol):
    """A network, its examples and losses. Created as Task(options, run) from options of its own and a `TrainingRun`."""

    module: nn.Module
    """What is trained."""
    hidden: Sequence[str]
    """Names of its kernels between other layers, which Muon trains: its options are then `MuonLoopOptions`."""
    data: Dataset[dict[str, Tensor]]
    """Item `step` is what the batch of that step is made from."""
    settings: Mapping[str, Any]
    """Everything that decides the result, besides the number of steps."""

    def losses(self, item: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and the figures of the curves, for an item of `data` on the device."""
        ...

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Figures of a state of `module` on examples that are not trained on."""
        ...

    def export(self, module: nn.Module, path: Path, steps: int, history: History) -> None:
        """Writes a state of `module` as weights for use."""
        ...


def train(task: Task, options: LoopOptions, output: Path, device: str) -> Path:
    """Trains until `options.steps`, from where `output` was left; returns the exported file.

    Raises: ValueError where `output` holds a training with other settings, or the loss is no longer finite.
    """
    output.mkdir(parents=True, exist_ok=True)
    module = task.module.to(device).train()
    average = copy.deepcopy(module).eval().requires_grad_(False)
    optimizers = make_optimizers(module, task.hidden, options)
    history = History()
    state = {"module": module, "average": average, **optimizers}
    step = _resume(output / RESUME_FILE, state, history, task.settings)
    loader = DataLoader(
        task.data,
        batch_size=None,
        sampler=range(step, options.steps),
        num_workers=options.data_workers,
        # Forked processes would hold the lock of the output folder for seconds after a kill.
        multiprocessing_context="spawn" if options.data_workers else None,
        pin_memory=device != "cpu",
    )
    recent: list[dict[str, Tensor]] = []
    waited, last = 0.0, time.perf_counter()
    with progress_bar(options.steps, "train", "step", initial=step) as bar:
        for item in loader:
            waited += time.perf_counter() - last
            for optimizer in optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * learning_rate_share(step, options)
            loss, figures = task.losses({key: value.to(device, non_blocking=True) for key, value in item.items()}, step)
            module.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), options.max_gradient_norm)
            for optimizer in optimizers.values():
                optimizer.step()
            update_average(average, module, min(options.average_decay, (1 + step) / (10 + step)))
            step += 1
            bar.update()

            recent.append({key: value.detach() for key, value in figures.items()})
            if step % options.log_every == 0 or step == options.steps:
                means = {key: torch.stack([each[key] for each in recent]).float().mean().item() for key in recent[0]}
                if not math.isfinite(means["loss"]):
                    raise ValueError(f"the loss is {means['loss']} at step {step}: lower the learning rate, in a new folder")
                history.add(step, "training", {**means, "learning_rate": learning_rate_share(step - 1, options)})
                bar.set_postfix_str(f"loss {means['loss']:.3f}, {waited / len(recent):.2f} s a step spent waiting for data")
                recent, waited = [], 0.0
            if step % options.validate_every == 0 or step == options.steps:
                history.add(step, "validation", task.validate(average))
                logger.info("step %d: %s", step, history.describe_last("validation"))
            if step % options.save_every == 0 or step == options.steps:
                write_curves(history, output)  # first: a kill between the two then leaves nothing out of date
                _save(output / RESUME_FILE, state, history, task.settings, step)
            last = time.perf_counter()
    path = output / "weights.safetensors"
    task.export(average, path, step, history)
    return path


def make_optimizers(module: nn.Module, hidden: Sequence[str], options: LoopOptions) -> dict[str, torch.optim.Optimizer]:
    """One for the hidden kernels, one for all other parameters."""
    parameters = dict(module.named_parameters())
    kernels = [parameters.pop(name) for name in hidden]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(parameters.values(), options.learning_rate, weight_decay=options.weight_decay)
    }
    if kernels:
        assert isinstance(options, MuonLoopOptions)
        optimizers["muon"] = Muon(
            kernels, options.muon_learning_rate, momentum=options.muon_momentum, weight_decay=options.muon_weight_decay
        )
    return optimizers


def learning_rate_share(step: int, options: LoopOptions) -> float:
    """What the learning rates are multiplied by: rises linearly, stays 1, falls linearly to 0 in the last part."""
    rising = (step + 1) / max(1, options.warmup_steps)
    falling = (options.steps - step) / max(1.0, options.cooldown * options.steps)
    return min(1.0, rising, falling)


def seeded_generator(device: str, seed: int, step: int) -> torch.Generator:
    """Of the random numbers of a step on the device."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) >> 1)


def keep_freed_memory() -> None:
    """Has glibc keep what is freed: else each step gets its 1.5 GB from the system anew, which costs a fifth of its CPU time."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # mallopt's numbers
    with contextlib.suppress(OSError, AttributeError):  # another system, another allocator
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
            libc.mallopt(parameter, value)


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * module, for parameters and the statistics of batch normalisation."""
    for mean, value in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _save(path: Path, state: Mapping[str, Any], history: History, settings: Mapping[str, Any], step: int) -> None:
    part = path.with_suffix(".part")
    stored = {key: value.state_dict() for key, value in state.items()}
    torch.save({**stored, "history": history.rows, "settings": dict(settings), "step": step}, part)
    part.replace(path)


def _resume(path: Path, state: Mapping[str, Any], history: History, settings: Mapping[str, Any]) -> int:
    """Loads everything from the file, where there is one; returns the number of steps that are done."""
    if not path.is_file():
        return 0
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if changes := describe_changes(stored["settings"], settings):
        raise ValueError(f"{path.parent} holds a training with other settings ({changes}): give another output folder")
    for key, value in state.items():
        value.load_state_dict(stored[key])
    history.rows.extend(stored["history"])
    logger.info("goes on from step %d of %s", stored["step"], path)
    return stored["step"]
