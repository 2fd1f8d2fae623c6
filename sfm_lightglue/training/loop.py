"""The training loop, the same for every network: steps, weight average, validation, curves, and one file to resume from.

A `Task` says what is trained, on which examples, and what is exported. A run that is killed continues from its last save and ends
with the same bits as a run that was not killed: batches depend only on the step, and the file holds everything else.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.features.superpoint import SuperPointOptions
from sfm_lightglue.files import remove_stale, written_whole
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.networks.precision import network_dtype
from sfm_lightglue.settings import describe_changes
from sfm_lightglue.training.curves import History, write_curves
from sfm_lightglue.training.optimizer import Muon

logger = logging.getLogger(__name__)

RESUME_FILE = "resume.pt"


@dataclass(frozen=True)
class LoopOptions:
    """Options; configs/training holds the values."""

    steps: int
    learning_rate: float
    """Learning rate of AdamW (Loshchilov & Hutter, arXiv:1711.05101) between `warmup_steps` and `cooldown`."""
    weight_decay: float
    warmup_steps: int
    cooldown: float
    """Share of the steps, at the end, in which the learning rate falls linearly to 0. A run that has not yet reached them can be
    made longer."""
    max_gradient_norm: float
    average_decay: float
    """Decay of the exponential moving average of the weights. The average is validated and exported."""
    log_every: int
    """Number of steps whose metrics are averaged into one point of the curves."""
    save_every: int
    validate_every: int
    data_workers: int
    """Number of processes that make batches; 0 makes them in the training process. The results do not depend on it."""

    def __post_init__(self) -> None:
        for key in ("steps", "log_every", "save_every", "validate_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"training.loop.{key} must be 1 or more, found {getattr(self, key)}")
        if self.save_every % self.log_every:  # a resumed run would not know the metrics of the steps before the save
            raise ValueError(
                f"training.loop.save_every must be a multiple of log_every, found {self.save_every} and {self.log_every}"
            )


@dataclass(frozen=True)
class MuonLoopOptions(LoopOptions):
    """Options of a task with hidden kernels."""

    muon_learning_rate: float
    """Learning rate of Muon, which trains the kernels that the task lists in `hidden`. AdamW trains all other weights."""
    muon_momentum: float
    muon_weight_decay: float


@dataclass(frozen=True)
class TrainingRun:
    """The input of `Task.create`, besides the options of the task."""

    images: Path
    names: Sequence[str]
    """Names of the photos in `images`."""
    output: Path
    device: str
    features: SuperPointOptions
    """Options of SuperPoint: either of the network in training, or of the one whose features are matched."""
    create_matcher: Callable[[], Matcher]
    """Creates the matcher of the configuration."""
    processes: int
    """Number of processes that prepare photos."""


class Task(Protocol):
    """A network, its examples and its losses.

    A task class has two more members: the class method `create(options, run)`, which does the long work of preparing a task, and
    `use`, the overrides that make a run use the exported weights.
    """

    @property
    def module(self) -> nn.Module:
        """The network that is trained."""
        ...

    @property
    def hidden(self) -> Sequence[str]:
        """Names of the kernels between other layers. Muon trains them; if there are any, the options are `MuonLoopOptions`."""
        ...

    @property
    def data(self) -> Dataset[dict[str, Tensor]]:
        """Item `step` holds the data of the batch of that step."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides the result, except the number of steps."""
        ...

    def losses(self, item: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and the metrics of the curves, for item `step` of `data` on the device."""
        ...

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Metrics of a state of `module` on examples that are not trained on."""
        ...

    def export(self, module: nn.Module, path: Path, steps: int, history: History) -> None:
        """Writes a state of `module`, after this number of steps, to `path`. A run can use the file as weights."""
        ...


def train(task: Task, options: LoopOptions, output: Path, device: str) -> Path:
    """Trains until `options.steps`, continuing a training in `output`. Returns the path of the exported weights.

    Args:
        task: The network, its examples and its losses.
        options: Options of the loop.
        output: Folder for the weights, the curves and the file to resume from.
        device: Torch's name of the device.

    Raises: ValueError if `output` holds a training with other settings, or if the loss is no longer finite.
    """
    output.mkdir(parents=True, exist_ok=True)
    remove_stale(output / RESUME_FILE)
    module = task.module.to(device).train()
    average = copy.deepcopy(module).eval().requires_grad_(False)
    optimizers = make_optimizers(module, task.hidden, options)
    history = History()
    state = {"module": module, "average": average, **optimizers}
    step = _resume(output / RESUME_FILE, state, history, task.settings)
    point = _Point()
    last = time.perf_counter()
    with progress_bar(options.steps, "train", "step", initial=step) as bar:
        for item in _loader(task, range(step, options.steps), options.data_workers, device):
            point.waited_s += time.perf_counter() - last
            _set_learning_rates(optimizers, learning_rate_share(step, options))
            loss, metrics = task.losses({key: value.to(device, non_blocking=True) for key, value in item.items()}, step)
            _descend(loss, module, optimizers, options.max_gradient_norm)
            update_average(average, module, min(options.average_decay, (1 + step) / (10 + step)))
            step += 1
            bar.update()

            point.metrics.append({key: value.detach() for key, value in metrics.items()})
            if step % options.log_every == 0 or step == options.steps:
                means = point.means(step)
                history.add(step, "training", {**means, "learning_rate": learning_rate_share(step - 1, options)})
                waited_s = point.waited_s / len(point.metrics)
                bar.set_postfix_str(f"loss {means['loss']:.3f}, {waited_s:.2f} s per step spent waiting for data")
                point = _Point()
            if step % options.validate_every == 0 or step == options.steps:
                history.add(step, "validation", task.validate(average))
                logger.info("step %d: %s", step, history.describe_last("validation"))
            if step % options.save_every == 0 or step == options.steps:
                # The curves come first: a resumed run writes them again, so a kill between the two leaves nothing out of date.
                write_curves(history, output)
                _save(output / RESUME_FILE, state, history, task.settings, step)
            last = time.perf_counter()
    path = output / "weights.safetensors"
    task.export(average, path, step, history)
    return path


@dataclass
class _Point:
    """The steps that make one point of the curves."""

    metrics: list[dict[str, Tensor]] = field(default_factory=list)
    waited_s: float = 0.0

    def means(self, step: int) -> dict[str, float]:
        """The mean of each metric. Raises: ValueError if the loss is not finite."""
        means = {key: torch.stack([each[key] for each in self.metrics]).float().mean().item() for key in self.metrics[0]}
        if not math.isfinite(means["loss"]):
            raise ValueError(
                f"the loss is {means['loss']} at step {step}: lower the learning rate and start in a new output folder"
            )
        return means


def _loader(task: Task, steps: range, num_workers: int, device: str) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(
        task.data,
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        # Forked processes would hold the lock of the output folder for seconds after a kill.
        multiprocessing_context="spawn" if num_workers else None,
        pin_memory=device != "cpu",
    )


def _set_learning_rates(optimizers: Mapping[str, torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * share


def _descend(loss: Tensor, module: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], max_gradient_norm: float) -> None:
    """One step of all optimizers down the gradient of `loss`."""
    module.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), max_gradient_norm)
    for optimizer in optimizers.values():
        optimizer.step()


def make_optimizers(module: nn.Module, hidden: Sequence[str], options: LoopOptions) -> dict[str, torch.optim.Optimizer]:
    """Muon for the hidden kernels, if there are any, and AdamW for all other parameters."""
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
    """Factor of the learning rates at a step: it rises linearly to 1, stays there, and falls linearly to 0 in the last part."""
    rising = (step + 1) / max(1, options.warmup_steps)
    falling = (options.steps - step) / max(1.0, options.cooldown * options.steps)
    return min(1.0, rising, falling)


def seeded_generator(device: str, seed: int, step: int) -> torch.Generator:
    """Generator of the random numbers of one step, on the device."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) >> 1)


def training_dtype(precision: str, device: str) -> torch.dtype:
    """Like `network_dtype`, but bfloat16 instead of float16, in which gradients underflow."""
    dtype = network_dtype(precision, device)
    return torch.bfloat16 if dtype == torch.float16 else dtype


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory. Otherwise each step asks the system for its 1.5 GB again: a fifth of its CPU time."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # mallopt's numbers
    with contextlib.suppress(OSError, AttributeError):  # another system or another allocator
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
    stored = {key: value.state_dict() for key, value in state.items()}
    # torch writes the name of a file into it, but not the name of a stream: the temporary name must not matter.
    with written_whole(path) as temporary, temporary.open("wb") as stream:
        torch.save({**stored, "history": history.rows, "settings": dict(settings), "step": step}, stream)


def _resume(path: Path, state: Mapping[str, Any], history: History, settings: Mapping[str, Any]) -> int:
    """Loads everything from the file, if it exists. Returns the number of steps that are done."""
    if not path.is_file():
        return 0
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if changes := describe_changes(stored["settings"], settings):
        raise ValueError(f"{path.parent} holds a training with other settings ({changes}): give another output folder")
    for key, value in state.items():
        value.load_state_dict(stored[key])
    history.rows.extend(stored["history"])
    logger.info("resuming from step %d of %s", stored["step"], path)
    return stored["step"]
