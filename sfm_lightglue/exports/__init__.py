"""Exports: a model of a finished run in, files for another program out. No configuration is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sfm_lightglue.registry import closest

PHOTO_OPTIONS = ("photos", "masks", "alpha", "factor")
DISTORTED = "images/ with distortion"


@dataclass(frozen=True)
class Format:
    """A format that a run can be exported to."""

    programs: str
    """Programs that read it."""
    content: str
    """Files of the export."""
    target: str
    """`module:function` in this package. The function gets a `Source`, a `Target` and the `ExportOptions`, and returns lines
    for the terminal."""
    options: tuple[str, ...] = ("model",)
    """Options that the format has, see `ExportOptions`."""

    def writer(self) -> Callable[..., str]:
        """The function that writes the files."""
        module, _, function = self.target.partition(":")
        found: Callable[..., str] = getattr(import_module(f"{__name__}.{module}"), function)
        return found


FORMATS = {
    "splatting": Format(
        "3DGS, gsplat, nerfstudio (splatfacto), Brush, Postshot",
        "undistorted images/, sparse/0 with PINHOLE cameras, masks/",
        "splatting:write",
        ("model", *PHOTO_OPTIONS),
    ),
    "nerfstudio": Format(
        "nerfstudio, instant-ngp",
        "transforms.json, undistorted images/, sparse_pc.ply, masks/",
        "nerfstudio:write",
        ("model", *PHOTO_OPTIONS),
    ),
    "colmap-text": Format("COLMAP, and scripts", "cameras.txt, images.txt, points3D.txt, points.ply", "colmap:write_text"),
    "ply": Format("MeshLab, CloudCompare, Blender", "points.ply with colours", "colmap:write_ply"),
    "openmvg": Format("OpenMVG, OpenMVS", f"sfm_data.json, {DISTORTED}", "photogrammetry:write_openmvg", ("model", "photos")),
    "bundler": Format(
        "Bundler, PMVS, MeshLab",
        f"bundle.out, list.txt, {DISTORTED}",
        "photogrammetry:write_bundler",
        ("model", "photos"),
    ),
    "metashape": Format(
        "Agisoft Metashape, and scripts that read its cameras",
        f"cameras.xml, {DISTORTED}",
        "metashape:write",
        ("model", "photos"),
    ),
    "hloc": Format("hloc (localization)", "features, matches and pairs with hloc's names, the model in sfm/", "hloc:write"),
}
"""All formats by name."""


def find_format(name: str) -> Format:
    """The format of this name. Raises: ValueError with the closest name if there is none."""
    if name not in FORMATS:
        raise ValueError(f"there is no export format {name!r}. {closest(name, FORMATS)}")
    return FORMATS[name]


def export(name: str, output: Any, folder: Any, options: Any = None) -> str:
    """Exports the run in `output` to `folder` in the format `name`, and returns lines for the terminal.

    Args:
        name: One of `FORMATS`.
        output: The output folder of a run.
        folder: The new folder. It must not exist, be empty, or hold an earlier export without changes.
        options: `ExportOptions`; None for all defaults.

    Raises:
        FileNotFoundError: If there is no run, no model, or no photo.
        ValueError: If the format or the model does not exist, `folder` has other files, or another process exports to it.
    """
    from sfm_lightglue.exports.source import ExportOptions, open_source
    from sfm_lightglue.exports.target import new_export

    write = find_format(name).writer()
    options = options or ExportOptions()
    source = open_source(output, options)
    with new_export(folder, name, source) as target:
        said = write(source, target, options)
    return f"{target.path}\n{said}"
