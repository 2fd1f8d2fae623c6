"""What is exported: a model of a finished run, its photos and masks."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pycolmap

from sfm_lightglue import georeference
from sfm_lightglue.files import result_exists
from sfm_lightglue.images import find_masks
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.orientation import MIRRORED
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import H5Reader

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export. Each format has some of them, see `exports.FORMATS`."""

    model: int | None = None
    """Number of the model; None for the one with most photos."""
    photos: Path | None = None
    """Folder of the photos; None for where the run found them."""
    masks: Path | None = None
    """Folder of masks or one mask for all photos; None for the masks of the run."""
    with_masks: bool = True
    """Whether masks are exported."""
    alpha: bool = False
    """Whether masks also go into the alpha channel of the photos, which become PNG files."""
    factors: tuple[int, ...] = ()
    """Sizes of smaller copies of the photos: 2 for half the width and height in `images_2`. From 2, 4 and 8."""


@dataclass(frozen=True)
class Source:
    """A model of a run, with its photos."""

    folder: RunFolder
    model: Path
    """Folder of the model."""
    reconstruction: pycolmap.Reconstruction
    """The model, read for this export: formats change it."""
    names: tuple[str, ...]
    """Sorted names of the registered photos."""
    mirrored: frozenset[str]
    """Names of the photos whose features were found in a mirrored photo: the model is that of the photo flipped left-right."""

    def cameras(self) -> list[pycolmap.Camera]:
        """The cameras of the registered photos, in the order of their ids, as they are in the model now."""
        used = {self.reconstruction.image(image_id).camera_id for image_id in self.reconstruction.reg_image_ids()}
        return [self.reconstruction.camera(camera_id) for camera_id in sorted(used)]

    def flat_cameras(self, program: str) -> list[pycolmap.Camera]:
        """`cameras`, for programs without cameras of the whole sphere.

        Raises: ValueError if there is one: it has no focal length, and COLMAP crashes when it is asked for it.
        """
        cameras = self.cameras()
        for camera in cameras:
            if camera.is_spherical():
                raise ValueError(
                    f"camera {camera.camera_id} is {camera.model_name}: this export to {program} has no camera of the whole "
                    "sphere. Export to colmap, or cut the panoramas into perspective views"
                )
        return cameras

    def photos(self, options: ExportOptions) -> Path:
        """Folder of the photos.

        Raises: FileNotFoundError if it is unknown, or does not exist.
        """
        photos = options.photos or self.folder.photos()
        if photos is None or not photos.is_dir():
            where = f"{photos} does not exist" if photos else "summary.json does not say where they are"
            raise FileNotFoundError(f"the photos of {self.folder.path} are missing ({where}): add photos=DIR")
        return photos

    def masks(self, options: ExportOptions, photos: Path) -> Mapping[str, Path]:
        """Name of a photo -> its mask file.

        Raises: FileNotFoundError if the masks of the run do not exist any more.
        """
        masks = options.masks or self.folder.masks()
        if not options.with_masks or masks is None:
            return {}
        if not masks.exists():
            raise FileNotFoundError(f"the masks {masks} do not exist: add masks=PATH, or masks=none to leave them out")
        found = find_masks(masks, self.names, photos)
        found.log()
        return found.files

    def copy_georeference(self, target: Path) -> None:
        """Copies `georeference.json` of the model to the folder `target`, if the model has one."""
        if (self.model / georeference.FILE_NAME).is_file():
            shutil.copyfile(self.model / georeference.FILE_NAME, target / georeference.FILE_NAME)

    def __str__(self) -> str:
        """One line for the terminal: what is exported."""
        models = self.folder.models()
        which = f"model {self.model.name} of {len(models)}" if len(models) > 1 else "the model"
        what = f"{count_of(len(self.names), 'photo')} and {count_of(self.reconstruction.num_points3D(), 'point')}"
        more = "; model=N exports another one" if len(models) > 1 else ""
        return f"{what} of {which} in {self.folder.reconstruction}{more}"


def open_source(output: Path | str, options: ExportOptions) -> Source:
    """The chosen model of the run in the folder `output`.

    Raises:
        FileNotFoundError: If the folder does not exist, or nothing was reconstructed in it.
        ValueError: If the chosen model does not exist or is damaged.
    """
    folder = RunFolder(output)
    if not folder.path.is_dir():
        raise FileNotFoundError(f"the output folder {folder.path} does not exist: give the folder of a run that is finished")
    models = {int(path.name): path for path in folder.models()}
    if not models:
        raise FileNotFoundError(
            f"{folder.path} has no model to export: expected {folder.reconstruction / '0'}. The end of the log in {folder.logs}, "
            "or the stage reconstruct run again, says why"
        )
    model = folder.largest_model() if options.model is None else models.get(options.model)
    if model is None:
        raise ValueError(f"{folder.path} has no model {options.model}: model={'|'.join(map(str, models))}")
    reconstruction = folder.open_model(model)
    names = tuple(sorted(reconstruction.image(image_id).name for image_id in reconstruction.reg_image_ids()))
    if not names:
        raise ValueError(f"the model {model} has no photos: nothing can be exported")
    return Source(folder, model, reconstruction, names, mirrored_photos(folder.features, names))


def mirrored_photos(features: Path, names: Iterable[str]) -> frozenset[str]:
    """Those of the photos whose features were found in a mirrored photo; none if the file of features does not exist."""
    if not result_exists(features):
        return frozenset()
    with H5Reader(features) as reader:
        return frozenset(name for name, orientation in reader.orientations(names).items() if orientation in MIRRORED)
