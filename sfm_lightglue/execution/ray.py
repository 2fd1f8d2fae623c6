"""The executor `ray`: jobs on all machines of a Ray cluster, or in processes that Ray starts on this machine.

Only this module imports ray (the extra `ray` of the package).
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import socket
import time
from collections.abc import Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sfm_lightglue.execution.crew import Crew, CrewOptions, Worked, WorkerLost
from sfm_lightglue.execution.devices import num_cores
from sfm_lightglue.execution.executor import ExecutionOptions, Key, Recipe, Result
from sfm_lightglue.execution.portable import Failure
from sfm_lightglue.execution.threads import run_jobs
from sfm_lightglue.files import result_exists
from sfm_lightglue.mistakes import shortened
from sfm_lightglue.ranges import check_ranges

logger = logging.getLogger(__name__)

CONNECT_S, ANSWER_S, STOP_S = 5.0, 60.0, 10.0
"""Times to wait for the address, for the answers of all machines, and for the end of killed workers, s."""
THREADS_WITH_GPU = 2
"""Cores of a worker with a GPU, and jobs that it does at a time: one photo or pair is read while another is computed."""


@dataclass(frozen=True)
class RayOptions(ExecutionOptions):
    """Options; configs/execution/ray.yaml holds the values."""

    address: str | None
    """`HOST:PORT` of the cluster's head, or `auto` on a machine of the cluster; None starts Ray on this machine."""
    num_actors: int
    """Number of workers; 0 = as many as the cluster has room for, also while it grows."""
    num_gpus: float | None
    """GPUs of each worker; None: one if the cluster has any. Parts of one, such as 0.5, share a GPU."""
    num_cpus: float | None
    """Cores of each worker; None: one, or two with a GPU."""
    chunk_size: int
    """Jobs that a worker gets together; 0 = as many as take about a second."""
    max_restarts: int
    """How often in a row a worker is replaced that has finished nothing; -1 = always."""
    max_task_retries: int
    """How often jobs are given to another worker after theirs died."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = {"num_actors": ">= 0", "chunk_size": ">= 0", "max_restarts": ">= -1", "max_task_retries": ">= 0"}
        check_ranges(self, "execution", **limits, num_gpus=">= 0", num_cpus="> 0")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"execution=ray chooses the GPUs itself: expected execution.device=auto, cuda or cpu, found {self.device!r}"
            )
        if self.address and self.address.startswith("ray://"):
            raise ValueError(
                f"execution.address={self.address} is the address of a Ray Client: start the command on a machine of the cluster "
                "with execution.address=auto, or there by `ray job submit`"
            )


class RayExecutor:
    """Runs jobs in Ray actors. Each opens its worker once, and gets chunks of neighbouring keys."""

    def __init__(self, options: RayOptions) -> None:
        self.options = options
        self.num_gpus = _num_gpus(options)
        self.num_cpus = options.num_cpus or (THREADS_WITH_GPU if self.num_gpus else 1)
        self.num_workers = options.num_workers or (THREADS_WITH_GPU if self.num_gpus else max(1, int(self.num_cpus)))
        self.folders: list[str] = []

    @classmethod
    def create(cls, options: RayOptions) -> RayExecutor:
        """Connects to the cluster, or starts Ray on this machine.

        Raises: ValueError if ray is not installed, if nothing answers at the address, or if no machine has room for a worker.
        """
        _connect(options.address)
        executor = cls(options)
        executor.machines(None).check_room()
        return executor

    def __call__(self, recipe: Recipe[Key, Result], keys: Iterable[Key]) -> Generator[tuple[Key, Result | Exception], None, None]:
        """See `Executor`. A chunk of a worker or a machine that dies is given to another worker.

        A job at which `max_task_retries` + 1 workers died has a ChildProcessError as its result.
        """
        options = self.options
        crew_options = CrewOptions(options.num_actors, options.chunk_size, options.max_restarts, options.max_task_retries)
        pickle.dumps(recipe)  # raises here if a plug-in cannot be sent, with our own message
        crew = Crew(self.machines(recipe), crew_options, self.num_workers)
        yield from crew.results(keys)
        if crew.num_lost:
            logger.info("%d workers were lost, and %d jobs were given to others", crew.num_lost, crew.num_given_again)

    def machines(self, recipe: Any) -> RayMachines:
        """Where the jobs run."""
        return RayMachines(recipe, self.num_gpus, self.num_cpus, self.num_workers, self.folders)

    def check_folders(self, folders: Sequence[Path], output: Path | None = None) -> None:
        """Checks that every machine that workers may run on sees the folders. Workers of later machines check it too.

        Args:
            folders: They must exist there, under the same path.
            output: It must be the same folder on all machines. A file is written into it for a moment.

        Raises: ValueError that names the machines and folders.
        """
        if self.options.address is None:
            return
        self.folders = [str(folder) for folder in folders]
        if output is None:
            self.machines(None).check_paths(self.folders)
            return
        mark = output / f".seen.{os.getpid()}.tmp"
        mark.touch()
        try:
            self.machines(None).check_paths([*self.folders, str(mark)])
        finally:
            mark.unlink(missing_ok=True)
        self.folders.append(str(output))


def _ray() -> Any:
    """The module. Raises: ValueError if it is not installed."""
    if find_spec("ray") is None:
        raise ValueError('execution=ray needs the package ray: pip install "sfm-lightglue[ray]", on all machines of the cluster')
    import ray

    return ray


def _connect(address: str | None) -> None:
    """Connects this process, once. Raises: ValueError if nothing answers at the address."""
    if address not in (None, "auto"):
        _check_address(str(address))
    ray = _ray()
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a new cluster reports its use to Ray's makers
    if address is None:
        ray.init(address="local", num_cpus=num_cores(), include_dashboard=False, logging_level=logging.WARNING)
        return
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except ConnectionError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"execution.address={address}: no Ray cluster answers ({reason}). {_START}") from error
    except RuntimeError as error:  # other versions of Python or Ray
        raise ValueError(f"execution.address={address}: {error}") from error


_START = "`ray start --head --port=6379` starts one; execution.address=null starts Ray on this machine alone"


def _check_address(address: str) -> None:
    """Raises: ValueError if nothing listens at the address. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"execution.address={address}: expected HOST:PORT of the head of a Ray cluster, such as 10.0.0.5:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"execution.address={address}: nothing answers there ({error}). {_START}") from error


def _num_gpus(options: RayOptions) -> float:
    """GPUs of each worker."""
    if options.device == "cpu" or options.num_gpus == 0:
        return 0
    if options.num_gpus is not None:
        return options.num_gpus
    return 1 if options.device == "cuda" or _ray().cluster_resources().get("GPU", 0) else 0


class RayMachines:
    """The machines of the cluster, see `crew.Machines`."""

    def __init__(self, recipe: Any, num_gpus: float, num_cpus: float, num_workers: int, folders: Sequence[str]) -> None:
        self.ray = _ray()
        self.needs = {"CPU": num_cpus, "GPU": num_gpus}
        self.num_workers, self.folders = num_workers, list(folders)
        self.recipe = None if recipe is None else self.ray.put(recipe)
        self._opening: dict[Hashable, Any] = {}  # ticket -> actor
        self._processes: dict[Any, int] = {}  # actor -> process id, on this machine
        self._actor = self.ray.remote(_Actor).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )

    def _nodes(self) -> list[dict[str, Any]]:
        """The machines on which a worker has room."""
        return [node for node in self.ray.nodes() if node["Alive"] and self._places(node)]

    def _places(self, node: dict[str, Any]) -> int:
        """How many workers a machine has room for."""
        return min(int(node["Resources"].get(kind, 0) / need + 1e-9) for kind, need in self.needs.items() if need)

    def room(self) -> int:
        """How many workers all machines have room for."""
        return sum(map(self._places, self._nodes()))

    def check_room(self) -> None:
        """Warns if no machine has room for a worker: the cluster may grow."""
        if not self._nodes():
            logger.warning("no machine has room for a worker yet. %s", self.describe())

    def describe(self) -> str:
        """What a worker needs and what the cluster has."""
        has = self.ray.cluster_resources()
        needs, found = (
            ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")) for resources in (self.needs, has)
        )
        if room := self.room():
            return f"The cluster ({found}) has room for {room} of them: they are starting, or other work holds their place"
        return (
            f"Each worker needs {needs}, and no machine of the cluster ({found} in all) has as much: it must grow, or choose a "
            "smaller execution.num_cpus or execution.num_gpus"
        )

    def start(self) -> tuple[Any, Hashable]:
        """An actor, and the ticket for its address."""
        actor = self._actor.remote()
        device, threads = "cuda" if self.needs["GPU"] else "cpu", max(1, int(self.needs["CPU"]) // self.num_workers)
        ticket = actor.open.remote(self.recipe, device, self.num_workers, threads, str(Path.cwd()), self.folders)
        self._opening[ticket] = actor
        return actor, ticket

    def give(self, worker: Any, keys: list[Any]) -> Hashable:
        """The ticket for `Worked`."""
        ticket: Hashable = worker.work.remote(keys)
        return ticket

    def wait(self, tickets: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """Tickets whose answer has come."""
        done: Sequence[Hashable] = self.ray.wait(list(tickets), num_returns=1, timeout=seconds)[0]
        return done

    def answer(self, ticket: Hashable) -> Any:
        """The answer. Raises: WorkerLost; what the recipe raised."""
        errors = self.ray.exceptions
        try:
            found = self.ray.get(ticket)
        except errors.RayTaskError as error:
            raise ValueError(f"a worker cannot run sfm_lightglue, is it installed there? {_last_line(error)}") from error
        except errors.RayError as error:
            raise WorkerLost(_reason(error)) from error
        answer = pickle.loads(found)
        if isinstance(answer, Failure):
            raise answer.error
        if (actor := self._opening.pop(ticket, None)) is None:
            return Worked(answer[0], answer[1], len(found)) if isinstance(answer, tuple) else answer
        machine, process = answer
        if machine == socket.gethostname():
            self._processes[actor] = process
        return machine

    def stop(self, workers: Sequence[Any]) -> None:
        """Kills the workers. Waits for the end of those on this machine; Ray ends the others."""
        for worker in workers:
            self.ray.kill(worker, no_restart=True)
        deadline = time.monotonic() + STOP_S
        for process in [self._processes.pop(worker) for worker in workers if worker in self._processes]:
            while _is_alive(process) and time.monotonic() < deadline:
                time.sleep(0.02)

    def check_paths(self, paths: Sequence[str]) -> None:
        """Raises: ValueError if a machine with room for a worker does not see one of the paths, or has another version."""
        at = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        look = self.ray.remote(_look)
        tickets = {
            look.options(num_cpus=0, max_retries=0, scheduling_strategy=at(node["NodeID"], soft=False)).remote(
                list(paths), str(Path.cwd())
            ): node["NodeManagerAddress"]
            for node in self._nodes()
        }
        done, late = self.ray.wait(list(tickets), num_returns=len(tickets), timeout=ANSWER_S) if tickets else ([], [])
        if late:
            logger.warning("no answer from %s: whether they see the folders is not known", shortened([tickets[t] for t in late]))
        problems = []
        for ticket in done:
            with contextlib.suppress(WorkerLost):
                problems += [f"{tickets[ticket]} {problem}" for problem in self.answer(ticket)]
        if problems:
            raise ValueError(_not_shared(problems))


def _not_shared(problems: Sequence[str]) -> str:
    return (
        f"{shortened(problems)}: with execution=ray, the photos and the output folder must be in folders that all machines "
        "share, under the same path"
    )


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _reason(error: Exception) -> str:
    """Why a worker is gone, in a few words."""
    text = str(error)
    if re.search("node has died|node was terminated|node is dead", text):
        return "its machine is gone"
    if re.search("running low on memory|NODE_OUT_OF_MEMORY", text):  # Ray names an OOM killer as a possible cause of any death
        return "its machine has run out of memory"
    return "it was killed or crashed"


# --- in the workers ------------------------------------------------------------------------------------------------------


def _enter(folder: str) -> None:
    """Goes to the folder of the command, because paths may be relative."""
    with contextlib.suppress(OSError):
        os.chdir(folder)


def _look(paths: list[str], folder: str) -> bytes:
    """What is wrong with this machine."""
    _enter(folder)
    return pickle.dumps(_problems(paths))


def _problems(paths: list[str]) -> list[str]:
    return [f"does not see {path}" for path in paths if not result_exists(path)]


class _Actor:
    """A worker process of the cluster. Every answer is pickled, so that its size is known and errors keep their type."""

    def open(self, recipe: Any, device: str, num_workers: int, num_threads: int, folder: str, paths: list[str]) -> bytes:
        """Opens the worker, once. Answers the name of the machine and the process id, or the error as a `Failure`."""
        import torch  # here, not at the top: the checks of a run import this file

        _enter(folder)
        self.num_workers = num_workers
        try:
            if problems := _problems(paths):
                raise ValueError(_not_shared([f"{socket.gethostname()} {problem}" for problem in problems]))
            torch.set_num_threads(num_threads)
            self.context = recipe(device)
            self.function = self.context.__enter__()
        except Exception as error:
            return pickle.dumps(Failure(error))
        return pickle.dumps((socket.gethostname(), os.getpid()))

    def work(self, keys: list[Any]) -> bytes:
        """Answers the result of each key, or its error as a `Failure`, and the time in s."""
        begin = time.monotonic()
        numbers = range(len(keys))  # equal keys may come as different objects
        found = dict(run_jobs(lambda number: self.function(keys[number]), numbers, self.num_workers))
        results = [Failure(found[number]) if isinstance(found[number], Exception) else found[number] for number in numbers]
        return _pickled(results, time.monotonic() - begin)


def _pickled(results: list[Any], seconds: float) -> bytes:
    """The results, with an error for each one that cannot be pickled."""
    try:
        return pickle.dumps((results, seconds))
    except Exception:  # pickling calls code of the result's class, which may raise anything
        for number, result in enumerate(results):
            try:
                pickle.dumps(result)
            except Exception as error:
                results[number] = Failure(error)
        return pickle.dumps((results, seconds))
