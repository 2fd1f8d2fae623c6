"""The exported weights of SuperPoint: published form in 16 bit, metadata about their origin, and how descriptors are sampled."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from generated_photos import picture
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_training import SMALL, Trained
from torch import nn

from sfm_lightglue import __version__
from sfm_lightglue.config import bind, compose_config
from sfm_lightglue.features.superpoint import SuperPointExtractor, SuperPointOptions
from sfm_lightglue.files import sha256_of
from sfm_lightglue.images import to_grey
from sfm_lightglue.networks.superpoint import SuperPoint, fold_batch_norm, load_superpoint, sample_descriptors
from sfm_lightglue.networks.weights import WeightsRecord, load_weights
from sfm_lightglue.products import Image
from sfm_lightglue.train import train_from
from sfm_lightglue.training.export import check_licence, save_weights, split
from sfm_lightglue.training.loop import RESUME_FILE
from sfm_lightglue.training.student import Student
from sfm_lightglue.training.superpoint import SuperPointTraining

ROOT = Path(__file__).resolve().parents[2]
SIZE = (160, 120)

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def average(trained: Trained) -> Student:
    """The averaged student in the file from which the training would resume."""
    student = Student(128, 0.05)
    student.load_state_dict(torch.load(trained.whole / RESUME_FILE)["average"])
    return student.eval()


@pytest.fixture(scope="module")
def grey() -> torch.Tensor:
    """(3, 1, 120, 160)"""
    return torch.from_numpy(np.stack([to_grey(picture(SIZE, seed)) for seed in (20, 21, 22)]))[:, None]


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def extractor(path: Path, **changes: object) -> SuperPointExtractor:
    values = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(ROOT / "configs/features/superpoint.yaml"), resolve=True))
    return SuperPointExtractor.create(SuperPointOptions(**{**values, "weights": str(path), "enlarge_max": 1.0, **changes}), "cpu")


# --- starts ------------------------------------------------------------------------------------------------------------------


def test_a_training_starts_from_the_weights_of_another(trained: Trained, tmp_path: Path) -> None:
    start = trained.whole / "weights.safetensors"
    one_step = [f"training.loop.{key}=1" for key in ("steps", "log_every", "save_every", "validate_every")]
    small = [*SMALL, *one_step, "training.loop.data_workers=0", f"data.images={trained.photos}", f"output={tmp_path}"]
    small += [f"training.start={start}", "training.losses.reprojection=5.0"]
    before, changes = load_file(start), {}
    for share in (0.0, 0.75):
        train_from(compose_config([*small, f"training.start_share={share}"], "train"))
        after = load_file(tmp_path / "weights.safetensors")
        changes[share] = torch.cat([(after[key].float() - before[key].float()).flatten() for key in before])
        (tmp_path / RESUME_FILE).unlink()
    assert 1e-3 < changes[0.0].abs().max() < 0.1  # one step
    torch.testing.assert_close(changes[0.75], 0.25 * changes[0.0], atol=2e-3, rtol=0)  # float16
    found = metadata_of(tmp_path / "weights.safetensors")
    assert sha256_of(start) in found["origins"] and json.loads(found["start_record"]) == metadata_of(start)


def test_the_teacher_describes_natural_views_themselves(trained: Trained, tmp_path: Path) -> None:
    one_step = [f"training.loop.{key}=1" for key in ("steps", "log_every", "save_every", "validate_every")]
    small = [*SMALL, *one_step, "training.loop.data_workers=0", f"data.images={trained.photos}", f"output={tmp_path}"]
    small += [f"training.start={trained.whole / 'weights.safetensors'}", "training.losses.taught_contrast=0.5"]
    histories = []
    for number in (0, 2):
        train_from(compose_config([*small, f"training.views.natural_pairs={number}"], "train"))
        rows = torch.load(tmp_path / RESUME_FILE, weights_only=True)["history"]
        histories.append({metric: value for _, kind, metric, value in rows if kind == "training"})
        (tmp_path / RESUME_FILE).unlink()
    assert histories[0]["taught_contrast_loss"] == 0 < histories[1]["taught_contrast_loss"]
    assert json.loads(metadata_of(tmp_path / "weights.safetensors")["recipe"])["views"]["natural_pairs"] == 2


def test_octaves_are_added_to_trained_weights_and_keypoints_stay_the_same(trained: Trained, tmp_path: Path) -> None:
    start, steps = (
        trained.whole / "weights.safetensors",
        ["training.loop.steps=2", "training.loop.log_every=1", "training.loop.save_every=1"],
    )
    small = [*SMALL, *steps, "training.loop.data_workers=0", f"data.images={trained.photos}", f"output={tmp_path}"]
    train_from(
        compose_config(
            ["training=superpoint_octaves", *small, "training.views.natural_pairs=1", f"training.start={start}"], "train"
        )
    )
    before, after = load_file(start), load_file(tmp_path / "weights.safetensors")
    assert after.keys() - before.keys() == {f"octaves.{i}.weight" for i in range(3)}
    kept = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert (
        before.keys() - kept <= {"convDa.weight", "convDa.bias", "convDb.weight", "convDb.bias"} and "convDa.weight" not in kept
    )
    image, options = Image("a", picture(SIZE, 20)), {"detection_threshold": 0.0, "max_keypoints": 300, "small_share": 0.0}
    old, new = (extractor(path, **options)(image) for path in (start, tmp_path / "weights.safetensors"))
    np.testing.assert_array_equal(new.keypoints, old.keypoints)
    assert not np.allclose(new.descriptors, old.descriptors, atol=0.01)


def test_octaves_without_a_start_are_refused() -> None:
    config = compose_config(["data.images=photos", "training.octaves=3"], "train")
    with pytest.raises(ValueError, match=r"1 without training\.start, found 3 and training\.start=None"):
        bind(SuperPointTraining, config.training, "training")


def test_a_start_share_without_a_start_is_refused() -> None:
    config = compose_config(["data.images=photos", "training.start_share=0.5"], "train")
    with pytest.raises(ValueError, match=r"0 without training\.start, found 0\.5 and training\.start=None"):
        bind(SuperPointTraining, config.training, "training")


def test_weights_trained_from_weights_for_research_keep_their_licence() -> None:
    record = WeightsRecord("superpoint-official", "", "", "for research", True)
    with pytest.raises(ValueError, match=r"Apache-2\.0, but superpoint-official is for research only"):
        check_licence("Apache-2.0", [record])
    check_licence("for research", [record])
    check_licence("Apache-2.0", [replace(record, research_only=False)])


# --- the file --------------------------------------------------------------------------------------------------------------


def test_the_weights_have_superpoints_keys_and_sixteen_bits(trained: Trained) -> None:
    state = load_file(trained.whole / "weights.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in SuperPoint().state_dict().items()}
    network = load_superpoint(state)
    assert not network.training and not network.batch_norm


def test_the_metadata_name_the_network_and_its_origin(trained: Trained, shipped) -> None:
    metadata = metadata_of(trained.whole / "weights.safetensors")
    assert set(metadata) == {
        *("network", "origins", "descriptor_sampling", "licence", "recipe"),
        *("training_photos", "steps", "version", "commit", "validation"),
    }
    assert metadata["network"] == "SuperPoint" and metadata["descriptor_sampling"] == "centred"
    assert metadata["licence"] == shipped.licence
    assert (metadata["steps"], metadata["version"], metadata["commit"]) == ("36", __version__, "0123abc")
    recipe = json.loads(metadata["recipe"])
    assert recipe["views"]["width"] == 64 and recipe["teacher"]["weights"] == "aliked-n16" and recipe["seed"] == 0
    assert recipe["losses"]["temperature"] == shipped.losses.temperature
    assert "steps" not in recipe["loop"] and "licence" not in recipe


def test_the_metadata_hold_the_hash_of_the_training_photos_only(trained: Trained) -> None:
    readable = sorted(path.name for path in trained.photos.glob("*.png"))
    held_out, train = split(readable, 4, seed=0)
    digest = hashlib.sha256()
    for name in train:
        digest.update(f"{name} {hashlib.sha256((trained.photos / name).read_bytes()).hexdigest()}\n".encode())
    assert (len(held_out), len(train)) == (4, 6)
    assert metadata_of(trained.whole / "weights.safetensors")["training_photos"] == f"6, sha256 {digest.hexdigest()}"


def test_the_metadata_hold_the_last_validation(trained: Trained) -> None:
    with (trained.whole / "curves.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "validation" and row["step"] == "36"]
    found = json.loads(metadata_of(trained.whole / "weights.safetensors")["validation"])
    assert found == {row["figure"]: float(row["value"]) for row in rows}


def test_the_map_to_the_teachers_descriptors_is_written_beside_the_weights(trained: Trained, average: Student) -> None:
    path = trained.whole / "to_teacher.safetensors"
    for key, value in load_file(path).items():
        assert torch.equal(value, average.to_teacher.state_dict()[key].half())
    assert metadata_of(path)["network"] != "SuperPoint"


def test_the_same_weights_give_the_same_bytes_whatever_the_order_of_the_metadata(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    entries = [(key, f'"{key}" é\n') for key in "abcdefghij"]
    contents = set()
    for seed in range(5):
        random.Random(seed).shuffle(entries)
        save_weights(layer, tmp_path / "weights.safetensors", dict(entries))
        contents.add((tmp_path / "weights.safetensors").read_bytes())
    assert len(contents) == 1
    assert metadata_of(tmp_path / "weights.safetensors") == dict(entries)
    torch.testing.assert_close(load_file(tmp_path / "weights.safetensors")["weight"], layer.weight.detach().half())
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


# --- the network -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_folded_network_equals_the_trained_one_in_evaluation_mode(average: Student, grey: torch.Tensor) -> None:
    statistics = [buffer for name, buffer in average.network.named_buffers() if name.endswith("running_mean")]
    assert all(buffer.abs().max() > 1e-3 for buffer in statistics)  # training has changed all statistics
    expected, folded = average.network(grey), fold_batch_norm(average.network)(grey)
    torch.testing.assert_close(folded.scores, expected.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(folded.descriptors, expected.descriptors, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_rounding_to_sixteen_bits_hardly_changes_the_results(trained: Trained, average: Student, grey: torch.Tensor) -> None:
    folded = fold_batch_norm(average.network)
    state = load_file(trained.whole / "weights.safetensors")
    for key, value in folded.state_dict().items():
        # float16 rounds to 11 binary digits: by at most 2**-11 of the value, and by 2**-25 near zero.
        assert ((state[key].float() - value).abs() <= value.abs() * 2**-11 + 2**-25).all()
    expected, stored = folded(grey), load_superpoint(state)(grey)
    # Independent errors of the weights stay small through ten layers: a few times 2**-11 = 0.0005.
    assert (stored.scores - expected.scores).abs().max() < 5e-3
    assert (stored.descriptors * expected.descriptors).sum(dim=1).min() > 0.9999


# --- how its descriptors are sampled ---------------------------------------------------------------------------------------


def test_only_descriptors_of_the_exported_weights_are_sampled_centred(trained: Trained, tmp_path: Path) -> None:
    path = trained.whole / "weights.safetensors"
    save_file(load_file(path), tmp_path / "unnamed.safetensors")
    torch.save(load_file(path), tmp_path / "superpoint.pth")
    image = Image("a", picture(SIZE, 20))
    expected = to_grey(image.pixels)
    with torch.inference_mode():
        dense = load_superpoint(load_file(path))(torch.from_numpy(expected)[None, None]).descriptors
    options = {"detection_threshold": 0.0, "max_keypoints": 300, "border": 1}
    for weights, centred in ((path, True), (tmp_path / "unnamed.safetensors", False), (tmp_path / "superpoint.pth", False)):
        chosen = extractor(weights, **options)
        assert chosen.centred is centred
        features = chosen(image)
        assert len(features) > 100
        wanted, other = (
            sample_descriptors(torch.from_numpy(features.keypoints)[None], dense, centred=each)[0].numpy()
            for each in (centred, not centred)
        )
        np.testing.assert_allclose(features.descriptors, wanted, atol=1e-4)
        assert np.abs(features.descriptors - other).max() > 1e-2


def test_the_record_of_the_exported_file_holds_its_licence_and_metadata(trained: Trained, shipped) -> None:
    path = trained.whole / "weights.safetensors"
    _, record = load_weights(str(path))
    assert (record.licence, record.research_only) == (shipped.licence, False)
    assert record.metadata == metadata_of(path)
