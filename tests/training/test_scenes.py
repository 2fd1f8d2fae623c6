"""Scenes of planes: two views show blobs, pieces and each other's points where the scene says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_photos import centre_of_mass, gaussian_blobs
from torch import Generator

from sfm_lightglue.config import bind, compose_config
from sfm_lightglue.training.lightglue import LightGlueTraining
from sfm_lightglue.training.matching import UNMATCHABLE, label_keypoints
from sfm_lightglue.training.photometric import PhotometricRange
from sfm_lightglue.training.photos import write_index
from sfm_lightglue.training.scenes import SceneOptions, Scenes, SceneViews, make_scenes, random_planes

SIZE = (200, 160)
PLAIN = PhotometricRange(contrast=1, brightness=0, gamma=1, shadow=0, lighting=0, blur=0.3, noise=0, jpeg_quality=94)
CENTRES = np.stack(np.meshgrid(np.arange(20, 200, 40), np.arange(20, 160, 40)), axis=-1).reshape(-1, 2).astype(float)


@pytest.fixture
def options() -> SceneOptions:
    config = compose_config(["data.images=photos", "training=lightglue", "training.to_teacher=null"], "train")
    shipped = bind(LightGlueTraining, config.training, "training").scenes
    return replace(shipped, width=SIZE[0], height=SIZE[1], pairs=6, unrelated=0, photometric=PLAIN)


def write_photos(folder: Path, *pictures: np.ndarray) -> Path:
    """Writes grey images (h, w) in 0..1 as prepared photos. Returns their index."""
    paths = [folder / f"{i}.npy" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        np.save(path, np.rint(picture * 255).astype(np.uint8))
    return write_index(folder / "index.json", [[path] for path in paths])


def scene(index: Path, options: SceneOptions, step: int) -> tuple[dict[str, torch.Tensor], SceneViews]:
    item = Scenes(index, max(SIZE), options, seed=0)[step]
    return item, make_scenes(item, options, Generator().manual_seed(step))


def mapped(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    through = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return through[:, :2] / through[:, 2:]


def test_blobs_of_all_layers_are_in_the_partner_where_the_scene_says(tmp_path: Path, options: SceneOptions) -> None:
    index = write_photos(tmp_path, gaussian_blobs(CENTRES, SIZE, 2.0))
    errors, layers = [], set()
    for step in range(6):
        item, found = scene(index, options, step)
        for layer, pair in np.ndindex(1 + options.pieces, options.pairs):
            points = mapped(item["homographies"][layer, 0, pair].numpy(), CENTRES)
            inside = ((points >= 8) & (points < np.array(SIZE) - 8)).all(axis=1)
            keypoints = torch.zeros(2 * options.pairs, inside.sum(), 2)
            keypoints[pair] = torch.from_numpy(points[inside])
            truth, _ = found.find(keypoints, torch.ones(keypoints.shape[:2]))
            x, y = keypoints[pair].round().long().unbind(1)
            shown = (found.layers[pair, y, x] == layer) & truth.visible[pair]
            picture, partner = found.views[options.pairs + pair, 0].numpy(), found.layers[options.pairs + pair].numpy()
            for place in truth.positions[pair][shown].numpy():
                column, row = np.rint(place).astype(int)
                window = partner[max(0, row - 7) : row + 8, max(0, column - 7) : column + 8]
                if window.shape == (15, 15) and (window == layer).all() and picture[row, column] > 0.5:
                    errors.append(np.linalg.norm(centre_of_mass(picture, place, 7) - place))
                    layers.add(layer)
    assert len(errors) > 60 and layers == {0, 1, 2}
    assert np.median(errors) < 0.5 and np.mean(np.array(errors) < 2) > 0.9  # sometimes a neighbouring blob is in the window


def test_points_behind_a_piece_of_the_partner_are_not_visible_there(tmp_path: Path, options: SceneOptions) -> None:
    """The two scenes differ only in their pieces. Visible points look the same in both; hidden points do not."""
    dark, white = np.full(SIZE[::-1], 0.1), np.ones(SIZE[::-1])
    index = write_photos(tmp_path, dark)
    columns, rows = np.meshgrid(np.arange(4, SIZE[0], 8), np.arange(4, SIZE[1], 8))
    keypoints = torch.from_numpy(np.stack([columns, rows], axis=-1).reshape(1, -1, 2)).float()
    hidden = 0
    for step in range(4):
        item = Scenes(index, max(SIZE), options, seed=0)[step]
        item["photos"][1:] = torch.from_numpy((white * 255).astype(np.uint8))[0, 0]
        found = make_scenes(item, options, Generator().manual_seed(step))
        truth, _ = found.find(keypoints.expand(2 * options.pairs, -1, -1), torch.ones(2 * options.pairs, keypoints.shape[1]))
        for pair in range(options.pairs):
            own = found.layers[pair, rows.ravel(), columns.ravel()] == 0
            x, y = truth.positions[pair].round().long().clamp(min=-1, max=max(SIZE)).unbind(1)
            within = own & (x >= 0) & (x < SIZE[0]) & (y >= 0) & (y < SIZE[1])
            seen = found.views[options.pairs + pair, 0][y[within], x[within]]
            visible = truth.visible[pair][within]
            assert (seen[visible] < 0.6).all()  # a piece covers less than half of the pixel
            covered = found.layers[options.pairs + pair][y[within], x[within]] > 0
            assert not (visible & covered).any()
            hidden += int((seen[~visible] > 0.6).sum())
        assert not truth.visible[truth.known.logical_not()].any()
    assert hidden > 20


def test_all_planes_of_a_scene_are_seen_by_the_same_two_cameras(options: SceneOptions) -> None:
    """The lines through the two images of a point, one for each of two planes, meet in the epipole for every point."""
    points = np.random.default_rng(0).uniform(0, SIZE, (20, 2))
    checked = 0
    for seed in range(20):
        homographies, _ = random_planes(np.random.default_rng(seed), np.array([SIZE] * 3), options)
        between = [second @ np.linalg.inv(first) for first, second in homographies]
        images = [np.column_stack([mapped(each, points), np.ones(len(points))]) for each in between]
        if np.abs(images[0] - images[1]).max() < 1:
            continue  # the camera only turns
        lines = np.concatenate([np.cross(images[0], other) for other in images[1:]])
        lines /= np.linalg.norm(lines, axis=1, keepdims=True)
        assert np.linalg.svd(lines, compute_uv=False)[2] < 1e-6 * len(lines)
        checked += 1
    assert checked > 10


def test_the_partner_shows_a_square_around_a_keypoint_at_the_mapped_scale(tmp_path: Path, options: SceneOptions) -> None:
    index = write_photos(tmp_path, *(gaussian_blobs(CENTRES + i, SIZE, 2.0) for i in range(4)))
    _, found = scene(index, options, 0)
    centres = 20 + torch.rand(2 * options.pairs, 50, 2, generator=Generator().manual_seed(0)) * (torch.tensor(SIZE) - 40)
    scales = torch.linspace(1, 4, 50).expand(len(centres), -1)
    shift = 0.01 * scales[..., None] * torch.tensor([1.0, 0.0]), 0.01 * scales[..., None] * torch.tensor([0.0, 1.0])
    truth, right, below = (found.find(points.double(), scales)[0] for points in (centres, centres + shift[0], centres + shift[1]))
    assert torch.equal(truth.scales, scales[: options.pairs])
    x, y = ((other.positions - truth.positions).double() / 0.01 for other in (right, below))
    side = (x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]).abs().sqrt()
    seen = truth.visible & right.visible & below.visible
    assert seen.sum() > 50 and side[seen].max() / side[seen].min() > 3
    torch.testing.assert_close(truth.mapped_scales[seen].double(), side[seen], rtol=0.05, atol=0.02)


def test_unrelated_pairs_have_no_matches(tmp_path: Path, options: SceneOptions) -> None:
    index = write_photos(tmp_path, *(gaussian_blobs(CENTRES + i, SIZE, 2.0) for i in range(4)))
    _, found = scene(index, replace(options, unrelated=2), 0)
    keypoints = torch.rand(2 * options.pairs, 100, 2, generator=Generator().manual_seed(0)) * torch.tensor(SIZE)
    truth0, truth1 = found.find(keypoints, torch.ones(keypoints.shape[:2]))
    assert truth0.visible[:4].any() and not truth0.visible[4:].any() and not truth1.visible[4:].any()
    labels0, _ = label_keypoints(truth0, truth1, 3.0, 5.0)
    assert (labels0[4:][truth0.known[4:]] == UNMATCHABLE).all() and truth0.known[4:].any()


def test_a_batch_depends_only_on_the_step(tmp_path: Path, options: SceneOptions) -> None:
    index = write_photos(tmp_path, *(gaussian_blobs(CENTRES + i, SIZE, 2.0) for i in range(4)))
    (_, first), (_, again), (_, other) = (scene(index, options, step) for step in (3, 3, 4))
    assert torch.equal(first.views, again.views) and torch.equal(first.layers, again.layers)
    assert not torch.equal(first.views, other.views)


@pytest.mark.parametrize(("changes", "explanation"), [({"width": 100}, "multiples of 8"), ({"unrelated": 1}, "0 or 2 to 6")])
def test_impossible_scenes_are_refused(options: SceneOptions, changes: dict[str, int], explanation: str) -> None:
    with pytest.raises(ValueError, match=explanation):
        replace(options, **changes)
