"""The figure that all plots return. Importing this module imports matplotlib, but not pyplot."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class PlotFigure(Figure):
    """matplotlib's Figure, which notebooks also show if pyplot was never imported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        """The picture that IPython shows."""
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
