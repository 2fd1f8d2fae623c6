"""Which devices `execution.device` means. The tests pretend a number of GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfm_lightglue.config import compose_config
from sfm_lightglue.execution.devices import chosen_devices
from sfm_lightglue.execution.processes import ProcessExecutor
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.run_context import Run

FOLDER = ["dataset=folder", "dataset.images=photos"]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_one_gpu_and_all_are_all() -> None:
    assert chosen_devices("auto") == ["cuda"]
    assert chosen_devices("all") == ["cuda:0", "cuda:1"]
    assert chosen_devices("cpu, cuda:1") == ["cpu", "cuda:1"]


def test_all_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="torch sees none: choose cpu"):
        chosen_devices("all")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("devices", ["cpu,cuda:2", "cpu,gpu", "cpu,"])
def test_a_device_that_is_not_there_is_refused(devices: str) -> None:
    with pytest.raises(ValueError, match=r"expected cpu or cuda:0, cuda:1 \.\.\.; torch sees 2 GPUs"):
        chosen_devices(devices)


def test_a_run_has_a_process_for_each_of_several_devices_and_computes_all_else_on_the_first(tmp_path: Path) -> None:
    overrides = [*FOLDER, f"output={tmp_path}", "features=sift", "matches=nearest_neighbor"]
    run = Run.create(compose_config([*overrides, "execution.device='cpu,cpu'"]))
    executor = run.executor()
    assert isinstance(executor, ProcessExecutor) and executor.devices == ["cpu", "cpu"]
    assert run.device == "cpu"
    assert isinstance(run.executor(device="cpu"), ThreadExecutor)
