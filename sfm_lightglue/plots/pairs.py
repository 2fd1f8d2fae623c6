"""A figure of the pairs of a collection: a matrix of photos against photos, or a graph of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from sfm_lightglue.files import result_exists
from sfm_lightglue.plots.canvas import WIDTH_IN, Canvas, Limits, colormap_of, colors_of, new_canvas
from sfm_lightglue.products import Pair
from sfm_lightglue.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

LAYOUTS = ("matrix", "graph")
COLORMAP = "viridis"
EMPTY, REJECTED = (1.0, 1.0, 1.0, 1.0), (0.8, 0.8, 0.8, 1.0)
"""RGBA of photos that are no pair, and of pairs with the value 0."""
GROUP_COLORS = ("black", "tab:red", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")
"""Colours of the connected groups of photos, the largest first; small groups share the last one."""
MAX_CELLS = 600
"""Largest number of rows of the matrix. With more photos, a cell stands for several."""
MIN_TEXT_PT, MAX_TEXT_PT = 3.5, 7.0
"""Photos are named if their names fit in this size; else a few of their numbers are written."""
RIM_IN = 0.03
"""Space beside the matrix, inches."""
MAX_LETTERS = 16
"""Longer names are shortened to their end."""


@dataclass(frozen=True)
class _Values:
    """Pairs as indices into the names, int (m, 2), and their values (m,)."""

    names: list[str]
    indices: np.ndarray
    values: np.ndarray
    label: str


@dataclass(frozen=True)
class _Text:
    """Which photos are labelled, and how."""

    labels: list[tuple[int, str]]
    """Number of the photo, text."""
    size_pt: float
    room_in: float
    """Room for the longest label, inches."""

    @classmethod
    def fitting(cls, names: Sequence[str], spacing_in: float, *, is_closed: bool = False) -> _Text:
        """Names if they fit with this distance between two photos, else the numbers of about five photos.

        Folder and ending are left out if all names share them. `is_closed` says that the last photo stands beside the first one.
        """
        size_pt = min(MAX_TEXT_PT, 0.85 * 72 * spacing_in)
        if size_pt >= MIN_TEXT_PT:
            paths = [PurePosixPath(name) for name in names]
            is_plain = len({(path.parent, path.suffix) for path in paths}) <= 1
            texts = [path.stem if is_plain else str(path) for path in paths]
            chosen = [(number, _shortened(text)) for number, text in enumerate(texts)]
        else:
            size_pt = MAX_TEXT_PT - 1
            numbers = np.linspace(0, len(names) - 1, min(5, len(names)), endpoint=not is_closed).round().astype(int).tolist()
            chosen = [(number, str(number)) for number in numbers]
        longest = max((len(text) for _, text in chosen), default=0)
        return cls(chosen, size_pt, 0.6 * size_pt / 72 * longest + 0.06)


def plot_pairs(
    pairs: RunFolder | Mapping[Pair, float] | Sequence[Pair],
    *,
    layout: str = "matrix",
    names: Sequence[str] | None = None,
    label: str = "",
    colormap: str = COLORMAP,
    title: str = "",
    width_in: float = WIDTH_IN / 2,
) -> Figure:
    """A figure of all pairs of a collection, in the colour of a number: how many inliers connect two photos.

    Colours have a logarithmic scale. Grey marks pairs with the value 0: they were tried and rejected.

    Args:
        pairs: The `RunFolder` of a run (verified matches; matches if no pair is verified yet; else the list of pairs), a number
            for each pair, or pairs alone.
        layout: `matrix` (row and column of each photo) or `graph` (photos on a circle, clockwise from the top; lines are pairs).
        names: The photos in the order in which they are shown; None means all photos of the pairs, sorted.
        label: What the numbers are; a `RunFolder` gives it by itself.
        colormap: Name of a colour map of matplotlib.
        title: Text above the picture.
        width_in: Width of the figure, inches.

    Returns:
        A new figure: `figure.savefig("pairs.pdf")` writes it, a notebook shows it.

    Raises:
        ImportError: If matplotlib is not installed.
        FileNotFoundError: If the run has no pairs.
        ValueError: If a pair has a photo that is not in `names`, or the layout or the colour map does not exist.

    Example:
        >>> plot_pairs(RunFolder(out / "run"), layout="graph").savefig(out / "pairs.pdf")
        >>> plot_pairs(select_pairs(["a.jpg", "b.jpg", "c.jpg"], "sequential")).savefig(out / "list.pdf")
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} does not exist: expected {' or '.join(LAYOUTS)}")
    if isinstance(pairs, RunFolder):
        pairs, label = _pairs_of_run(pairs, label)
    found = _indexed(pairs, names, label)
    has_bar = isinstance(pairs, Mapping) and bool((found.values > 0).any())
    positive = found.values[found.values > 0]
    limits = (float(positive.min()), float(max(positive.max(), 1.1 * positive.min()))) if len(positive) else (1.0, 10.0)
    map_ = colormap_of(colormap)
    draw = _draw_matrix if layout == "matrix" else _draw_graph
    canvas = draw(found, _colors(found.values, limits, map_), width_in, title, has_bar)
    if has_bar:
        note = "grey: 0" if (found.values <= 0).any() else ""
        canvas.color_bar(found.label, limits, map_, note, is_logarithmic=True)
    return canvas.figure


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_LETTERS else f"...{text[3 - MAX_LETTERS :]}"


def _pairs_of_run(run: RunFolder, label: str) -> tuple[Mapping[Pair, float] | Sequence[Pair], str]:
    """The pairs of a run with the number that says most about them, and what it is."""
    pairs = run.read_pairs()
    if result_exists(run.verification):
        with run.open_verification() as reader:
            return {pair: reader.num_inliers(pair.name0, pair.name1) for pair in pairs}, label or "inliers"
    if result_exists(run.matches):
        with run.open_matches() as reader:
            found = {pair: reader.find_matches(pair.name0, pair.name1) for pair in pairs}
        return {pair: len(matches) for pair, matches in found.items() if matches is not None}, label or "matches"
    return pairs, label


def _indexed(pairs: Mapping[Pair, float] | Sequence[Pair], names: Sequence[str] | None, label: str) -> _Values:
    """The pairs as numbers of rows. Pairs without a number have 1."""
    values = pairs if isinstance(pairs, Mapping) else dict.fromkeys(pairs, 1.0)
    used = {name for pair in values for name in (pair.name0, pair.name1)}
    ordered = sorted(used) if names is None else list(names)
    index = {name: number for number, name in enumerate(ordered)}
    if unknown := sorted(used - index.keys()):
        raise ValueError(f"{unknown[0]!r} is in a pair but not in names: add it, or leave its pairs out")
    indices = np.array([(index[pair.name0], index[pair.name1]) for pair in values], np.intp).reshape(-1, 2)
    return _Values(ordered, indices, np.array([float(value) for value in values.values()]), label)


def _colors(values: np.ndarray, limits: Limits, colormap: Colormap) -> np.ndarray:
    """RGBA (m, 4): logarithmic colours; grey for 0."""
    low, high = np.log(limits).tolist()
    colors = colors_of(np.log(np.maximum(values, limits[0])), (low, high), colormap)
    colors[values <= 0] = REJECTED
    return colors


def _draw_matrix(found: _Values, colors: np.ndarray, width_in: float, title: str, has_bar: bool) -> Canvas:
    """Draws a symmetric matrix; a cell that stands for several pairs shows the largest value."""
    count, text = max(len(found.names), 1), _Text.fitting(found.names, 0.75 * width_in / max(len(found.names), 1))
    cells = min(count, MAX_CELLS)
    grid = np.tile(np.array(EMPTY), (cells, cells, 1))
    order = np.argsort(found.values, kind="stable")
    rows, columns = found.indices[order].T * cells // count
    grid[rows, columns] = grid[columns, rows] = colors[order]
    cells_per_in = count / (width_in - text.room_in - RIM_IN)
    room, rim = text.room_in * cells_per_in, RIM_IN * cells_per_in
    left, top, side = room - 0.5, rim - 0.5, room + count + rim
    canvas = new_canvas((side, side), width_in=width_in, title=title, has_bar=has_bar)
    canvas.photo((255 * grid).round().astype(np.uint8), (left, top), (count, count))
    canvas.lines(*_frame(left, top, count), "black", width_pt=0.5, opacity=1.0, layer=2)
    for number, label in text.labels:
        canvas.text((left, top + number + 0.5), label, text.size_pt, side="left")
        canvas.text((left + number + 0.5, top + count), label, text.size_pt, side="below")
    return canvas


def _draw_graph(found: _Values, colors: np.ndarray, width_in: float, title: str, has_bar: bool) -> Canvas:
    """Draws photos on a circle, and pairs as lines; photos of the same connected group have the same colour."""
    count = len(found.names)
    text = _Text.fitting(found.names, np.pi * width_in / 2 / max(count, 1), is_closed=True)
    canvas = new_canvas((1.0, 1.0), width_in=width_in, title=title, has_bar=has_bar)
    radius = 0.48 - text.room_in / width_in
    angles = 2 * np.pi * np.arange(count) / max(count, 1)
    outward = np.column_stack([np.sin(angles), -np.cos(angles)])
    places = radius * outward
    order = np.argsort(found.values, kind="stable")
    starts, ends = (places[found.indices[order, side]] for side in (0, 1))
    canvas.lines(starts, ends, colors[order], width_pt=0.7, opacity=0.8, layer=1)
    groups = _groups(count, found.indices[found.values > 0])
    shades = np.array(GROUP_COLORS)[np.minimum(groups, len(GROUP_COLORS) - 1)]
    canvas.dots(places, shades, size_pt=float(np.clip(72 * width_in / max(count, 1), 1.5, 5)), layer=2)
    for number, label in text.labels:
        canvas.text(1.04 * places[number], label, text.size_pt, side="outward", direction=outward[number])
    return canvas


def _groups(count: int, edges: np.ndarray) -> np.ndarray:
    """int (count,): the connected group of each photo; 0 is the largest group, and so on."""
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for first, second in edges.tolist():
        neighbours[first].append(second)
        neighbours[second].append(first)
    group = np.full(count, -1)
    for start in range(count):
        waiting = [start] if group[start] < 0 else []
        while waiting:
            photo = waiting.pop()
            if group[photo] < 0:
                group[photo] = start
                waiting += neighbours[photo]
    starts, sizes = np.unique(group, return_counts=True)
    rank = {int(start): place for place, start in enumerate(starts[np.argsort(-sizes, kind="stable")])}
    return np.array([rank[start] for start in group.tolist()], np.intp)


def _frame(left: float, top: float, side: float) -> tuple[np.ndarray, np.ndarray]:
    """The four sides of a square as start and end points (4, 2)."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * side + (left, top)
    return corners, np.roll(corners, -1, axis=0)
