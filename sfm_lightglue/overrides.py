"""From what people type to overrides in Hydra's grammar: `PHOTOS OUT`, short forms, and names of files with any characters.

Loads nothing heavy: the command line reads its arguments with it.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Mapping, Sequence

from sfm_lightglue.config_files import GROUPS, choices, choices_with
from sfm_lightglue.renames import current_overrides

PATH_OPTION = re.compile(
    r"output|dataset\.(?!name$)\w+|data\.images|database\.intrinsics|hydra\.(run|sweep)\.dir"
    r"|(features|matches|pairs|training)\.([\w.]+\.)?"
    r"(path|weights|global_descriptors|codebook|start|start_superpoint|to_teacher)"
)
"""Options whose value is the path of a file or folder, or may be one. Their values may have any characters."""
ROOTS = (*GROUPS, "dataset", "output", "strict", "experiment", "data", "training", "hydra")
"""First words of the options. An argument `WORD=...` with another word can be a path."""
FLAGS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    "--experimental-rerun",
)
"""Hydra's flags that take the next argument."""
SWEEP_FLAGS = ("-m", "--multirun")
OTHER_FLAGS = ("--resolve", "--run", "-r", "--shell-completion", "-sc", "--info", "-i", "--hydra-help", "--version")
"""Hydra's other flags."""
USUAL_FLAGS = {
    **dict.fromkeys(("--resume", "--continue"), "the same command continues an interrupted run"),
    **dict.fromkeys(
        ("--force", "--overwrite", "-f"), "execution.if_settings_changed=recompute replaces results of other settings"
    ),
    **dict.fromkeys(("--output", "--out", "-o"), "the output folder follows the photos, or output=OUT"),
    **dict.fromkeys(("--config", "--dry-run", "-n"), "--cfg job prints the configuration and stops"),
    **dict.fromkeys(("--gpu", "--cuda"), "execution.device=cuda"),
    **dict.fromkeys(("--threads", "--workers", "--jobs", "-j"), "execution.num_workers=NUMBER"),
}
"""Flags of many programs -> what to write here."""
OWN_FLAGS = ("-q", "-v", "--json", "--cfg job", "-m", "--help")
"""What messages name."""
CAMERA = re.compile(r"([A-Za-z_]+,)?[-\d.,eE+]+")
"""A camera with commas, which is one value and no sweep."""


def separate_paths(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are paths, and all others (overrides and flags), each in their order.

    An argument with `=` is a path if it exists, or if its part before `=` has a slash or a space, and it does not begin like an
    option.
    """
    paths: list[str] = []
    others: list[str] = []
    previous = ""
    for argument in arguments:
        (paths if previous not in FLAGS_WITH_VALUE and _is_path(argument) else others).append(argument)
        previous = argument
    return paths, others


def _is_path(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    if argument.startswith("-"):
        return False
    if not equals:
        return not re.fullmatch(r"~[\w.@]+", argument) or _exists(argument)  # ~KEY removes an option in Hydra's grammar
    root = re.split(r"[./@\\\s]", key.lstrip("+~"))[0]
    return root not in ROOTS and (_exists(argument) or bool(re.search(r"[/\\\s]", key)))


def with_photos_and_output(arguments: Sequence[str]) -> list[str]:
    """The arguments of a run in which `PHOTOS OUT` is replaced by `+dataset=folder dataset.images=PHOTOS output=OUT`.

    Raises: ValueError if there are more than two paths, if photos are given instead of their folder, if the photos or the output
    are given twice, or if the output is missing.
    """
    paths, others = separate_paths(arguments)
    if not paths:
        return others
    given = {key: other for other in others for key in [other.partition("=")[0].lstrip("+")]}
    if len(paths) > 1 and all(_is_file(path) for path in paths[:2]):
        folder = os.path.dirname(paths[0]) or "."  # noqa: PTH120
        raise ValueError(
            f"found {len(paths)} paths, and the first are files: give the folder that holds the photos, not each photo, such as "
            f"{folder} {'OUT' if _is_file(paths[-1]) else paths[-1]}"
        )
    if "dataset.images" in given or len(paths) > 2:
        raise ValueError(f"cannot read {paths[-1]!r}: expected key=value, or PHOTOS OUT in front, two paths that are given once")
    if "dataset" in given and given["dataset"].lstrip("+") != "dataset=folder":
        raise ValueError(f"the photos are given twice: leave out {paths[0]!r} or {given['dataset']!r}")
    if len(paths) == 2 and "output" in given:
        raise ValueError(f"the output folder is given twice: leave out {paths[1]!r} or {given['output']!r}")
    if len(paths) == 1 and not {"output", "--cfg", "-c"} & {*given}:
        raise ValueError(f"no output folder was given: write the photos and a folder for the results, such as {paths[0]} OUT")
    chosen = [] if "dataset" in given else ["+dataset=folder"]
    keys = ("dataset.images", "output")
    return [*chosen, *(f"{key}={literal(path)}" for key, path in zip(keys, paths, strict=False)), *others]


def check_flags(arguments: Sequence[str]) -> None:
    """Raises: ValueError for a flag that does not exist, such as `--quality`."""
    known = (*FLAGS_WITH_VALUE, *SWEEP_FLAGS, *OTHER_FLAGS)
    for argument in arguments:
        flag = argument.partition("=")[0]
        if not flag.startswith("-") or flag in known:
            continue
        hint = USUAL_FLAGS.get(flag) or f"options are written KEY=VALUE without dashes, such as {_option_like(flag)}"
        raise ValueError(f"there is no flag {flag}: {hint}; flags of this program are {', '.join(OWN_FLAGS)}")


def _option_like(flag: str) -> str:
    """The option that a flag such as `--max-keypoints` may mean, as an example."""
    name = flag.lstrip("-").replace("-", "_")
    if name in choices("experiment"):
        return f"experiment={name}"
    if name in GROUPS:
        return f"{name}={choices(name)[0]}"
    group = next((group for group in GROUPS if name.isidentifier() and choices_with(group, name)), None)
    return f"{group}.{name}=VALUE" if group else "features.max_keypoints=2048"


def _is_file(path: str) -> bool:
    return os.path.isfile(expanded(path))  # noqa: PTH113


def hydra_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides in Hydra's grammar, from the shorter forms that the command line allows.

    - `dataset=X` and `experiment=X` get a plus, because these groups have no default.
    - `pairs=[a,b]` becomes the source `union` with one entry per source, so that `pairs.a.KEY=VALUE` sets an option of `a`.
    - Values of `PATH_OPTION` may have any characters. Interpolations, values quoted for Hydra and sweeps (-m) keep their meaning.
    - Several devices with commas are quoted, because Hydra would read them as a sweep.
    """
    is_sweep = bool({*SWEEP_FLAGS} & {*overrides})
    prepared = [part for override in current_overrides(overrides) for part in _split_sources(override)]
    prepared = [f"+{override}" if override.startswith(("dataset=", "experiment=")) else override for override in prepared]
    prepared = [_quoted_path(override, is_sweep) for override in prepared]
    return [re.sub(r"^(execution\.device=)([a-z\d:]+,[a-z\d:,]+)$", r"\1'\2'", override) for override in prepared]


def _quoted_path(override: str, is_sweep: bool) -> str:
    """The override with its value quoted, if it is the value of a `PATH_OPTION`."""
    key, equals, value = override.partition("=")
    if not equals or not PATH_OPTION.fullmatch(key.lstrip("+")):
        return override
    return f"{key}={_quoted_value(value, is_sweep)}"


def _quoted_value(value: str, is_sweep: bool) -> str:
    if _exists(value):
        return literal(value)
    if quotes := re.fullmatch(r"'([^'\\]*)'|\"([^\"\\]*)\"", value):
        value = quotes[1] or quotes[2] or ""
        return literal(value) if _exists(value) else quoted(expanded(value))
    if value in ("null", "???") or re.match(r"['\"]", value):
        return value
    if is_sweep and re.match(r"(choice|range|interval|glob|sort|shuffle|tag)\(", value):
        return value
    if is_sweep and "," in value and not CAMERA.fullmatch(value):
        return ",".join(_quoted_value(part.strip(), False) for part in value.split(","))
    return quoted(expanded(value))


def expanded(path: str) -> str:
    """The path with `~` at its start replaced by the home folder; unchanged if a file has this very name."""
    return path if os.path.exists(path) else os.path.expanduser(path)  # noqa: PTH110, PTH111  these two never raise


def _exists(path: str) -> bool:
    return os.path.exists(expanded(path))  # noqa: PTH110


def literal(path: object) -> str:
    """A path in Hydra's grammar in which no character has a meaning; `~` at its start is the home folder."""
    return quoted(re.sub(r"(\\*)\$\{", r"\1\1\\${", expanded(str(path))))


def _split_sources(override: str) -> list[str]:
    """`pairs=[a,b]` as Hydra overrides that place each source at `pairs.NAME`; any other override unchanged."""
    group, _, value = override.partition("=")
    if group.lstrip("+") != "pairs" or "[" not in value:
        return [override]
    listed = re.fullmatch(r"\[([^\[\]]+)\]", value)
    names = [name.strip().strip("'\"") for name in listed[1].split(",")] if listed else [""]
    if not all(re.fullmatch(r"[\w./-]+", name) for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"cannot read {override!r}: expected a list of different pair sources, such as pairs=[sequential,retrieval]; "
            "a sweep over several lists needs a YAML file for each"
        )
    return ["pairs=union", *(f"+pairs@pairs.{name}={name}" for name in names)]


def overrides_of(group: str, options: Mapping[str, typing.Any]) -> list[str]:
    """Hydra overrides that set options of a config group.

    Args:
        group: Name of the group, such as `features`.
        options: Values by key; the values of nested options are mappings.
    """
    overrides = []
    for key, value in options.items():
        where = f"{group}.{key}"
        overrides += overrides_of(where, value) if isinstance(value, Mapping) else [f"{where}={quoted(value)}"]
    return overrides


def quoted(value: object) -> str:
    """A value in Hydra's grammar. In quoted text, Hydra reads a backslash as an escape only before a quote."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    text = re.sub(r"(\\*)'", r"\1\1\\'", str(value))
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"
