"""Sizes of sensors by make and model of the camera, from the table inside COLMAP."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from PIL import ExifTags
from PIL import Image as PILImage

PROBE_SIZE = (64, 48)
PROBE_FOCAL_MM = 10


@functools.cache
def sensor_width_mm(make: str, model: str) -> float | None:
    """The longer side of a camera's sensor, mm; None if COLMAP does not know the camera.

    COLMAP offers its table only through photos: it reads a small photo that names the camera, and gives its focal length in px.
    """
    if not make or not model:
        return None
    import pycolmap  # most photos need no table, and the import takes 0.3 s

    exif = PILImage.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = make, model
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLength] = PROBE_FOCAL_MM
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.jpg"
        PILImage.new("L", PROBE_SIZE).save(path, exif=exif)
        bitmap = pycolmap.Bitmap.read(path, as_rgb=False)
    focal_px = bitmap.exif_focal_length() if bitmap is not None else None
    return PROBE_FOCAL_MM * max(PROBE_SIZE) / focal_px if focal_px else None
