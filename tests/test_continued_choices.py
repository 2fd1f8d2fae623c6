"""`precision=auto` and `early_acceptance=null`: what they stand for, and that a run goes on as its files were made. The CPU is
faked."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from sfm_lightglue import create_extractor, create_matcher, extract_features, match_pairs
from sfm_lightglue.config import compose_config
from sfm_lightglue.continued_choices import log_stored_choices, with_stored_choices
from sfm_lightglue.engine.kernels import load_kernels
from sfm_lightglue.features.superpoint import SuperPointExtractor
from sfm_lightglue.matches.lightglue import LightGlueMatcher
from sfm_lightglue.networks import int8
from sfm_lightglue.networks import precision as precision_module
from sfm_lightglue.networks.precision import check_precision, exact_unless_chosen, resolved_precision
from sfm_lightglue.networks.winograd import WinogradConvolution
from sfm_lightglue.products import Pair
from sfm_lightglue.run_context import Run
from sfm_lightglue.settings import describe_changes, plugin_settings
from sfm_lightglue.storage import GroupData, H5Reader, SettingsChanged, ShardStore


def fake_bfloat16(monkeypatch: pytest.MonkeyPatch, has_it: bool, *, has_int8: bool = False) -> None:
    monkeypatch.setattr(precision_module, "_has_fast_bfloat16", lambda: has_it)
    monkeypatch.setattr(int8, "is_fast", lambda: has_int8)
    for plugin in (SuperPointExtractor, LightGlueMatcher):
        monkeypatch.setattr(plugin, "_kernels", lambda _self: None)


@pytest.mark.parametrize(
    ("precision", "device", "has_bfloat16", "is_enough", "expected"),
    [
        ("auto", "cpu", True, True, "low"),
        ("auto", "cpu", False, True, "float32"),
        ("auto", "cpu", True, False, "float32"),
        ("auto", "cuda:1", False, True, "low"),
        ("auto", "mps", True, True, "float32"),
        ("float32", "cpu", True, True, "float32"),
        ("low", "cpu", False, False, "low"),
    ],
)
def test_auto_is_low_where_that_is_exact_and_fast(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, has_bfloat16: bool, is_enough: bool, expected: str
) -> None:
    fake_bfloat16(monkeypatch, has_bfloat16)
    assert resolved_precision(precision, device, low_is_enough=is_enough) == expected


def test_only_options_of_a_run_may_be_auto() -> None:
    check_precision("auto", "features.precision", may_be_auto=True)
    with pytest.raises(ValueError, match=r"training\.precision='auto' is not a precision"):
        check_precision("auto", "training.precision")
    assert [exact_unless_chosen(each) for each in ("auto", "float32", "low")] == ["float32", "float32", "low"]


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_settings_have_the_precision_that_auto_stands_for(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    fake_bfloat16(monkeypatch, has_bfloat16)
    for plugin in (create_extractor("superpoint", device="cpu"), create_matcher("lightglue", device="cpu")):
        expected = "low" if has_bfloat16 else "float32"
        assert plugin_settings(plugin)["options"]["precision"] == expected and plugin.chose_precision


@pytest.mark.skipif(not int8.is_fast(), reason="this CPU has no VNNI")
def test_features_are_in_low_precision_on_a_cpu_with_8_bit_instructions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_bfloat16(monkeypatch, False, has_int8=True)
    extractor, matcher = create_extractor("superpoint", device="cpu"), create_matcher("lightglue", device="cpu")
    assert (extractor.options.precision, matcher.options.precision) == ("low", "float32")
    assert isinstance(extractor.network.conv2a, int8.Int8Convolution) and extractor.network.conv4a.weight.dtype == torch.float32


def test_auto_is_low_on_a_cpu_with_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = load_kernels(may_compile=True)
    if kernels is None:
        pytest.skip("no compiled kernels")
    fake_bfloat16(monkeypatch, False)
    for plugin in (SuperPointExtractor, LightGlueMatcher):
        monkeypatch.setattr(plugin, "_kernels", lambda _self: kernels)
    extractor, matcher = create_extractor("superpoint", device="cpu"), create_matcher("lightglue", device="cpu")
    assert extractor.options.precision == matcher.options.precision == "low"
    assert create_matcher("lightglue", device="cpu", trained_for="disk").options.precision == "float32", "not measured"
    assert isinstance(extractor.network.conv4a, WinogradConvolution) is not kernels.supports_tiles
    exact = create_extractor("superpoint", device="cpu", precision="float32")
    assert isinstance(exact.network.conv2a, WinogradConvolution) and exact.network.conv2a.input_scale is None


def test_a_chosen_precision_is_kept() -> None:
    chosen = create_matcher("lightglue", device="cpu", precision="float32")
    assert plugin_settings(chosen)["options"]["precision"] == "float32" and not chosen.chose_precision


def stored(path: Path, settings: dict, *, merged: bool = True) -> None:
    with ShardStore(path, settings) as store:
        store.add("a.png", GroupData({"keypoints": np.zeros((1, 2), np.float32)}, {}), "stamp")
        if merged:
            store.merge()


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_auto_goes_on_in_the_precision_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_bfloat16: bool, merged: bool
) -> None:
    fake_bfloat16(monkeypatch, not has_bfloat16)
    settings = plugin_settings(create_extractor("superpoint", device="cpu"))
    path = tmp_path / "features.h5"
    stored(path, settings, merged=merged)  # also of a run that was killed
    fake_bfloat16(monkeypatch, has_bfloat16)
    extractor = create_extractor("superpoint", device="cpu")
    with caplog.at_level(logging.INFO):
        again = with_stored_choices(extractor, path)
        log_stored_choices(extractor, again, path)
    assert plugin_settings(again) == settings
    assert f"continued with precision={settings['options']['precision']}" in caplog.text


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_machines_that_share_the_work_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    fake_bfloat16(monkeypatch, has_bfloat16)
    for plugin in (create_extractor("superpoint", device="cpu"), create_matcher("lightglue", device="cpu")):
        shared = with_stored_choices(plugin, tmp_path / "none.h5", is_shared=True)
        assert plugin_settings(shared)["options"]["precision"] == "low"


def test_a_file_without_early_acceptance_is_continued_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "matches.h5"
    former = create_matcher("lightglue", device="cpu", early_acceptance=False, precision="float32")
    assert "early_acceptance" not in plugin_settings(former)["options"]  # as earlier versions
    stored(path, {**plugin_settings(former), "features": "f"})
    default = create_matcher("lightglue", device="cpu", precision="float32")
    with caplog.at_level(logging.INFO):
        again = with_stored_choices(default, path)
        log_stored_choices(default, again, path)
    assert plugin_settings(again) == plugin_settings(former) and again.engine.early_acceptance is None
    assert "continued with early_acceptance=false, as it was made; for a new file, early_acceptance=true" in caplog.text
    for other in ({"early_acceptance": True}, {"depth_confidence": 0.9}):  # what was asked for is not taken back
        chosen = create_matcher("lightglue", device="cpu", precision="float32", **other)
        assert with_stored_choices(chosen, path) is chosen
    stored(tmp_path / "new.h5", plugin_settings(default))
    assert plugin_settings(with_stored_choices(default, tmp_path / "new.h5")) == plugin_settings(default)


def test_a_file_of_other_features_gives_no_choice(tmp_path: Path) -> None:
    """Early acceptance of the file is not an option that the user gave for features that do not have it."""
    stored(tmp_path / "matches.h5", plugin_settings(create_matcher("lightglue", device="cpu", precision="float32")))
    other = create_matcher("lightglue", device="cpu", precision="float32", trained_for="aliked", weights="aliked-lightglue-half")
    assert other.chose_acceptance and with_stored_choices(other, tmp_path / "matches.h5") is other


def test_a_file_without_guided_matching_is_continued_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "matches.h5"
    former = create_matcher("lightglue", device="cpu", guided_matching=False, precision="float32")
    assert "guided_matching" not in plugin_settings(former)["options"]  # as earlier versions
    stored(path, {**plugin_settings(former), "features": "f"})
    default = create_matcher("lightglue", device="cpu", precision="float32", guided_matching=None)
    assert default.guided is not None
    again = with_stored_choices(default, path)
    with caplog.at_level(logging.INFO):
        log_stored_choices(default, again, path)
    assert again.guided is None and plugin_settings(again) == plugin_settings(former)
    assert (
        "continued with guided_matching=false and early_rejection=false, as it was made; for a new file, guided_matching=true"
        in caplog.text
    )
    chosen = create_matcher("lightglue", device="cpu", precision="float32", guided_matching=True)
    assert with_stored_choices(chosen, path) is chosen  # what was asked for is not taken back


def test_a_file_without_early_rejection_is_continued_without_it(tmp_path: Path) -> None:
    path = tmp_path / "matches.h5"
    former = create_matcher("lightglue", device="cpu", early_rejection=False)
    stored(path, {**plugin_settings(former), "features": "f"})
    default = create_matcher("lightglue", device="cpu", early_rejection="auto")
    assert default.overlap_test is not None
    again = with_stored_choices(default, path)
    assert again.overlap_test is None and again.guided is not None and plugin_settings(again) == plugin_settings(former)
    chosen = create_matcher("lightglue", device="cpu", early_rejection=True)
    assert with_stored_choices(chosen, path) is chosen  # what was asked for is not taken back
    stored(tmp_path / "own.h5", {**plugin_settings(default), "features": "f"})
    assert with_stored_choices(default, tmp_path / "own.h5").overlap_test is not None


def test_null_guides_matching_on_cpus_alone_unless_machines_share_the_work(tmp_path: Path) -> None:
    """The device `meta` stands for a GPU."""
    null = {"precision": "float32", "guided_matching": None}
    on_cpu, on_gpu = (create_matcher("lightglue", device=device, **null) for device in ("cpu", "meta"))
    assert on_cpu.options.guided_matching and not on_gpu.options.guided_matching
    shared = [with_stored_choices(each, tmp_path / "none.h5", is_shared=True) for each in (on_cpu, on_gpu)]
    assert all(each.options.guided_matching for each in shared)
    own = create_matcher("lightglue", device="cpu", filter_threshold=0.2, guided_matching=None)
    assert not own.options.guided_matching and not own.shared_guided_matching


def test_auto_does_not_hide_other_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_bfloat16(monkeypatch, False)
    path = tmp_path / "features.h5"
    stored(path, plugin_settings(create_extractor("superpoint", device="cpu", max_keypoints=100)))
    fake_bfloat16(monkeypatch, True)
    extractor = create_extractor("superpoint", device="cpu")
    assert with_stored_choices(extractor, path) is extractor
    chosen = create_extractor("superpoint", device="cpu", max_keypoints=100, precision="low")
    assert with_stored_choices(chosen, path) is chosen  # auto alone adapts
    (tmp_path / "damaged.h5").write_bytes(b"no HDF5")
    for name in ("damaged.h5", "none.h5"):
        assert with_stored_choices(extractor, tmp_path / name) is extractor


def test_a_run_of_float32_is_continued_with_auto_and_refused_with_low(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    for name, picture in zip("ab", pixels, strict=True):
        PILImage.fromarray(picture).resize((128, 128)).save(photos / f"{name}.png")
    small = {"device": "cpu", "max_keypoints": 16, "enlarge_max": 1.0}
    extract_features(photos, out / "features.h5", create_extractor("superpoint", precision="float32", **small))
    before = (out / "features.h5").read_bytes()
    pairs = [Pair("a.png", "b.png")]
    match_pairs(out / "features.h5", pairs, out / "matches.h5", create_matcher("lightglue", device="cpu", precision="float32"))

    fake_bfloat16(monkeypatch, True)
    report = extract_features(photos, out / "features.h5", create_extractor("superpoint", **small))
    assert (report.num_computed, report.precision) == (0, "float32") and (out / "features.h5").read_bytes() == before
    matched = match_pairs(out / "features.h5", pairs, out / "matches.h5", create_matcher("lightglue", device="cpu"))
    assert (matched.num_computed, matched.precision) == (0, "float32")
    given = [f"dataset.images={photos}", f"output={out}", "features.max_keypoints=16", "features.enlarge_max=1"]
    Run.checked(compose_config([*given, "execution.device=cpu"]), "run")
    with pytest.raises(SettingsChanged, match="precision: float32 -> low"):
        extract_features(photos, out / "features.h5", create_extractor("superpoint", precision="low", **small))
    with pytest.raises(SettingsChanged, match="precision: float32 -> low"):
        Run.checked(compose_config([*given, "execution.device=cpu", "features.precision=low"]), "extract")
    with H5Reader(out / "features.h5") as reader, h5py.File(out / "features.h5") as file:
        assert reader.settings["options"]["precision"] == "float32" and file.attrs["fingerprint"]


def test_keypoints_of_sift_are_continued_with_the_first_octave_of_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    PILImage.fromarray(pixels).save(tmp_path / "images" / "a.png")
    file = tmp_path / "features.h5"
    extract_features(tmp_path / "images", file, create_extractor("sift", first_octave=-1))
    PILImage.fromarray(pixels[::-1]).save(tmp_path / "images" / "b.png")
    with caplog.at_level(logging.INFO):
        extract_features(tmp_path / "images", file, create_extractor("sift"))
    with H5Reader(file) as reader:
        assert reader.names() == ["a.png", "b.png"] and reader.settings["options"]["first_octave"] == -1
    assert "is continued with first_octave=-1, as it was made; for a new file, first_octave=null would be chosen" in caplog.text
    with pytest.raises(SettingsChanged, match="first_octave: -1 -> 0"):
        extract_features(tmp_path / "images", file, create_extractor("sift", first_octave=0))


def test_a_setting_that_is_left_out_is_shown_with_its_value() -> None:
    changes = describe_changes({"options": {"a": 1}}, {"options": {"a": 1, "guided_matching": True}})
    assert changes == "options.guided_matching: False -> True"
