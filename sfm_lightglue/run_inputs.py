"""What a run is given: its options, its photos, and the plug-ins that they choose, for the checks before a run."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfm_lightglue.continued_choices import with_stored_choices
from sfm_lightglue.features.imported import ImportedExtractor
from sfm_lightglue.files import result_exists
from sfm_lightglue.matches.imported import ImportedMatcher
from sfm_lightglue.mistakes import MISTAKES
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.poses import PosedCamera, read_poses
from sfm_lightglue.products import Features, Image
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.run_options import PluginChoice, RunOptions
from sfm_lightglue.settings import plugin_settings
from sfm_lightglue.storage import H5Reader

IN_PACKAGE = "superpoint-open"
"""Name of the weights of SuperPoint, and of what LightGlue was trained for, that are in this package."""


@dataclass(frozen=True)
class Inputs:
    """What a run is given. The photos and the networks are read when a check first asks for them."""

    options: RunOptions
    list_photos: Callable[[], list[str]]
    """Gives the sorted names of the photos."""
    kind: str = ""
    """The name of the kind of features if these are the inputs of one of several kinds."""
    may_stay_unused: bool = False
    """True for a kind that `matches.escalate` may not need."""

    @property
    def folder(self) -> RunFolder:
        """The output folder."""
        return RunFolder(self.options.output, self.kind)

    @functools.cached_property
    def kinds(self) -> list[Inputs]:
        """The inputs of each kind of features; these themselves if there is only one."""
        escalates = self.options.escalate
        return [
            Inputs(self.options.of_kind(kind), lambda: self.names, kind.name, may_stay_unused=escalates and number > 0)
            for number, kind in enumerate(self.options.kinds)
        ] or [self]

    @property
    def images(self) -> Path:
        """Folder of the photos."""
        return Path(self.options.dataset.images or "")

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of the photos; empty if they cannot be listed, which `_check_photos` reports."""
        try:
            return self.list_photos()
        except MISTAKES:
            return []

    @functools.cached_property
    def collection(self) -> Collection:
        """The photos and what is known about them, without features."""
        dataset = self.options.dataset
        return Collection(self.names, images=self.images, poses=dataset.poses, positions=dataset.positions)

    @functools.cached_property
    def poses(self) -> dict[str, PosedCamera]:
        """Poses by name from `dataset.poses`; empty if there is no file. Raises: as `poses.read_poses`."""
        return read_poses(Path(self.options.dataset.poses)) if self.options.dataset.poses else {}

    @functools.cached_property
    def extractor(self) -> Any:
        """The extractor with its weights on the CPU, or the mistake that prevents it."""
        return _created(self.options.features, self._is_extracted)

    @functools.cached_property
    def matcher(self) -> Any:
        """The matcher with its weights on the CPU, or the mistake that prevents it; with wrong features it is not known."""
        if self.options.features.problem and not self.options.matches.problem:
            return ValueError(self.options.features.problem)
        return _created(self.options.matches, self._is_matched)

    @functools.cached_property
    def has_matched(self) -> bool:
        """Whether both work, and fit to each other: matches with these features are stored, or both are left untried."""
        return not isinstance(self.extractor, Exception) and self._is_extracted(self.extractor) and self._is_matched(self.matcher)

    def _is_extracted(self, extractor: Any) -> bool:
        path = self.folder.features
        return self._is_left_untried or _has_results_of(with_stored_choices(extractor, path), path)

    def _is_matched(self, matcher: Any) -> bool:
        path = self.folder.matches
        return self._is_left_untried or _has_results_of(with_stored_choices(matcher, path), path)

    @property
    def _is_left_untried(self) -> bool:
        """Whether the networks, which take 3 s to build, may not be needed, and are those of this package, which fit together."""
        features, matches = self.options.features.options, self.options.matches.options
        is_ours = getattr(features, "weights", None) == getattr(matches, "trained_for", IN_PACKAGE) == IN_PACKAGE
        return self.may_stay_unused and is_ours and getattr(matches, "weights", None) is None

    @functools.cached_property
    def empty_features(self) -> Features | None:
        """What the extractor gives for a black picture: no keypoints, and the size of a descriptor. None if it is not known."""
        if isinstance(self.extractor, (Exception, ImportedExtractor)):
            return None
        if self._is_left_untried:
            return None
        try:
            features = self.extractor(Image("black.png", np.zeros((64, 64, 3), np.uint8)))
        except Exception:  # an extractor of the user may refuse such a picture; the run then reports it for each photo
            return None
        return features if isinstance(features, Features) else None


def _created(choice: PluginChoice, has_worked: Callable[[Any], bool]) -> Any:
    """The plug-in on the CPU, or the mistake that prevents it. Imported files are not hashed.

    The weights of a plug-in that has worked are not loaded: results that name their hashes are stored.
    """
    if choice.problem or choice.plugin in (ImportedExtractor, ImportedMatcher):
        return ValueError(choice.problem) if choice.problem else choice.plugin.__new__(choice.plugin)
    try:
        plugin = choice.plan("cpu")
        if hasattr(plugin, "load") and not has_worked(plugin):
            plugin.load()
        return plugin
    except MISTAKES as error:
        return error


def _has_results_of(plugin: Any, path: Path) -> bool:
    """Whether the plug-in has made the results in a file."""
    if not result_exists(path):
        return False
    with contextlib.suppress(*MISTAKES), H5Reader(path) as reader:
        own = json.loads(json.dumps(plugin_settings(plugin)))
        return {key: reader.settings.get(key) for key in own} == own and bool(reader.names())
    return False
