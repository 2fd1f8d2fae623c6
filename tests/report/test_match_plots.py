"""Pictures of matches: lines and dots have the right positions and colours."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from sfm_lightglue.report.draw import PAPER, draw_text, is_marked, save, score_colors
from sfm_lightglue.report.matches import FOOTER, GAP, HEADER, MARGIN, PHOTO_SIZE, draw_keypoints, draw_matches

BEST = score_colors(np.array([1.0]))[0].astype(int)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        picture.load()
        return np.asarray(picture.convert("RGB")).astype(int)


def is_near(colors: np.ndarray, color: np.ndarray | tuple[int, int, int], tolerance: int = 30) -> np.ndarray:
    return np.abs(colors - np.asarray(color)).max(axis=-1) <= tolerance


def red_center(picture: np.ndarray, first_column: int, last_column: int) -> tuple[float, float]:
    """(x, y) of the middle of all red pixels between two columns."""
    red = (picture[..., 0] > 150) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    rows, columns = np.nonzero(red[HEADER:-FOOTER, first_column:last_column])
    return float(columns.mean()) + first_column, float(rows.mean()) + HEADER


def test_a_line_ends_at_the_matched_keypoints(tmp_path: Path) -> None:
    """Each photo has one red pixel. The dot is in the middle of the red area that the photo without lines has."""
    photo0, photo1 = np.zeros((20, 30, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)
    photo0[4, 7], photo1[30, 11] = (255, 0, 0), (255, 0, 0)
    nothing, path = np.zeros((0, 2)), tmp_path / "plot.png"
    draw_matches(photo0, photo1, nothing, nothing, np.zeros(0), path)
    plain = read(path)
    border = MARGIN + PHOTO_SIZE + GAP // 2  # the wider photo is on the left and fills PHOTO_SIZE
    places = [red_center(plain, MARGIN, border), red_center(plain, border, plain.shape[1] - MARGIN)]
    draw_matches(photo0, photo1, np.array([[7.0, 4]]), np.array([[11.0, 30]]), np.ones(1), path)
    drawn = read(path)
    for x, y in places:
        rows, columns = np.nonzero(is_near(drawn[round(y) - 6 : round(y) + 7, round(x) - 6 : round(x) + 7], BEST))
        middle = columns.mean() + round(x) - 6, rows.mean() + round(y) - 6
        # The line joins the dot on one side and moves the middle of the red area by less than a pixel.
        np.testing.assert_allclose(middle, (x, y), atol=1.0)
    (x0, y0), (x1, y1) = places
    between = drawn[round((y0 + y1) / 2) + np.arange(-1, 2), round((x0 + x1) / 2)]
    assert (between.max(axis=-1) > 60).any()  # the photos are black, the line is bright


def test_photos_of_different_size_get_equal_heights_and_large_ones_shrink(tmp_path: Path) -> None:
    large, small = np.full((2000, 5000, 3), 90, np.uint8), np.full((200, 100, 3), 90, np.uint8)
    draw_matches(large, small, np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1), tmp_path / "plot.png")
    picture = read(tmp_path / "plot.png")
    assert picture.shape == (HEADER + 360 + FOOTER, MARGIN + 900 + GAP + 180 + MARGIN, 3)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_no_matches_give_a_valid_picture(tmp_path: Path, ending: str) -> None:
    photo = np.full((60, 80, 3), 128, np.uint8)
    path = tmp_path / "folder" / f"plot.{ending}"
    draw_matches(photo, photo, np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), path, inliers=np.zeros(0, bool), title="empty")
    assert is_near(read(path)[HEADER + 100, MARGIN + 100], (128, 128, 128), 3)


@pytest.mark.parametrize(("ending", "format_"), [("jpg", "JPEG"), ("png", "PNG")])
def test_a_picture_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, format_: str
) -> None:
    """A run would take a part of a picture for the file of somebody else, and refuse to replace it."""
    path = tmp_path / f"plot.{ending}"

    def interrupted(_: Image.Image, file: IO[bytes], __: str) -> None:
        file.write(b"part")
        assert not path.exists()
        raise KeyboardInterrupt

    Image.init()
    with monkeypatch.context() as patch:
        patch.setitem(Image.SAVE, format_, interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(Image.new("RGB", (8, 8)), path)
    assert not any(tmp_path.iterdir())
    save(Image.new("RGB", (8, 8)), path)
    assert is_marked(path) and [*tmp_path.iterdir()] == [path]


def horizontal_matches(count: int) -> tuple[np.ndarray, np.ndarray]:
    """A black photo and `count` keypoints in its middle column, from top to bottom."""
    keypoints = np.column_stack([np.full(count, 50.0), np.linspace(2, 97, count)])
    return np.zeros((100, 100, 3), np.uint8), keypoints


def test_matches_that_are_not_verified_are_grey(tmp_path: Path) -> None:
    photo, keypoints = horizontal_matches(2)
    draw_matches(photo, photo, keypoints, keypoints, np.ones(2), tmp_path / "plot.png", inliers=np.array([True, False]))
    inside = read(tmp_path / "plot.png")[HEADER:-FOOTER, MARGIN + 500 : MARGIN + 850]  # this part shows only lines
    upper, lower = inside[:450], inside[450:]
    lit = lower.max(axis=-1) > 20
    assert lit.any() and np.ptp(lower[lit], axis=-1).max() <= 3
    assert np.ptp(upper, axis=-1).max() > 50


def test_of_too_many_matches_an_even_choice_is_drawn_always_the_same(tmp_path: Path) -> None:
    photo, keypoints = horizontal_matches(96)
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        draw_matches(photo, photo, keypoints, keypoints, np.ones(96), path, max_lines=20)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    column = read(paths[0])[HEADER:-FOOTER, MARGIN + 700].max(axis=-1) > 60
    starts = np.flatnonzero(column & ~np.roll(column, 1))
    assert len(starts) == 20
    assert np.diff(starts).max() < 1.5 * np.diff(starts).mean()


def test_keypoints_are_drawn_at_their_positions(tmp_path: Path) -> None:
    photo = np.zeros((90, 90, 3), np.uint8)
    draw_keypoints(photo, np.array([[8.0, 20], [70, 60]]), np.array([0.1, 0.9]), tmp_path / "plot.png", title="two")
    picture = read(tmp_path / "plot.png")
    for x, y, score in ((8, 20, 0.0), (70, 60, 1.0)):
        column, row = MARGIN + round((x + 0.5) * 10 - 0.5), HEADER + round((y + 0.5) * 10 - 0.5)
        assert is_near(picture[row, column], score_colors(np.array([score]))[0])
    draw_keypoints(photo, np.zeros((0, 2)), np.zeros(0), tmp_path / "none.png")
    assert not read(tmp_path / "none.png")[HEADER:-FOOTER, MARGIN : MARGIN + 900].any()


def test_colors_run_from_red_to_blue_and_clip() -> None:
    low, high, below, above, nothing = score_colors(np.array([0, 1, -5, 7, np.nan])).tolist()
    assert low[0] > low[2] and high[2] > high[0]
    assert below == low == nothing and above == high
    np.testing.assert_array_equal(score_colors(np.array([3.0]), low=1, high=5), score_colors(np.array([0.5])))


def test_long_titles_are_shortened_to_fit() -> None:
    picture = Image.new("RGB", (300, 40), PAPER)
    assert draw_text(picture, (0, 0), "short", height=20, max_width=300) < 80
    assert 250 < draw_text(picture, (0, 0), "a_very_long_name_" * 20, height=20, max_width=300) <= 300
