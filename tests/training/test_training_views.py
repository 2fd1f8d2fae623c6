"""Batches for SuperPoint: the targets of cells, and pairs of views of photos whose discs say which point is which."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generated_photos import centre_of_mass
from PIL import Image as PILImage
from torch import Tensor

from sfm_lightglue.training import views
from sfm_lightglue.training.photometric import PhotometricRange
from sfm_lightglue.training.views import PairsOfViews, ViewOptions, cell_targets

SIZE = (160, 120)
RADIUS = 6
AS_IT_IS = PhotometricRange(contrast=1, brightness=0, gamma=1, shadow=0, blur=0.3, noise=0, jpeg_quality=95)
"""As little change as there is: some views get a blur of 0.3 px or JPEG at its best."""


# --- the targets of cells --------------------------------------------------------------------------------------------------


def heatmap(targets: np.ndarray) -> np.ndarray:
    """float64 (h, w): the probabilities of the pixels, put in their places by torch."""
    return F.pixel_shuffle(torch.from_numpy(targets[None, :64]).double(), 8)[0, 0].numpy()


def test_a_cell_without_points_holds_no_keypoint() -> None:
    targets = cell_targets(np.zeros((0, 2)), np.zeros(0), (32, 16))
    assert targets.shape == (65, 2, 4) and targets.dtype == np.float32
    assert (targets[64] == 1).all() and (targets[:64] == 0).all()


@pytest.mark.parametrize(
    "point",
    [(3.0, 5.0), (12.25, 9.75), (7.5, 20.0), (7.6, 15.9), (15.999, 8.001), (8.0, 8.0), (1.0, 1.0), (46.7, 22.9), (23.001, 22.5)],
)
def test_the_expected_position_is_the_point_itself_also_across_cells(point: tuple[float, float]) -> None:
    targets = cell_targets(np.array([point]), np.array([0.6], np.float32), (48, 24))
    np.testing.assert_allclose(targets.sum(axis=0), 1, atol=1e-6)
    found = heatmap(targets)
    assert found.sum() == pytest.approx(0.6, abs=1e-6)
    rows, columns = np.mgrid[:24, :48]
    assert (found * columns).sum() / found.sum() == pytest.approx(point[0], abs=1e-5)
    assert (found * rows).sum() / found.sum() == pytest.approx(point[1], abs=1e-5)
    assert np.count_nonzero(found > 1e-7) <= 4


def test_many_points_make_cells_of_sum_one_and_keep_their_places() -> None:
    rng = np.random.default_rng(0)
    cells = rng.permutation(8 * 6)[:30]
    # In the middle of cells of their own: nothing is shared.
    points = np.stack([cells % 8, cells // 8], axis=1) * 8 + rng.uniform(0, 7, (30, 2))
    mass = rng.uniform(0.1, 1, 30).astype(np.float32)
    targets = cell_targets(points, mass, (64, 48))
    np.testing.assert_allclose(targets.sum(axis=0), 1, atol=1e-6)
    found = heatmap(targets)
    for (column, row), point, share in zip(np.stack([cells % 8, cells // 8], axis=1), points, mass, strict=True):
        assert 1 - targets[64, row, column] == pytest.approx(share, abs=1e-6)
        window = np.zeros_like(found)
        window[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = found[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        rows, columns = np.mgrid[:48, :64]
        position = np.array([(window * columns).sum(), (window * rows).sum()]) / window.sum()
        np.testing.assert_allclose(position, point, atol=1e-5)


def test_points_that_share_a_cell_are_scaled_to_sum_one() -> None:
    targets = cell_targets(np.array([[1.0, 1.0], [5.0, 6.0]]), np.array([1.0, 0.5], np.float32), (8, 8))
    assert targets[64, 0, 0] == 0
    assert targets[9, 0, 0] == pytest.approx(1 / 1.5)  # pixel (1, 1)
    assert targets[6 * 8 + 5, 0, 0] == pytest.approx(0.5 / 1.5)
    assert targets.sum() == pytest.approx(1)


def test_a_view_must_consist_of_whole_cells(shipped) -> None:
    with pytest.raises(ValueError, match="multiples of 8 px wide and high, found 100 x 240"):
        replace(shipped.views, width=100)
    with pytest.raises(ValueError, match="border must be 1 px or more, found 0"):
        replace(shipped.views, border=0)


# --- pairs of views --------------------------------------------------------------------------------------------------------


def grey_of(disc: int) -> int:
    return 250 - 9 * disc


def write_disc_photo(path: Path, seed: int) -> np.ndarray:
    """A photo of 20 discs, each of a grey of its own; their centres (20, 2)."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(16, 160, 30), np.arange(15, 120, 30)), axis=-1).reshape(-1, 2)
    centres = grid + rng.uniform(-3, 3, grid.shape)
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    photo = np.zeros(rows.shape)
    for disc, (x, y) in enumerate(centres):
        photo = np.maximum(photo, grey_of(disc) * np.clip(RADIUS + 0.5 - np.hypot(columns - x, rows - y), 0, 1))
    PILImage.fromarray(photo.round().astype(np.uint8)).save(path)
    return centres


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """Photos of discs, and lessons whose keypoints are the centres; the descriptor of disc i is the unit vector i."""
    folder = tmp_path_factory.mktemp("discs")
    lessons = {}
    for i in range(6):
        centres = write_disc_photo(folder / f"{i}.png", i)
        lessons[f"{i}.png"] = folder / f"{i}.npz"
        np.savez(
            lessons[f"{i}.png"],
            keypoints=centres.astype(np.float32),
            repeatability=np.linspace(1, 0.4, 20).astype(np.float16),
            descriptors=np.eye(20, dtype=np.float16),
        )
    return folder, lessons


@pytest.fixture
def options(shipped) -> ViewOptions:
    return replace(shipped.views, width=160, height=120, pairs=2, max_points=24, photometric=AS_IT_IS)


def data(made: tuple[Path, dict[str, Path]], options: ViewOptions, seed: int = 0) -> PairsOfViews:
    folder, lessons = made
    return PairsOfViews(folder, list(lessons), lessons, max(SIZE), options, seed)


def disc_at(view: np.ndarray, point: np.ndarray) -> int:
    x, y = np.rint(point).astype(int)
    return round((250 - 255 * view[y, x]) / 9)


def test_a_batch_has_the_shapes_and_types_it_promises(made, options: ViewOptions) -> None:
    batch = data(made, options)[0]
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    assert shapes == {
        "views": (4, 1, 120, 160),
        "targets": (4, 65, 15, 20),
        "cell_weights": (4, 15, 20),
        "points": (4, 24, 2),
        "is_point": (2, 24),
        "teacher": (2, 24, 20),
    }
    assert {key for key, value in batch.items() if value.dtype == torch.float32} == shapes.keys() - {"is_point"}
    assert batch["views"].min() >= 0 and batch["views"].max() <= 1
    np.testing.assert_allclose(batch["targets"].sum(dim=1), 1, atol=1e-6)


def test_both_views_show_the_same_disc_at_a_point(made, options: ViewOptions) -> None:
    compared, errors = 0, []
    dataset = data(made, options)
    for step in range(6):
        batch = dataset[step]
        for pair in range(2):
            count = int(batch["is_point"][pair].sum())
            assert batch["is_point"][pair, :count].all()
            discs = [int(row.argmax()) for row in batch["teacher"][pair, :count]]
            for view in (pair, 2 + pair):  # first the views of all pairs, then their partners
                seen, points = batch["views"][view, 0].numpy(), batch["points"][view, :count].numpy()
                assert [disc_at(seen, point) for point in points] == discs
                compared += count
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
    for _ in range(30):  # grows by a pixel up, down, left and right
        padded = np.pad(patch, 1)
        patch = (padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | patch) & bright
    rows, columns = np.nonzero(patch)
    return np.array([columns.mean(), rows.mean()])


def test_rows_that_fill_up_are_marked_and_empty(made, options: ViewOptions) -> None:
    batch = data(made, options)[0]
    for pair in range(2):
        empty = ~batch["is_point"][pair]
        assert empty.any()
        for points in (batch["points"][pair], batch["points"][2 + pair], batch["teacher"][pair]):
            assert (points[empty] == 0).all()


def test_of_too_many_points_some_are_chosen(made, options: ViewOptions) -> None:
    all_points, few = data(made, options)[1], data(made, replace(options, max_points=3))[1]
    assert all_points["is_point"].sum(dim=1).min() > 3
    assert few["is_point"].all()
    known = {tuple(point) for point in all_points["points"][0].tolist()}
    assert {tuple(point) for point in few["points"][0].tolist()} <= known


def test_points_keep_away_from_the_edge(made, options: ViewOptions) -> None:
    dataset = data(made, replace(options, border=20))
    for step in range(4):
        batch = dataset[step]
        points = torch.cat([half[batch["is_point"]] for half in batch["points"].chunk(2)])
        assert points.min() >= 20 and (points < torch.tensor(SIZE) - 20).all()
        found = F.pixel_shuffle(batch["targets"][:, :64], 8)[:, 0]
        assert found[:, :20].sum() == found[:, :, :20].sum() == 0


def test_the_targets_have_the_repeatability_of_the_points(made, options: ViewOptions) -> None:
    batch = data(made, options)[2]
    repeatability = np.linspace(1, 0.4, 20)
    checked = 0
    for view in range(4):
        found = F.pixel_shuffle(batch["targets"][view, :64][None].double(), 8)[0, 0].numpy()
        count = int(batch["is_point"][view % 2].sum())
        for i in range(count):
            point = batch["points"][view, i].numpy()
            if (point > 3).all() and (point < np.array(SIZE) - 4).all():
                x, y = np.floor(point).astype(int)
                window = found[y - 1 : y + 3, x - 1 : x + 3]
                disc = int(batch["teacher"][view % 2, i].argmax())
                assert window.sum() == pytest.approx(repeatability[disc], abs=1e-3)  # lessons are stored in 16 bit
                np.testing.assert_allclose(centre_of_mass(found, point, 2), point, atol=1e-4)
                checked += 1
    assert checked > 15


def test_only_cells_that_lie_within_the_photo_count(made, options: ViewOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor] = []
    original = views.warp_photo

    def recorded(*arguments: Any) -> tuple[Tensor, Tensor]:
        masks.append(original(*arguments)[1])
        return original(*arguments)

    monkeypatch.setattr(views, "warp_photo", recorded)
    weights = data(made, options)[3]["cell_weights"]
    partly = 0
    for view, mask in zip((0, 2, 1, 3), masks, strict=True):  # pair by pair
        for row in range(15):
            for column in range(20):
                cell = mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                assert weights[view, row, column] == float(cell.all())
                partly += bool(cell.any() and not cell.all())
    assert partly > 10


# --- order and chance ------------------------------------------------------------------------------------------------------


def equal(batch0: dict[str, Tensor], batch1: dict[str, Tensor]) -> bool:
    return batch0.keys() == batch1.keys() and all(torch.equal(batch0[key], batch1[key]) for key in batch0)


def test_a_batch_is_a_function_of_seed_and_step(made, shipped, options: ViewOptions) -> None:
    options = replace(options, photometric=shipped.views.photometric)
    dataset = data(made, options)
    batches = [dataset[step] for step in (0, 1, 2)]
    assert equal(data(made, options)[2], batches[2])
    assert equal(dataset[0], batches[0])
    assert not equal(batches[0], batches[1])
    assert not equal(data(made, options, seed=1)[2], batches[2])


def test_the_order_of_the_names_does_not_matter(made, options: ViewOptions) -> None:
    folder, lessons = made
    backwards = PairsOfViews(folder, list(lessons)[::-1], lessons, max(SIZE), options, 0)
    assert equal(backwards[1], data(made, options)[1])


@pytest.mark.parametrize("pairs", [2, 4])
def test_every_photo_comes_once_an_epoch(made, options: ViewOptions, monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    seen: list[str] = []
    original = views.load_image

    def recorded(folder: Path, name: str) -> Any:
        seen.append(name)
        return original(folder, name)

    monkeypatch.setattr(views, "load_image", recorded)
    dataset = data(made, replace(options, pairs=pairs))
    for step in range(12 // pairs):
        dataset[step]
    assert Counter(seen[:6]) == Counter(seen[6:]) == Counter(f"{i}.png" for i in range(6))
    assert seen[:6] != seen[6:]


def test_a_photo_without_keypoints_gives_empty_targets(made, options: ViewOptions, tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", keypoints=np.zeros((0, 2)), repeatability=np.zeros(0), descriptors=np.zeros((0, 20)))
    folder, _ = made
    batch = PairsOfViews(folder, ["0.png"], {"0.png": tmp_path / "none.npz"}, max(SIZE), options, 0)[0]
    assert not batch["is_point"].any()
    assert (batch["targets"][:, 64] == 1).all()
