"""A decoded photo together with its mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sfm_lightglue.images.decoding import exif_orientation, opaque_parts, open_photo, reduce_jpeg, to_rgb
from sfm_lightglue.images.limits import decoding_bytes, decoding_memory
from sfm_lightglue.images.masks import find_masks, read_mask
from sfm_lightglue.images.value_ranges import Range
from sfm_lightglue.products import Image


def load_image(
    folder: Path | str,
    name: str,
    *,
    masks: Path | str | Mapping[str, Path] | None = None,
    use_alpha: bool = True,
    ranges: Mapping[str, Range] | None = None,
    longest: int | None = None,
) -> Image:
    """The decoded photo `folder/name` with its mask, as it is stored. Its `orientation` is the EXIF code.

    Args:
        folder: Folder of the photos.
        name: Name of the photo, relative to the folder.
        masks: Folder of masks or one mask for all photos, see `find_masks`; or the files by the name of their photo, so that the
            folder is not searched for each photo.
        use_alpha: Whether transparent parts of the photo are masked out.
        ranges: The ranges of the 16-bit photos of a collection, from `camera_ranges`. Without them, the photo alone decides.
        longest: A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if its longest side then still has as many px. `full_size`
            of the result is then set. None decodes all pixels.

    Raises:
        UnreadableImage: If the photo or its mask cannot be decoded completely and safely, is too small, or they do not fit.
    """
    if masks is not None and not isinstance(masks, Mapping):
        masks = find_masks(masks, [name], folder).files
    with open_photo(Path(folder) / name) as image:
        orientation, size = exif_orientation(image), image.size
        if longest is not None:
            reduce_jpeg(image, longest)
        full_size = None if image.size == size else size
        with decoding_memory.reserved(decoding_bytes(image.size, image.mode)):
            pixels = to_rgb(image, "own" if ranges is None else ranges.get(name, "bits"))
            mask = opaque_parts(image) if use_alpha else None
    if masks and name in masks:
        painted = read_mask(masks[name], (pixels.shape[1], pixels.shape[0]), orientation)
        mask = painted if mask is None else mask & painted
    return Image(name, pixels, mask, full_size, orientation)
