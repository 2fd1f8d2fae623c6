"""The flow images -> features -> pairs -> matches -> database -> reconstruction, from one configuration.

Each stage reads and writes files in the output folder, so any of them can be run alone, repeated, or fed by another tool.
`summary.json` there says what every stage did.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sfm_lightglue.cameras import Camera, CameraAssignment, choose_cameras
from sfm_lightglue.colmap import colmap_log
from sfm_lightglue.config import bind, check_keys, drop_unknown, options_class
from sfm_lightglue.database import DatabaseOptions, write_database
from sfm_lightglue.datasets import ensure_dataset, list_datasets
from sfm_lightglue.evaluation.matches import evaluate_matched_homographies, evaluate_matched_poses
from sfm_lightglue.evaluation.matches import table as scores_table
from sfm_lightglue.evaluation.pairs import read_homographies
from sfm_lightglue.evaluation.reconstruction import evaluate_reconstruction, read_reconstruction_poses
from sfm_lightglue.execution import EXECUTORS
from sfm_lightglue.execution.devices import chosen_devices
from sfm_lightglue.execution.executor import ExecutionOptions, Executor, create_executor
from sfm_lightglue.features import EXTRACTORS
from sfm_lightglue.features.extractor import Extractor
from sfm_lightglue.features.stage import extract_features
from sfm_lightglue.geometries.stage import verify_pairs
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.images import list_images
from sfm_lightglue.matches import MATCHERS
from sfm_lightglue.matches.matcher import Matcher
from sfm_lightglue.matches.stage import match_pairs
from sfm_lightglue.networks.weights import read_metadata
from sfm_lightglue.pair_files import read_pairs, write_pairs, write_reasons
from sfm_lightglue.pairs.collection import Collection
from sfm_lightglue.pairs.pairing import create_source
from sfm_lightglue.pairs.stage import select_pairs
from sfm_lightglue.poses import read_poses
from sfm_lightglue.products import Pair
from sfm_lightglue.reconstruction import ReconstructionOptions, reconstruct
from sfm_lightglue.registry import closest, load_class
from sfm_lightglue.report.gallery import draw_match_gallery
from sfm_lightglue.report.scene import draw_reconstruction
from sfm_lightglue.storage import H5Reader
from sfm_lightglue.summary import recorded, write_json

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The photos and what is known of them."""

    name: str | None
    images: str | None
    poses: str | None
    pairs: str | None
    homographies: str | None
    masks: str | None


@dataclasses.dataclass(frozen=True)
class DatabaseOptions(VerificationOptions):
    """The group `database`: the options of the verification, and how cameras are chosen."""

    name: str
    intrinsics: str
    camera_model: str

    @property
    def verification(self) -> VerificationOptions:
        """Without what is about cameras."""
        return VerificationOptions(**{field.name: getattr(self, field.name) for field in dataclasses.fields(VerificationOptions)})


class Run:
    """One configuration bound to types, and the paths of its output folder. Nothing is loaded or written yet."""

    def __init__(self, config: DictConfig) -> None:
        check_keys(config)
        for group, table in (("features", EXTRACTORS), ("matches", MATCHERS)):
            drop_unknown(config[group], functools.partial(_options_class, config[group], table, group))
        select_open_lightglue(config)
        self.config = config
        self.dataset = bind(Dataset, config.dataset, "dataset")
        if self.dataset.masks and config.features.name == config.matches.name == "imported":
            raise ValueError(
                "dataset.masks drops keypoints, and matches=imported numbers them all: leave the masks out, or match again"
            )
        options = _options_class(config.execution, EXECUTORS, "execution")
        self.execution: ExecutionOptions = bind(options, config.execution, "execution")
        self.output = Path(config.output)
        self.features = self.output / "features.h5"
        self.pairs = self.output / "pairs.txt"
        self.matches = self.output / "matches.h5"
        self.geometries = self.output / "verification.h5"
        self.database = self.output / "database.db"
        self.reconstruction = self.output / "reconstruction"
        self.summary = self.output / "summary.json"

    @functools.cached_property
    def images(self) -> Path:
        """Folder of the photos; those of a known dataset are fetched first where they are missing or wrong.

        Raises: ValueError where no dataset was chosen.
        """
        if not self.dataset.images:
            raise ValueError("which photos? Give +dataset=folder dataset.images=DIR, or +dataset=NAME (`datasets` lists them)")
        images, name = Path(self.dataset.images), str(self.dataset.name)
        if any(entry.name == name and entry.folder in images.parents for entry in list_datasets()):
            ensure_dataset(name)
        return images

    def list_photos(self) -> list[str]:
        """Sorted names of the photos. Masks, and what a run has drawn, are none where they lie among them."""
        masks = [self.dataset.masks] if self.dataset.masks else []
        return list_images(self.images, without=[self.output, self.output / "plots", *masks])

    @property
    def device(self) -> str:
        """Where this process computes; an executor may use more devices. Raises: ValueError if torch cannot use one of them."""
        return chosen_devices(self.execution.device)[0]

    def executor(self, device: str | None = None) -> Executor:
        """What runs the jobs of a stage, on the devices of the configuration or on this one."""
        return create_executor(dataclasses.replace(self.execution, device=device or self.execution.device))

    def extractor(self) -> Extractor:
        return create_plugin(self.config.features, EXTRACTORS, "features", self.device)

    def matcher(self) -> Matcher:
        check_lightglue_fits(self.config)
        return create_plugin(self.config.matches, MATCHERS, "matches", self.device)

    @contextlib.contextmanager
    def recorded(self, stage: str) -> Iterator[dict[str, Any]]:
        """A stage's entry in summary.json; COLMAP's own log goes to the output folder meanwhile."""
        configuration = OmegaConf.to_container(self.config, resolve=True)
        about = {"dataset": dataclasses.asdict(self.dataset), "configuration": configuration}
        with colmap_log(self.output / "logs"), recorded(self.summary, stage, about) as record:
            yield record


def select_open_lightglue(config: DictConfig) -> None:
    """Selects LightGlue for the open SuperPoint if the features come from the open SuperPoint or a model fine-tuned from it."""
    features, matches = config.features, config.matches
    if matches.get("trained_for") == "superpoint" and matches.get("weights") != "superpoint-lightglue":
        weights = str(features.get("weights"))
        if weights == "superpoint-open" or "superpoint-open " in read_metadata(Path(weights)).get("origins", ""):
            matches.trained_for = "superpoint-open"


def check_lightglue_fits(config: DictConfig) -> None:
    """Raises: ValueError if the published LightGlue would match a SuperPoint trained from scratch, and no one asked for that."""
    features, matches = config.features, config.matches
    if (
        matches.get("trained_for") != "superpoint"
        or matches.get("weights")
        or not OmegaConf.is_interpolation(matches, "trained_for")
    ):
        return
    if read_metadata(Path(str(features.get("weights")))).get("network") == "SuperPoint":
        raise ValueError(
            f"no published LightGlue goes with the SuperPoint that was trained into features.weights={features.weights}: give "
            "matches.weights=FILE (from training=lightglue), matches.trained_for=superpoint-open if it was trained from ours, "
            "or matches=nearest_neighbor"
        )


def create_plugin(node: DictConfig, table: dict[str, str], group: str, device: str) -> Any:
    """The extractor or matcher that a configuration group describes."""
    plugin = load_class(str(node.name), table, group)
    return plugin.create(bind(options_class(plugin), node, group), device)  # type: ignore[attr-defined]


def _options_class(node: DictConfig, table: dict[str, str], group: str) -> type:
    return options_class(load_class(str(node.name), table, group))


# --- the stages ----------------------------------------------------------------------------------------------------------


def extract(run: Run) -> None:
    """images -> features.h5"""
    with run.recorded("extract") as record:
        extractor = run.extractor()
        record["weights"] = [dataclasses.asdict(weights) for weights in extractor.weights]
        report = extract_features(
            run.images,
            run.features,
            extractor,
            names=run.list_photos(),
            masks=run.dataset.masks,
            executor=run.executor(),
            if_settings_changed=run.execution.if_settings_changed,
        )
        record |= dataclasses.asdict(report)


def pairs(run: Run) -> None:
    """features.h5 -> pairs.txt, and pairs.tsv with the reason of each pair"""
    with run.recorded("pairs") as record:
        with H5Reader(run.features) as reader:
            names = _current_names(run, reader)
        source = create_source(bind_pairs(run.config.pairs))
        files = Collection(names, images=run.images, features=run.features, poses=run.dataset.poses, device=run.device)
        with files as collection:
            selected = select_pairs(source, collection)
        write_pairs(run.pairs, selected)
        write_reasons(run.pairs.with_suffix(".tsv"), selected)
        record["num_pairs"] = len(selected)
        if not selected:
            logger.warning("no pairs of images were selected")


def match(run: Run) -> None:
    """features.h5 and pairs.txt -> matches.h5"""
    with run.recorded("match") as record:
        matcher = run.matcher()
        record["weights"] = [dataclasses.asdict(weights) for weights in matcher.weights]
        report = match_pairs(
            run.features,
            _read_pairs(run),
            run.matches,
            matcher,
            executor=run.executor(),
            cache_mb=run.execution.cache_mb,
            if_settings_changed=run.execution.if_settings_changed,
        )
        record |= dataclasses.asdict(report)


def verify(run: Run) -> None:
    """features.h5 and matches.h5 -> verification.h5"""
    with run.recorded("verify") as record:
        options = bind(VerificationOptions, run.config.geometries, "geometries")
        names, cameras = _choose_cameras(run)
        report = verify_pairs(
            run.features,
            run.matches,
            _read_pairs(run),
            run.geometries,
            options,
            cameras.cameras,
            names=names,
            num_workers=run.execution.num_workers,
        )
        record |= {"seed": options.seed, **dataclasses.asdict(report)}


def build_database(run: Run) -> None:
    """features.h5, matches.h5 and verification.h5 -> database.db"""
    with run.recorded("database") as record:
        names, cameras = _choose_cameras(run)
        pairs = _read_pairs(run)
        report = write_database(run.features, run.matches, run.geometries, pairs, run.database, cameras, names=names)
        record |= {"intrinsics": run.config.database.intrinsics, **dataclasses.asdict(report)}


def reconstruct_models(run: Run) -> None:
    """database.db -> reconstruction/0 ... n"""
    with run.recorded("reconstruct") as record:
        options = bind(ReconstructionOptions, run.config.reconstruction, "reconstruction")
        known_poses = {}
        if options.name == "triangulation" and run.dataset.poses:
            known_poses = {name: pose.cam_from_world for name, pose in read_poses(Path(run.dataset.poses)).items()}
        report = reconstruct(run.database, run.images, run.reconstruction, options, known_poses=known_poses)
        record |= {"mapper": options.name, "seed": options.seed, **dataclasses.asdict(report)}
        if report.largest is None:
            logger.error("nothing could be reconstructed: see the pairs and matches in %s", run.summary)


STAGES: dict[str, Callable[[Run], None]] = {
    "extract": extract,
    "pairs": pairs,
    "match": match,
    "verify": verify,
    "database": build_database,
    "reconstruct": reconstruct_models,
}


def check_options(run: Run) -> None:
    """Raises: ValueError or FileNotFoundError for a mistake that would otherwise show after hours, in a late stage."""
    for group, table in (("features", EXTRACTORS), ("matches", MATCHERS)):
        bind(_options_class(run.config[group], table, group), run.config[group], group)
    check_lightglue_fits(run.config)
    _pairing_options(run)
    bind(VerificationOptions, run.config.geometries, "geometries")
    options = bind(DatabaseOptions, run.config.database, "database")
    bind(ReconstructionOptions, run.config.reconstruction, "reconstruction")
    run.list_photos()
    choose_cameras(run.images, {}, options.intrinsics, options.camera_model, _known_cameras(run))


def run_all(run: Run) -> dict[str, Any]:
    """Every stage, then a few pictures of matches; returns the summary."""
    check_options(run)
    for stage in STAGES.values():
        stage(run)
    with run.recorded("plots") as record:
        record["files"] = draw_match_gallery(run.images, run.features, run.matches, run.pairs, run.output)
        if (largest := _read_summary(run)["stages"]["reconstruct"]["largest"]) is not None:
            draw_reconstruction(run.reconstruction / largest, run.output / "plots" / "reconstruction.png")
            record["files"].append("plots/reconstruction.png")
    return _read_summary(run)


def evaluate(run: Run) -> str:
    """Scores against the dataset's ground truth, in `evaluation.json`; returns them as tables.

    The largest model against dataset.poses, the matches of dataset.pairs against the same, and dataset.homographies.
    """
    dataset, tables = run.dataset, []
    scores: dict[str, Any] = {}
    if not dataset.poses and not dataset.homographies:
        raise ValueError(
            "evaluate needs ground truth: dataset.poses=FILE (or dataset.homographies=FILE), or a dataset that has it"
        )
    truth = read_poses(Path(dataset.poses)) if dataset.poses else {}
    if truth and (run.reconstruction.exists() or not dataset.pairs):
        evaluation = evaluate_reconstruction(read_reconstruction_poses(run.reconstruction), truth)
        scores |= evaluation.to_json()
        tables.append(evaluation.table())
    if truth and dataset.pairs:
        pairs = [(pair.name0, pair.name1) for pair in read_pairs(dataset.pairs)]
        scores["pairs"] = evaluate_matched_poses(run.features, run.matches, pairs, truth)
        tables.append(scores_table("relative poses of pairs", scores["pairs"]))
    if dataset.homographies:
        homographies = read_homographies(dataset.homographies)
        scores["homographies"] = evaluate_matched_homographies(run.features, run.matches, homographies)
        tables.append(scores_table("homographies", scores["homographies"]))
    write_json(run.output / "evaluation.json", scores)
    return "\n".join(tables)


# --- details -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps two runs out of one output folder. Raises: ValueError where another process is in it."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("a+") as lock:
        with contextlib.suppress(ImportError):  # Windows has no fcntl
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another run is working in {output}: wait for it or choose another output=DIR") from error
            except OSError as error:  # some network file systems have no locks
                logger.warning("%s cannot be locked (%s): start no other run in it", output, error)
        yield


def _read_summary(run: Run) -> dict[str, Any]:
    return json.loads(run.summary.read_text(encoding="utf-8"))


def _current_names(run: Run, reader: H5Reader) -> list[str]:
    """Images with features whose photo is still in the folder, sorted."""
    return sorted({*reader.names()} & {*run.list_photos()})


def _read_pairs(run: Run) -> list[Pair]:
    if not run.pairs.is_file():
        raise FileNotFoundError(f"{run.pairs} does not exist: run the stage pairs first")
    return read_pairs(run.pairs)


def _read_global_descriptors(path: str, names: list[str]) -> Any:
    with H5Reader(path) as reader:
        return reader.global_descriptors(names)


def _choose_cameras(run: Run) -> tuple[list[str], CameraAssignment]:
    """The images with features, sorted, and their cameras."""
    options = bind(DatabaseOptions, run.config.database, "database")
    with H5Reader(run.features) as reader:
        names = _current_names(run, reader)
        sizes = {name: reader.image_size(name) for name in names}
    return names, choose_cameras(run.images, sizes, options.intrinsics, options.camera_model, _known_cameras(run))


def _known_cameras(run: Run) -> dict[str, Camera]:
    """Cameras of the file of poses: pinhole, without distortion."""
    if not run.dataset.poses or run.config.database.intrinsics != "poses":
        return {}
    cameras = {}
    for name, pose in read_poses(Path(run.dataset.poses)).items():
        matrix = pose.camera_matrix
        params = (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
        cameras[name] = Camera("PINHOLE", pose.size, tuple(float(value) for value in params), True)
    return cameras
