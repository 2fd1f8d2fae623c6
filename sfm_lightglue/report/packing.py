"""Data for the page of a report: arrays as compressed text, and JSON that is safe inside a script element."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

PACKED_TYPES = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "i2": np.int16, "f4": np.float32}
"""Types of arrays that `web/data.js` knows."""


def packed(array: np.ndarray) -> dict[str, str]:
    """The array as `{"type", "data"}` for `unpack` in web/data.js: base64 of its compressed little-endian numbers, row by row.

    Raises: KeyError for a type that the page does not know.
    """
    (name,) = [name for name, dtype in PACKED_TYPES.items() if array.dtype == dtype] or [f"no type for {array.dtype}"]
    numbers = np.ascontiguousarray(array, np.dtype(PACKED_TYPES[name]).newbyteorder("<"))
    return {"type": name, "data": base64.b64encode(zlib.compress(numbers.tobytes(), 6)).decode("ascii")}


def packed_json(content: Any) -> dict[str, str]:
    """Texts and numbers as `{"type": "json", "data"}` for `unpack` in web/data.js: compressed JSON. Reasons repeat many words."""
    data = zlib.compress(script_json(content).encode("utf-8"), 6)
    return {"type": "json", "data": base64.b64encode(data).decode("ascii")}


def script_json(content: Any) -> str:
    """JSON that no browser takes for markup: `<`, `>` and `&` inside texts are written as escapes.

    NaN and infinity, which JSON does not have, become null.
    """
    text = json.dumps(_finite(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return printable(text)


def printable(text: str) -> str:
    """The text with escapes for what UTF-8 cannot hold: names of files may have bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def short(number: float) -> str:
    """The number with three digits, or as a whole number."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _finite(node: Any) -> Any:
    if isinstance(node, float):
        return float(f"{node:.9g}") if np.isfinite(node) else None
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_finite(value) for value in node]
    return node


def histogram(
    title: str, values: np.ndarray, unit: str = "", *, num_bins: int = 32, low: float | None = 0.0
) -> dict[str, Any] | None:
    """A histogram for `web/charts.js`, with its median in words; None without values.

    Values above the 99th percentile are counted in the last bar, so that a few do not flatten the others. Values that are not
    finite are left out. Bars of whole numbers are whole numbers wide.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    start = float(values.min()) if low is None else low
    end = max(float(np.percentile(values, 99, method="higher")), start)
    if (values == np.rint(values)).all():
        width = max(1, int(np.ceil((end - start + 1) / num_bins)))
        edges = start + width * np.arange(int((end - start) // width) + 2)
    else:
        edges = np.linspace(start, end if end > start else start + 1, num_bins + 1)
    counts, _ = np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], edges[0])), edges)
    above = int(np.sum(values > end))
    median, tenth, ninety = (float(value) for value in np.percentile(values, (50, 10, 90)))
    note = f"median {short(median)}; 80 % are between {short(tenth)} and {short(ninety)}"
    if above:
        note += f"; {above} above {short(end)} are in the last bar"
    return {"title": title, "unit": unit, "edges": edges.tolist(), "counts": counts.tolist(), "note": note}
