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
LISTED_GROUPS = ("features", "matches", "pairs")
"""Config groups of which several choices can be listed."""
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
MATCHERS = {"sift": ("matches=nearest_neighbor", "matches.max_ratio=0.8")}
"""Features whose default matcher is not LightGlue. SIFT has 8192 keypoints, with which LightGlue takes 16 times as long as with
2048, and the weights of its LightGlue are not in this package."""
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
    - `features=[a,b]` becomes `several` with one entry per kind, and a matcher for each kind, see `_split_kinds`.
    - Features in `MATCHERS` get their own default matcher.
    - Values of `PATH_OPTION` may have any characters. Interpolations, values quoted for Hydra and sweeps (-m) keep their meaning.
    - Several devices with commas are quoted, because Hydra would read them as a sweep.
    - Of several choices for a group that may be a list, the last one counts, as Hydra has it for single choices.
    """
    is_sweep = bool({*SWEEP_FLAGS} & {*overrides})
    prepared = _split_kinds(_last_choices(current_overrides(overrides)))
    prepared = [part for override in prepared for part in _split_sources(override)]
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


def output_folder(argument: str) -> str:
    """The output folder that a command is given as `OUT` or, as the command run takes it, `output=OUT`."""
    return expanded(argument if _exists(argument) else argument.removeprefix("output="))


def _exists(path: str) -> bool:
    return os.path.exists(expanded(path))  # noqa: PTH110


def literal(path: object) -> str:
    """A path in Hydra's grammar in which no character has a meaning; `~` at its start is the home folder."""
    return quoted(re.sub(r"(\\*)\$\{", r"\1\1\\${", expanded(str(path))))


def _last_choices(overrides: Sequence[str]) -> list[str]:
    """The overrides without choices of features, matches or pairs that a later one replaces."""
    keys = [override.partition("=")[0].lstrip("+") for override in overrides]
    last = {key: i for i, key in enumerate(keys)}
    return [each for i, each in enumerate(overrides) if keys[i] not in LISTED_GROUPS or last[keys[i]] == i]


def _split_sources(override: str) -> list[str]:
    """`pairs=[a,b]` as Hydra overrides that place each source at `pairs.NAME`; any other override unchanged."""
    if (names := _listed(override, "pairs", "pair sources, such as pairs=[sequential,retrieval]")) is None:
        return [override]
    return ["pairs=union", *(f"+pairs@pairs.{name}={name}" for name in names)]


def _split_kinds(overrides: Sequence[str]) -> list[str]:
    """The overrides with a matcher for the features.

    `features=[a,b]` becomes Hydra overrides that place each kind at `features.NAME`, and its matcher at `matches.NAME`:
    `matches=[x,y]` lists them in the same order, `matches=x` is for all kinds, and without it each kind has its own default.

    Raises: ValueError for a list that cannot be read, or for lists of different lengths.
    """
    place = {override.partition("=")[0].lstrip("+"): i for i, override in enumerate(overrides)}
    if "features" not in place:
        return list(overrides)
    chosen = overrides[place["features"]]
    kinds = _listed(chosen, "features", "kinds of features, such as features=[sift,superpoint]")
    given = overrides[place["matches"]] if "matches" in place else None
    if kinds is None:
        names = chosen.partition("=")[2].split(",")
        if given is None and len(names) > 1 and {*names} & {*MATCHERS}:
            raise ValueError(
                f"{chosen} sweeps over features with different default matchers: give matches=..., or run "
                f"{', '.join(f'features={name}' for name in names if name in MATCHERS)} alone"
            )
        own = MATCHERS.get(names[0]) if given is None else None
        return [*overrides[: place["features"] + 1], *(own or ()), *overrides[place["features"] + 1 :]]
    if len(kinds) < 2:
        raise ValueError(f"{chosen} lists one kind of features: write features={kinds[0]}, or list another one")
    expected = f"matchers, one for each of {chosen}, such as matches=[nearest_neighbor,lightglue]"
    matchers = None if given is None else _listed(given, "matches", expected, may_repeat=True)
    if matchers is not None and len(matchers) != len(kinds):
        raise ValueError(f"{given} lists {len(matchers)} matchers, expected {len(kinds)}: one for each of {chosen}")
    split = ["features=several", "matches=several"]
    for i, kind in enumerate(kinds):
        matcher = matchers[i] if matchers else given.partition("=")[2] if given else None
        choice, *options = [f"matches={matcher}"] if matcher else MATCHERS.get(kind, ("matches=lightglue",))
        choice = choice.partition("=")[2]
        options = [f"trained_for=${{features.{kind}.name}}"] if choice == "lightglue" else [o.partition(".")[2] for o in options]
        split += [f"+features@features.{kind}={kind}", f"+matches@matches.{kind}={choice}"]
        split += [f"matches.{kind}.{option}" for option in options]
    others = [override for i, override in enumerate(overrides) if i not in (place["features"], place.get("matches"))]
    return [*split, *others]


def _listed(override: str, group: str, expected: str, *, may_repeat: bool = False) -> list[str] | None:
    """The names in `group=[a,b]`; None for any other override. Raises: ValueError that says what is `expected`."""
    key, _, value = override.partition("=")
    if key.lstrip("+") != group or "[" not in value:
        return None
    listed = re.fullmatch(r"\[([^\[\]]+)\]", value)
    names = [name.strip().strip("'\"") for name in listed[1].split(",")] if listed else [""]
    if not all(re.fullmatch(r"[\w./-]+", name) for name in names) or (len(set(names)) < len(names) and not may_repeat):
        raise ValueError(
            f"cannot read {override!r}: expected a list of different {expected}; a sweep over several lists needs a YAML file "
            "for each"
        )
    return names


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
