"""Drawing with Pillow: colours of scores, smooth lines and dots on a photo, text, a colour bar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from sfm_lightglue.files import written_whole
from sfm_lightglue.geometry import keypoints_to_full_image

SCORE_COLORS = np.array(
    [(200, 20, 40), (240, 90, 30), (255, 175, 50), (235, 235, 130), (110, 225, 220), (20, 175, 255)], np.float64
)
"""RGB colours from the lowest to the highest score, evenly spaced: red, yellow, azure. Colour-blind readers can tell them apart,
unlike red and green. No colour is dark or grey, because most matches of a good pair have high scores and must be visible on
photos."""
MARK = "drawn by sfm_lightglue"
"""A comment in each picture: other pictures are never replaced."""
GREY = (150, 150, 150)
INK = (25, 25, 25)
PAPER = (255, 255, 255)
OVERSAMPLING = 2
"""Lines are drawn at this multiple of the size and then reduced, because Pillow does not smooth edges."""


def score_colors(scores: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """uint8 (k, 3): RGB colours of scores (k,). Scores outside low..high are clipped; NaN counts as `low`."""
    values = np.nan_to_num(np.asarray(scores, np.float64), nan=low, posinf=high, neginf=low)
    position = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(SCORE_COLORS) - 1)
    steps = np.arange(len(SCORE_COLORS))
    channels = [np.interp(position, steps, SCORE_COLORS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def scale_photo(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The photo, uint8 (h, w, 3), resized to (width, height)."""
    return Image.fromarray(pixels).convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


class Overlay:
    """Smooth lines and dots that are pasted onto a picture of `size` (width, height).

    Coordinates are pixels of the picture, with the centre of the top-left pixel at (0, 0).
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._large = Image.new("RGBA", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING))
        self._draw = ImageDraw.Draw(self._large)

    def lines(self, starts: np.ndarray, ends: np.ndarray, colors: np.ndarray, *, width: float, opacity: float = 1.0) -> None:
        """Draws lines from starts (k, 2) to ends (k, 2) in RGB colours (k, 3), `width` px wide, later ones on top."""
        stroke = max(1, round(width * OVERSAMPLING))
        for start, end, color in zip(self._enlarged(starts), self._enlarged(ends), colors.tolist(), strict=True):
            self._draw.line([*start, *end], fill=(*color, round(255 * opacity)), width=stroke)

    def dots(self, centers: np.ndarray, colors: np.ndarray, *, radius: float) -> None:
        """Draws filled circles at centers (k, 2) in RGB colours (k, 3); `radius` in px."""
        r = radius * OVERSAMPLING
        for (x, y), color in zip(self._enlarged(centers), colors.tolist(), strict=True):
            self._draw.ellipse([x - r, y - r, x + r, y + r], fill=(*color, 255))

    def paste_onto(self, picture: Image.Image) -> None:
        """Pastes all lines and dots onto a picture of the same size."""
        small = self._large.resize(self.size, Image.Resampling.BOX)
        picture.paste(small, mask=small)

    def _enlarged(self, points: np.ndarray) -> list[list[float]]:
        return keypoints_to_full_image(points, self.size, self._large.size).tolist()


def draw_text(
    picture: Image.Image, position: tuple[int, int], text: str, *, height: int, max_width: int, anchor: str = "lt"
) -> int:
    """Writes a line of text and returns its width in px.

    Args:
        picture: Picture to write on.
        position: (x, y) px of the anchor.
        text: The text.
        height: Size of the font, px.
        max_width: Wider text is shortened in the middle, px.
        anchor: Point of the text at `position`, in Pillow's notation: `lt` is top left.
    """
    font = ImageFont.load_default(height)
    shortened, keep = text, len(text)
    while keep > 2 and font.getlength(shortened) > max_width:
        keep -= 1
        shortened = f"{text[: (keep + 1) // 2]}...{text[len(text) - keep // 2 :]}"
    ImageDraw.Draw(picture).text(position, shortened, fill=INK, font=font, anchor=anchor)
    return round(font.getlength(shortened))


def draw_color_bar(picture: Image.Image, position: tuple[int, int], label: str, *, low: float = 0.0, high: float = 1.0) -> int:
    """Draws a bar of the score colours at (x, y) and returns its width in px. `label` and `low` are left of it, `high` right."""
    width, height = 180, 14
    x, y = position
    middle = y + height // 2
    x += draw_text(picture, (x, middle), f"{label}   {low:.3g}", height=14, max_width=400, anchor="lm") + 8
    colors = score_colors(np.linspace(0, 1, width))
    picture.paste(Image.fromarray(np.repeat(colors[None], height, axis=0)), (x, y))
    end = x + width + 8
    return end + draw_text(picture, (end, middle), f"{high:.3g}", height=14, max_width=100, anchor="lm") - position[0]


def is_marked(path: Path) -> bool:
    """Whether a run drew the picture. The comment is before the pixels."""
    with path.open("rb") as file:
        return MARK.encode() in file.read(4096)


def save(picture: Image.Image, path: Path | str) -> None:
    """Writes the picture in the format of the ending of `path`, whole or not at all; missing folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = PngInfo()
    mark.add_text("Comment", MARK)
    with written_whole(path) as temporary:
        # JPEG takes the comment, PNG the text. JPEG's colour subsampling would wash out thin lines.
        kind = Image.registered_extensions()[path.suffix.lower()]
        picture.save(temporary, kind, quality=90, subsampling=0, comment=MARK, pnginfo=mark)
