"""What all plots share: one picture that fills the width of a figure, with an optional title above and a colour bar below.

This module and `figure.py` are the only ones that import matplotlib, and only when a figure is made, because it is optional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sfm_lightglue.report.draw import SCORE_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

WIDTH_IN = 7.0
"""Default width of a figure, inches: the text width of a page with two columns."""
DPI = 200
"""Resolution of the parts that are no vectors, pixels per inch; `figure.savefig(path, dpi=...)` takes another one."""
FONT_PT = 8.0
TITLE_IN, BAR_IN = 0.26, 0.34
"""Heights of the strips for the title and for the colour bar, inches."""
BAR_SIZE_IN = (1.9, 0.09)
"""(largest width, height) of the colour bar, inches. In narrow figures a third of the width leaves room for the label."""

Limits = tuple[float, float]
"""The values of the first and of the last colour."""


@dataclass(frozen=True)
class Canvas:
    """A figure and the axes of its picture.

    Coordinates are px of the picture, x to the right and y down, with the centre of the top-left pixel at (0, 0).
    """

    figure: Figure
    axes: Axes

    def photo(self, pixels: np.ndarray, origin: tuple[float, float], size: tuple[float, float]) -> None:
        """Shows uint8 pixels (h, w, 3). The outer corner of the first pixel is at `origin`; they cover `size` (width, height)."""
        (left, top), (width, height) = origin, size
        limits = self.axes.get_xlim(), self.axes.get_ylim()
        self.axes.imshow(pixels, extent=(left, left + width, top + height, top), zorder=0)
        self.axes.set(xlim=limits[0], ylim=limits[1])

    def lines(
        self, starts: np.ndarray, ends: np.ndarray, colors: np.ndarray | str, *, width_pt: float, opacity: float, layer: int
    ) -> None:
        """Draws lines from starts (k, 2) to ends (k, 2), later ones on top, in one colour or in colours (k, 4)."""
        from matplotlib.collections import LineCollection

        segments = np.stack([starts, ends], axis=1)
        lines = LineCollection(list(segments), colors=colors, linewidths=width_pt, alpha=opacity, zorder=layer, capstyle="round")
        self.axes.add_collection(lines, autolim=False)

    def dots(
        self, centers: np.ndarray, colors: np.ndarray | str, *, size_pt: float | np.ndarray, layer: int, edge: bool = True
    ) -> None:
        """Draws discs at centers (k, 2), later ones on top, with diameters in points; with `edge`, each has a thin black rim.

        They become pixels in vector formats, because thousands of them would make the file slow.
        """
        x, y = np.asarray(centers, np.float64).reshape(-1, 2).T
        style = {"edgecolors": "black", "linewidths": 0.3} if edge else {"linewidths": 0.0}
        self.axes.scatter(x, y, s=np.square(size_pt), c=colors, zorder=layer, rasterized=True, **style)

    def text(
        self,
        point: np.ndarray | tuple[float, float],
        text: str,
        size_pt: float,
        *,
        side: str,
        direction: np.ndarray | None = None,
    ) -> None:
        """Writes a label beside a point: `left` of it, upright `below` it, or `outward` in a direction (2,)."""
        style: dict[str, Any] = {"ha": "right", "va": "center", "xytext": (-2, 0)}
        if side == "below":
            style = {"ha": "center", "va": "top", "xytext": (0, -2), "rotation": 90}
        elif direction is not None:
            angle, is_right = np.degrees(np.arctan2(-direction[1], direction[0])), direction[0] >= 0
            style = {"ha": "left" if is_right else "right", "va": "center", "xytext": (0, 0), "rotation_mode": "anchor"}
            style["rotation"] = angle if is_right else angle + 180
        x, y = point
        self.axes.annotate(text, (x, y), textcoords="offset points", fontsize=size_pt, annotation_clip=False, **style)

    def color_bar(self, label: str, limits: Limits, colormap: Colormap, note: str = "", *, is_logarithmic: bool = False) -> None:
        """Draws the colours from limits[0] to limits[1] below the picture, the label to their left, the note to their right."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LogNorm, Normalize

        width, height = self.figure.get_size_inches()
        bar_width = min(BAR_SIZE_IN[0], 0.34 * width)
        bottom = BAR_IN - 0.07 - BAR_SIZE_IN[1]
        axes = self.figure.add_axes(
            ((width - bar_width) / 2 / width, bottom / height, bar_width / width, BAR_SIZE_IN[1] / height)
        )
        norm = (LogNorm if is_logarithmic else Normalize)(*limits)
        bar = self.figure.colorbar(ScalarMappable(norm, colormap), cax=axes, orientation="horizontal")
        if is_logarithmic:
            ticks = np.geomspace(*limits, 3)
            bar.set_ticks(ticks.tolist(), labels=[f"{tick:.3g}" for tick in ticks])
            bar.minorticks_off()
        bar.ax.tick_params(labelsize=FONT_PT - 1, length=2, pad=1.5)
        bar.outline.set_linewidth(0.4)
        gap = 0.08 / bar_width
        for x, side, text in ((-gap, "right", label), (1 + gap, "left", note)):
            axes.text(x, 0.5, text, transform=axes.transAxes, ha=side, va="center", fontsize=FONT_PT)


def new_canvas(size: tuple[float, float], *, width_in: float = WIDTH_IN, title: str = "", has_bar: bool = False) -> Canvas:
    """An empty canvas for a picture of `size` (width, height) px.

    Args:
        size: Size of the picture, in the unit of its coordinates.
        width_in: Width of the figure, inches. The height follows from the shape of the picture.
        title: Text above the picture; without it there is no strip for it.
        has_bar: Whether there is a strip for a colour bar.

    Raises: ImportError if matplotlib is not installed.
    """
    try:
        from sfm_lightglue.plots.figure import PlotFigure
    except ImportError as error:
        raise ImportError("plots need the package matplotlib: pip install 'sfm-lightglue[plots]'") from error
    above, below = TITLE_IN * bool(title), BAR_IN * has_bar
    picture_in = width_in * size[1] / size[0]
    height_in = above + picture_in + below
    figure = PlotFigure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.0, below / height_in, 1.0, picture_in / height_in))
    axes.set_axis_off()
    axes.set(xlim=(-0.5, size[0] - 0.5), ylim=(size[1] - 0.5, -0.5), aspect="equal")
    if title:
        figure.text(0.5, 1 - above / 2 / height_in, title, ha="center", va="center", fontsize=FONT_PT + 1)
    return Canvas(figure, axes)


def colormap_of(name: str | None) -> Colormap:
    """The colour map of matplotlib with this name; None is the one of the pictures of a run.

    Raises: ValueError if there is no map of this name.
    """
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    if name is None:
        return LinearSegmentedColormap.from_list("scores", list(SCORE_COLORS / 255))
    try:
        return matplotlib.colormaps[name]
    except KeyError as error:
        raise ValueError(f"matplotlib has no colour map {name!r}: `matplotlib.colormaps` lists them") from error


def colors_of(values: np.ndarray, limits: Limits, colormap: Colormap) -> np.ndarray:
    """RGBA colours float64 (k, 4) of values (k,). Values outside the limits are clipped; NaN counts as the lower limit."""
    low, high = limits
    values = np.nan_to_num(np.asarray(values, np.float64), nan=low, posinf=high, neginf=low)
    return np.asarray(colormap(np.clip((values - low) / max(high - low, 1e-12), 0, 1)))
