"""Public benchmarks in the layouts of their own archives and of the evaluations that made them known.

HPatches; MegaDepth-1500 and ScanNet-1500 as glue-factory, LoFTR and SuperGlue lay them out; ETH3D's undistorted DSLR photos;
phototourism of the Image Matching Challenge (2020 and 2021).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

from sfm_lightglue.evaluation.arrays import read_npz
from sfm_lightglue.evaluation.sets import (
    IDENTITY,
    BenchmarkSet,
    Loader,
    Resize,
    TruePair,
    first_of,
    own_homographies,
    own_poses,
    pose_of,
    posed_camera,
)
from sfm_lightglue.model_files import read_model
from sfm_lightglue.poses import Pose, PosedCamera
from sfm_lightglue.storage import read_calibration
from sfm_lightglue.text_files import content_lines

LARGE_SEQUENCES = frozenset(
    ("i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding", "v_artisans", "v_astronautis", "v_talent")
)
"""Sequences of HPatches with large photos, which the tables since D2-Net leave out: 540 pairs of 108 sequences remain."""
MIN_COVISIBLE = 500
"""ETH3D: smallest number of common points of a pair, as in glue-factory."""
COVISIBILITY = "keys-th-0.1.npy"
"""Phototourism: the list of pairs with a co-visibility above 0.1, as in the challenge."""
SCANNET_SIZE = (640, 480)
"""(width, height) px to which LoFTR's intrinsics of ScanNet belong."""
PHOTO_ENDINGS = (".ppm", ".png", ".jpg", ".jpeg")


def open_set(folder: Path | str) -> BenchmarkSet:
    """The set in a folder, of whatever layout.

    Raises:
        FileNotFoundError: The folder does not exist, or images that the ground truth names are missing.
        ValueError: No known layout, or files that cannot be read; the message says what was expected.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"the benchmark set {folder} does not exist: expected a folder")
    for layout, is_here, load, resize in LAYOUTS:
        if is_here(folder):
            images, pairs = load(folder)
            if not pairs:
                raise ValueError(f"{folder} has the layout of {layout}, but no pairs: is the set complete?")
            return BenchmarkSet(folder.name, layout, images, tuple(pairs), resize)
    known = ", ".join(dict.fromkeys(layout for layout, *_ in LAYOUTS))
    raise ValueError(f"{folder} has none of the layouts that are known ({known}): docs/guide/evaluation.md lists their files")


# --- HPatches ------------------------------------------------------------------------------------------------------------


def hpatches(folder: Path) -> tuple[Path, list[TruePair]]:
    """Sequences `i_*` and `v_*` with photos 1 to 6 and files `H_1_2` to `H_1_6`."""
    pairs = []
    for sequence in sorted(path.parent for path in folder.glob("[iv]_*/H_1_2")):
        if sequence.name not in LARGE_SEQUENCES:
            for file in sorted(sequence.glob("H_1_*")):
                homography = _numbers(file, (3, 3))
                names = [f"{sequence.name}/{_photo(sequence, stem)}" for stem in ("1", file.name.rsplit("_", 1)[1])]
                pairs.append(TruePair(names[0], names[1], homography=homography))
    return folder, pairs


def _photo(folder: Path, stem: str) -> str:
    found = first_of(folder / f"{stem}{ending}" for ending in PHOTO_ENDINGS)
    if found is None:
        raise FileNotFoundError(f"{folder} has no photo {stem} ({', '.join(PHOTO_ENDINGS)}): is the set complete?")
    return found.name


# --- lists of pairs with cameras: glue-factory, SuperGlue ----------------------------------------------------------------------


def calibrated_list(folder: Path) -> tuple[Path, list[TruePair]]:
    """Lines `name0 name1 K0 K1 R t` (9, 9, 9 and 3 numbers), or with a pose of 16; glue-factory's `pairs_calibrated.txt`."""
    return _listed(folder, folder / "pairs_calibrated.txt", has_turns=False)


def superglue_list(folder: Path) -> tuple[Path, list[TruePair]]:
    """Lines `name0 name1 turn0 turn1 K0 K1 T_0to1` (9, 9 and 16 numbers); SuperGlue's `*_pairs_with_gt.txt`."""
    return _listed(folder, next(iter(sorted(folder.glob("*_with_gt.txt")))), has_turns=True)


def _listed(folder: Path, file: Path, *, has_turns: bool) -> tuple[Path, list[TruePair]]:
    lines = [(number, line.split()) for number, line in content_lines(file, "list of pairs")]
    if not lines:
        return folder, []
    images = first_of(root for root in (folder / "images", folder) if (root / lines[0][1][0]).exists()) or folder
    pairs = []
    for number, (name0, name1, *words) in lines:
        if has_turns and words[:2] != ["0", "0"]:
            raise ValueError(f"{file}:{number}: turned images are not supported")
        try:
            values = np.array([float(word) for word in words[2 * has_turns :]])
            matrix0, matrix1 = values[:9].reshape(3, 3), values[9:18].reshape(3, 3)
            rest = values[18:]
            pose = pose_of(rest.reshape(4, 4)) if len(rest) == 16 else Pose(rest[:9].reshape(3, 3), rest[9:].reshape(3))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {error}; expected two names, two matrices of 9 numbers and a pose") from error
        cameras = posed_camera(images / name0, matrix0, IDENTITY), posed_camera(images / name1, matrix1, pose)
        pairs.append(TruePair(name0, name1, cameras=cameras))
    return images, pairs


def posed_views(folder: Path) -> tuple[Path, list[TruePair]]:
    """`views.txt` with lines `name R t MODEL width height params`, and `pairs.txt`; glue-factory's posed images."""
    cameras: dict[str, PosedCamera] = {}
    for number, line in content_lines(folder / "views.txt", "list of views"):
        name, *words = line.split()
        try:
            numbers = np.array([float(word) for word in words[:12]])
            matrix = _pinhole_matrix(words[12], [float(word) for word in words[15:]])
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{folder / 'views.txt'}:{number}: {error}; expected `name R t MODEL width height params`"
            ) from error
        cameras[name] = posed_camera(folder / "images" / name, matrix, Pose(numbers[:9].reshape(3, 3), numbers[9:]))
    names = [line.split()[:2] for _, line in content_lines(folder / "pairs.txt", "list of pairs")]
    return folder / "images", [TruePair(first, second, cameras=(cameras[first], cameras[second])) for first, second in names]


def _pinhole_matrix(model: str, params: list[float]) -> np.ndarray:
    if model not in ("PINHOLE", "SIMPLE_PINHOLE"):
        raise ValueError(f"the camera model {model} has distortion: undistort the images first")
    fx, fy, cx, cy = params if model == "PINHOLE" else (params[0], *params)
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


# --- LoFTR ---------------------------------------------------------------------------------------------------------------


def loftr_megadepth(folder: Path) -> tuple[Path, list[TruePair]]:
    """`*scene_info*/*.npz` beside the images of MegaDepth (`Undistorted_SfM/`), as LoFTR's test sets."""
    pairs = []
    for file in _scene_infos(folder):
        info = read_npz(file)
        cameras: dict[int, PosedCamera] = {}
        for entry in info["pair_infos"]:
            indices = [int(index) for index in entry[0]]
            for index in set(indices) - cameras.keys():
                path = folder / str(info["image_paths"][index])
                cameras[index] = posed_camera(path, info["intrinsics"][index], pose_of(info["poses"][index]))
            names = [str(info["image_paths"][index]) for index in indices]
            pairs.append(TruePair(names[0], names[1], cameras=(cameras[indices[0]], cameras[indices[1]])))
    return folder, pairs


def _scene_infos(folder: Path) -> list[Path]:
    return sorted(folder.glob("*scene_info*/*.npz"))


def loftr_scannet(folder: Path) -> tuple[Path, list[TruePair]]:
    """`test.npz` and `intrinsics.npz` beside the folders of scenes with `color/` and `pose/`, as LoFTR's ScanNet-1500."""
    listed, intrinsics = read_npz(folder / "test.npz")["name"], read_npz(folder / "intrinsics.npz")
    pairs = []
    for scene, scan, first, second in listed.tolist():
        place = f"scene{scene:04d}_{scan:02d}"
        cameras = [_scannet_camera(folder / place, stem, intrinsics[place]) for stem in (first, second)]
        names = [f"{place}/color/{stem}.jpg" for stem in (first, second)]
        pairs.append(TruePair(names[0], names[1], cameras=(cameras[0], cameras[1])))
    return folder, pairs


def _scannet_camera(scene: Path, stem: int, matrix: np.ndarray) -> PosedCamera:
    """The camera of a frame. Files of poses are world_from_cam; intrinsics belong to frames of SCANNET_SIZE."""
    pose = pose_of(np.linalg.inv(_numbers(scene / "pose" / f"{stem}.txt", (4, 4))))
    camera = posed_camera(scene / "color" / f"{stem}.jpg", matrix, pose)
    scale = np.diag([camera.size[0] / SCANNET_SIZE[0], camera.size[1] / SCANNET_SIZE[1], 1.0])
    return PosedCamera(pose.rotation, pose.translation, scale @ camera.camera_matrix[:3, :3], camera.size)


# --- ETH3D -----------------------------------------------------------------------------------------------------------------


def eth3d(folder: Path) -> tuple[Path, list[TruePair]]:
    """Scenes with `images/` and `dslr_calibration_undistorted/` (COLMAP's text files); pairs with many common points."""
    pairs = []
    for scene in _with(folder, "dslr_calibration_undistorted/images.txt"):
        model = read_model(scene / "dslr_calibration_undistorted")
        images = sorted((model.image(number) for number in model.reg_image_ids()), key=lambda image: image.name)
        seen = {image.name: {point.point3D_id for point in image.points2D if point.has_point3D()} for image in images}
        prefix = f"{scene.relative_to(folder).as_posix()}/images/".removeprefix("./")
        cameras = {}
        for image in images:
            camera = model.camera(image.camera_id)
            matrix = _pinhole_matrix(camera.model.name, list(camera.params))
            cameras[image.name] = posed_camera(folder / f"{prefix}{image.name}", matrix, pose_of(image.cam_from_world().matrix()))
        for name0, name1 in combinations(cameras, 2):
            if len(seen[name0] & seen[name1]) >= MIN_COVISIBLE:
                pairs.append(TruePair(prefix + name0, prefix + name1, cameras=(cameras[name0], cameras[name1])))
    return folder, pairs


# --- Image Matching Challenge ------------------------------------------------------------------------------------------------


def phototourism(folder: Path) -> tuple[Path, list[TruePair]]:
    """Scenes `SCENE/set_100` with `images/`, `calibration/calibration_*.h5` and lists of pairs in `new-vis-pairs/`."""
    pairs = []
    for chosen in _phototourism_sets(folder):
        lists = first_of(chosen / name / COVISIBILITY for name in ("new-vis-pairs", "vis-pairs"))
        if lists is None:
            raise FileNotFoundError(f"{chosen}/new-vis-pairs/{COVISIBILITY} does not exist: it lists the pairs of the challenge")
        prefix = f"{chosen.relative_to(folder).as_posix()}/images/".removeprefix("./")
        cameras: dict[str, PosedCamera] = {}
        for key in sorted(str(key) for key in np.load(lists, allow_pickle=False)):
            names = key.split("-")
            for name in (name for name in names if name not in cameras):
                values = read_calibration(chosen / "calibration" / f"calibration_{name}.h5", ("K", "R", "T"))
                pose = Pose(values["R"], values["T"].reshape(3))
                cameras[name] = posed_camera(chosen / "images" / f"{name}.jpg", values["K"], pose)
            full = [f"{prefix}{name}.jpg" for name in names]
            pairs.append(TruePair(full[0], full[1], cameras=(cameras[names[0]], cameras[names[1]])))
    return folder, pairs


def _phototourism_sets(folder: Path) -> list[Path]:
    """The largest set of each scene: `set_100` beside small ones. The folder is a scene or holds scenes."""
    found = [path.parent for pattern in ("set_*/calibration", "*/set_*/calibration") for path in folder.glob(pattern)]
    largest = {path.parent: path for path in sorted(found, key=lambda path: int(re.sub(r"\D", "", path.name) or 0))}
    return [largest[scene] for scene in sorted(largest)]


# --- details -------------------------------------------------------------------------------------------------------------


def _numbers(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """The numbers of a text file as float64 of this shape. Raises: ValueError if there are more or fewer."""
    try:
        return np.array([float(word) for word in file.read_text(encoding="utf-8").split()]).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; expected {shape[0]} rows of {shape[1]} numbers") from error


def _with(folder: Path, file: str) -> Iterator[Path]:
    """The folder itself or its sub-folders that have a file."""
    yield from sorted(path for path in (folder, *folder.iterdir()) if (path / file).is_file())


LAYOUTS: tuple[tuple[str, Callable[[Path], bool], Loader, Resize | None], ...] = (
    ("homographies.txt", lambda folder: (folder / "homographies.txt").is_file(), own_homographies, None),
    (
        "poses.txt and pairs.txt",
        lambda folder: all((folder / name).is_file() for name in ("poses.txt", "pairs.txt")),
        own_poses,
        None,
    ),
    ("HPatches", lambda folder: any(folder.glob("[iv]_*/H_1_2")), hpatches, Resize("short", 480)),
    ("glue-factory's list", lambda folder: (folder / "pairs_calibrated.txt").is_file(), calibrated_list, None),
    ("glue-factory's views", lambda folder: (folder / "views.txt").is_file(), posed_views, None),
    ("SuperGlue's list", lambda folder: any(folder.glob("*_with_gt.txt")), superglue_list, None),
    ("LoFTR's ScanNet", lambda folder: (folder / "test.npz").is_file(), loftr_scannet, Resize("long", 640)),
    ("LoFTR's MegaDepth", lambda folder: bool(_scene_infos(folder)), loftr_megadepth, None),
    ("ETH3D", lambda folder: any(_with(folder, "dslr_calibration_undistorted/images.txt")), eth3d, None),
    ("phototourism", lambda folder: bool(_phototourism_sets(folder)), phototourism, None),
)
"""Name, whether a folder has it, loader, size of the published protocol."""
