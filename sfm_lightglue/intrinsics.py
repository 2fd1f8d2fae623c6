"""Intrinsics that people give: a camera on the command line, files of intrinsics, and COLMAP's models.

Model names, the order of the parameters and pixel coordinates follow COLMAP: the centre of the top-left pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pycolmap

from sfm_lightglue.model_files import read_model
from sfm_lightglue.photo_names import PhotoNames
from sfm_lightglue.registry import closest
from sfm_lightglue.text_files import SEPARATOR, content_lines, read_text

logger = logging.getLogger(__name__)

MODELS = tuple(model for model in pycolmap.CameraModelId.__members__ if model != "INVALID")
"""COLMAP's names of camera models."""
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
MAX_ASPECT_DIFFERENCE = 0.01
"""Sizes whose width / height differ by less than this share are the same picture at two resolutions."""


@dataclass(frozen=True)
class Camera:
    """Intrinsics of a camera, in COLMAP's conventions."""

    model: str
    """COLMAP's model name, such as SIMPLE_RADIAL."""
    size: tuple[int, int]
    """(width, height) px."""
    params: tuple[float, ...]
    """Parameters in the order of the model; lengths in px."""
    has_prior_focal_length: bool
    """Whether the focal length is known (given, or from EXIF), not guessed."""

    def to_colmap(self) -> pycolmap.Camera:
        """COLMAP's record of the camera.

        Raises: ValueError if the model does not exist, the number of parameters is wrong, a parameter is not finite, or a focal
        length is not positive.
        """
        if self.model not in MODELS:
            raise ValueError(f"there is no camera model {self.model!r}. {closest(self.model, MODELS)}")
        camera = pycolmap.Camera(
            model=self.model,
            width=self.size[0],
            height=self.size[1],
            params=list(self.params),
            has_prior_focal_length=self.has_prior_focal_length,
        )
        if not camera.verify_params():
            expected = pycolmap.Camera.create_from_model_name(1, self.model, 1.0, 2, 2).params_info
            raise ValueError(f"camera model {self.model} takes the parameters {expected}, but {len(self.params)} were given")
        if not np.isfinite(self.params).all() or any(self.params[index] <= 0 for index in camera.focal_length_idxs()):
            raise ValueError(f"camera parameters must be finite and focal lengths positive, found {self.params}")
        return camera


def parse_camera(text: str) -> Camera | None:
    """A camera of size (1, 1) from `MODEL,param,param,...`, `fx,fy,cx,cy` or `f,cx,cy`; None if `text` has another form.

    Commas, colons or blanks separate the values, and letter case does not matter. Four numbers are a PINHOLE camera and three a
    SIMPLE_PINHOLE camera.

    Raises: ValueError if the model does not exist, or the parameters do not fit it.
    """
    match = re.fullmatch(r"(?:([A-Za-z][A-Za-z_-]*)(?=[,:\s]|$))?\s*[,:]?\s*(.*)", text.strip())
    if match is None or not (match[1] or re.match(NUMBER, match[2])):
        return None
    values = re.split(r"\s*[,:]\s*|\s+", match[2]) if match[2] else []
    model = match[1].upper().replace("-", "_") if match[1] else {3: "SIMPLE_PINHOLE", 4: "PINHOLE"}.get(len(values))
    if match[1] and model not in MODELS and not any(re.fullmatch(NUMBER, value) for value in values):
        return None  # words are a misspelt choice or file, not a camera
    try:
        params = tuple(float(value) for value in values)
    except ValueError as error:
        raise ValueError(f"database.intrinsics={text!r}: the parameters of a camera must be numbers") from error
    if model is None:
        raise ValueError(
            f"database.intrinsics={text!r} has {len(params)} numbers: expected fx,fy,cx,cy or f,cx,cy, or a model in front of "
            "them, for example SIMPLE_RADIAL,f,cx,cy,k"
        )
    camera = Camera(model, (1, 1), params, True)
    camera.to_colmap()
    return camera


def read_intrinsics(path: Path | str) -> dict[str, Camera]:
    """Cameras by name from a file with lines `name MODEL width height param param ...`, hloc's format of query lists.

    A name is a photo, a folder (`cam1/`) or a pattern (`cam1/*.jpg`, `*`). Blank lines and comments (#) are skipped. Blanks,
    tabs, commas or semicolons separate the columns.

    Raises: FileNotFoundError; ValueError with the number of the line if a line has another form, or gives a name a second camera
    that differs.
    """
    cameras: dict[str, Camera] = {}
    gap = f"(?:{SEPARATOR})"
    pattern = re.compile(rf"(.+?){gap}([A-Za-z_-]+){gap}(\d+){gap}(\d+)((?:{gap}{NUMBER})+)\s*[,;]?")
    for number, line in content_lines(path, "file of intrinsics"):
        match = pattern.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{path}:{number}: expected `name MODEL width height param param ...`, found {line[:200]!r}")
        name, model, width, height, params = match.groups()
        name = name.strip('"')
        values = tuple(float(value) for value in re.findall(NUMBER, params))
        camera = Camera(model.upper().replace("-", "_"), (int(width), int(height)), values, True)
        try:
            camera.to_colmap()
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if cameras.setdefault(name, camera) != camera:
            raise ValueError(f"{path}:{number}: {name!r} has another camera in an earlier line: remove one of them")
    return cameras


def read_colmap_model(folder: Path) -> dict[str, Camera]:
    """Cameras by image name from a COLMAP model; the name `*` has the camera of all other photos if the model has only one.

    Raises: ValueError if the folder holds no model, or a damaged one.
    """
    try:
        model = read_model(folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"database.intrinsics={folder} is a folder, but not a COLMAP model: {error}") from error
    known = {number: _from_colmap(camera) for number, camera in model.cameras.items()}
    return _with_default({image.name: known[image.camera_id] for image in model.images.values()}, [*known.values()])


def read_given_cameras(path: Path) -> dict[str, Camera]:
    """Cameras by photo, folder or pattern from a file of intrinsics, from COLMAP's `cameras.txt`, or from a COLMAP model.

    In `cameras.txt` the names are numbers. The file `images.txt` beside it then says which photo has which camera; without it,
    there must be one camera, which all photos share. A model is given as its folder, or as one of its `.bin` files.

    Raises: FileNotFoundError; ValueError as in `read_intrinsics`, or if several cameras come without `images.txt`.
    """
    if path.is_dir():
        return read_colmap_model(path)
    if path.suffix == ".bin":
        return read_colmap_model(path.parent)
    cameras = read_intrinsics(path)
    if not cameras or not all(name.isdigit() for name in cameras):
        return cameras
    images = path.with_name("images.txt")
    if images.is_file():
        return _with_default(_read_camera_of_images(images, cameras, path), [*cameras.values()])
    if len(cameras) > 1:
        raise ValueError(
            f"{path} has {len(cameras)} cameras of COLMAP, but nothing says which photo has which: put COLMAP's images.txt "
            "beside it, or write lines `name MODEL width height param ...` with photos, folders or patterns as names"
        )
    return {"*": next(iter(cameras.values()))}


def find_camera_of_photos(
    cameras: Mapping[str, Camera], names: Iterable[str], images: Path | str | None = None
) -> dict[str, Camera]:
    """The camera of each photo, from cameras by photo, folder or pattern. Photos without one are missing.

    A line with the name of the photo comes first, then the longest folder or pattern that fits. `*` stands for any text and `?`
    for one character.
    """
    photos = PhotoNames(names, images)
    found = {text: name for text in cameras if (name := photos.find(text)) is not None}
    chosen = photos.match("the intrinsics", {text: cameras[text] for text in found})
    folders = {str(parent) for name in photos.names for parent in PurePosixPath(name).parents}
    patterns = {text: pattern for text in cameras if text not in found and (pattern := _pattern(text, folders))}
    rest = [name for name in photos.names if name not in chosen]
    for text in sorted(patterns, key=lambda text: (-len(text), text)):
        fitting = [name for name in rest if patterns[text].fullmatch(name)]
        if not fitting and text != "*":
            logger.warning("the intrinsics for %r are not used: no photo fits, or all of them have a more exact line", text)
        chosen |= dict.fromkeys(fitting, cameras[text])
        rest = [name for name in rest if name not in chosen] if fitting else rest
    return {name: chosen[name] for name in photos.names if name in chosen}


def wrong_size(name: str, camera: Camera, size: tuple[int, int]) -> str:
    """A message for a camera that is for another size than the photo, with what to do."""
    given, found = (f"{width} x {height} px" for width, height in (camera.size, size))
    message = f"the intrinsics of {name!r} are for {given}, but the photo has {found}"
    if camera.size == size[::-1]:
        return f"{message}: the photo was turned by 90 degrees; give the turned photos a line with intrinsics of their own"
    scale_x, scale_y = (side / given for side, given in zip(size, camera.size, strict=True))
    if abs(scale_x / scale_y - 1) < MAX_ASPECT_DIFFERENCE:
        scaled = camera.to_colmap()
        scaled.rescale(*size)
        params = " ".join(f"{value:.6g}" for value in scaled.params)
        return f"{message}: if the photo was resized by {scale_x:.4g}, give {camera.model} {size[0]} {size[1]} {params}"
    return f"{message}, which has another shape: a cropped photo needs a calibration of its own"


def _pattern(text: str, folders: set[str]) -> re.Pattern[str] | None:
    """What a pattern, or one of the `folders`, fits: `cam1` and `cam1/` fit all photos of the folder. None for other names."""
    text = text.strip().replace("\\", "/").removeprefix("./")
    if "*" not in text and "?" not in text:
        if not text.endswith("/") and text not in folders:
            return None
        text = f"{text.rstrip('/')}/*"
    return re.compile(re.escape(text).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)


def _from_colmap(camera: pycolmap.Camera) -> Camera:
    params = tuple(float(value) for value in camera.params)
    return Camera(camera.model.name, (camera.width, camera.height), params, True)


def _with_default(cameras: dict[str, Camera], known: list[Camera]) -> dict[str, Camera]:
    """The cameras, and a line `*` if there is only one, for photos that COLMAP did not register."""
    return cameras | ({"*": known[0]} if len(set(known)) == 1 else {})


def _read_camera_of_images(path: Path, cameras: Mapping[str, Camera], cameras_path: Path) -> dict[str, Camera]:
    """Camera by image name from COLMAP's `images.txt`: every second line holds points and is not read. Raises: ValueError."""
    found: dict[str, Camera] = {}
    is_points = False
    for number, line in enumerate(read_text(path, "images of COLMAP").split("\n"), 1):
        if line.startswith("#"):
            continue
        match = re.fullmatch(rf"\s*\d+(?:\s+{NUMBER}){{7}}\s+(\d+)\s+(\S.*?)\s*", line)
        if is_points or match is None:
            is_points = False
            continue
        if match[1] not in cameras:
            raise ValueError(f"{path}:{number}: camera {match[1]} is not in {cameras_path}")
        found[match[2]], is_points = cameras[match[1]], True
    return found
