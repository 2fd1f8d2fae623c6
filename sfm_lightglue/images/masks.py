"""Masks: which file is the mask of a photo, and its pixels in the frame of the stored photo.

A mask says where keypoints are wanted: black or transparent parts get none.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image as PILImage

from sfm_lightglue.images.decoding import UnreadableImage, exif_orientation, opaque_parts, open_photo
from sfm_lightglue.images.listing import find_pictures
from sfm_lightglue.images.masks_among_photos import FOR_ALL, part_of
from sfm_lightglue.images.names import mask_names, stem, warn_once
from sfm_lightglue.mistakes import count_of, shortened
from sfm_lightglue.orientation import UPRIGHT, turn_pixels_back, upright_size
from sfm_lightglue.photo_names import folded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskFiles:
    """The masks of a collection of photos."""

    folder: Path
    """Folder of the masks, or the mask for all photos."""
    files: Mapping[str, Path]
    """Name of a photo -> its mask. Photos without a mask are missing."""
    without: tuple[str, ...] = ()
    """Names of the photos that have no mask."""
    unused: tuple[str, ...] = ()
    """Pictures in the folder of masks that belong to no photo, relative to the folder."""

    def log(self) -> None:
        """Logs how many photos have a mask. Warns about photos without a mask and masks without a photo."""
        total = len(self.files) + len(self.without)
        logger.info("masks: %d of %d photos", len(self.files), total)
        if self.without:
            logger.warning(
                "%d of %d photos have no mask and are used whole: %s", len(self.without), total, shortened(self.without)
            )
        if self.unused:
            logger.warning(
                "%s to no photo: %s", count_of(len(self.unused), "mask belongs", "masks belong"), shortened(self.unused)
            )


def find_masks(masks: Path | str, names: Sequence[str], images: Path | str | None = None) -> MaskFiles:
    """The mask of each photo.

    A mask for one photo comes before a mask for its folder, and this before a mask for all photos. For `cam1/0000.jpg` these are

    - `cam1/0000.jpg.png` (as COLMAP names it), `cam1/0000.png`, `cam1/0000_mask.png`: the mask of this photo,
    - `cam1/mask.png`, `cam1.png`: the mask of all photos of the folder,
    - `mask.png`, or a file given as `masks`: the mask of all photos.

    Any other picture format does as well. A name may differ from the photo's in upper and lower case, and in how Unicode writes
    an accent. A mask that is spelled like one photo is not used for another one. If all photos lie in one folder, the masks may
    be relative to that folder.

    Args:
        masks: Folder of masks, searched recursively, or a single mask.
        names: Names of all photos.
        images: Folder of the photos, if the masks may lie in it: a photo is never a mask.

    Raises:
        FileNotFoundError: If `masks` does not exist.
        ValueError: If two masks fit a photo.
    """
    masks = Path(masks)
    if masks.is_file():
        return MaskFiles(masks, dict.fromkeys(names, masks))
    if not masks.is_dir():
        raise FileNotFoundError(f"the folder of masks {masks} does not exist: give a folder of masks, or one mask for all photos")
    part = None if images is None else part_of(Path(images), masks)
    photos = set() if part is None else {name.removeprefix(part) for name in names if name.startswith(part)}
    pictures = [picture for picture in find_pictures(masks) if picture not in photos]
    chosen = _assign(pictures, names)
    if not chosen and (common := part or _common_folder(names)):  # masks/0000.png beside images/0000.jpg
        below = {name: name.removeprefix(common) for name in names if name.startswith(common)}
        found = _assign(pictures, [*below.values()])
        chosen = {name: found[short] for name, short in below.items() if short in found}
    unused = sorted({*pictures} - {*chosen.values()} - {*names})
    if chosen and part == "":  # the other pictures are photos
        unused = []
    elif chosen and unused and images is not None:
        unused = _without_masks_of_others(unused, names, Path(images))
    files = {name: masks / chosen[name] for name in names if name in chosen}
    return MaskFiles(masks, files, tuple(name for name in names if name not in chosen), tuple(unused))


def masks_of(images: Path, names: Sequence[str], masks: Path | str | MaskFiles | None) -> Mapping[str, Path]:
    """The mask of each photo that has one. Unless they were found before, they are checked, and the log says how many there are.

    Raises: as `find_masks` and `check_masks`.
    """
    if masks is None:
        return {}
    if isinstance(masks, MaskFiles):
        found = masks
    else:
        found = checked_masks(images, names, masks)
        found.log()
    return {name: found.files[name] for name in names if name in found.files}


def checked_masks(images: Path, names: Sequence[str], masks: Path | str) -> MaskFiles:
    """The masks of the photos. Raises: as `find_masks` and `check_masks`."""
    found = find_masks(masks, names, images)
    check_masks(images, names, found)
    return found


def check_masks(images: Path | str, names: Sequence[str], masks: Path | str | MaskFiles) -> None:
    """Checks that each mask fits its photo, from the headers of both. Photos that cannot be read are left out.

    Raises:
        FileNotFoundError: If `masks` does not exist.
        ValueError: If no photo has a mask, if masks have another shape than their photos, if a mask of several photos cannot be
            read, or if two masks fit a photo.
    """
    found = masks if isinstance(masks, MaskFiles) else find_masks(masks, names, images)
    if found.without and not found.files:
        raise ValueError(_nothing_fits(found))
    undecided: list[str] = []
    problems = list(_problems(Path(images), found.files, undecided))
    if undecided:
        warn_once(
            f"the masks of {count_of(len(undecided), 'photo')} in {found.folder} are used as drawn on the stored photo: EXIF "
            "turns or mirrors the photo, and the shape of the mask does not say how it was drawn. If masks were drawn on the "
            f"upright photo, store the photos upright: {shortened(undecided)}"
        )
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise ValueError("\n".join(problems[:10] + more))


def read_mask(path: Path, size: tuple[int, int], orientation: int = 1) -> np.ndarray:
    """bool (h, w): the mask at the photo's size; True for pixels that are not black, and not transparent.

    If the picture has an alpha channel that is not the same everywhere, this channel alone is the mask.

    Args:
        path: File of the mask.
        size: (width, height) px of the stored photo.
        orientation: The photo's EXIF orientation. It turns a mask that was drawn on the upright photo.

    Raises:
        UnreadableImage: If the mask cannot be decoded, or its shape does not fit the photo.
    """
    try:
        with open_photo(path) as mask:
            is_upright = _is_upright(mask.size, size, orientation)
            opaque = opaque_parts(mask)
            kept = np.asarray(mask.convert("L")) if opaque is None else opaque.astype(np.uint8)
            stored = turn_pixels_back(kept, orientation) if is_upright else kept
            return np.asarray(PILImage.fromarray(stored).resize(size, PILImage.Resampling.NEAREST)) > 0
    except UnreadableImage as error:
        raise UnreadableImage(f"its mask {path}: {error}") from error


def _assign(pictures: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Name of a photo -> its mask. Raises: ValueError if two masks fit a photo."""
    by_stem, by_folded = _grouped(pictures, str), _grouped(pictures, folded)
    spelled = {name: [picture for key in mask_names(name) for picture in by_stem.get(key, ())] for name in names}
    taken = {picture for own in spelled.values() for picture in own}
    chosen = {}
    for name in names:
        levels = [mask_names(name), *_shared_keys(name)]
        similar = [[picture for key in keys for picture in by_folded.get(folded(key), ())] for keys in levels]
        free = [[picture for picture in level if picture not in taken] for level in similar]
        fitting = next((level for level in (spelled[name], *free) if level), [])
        if folded(f"{name}.png") in map(folded, fitting):  # COLMAP's mask beside the photo itself
            fitting = [picture for picture in fitting if picture != name]
        if len(fitting) > 1:
            raise ValueError(f"two masks fit the photo {name}: {fitting[0]} and {fitting[1]}. Delete or rename one of them")
        if fitting:
            chosen[name] = fitting[0]
    return chosen


def _without_masks_of_others(pictures: Sequence[str], names: Sequence[str], images: Path) -> list[str]:
    """The pictures that are no mask of a photo of the folder either that is not among `names`, as with `dataset.list`."""
    others = {*find_pictures(images)} - {*names}
    common = _common_folder([*names, *others])
    keys = {folded(key) for name in others for short in (name, name.removeprefix(common)) for key in mask_names(short)}
    return [picture for picture in pictures if folded(stem(picture)) not in keys]


def _shared_keys(name: str) -> list[list[str]]:
    """Names, without extension, of the masks of the photo's folder, of the folder above, and so on."""
    above = [folder.as_posix() for folder in PurePosixPath(name).parents]
    return [[FOR_ALL] if folder == "." else [f"{folder}/{FOR_ALL}", folder] for folder in above]


def _common_folder(names: Sequence[str]) -> str:
    """The folder, with a slash, that holds all photos; empty if there is none."""
    if len(names) < 2:
        return ""
    above = set.intersection(*({*PurePosixPath(name).parents} for name in names))
    deepest = max(above, key=lambda folder: len(folder.parts))
    return f"{deepest.as_posix()}/" if deepest.parts else ""


def _grouped(pictures: Sequence[str], key_of: Callable[[str], str]) -> dict[str, list[str]]:
    """The pictures by their name without extension, as `key_of` writes it."""
    groups: dict[str, list[str]] = {}
    for picture in pictures:
        groups.setdefault(key_of(stem(picture)), []).append(picture)
    return groups


def _problems(images: Path, files: Mapping[str, Path], undecided: list[str]) -> Iterator[str]:
    """What is wrong with the masks, a line each. Photos whose mask fits both stored and upright are added to `undecided`."""
    uses, sizes = Counter(files.values()), dict[Path, tuple[int, int] | None]()
    for name, path in files.items():
        if path not in sizes:
            try:
                with open_photo(path) as mask:
                    sizes[path] = mask.size
            except UnreadableImage as error:
                sizes[path] = None
                if uses[path] > 1:
                    yield f"the mask {path} of {uses[path]} photos cannot be used: {error}"
        size = sizes[path]
        with contextlib.suppress(UnreadableImage):
            with open_photo(images / name) as photo:
                photo_size, orientation = photo.size, exif_orientation(photo)
            try:
                if size is not None and not _is_upright(size, photo_size, orientation) and orientation != UPRIGHT:
                    undecided += [name] if _same_shape(size, upright_size(photo_size, orientation)) else []
            except UnreadableImage as error:
                yield f"the mask {path} does not fit the photo {name}: {error}"


def _is_upright(mask: tuple[int, int], photo: tuple[int, int], orientation: int) -> bool:
    """Whether a mask of this (width, height) was drawn on the upright photo; False if it has the shape of the stored photo.

    Raises: UnreadableImage if the mask has another shape than the photo.
    """
    if _same_shape(mask, photo):
        return False
    if _same_shape(mask, upright_size(photo, orientation)):
        return True
    message = f"the mask has {mask[0]} x {mask[1]} px, the photo has {photo[0]} x {photo[1]} px"
    if _same_shape((mask[1], mask[0]), photo):
        message += ", and its EXIF does not say how it was turned"
    raise UnreadableImage(f"{message}: give a mask of the same shape")


def _same_shape(size0: tuple[int, int], size1: tuple[int, int]) -> bool:
    """Whether two pictures of (width, height) px have one aspect ratio, up to a pixel of rounding in each side of either."""
    return abs(size0[0] * size1[1] - size0[1] * size1[0]) <= max(sum(size0), sum(size1))


def _nothing_fits(found: MaskFiles) -> str:
    example = found.without[0]
    if not found.unused:
        return f"the folder of masks {found.folder} contains no pictures"
    return (
        f"no mask in {found.folder} belongs to a photo: found {shortened(found.unused)}, expected {example}.png or "
        f"{stem(example)}.png for the photo {example}. For one mask for all photos give its file: "
        f"dataset.masks={found.folder / found.unused[0]}"
    )
