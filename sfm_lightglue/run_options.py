"""One frozen record of all options of a run, bound to types and checked once, from a Hydra configuration.

Nothing here loads weights, decodes photos or writes files. The given configuration is not changed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sfm_lightglue.config import (
    KEYS_OF_PAIRS,
    bind,
    bind_pairs,
    check_keys,
    compose_config,
    drop_unknown,
    explained_errors,
    options_class,
    without_keys,
)
from sfm_lightglue.config_files import GROUPS, choices, config_dir
from sfm_lightglue.database import DatabaseOptions
from sfm_lightglue.execution import EXECUTORS
from sfm_lightglue.features import EXTRACTORS
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.matches import MATCHERS
from sfm_lightglue.mistakes import raise_together
from sfm_lightglue.networks.weights import HYPERCOLUMNS, read_metadata
from sfm_lightglue.pairs import PAIR_SOURCES
from sfm_lightglue.pairs.budget import SelectionOptions
from sfm_lightglue.reconstruction import ReconstructionOptions
from sfm_lightglue.refinement import RefinementOptions
from sfm_lightglue.registry import closest, load_class

PLUGINS = {"features": EXTRACTORS, "pairs": PAIR_SOURCES, "matches": MATCHERS, "execution": EXECUTORS}
"""Config group -> table of its plug-ins' names and classes."""
GROUPS_OF_RUN = {
    "geometries": VerificationOptions,
    "refinement": RefinementOptions,
    "database": DatabaseOptions,
    "reconstruction": ReconstructionOptions,
}
"""Config group -> dataclass of its options, for groups without plug-ins."""
DEFAULTS = {
    "geometries": "ransac",
    "refinement": "patches",
    "database": "colmap",
    "reconstruction": "incremental",
    "execution": "local",
}
"""Config group -> the file that stands in for options with a mistake."""
PLUGIN_GROUPS = (*PLUGINS, "refinement", "reconstruction")
"""Config groups of which a run chooses one file or another."""
KEYS_OF_RUN = {"features": ("orientation",), "pairs": KEYS_OF_PAIRS}
"""Config group -> its options in configs/pipeline.yaml. They apply to every plug-in of the group, which does not get them."""
ORIENTATIONS = ("exif", "auto", "stored")


@dataclass(frozen=True)
class DatasetOptions:
    """The photos and what is known about them; the keys are explained in configs/pipeline.yaml."""

    name: str | None
    images: str | None
    list: str | None
    poses: str | None
    pairs: str | None
    homographies: str | None
    masks: str | None
    positions: str | None


@dataclass(frozen=True)
class PluginChoice:
    """A plug-in class and the options to create it with. It can be pickled and opened in another process."""

    plugin: Any
    options: Any
    problem: str = ""
    """Why the plug-in cannot be used; empty if it can. Only stages that use the plug-in report it."""

    def check(self) -> None:
        """Raises: ValueError with the `problem`, if there is one."""
        if self.problem:
            raise ValueError(self.problem)

    def create(self, *arguments: Any) -> Any:
        """The plug-in: `plugin.create(options, *arguments)`. Raises: ValueError with the `problem`, if there is one."""
        self.check()
        return self.plugin.create(self.options, *arguments)


@dataclass(frozen=True)
class RunOptions:
    """All options of a run, one field per config group."""

    dataset: DatasetOptions
    output: Path
    strict: bool
    """A run that registers fewer than half of the photos has failed, see `Summary.failure`."""
    features: PluginChoice
    orientation: str
    """`features.orientation`: `exif`, `auto` or `stored`."""
    pairs: PluginChoice
    selection: SelectionOptions
    """`pairs.rounds` and the budgets of pairs."""
    matches: PluginChoice
    geometries: VerificationOptions
    refinement: RefinementOptions
    database: DatabaseOptions
    reconstruction: ReconstructionOptions
    execution: PluginChoice
    configuration: Mapping[str, Any]
    """All options as plain values, for the record in summary.json."""


def resolve(config: DictConfig) -> RunOptions:
    """The options of the composed configuration `config`.

    A mistake in the options of an extractor, a pair source or a matcher is kept in `PluginChoice.problem`, because a stage that
    runs alone may not need it.

    Raises: ValueError for any other unknown key, missing value or value of the wrong type, and for options that contradict each
    other. Several mistakes are raised as one error.
    """
    options, mistakes = resolve_all(config)
    raise_together(mistakes)
    return options


def resolve_recorded(configuration: Mapping[str, Any]) -> RunOptions:
    """The options of a run whose `RunOptions.configuration` was stored. Raises: as `resolve`."""
    return resolve(OmegaConf.create(dict(configuration)))


def resolve_all(config: DictConfig) -> tuple[RunOptions, list[ValueError]]:
    """The options as `resolve` gives them, and all mistakes in them. A group with a mistake has the values of its default file.

    With mistakes, use the options only to look for more mistakes.
    """
    mistakes: list[ValueError] = []

    def attempt(function: Callable[..., Any], *arguments: Any, otherwise: Callable[[], Any] = lambda: None) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            mistakes.append(error)
            return otherwise()

    attempt(check_keys, config)
    config = copy.deepcopy(config)
    for group in ("features", "matches"):
        attempt(drop_unknown, config[group], functools.partial(_options_class, config[group], group))
    problem = _problem_with_superpoint(config)
    choose_lightglue(config)
    with explained_errors("dataset"):
        known = {field.name: config.dataset.get(field.name) for field in dataclasses.fields(DatasetOptions)}
    dataset = attempt(bind, DatasetOptions, OmegaConf.create(known), "dataset", otherwise=lambda: DatasetOptions(**known))
    attempt(_check_contradictions, dataset, config)
    features = _try_to_choose(config.features, "features")
    if features.problem and OmegaConf.is_interpolation(config.matches, "trained_for"):
        config.matches.trained_for = "superpoint"  # so that the mistake in the features is reported only once
    bound = {
        group: attempt(bind, kind, config[group], group, otherwise=functools.partial(_bound_defaults, kind, group))
        for group, kind in GROUPS_OF_RUN.items()
    }
    options = RunOptions(
        dataset=dataset,
        output=Path(str(config.output)),
        strict=attempt(_strict, config.strict, otherwise=bool),
        features=features,
        orientation=attempt(_orientation, config.features, otherwise=lambda: "stored"),
        pairs=_try_to_choose(config.pairs, "pairs"),
        selection=attempt(selection_options, config.pairs, otherwise=lambda: SelectionOptions(1, 1, None, None)),
        matches=_try_to_choose(config.matches, "matches", problem),
        execution=attempt(
            choose_plugin, config.execution, "execution", otherwise=lambda: choose_plugin(_defaults("execution"), "execution")
        ),
        configuration=OmegaConf.to_container(config, resolve=True),  # type: ignore[arg-type]
        **bound,
    )
    return options, mistakes


def about_shards(options: RunOptions, groups: Sequence[str]) -> dict[str, Any]:
    """What the shards of a stage must have in common, and everything that `merge` needs to do the stage again.

    Args:
        options: The options of one shard.
        groups: The config groups that the stage reads.
    """
    configuration = dict(options.configuration)
    common = {group: configuration[group] for group in groups if group != "execution"}
    return {"options": common, "run": {"folder": str(Path.cwd()), "configuration": configuration}}


def changed_options(configuration: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The options of a run that differ from the defaults: `features.max_keypoints` -> (value, default), sorted by group.

    Options of a chosen plug-in are compared with its own file. If the choice itself is not the default, the group alone names
    it. A plug-in of the user without a file has defaults of None.

    Args:
        configuration: `RunOptions.configuration`, or the same from summary.json.
    """
    usual = _plain_configuration([])
    chosen = {group: _choice(configuration[group]) for group in PLUGIN_GROUPS if isinstance(configuration.get(group), Mapping)}
    known = {group: choice for group, choice in chosen.items() if {*choice.strip("[]").split(",")} <= {*choices(group)}}
    default = _plain_configuration([f"{group}={choice}" for group, choice in known.items()])
    changed: dict[str, tuple[Any, Any]] = {}
    for group, choice in chosen.items():
        if choice != (before := _choice(usual[group])):
            changed[group] = choice, before
        if group not in known:
            default[group] = {"name": choice}
    before_all = _flat(default)
    for key, value in _flat(configuration).items():
        if not key.endswith(".name") and key not in ("output", "dataset.images") and value != before_all.get(key):
            changed[key] = value, before_all.get(key)
    order = [*GROUPS, "strict"]
    return dict(
        sorted(changed.items(), key=lambda item: order.index(group) if (group := item[0].partition(".")[0]) in order else -1)
    )


def _plain_configuration(overrides: list[str]) -> dict[str, Any]:
    """All options for these overrides as plain values, as a run without mistakes records them."""
    return dict(resolve_all(compose_config(overrides))[0].configuration)


def _choice(node: Mapping[str, Any]) -> str:
    """The choice of a group as on the command line: its name, or `[a,b]` for several pair sources."""
    return (
        f"[{','.join(key for key in node if isinstance(node[key], Mapping))}]"
        if node.get("name") == "union"
        else str(node.get("name"))
    )


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested groups by `group.key`."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _bound_defaults(options: type, group: str) -> Any:
    return bind(options, _defaults(group), group)


def _defaults(group: str) -> DictConfig:
    """A group's default file, for options that cannot be bound."""
    config = OmegaConf.load(config_dir() / group / f"{DEFAULTS[group]}.yaml")
    if group == "reconstruction":
        config.refine_intrinsics = config.find_camera_model = True
    return typing.cast(DictConfig, config)


def _strict(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"strict={value} is neither true nor false")
    return value


def _check_contradictions(dataset: DatasetOptions, config: DictConfig) -> None:
    """Raises: ValueError for options that contradict each other."""
    if dataset.masks and config.features.name == config.matches.name == "imported":
        raise ValueError(
            "dataset.masks drops keypoints, but the file of matches=imported refers to all of them: leave the masks out, or "
            "choose another matcher"
        )


def choose_plugin(node: DictConfig, group: str) -> PluginChoice:
    """The plug-in that a config group describes. Raises: ValueError for an unknown name or option."""
    plugin = load_class(str(node.name), PLUGINS[group], group)
    node = without_keys(node, KEYS_OF_RUN.get(group, ()))
    return PluginChoice(plugin, bind_pairs(node) if group == "pairs" else bind(options_class(plugin), node, group))


def selection_options(pairs: DictConfig) -> SelectionOptions:
    """The options of `pairs` that every source has. Raises: ValueError for values of a wrong type or range."""
    return bind(SelectionOptions, OmegaConf.create({key: pairs[key] for key in KEYS_OF_PAIRS}), "pairs")


def _try_to_choose(node: DictConfig, group: str, problem: str = "") -> PluginChoice:
    """The plug-in that a config group describes, or the reason why there is none."""
    try:
        return dataclasses.replace(choose_plugin(node, group), problem=problem)
    except ValueError as error:
        return PluginChoice(None, None, str(error))


def choose_lightglue(config: DictConfig) -> None:
    """Sets `matches.trained_for` to `superpoint-open` if the features have the open SuperPoint's descriptors."""
    features, matches = config.features, config.matches
    if matches.get("trained_for") == "superpoint" and matches.get("weights") != "superpoint-lightglue":
        weights = str(features.get("weights"))
        if weights == "superpoint-open" or read_metadata(Path(weights)).get("descriptors") == HYPERCOLUMNS:
            matches.trained_for = "superpoint-open"


def _orientation(features: DictConfig) -> str:
    """The option `features.orientation`. Raises: ValueError if there is no such choice."""
    orientation = str(features.orientation)
    if orientation not in ORIENTATIONS:
        raise ValueError(f"features.orientation={orientation} does not exist. {closest(orientation, ORIENTATIONS)}")
    return orientation


def _problem_with_superpoint(config: DictConfig) -> str:
    """Why the published LightGlue does not fit a SuperPoint that was trained from scratch; empty if it fits or was chosen."""
    features, matches = config.features, config.matches
    if matches.get("trained_for") != "superpoint" or matches.get("weights"):
        return ""
    metadata = read_metadata(Path(str(features.get("weights"))))
    fits = metadata.get("network") != "SuperPoint" or metadata.get("descriptors") == HYPERCOLUMNS
    if fits or not OmegaConf.is_interpolation(matches, "trained_for"):
        return ""
    return (
        f"no published LightGlue fits the SuperPoint that was trained into features.weights={features.weights}: give "
        "matches.weights=FILE (training=lightglue makes it), or matches=nearest_neighbor"
    )


def _options_class(node: DictConfig, group: str) -> type:
    return options_class(load_class(str(node.name), PLUGINS[group], group))
