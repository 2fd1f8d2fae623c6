"""Mistakes of a run that can be known before its first stage, all in one message. Nothing is written, no photo is decoded.

To add a check, write a function of `Inputs` that raises ValueError, KeyError or OSError, and add a line to `CHECKS`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from sfm_lightglue.cameras import Camera, cameras_of_poses, check_intrinsics
from sfm_lightglue.continued_choices import with_stored_choices
from sfm_lightglue.evaluation.pairs import read_homographies
from sfm_lightglue.execution.devices import chosen_devices
from sfm_lightglue.execution.executor import check_folders
from sfm_lightglue.execution.ray import RayOptions
from sfm_lightglue.execution.shards import DIVIDED, ShardOptions, read_shard
from sfm_lightglue.features.imported import ImportedExtractor, check_has_descriptors
from sfm_lightglue.files import check_one_file, foreign_file, result_exists
from sfm_lightglue.images import HEIC, check_masks, warn_once
from sfm_lightglue.matches.imported import ImportedMatcher
from sfm_lightglue.mistakes import MISTAKES, count_of, message_of
from sfm_lightglue.outputs import check_outputs
from sfm_lightglue.pairs.pairing import check_source
from sfm_lightglue.pose_priors import listed_positions
from sfm_lightglue.positions import MIN_PRIORS
from sfm_lightglue.run_inputs import Inputs as Inputs
from sfm_lightglue.settings import describe_changes, fingerprint, plugin_settings
from sfm_lightglue.stages import STAGES, check_exists, stage_names
from sfm_lightglue.storage import H5Reader, SettingsChanged, check_joined, check_match_keys, check_output

NOT_OURS = " was not written by "
"""In the message of `files.foreign_file`, after the path."""
OUTPUT_WITHOUT_DATASET = Path("outputs/None")
"""The default output folder if neither a dataset nor an output was chosen."""


Check: TypeAlias = Callable[[Inputs], None]


def find_mistakes(inputs: Inputs, command: str) -> list[Exception]:
    """The mistakes that a command would meet, in the order of `CHECKS`; the same message only once.

    Args:
        inputs: What the run is given.
        command: `run`, the name of a stage, or `evaluate`.
    """
    found: dict[str, Exception] = {}
    escalates = command == "reconstruct" and inputs.options.escalate
    repeated = {
        "orient": ["extract", "pairs", "match", "verify"],
        "expand": ["match", "verify"],
        "escalate": ["extract", "match", "verify"],
        "reconstruct": ["escalate", "extract", "match", "verify", "refine", "database"] if escalates else [],
    }.get(command, [])
    writing = [*stage_names(), "report"] if command == "run" else [command, *repeated]
    wanted = {command, *(repeated if escalates else ())}
    checks = [check for check, commands in CHECKS if wanted & {*commands}]
    if inputs.folder.path.is_dir():
        checks.insert(0, lambda inputs: check_outputs(inputs.folder, writing))
    for check in checks:
        for each in inputs.kinds if check in OF_EACH_KIND else [inputs]:
            try:
                check(each)
            except MISTAKES as error:
                found.setdefault(message_of(error), error)
    foreign = [line.partition(NOT_OURS)[0] for message in found for line in message.splitlines() if NOT_OURS in line]
    unreadable = tuple(f"{path} is not a readable HDF5 file" for path in foreign)  # one mistake, met twice
    return [error for message, error in found.items() if not message.startswith(unreadable)]


# --- the output folder -------------------------------------------------------------------------------------------------------


def _check_output(inputs: Inputs) -> None:
    output, given = inputs.options.output, inputs.options.configuration.get("output")
    if given is None or not str(given).strip():
        raise ValueError("output= is empty: give a folder for the results, output=DIR or PHOTOS OUT")
    if output == OUTPUT_WITHOUT_DATASET:
        raise ValueError("no output folder was given: add output=DIR, or PHOTOS OUT")
    existing = next(folder for folder in (output, *output.absolute().parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise ValueError(f"output={output} cannot be a folder: {existing} is a file. Choose another output=DIR")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"output={output} cannot be written: {existing} is read-only. Choose another output=DIR")


def _check_output_beside_photos(inputs: Inputs) -> None:
    """The output must not be the photo folder, and the photos must not lie where a run writes."""
    if not inputs.options.dataset.images:
        return
    output, images = inputs.options.output.resolve(), inputs.images.resolve()
    if output == images:
        raise ValueError(f"output={inputs.options.output} is the folder of the photos: choose another one, such as {images}-out")
    written = {name for stage in STAGES for name in stage.writes} | {inputs.folder.logs.name}
    if output in images.parents and images.relative_to(output).parts[0] in written:
        raise ValueError(f"the photos in {inputs.images} lie where a run writes its results: choose another output=DIR")


def _check_space(inputs: Inputs) -> None:
    """The disk must have room for a quarter of the keypoints that the photos may have at most."""
    count = getattr(inputs.options.features.options, "max_keypoints", None)
    if not count or result_exists(inputs.folder.features) or (features := inputs.empty_features) is None:
        return
    largest = len(inputs.names) * count * features.descriptors.shape[1] * 4  # bytes
    existing = next(folder for folder in (inputs.folder.path, *inputs.folder.path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < 1e5:
        raise ValueError(f"{existing} has no free space: the disk is full, read-only or no real disk. Choose another output=DIR")
    if free < largest / 4:
        raise ValueError(
            f"{existing} has {_size(free)} free, and the features of {count_of(len(inputs.names), 'photo')} need about "
            f"{_size(largest / 4)} to {_size(largest)}: choose another output=DIR or a smaller features.max_keypoints"
        )


def _size(num_bytes: float) -> str:
    """A number of bytes for people."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


# --- the photos and what is known about them ---------------------------------------------------------------------------------


def _check_photos(inputs: Inputs) -> None:
    inputs.list_photos()
    check_match_keys(inputs.names)


def _check_heic(inputs: Inputs) -> None:
    """HEIC photos need a package. If other photos are there too, a warning is enough: the HEIC photos are skipped."""
    heic = [name for name in inputs.names if name.lower().endswith(HEIC)]
    if not heic or find_spec("pillow_heif") is not None:
        return
    message = (
        f"{len(heic)} of {len(inputs.names)} photos are HEIC, such as {heic[0]}, and the package that decodes them is missing: "
        "pip install pillow-heif"
    )
    if 2 * len(heic) >= len(inputs.names):
        raise ValueError(message)
    warn_once(f"{message}. They are skipped")


def _check_masks(inputs: Inputs) -> None:
    if inputs.options.dataset.masks and inputs.names:
        check_masks(inputs.images, inputs.names, inputs.options.dataset.masks)


def _check_poses(inputs: Inputs) -> None:
    if inputs.options.dataset.poses:
        _ = inputs.collection.poses  # raises if the file is damaged or has none of the photos
    if inputs.options.reconstruction.name == "triangulation" and not inputs.options.dataset.poses:
        raise ValueError("reconstruction=triangulation needs the poses of the photos: dataset.poses=FILE with their names")
    if inputs.options.reconstruction.position_priors == "poses" and inputs.names:
        count = len(inputs.collection.poses) if inputs.options.dataset.poses else 0
        if count < MIN_PRIORS:
            raise ValueError(
                f"reconstruction.position_priors=poses needs {MIN_PRIORS} photos with a known pose, and {count} of "
                f"{count_of(len(inputs.names), 'photo')} have one: give dataset.poses=FILE with their names"
            )


def _check_positions(inputs: Inputs) -> None:
    if inputs.options.dataset.positions:
        listed_positions(inputs.options.dataset.positions, inputs.names)
    if inputs.options.reconstruction.position_priors == "gps" and inputs.names:
        count = sum(math.isfinite(position.altitude_m) for position in inputs.collection.positions.values())
        if count < MIN_PRIORS:
            raise ValueError(
                f"reconstruction.position_priors=gps needs {MIN_PRIORS} photos with a GPS position and altitude, and {count} of "
                f"{count_of(len(inputs.names), 'photo')} have one: give dataset.positions=FILE, or leave the option out"
            )


def _check_cameras(inputs: Inputs) -> None:
    database = inputs.options.database
    known: dict[str, Camera] = {}
    if database.intrinsics == "poses" and inputs.options.dataset.poses:
        try:
            known = cameras_of_poses(inputs.poses)
        except MISTAKES:
            return  # `_check_poses` reports it
    check_intrinsics(inputs.images, inputs.names, database.intrinsics, database.camera_model, known)


def _check_pairs(inputs: Inputs) -> None:
    source = inputs.options.pairs.create()
    if inputs.names:
        check_source(source, inputs.collection)


def _check_truth(inputs: Inputs) -> None:
    """`evaluate` needs ground truth."""
    dataset = inputs.options.dataset
    if not dataset.poses and not dataset.homographies:
        raise ValueError(
            "evaluate needs ground truth: dataset.poses=FILE (or dataset.homographies=FILE), or a dataset that has it"
        )
    if not dataset.pairs and not dataset.homographies:
        check_exists(inputs.folder.reconstruction)
    if dataset.homographies:
        read_homographies(dataset.homographies)
    if inputs.poses and dataset.pairs and not Path(dataset.pairs).is_file():
        raise FileNotFoundError(f"dataset.pairs={dataset.pairs} does not exist: expected a text file of lines `name0 name1`")


# --- features and matches ----------------------------------------------------------------------------------------------------


def _check_shard(inputs: Inputs) -> None:
    if isinstance(options := inputs.options.execution.options, ShardOptions):
        read_shard(options.shard)


def _check_whole(inputs: Inputs) -> None:
    """Only some stages can be divided."""
    if isinstance(inputs.options.execution.options, ShardOptions):
        raise ValueError(
            "execution=shards divides the commands extract, pairs, match and verify: run one of them with execution.shard=i/n "
            "for each i from 1 to n, then `merge output=OUT`. Leave execution=shards out of all other commands"
        )


def _check_expanded_once(inputs: Inputs) -> None:
    """Shards match the pairs that `expand` adds, but only one process adds them."""
    if getattr(inputs.options.execution.options, "shard", None) is not None:
        raise ValueError(
            "expand is not divided: run it once, with execution=shards and without execution.shard. It adds the pairs of the "
            "next round; then come match with execution.shard=i/n for each i from 1 to n, merge, and verify in the same way"
        )


def _check_cluster(inputs: Inputs) -> None:
    """A cluster must answer, and its machines must see the photos."""
    if isinstance(inputs.options.execution.options, RayOptions):
        check_folders(inputs.options.execution.create(), [inputs.images])


def _check_devices(inputs: Inputs) -> None:
    chosen_devices(inputs.options.execution.options.device)


def _check_extractor(inputs: Inputs) -> None:
    if isinstance(inputs.extractor, Exception):
        raise inputs.extractor
    if inputs.options.features.plugin is ImportedExtractor:
        path = inputs.options.features.options.path
        names = _imported_names(path, "features.path")
        if inputs.names and not names & {*inputs.names}:
            raise ValueError(
                f"features.path={path} has features of other photos, such as {min(names)!r}, and of none of the "
                f"{len(inputs.names)} photos, such as {inputs.names[0]!r}: names are paths below the photo folder"
            )
        if inputs.options.matches.plugin is not ImportedMatcher:
            check_has_descriptors(path)


def _check_matcher(inputs: Inputs) -> None:
    if isinstance(inputs.matcher, Exception):
        raise inputs.matcher
    if inputs.options.matches.plugin is ImportedMatcher:
        path = inputs.options.matches.options.path
        keys = {key.replace("/", "-") for key in _imported_names(path, "matches.path")}
        if inputs.names and not any(_begins_or_ends(key, inputs.names) for key in keys):
            raise ValueError(
                f"matches.path={path} has matches of other photos, such as {min(keys)!r}, and of none of the "
                f"{len(inputs.names)} photos, such as {inputs.names[0]!r}: names are paths below the photo folder"
            )


def _imported_names(path: str, option: str) -> set[str]:
    check_one_file(path, option)
    with H5Reader(path) as reader:
        names = set(reader.names())
    if not names:
        raise ValueError(
            f"{option}={path} has no groups with datasets: expected a group for each photo, or for each pair of them"
        )
    return names


def _begins_or_ends(key: str, names: Iterable[str]) -> bool:
    """Whether a key of a pair, `name0/name1` with dashes, begins or ends with one of the names."""
    flat = tuple(name.replace("/", "-") for name in names)
    return key.startswith(flat) or key.endswith(flat)


def _check_fit(inputs: Inputs) -> None:
    """The matcher must take the descriptors of the extractor. It is asked to match two pictures without keypoints."""
    if isinstance(inputs.matcher, (Exception, ImportedMatcher)) or inputs.has_matched or inputs.empty_features is None:
        return
    try:
        inputs.matcher(inputs.empty_features, inputs.empty_features)
    except ValueError as error:
        raise ValueError(str(error).replace(f"of {inputs.empty_features.name!r} ", "")) from error


def _check_stored_features(inputs: Inputs) -> None:
    if not isinstance(inputs.extractor, (Exception, ImportedExtractor)):
        path = inputs.folder.features
        _check_stored(inputs, path, plugin_settings(with_stored_choices(inputs.extractor, path)))


def _check_stored_matches(inputs: Inputs) -> None:
    if isinstance(inputs.matcher, (Exception, ImportedMatcher)) or not result_exists(inputs.folder.features):
        return
    matcher = with_stored_choices(inputs.matcher, inputs.folder.matches)
    with inputs.folder.open_features() as reader:
        settings = {**plugin_settings(matcher), "features": reader.fingerprint}
    _check_stored(inputs, inputs.folder.matches, settings)


def _check_stored(inputs: Inputs, path: Path, settings: dict[str, Any]) -> None:
    """Results of other settings are refused, unless `execution.if_settings_changed=recompute`."""
    if not result_exists(path) or inputs.options.execution.options.if_settings_changed == "recompute":
        return
    settings = json.loads(json.dumps(settings, sort_keys=True))
    with H5Reader(path) as reader:
        if not reader.settings:
            raise foreign_file(path)
        if reader.fingerprint != fingerprint(settings):
            raise SettingsChanged(
                f"{path} was made with other settings ({describe_changes(reader.settings, settings)}): choose another output "
                "folder, or give execution.if_settings_changed=recompute to replace it"
            )


def _check_kinds(inputs: Inputs) -> None:
    """Files of one kind are not replaced by joined ones unasked. The files of each kind must be ours."""
    if inputs.options.kinds and inputs.options.execution.options.if_settings_changed != "recompute":
        for path in (inputs.folder.features, inputs.folder.matches):
            check_joined(path)
    for each in inputs.kinds if inputs.options.kinds else []:
        for path in (each.folder.features, each.folder.matches):
            check_output(path)


CHECKS: tuple[tuple[Check, tuple[str, ...]], ...] = (
    (_check_output, ("run", "evaluate", *(stage.name for stage in STAGES))),
    (_check_output_beside_photos, ("run", "evaluate", *(stage.name for stage in STAGES))),
    (_check_shard, DIVIDED),
    (_check_whole, ("run", "evaluate", *(stage.name for stage in STAGES if stage.name not in (*DIVIDED, "expand")))),
    (_check_expanded_once, ("expand",)),
    (_check_devices, ("run", "extract", "pairs", "match", "orient", "expand", "escalate")),
    (_check_photos, ("run", "extract", "pairs", "verify", "orient", "expand", "escalate", "database")),
    (_check_heic, ("run", "extract")),
    (_check_masks, ("run", "extract", "orient", "escalate")),
    (_check_extractor, ("run", "extract", "orient", "escalate")),
    (_check_pairs, ("run", "pairs", "orient", "expand")),
    (_check_matcher, ("run", "match", "orient", "expand", "escalate")),
    (_check_fit, ("run",)),
    (_check_poses, ("run", "reconstruct", "evaluate")),
    (_check_cameras, ("run", "verify", "orient", "expand", "escalate", "database")),
    (_check_positions, ("run", "database")),
    (_check_truth, ("evaluate",)),
    (_check_kinds, ("run", "extract", "match", "orient", "expand", "escalate")),
    (_check_stored_features, ("run", "extract", "orient", "escalate")),
    (_check_stored_matches, ("run", "match", "orient", "expand", "escalate")),
    (_check_space, ("run", "extract")),
    (_check_cluster, ("run", *DIVIDED, "orient", "escalate")),
)
"""Each check, and the commands that need it."""
OF_EACH_KIND = (_check_extractor, _check_matcher, _check_fit, _check_stored_features, _check_stored_matches, _check_space)
"""The checks that are made for each kind of features, if there are several."""
