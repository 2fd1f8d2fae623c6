"""Pictures of matches and of keypoints, coloured by score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sfm_lightglue.geometry import keypoints_to_full_image
from sfm_lightglue.report.draw import GREY, PAPER, Overlay, draw_color_bar, draw_text, save, scale_photo, score_colors

PHOTO_SIZE = 900
"""Longest side of a photo in a picture of matches, px."""
MARGIN = 12
GAP = 6
"""Space between the two photos, px."""
HEADER = 64
FOOTER = 38
MIN_WIDTH = 640
"""Smallest width of the picture, px: text needs it above narrow photos."""


def draw_matches(
    pixels0: np.ndarray,
    pixels1: np.ndarray,
    keypoints0: np.ndarray,
    keypoints1: np.ndarray,
    scores: np.ndarray,
    path: Path | str,
    *,
    inliers: np.ndarray | None = None,
    title: str = "",
    note: str = "",
    max_lines: int = 300,
    all_keypoints0: np.ndarray | None = None,
    all_keypoints1: np.ndarray | None = None,
) -> None:
    """Draws two photos side by side and their matches as lines in the colours of their scores, to the picture `path`.

    Args:
        pixels0: photo 0, uint8 (h, w, 3) RGB.
        pixels1: photo 1.
        keypoints0: matched keypoints (k, 2) of photo 0, px.
        keypoints1: matched keypoints (k, 2) of photo 1, px, row by row the partners of `keypoints0`.
        scores: matching scores (k,) in 0..1. Lines with higher scores are on top.
        path: the picture; its ending decides the format.
        inliers: bool (k,), True for verified matches; the others are thin and grey. None: all matches are coloured.
        title: text above the photos.
        note: text that follows the numbers below the title.
        max_lines: maximum number of lines; if there are more matches, an evenly spaced selection is drawn.
        all_keypoints0: keypoints (n, 2) of photo 0 to mark with small dots, or None.
        all_keypoints1: the same for photo 1.
    """
    sizes = _photo_sizes(pixels0, pixels1)
    picture, origins = _side_by_side((pixels0, pixels1), sizes)
    overlay = Overlay(picture.size)
    points = []
    for pixels, size, origin, keypoints, everything in zip(
        (pixels0, pixels1), sizes, origins, (keypoints0, keypoints1), (all_keypoints0, all_keypoints1), strict=True
    ):
        points.append(_on_picture(keypoints, pixels, size, origin))
        if everything is not None:
            overlay.dots(_on_picture(everything, pixels, size, origin), np.full((len(everything), 3), 255), radius=1.2)
    _draw_lines(overlay, points[0], points[1], np.asarray(scores, np.float64), inliers, max_lines)
    overlay.paste_onto(picture)
    _write_header(picture, title, _describe(scores, inliers, max_lines) + (f" ({note})" if note else ""))
    legend = ["grey: not verified"] if inliers is not None and not np.all(inliers) else []
    legend += ["white dots: all keypoints"] if all_keypoints0 is not None or all_keypoints1 is not None else []
    _write_footer(picture, "matching score", (0.0, 1.0), "    ".join(legend))
    save(picture, path)


def draw_keypoints(pixels: np.ndarray, keypoints: np.ndarray, scores: np.ndarray, path: Path | str, *, title: str = "") -> None:
    """Draws a photo and its keypoints as dots in the colours of their detection scores, to the picture `path`.

    The colours span the 5th to the 95th percentile of the scores. The keypoints with the highest scores are on top.

    Args:
        pixels: the photo, uint8 (h, w, 3) RGB.
        keypoints: (n, 2) px.
        scores: detection scores (n,).
        path: the picture; its ending decides the format.
        title: text above the photo.
    """
    scores = np.asarray(scores, np.float64)
    size = _photo_sizes(pixels)[0]
    picture, origins = _side_by_side((pixels,), [size])
    low, high = (float(value) for value in np.percentile(scores, (5, 95))) if len(scores) else (0.0, 1.0)
    order = np.argsort(scores, kind="stable")
    overlay = Overlay(picture.size)
    centers = _on_picture(keypoints, pixels, size, origins[0])[order]
    overlay.dots(centers, np.zeros((len(centers), 3), np.uint8), radius=2.6)
    overlay.dots(centers, score_colors(scores[order], low, high), radius=1.9)
    overlay.paste_onto(picture)
    _write_header(picture, title, f"{len(keypoints)} keypoints")
    _write_footer(picture, "detection score", (low, high))
    save(picture, path)


def _photo_sizes(*photos: np.ndarray) -> list[tuple[int, int]]:
    """(width, height) px of each photo in the picture: equal heights, longest side PHOTO_SIZE."""
    aspects = [pixels.shape[1] / pixels.shape[0] for pixels in photos]
    height = PHOTO_SIZE / max(1.0, *aspects)
    return [(max(1, round(height * aspect)), max(1, round(height))) for aspect in aspects]


def _side_by_side(photos: tuple[np.ndarray, ...], sizes: list[tuple[int, int]]) -> tuple[Image.Image, list[tuple[int, int]]]:
    """A picture with the photos, and the position of the top-left corner of each photo in it."""
    content = sum(width for width, _ in sizes) + GAP * (len(sizes) - 1)
    width = max(content, MIN_WIDTH) + 2 * MARGIN
    picture = Image.new("RGB", (width, HEADER + sizes[0][1] + FOOTER), PAPER)
    x, origins = (width - content) // 2, []
    for pixels, size in zip(photos, sizes, strict=True):
        origins.append((x, HEADER))
        picture.paste(scale_photo(pixels, size), origins[-1])
        x += size[0] + GAP
    return picture, origins


def _on_picture(keypoints: np.ndarray, pixels: np.ndarray, size: tuple[int, int], origin: tuple[int, int]) -> np.ndarray:
    """Positions (k, 2) in the picture of the keypoints (k, 2) of a photo."""
    return keypoints_to_full_image(keypoints, (pixels.shape[1], pixels.shape[0]), size) + np.asarray(origin, np.float32)


def _draw_lines(
    overlay: Overlay, points0: np.ndarray, points1: np.ndarray, scores: np.ndarray, inliers: np.ndarray | None, max_lines: int
) -> None:
    """Draws rejected matches first, then the others from low to high scores."""
    kept = np.ones(len(scores), bool) if inliers is None else np.asarray(inliers, bool)
    chosen = even_choice(len(scores), max_lines)
    chosen = chosen[np.argsort(scores[chosen], kind="stable")]
    rejected, accepted = chosen[~kept[chosen]], chosen[kept[chosen]]
    grey = np.tile(GREY, (len(rejected), 1))
    overlay.lines(points0[rejected], points1[rejected], grey, width=0.5, opacity=0.6)
    colors = score_colors(scores[accepted])
    overlay.lines(points0[accepted], points1[accepted], colors, width=1.0, opacity=0.7)
    for points in (points0, points1):
        overlay.dots(points[rejected], grey, radius=1.5)
        overlay.dots(points[accepted], np.zeros_like(colors), radius=3.0)
        overlay.dots(points[accepted], colors, radius=2.4)


def even_choice(count: int, limit: int) -> np.ndarray:
    """At most `limit` indices in 0..count - 1, evenly spaced, with the first and the last one."""
    return np.arange(count) if count <= limit else np.linspace(0, count - 1, limit).round().astype(np.intp)


def _describe(scores: np.ndarray, inliers: np.ndarray | None, max_lines: int) -> str:
    """The numbers as text, for example `532 matches (300 drawn), mean score 0.87, 412 verified (77 %)`."""
    count = len(scores)
    if count == 0:
        return "0 matches"
    drawn = f" ({max_lines} drawn)" if count > max_lines else ""
    verified = "" if inliers is None else f", {np.sum(inliers)} verified ({100 * np.sum(inliers) // count} %)"
    return f"{count} matches{drawn}, mean score {np.mean(scores):.2f}{verified}"


def _write_header(picture: Image.Image, title: str, numbers: str) -> None:
    """Writes the title and, below it, the numbers."""
    room = picture.width - 2 * MARGIN
    draw_text(picture, (MARGIN, 10), title, height=22, max_width=room)
    draw_text(picture, (MARGIN, 39), numbers, height=16, max_width=room)


def _write_footer(picture: Image.Image, label: str, limits: tuple[float, float], legend: str = "") -> None:
    """Draws the colour bar, and the legend to its right."""
    x, y = MARGIN, picture.height - FOOTER + 12
    x += draw_color_bar(picture, (x, y), label, low=limits[0], high=limits[1]) + 30
    draw_text(picture, (x, y + 7), legend, height=14, max_width=picture.width - MARGIN - x, anchor="lm")
