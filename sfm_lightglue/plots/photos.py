"""Figures of photos: keypoints on one photo, matches between two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sfm_lightglue.api import Photo
from sfm_lightglue.image_matches import ImageMatches
from sfm_lightglue.plots.canvas import WIDTH_IN, Canvas, colormap_of, colors_of, new_canvas
from sfm_lightglue.plots.shown import Shown, matches_of_run, photo_of_run, shown, side_by_side
from sfm_lightglue.products import Features, Image
from sfm_lightglue.report.matches import even_choice
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import comparable_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REJECTED = "0.6"
"""Colour of matches that are not verified."""


def plot_matches(
    image0: Photo | Image,
    image1: Photo | Image,
    matches: ImageMatches | RunFolder,
    *,
    inliers: np.ndarray | None = None,
    show_keypoints: bool = False,
    max_lines: int | None = None,
    color: str | None = None,
    colormap: str | None = None,
    title: str = "",
    width_in: float = WIDTH_IN,
) -> Figure:
    """A figure of two photos side by side, with a line for each match in the colour of its score.

    Photos are shown upright and with equal heights. Higher scores are on top. The axes of the figure have the pixels of the
    upright photo 0.

    Args:
        image0: A file, an array or a PIL image as for `load_image`, or an `Image`; with a `RunFolder`, the name of a photo.
        image1: The other photo.
        matches: The result of `match_images`, or the `RunFolder` of a run that has matched the two photos.
        inliers: bool (k,): False for matches to be drawn in grey. A `RunFolder` gives the verified matches by itself.
        show_keypoints: Whether all keypoints are marked with small white dots.
        max_lines: Draws at most so many matches, an even selection; None draws all.
        color: One colour for all lines, in matplotlib's notation; None colours them by score, 0 to 1.
        colormap: Name of a colour map of matplotlib, such as `RdYlGn`; None goes from red (0) over yellow to blue (1).
        title: Text above the photos.
        width_in: Width of the figure, inches.

    Returns:
        A new figure: `figure.savefig("matches.pdf")` writes it, a notebook shows it.

    Raises:
        ImportError: If matplotlib is not installed.
        UnreadableImage: If a photo cannot be decoded.
        KeyError: If the run has not matched the photos.
        ValueError: If `inliers` does not fit the matches, or there is no such colour map.

    Example:
        >>> result = match_images(photos / "00.jpg", photos / "01.jpg")
        >>> plot_matches(photos / "00.jpg", photos / "01.jpg", result).savefig(out / "matches.pdf")
    """
    if isinstance(matches, RunFolder):
        photo0, photo1, matches, verified = matches_of_run(matches, str(image0), str(image1))
        inliers = verified if inliers is None else inliers
    else:
        photo0, photo1 = shown(image0), shown(image1)
    count = len(matches.scores)
    kept = np.ones(count, bool) if inliers is None else np.asarray(inliers, bool)
    if kept.shape != (count,):
        raise ValueError(f"inliers has the shape {kept.shape}: expected one value for each of the {count} matches")
    photos = side_by_side(photo0, photo1)
    size = photos[1].left + photos[1].extent[0] + 0.5, photo0.extent[1]
    canvas = new_canvas(size, width_in=width_in, title=title, has_bar=color is None)
    map_ = colormap_of(colormap)
    for photo, keypoints in zip(photos, (matches.keypoints0, matches.keypoints1), strict=True):
        _show(canvas, photo)
        if show_keypoints:
            canvas.dots(photo.place(keypoints), "white", size_pt=1.2, layer=1, edge=False)
    points = photos[0].place(matches.matched_keypoints0), photos[1].place(matches.matched_keypoints1)
    chosen = even_choice(count, count if max_lines is None else max_lines)
    chosen = chosen[np.argsort(matches.scores[chosen], kind="stable")]
    rejected, accepted = chosen[~kept[chosen]], chosen[kept[chosen]]
    _draw(canvas, points, rejected, REJECTED, is_strong=False)
    _draw(canvas, points, accepted, color or colors_of(matches.scores[accepted], (0.0, 1.0), map_), is_strong=True)
    if color is None:
        canvas.color_bar("matching score", (0.0, 1.0), map_, "" if kept.all() else "grey: not verified")
    return canvas.figure


def plot_keypoints(
    image: Photo | Image,
    keypoints: Features | np.ndarray | RunFolder,
    scores: np.ndarray | None = None,
    *,
    color: str | None = None,
    colormap: str | None = None,
    size_pt: float = 2.0,
    title: str = "",
    width_in: float = WIDTH_IN,
) -> Figure:
    """A figure of a photo with its keypoints, in the colours of their detection scores if there are any.

    The photo is shown upright. The colours span the 5th to the 95th percentile of the scores. Higher scores are on top.

    Args:
        image: A file, an array or a PIL image as for `load_image`, or an `Image`; with a `RunFolder`, the name of a photo.
        keypoints: Features of the photo, keypoints (n, 2) in px of the photo as stored, or the `RunFolder` of a run.
        scores: Values (n,) for the colours. `Features` and a `RunFolder` give them by themselves; of several kinds of
            features, ranks within each kind.
        color: One colour for all keypoints, in matplotlib's notation; None colours them by score.
        colormap: Name of a colour map of matplotlib; None goes from red (low) over yellow to blue (high).
        size_pt: Diameter of a dot, points.
        title: Text above the photo.
        width_in: Width of the figure, inches.

    Returns:
        A new figure: `figure.savefig("keypoints.pdf")` writes it, a notebook shows it.

    Raises:
        ImportError: If matplotlib is not installed.
        UnreadableImage: If the photo cannot be decoded.
        KeyError: If the run has no features of the photo.
        ValueError: If `scores` does not fit the keypoints, or there is no such colour map.

    Example:
        >>> features = create_extractor("superpoint", max_keypoints=256)(load_image(photos / "00.jpg"))
        >>> plot_keypoints(photos / "00.jpg", features).savefig(out / "keypoints.png", dpi=300)
    """
    if isinstance(keypoints, RunFolder):
        run, name = keypoints, str(image)
        with run.open_features() as reader:
            keypoints = reader.features(name, with_descriptors=False)
            scores = comparable_scores(keypoints.scores, reader.kinds(name)) if scores is None else scores
        photo = photo_of_run(run, name, keypoints)
    else:
        photo = shown(image)
    if isinstance(keypoints, Features):
        scores, keypoints = (keypoints.scores if scores is None else scores), keypoints.keypoints
    points = photo.place(keypoints)
    if scores is not None and np.shape(scores) != (len(points),):
        raise ValueError(f"scores has the shape {np.shape(scores)}: expected one value for each of the {len(points)} keypoints")
    canvas = new_canvas(photo.extent, width_in=width_in, title=title, has_bar=color is None and scores is not None)
    _show(canvas, photo)
    if color is not None or scores is None:
        canvas.dots(points, color or "yellow", size_pt=size_pt, layer=1)
        return canvas.figure
    scores = np.asarray(scores, np.float64)
    low, high = np.percentile(scores, (5, 95)).tolist() if len(scores) else (0.0, 1.0)
    order, map_ = np.argsort(scores, kind="stable"), colormap_of(colormap)
    canvas.dots(points[order], colors_of(scores[order], (low, high), map_), size_pt=size_pt, layer=1)
    canvas.color_bar("detection score", (low, high), map_)
    return canvas.figure


def _show(canvas: Canvas, photo: Shown) -> None:
    canvas.photo(photo.pixels, (photo.left, -0.5), photo.extent)


def _draw(
    canvas: Canvas, points: tuple[np.ndarray, np.ndarray], rows: np.ndarray, colors: np.ndarray | str, *, is_strong: bool
) -> None:
    """Draws the lines between some rows of the points of both photos, and a dot at each end; weak ones lie below strong ones."""
    ends = [each[rows] for each in points]
    width_pt, opacity, layer = (0.6, 0.75, 3) if is_strong else (0.3, 0.6, 2)
    canvas.lines(ends[0], ends[1], colors, width_pt=width_pt, opacity=opacity, layer=layer)
    for end in ends:
        canvas.dots(end, colors, size_pt=2.2 if is_strong else 1.2, layer=layer + 2, edge=is_strong)
