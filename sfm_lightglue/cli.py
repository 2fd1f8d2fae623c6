"""The command line: `python -m sfm_lightglue COMMAND [overrides]`, also installed as `sfm-lightglue`.

Help, lists and errors in the command line do not import torch.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sfm_lightglue import __version__
from sfm_lightglue.mistakes import MISTAKES, message_of, raise_together
from sfm_lightglue.overrides import (
    SWEEP_FLAGS,
    check_flags,
    expanded,
    hydra_overrides,
    separate_paths,
    with_photos_and_output,
)
from sfm_lightglue.registry import closest
from sfm_lightglue.stages import STAGES, stage_names

if TYPE_CHECKING:
    from omegaconf import DictConfig

RUN_COMMANDS = ("run", *stage_names(), "evaluate")
"""Commands that take the configuration of a run."""
HELP = """\
sfm_lightglue {version}: photos in, a verified COLMAP reconstruction out

python -m sfm_lightglue COMMAND [PHOTOS OUT] [key=value ...]

  run            all stages below, in this order
{stages}
  evaluate       reconstruction against ground truth -> evaluation.json
  train          photos -> weights of a network                             (training=superpoint data.images=DIR)
  match-pair     two photos: keypoints, matches and scores, and a picture   (IMAGE0 IMAGE1 [--json])
  export         finished run -> files for splatting, nerfstudio, ...       (FORMAT OUT DIR | list)
  frames         video -> photos, the sharpest of each half second         (VIDEO FOLDER [every=SECONDS])
  weights        all weights, their licences and where they are             (list | fetch NAME)
  datasets       all datasets, their licences and sizes                     (list | fetch NAME)
  kernels        compile optional kernels that make LightGlue faster on CPUs with AVX512
  doctor         versions, devices and weights found on this machine

  run PHOTOS OUT                             your folder of photos, and a folder for all results
  run PHOTOS OUT experiment=fast             a preset: fast or quality
  run PHOTOS OUT features=disk,aliked -m     one run for each choice
  run PHOTOS OUT --cfg job                   print the configuration
  run +dataset=demo                          an embedded scene

PHOTOS OUT is short for +dataset=folder dataset.images=PHOTOS output=OUT.

groups of choices (GROUP=CHOICE), options are GROUP.KEY=VALUE:
{groups}
"""

USAGE = {
    "match-pair": "match-pair IMAGE0 IMAGE1 [--json] [output=DIR] [features=... matches=... key=value ...]",
    "frames": "frames VIDEO FOLDER [every=SECONDS]",
    "weights": "weights [list] or weights fetch NAME",
    "datasets": "datasets [list] or datasets fetch NAME",
    "kernels": "kernels, without arguments (CXX names the compiler)",
    "doctor": "doctor, without arguments",
    "export": "export FORMAT OUT DIR [key=value ...], or export list",
}
"""Commands that take no configuration of a run -> their arguments."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status. A mistake of the user prints one line on stderr instead of a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("help", "--help", "-h"):
        print(_help())
        return 0
    if arguments[0] in ("--version", "version"):
        print(__version__)
        return 0
    command, *rest = arguments
    commands: dict[str, Callable[[list[str]], int]] = {
        **{name: functools.partial(_run_command, name) for name in RUN_COMMANDS},
        "train": _train,
        "match-pair": _match_pair,
        "frames": _frames,
        "weights": _weights,
        "datasets": _datasets,
        "kernels": _kernels,
        "doctor": _doctor,
        "export": _export,
    }
    if command not in commands:
        print(f"error: there is no command {command!r}. {closest(command, commands)}", file=sys.stderr)
        return 2
    if command in USAGE and {"--help", "-h"} & {*rest}:
        print(f"usage: {USAGE[command]}")
        return 0
    try:
        return commands[command](rest)
    except KeyboardInterrupt:
        print("interrupted: all results so far are kept, and the same command continues from there", file=sys.stderr)
        return 130
    except (*MISTAKES, MemoryError) as error:
        if os.environ.get("SFM_LIGHTGLUE_TRACEBACK"):
            raise
        print(f"error: {message_of(error) or 'out of memory'}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _held_messages() -> Iterator[list[logging.LogRecord]]:
    """Keeps the messages of the package that are logged in the block, in a list. If the block raises, they are printed."""
    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("sfm_lightglue"), logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield records
    except BaseException:
        for record in records:
            print(record.getMessage(), file=sys.stderr)
        raise
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def _help() -> str:
    from sfm_lightglue.config_files import GROUPS, choices

    groups = "\n".join(f"  {group:15}{', '.join(choices(group))}" for group in GROUPS)
    stages = "\n".join(f"    {stage.name:13}{stage.about}" for stage in STAGES)
    return HELP.format(version=__version__, stages=stages, groups=groups)


def _run_command(command: str, overrides: list[str]) -> int:
    """`run`, a stage alone, or `evaluate`."""
    if {"--help", "-h"} & set(overrides):
        print(_help())
        return 0
    check_flags(overrides)
    overrides = with_photos_and_output(overrides)
    chosen = [override for override in overrides if override.lstrip("+").startswith(("dataset=", "dataset.images="))]
    if command != "evaluate" and not chosen and "--cfg" not in overrides:  # before Hydra makes a folder for the run
        raise ValueError(f"no photos were given: {command} PHOTOS OUT, or add +dataset=NAME (`datasets` lists them)")
    overrides = hydra_overrides(overrides)
    is_checked = all(override in SWEEP_FLAGS or not override.startswith("-") for override in overrides)
    with _held_messages() as held:
        if is_checked:
            _check(command, overrides)
    _inside_hydra(functools.partial(_run_configured, command, is_checked, held), overrides)
    return 0


def _check(command: str, overrides: list[str]) -> None:
    """Checks everything before Hydra makes the output folder. Raises: ValueError or FileNotFoundError with all mistakes."""
    from sfm_lightglue import pipeline
    from sfm_lightglue.config import compose_jobs

    mistakes: list[Exception] = []
    for config in compose_jobs(overrides):
        try:
            pipeline.Run.checked(config, command)
        except MISTAKES as error:
            mistakes.append(error)
    raise_together(mistakes)


def _inside_hydra(command: Callable[[DictConfig], None], overrides: list[str], config_name: str | None = None) -> None:
    """Calls `command` with the composed configuration. Hydra handles overrides, sweeps (-m), --cfg and the log folder."""
    import hydra

    from sfm_lightglue import config as configuration
    from sfm_lightglue.config_files import CONFIG_NAME, config_dir

    failures: list[Exception] = []

    def task(config: DictConfig) -> None:
        try:
            command(config)
        except Exception as error:  # Hydra would print its own message and stop; the other jobs of a sweep still run
            failures.append(error)

    configuration.register()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing; `explained_errors` explains the mistake
    sys.argv = [sys.argv[0], *overrides]
    folder = str(config_dir())
    with configuration.explained_errors():
        hydra.main(version_base="1.3", config_path=folder, config_name=config_name or CONFIG_NAME)(task)()
    if failures:
        worst = next((failure for failure in failures if not isinstance(failure, MISTAKES)), failures[0])
        for failure in failures:  # of a sweep
            if failure is not worst:
                print(f"error: {message_of(failure)}", file=sys.stderr)
        raise worst


def _train(overrides: list[str]) -> int:
    """Trains weights from a folder of photos."""
    if {"--help", "-h"} & set(overrides):
        print(_help())
        return 0
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    if given.get("data.images") in (None, "", "null") and "--cfg" not in overrides:  # before Hydra makes a folder for the run
        raise ValueError("no training photos were given: add data.images=DIR, any folder of photos")

    def command(config: DictConfig) -> None:
        from sfm_lightglue.config import separate_sweep_outputs
        from sfm_lightglue.train import train_from

        print(train_from(separate_sweep_outputs(config, sys.argv)))

    _inside_hydra(command, hydra_overrides(overrides), "train")
    return 0


def _run_configured(command: str, is_checked: bool, held: list[logging.LogRecord], config: DictConfig) -> None:
    from sfm_lightglue import pipeline
    from sfm_lightglue.config import separate_sweep_outputs

    while held:  # now the log file of the run is open
        record = held.pop(0)
        logging.getLogger(record.name).handle(record)
    config = separate_sweep_outputs(config, sys.argv)
    run = pipeline.Run.create(config) if is_checked else pipeline.Run.checked(config, command)
    if command == "run":
        print(pipeline.run_all(run))
        pipeline.raise_failure(run)
    elif command == "evaluate":
        print(pipeline.evaluate(run))
    else:
        pipeline.run_stage(run, command)
        if command == "reconstruct":
            pipeline.raise_failure(run)


def _match_pair(arguments: list[str]) -> int:
    """Matches two photos, prints a table or JSON, and draws the matches coloured by score."""
    as_json = "--json" in arguments
    paths, overrides = separate_paths([argument for argument in arguments if argument != "--json"])
    if len(paths) != 2 or any(override.startswith("-") for override in overrides):
        raise ValueError(f"usage: {USAGE['match-pair']}")
    from sfm_lightglue import match_pair

    print(match_pair.match_pair(expanded(paths[0]), expanded(paths[1]), overrides, as_json=as_json))
    return 0


def _frames(arguments: list[str]) -> int:
    """Writes photos from a video."""
    options = {key: value for key, equals, value in (argument.partition("=") for argument in arguments[2:]) if equals}
    if len(arguments) < 2 or len(options) != len(arguments) - 2 or not options.keys() <= {"every"}:
        raise ValueError(f"usage: {USAGE['frames']}")
    from sfm_lightglue.images import video

    try:
        every = float(options.get("every", video.SECONDS))
    except ValueError as error:
        raise ValueError(f"every={options['every']} is not a number of seconds") from error
    names = video.extract_frames(arguments[0], arguments[1], every)
    print(f"{len(names)} photos in {arguments[1]}")
    return 0


def _weights(arguments: list[str]) -> int:
    from sfm_lightglue.networks import weights

    if arguments[:1] == ["fetch"] and len(arguments) > 1:
        for name in arguments[1:]:
            print(f"{name}: {weights.find_weights(name)}")
        return 0
    _expect_list(arguments, "weights")
    for entry, path in weights.available_weights():
        size = f"{entry.size / 1e6:.1f} MB" if entry.size else "?"
        note = " (research only)" if entry.research_only else ""
        print(f"{entry.name:22} {size:>8}  {entry.licence}{note}\n{'':32}for {entry.for_}; {path or 'not here'}")
    return 0


def _datasets(arguments: list[str]) -> int:
    from sfm_lightglue import datasets

    if arguments[:1] == ["fetch"] and len(arguments) in (2, 3):
        print(datasets.fetch_dataset(*arguments[1:]))
        return 0
    _expect_list(arguments, "datasets")
    for entry in datasets.list_datasets():
        size = f"{entry.size / 1e6:.1f} MB" if entry.size else "embedded" if entry.is_present else "size unknown"
        note = "" if entry.is_verified else ", downloads are not verified"
        where = entry.folder if entry.is_present else "not here"
        print(f"{entry.name:16}{entry.description}\n{'':16}{size}, licence: {entry.licence}{note}; {where}")
    return 0


def _expect_list(arguments: list[str], command: str) -> None:
    if arguments not in ([], ["list"]):
        raise ValueError(f"usage: {USAGE[command]}; found {' '.join(arguments)!r}")


def _kernels(arguments: list[str]) -> int:
    if arguments:
        raise ValueError(f"usage: {USAGE['kernels']}; found {' '.join(arguments)!r}")
    from sfm_lightglue.engine.kernels import compile_kernels, load_kernels

    try:
        path = compile_kernels()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    print(f"{path}\n{'used from now on' if load_kernels() else 'not used: this CPU lacks the instructions'}")
    return 0


def _export(arguments: list[str]) -> int:
    from sfm_lightglue.exports import command

    return command.main(arguments)


def _doctor(arguments: list[str]) -> int:
    from sfm_lightglue.doctor import examine

    print(examine())
    return 0
