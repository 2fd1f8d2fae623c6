"""Photos and a model for COLMAP's other programs, if COLMAP cannot read the photos: WebP, AVIF, JPEG 2000, GIF, HEIC.

COLMAP can neither read nor write these formats, so its `image_undistorter` gives no pictures for them. Photos that are stored
mirrored (EXIF 2, 4, 5, 7) need a copy too: the model is that of the photo flipped left-right, see `orientation.colmap_keypoints`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from sfm_lightglue.exports.source import mirrored_photos
from sfm_lightglue.files import result_exists
from sfm_lightglue.images import camera_ranges, load_image
from sfm_lightglue.images.decoding import open_photo
from sfm_lightglue.model_files import read_model

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "PPM")
"""What COLMAP reads and writes: by extension when it writes, by content when it reads."""


def write_for_colmap(
    model: Path | str, images: Path | str, output: Path | str, *, features: Path | str | None = None
) -> list[str]:
    """Writes `output/images` and `output/sparse`, for example for `colmap image_undistorter`.

    Photos that COLMAP cannot read become PNG files with `.png` added to their names, in the model too. The others are linked, or
    copied if the system allows no links. The pixels are those that the features were found in, as stored; photos whose features
    were found in a mirrored photo become PNG files that are flipped left-right, as in the model.

    Args:
        model: Folder of a model, such as `OUT/reconstruction/0`.
        images: Folder of the photos.
        output: Folder to write. It must not exist, or be empty.
        features: File of features that the model was made from, which says what photos are mirrored. Default: `features.h5` in
            the folder of the run, two folders above the model. If that does not exist, no photo counts as mirrored.

    Returns:
        Names of the photos that became PNG files, sorted.

    Raises:
        FileNotFoundError: If the model or the given `features` does not exist.
        ValueError: If the model is damaged, or `output` has files.
        UnreadableImage: If a photo of the model is missing or cannot be decoded.
    """
    images, output = Path(images), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} has other files already: give a new folder")
    reconstruction = read_model(model)
    by_name = {reconstruction.image(image_id).name: image_id for image_id in reconstruction.reg_image_ids()}
    if features is not None and not result_exists(features):
        raise FileNotFoundError(f"the file of features {features} does not exist")
    mirrored = mirrored_photos(Path(features or Path(model).absolute().parent.parent / "features.h5"), by_name)
    ranges = camera_ranges(images, sorted(by_name))
    converted = []
    for name, image_id in sorted(by_name.items()):
        with open_photo(images / name) as photo:
            is_readable = photo.format in FORMATS and Path(name).suffix.lower() in EXTENSIONS and name not in mirrored
        copy = output / "images" / (name if is_readable else f"{name}.png")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if is_readable:
            _link((images / name).resolve(), copy)
        else:
            pixels = load_image(images, name, use_alpha=False, ranges=ranges).pixels
            PILImage.fromarray(np.fliplr(pixels) if name in mirrored else pixels).save(copy)
            reconstruction.image(image_id).name = f"{name}.png"
            converted.append(name)
    (output / "sparse").mkdir(parents=True, exist_ok=True)
    reconstruction.write(output / "sparse")
    return converted


def _link(target: Path, link: Path) -> None:
    try:
        link.symlink_to(target)
    except OSError:  # Windows allows links only to some users
        shutil.copyfile(target, link)
