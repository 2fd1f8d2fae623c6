"""Random homographies, and photos seen through them, compared with blobs, smooth images and polygons at known places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from generated_photos import centre_of_mass, gaussian_blobs
from torch import Tensor

from sfm_lightglue.training.homographies import HomographyRange, random_homography, shown_pixels, warp, warp_photos

SIZE = (240, 180)
STILL = HomographyRange(rotation_deg=0, large_rotation_deg=0, min_scale=1, max_scale=1, perspective=0, shift=0)


def mapped(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n, 2), mapped by a homography one by one."""
    through = [homography @ [x, y, 1] for x, y in points]
    return np.array([[x / w, y / w] for x, y, w in through])


def warp_photo(photo: Tensor, homography: np.ndarray, view_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`warp_photos` for one photo (c, h, w) that fills its array."""
    sizes = torch.tensor([[photo.shape[2], photo.shape[1]]])
    views, visible = warp_photos(photo[None], sizes, torch.from_numpy(homography)[None], view_size)
    return views[0], visible[0]


def inside_of_polygon(corners: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two masks over the pixels (h, w) of a view: inside the convex polygon (4, 2), and within 0.01 px of one of its sides."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    distances = []
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        distances.append(((x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0)) / np.hypot(x1 - x0, y1 - y0))
    return np.min(distances, axis=0) > 0, np.abs(distances).min(axis=0) < 0.01


@pytest.mark.parametrize(
    ("view_size", "changes", "sigma", "error_px"),
    [
        ((240, 180), {}, 2.0, 0.1),
        ((320, 240), {}, 2.0, 0.1),
        ((96, 72), {}, 3.0, 0.1),  # the photo is shown at less than half its size
        ((160, 200), {}, 2.5, 0.1),
        ((240, 180), {"perspective": 0.3}, 1.4, 0.2),  # a strong perspective moves the centre of mass of a blob's image
    ],
)
def test_blobs_are_seen_where_the_homography_maps_them(
    shipped, view_size: tuple[int, int], changes: dict[str, float], sigma: float, error_px: float
) -> None:
    columns, rows = np.meshgrid(np.arange(30, 240, 60), np.arange(30, 180, 60))
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1) + np.random.default_rng(0).uniform(-2, 2, (12, 2))
    photo = torch.from_numpy(gaussian_blobs(centres, SIZE, sigma))[None]
    ranges = replace(shipped.views.homographies, **changes)
    errors = []
    for seed in range(20):
        homography = random_homography(np.random.default_rng(seed), SIZE, view_size, ranges)
        view, visible = warp_photo(photo, homography, view_size)
        seen = (view[0] * visible).numpy()
        for centre, place in zip(centres, mapped(homography, centres), strict=True):
            # Magnification of this blob in the view: its window must contain it, and no other blob.
            along = mapped(homography, centre + np.array([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]]))
            scale = max(np.linalg.norm(along[0] - along[1]), np.linalg.norm(along[2] - along[3]))
            radius = int(np.ceil(3.5 * (sigma * scale + 0.5)))
            lowest, highest = np.rint(place) - radius, np.rint(place) + radius
            if (lowest < 0).any() or (highest >= view_size).any():
                continue
            x, y = lowest.astype(int)
            if visible[y : y + 2 * radius + 1, x : x + 2 * radius + 1].all():
                errors.append(np.linalg.norm(centre_of_mass(seen, place, radius) - place))
    assert len(errors) > 50
    assert max(errors) < error_px


@pytest.mark.parametrize("view_size", [(240, 180), (100, 75), (300, 90)])
def test_every_pixel_shows_the_photo_at_the_right_place(shipped, view_size: tuple[int, int]) -> None:
    def wave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 0.5 + 0.25 * np.sin(x / 30) + 0.25 * np.cos(y / 25 + x / 60)

    columns, rows = np.meshgrid(*(np.arange(side) for side in SIZE))
    photo = torch.from_numpy(wave(columns, rows).astype(np.float32))[None]
    for seed in range(5):
        homography = random_homography(np.random.default_rng(seed), SIZE, view_size, shipped.views.homographies)
        view, visible = warp_photo(photo, homography, view_size)
        y, x = np.nonzero(visible.numpy())
        source = mapped(np.linalg.inv(homography), np.stack([x, y], axis=1))
        within = ((source >= 2) & (source <= np.array(SIZE) - 3)).all(axis=1)  # edge pixels repeat
        assert within.sum() > 1000
        np.testing.assert_allclose(view[0].numpy()[y, x][within], wave(*source[within].T), atol=0.01)


@pytest.mark.parametrize("perspective", [0.0, 0.15, 0.25])
def test_the_photo_is_visible_in_the_quadrilateral_of_its_corners_and_nowhere_else(shipped, perspective: float) -> None:
    corners = np.array([[-0.5, -0.5], [239.5, -0.5], [239.5, 179.5], [-0.5, 179.5]])
    ranges = replace(shipped.teacher.homographies, perspective=perspective)
    hidden = 0
    for seed in range(10):
        homography = random_homography(np.random.default_rng(seed), SIZE, (120, 100), ranges)
        _, visible = warp_photo(torch.ones(1, 180, 240), homography, (120, 100))
        assert visible.dtype == torch.bool and visible.shape == (100, 120)
        expected, unsure = inside_of_polygon(mapped(homography, corners), (120, 100))
        np.testing.assert_array_equal(visible.numpy()[~unsure], expected[~unsure])
        hidden += np.count_nonzero(~expected)
    assert hidden > 1000


def test_the_photo_is_not_visible_behind_the_horizon() -> None:
    # The depth of the photo's row y is 1 - y / 150. Rows below 150 are behind the viewer, but are mapped into the view too.
    homography = np.array([[1, 0, 300], [0, 1, 700.5], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, 1, 0], [0, -1 / 150, 1]])
    ((x, y),) = mapped(homography, np.array([[50, 195]]))
    assert 0 < x < 400 and 0 < y < 1200
    photo = torch.full((1, 200, 100), 0.25)
    photo[:, 150:] = 1.0
    view, visible = warp_photo(photo, homography, (400, 1200))
    assert torch.isfinite(view).all()
    assert visible[705:, 300:].any() and not visible[:695].any()
    assert view[0][visible].max() < 0.5


def test_a_photo_that_just_fills_the_view_is_completely_visible() -> None:
    homography = random_homography(np.random.default_rng(0), (400, 300), (200, 150), STILL)
    np.testing.assert_allclose(mapped(homography, np.array([[-0.5, -0.5], [399.5, 299.5]])), [[-0.5, -0.5], [199.5, 149.5]])
    _, visible = warp_photo(torch.ones(1, 300, 400), homography, (200, 150))
    assert visible.all()


@pytest.mark.parametrize("smaller", [1, 2, 4])
def test_making_a_photo_smaller_averages_its_pixels(smaller: int) -> None:
    noise = torch.rand(1, 300, 400, generator=torch.Generator().manual_seed(0))
    view_size = 400 // smaller, 300 // smaller
    view, _ = warp_photo(noise, random_homography(np.random.default_rng(0), (400, 300), view_size, STILL), view_size)
    blocks = noise.unflatten(2, (-1, smaller)).unflatten(1, (-1, smaller)).mean(dim=(2, 4))
    torch.testing.assert_close(view, blocks, atol=1e-3, rtol=0)  # four samples of four pixels each: at most 16 pixels


def test_beyond_its_edges_views_show_the_photo_mirrored() -> None:
    photo = torch.rand(2, 20, 30, generator=torch.Generator().manual_seed(0))
    view, visible = warp_photo(photo, np.array([[1, 0, 25], [0, 1, 15], [0, 0, 1.0]]), (80, 50))
    around = np.pad(photo.numpy(), ((0, 0), (15, 15), (25, 25)), mode="symmetric")
    np.testing.assert_allclose(view.numpy(), around, atol=1e-4)
    assert visible[15:35, 25:55].all() and visible.sum() == 20 * 30


def test_a_photo_in_a_larger_array_looks_the_same_and_the_rest_of_the_array_is_never_seen(shipped) -> None:
    generator = torch.Generator().manual_seed(0)
    photos = [torch.rand(1, height, width, generator=generator) for width, height in ((60, 40), (33, 60), (60, 60), (21, 17))]
    rng = np.random.default_rng(0)
    homographies = np.stack(
        [random_homography(rng, photo.shape[:0:-1], (48, 40), shipped.teacher.homographies) for photo in photos]
    )
    stacked = torch.full((4, 1, 60, 60), 1e3)
    for place, photo in zip(stacked, photos, strict=True):
        place[:, : photo.shape[1], : photo.shape[2]] = photo
    sizes = torch.tensor([photo.shape[:0:-1] for photo in photos])
    views, visible = warp_photos(stacked, sizes, torch.from_numpy(homographies), (48, 40))
    assert torch.equal(visible, shown_pixels(torch.from_numpy(homographies), sizes, (48, 40)))
    for i, (photo, homography) in enumerate(zip(photos, homographies, strict=True)):
        view, seen = warp_photo(photo, homography, (48, 40))
        # Positions are exact to 1e-5 px, and the value beside the photo is a thousand times larger than the photo's.
        torch.testing.assert_close(views[i], view, atol=0.02, rtol=0)
        assert torch.equal(visible[i], seen)


def test_points_are_mapped_by_the_homography_of_their_row(shipped) -> None:
    rng = np.random.default_rng(0)
    homographies = np.stack([random_homography(rng, SIZE, SIZE, shipped.teacher.homographies) for _ in range(3)])
    points = rng.uniform(0, 180, (3, 5, 2))
    found = warp(torch.from_numpy(homographies), torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(found, [mapped(*each) for each in zip(homographies, points, strict=True)])


def test_the_same_seed_gives_the_same_homography(shipped) -> None:
    first, again, other = (
        random_homography(np.random.default_rng(seed), SIZE, (320, 240), shipped.views.homographies) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_rotation_and_magnification_keep_to_their_ranges(shipped) -> None:
    ranges = replace(shipped.views.homographies, perspective=0.0, rotation_deg=0.0)
    angles, scales = [], []
    for seed in range(400):
        homography = random_homography(np.random.default_rng(seed), (200, 180), (320, 240), ranges)
        np.testing.assert_allclose(homography[2], [0, 0, 1], atol=1e-12)
        turn = homography[:2, :2]
        scales.append(np.sqrt(np.linalg.det(turn)) / (320 / 200))  # the photo fills the view when its width does
        np.testing.assert_allclose(turn @ turn.T, np.eye(2) * np.linalg.det(turn), atol=1e-9)
        angles.append(np.rad2deg(np.arctan2(turn[1, 0], turn[0, 0])))
    assert ranges.min_scale <= min(scales) < 0.8 and 1.7 < max(scales) <= ranges.max_scale
    large = [angle for angle in angles if abs(angle) > 1e-9]
    assert 40 < len(large) < 120  # one in five
    assert max(np.abs(large)) <= ranges.large_rotation_deg and min(large) < -30 and max(large) > 30


def test_most_rotations_have_the_requested_standard_deviation() -> None:
    ranges = replace(STILL, rotation_deg=12.0)
    turns = [random_homography(np.random.default_rng(seed), SIZE, SIZE, ranges)[:2, 0] for seed in range(500)]
    angles = np.array([np.rad2deg(np.arctan2(sine, cosine)) for cosine, sine in turns])
    assert np.std(angles[np.abs(angles) > 1e-9]) == pytest.approx(12, rel=0.15)


def test_the_view_is_centred_near_the_centre_of_the_photo() -> None:
    ranges = replace(STILL, shift=0.2)
    shifts = []
    for seed in range(200):
        homography = random_homography(np.random.default_rng(seed), SIZE, (120, 90), ranges)
        ((x, y),) = mapped(np.linalg.inv(homography), np.array([[59.5, 44.5]]))
        shifts.append(((x + 0.5) / 240 - 0.5, (y + 0.5) / 180 - 0.5))
    assert np.abs(shifts).max(axis=0) == pytest.approx([0.2, 0.2], abs=0.01)
    assert np.abs(shifts).max() <= 0.2 + 1e-9


def test_perspective_moves_the_corners_by_a_share_of_the_view() -> None:
    corners = np.array([[-0.5, -0.5], [239.5, -0.5], [239.5, 179.5], [-0.5, 179.5]])
    moved = []
    for seed in range(100):
        homography = random_homography(np.random.default_rng(seed), SIZE, (120, 90), replace(STILL, perspective=0.15))
        moved.append((mapped(homography, corners) - (corners + 0.5) / 2 + 0.5) / [120, 90])
    assert 0.14 < np.abs(moved).max() <= 0.15 + 1e-9
