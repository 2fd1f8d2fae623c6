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
from sfm_lightglue.registry import load_class
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.run_options import choose_plugin
from sfm_lightglue.training import TRAININGS
from sfm_lightglue.training.loop import TrainingRun, keep_freed_memory, train


def train_from(config: DictConfig) -> str:
    """Trains as the configuration says. Returns the text to print: the file of weights, and how to use it.

    Raises: ValueError if an option is wrong, or if the output folder holds a training with other settings.
    """
    output = Path(config.output)
    task_class: Any = load_class(str(config.training.name), TRAININGS, "training")
    options = bind(typing.get_type_hints(task_class.create)["options"], config.training, "training")
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


def _commit() -> str | None:
    """Commit of the git checkout that this package runs from; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
