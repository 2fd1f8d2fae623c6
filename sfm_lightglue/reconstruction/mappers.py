"""COLMAP's mappers: incremental, global, hierarchical, and triangulation with known poses. Their points have no colours."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_lightglue.execution.progress import progress_bar
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.ranges import check_ranges
from sfm_lightglue.registry import closest

logger = logging.getLogger(__name__)

CLUSTERS = "clusters"
"""Name of the mapper of `clusters`, which runs the incremental mapper many times."""
AUTO = "auto"
"""Name of the mapper that `choosing` chooses."""
MANY_PHOTOS = 200
"""From this number of photos on, `num_threads=0` means all cores."""
LOCAL_TOLERANCE, GLOBAL_TOLERANCE = 1e-3, 1e-4
"""With a final adjustment after it, the mapper's own adjustments stop when the loss falls by a smaller share; COLMAP's tolerance
is 0."""
GROWTH = 1.4
"""Then all photos are adjusted together when their number, or that of the points, has grown by this factor; COLMAP's is 1.1."""
MAX_NUM_IMAGES = 2**31 - 1
"""The pair of images i < j has the pair_id i * MAX_NUM_IMAGES + j in COLMAP's databases."""
MAX_FORWARD, MIN_ANGLE_DEG = 1.0, 4.0
"""Of the first pair, if no other is found: any direction of motion, and the angle between rays. COLMAP's are 0.95 (cosine between
motion and view) and 16 degrees; it halves the angle twice, so 1 degree is the least."""


@dataclass(frozen=True)
class ReconstructionOptions:
    """Options of the mapper; configs/reconstruction holds the values."""

    name: str
    """`incremental`, `global`, `hierarchical`, `clusters`, `auto` (see `choosing`), or `triangulation` (points only, with known
    poses)."""
    refine_intrinsics: bool
    """Whether to refine focal length and distortion; otherwise they keep their values from the database."""
    refine_principal_point: str
    """`auto`: after the mapper, for the cameras whose photos decide it, see `camera_choice`. `true`: in the mapper. `false`: it
    stays where it is."""
    find_camera_model: bool
    """Whether cameras get aspect, second radial term and tangential distortion after the mapper, if their photos decide them."""
    join: bool
    """Whether to join models that have points in common, and to continue models with the photos that are left, if all fits."""
    min_model_size: int
    """Smallest number of images in a model; smaller models are discarded."""
    min_num_matches: int
    """Smallest number of inliers of a verified pair; pairs with fewer are ignored."""
    max_error_px: float
    """Largest reprojection error of an observation, px of the resized image that the detector saw. The global mapper does not use
    it: its limits are angles."""
    adjustment_scale_px: float | None
    """Scale of the robust loss of the final adjustment, px of the resized image that the detector saw, but at least of the photo:
    the precision of a keypoint. None leaves the final adjustment out."""
    adjustment_max_error_px: float
    """Largest reprojection error of an observation after the final adjustment, in the same px."""
    position_priors: str
    """`gps`: the final adjustment also fits the GPS positions that the database knows, see `position_priors`. `poses`: those of
    known poses, and the model gets their coordinates. `none`: it fits none."""
    position_std: float | None
    """Standard deviation along each axis of positions that do not say it, in m, or in units of the poses. None is 1 m for GPS."""
    align: str
    """`gps`: models become local east-north-up metres if three photos have a GPS position that the database knows. `none`: models
    keep the coordinates of the mapper. Known poses (`triangulation`) are never changed."""
    extract_colors: bool
    """Whether points get the colours of the photos."""
    num_threads: int
    """1 gives the same model in every run; -1 uses all cores; 0 chooses, see `chosen_num_threads`."""
    seed: int
    """Seed of RANSAC."""
    max_cluster_size: int
    """`clusters`: largest number of photos in a cluster, without those that it shares with its neighbours."""
    cluster_overlap: int
    """`clusters`: number of photos that two neighbouring clusters share."""

    def __post_init__(self) -> None:
        if self.name not in (names := (*MAPPERS, CLUSTERS, AUTO)):
            raise ValueError(f"there is no mapper {self.name!r}. {closest(self.name, names)}")
        object.__setattr__(self, "refine_principal_point", str(self.refine_principal_point).lower())
        if self.refine_principal_point not in ("auto", "true", "false"):
            raise ValueError(f"reconstruction.refine_principal_point={self.refine_principal_point}: expected auto, true or false")
        if self.align not in ("gps", "none"):
            raise ValueError(f"reconstruction.align is {self.align!r}, expected gps or none")
        self._check_priors()
        if self.name == CLUSTERS and not self.join:
            raise ValueError("reconstruction=clusters joins the models of its clusters: it needs reconstruction.join=true")
        check_ranges(
            self,
            "reconstruction",
            min_model_size=">= 2",
            min_num_matches=">= 0",
            max_error_px="> 0",
            adjustment_scale_px="> 0",
            adjustment_max_error_px="> 0",
            position_std=">= 1e-6, <= 1e6",
            num_threads=">= -1",
            seed=">= 0",
            max_cluster_size=">= 3",
            cluster_overlap=">= 0",
        )

    def _check_priors(self) -> None:
        """Raises: ValueError if position priors do not fit the other options."""
        if self.position_priors == "none":
            return
        about = f"reconstruction.position_priors={self.position_priors}"
        if self.position_priors not in ("gps", "poses"):
            raise ValueError(f"{about}: expected gps, poses or none")
        if self.adjustment_scale_px is None or self.name == "triangulation":
            reason = "reconstruction=triangulation" if self.name == "triangulation" else "reconstruction.adjustment_scale_px=null"
            raise ValueError(f"{about} is part of the final adjustment, and {reason} leaves it out: remove one of both")
        if self.position_priors == "poses" and self.position_std is None:
            raise ValueError(
                f"{about} needs the standard deviation of the positions: reconstruction.position_std=0.05, for example"
            )

    def scaled(self, factor: float) -> ReconstructionOptions:
        """The options in px of the photos; `factor` is the size of a detection pixel. No detector is finer than a pixel."""
        robust = None if self.adjustment_scale_px is None else self.adjustment_scale_px * max(1.0, factor)
        largest = self.adjustment_max_error_px * max(1.0, factor)
        return replace(self, max_error_px=self.max_error_px * factor, adjustment_scale_px=robust, adjustment_max_error_px=largest)


@dataclass(frozen=True)
class _Task:
    """The input of a mapper. Mappers get the output folder as the folder of the photos: they find none there, and read none."""

    database: Path
    output: Path
    options: ReconstructionOptions
    known_poses: Mapping[str, np.ndarray]
    on_image: Callable[[], None]
    """Called for each registered image."""
    token: pycolmap.CancellationToken
    start: Path | None = None
    """Folder of a model to continue, for `_incremental`; None starts anew."""
    min_inliers: int | None = None
    """Smallest number of matches of a new photo with points that fit its pose; None is COLMAP's default."""
    any_start: bool = False
    """Whether the first pair may have moved forward, with small angles, see MAX_FORWARD. For `_incremental`."""


def _incremental(task: _Task) -> None:
    """Runs COLMAP's incremental mapper."""

    def on_first_two_images() -> None:
        task.on_image()
        task.on_image()

    colmap = incremental_options(task.options, len(image_names(task.database)))
    if task.min_inliers is not None:
        colmap.mapper.abs_pose_min_num_inliers = task.min_inliers
    if task.any_start:
        colmap.mapper.init_max_forward_motion, colmap.mapper.init_min_tri_angle = MAX_FORWARD, MIN_ANGLE_DEG
    pycolmap.incremental_mapping(
        task.database,
        task.output,
        task.output,
        colmap,
        input_path=task.start or "",
        initial_image_pair_callback=on_first_two_images,
        next_image_callback=task.on_image,
        cancellation_token=task.token,
    )


def _global(task: _Task) -> None:
    """Runs COLMAP's global mapper (GLOMAP)."""
    colmap = pycolmap.GlobalPipelineOptions()
    colmap.min_model_size, colmap.min_num_matches = task.options.min_model_size, task.options.min_num_matches
    num_threads = chosen_num_threads(task.options, len(image_names(task.database)))
    colmap.num_threads, colmap.random_seed = num_threads, task.options.seed
    adjustment = colmap.mapper.bundle_adjustment
    adjustment.refine_focal_length = adjustment.refine_extra_params = task.options.refine_intrinsics
    adjustment.refine_principal_point = task.options.refine_principal_point == "true"
    _count_images(task, pycolmap.global_mapping(task.database, task.output, task.output, colmap))


def _hierarchical(task: _Task) -> None:
    """Runs COLMAP's hierarchical mapper."""
    colmap = pycolmap.HierarchicalPipelineOptions()
    colmap.incremental_options = incremental_options(task.options, len(image_names(task.database)))
    colmap.num_threads = colmap.incremental_options.num_threads
    colmap.num_workers = 1 if colmap.num_threads == 1 else -1
    _count_images(task, pycolmap.hierarchical_mapping(task.database, task.output, task.output, colmap))


def _triangulation(task: _Task) -> None:
    """Triangulates points with known poses. Images without a known pose are left out. Raises: ValueError if no pose is known."""
    model = pycolmap.Reconstruction()
    with pycolmap.Database.open(task.database) as rows:
        for camera in rows.read_all_cameras():
            model.add_camera_with_trivial_rig(camera)
        known = [image for image in rows.read_all_images() if image.name in task.known_poses]
    if not known:
        raise ValueError("reconstruction=triangulation needs the poses of the photos: dataset.poses=FILE with their names")
    for image in known:
        pose = np.asarray(task.known_poses[image.name], np.float64)
        cam_from_world = pycolmap.Rigid3d(pycolmap.Rotation3d(pose[:, :3]), pose[:, 3])
        posed = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image.image_id)
        model.add_image_with_trivial_frame(posed, cam_from_world)
        task.on_image()
    folder = task.output / "0"
    folder.mkdir()
    colmap = incremental_options(task.options, len(known))
    pycolmap.triangulate_points(
        model,
        task.database,
        task.output,
        folder,
        options=colmap,
        refine_intrinsics=task.options.refine_intrinsics,
        cancellation_token=task.token,
    ).write(folder)


def _count_images(task: _Task, models: Mapping[int, pycolmap.Reconstruction]) -> None:
    """Reports all images at the end, for mappers that do not report progress."""
    for model in models.values():
        for _ in range(model.num_reg_images()):
            task.on_image()


MAPPERS = {"incremental": _incremental, "global": _global, "hierarchical": _hierarchical, "triangulation": _triangulation}


def incremental_options(options: ReconstructionOptions, num_images: int) -> pycolmap.IncrementalPipelineOptions:
    """COLMAP's options for a scene of this many images."""
    colmap = pycolmap.IncrementalPipelineOptions()
    colmap.min_model_size, colmap.min_num_matches = options.min_model_size, options.min_num_matches
    colmap.num_threads, colmap.random_seed = chosen_num_threads(options, num_images), options.seed
    colmap.ba_refine_focal_length = colmap.ba_refine_extra_params = options.refine_intrinsics
    colmap.ba_refine_principal_point = options.refine_principal_point == "true"
    if options.adjustment_scale_px is not None and options.name != "triangulation":
        colmap.ba_local_function_tolerance, colmap.ba_global_function_tolerance = LOCAL_TOLERANCE, GLOBAL_TOLERANCE
        colmap.ba_global_frames_ratio = colmap.ba_global_points_ratio = GROWTH
    # COLMAP's limits are 4 px for photos of any size, and 12 px for the pose of a new image. The limit of the first pair matters
    # most: 4 px let it accept a wrong geometry if the motion is small or forward (kitti00, 1241 px: AUC@5 11.8; with 2 px 62.8).
    colmap.mapper.init_max_error = colmap.mapper.filter_max_reproj_error = options.max_error_px
    colmap.mapper.abs_pose_max_error = 3 * options.max_error_px
    triangulation = colmap.triangulation
    triangulation.merge_max_reproj_error = triangulation.complete_max_reproj_error = options.max_error_px
    colmap.extract_colors = False  # see `colors`: COLMAP cannot read all photos that we read
    colmap.triangulation.ignore_two_view_tracks = num_images > 2  # COLMAP's default would drop all points of two photos
    return colmap


def chosen_num_threads(options: ReconstructionOptions, num_images: int) -> int:
    """The option `num_threads`; 0 becomes 1 for fewer than MANY_PHOTOS photos and -1 for more."""
    return options.num_threads or (1 if num_images < MANY_PHOTOS else -1)


def run_mapper(
    database: Path,
    output: Path,
    options: ReconstructionOptions,
    known_poses: Mapping[str, np.ndarray],
    *,
    any_start: bool = False,
) -> bool:
    """Runs the mapper of the options; returns whether Ctrl-C cancelled it. `any_start`: see `_Task`."""
    if not has_verified_pairs(database):  # the hierarchical mapper would raise an IndexError
        return False
    with progress_bar(len(image_names(database)), "reconstruct", "img") as bar:
        token = pycolmap.CancellationToken()

        def count() -> None:
            bar.update()

        return _run(MAPPERS[options.name], _Task(database, output, options, known_poses, count, token, any_start=any_start))


def map_quietly(
    database: Path, output: Path, options: ReconstructionOptions, token: pycolmap.CancellationToken, *, any_start: bool = False
) -> bool:
    """Runs the mapper of the options in this thread, without a progress bar; returns whether the token was cancelled."""
    MAPPERS[options.name](_Task(database, output, options, {}, lambda: None, token, any_start=any_start))
    return bool(token.is_cancelled)


def continue_mapping(database: Path, start: Path, output: Path, options: ReconstructionOptions, min_inliers: int) -> bool:
    """Continues the model in the folder `start` with the incremental mapper; returns whether Ctrl-C cancelled it.

    The folder `output` gets the model. `min_inliers` matches of a new photo with points must fit its pose.
    """
    token = pycolmap.CancellationToken()
    return _run(_incremental, _Task(database, output, options, {}, lambda: None, token, start, min_inliers))


def _run(mapper: Callable[[_Task], None], task: _Task) -> bool:
    """Runs a mapper in a thread, so that Ctrl-C can cancel it; returns whether it was cancelled."""
    interrupted = threading.Event()

    def cancel(*_: Any) -> None:
        logger.warning("interrupted: the partial model is kept")
        interrupted.set()
        task.token.cancel()

    with on_ctrl_c(cancel), ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(mapper, task)
            while wait([future], timeout=0.1).not_done:  # Windows calls the handler of Ctrl-C only after a timeout
                pass
            future.result()
        except InterruptedError:
            return True
        finally:
            task.token.cancel()  # the pool waits for the mapper when it closes
    return interrupted.is_set()


@contextlib.contextmanager
def on_ctrl_c(handler: Callable[..., None]) -> Iterator[None]:
    """Inside the block Ctrl-C calls `handler` and raises no KeyboardInterrupt.

    It has no effect outside the main thread, or if the program handles or ignores Ctrl-C itself.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def image_names(database: Path) -> list[str]:
    """Names of all images in the database, sorted."""
    with pycolmap.Database.open(database) as rows:
        return sorted(image.name for image in rows.read_all_images())


def has_verified_pairs(database: Path) -> bool:
    """Whether there is anything to map."""
    with pycolmap.Database.open(database) as rows:
        return rows.num_verified_image_pairs() > 0


def check_images(database: Path) -> None:
    """Raises: ValueError if verified pairs in the database are of images that its table `images` does not have.

    COLMAP's mappers end with `unordered_map::at` then.
    """
    with pycolmap.Database.open(database) as rows:
        known = [image.image_id for image in rows.read_all_images()]
        pair_ids, counts = rows.read_two_view_geometry_num_inliers()
    verified = np.asarray(pair_ids, np.int64)[np.asarray(counts, np.int64) > 0]
    of_pairs = np.unique(np.concatenate([verified // MAX_NUM_IMAGES, verified % MAX_NUM_IMAGES]))
    missing = np.setdiff1d(of_pairs, known)
    if len(missing):
        pairs, images = count_of(len(verified), "verified pair"), count_of(len(of_pairs), "image")
        raise ValueError(
            f"{database} has {pairs} of {images}, but its table images lacks {len(missing)} of them, the first with "
            f"image_id={missing[0]}: it was not written completely, or two databases are mixed. Build it again, or add the "
            "images with their names and cameras"
        )
