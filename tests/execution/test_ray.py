"""The executor `ray` on three simulated machines: the files of a local run, and nothing lost or doubled whoever dies.

These tests need the package ray. `test_crew.py` tests who gets which jobs without it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_executors import compute_products, make_run, photos  # noqa: F401  # a fixture

from sfm_lightglue.config import compose_config
from sfm_lightglue.execution.executor import checked_results
from sfm_lightglue.run_options import choose_plugin

ray: Any = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

QUICK_START = {"enable_worker_prestart": False, "prestart_worker_first_driver": False, "worker_niceness": 0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three machines of one core each. The first one is the head."""
    with pytest.MonkeyPatch.context() as patch:
        found = [str(Path(__file__).parent), str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(found))  # workers import the functions of this file
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        one_core = {"num_cpus": 1, "object_store_memory": 100_000_000}
        head = {**one_core, "include_dashboard": False, "_system_config": QUICK_START}
        machines = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        machines.others = [machines.add_node(**one_core) for _ in range(2)]
        yield machines
        ray.shutdown()
        machines.shutdown()


def executor_on(cluster: Any, **options: Any) -> Any:
    given = [f"execution.{key}={value}" for key, value in options.items()]
    config = compose_config(["execution=ray", f"execution.address='{cluster.address}'", "execution.device=cpu", *given])
    return choose_plugin(config.execution, "execution").create()


@contextlib.contextmanager
def opened(function: Callable[[Any, int], Any], argument: Any, device: str) -> Iterator[Callable[[int], Any]]:
    assert device == "cpu"
    yield functools.partial(function, argument)


def misbehave(_: None, key: int) -> Any:
    if key == 3:
        raise KeyError("three")
    return (lambda: key) if key == 5 else key * key  # a function inside a function cannot be pickled


def die_once(folder: Path, key: int) -> int:
    """Kills its process at the key 20, the first time."""
    time.sleep(0.02)
    if key == 20 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return key * key


def rest(seconds: float, key: int) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_the_files_are_those_of_a_local_run(cluster: Any, photos: Path) -> None:  # noqa: F811
    local = make_run(photos, "local", "pairs=retrieval")
    given = ("execution=ray", f"execution.address='{cluster.address}'", "execution.device=cpu", "pairs=retrieval")
    expected, run = compute_products(local), make_run(photos, "ray", *given)
    assert compute_products(run) == expected
    assert run.folder.global_descriptors.read_bytes() == local.folder.global_descriptors.read_bytes()
    assert (photos / "ray" / "summary.json").read_text().count("unreadable image") == 1


def test_every_key_comes_once_and_errors_are_values(cluster: Any) -> None:
    found = dict(checked_results(executor_on(cluster), functools.partial(opened, misbehave, None), range(40)))
    error, unsendable = found.pop(3), found.pop(5)
    assert isinstance(error, KeyError) and "in misbehave" in error.__notes__[0]
    assert "pickle" in str(unsendable) and isinstance(unsendable, Exception)
    assert found == {key: key * key for key in range(40) if key not in (3, 5)}


def test_a_killed_worker_is_replaced_and_its_jobs_are_done(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = functools.partial(opened, die_once, tmp_path)
    found = dict(checked_results(executor_on(cluster, chunk_size=4), recipe, range(60)))
    assert (tmp_path / "died").exists() and found == {key: key * key for key in range(60)}
    assert "a worker on " in caplog.text and "was killed or crashed. Its " in caplog.text


def test_a_closed_loop_leaves_no_worker(cluster: Any) -> None:
    results = executor_on(cluster, chunk_size=1)(functools.partial(opened, rest, 0.1), range(1000))
    processes = {next(results)[1] for _ in range(10)}
    results.close()
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_folder_that_is_not_shared_is_one_error(cluster: Any, tmp_path: Path) -> None:
    executor = executor_on(cluster)
    executor.check_folders([tmp_path], tmp_path)
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(ValueError, match=r"does not see /nowhere.*must be in folders that all machines share"):
        executor.check_folders([Path("/nowhere")])
    late = functools.partial(opened, rest, 0.0)
    with pytest.raises(ValueError, match=r"does not see /nowhere"):  # on a machine that comes later, the worker looks
        list(executor(late, range(3)))


def test_a_machine_that_is_removed_loses_nothing(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    results = checked_results(executor_on(cluster, chunk_size=2), functools.partial(opened, rest, 0.05), range(150))
    found = [next(results) for _ in range(10)]
    cluster.remove_node(cluster.others.pop())
    found += list(results)
    assert sorted(key for key, _ in found) == [*range(150)]
    assert len({process for _, process in found}) == 3
    assert "its machine is gone" in caplog.text


def test_the_example_of_a_growing_cluster_is_valid() -> None:
    yaml = pytest.importorskip("yaml")
    util = pytest.importorskip("ray.autoscaler._private.util")
    path = Path(__file__).parents[2] / "examples" / "clusters" / "ray_aws.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    util.validate_config(util.prepare_config(config))
    with pytest.raises(Exception, match="worker_setup"):
        util.validate_config(util.prepare_config({**config, "worker_setup": []}))
