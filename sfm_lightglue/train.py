"""The command `train`: trains the network that the configuration names and writes its weights."""

from __future__ import annotations

import subprocess
import typing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sfm_lightglue.config import bind
from sfm_lightglue.execution.devices import chosen_devices, num_cores
from sfm_lightglue.features.superpoint import SuperPointOptions
from sfm_lightglue.images import list_images
from sfm_lightglue.networks.weights import WEIGHTS
from sfm_lightglue.registry import load_class
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.run_options import choose_plugin
from sfm_lightglue.training import TRAININGS
from sfm_lightglue.training.loop import TrainingRun, keep_freed_memory, train

START_OPTIONS = ("start", "start_superpoint", "to_teacher")
"""Options of trainings whose values are weights: a name or a file."""


def train_from(config: DictConfig) -> str:
    """Trains as the configuration says. Returns the text to print: the file of weights, and how to use it.

    Raises: ValueError if an option is wrong, or if the output folder holds a training with other settings.
    """
    output = Path(config.output)
    task_class, options = _chosen(config)
    device, *_ = chosen_devices(str(config.execution.device))
    with RunFolder(output).locked():
        run = TrainingRun(
            images=Path(config.data.images),
            names=list_images(config.data.images),
            output=output,
            device=device,
            features=bind(SuperPointOptions, config.features, "features"),
            create_matcher=partial(choose_plugin(config.matches, "matches").create, device),
            processes=int(config.execution.num_workers) or num_cores(),
        )
        task = task_class.create(replace(options, commit=options.commit or _commit()), run)
        keep_freed_memory()
        path = train(task, options.loop, output, device)
    return f"{path}\nuse it: {task_class.use.format(path=path)}"


def check_training(config: DictConfig) -> None:
    """Looks for mistakes that can be known before any work. Nothing is written.

    Raises: ValueError if an option is wrong, FileNotFoundError if there are no photos or weights to start from are missing.
    """
    _, options = _chosen(config)
    chosen_devices(str(config.execution.device))
    list_images(config.data.images)
    bind(SuperPointOptions, config.features, "features")
    choose_plugin(config.matches, "matches")
    for key in START_OPTIONS:
        given = getattr(options, key, None)
        if given and given not in WEIGHTS and not Path(given).expanduser().is_file():
            raise FileNotFoundError(f"training.{key}={given} does not exist: expected a file, or a name (`weights list`)")


def _chosen(config: DictConfig) -> tuple[Any, Any]:
    """The class of the training and its options. Raises: ValueError if one is wrong."""
    task_class: Any = load_class(str(config.training.name), TRAININGS, "training")
    return task_class, bind(typing.get_type_hints(task_class.create)["options"], config.training, "training")


def _commit() -> str | None:
    """Commit of the git checkout that this package runs from; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
