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
    drop_unknown,
    explained_errors,
    options_class,
    without_keys,
)
from sfm_lightglue.config_files import config_dir
from sfm_lightglue.continued_choices import planned
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
KEYS_OF_RUN = {"features": ("orientation",), "pairs": KEYS_OF_PAIRS, "matches": ("escalate",)}
"""Config group -> its options in configs/pipeline.yaml. They apply to every plug-in of the group, which does not get them."""
SEVERAL = "several"
"""Name of the groups `features` and `matches` if there are several kinds of features."""
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

    def plan(self, *arguments: Any) -> Any:
        """As `create`, but the network may be built later, and once for checks and stages: see `continued_choices.planned`."""
        self.check()
        if not hasattr(self.plugin, "planned"):
            return self.create(*arguments)
        plans = self.__dict__.setdefault("_plans", {})
        if arguments not in plans:
            plans[arguments] = planned(self.plugin, self.options, *arguments)
        return plans[arguments]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_plans"}


@dataclass(frozen=True)
class Kind:
    """One of several kinds of features, and how it is matched."""

    name: str
    """Key under which the groups `features` and `matches` hold it."""
    features: PluginChoice
    matches: PluginChoice


@dataclass(frozen=True)
class RunOptions:
    """All options of a run, one field per config group."""

    dataset: DatasetOptions
    output: Path
    strict: bool
    """A run that registers fewer than half of the photos has failed, see `Summary.failure`."""
    features: PluginChoice
    """Of several kinds, the first."""
    orientation: str
    """`features.orientation`: `exif`, `auto` or `stored`."""
    pairs: PluginChoice
    selection: SelectionOptions
    """`pairs.rounds` and the budgets of pairs."""
    matches: PluginChoice
    """Of several kinds, that of the first."""
    geometries: VerificationOptions
    refinement: RefinementOptions
    database: DatabaseOptions
    reconstruction: ReconstructionOptions
    execution: PluginChoice
    configuration: Mapping[str, Any]
    """All options as plain values, for the record in summary.json."""
    kinds: tuple[Kind, ...] = ()
    """The kinds of `features=[a,b]` in their order; empty if there is only one."""
    escalate: bool = False
    """`matches.escalate`."""

    def of_kind(self, kind: Kind) -> RunOptions:
        """The options of a run with one of the kinds alone."""
        return dataclasses.replace(self, features=kind.features, matches=kind.matches, kinds=())


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
        attempt(_drop_preset, config[group], group)
    with explained_errors("dataset"):
        known = {field.name: config.dataset.get(field.name) for field in dataclasses.fields(DatasetOptions)}
    dataset = attempt(bind, DatasetOptions, OmegaConf.create(known), "dataset", otherwise=lambda: DatasetOptions(**known))
    attempt(_check_contradictions, dataset, config)
    kinds = attempt(_choose_kinds, config, otherwise=lambda: (_unknown_kind(str(mistakes[-1])),))
    escalate = attempt(_escalate, config, otherwise=bool)
    bound = {
        group: attempt(bind, kind, config[group], group, otherwise=functools.partial(_bound_defaults, kind, group))
        for group, kind in GROUPS_OF_RUN.items()
    }
    options = RunOptions(
        dataset=dataset,
        output=Path(str(config.output)),
        strict=attempt(_strict, config.strict, otherwise=bool),
        features=kinds[0].features,
        orientation=attempt(_orientation, config.features, otherwise=lambda: "stored"),
        pairs=_try_to_choose(config.pairs, "pairs"),
        selection=attempt(selection_options, config.pairs, otherwise=lambda: SelectionOptions(1, 1, None, None)),
        matches=kinds[0].matches,
        execution=attempt(
            choose_plugin, config.execution, "execution", otherwise=lambda: choose_plugin(_defaults("execution"), "execution")
        ),
        configuration=OmegaConf.to_container(config, resolve=True),  # type: ignore[arg-type]
        kinds=kinds if len(kinds) > 1 else (),
        escalate=escalate,
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


def choose_plugin(node: DictConfig, group: str, where: str = "") -> PluginChoice:
    """The plug-in that a config group describes, or the node `where` of one. Raises: ValueError for a wrong name or option."""
    plugin = load_class(str(node.name), PLUGINS[group], group)
    node = without_keys(node, KEYS_OF_RUN.get(group, ()))
    return PluginChoice(plugin, bind_pairs(node) if group == "pairs" else bind(options_class(plugin), node, where or group))


def selection_options(pairs: DictConfig) -> SelectionOptions:
    """The options of `pairs` that every source has. Raises: ValueError for values of a wrong type or range."""
    return bind(SelectionOptions, OmegaConf.create({key: pairs[key] for key in KEYS_OF_PAIRS}), "pairs")


def _try_to_choose(node: DictConfig, group: str, problem: str = "", where: str = "") -> PluginChoice:
    """The plug-in that a config group describes, or the reason why there is none."""
    try:
        return dataclasses.replace(choose_plugin(node, group, where), problem=problem)
    except ValueError as error:
        return PluginChoice(None, None, str(error))


def _choose_both(features: DictConfig, matches: DictConfig, kind: str = "") -> tuple[PluginChoice, PluginChoice]:
    """The extractor and the matcher that two nodes describe, `kind` being their key if there are several kinds."""
    places = [f"{group}.{kind}" if kind else group for group in ("features", "matches")]
    problem = _problem_with_superpoint(features, matches)
    choose_lightglue(features, matches)
    chosen = _try_to_choose(features, "features", where=places[0])
    if chosen.problem and "trained_for" in {*matches} and OmegaConf.is_interpolation(matches, "trained_for"):
        matches.trained_for = "superpoint"  # so that the mistake in the features is reported only once
    return chosen, _try_to_choose(matches, "matches", problem, places[1])


def _unknown_kind(problem: str) -> Kind:
    """Stands for features and a matcher that are not known because of a mistake."""
    return Kind("", PluginChoice(None, None, problem), PluginChoice(None, None, problem))


def _choose_kinds(config: DictConfig) -> tuple[Kind, ...]:
    """The kinds of features, or the only one, without a name. Raises: ValueError if the groups do not describe the same kinds."""
    nodes = {group: config[group] for group in ("features", "matches")}
    if not any(node.get("name") == SEVERAL for node in nodes.values()):
        return (Kind("", *_choose_both(config.features, config.matches)),)
    kinds = {group: [str(key) for key, value in node.items() if isinstance(value, DictConfig)] for group, node in nodes.items()}
    if len(kinds["features"]) < 2 or kinds["features"] != kinds["matches"]:
        raise ValueError(
            "features=several and matches=several need the same kinds of features, at least two: list them, such as "
            "features=[sift,superpoint]"
        )
    for group, node in nodes.items():
        for key in {str(key) for key in node} - {"name", *KEYS_OF_RUN[group], *kinds[group]}:
            kind = kinds[group][0]
            raise ValueError(f"unknown option '{group}.{key}': with several kinds, name the kind, such as {group}.{kind}.{key}")
    return tuple(Kind(name, *_choose_both(config.features[name], config.matches[name], name)) for name in kinds["features"])


def _escalate(config: DictConfig) -> bool:
    """The option `matches.escalate`. Raises: ValueError if it is not true or false, or if there is only one kind of features."""
    if not isinstance(found := config.matches.escalate, bool):
        raise ValueError(f"matches.escalate={found} is neither true nor false")
    if found and config.features.get("name") != SEVERAL:
        raise ValueError(
            "matches.escalate=true adds further kinds of features where the first one is not enough: list them, the cheapest "
            "first, such as features=[sift,superpoint]"
        )
    return found


def _drop_preset(node: DictConfig, group: str) -> None:
    """Removes what a preset sets for other choices of the group, see `config.drop_unknown`.

    Of several kinds nothing is removed: a preset for one kind does not say which one it is about.
    """
    if node.get("name") != SEVERAL:
        drop_unknown(node, functools.partial(_options_class, node, group))


def choose_lightglue(features: DictConfig, matches: DictConfig) -> None:
    """Sets `trained_for` of a matcher to `superpoint-open` if the features have the open SuperPoint's descriptors."""
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


def _problem_with_superpoint(features: DictConfig, matches: DictConfig) -> str:
    """Why the published LightGlue does not fit a SuperPoint that was trained from scratch; empty if it fits or was chosen."""
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
