"""A figure of a reconstruction: its points in their colours and its cameras."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfm_lightglue.files import result_exists
from sfm_lightglue.model_files import read_model
from sfm_lightglue.plots.canvas import WIDTH_IN, new_canvas
from sfm_lightglue.report.scene import EDGES, ELEVATION_DEG, View, camera_size, choose_view, points_of, pyramid, upright_poses
from sfm_lightglue.run_folder import RunFolder

if TYPE_CHECKING:
    import pycolmap
    from matplotlib.figure import Figure

SIZE = (1600, 1000)
"""(width, height) that gives the view its shape. Coordinates of the view are twice as large."""
NEAREST = 0.05
"""Points nearer to the viewer than this share of the median depth are not drawn: they would cover the picture."""


def plot_reconstruction(
    model: RunFolder | Path | str | pycolmap.Reconstruction,
    *,
    elevation_deg: float = ELEVATION_DEG,
    azimuth_deg: float = 0.0,
    point_size_pt: float = 1.2,
    camera_color: str = "crimson",
    title: str = "",
    width_in: float = WIDTH_IN,
) -> Figure:
    """A figure of a reconstruction in perspective: points in their colours, cameras as pyramids.

    All cameras and nine tenths of the points are inside the picture. Near points cover far ones. Cameras are vectors, points are
    pixels, so that files stay small.

    Args:
        model: The `RunFolder` of a run (its largest model), the folder of a COLMAP model, or a model of pycolmap.
        elevation_deg: How far from above: 0 looks in the mean direction of the cameras, 90 straight down like a map.
        azimuth_deg: Turn about the vertical, counted from behind the cameras; 90 looks from their left.
        point_size_pt: Diameter of a point at the median depth, points of typography.
        camera_color: Colour of the cameras, in matplotlib's notation.
        title: Text above the picture.
        width_in: Width of the figure, inches.

    Returns:
        A new figure: `figure.savefig("model.pdf")` writes it, a notebook shows it.

    Raises:
        ImportError: If matplotlib is not installed.
        FileNotFoundError: If the folder does not exist.
        ValueError: If there is no model, it is damaged, or it has no points or no registered images.

    Example:
        >>> plot_reconstruction(RunFolder(out / "run"), elevation_deg=60).savefig(out / "model.png")
    """
    orientations: dict[str, int] = {}
    if isinstance(model, RunFolder):
        run, largest = model, model.largest_model()
        if largest is None:
            raise ValueError(f"{run.reconstruction} has no model: run the stage reconstruct, or see why it failed")
        model = largest
        if result_exists(run.features):
            with run.open_features() as reader:
                orientations = reader.orientations(reader.names())
    reconstruction = read_model(Path(model)) if isinstance(model, (str, Path)) else model
    points, colors = points_of(reconstruction)
    poses = upright_poses(reconstruction, orientations)
    if not len(points) or not len(poses):
        raise ValueError(f"the model has {len(points)} points and {len(poses)} registered images: there is nothing to draw")
    canvas = new_canvas((2 * SIZE[0], 2 * SIZE[1]), width_in=width_in, title=title)
    view = choose_view(points, poses, size=SIZE, elevation_deg=elevation_deg, azimuth_deg=azimuth_deg)
    pixels, depths = view.project(points)
    typical = float(np.median(depths))
    order = np.argsort(-depths, kind="stable")
    order = order[depths[order] > NEAREST * typical]
    sizes = point_size_pt * np.clip(typical / depths[order], 0.5, 2)
    canvas.dots(pixels[order], colors[order] / 255, size_pt=sizes, layer=1, edge=False)
    starts, ends = _camera_lines(view, poses, camera_size(points))
    canvas.lines(starts, ends, camera_color, width_pt=0.6, opacity=1.0, layer=2)
    return canvas.figure


def _camera_lines(view: View, poses: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Start and end points (k, 2) of the edges of all cameras that are in front of the viewer."""
    starts, ends = [np.zeros((0, 2))], [np.zeros((0, 2))]
    first, second = np.array(EDGES).T
    for pose in poses:
        pixels, depths = view.project(pyramid(pose, size))
        if (depths > 0).all():
            starts.append(pixels[first])
            ends.append(pixels[second])
    return np.concatenate(starts), np.concatenate(ends)
