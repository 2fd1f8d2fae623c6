"""Batches for SuperPoint: the targets of cells, and view pairs of photos with discs that identify each point."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generated_photos import centre_of_mass
from torch import Generator, Tensor

from sfm_lightglue.training.homographies import shown_pixels, warp
from sfm_lightglue.training.photometric import PhotometricRange
from sfm_lightglue.training.photos import row_of, write_index
from sfm_lightglue.training.teacher import TeacherOptions
from sfm_lightglue.training.views import PairsOfViews, ViewOptions, cell_targets, make_views

SIZE = (160, 120)
RADIUS = 6
AS_IT_IS = PhotometricRange(contrast=1, brightness=0, gamma=1, shadow=0, lighting=0, blur=0.3, noise=0, jpeg_quality=95)
"""The smallest changes there are: some views get a blur of 0.3 px or JPEG at its best."""


# --- the targets of cells --------------------------------------------------------------------------------------------------


def heatmap(targets: np.ndarray) -> np.ndarray:
    """float64 (h, w): the probabilities of the pixels, arranged by torch."""
    return F.pixel_shuffle(torch.from_numpy(targets[None, :64]).double(), 8)[0, 0].numpy()


def targets_of(points: np.ndarray, repeatability: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`cell_targets` of one view. It is the second of a batch; the first view has a point in its first pixel."""
    both = torch.zeros(2, len(points), 2)
    both[1] = torch.from_numpy(points)
    shares = torch.ones(2, len(points))
    shares[1] = torch.from_numpy(repeatability)
    return cell_targets(both, shares, size)[1].numpy()


def test_a_cell_without_points_holds_no_keypoint() -> None:
    targets = targets_of(np.zeros((0, 2)), np.zeros(0), (32, 16))
    assert targets.shape == (65, 2, 4) and targets.dtype == np.float32
    assert (targets[64] == 1).all() and (targets[:64] == 0).all()


@pytest.mark.parametrize(
    "point",
    [(3.0, 5.0), (12.25, 9.75), (7.5, 20.0), (7.6, 15.9), (15.999, 8.001), (8.0, 8.0), (1.0, 1.0), (46.7, 22.9), (23.001, 22.5)],
)
def test_the_expected_position_is_the_point_itself_also_across_cells(point: tuple[float, float]) -> None:
    targets = targets_of(np.array([point]), np.array([0.6], np.float32), (48, 24))
    np.testing.assert_allclose(targets.sum(axis=0), 1, atol=1e-6)
    found = heatmap(targets)
    assert found.sum() == pytest.approx(0.6, abs=1e-6)
    rows, columns = np.mgrid[:24, :48]
    assert (found * columns).sum() / found.sum() == pytest.approx(point[0], abs=1e-4)
    assert (found * rows).sum() / found.sum() == pytest.approx(point[1], abs=1e-4)
    assert np.count_nonzero(found > 1e-7) <= 4


def test_with_many_points_each_cell_sums_to_one_and_points_keep_their_positions() -> None:
    rng = np.random.default_rng(0)
    cells = rng.permutation(8 * 6)[:30]
    # Each point is in the middle of its own cell, so nothing is shared.
    points = np.stack([cells % 8, cells // 8], axis=1) * 8 + rng.uniform(0, 7, (30, 2))
    mass = rng.uniform(0.1, 1, 30).astype(np.float32)
    targets = targets_of(points, mass, (64, 48))
    np.testing.assert_allclose(targets.sum(axis=0), 1, atol=1e-6)
    found = heatmap(targets)
    for (column, row), point, share in zip(np.stack([cells % 8, cells // 8], axis=1), points, mass, strict=True):
        assert 1 - targets[64, row, column] == pytest.approx(share, abs=1e-6)
        window = np.zeros_like(found)
        window[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = found[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        rows, columns = np.mgrid[:48, :64]
        position = np.array([(window * columns).sum(), (window * rows).sum()]) / window.sum()
        np.testing.assert_allclose(position, point, atol=1e-4)


def test_points_that_share_a_cell_are_scaled_to_a_sum_of_one() -> None:
    targets = targets_of(np.array([[1.0, 1.0], [5.0, 6.0]]), np.array([1.0, 0.5], np.float32), (8, 8))
    assert targets[64, 0, 0] == 0
    assert targets[9, 0, 0] == pytest.approx(1 / 1.5)  # pixel (1, 1)
    assert targets[6 * 8 + 5, 0, 0] == pytest.approx(0.5 / 1.5)
    assert targets.sum() == pytest.approx(1)


def test_points_without_repeatability_or_outside_the_view_do_not_count() -> None:
    points = np.array([[3.0, 4.5], [-7.0, 4.0], [20.0, 16.5], [1e9, -1e9], [31.5, 15.5]])
    targets = targets_of(points, np.array([0.0, 1, 1, 1, 1]), (32, 16))
    found = heatmap(targets)
    assert found[15, 31] == pytest.approx(0.25) and found.sum() == pytest.approx(
        0.25
    )  # one of the four pixels of the last point is inside


def test_a_view_must_consist_of_whole_cells(shipped) -> None:
    with pytest.raises(ValueError, match="multiples of 8 px, found 100 x 240"):
        replace(shipped.views, width=100)
    with pytest.raises(ValueError, match="border must be 1 px or more, found 0"):
        replace(shipped.views, border=0)


# --- pairs of views --------------------------------------------------------------------------------------------------------


def grey_of(disc: int) -> int:
    return 250 - 9 * disc


def write_discs(folder: Path, number: int) -> tuple[Path, Path]:
    """A photo of 20 discs of different grey, and its targets: the centres of the discs, with unit vector i as descriptor i."""
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(np.arange(16, 160, 30), np.arange(15, 120, 30)), axis=-1).reshape(-1, 2)
    centres = grid + rng.uniform(-3, 3, grid.shape)
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    photo = np.zeros(rows.shape)
    for disc, (x, y) in enumerate(centres):
        photo = np.maximum(photo, grey_of(disc) * np.clip(RADIUS + 0.5 - np.hypot(columns - x, rows - y), 0, 1))
    np.save(folder / f"{number}.npy", photo.round().astype(np.uint8))
    repeatability = np.linspace(1, 0.4, 20).astype(np.float16)
    targets = folder / f"{number}.npz"
    np.savez(targets, keypoints=centres.astype(np.float32), repeatability=repeatability, descriptors=np.eye(20, dtype=np.float16))
    return folder / f"{number}.npy", targets


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index of six photos."""
    folder = tmp_path_factory.mktemp("discs")
    return write_index(folder / "index.json", [write_discs(folder, i) for i in range(6)])


@pytest.fixture
def teacher(shipped) -> TeacherOptions:
    return replace(shipped.teacher, photo_size=max(SIZE), max_keypoints=26)


@pytest.fixture
def options(shipped) -> ViewOptions:
    return replace(shipped.views, width=160, height=120, pairs=2, max_points=24, photometric=AS_IT_IS)


def make(item: dict[str, Tensor], options: ViewOptions, seed: int = 0) -> dict[str, Tensor]:
    return make_views(item, options, Generator().manual_seed(seed))


def disc_at(view: np.ndarray, point: np.ndarray) -> int:
    x, y = np.rint(point).astype(int)
    return round((250 - 255 * view[y, x]) / 9)


def test_items_and_batches_have_the_documented_shapes_and_types(
    index: Path, teacher: TeacherOptions, options: ViewOptions
) -> None:
    item = PairsOfViews(index, teacher, options, 0)[0]
    assert {key: (tuple(value.shape), value.dtype) for key, value in item.items()} == {
        "photos": ((2, 1, 160, 160), torch.uint8),
        "sizes": ((2, 2), torch.int64),
        "homographies": ((2, 2, 3, 3), torch.float64),
        "keypoints": ((2, 26, 2), torch.float32),
        "repeatability": ((2, 26), torch.float32),
        "descriptors": ((2, 26, 20), torch.float16),
    }
    batch = make(item, options)
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    assert shapes == {
        "views": (4, 1, 120, 160),
        "targets": (4, 65, 15, 20),
        "cell_weights": (4, 15, 20),
        "points": (4, 24, 2),
        "is_point": (2, 24),
        "teacher": (4, 24, 20),
        "between": (2, 3, 3),
        "is_natural": (2,),
    }
    assert {key for key, value in batch.items() if value.dtype == torch.float32} == shapes.keys() - {"is_point", "is_natural"}
    assert batch["views"].min() >= 0 and batch["views"].max() <= 1
    np.testing.assert_allclose(batch["targets"].sum(dim=1), 1, atol=1e-6)


def test_both_views_show_the_same_disc_at_a_point(index: Path, teacher: TeacherOptions, options: ViewOptions) -> None:
    compared, errors = 0, []
    dataset = PairsOfViews(index, teacher, options, 0)
    for step in range(6):
        batch = make(dataset[step], options)
        for pair in range(2):
            is_point = batch["is_point"][pair]
            discs = batch["teacher"][pair, is_point].argmax(dim=1).tolist()
            assert len(set(discs)) == len(discs)
            first, second = (batch["points"][view : view + 1, is_point] for view in (pair, 2 + pair))
            torch.testing.assert_close(warp(batch["between"][pair : pair + 1], first), second, atol=1e-2, rtol=0)
            for view in (pair, 2 + pair):  # the first views of all pairs, then their partners
                seen, points = batch["views"][view, 0].numpy(), batch["points"][view, is_point].numpy()
                assert [disc_at(seen, point) for point in points] == discs
                compared += len(discs)
                errors += [
                    np.linalg.norm(centre_of_disc(seen, point) - point)
                    for point in points
                    if (point > 15).all() and (point < np.array(SIZE) - 16).all()
                ]
    assert compared > 60 and len(errors) > 60
    assert max(errors) < 0.3


def centre_of_disc(view: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The mean pixel of the bright patch around the point."""
    x, y = np.rint(point).astype(int)
    bright = view > view[y, x] / 2
    patch = np.zeros_like(bright)
    patch[y, x] = True
    for _ in range(30):  # grows by a pixel in all four directions
        padded = np.pad(patch, 1)
        patch = (padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | patch) & bright
    rows, columns = np.nonzero(patch)
    return np.array([columns.mean(), rows.mean()])


def test_points_are_all_keypoints_that_both_views_show(index: Path, teacher: TeacherOptions, options: ViewOptions) -> None:
    item = PairsOfViews(index, teacher, options, 0)[4]
    batch = make(item, options)
    number = 0
    for pair in range(2):
        expected = set(range(20))
        for half in range(2):
            homography = item["homographies"][half, pair]
            (visible,) = shown_pixels(homography[None], item["sizes"][pair, None], SIZE)
            for disc, keypoint in enumerate(item["keypoints"][pair, :20].tolist()):
                x, y, w = (homography @ torch.tensor([*keypoint, 1.0]).double()).tolist()
                x, y = x / w, y / w
                low, high = options.border, np.array(SIZE) - options.border
                if not (low <= x < high[0] and low <= y < high[1] and visible[round(y), round(x)]):
                    expected.discard(disc)
        is_point = batch["is_point"][pair]
        assert set(batch["teacher"][pair, is_point].argmax(dim=1).tolist()) == expected
        number += len(expected)
    assert 5 < number < 35


def test_keypoints_behind_the_horizon_are_not_in_the_view(index: Path, teacher: TeacherOptions, options: ViewOptions) -> None:
    # The depth of the photo's row y is 1 - y / 20. Rows below 20 are behind the viewer, and are mapped to rows above 25.
    homography = np.array([[1, 0, 120], [0, 1, 45], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, 1, 0], [0, -1 / 20, 1]])
    item = PairsOfViews(index, teacher, options, 0)[0]
    item["homographies"] = torch.from_numpy(homography).expand(2, 2, 3, 3)
    x, y, w = homography @ np.concatenate([item["keypoints"][0, :20].numpy(), np.ones((20, 1))], axis=1).T
    assert np.count_nonzero((w < 0) & (x / w > 8) & (x / w < 150) & (y / w > 8) & (y / w < 24)) > 5
    batch = make(item, options)
    assert (batch["targets"][:, 64, :3] == 1).all()
    points = batch["points"][batch["is_point"].repeat(2, 1)]
    assert (points[:, 1] > 25).all()


def test_padding_has_no_influence(index: Path, teacher: TeacherOptions, options: ViewOptions) -> None:
    """The padding is the pixels beside the photo in the stack, and the rows after the last keypoint."""
    item = PairsOfViews(index, teacher, options, 0)[0]
    assert (item["sizes"] == torch.tensor(SIZE)).all() and not item["repeatability"][:, 20:].any()
    changed = {key: value.clone() for key, value in item.items()}
    changed["photos"][:, :, SIZE[1] :] = 255
    changed["keypoints"][:, 20:] = 60.0
    changed["descriptors"][:, 20:] = 1.0
    expected, found = make(item, options), make(changed, options)
    for key in ("targets", "cell_weights", "is_point"):
        assert torch.equal(expected[key], found[key])
    is_point = expected["is_point"]
    for key in ("teacher", "points"):
        assert torch.equal(expected[key][is_point.repeat(2, 1)], found[key][is_point.repeat(2, 1)])
    assert (expected["views"] - found["views"]).abs().max() < 0.02  # JPEG enlarges rounding errors


def test_if_there_are_too_many_points_some_are_chosen(index: Path, teacher: TeacherOptions, options: ViewOptions) -> None:
    item = PairsOfViews(index, teacher, options, 0)[1]
    every = make(item, options)
    assert every["is_point"].sum(dim=1).min() > 3
    known = {tuple(point) for point in every["points"][0, every["is_point"][0]].tolist()}
    chosen = set()
    for seed in range(20):
        few = make(item, replace(options, max_points=3), seed)
        assert few["is_point"].shape == (2, 3) and few["is_point"].all()
        chosen |= {tuple(point) for point in few["points"][0].tolist()}
    assert chosen == known  # every point is chosen sometimes


def test_points_are_not_near_the_edge(index: Path, teacher: TeacherOptions, options: ViewOptions) -> None:
    options = replace(options, border=20)
    dataset = PairsOfViews(index, teacher, options, 0)
    for step in range(4):
        batch = make(dataset[step], options)
        points = batch["points"][batch["is_point"].repeat(2, 1)]
        assert points.min() >= 20 and (points < torch.tensor(SIZE) - 20).all()
        found = F.pixel_shuffle(batch["targets"][:, :64], 8)[:, 0]
        assert found[:, :20].sum() == found[:, :, :20].sum() == 0


def test_the_targets_have_the_repeatability_of_the_points(index: Path, teacher: TeacherOptions, options: ViewOptions) -> None:
    batch = make(PairsOfViews(index, teacher, options, 0)[2], options)
    repeatability = np.linspace(1, 0.4, 20)
    checked = 0
    for view in range(4):
        found = heatmap(batch["targets"][view].numpy())
        is_point = batch["is_point"][view % 2]
        for point, descriptor in zip(batch["points"][view, is_point].numpy(), batch["teacher"][view % 2, is_point], strict=True):
            if (point > 3).all() and (point < np.array(SIZE) - 4).all():
                x, y = np.floor(point).astype(int)
                window = found[y - 1 : y + 3, x - 1 : x + 3]
                disc = int(descriptor.argmax())
                assert window.sum() == pytest.approx(repeatability[disc], abs=1e-3)  # targets are stored in 16 bit
                np.testing.assert_allclose(centre_of_mass(found, point, 2), point, atol=1e-4)
                checked += 1
    assert checked > 15


def test_only_cells_that_lie_within_the_photo_count(index: Path, teacher: TeacherOptions, options: ViewOptions) -> None:
    item = PairsOfViews(index, teacher, options, 0)[3]
    weights = make(item, options)["cell_weights"]
    masks = shown_pixels(item["homographies"].flatten(0, 1), item["sizes"].repeat(2, 1), SIZE)
    partly = 0
    for view, mask in enumerate(masks):
        for row in range(15):
            for column in range(20):
                cell = mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                assert weights[view, row, column] == float(cell.all())
                partly += bool(cell.any() and not cell.all())
    assert partly > 10


def test_a_photo_without_keypoints_gives_empty_targets(
    index: Path, teacher: TeacherOptions, options: ViewOptions, tmp_path: Path
) -> None:
    np.savez(tmp_path / "none.npz", keypoints=np.zeros((0, 2)), repeatability=np.zeros(0), descriptors=np.zeros((0, 20)))
    files = write_index(tmp_path / "index.json", [(index.parent / "0.npy", tmp_path / "none.npz")])
    batch = make(PairsOfViews(files, teacher, options, 0)[0], options)
    assert not batch["is_point"].any()
    assert (batch["targets"][:, 64] == 1).all()


# --- order and randomness -------------------------------------------------------------------------------------------------


def equal(batch0: dict[str, Tensor], batch1: dict[str, Tensor]) -> bool:
    return batch0.keys() == batch1.keys() and all(torch.equal(batch0[key], batch1[key]) for key in batch0)


def test_an_item_depends_only_on_seed_and_step(index: Path, teacher: TeacherOptions, options: ViewOptions) -> None:
    dataset, again, other = (PairsOfViews(index, teacher, options, seed) for seed in (0, 0, 1))
    items = [dataset[step] for step in (0, 1, 2)]
    assert equal(again[2], items[2]) and equal(dataset[0], items[0])
    assert not equal(items[0], items[1]) and not equal(other[2], items[2])
    homographies = torch.cat([item["homographies"].flatten(0, 1) for item in items])
    assert len({float(homography[0, 0]) for homography in homographies}) == 12  # each view has its own


def test_a_batch_depends_only_on_the_item_and_the_generator(
    index: Path, teacher: TeacherOptions, shipped, options: ViewOptions
) -> None:
    options = replace(options, photometric=shipped.views.photometric)
    item = PairsOfViews(index, teacher, options, 0)[0]
    before = {key: value.clone() for key, value in item.items()}
    assert equal(make(item, options), make(item, options))
    assert not equal(make(item, options), make(item, options, seed=1))
    assert equal(item, before)


@pytest.mark.parametrize("pairs", [2, 4])
def test_every_photo_comes_once_per_epoch(index: Path, teacher: TeacherOptions, options: ViewOptions, pairs: int) -> None:
    photos = [torch.from_numpy(np.load(index.parent / f"{i}.npy")) for i in range(6)]
    dataset = PairsOfViews(index, teacher, replace(options, pairs=pairs), 5)
    seen: list[int] = []
    for step in range(12 // pairs):
        for photo in dataset[step]["photos"][:, 0]:
            seen += [i for i in range(6) if torch.equal(photo[: SIZE[1]], photos[i])]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen == [row_of(6, place, 5) for place in range(12)]
