"""The metrics of a training for each step, as a table and as plots."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

COLUMNS = ("step", "kind", "figure", "value")


class History:
    """All metrics so far, as rows (step, kind, metric, value). The kind is `training` or `validation`."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def add(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Appends one row for each metric."""
        self.rows += [(step, kind, key, float(value)) for key, value in metrics.items()]

    def last(self, kind: str) -> dict[str, float]:
        """The newest metrics of a kind."""
        step = max((row[0] for row in self.rows if row[1] == kind), default=None)
        return {metric: value for row_step, row_kind, metric, value in self.rows if (row_step, row_kind) == (step, kind)}

    def describe_last(self, kind: str) -> str:
        """The newest metrics of a kind, as text for the log."""
        return ", ".join(f"{metric} {value:.4g}" for metric, value in self.last(kind).items())


def write_curves(history: History, folder: Path) -> None:
    """Writes `curves.csv` and, if matplotlib is installed, `curves.png`."""
    with (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(history.rows)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.info('the curves are not plotted without matplotlib: pip install "sfm-lightglue[train]"')
        return
    panels = list(dict.fromkeys((kind, metric) for _, kind, metric, _ in history.rows))
    columns = 4
    rows = -(-len(panels) // columns)
    drawing = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(drawing)
    for place, (kind, metric) in enumerate(panels):
        points = [(row[0], row[3]) for row in history.rows if row[1:3] == (kind, metric)]
        axes = drawing.add_subplot(rows, columns, place + 1)
        marker, colour = "." if len(points) < 50 else None, "C0" if kind == "training" else "C1"
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour)
        axes.set_title(f"{metric} ({kind})", fontsize=9)
        axes.grid(alpha=0.3)
    drawing.savefig(folder / "curves.png", dpi=100)
