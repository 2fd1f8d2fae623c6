"""Changes of how a photo looks: each kind alone, and all of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from sfm_lightglue.training import photometric
from sfm_lightglue.training.photometric import PhotometricRange, change_photo

NOTHING = {"contrast": 1.0, "brightness": 0.0, "gamma": 1.0, "shadow": 0.0, "blur": 0.3, "noise": 0.0, "jpeg_quality": 95}
"""The smallest blur, 0.3 px, and JPEG at its best are no identity: `plain` takes them away."""
SEEDS = range(60)


@pytest.fixture
def view() -> Tensor:
    """(48, 56), 0.25 to 0.75, so that small changes are not cut at 0 and 1."""
    return torch.rand(48, 56, generator=torch.Generator().manual_seed(0)) / 2 + 0.25


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither blur nor JPEG, with their draws."""
    monkeypatch.setattr(photometric, "_gaussian_blur", lambda x, sigma: x)
    monkeypatch.setattr(photometric, "_motion_blur", lambda x, rng, longest: x)
    monkeypatch.setattr(photometric, "_jpeg", lambda x, quality: x)
    yield


def changed(view: Tensor, **ranges: float) -> list[Tensor]:
    """The view with one kind of change, for many seeds: those that are not as before."""
    options = PhotometricRange(**{**NOTHING, **ranges})  # type: ignore[arg-type]
    views = [change_photo(view, np.random.default_rng(seed), options) for seed in SEEDS]
    return [each for each in views if (each - view).abs().max() > 1e-5]


def test_values_stay_in_range_and_the_shape_stays(shipped, view: Tensor) -> None:
    wide = view * 2 - 0.5  # 0 to 1
    before = wide.clone()
    for seed in range(100):
        found = change_photo(wide, np.random.default_rng(seed), shipped.views.photometric)
        assert found.shape == wide.shape and found.dtype == torch.float32
        assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(wide, before)


def test_the_same_seed_gives_the_same_view(shipped, view: Tensor) -> None:
    for seed in range(20):
        first, again = (change_photo(view, np.random.default_rng(seed), shipped.views.photometric) for _ in range(2))
        assert torch.equal(first, again)


def test_each_kind_of_change_befalls_some_views(shipped, view: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = dict.fromkeys(("_shadow", "_gaussian_blur", "_motion_blur", "_jpeg"), 0)
    for name in calls:
        original = getattr(photometric, name)

        def counted(*arguments: object, name: str = name, original=original) -> Tensor:
            calls[name] += 1
            return original(*arguments)

        monkeypatch.setattr(photometric, name, counted)
    same = 0
    for seed in range(300):
        same += bool((change_photo(view, np.random.default_rng(seed), shipped.views.photometric) == view).all())
    shares = {name: number / 300 for name, number in calls.items()}
    assert shares == pytest.approx({"_shadow": 0.3, "_gaussian_blur": 0.3, "_motion_blur": 0.07, "_jpeg": 0.3}, abs=0.08)
    assert 0 < same < 30


def test_without_ranges_nothing_changes(view: Tensor, plain: None) -> None:
    assert changed(view) == []


def test_brightness_is_added(view: Tensor, plain: None) -> None:
    views = changed(view, brightness=0.2)
    assert len(views) > 30  # four in five
    added = [(each - view).mean().item() for each in views]
    for each, shift in zip(views, added, strict=True):
        torch.testing.assert_close(each, view + shift, atol=1e-5, rtol=0)
    assert min(added) < -0.1 and max(added) > 0.1 and max(np.abs(added)) <= 0.2


def test_contrast_is_multiplied_about_the_middle(view: Tensor, plain: None) -> None:
    views = changed(view, contrast=1.6)
    factors = [(((each - 0.5) * (view - 0.5)).sum() / ((view - 0.5) ** 2).sum()).item() for each in views]
    for each, factor in zip(views, factors, strict=True):
        torch.testing.assert_close(each, (view - 0.5) * factor + 0.5, atol=1e-5, rtol=0)
    assert 1 / 1.6 <= min(factors) < 0.8 and 1.25 < max(factors) <= 1.6


def test_gamma_is_an_exponent(view: Tensor, plain: None) -> None:
    views = changed(view, gamma=1.7)
    assert len(views) > 10
    exponents = [(each.log() / view.log()).mean().item() for each in views]
    for each, exponent in zip(views, exponents, strict=True):
        torch.testing.assert_close(each, view**exponent, atol=1e-5, rtol=0)
    assert 1 / 1.7 <= min(exponents) < 0.8 and 1.25 < max(exponents) <= 1.7


def test_noise_has_at_most_the_standard_deviation_that_is_asked_for(view: Tensor, plain: None) -> None:
    deviations = [(each - view).std().item() for each in changed(view, noise=0.04)]
    assert len(deviations) > 15
    assert max(deviations) < 0.04 * 1.06 and max(deviations) > 0.03  # of 2688 draws: known to 1.4 %
    assert len({round(deviation, 4) for deviation in deviations}) > 10


def test_a_shadow_darkens_one_side_of_a_line(view: Tensor, plain: None) -> None:
    views = changed(view, shadow=0.6)
    assert len(views) > 10
    darkest = []
    for each in views:
        share = (each / view).numpy()
        assert share.min() >= 0.4 - 1e-5 and share.max() <= 1 + 1e-5
        # A function of the distance to a line rises or falls all along each row and each column.
        for axis in (0, 1):
            steps = np.diff(share, axis=axis)
            assert (steps > -1e-5).all() or (steps < 1e-5).all()
        darkest.append(share.min())
    assert min(darkest) < 0.7


@pytest.mark.parametrize("sigma", [0.3, 0.9, 1.4])
def test_blur_is_that_of_a_gaussian(view: Tensor, sigma: float) -> None:
    reach = 5
    along = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = np.outer(along, along) / along.sum() ** 2
    padded = np.pad(view.double().numpy(), reach, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, weights.shape)
    expected = np.einsum("yxij,ij->yx", windows, weights)
    # It is cut at 3 standard deviations, where 0.3 % of the weight lies.
    np.testing.assert_allclose(photometric._gaussian_blur(view, sigma), expected, atol=3e-3)


def test_motion_blur_is_a_mean_along_a_short_line() -> None:
    dot = torch.zeros(41, 41)
    dot[20, 20] = 1
    lengths = []
    for seed in range(20):
        spread = photometric._motion_blur(dot, np.random.default_rng(seed), 5.6)
        assert spread.sum() == pytest.approx(1, abs=1e-5)
        y, x = (axis.double() - 20 for axis in torch.nonzero(spread, as_tuple=True))
        positions = torch.stack([x, y])
        directions, extents, _ = torch.linalg.svd(positions)
        assert (directions[:, 1] @ positions).abs().max() < 1  # the line is thin
        lengths.append((directions[:, 0] @ positions).abs().max().item() * 2)
        assert extents[0] > 0
    assert 1 <= min(lengths) < 3 and 4 < max(lengths) <= 5.6 + 1
    flat = torch.full((20, 20), 0.7)
    torch.testing.assert_close(photometric._motion_blur(flat, np.random.default_rng(0), 5.6), flat)


def test_jpeg_changes_more_at_lower_quality(view: Tensor) -> None:
    worse, better = ((photometric._jpeg(view, quality) - view).abs().mean().item() for quality in (40, 95))
    assert 0 < better < 0.02 < worse < 0.1
