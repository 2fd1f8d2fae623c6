"""Every executor writes the same files: the executors of the package, and one from outside."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image as PILImage

from sfm_lightglue import pipeline
from sfm_lightglue.config import compose_config
from sfm_lightglue.config_files import USER_CONFIGS
from sfm_lightglue.execution import EXECUTORS
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.executor import ExecutionOptions, Executor, checked_results
from sfm_lightglue.execution.processes import ProcessExecutor
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.run_context import Run
from sfm_lightglue.run_options import choose_plugin

PRODUCTS = ("features.h5", "matches.h5", "verification.h5")


def make_run(folder: Path, output: str, *overrides: str) -> Run:
    """A run over the photos of a folder, with a network-free extractor and matcher."""
    given = ["dataset=folder", f"dataset.images='{folder}/photos'", f"output='{folder}/{output}'"]
    return Run.create(compose_config([*given, "features=sift", "matches=nearest_neighbor", *overrides]))


def compute_products(run: Run) -> list[bytes]:
    """The bytes of the products."""
    for stage in (pipeline.extract, pipeline.pairs, pipeline.match, pipeline.verify):
        stage(run)
    return [(run.folder.path / name).read_bytes() for name in PRODUCTS]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Crops of one photo of noise, and a file that is no photo."""
    (tmp_path / "photos").mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    noise = PILImage.fromarray(coarse).resize((320, 240), PILImage.Resampling.BICUBIC)
    for i in range(4):
        noise.crop((8 * i, 8 * i, 240 + 8 * i, 200 + 8 * i)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no photo")
    return tmp_path


def test_processes_write_the_bytes_of_threads_and_report_the_same_broken_photo(photos: Path) -> None:
    expected = compute_products(make_run(photos, "threads", "execution=threads"))
    run = make_run(photos, "processes", "execution=processes", "execution.num_processes=2", "execution.device=cpu")
    executor = run.executor()
    assert isinstance(executor, ProcessExecutor) and executor.devices == ["cpu", "cpu"]
    assert compute_products(run) == expected
    skipped = [(photos / output / "summary.json").read_text().count("unreadable image") for output in ("threads", "processes")]
    assert skipped == [1, 1]


def test_processes_describe_images_as_threads_do(photos: Path) -> None:
    found = []
    for number, execution in enumerate((("execution=threads",), ("execution=processes", "execution.num_processes=2"))):
        run = make_run(photos, f"out{number}", "pairs=retrieval", "execution.device=cpu", *execution)
        pipeline.extract(make_run(photos, f"out{number}"))
        pipeline.pairs(run)
        found.append([(run.folder.path / name).read_bytes() for name in ("global_descriptors.h5", "pairs.tsv")])
    assert found[0] == found[1]


@pytest.mark.parametrize("chosen", ["execution=serial", "execution.name=example_executor:Serial"])
def test_an_executor_of_the_user_runs_every_stage(photos: Path, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    (photos / "execution").mkdir()
    (photos / "execution" / "serial.yaml").write_text("defaults: [local]\nname: example_executor:Serial\nbackwards: true\n")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv(USER_CONFIGS, str(photos))
    run = make_run(photos, "serial", chosen, *([] if chosen == "execution=serial" else ["+execution.backwards=false"]))
    assert type(run.executor()).__module__ == "example_executor"
    assert compute_products(run) == compute_products(make_run(photos, "local"))


@pytest.mark.parametrize("name", sorted(EXECUTORS))
def test_every_executor_yields_each_key_once_and_errors_as_values(name: str) -> None:
    if name == "ray":
        pytest.skip("test_ray.py does it")
    shard = ["execution.shard=1/1"] if name == "shards" else []
    executor = executor_of(f"execution={name}", "execution.device=cpu", "execution.num_workers=1", *shard)
    found = dict(executor(open_inverse, [1, 2, 0]))
    assert isinstance(found.pop(0), ZeroDivisionError)
    assert found == {1: 1.0, 2: 0.5}


def executor_of(*overrides: str) -> Executor:
    config = compose_config(overrides)
    return choose_plugin(config.execution, "execution").create()


class Inverse:
    """A worker and its context."""

    def __enter__(self) -> Inverse:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, key: int) -> float:
        return 1 / key


def open_inverse(device: str) -> Inverse:
    assert device == "cpu"
    return Inverse()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([1], "gave no result for 2 of 3 jobs"),
        ([1, 2, 2, 3], "gave a result for 2, which was done already"),
        ([1, 2, 3, 4], "gave a result for 4, which was done already or not asked for"),
        (None, "gave list, expected a generator"),
    ],
)
def test_an_executor_that_loses_repeats_or_invents_jobs_is_named(given: list[int] | None, problem: str) -> None:
    def careless(recipe: object, keys: object) -> object:
        return [] if given is None else ((key, 1.0) for key in given)

    with pytest.raises(ValueError, match=problem):
        list(checked_results(careless, open_inverse, [1, 2, 3]))  # type: ignore[arg-type]


# --- devices and numbers of workers ----------------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("overrides", "devices", "num_workers"),
    [
        (["execution.device=all"], ["cuda:0", "cuda:1"], 2),
        (["execution.device=all", "execution.num_workers=3"], ["cuda:0", "cuda:1"], 3),
        (["execution.device=cpu,cuda:1", "execution.num_workers=3"], ["cpu", "cuda:1"], 3),
        (["execution=processes", "execution.device=auto"], ["cuda"], 2),
        (["execution=processes", "execution.device=all", "execution.num_processes=2"], ["cuda:0"] * 2 + ["cuda:1"] * 2, 2),
        (["execution=processes", "execution.device=cpu"], ["cpu"] * num_cores(), 1),
        (["execution=processes", "execution.device=cpu", "execution.num_processes=1"], ["cpu"], num_cores()),
    ],
)
def test_processes_are_distributed_over_the_devices(overrides: list[str], devices: list[str], num_workers: int) -> None:
    executor = executor_of(*overrides)
    assert isinstance(executor, ProcessExecutor)
    assert (executor.devices, executor.num_workers) == (devices, num_workers)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("overrides", "device", "num_workers"),
    [
        ([], "cuda", 2),
        (["execution.device=cpu"], "cpu", num_cores()),
        (["execution=threads", "execution.device=cpu", "execution.num_workers=5"], "cpu", 5),
    ],
)
def test_one_device_is_used_by_threads(overrides: list[str], device: str, num_workers: int) -> None:
    executor = executor_of(*overrides)
    assert isinstance(executor, ThreadExecutor)
    assert (executor.device, executor.num_workers) == (device, num_workers)


@pytest.mark.usefixtures("two_gpus")
def test_threads_refuse_several_devices() -> None:
    with pytest.raises(ValueError, match=r"execution=threads computes on one device, found execution\.device='all'"):
        executor_of("execution=threads", "execution.device=all")


def test_options_of_an_executor_are_checked_when_they_are_bound() -> None:
    options = ExecutionOptions("local", "cpu", 0, 1000, "refuse")
    with pytest.raises(ValueError, match=r"execution 'lokal' does not exist\. Did you mean 'local'\?"):
        choose_plugin(OmegaConf.create({"name": "lokal"}), "execution")
    with pytest.raises(ValueError, match=r"if_settings_changed='no'"):
        dataclasses.replace(options, if_settings_changed="no")
