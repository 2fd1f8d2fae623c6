"""From command-line overrides to typed options: composing the YAML files, binding them, explaining mistakes.

Only this module, `run_options.py`, `run_context.py`, `train.py` and `commands/` use hydra and omegaconf. Values stand once, in
configs/*.yaml; the dataclasses beside each plug-in give them types and ranges.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sfm_lightglue.config_files import CONFIG_NAME, GROUPS, USER_CONFIGS, choices, choices_with, config_dir
from sfm_lightglue.datasets import dataset_folder
from sfm_lightglue.execution.shards import shard_suffix
from sfm_lightglue.overrides import hydra_overrides
from sfm_lightglue.pairs import PAIR_SOURCES
from sfm_lightglue.pairs.budget import SelectionOptions
from sfm_lightglue.pairs.union import UnionOptions
from sfm_lightglue.registry import closest, load_class
from sfm_lightglue.renames import explain_former

Options = TypeVar("Options")

KEYS_OF_PAIRS = tuple(field.name for field in dataclasses.fields(SelectionOptions))
"""Options of `pairs` in configs/pipeline.yaml. They apply to every pair source, which does not get them."""
ESTIMATED_INTRINSICS = ("auto", "exif", "single", "per_folder", "per_image")


def register() -> None:
    """Registers what the YAML files need: resolvers, and the user's own folder of configurations."""
    OmegaConf.register_new_resolver("dataset_folder", dataset_folder, replace=True)
    OmegaConf.register_new_resolver("if_known", lambda value: value, replace=True)
    OmegaConf.register_new_resolver(
        "unless_given", lambda intrinsics: str(intrinsics) in ESTIMATED_INTRINSICS, replace=True, use_cache=False
    )
    OmegaConf.register_new_resolver("if_auto", lambda model: str(model).lower() == "auto", replace=True, use_cache=False)
    OmegaConf.register_new_resolver("shard_suffix", shard_suffix, replace=True)
    Plugins.instance().register(_UserConfigs)


class _UserConfigs(SearchPathPlugin):
    """Adds the folder that SFM_LIGHTGLUE_CONFIGS names to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if folder := os.environ.get(USER_CONFIGS):
            search_path.append("user", f"file://{Path(folder).resolve()}")


@contextlib.contextmanager
def opened_hydra() -> Iterator[ConfigLoader]:
    """Hydra with our folder of configurations. Raises: ValueError that explains a mistake in them."""
    register()
    GlobalHydra.instance().clear()
    with explained_errors(), initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def compose_config(overrides: Sequence[str] = (), name: str = CONFIG_NAME, *, with_hydra: bool = False) -> DictConfig:
    """The configuration for these overrides, from the primary file `name`. Raises: ValueError that explains a mistake.

    With `with_hydra` it has the group `hydra`, which says where logs are written.
    """
    with opened_hydra():
        return compose(name, overrides=hydra_overrides(overrides), return_hydra_config=with_hydra)


def without_hydra(config: DictConfig) -> DictConfig:
    """The configuration without the group `hydra`."""
    reduced = copy.copy(config)
    with open_dict(reduced):
        reduced.pop("hydra", None)
    return reduced


def bind(options_class: type[Options], node: DictConfig, where: str) -> Options:
    """The values of a config group as its dataclass, whose fields may be dataclasses too.

    Args:
        options_class: The dataclass.
        node: The composed group.
        where: Its place in the configuration, such as `features`, for messages.

    Raises: ValueError that names an unknown, missing or mistyped key as the user writes it, such as `features.max_keypoints`.
    """
    if not isinstance(node, DictConfig):
        raise ValueError(f"{where}={node!r} is one value, expected a group of options: {where}.KEY=VALUE")
    known = {field.name for field in dataclasses.fields(options_class)}  # type: ignore[arg-type]
    for key in node:
        if key not in known:
            former = explain_former(f"{where}.{key!s}")
            hint = former or _hint_of_choice(f"{where}.{key!s}") or f" {closest(str(key), known)}"
            raise ValueError(f"unknown option '{where}.{key!s}'.{hint}")
    for key in sorted(known):
        if key not in node or OmegaConf.is_missing(node, key):
            raise ValueError(f"the option '{where}.{key}' must be given: {where}.{key}=...")
    types = typing.get_type_hints(options_class)
    groups = {key: bind(types[key], node[key], f"{where}.{key}") for key in sorted(known) if dataclasses.is_dataclass(types[key])}
    plain = dataclasses.make_dataclass("plain", [(key, types[key]) for key in sorted(known - groups.keys())])
    with explained_errors(where):
        given = typing.cast(dict[str, typing.Any], OmegaConf.to_container(node, resolve=True))
        values = OmegaConf.merge(OmegaConf.structured(plain), {key: given[key] for key in sorted(known - groups.keys())})
        return options_class(**groups, **vars(OmegaConf.to_object(values)))


def bind_pairs(node: DictConfig, where: str = "pairs") -> typing.Any:
    """The options of the pair source that a group describes, for `create_source`. Several sources give `UnionOptions`.

    Options that every source has, `KEYS_OF_PAIRS`, are left out.

    Args:
        node: The group `pairs`, or one source of a union.
        where: Its place in the configuration, for messages.

    Raises:
        ValueError: A key is wrong, as in `bind`, or no source has this name.
    """
    if isinstance(node, DictConfig) and where == "pairs":
        node = without_keys(node, KEYS_OF_PAIRS)
    if not isinstance(node, DictConfig) or "name" not in node:
        raise ValueError(f"unknown option '{where}': expected a pair source with a name, such as pairs=[sequential,retrieval]")
    name = str(node.name)
    if name == "union":
        sources = {key: bind_pairs(node[key], f"{where}.{key}") for key in map(str, node) if key != "name"}
        return UnionOptions(name, sources)
    return bind(options_class(load_class(name, PAIR_SOURCES, "pairs")), node, where)


def options_class(plugin: type) -> type:
    """The dataclass of a plug-in's options: the annotation of `options` in its `create`. Raises: ValueError if it has none."""
    found = typing.get_type_hints(plugin.create).get("options") if hasattr(plugin, "create") else None
    if not dataclasses.is_dataclass(found):
        raise ValueError(
            f"{plugin.__module__}:{plugin.__qualname__} is no plug-in: it needs a classmethod create(options, ...), and the "
            "annotation of `options` must be a dataclass"
        )
    return typing.cast(type, found)


def drop_unknown(node: DictConfig, options: Callable[[], type]) -> None:
    """Removes options with a value `${if_known:value}` that the chosen plug-in does not have.

    A preset sets these values for all choices of a group, although only some choices have the option. `options` returns the
    dataclass of the chosen plug-in. It is called only if there is a value of this form.
    """
    raw = typing.cast(dict[str, typing.Any], OmegaConf.to_container(node, resolve=False))
    preset = [key for key, value in raw.items() if str(value).startswith("${if_known:")]
    known = {field.name for field in dataclasses.fields(options())} if preset else set()
    with open_dict(node):
        for key in set(preset) - known:
            del node[key]


def without_keys(node: DictConfig, keys: Sequence[str]) -> DictConfig:
    """The group without some of its options. It stays at its place in the configuration, for references to other groups."""
    if not set(keys) & {str(key) for key in node}:
        return node
    reduced = copy.copy(node)
    with open_dict(reduced):
        for key in keys:
            reduced.pop(key, None)
    return reduced


def check_keys(config: DictConfig) -> None:
    """Raises: ValueError for unknown keys that `+key=value` added at the top level or to the dataset."""
    reference = compose_reference()
    for where, node, known in (("", config, reference), ("dataset.", config.dataset, reference.dataset)):
        for key in node:
            if key not in known and key != "hydra":
                raise ValueError(f"unknown option '{where}{key!s}'. {closest(str(key), map(str, known))}")


@functools.cache
def compose_reference() -> DictConfig:
    """The primary file's own keys, without Hydra's. Read once, and not to be changed."""
    primary = OmegaConf.load(config_dir() / f"{CONFIG_NAME}.yaml")
    return OmegaConf.create({**{group: {} for group in GROUPS}, "output": "", "strict": False, "dataset": primary.dataset})


def separate_sweep_outputs(config: DictConfig, arguments: Sequence[str]) -> DictConfig:
    """In a sweep (-m), the configuration with an output folder of its own for each job, named after what the sweep varies.

    `arguments` is the command line. An override that it contains unchanged is the same in all jobs.
    """
    hydra = HydraConfig.get()
    return _with_own_output(config, hydra.overrides.task, arguments) if hydra.mode == RunMode.MULTIRUN else config


def compose_jobs(arguments: Sequence[str], name: str = CONFIG_NAME) -> list[DictConfig]:
    """The configurations that a command line asks for: one, or one for each job of a sweep (-m).

    Args:
        arguments: Overrides in Hydra's grammar, and `-m`.
        name: The primary file.

    Raises: ValueError that explains a mistake.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if len(overrides) == len(arguments):
        return [compose_config(overrides, name)]
    jobs = split_jobs(overrides)
    return [_with_own_output(compose_config(job, name), job, arguments) for job in jobs]


def split_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep: `a=1,2 b=3` gives `a=1 b=3` and `a=2 b=3`. Raises: ValueError for a mistake."""
    with explained_errors():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _with_own_output(config: DictConfig, job: Sequence[str], arguments: Sequence[str]) -> DictConfig:
    """The configuration of a job of a sweep. Its output folder is named after the overrides that `arguments` does not contain."""
    references = {key for key, _, value in (each.partition("=") for each in arguments) if re.fullmatch(r"\$\{[^,]*\}", value)}
    varied = [each for each in job if each not in arguments and each.partition("=")[0] not in references]  # resolved in the jobs
    varied = [re.sub(r"['\"\\]", "", each.replace("/", "_")) for each in varied]
    if not varied:
        return config
    config = config.copy()
    config.output = f"{config.output}/{','.join(varied)}"
    return config


@contextlib.contextmanager
def explained_errors(where: str = "") -> Iterator[None]:
    """Turns Hydra's and OmegaConf's errors into a ValueError that names the closest valid key or choice."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_explain(error, where)) from error


def _explain(error: Exception, where: str) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={name} does not exist.{explain_former(f'{group}={name}')} {closest(name, choices(group))}"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and isinstance(cause.parent_node, DictConfig):
        prefix = cause.parent_node._get_full_key(None)
        key = f"{prefix}.{cause.key}" if prefix else str(cause.key)
        parts = [str(part) for part, value in cause.parent_node.items() if isinstance(value, DictConfig)]
        if hint := explain_former(key) or _hint_of_parts(key, parts) or _hint_of_choice(key):
            return f"unknown option '{key}'.{hint}"
        return f"unknown option '{key}'. {closest(str(cause.key), map(str, cause.parent_node))}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: expected key=value, or key=\"'value'\" if the value has special characters"
    message = str(error).splitlines()[0]
    if match := re.match(r"Could not override '([^'@]+)'", message):  # a group that does not exist
        return f"unknown option '{match[1]}'. {closest(match[1], [*GROUPS, 'output'])}"
    full_key = getattr(error, "full_key", None)
    return f"option '{where + '.' if where else ''}{full_key}': {message}" if full_key else message


def _hint_of_parts(key: str, parts: Sequence[str]) -> str:
    """Where the option belongs if kinds or sources of a list have it, such as `features.max_keypoints`; else empty."""
    group, _, option = key.partition(".")
    having = [part for part in parts if group in GROUPS and part in choices_with(group, option)] if option.isidentifier() else []
    keys = [f"{group}.{part}.{option}" for part in having]
    return f" Several {group} are listed: write {' or '.join(keys)}" if keys else ""


def _hint_of_choice(key: str) -> str:
    """A sentence if an option, such as `pairs.path`, belongs to other choices of its group than the chosen one; else empty."""
    group, _, option = key.partition(".")
    others = [f"{group}={name}" for name in choices_with(group, option)] if group in GROUPS and option.isidentifier() else []
    if not others:
        return ""
    return f" It is an option of {' and '.join(others)}: give {'one of them' if len(others) > 1 else others[0]} too"
