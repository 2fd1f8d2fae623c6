"""COLMAP's text model, and its points as a PLY file."""

from __future__ import annotations

from sfm_lightglue.exports.source import ExportOptions, Source
from sfm_lightglue.exports.target import Target
from sfm_lightglue.model_files import write_copies


def write_text(source: Source, target: Target, options: ExportOptions) -> str:
    """Writes `cameras.txt`, `images.txt`, `points3D.txt`, `rigs.txt`, `frames.txt` and `points.ply`."""
    write_copies(source.reconstruction, target.folder)
    source.copy_georeference(target.folder)
    return str(source)


def write_ply(source: Source, target: Target, options: ExportOptions) -> str:
    """Writes `points.ply`: float32 coordinates and uint8 colours."""
    source.reconstruction.export_PLY(target.folder / "points.ply")
    source.copy_georeference(target.folder)
    return str(source)
