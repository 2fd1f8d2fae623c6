"""Figures: marks stand on the right pixels, colours say what they should, and nothing but the figure changes."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image as PILImage

from sfm_lightglue import Image, ImageMatches, Pair, RunFolder, plot_keypoints, plot_matches, plot_pairs, plot_reconstruction
from sfm_lightglue.plots.pairs import EMPTY, REJECTED, _groups
from sfm_lightglue.products import Features, Matches
from sfm_lightglue.storage import ShardStore, features_to_group, match_key, matches_to_group

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402

MARK = (255, 0, 255)


def render(figure: Figure, dpi: float = 100) -> np.ndarray:
    """The pixels (h, w, 3) that `savefig` writes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return np.asarray(PILImage.open(file).convert("RGB")).astype(int)


def middle(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """(x, y) of the middle of all pixels of nearly this colour."""
    rows, columns = np.nonzero(np.abs(picture - color).max(axis=2) <= 40)
    assert len(rows), f"{color} is nowhere"
    return np.array([columns.mean(), rows.mean()])


def photo_with_a_mark(size: tuple[int, int], x: int, y: int) -> np.ndarray:
    """A black photo of (width, height) with one white pixel."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y, x] = 255
    return pixels


def matches_of(points0: list[list[float]], points1: list[list[float]], scores: list[float]) -> ImageMatches:
    keypoints0, keypoints1 = np.array(points0, np.float32).reshape(-1, 2), np.array(points1, np.float32).reshape(-1, 2)
    found = np.arange(len(scores))
    both = np.array(scores, np.float32)
    return ImageMatches(keypoints0, keypoints1, both, keypoints0, keypoints1, found, found, both, both)


# --- where marks stand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dpi", [100, 173])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (11, 7), (5, 2)])
def test_a_keypoint_stands_on_the_centre_of_its_pixel(x: int, y: int, dpi: int) -> None:
    photo = photo_with_a_mark((12, 8), x, y)
    pixel = middle(render(plot_keypoints(photo, np.zeros((0, 2)), width_in=4), dpi), (255, 255, 255))
    keypoint = middle(render(plot_keypoints(photo, np.array([[x, y]]), color="magenta", size_pt=4, width_in=4), dpi), MARK)
    # A pixel of the photo is 33 px wide: half a pixel would be 16 px. Drawing rounds to whole px.
    np.testing.assert_allclose(keypoint, pixel, atol=1.0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_matches_end_on_their_pixels_in_both_photos_also_if_exif_turns_them(orientation: int) -> None:
    """The photos differ in size, and photo 1 is larger, so it is reduced to the height of photo 0."""
    photo0, photo1 = photo_with_a_mark((12, 8), 0, 0), photo_with_a_mark((30, 20), 4, 17)
    stored = Image("stored", photo1, orientation=orientation)
    nothing, one = matches_of([], [], []), matches_of([[0, 0]], [[4, 17]], [1.0])
    plain = render(plot_matches(photo0, stored, nothing, color="magenta"))
    drawn = render(plot_matches(photo0, stored, one, color="magenta"))
    border = np.flatnonzero((plain[5:-5] > 200).all(axis=(0, 2)))  # the white gap between the photos
    for part in (slice(0, border[0] - 3), slice(border[-1] + 4, None)):
        pixel, dot = middle(plain[:, part], (255, 255, 255)), middle(drawn[:, part], MARK)
        np.testing.assert_allclose(dot, pixel, atol=1.5)  # half a pixel of photo 1 is 5 px; the line shades one side of the dot


def test_a_photo_that_was_decoded_at_a_reduced_size_keeps_the_pixels_of_the_full_photo() -> None:
    reduced = Image("large", photo_with_a_mark((10, 10), 2, 3), full_size=(80, 80))
    pixel = middle(render(plot_keypoints(reduced, np.zeros((0, 2)), width_in=3)), (255, 255, 255))
    keypoint = middle(render(plot_keypoints(reduced, np.array([[19.5, 27.5]]), color="magenta", width_in=3)), MARK)
    np.testing.assert_allclose(keypoint, pixel, atol=1.0)


# --- what colours say ------------------------------------------------------------------------------------------------------


def test_lines_have_the_colours_of_scores_and_rejected_matches_are_grey() -> None:
    photo = np.zeros((60, 60, 3), np.uint8)
    points = [[30, 10], [30, 30], [30, 50]]
    matches = matches_of(points, points, [0.0, 1.0, 1.0])
    picture = render(plot_matches(photo, photo, matches, inliers=np.array([True, True, False]), colormap="RdYlGn"))
    third = picture.shape[1] // 2
    between = picture[:, third + third // 8 : third + third // 4]  # only lines on black
    height = 60 * (picture.shape[1] / (120 * 1.012)) / 3
    rows = [between[round(height * k) : round(height * (k + 1))].reshape(-1, 3) for k in range(3)]
    red, green, grey = (row[row.sum(axis=1).argmax()] for row in rows)
    assert red[0] > 100 and red[1] < 40
    assert green[1] > 60 and green[0] < 40
    assert np.ptp(grey) <= 3 and grey.max() > 40


def test_the_best_scores_are_on_top_and_an_even_selection_is_drawn() -> None:
    photo = np.zeros((50, 50, 3), np.uint8)
    points = [[25.0, 25.0]] * 3
    figure = plot_matches(photo, photo, matches_of(points, points, [0.9, 0.5, 0.1]), max_lines=2)
    lines = [collection for collection in figure.axes[0].collections if len(collection.get_paths()) == 2]
    assert len(lines) == 1
    first, last = lines[0].get_edgecolors()
    assert first[0] > first[2] and last[2] > last[0]  # red below blue


def test_an_array_of_keypoints_has_one_colour_and_features_have_those_of_their_scores() -> None:
    photo = np.zeros((40, 40, 3), np.uint8)
    features = Features(np.array([[10, 10], [30, 30]], np.float32), np.array([0.1, 0.9], np.float32), np.zeros((2, 0)), (40, 40))
    plain, scored = plot_keypoints(photo, features.keypoints), plot_keypoints(photo, features)
    assert len(plain.axes) == 1 and len(scored.axes) == 2  # with a colour bar
    assert len(plain.axes[0].collections[0].get_facecolors()) == 1
    low, high = scored.axes[0].collections[0].get_facecolors()
    assert low[0] > low[2] and high[2] > high[0]


def test_a_matrix_shows_values_rejected_pairs_and_no_pairs() -> None:
    pairs = {Pair("a/0.jpg", "a/1.jpg"): 50.0, Pair("a/0.jpg", "a/2.jpg"): 0.0}
    figure = plot_pairs(pairs, label="inliers")
    grid = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(grid[0, 2], (255 * np.array(REJECTED)).round())
    np.testing.assert_array_equal(grid[1, 2], (255 * np.array(EMPTY)).round())
    np.testing.assert_array_equal(grid, grid.swapaxes(0, 1))
    assert not np.array_equal(grid[0, 1], grid[0, 2])
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"0", "1", "2", "inliers", "grey: 0"} <= texts


def test_a_matrix_of_many_photos_stays_small_and_keeps_its_shape() -> None:
    names = [f"{number:05d}.jpg" for number in range(5000)]
    figure = plot_pairs([Pair(names[0], names[-1])], names=names)
    grid = np.asarray(figure.axes[0].images[0].get_array())
    assert grid.shape[0] == 600 and (grid[0, -1] != 255).any() and (grid[0, 0] == 255).all()


def test_a_graph_separates_groups_that_no_pair_joins() -> None:
    edges = np.array([[0, 1], [4, 5], [5, 6]])
    np.testing.assert_array_equal(_groups(7, edges), [1, 1, 2, 3, 0, 0, 0])


# --- runs and models --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of two photos with two matches, of which one is verified."""
    photos, folder = tmp_path / "photos", RunFolder(tmp_path / "out")
    photos.mkdir()
    folder.path.mkdir()
    for name in ("a.png", "b.png"):
        PILImage.fromarray(np.zeros((30, 40, 3), np.uint8)).save(photos / name)
    folder.summary.write_text(f'{{"stages": {{}}, "dataset": {{"images": "{photos.as_posix()}"}}}}')
    return folder


def test_names_and_a_run_folder_give_the_plots_of_a_run(run: RunFolder) -> None:
    keypoints = np.array([[5, 5], [30, 20]], np.float32)
    features = Features(keypoints, np.array([0.9, 0.1], np.float32), np.zeros((2, 4), np.float32), (40, 30))
    matches = Matches(np.array([[0, 1]], np.int32), np.array([0.8], np.float32))
    with ShardStore(run.features, {}) as store:
        for name in ("a.png", "b.png"):
            store.add(name, features_to_group(features), name)
        store.merge()
    with ShardStore(run.matches, {}) as store:
        store.add(match_key("a.png", "b.png"), matches_to_group(matches, 2), "")
        store.merge()
    run.pairs.write_text("a.png b.png\n")
    figure = plot_matches("a.png", "b.png", run)
    back = plot_matches("b.png", "a.png", run)
    (line,), (reverse,) = (
        [path.vertices for collection in each.axes[0].collections for path in collection.get_paths() if len(path.vertices) == 2]
        for each in (figure, back)
    )
    np.testing.assert_allclose(line[0], (5, 5))
    np.testing.assert_allclose(reverse[0], (30, 20))
    assert len(plot_keypoints("a.png", run).axes[0].collections[0].get_offsets()) == 2
    assert "matches" in {text.get_text() for axes in plot_pairs(run).axes for text in axes.texts}
    with pytest.raises(KeyError, match=r"c\.png"):
        plot_keypoints("c.png", run)
    with pytest.raises(ValueError, match="no model"):
        plot_reconstruction(run)


def scene() -> pycolmap.Reconstruction:
    """Two cameras side by side that look along +z at a wall, blue on its left, orange on its right."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(pycolmap.Camera(model="PINHOLE", width=64, height=48, params=[50, 50, 32, 24], camera_id=1))
    for image_id, x in enumerate((-0.5, 0.5), 1):
        image = pycolmap.Image(name=f"{image_id}.jpg", camera_id=1, image_id=image_id)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(np.eye(3)), np.array([-x, 0, 0])))
    for x in np.linspace(-2, 2, 21):
        for y in np.linspace(-1, 1, 11):
            model.add_point3D(
                np.array([x, y, 6.0]), pycolmap.Track(), np.array((20, 90, 200) if x < 0 else (230, 150, 20), np.uint8)
            )
    return model


def test_a_reconstruction_is_not_mirrored_and_turns_with_its_azimuth() -> None:
    def places(azimuth_deg: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        picture = render(plot_reconstruction(scene(), azimuth_deg=azimuth_deg, point_size_pt=4, camera_color="magenta"))
        return middle(picture, (20, 90, 200)), middle(picture, (230, 150, 20)), middle(picture, MARK)

    blue, orange, cameras = places(0)
    assert blue[0] < orange[0] - 50 and cameras[1] > blue[1] + 20
    blue, orange, cameras = places(180)
    assert blue[0] > orange[0] + 50 and cameras[1] < blue[1]
    blue, orange, cameras = places(90)
    assert cameras[0] > blue[0] + 50  # seen from the left, the wall in front of the cameras is on the left


# --- mistakes and side effects ----------------------------------------------------------------------------------------------


def test_mistakes_are_explained() -> None:
    photo = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="colour map 'rainbow2'"):
        plot_matches(photo, photo, matches_of([], [], []), colormap="rainbow2")
    with pytest.raises(ValueError, match=r"inliers has the shape \(2,\)"):
        plot_matches(photo, photo, matches_of([[1, 1]], [[1, 1]], [1.0]), inliers=np.ones(2, bool))
    with pytest.raises(ValueError, match=r"scores has the shape \(3,\)"):
        plot_keypoints(photo, np.zeros((2, 2)), np.zeros(3))
    with pytest.raises(ValueError, match=r"'b\.jpg' is in a pair but not in names"):
        plot_pairs([Pair("a.jpg", "b.jpg")], names=["a.jpg"])
    with pytest.raises(ValueError, match="matrix or graph"):
        plot_pairs([], layout="circle")
    with pytest.raises(ValueError, match="0 points"):
        plot_reconstruction(pycolmap.Reconstruction())


def test_without_matplotlib_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sfm_lightglue.plots.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"sfm-lightglue\[plots\]"):
        plot_keypoints(np.zeros((20, 20, 3), np.uint8), np.zeros((0, 2)))


def test_nothing_global_changes_and_pyplot_is_not_imported(tmp_path: Path) -> None:
    script = """
import sys, sfm_lightglue, numpy as np
assert "matplotlib" not in sys.modules
sfm_lightglue.plot_keypoints
assert "matplotlib" not in sys.modules
import matplotlib
before = list(dict.items(matplotlib.rcParams))  # reading the backend would import pyplot
sfm_lightglue.plot_keypoints(np.zeros((20, 20, 3), np.uint8), np.zeros((1, 2)), np.ones(1)).savefig(sys.argv[1])
sfm_lightglue.plot_pairs([sfm_lightglue.Pair("a", "b")], layout="graph").savefig(sys.argv[1])
assert list(dict.items(matplotlib.rcParams)) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "plot.png")], check=True)


def test_a_figure_shows_itself_in_notebooks_and_can_be_stored(tmp_path: Path) -> None:
    figure = plot_pairs([Pair("a", "b")])
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert isinstance(pickle.loads(pickle.dumps(figure)), Figure)
    for ending in ("pdf", "svg", "png", "jpg"):
        figure.savefig(tmp_path / f"pairs.{ending}")
        assert (tmp_path / f"pairs.{ending}").stat().st_size > 1000
