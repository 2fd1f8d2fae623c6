"""Photometric changes of photos: each kind alone, and all together."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from generated_photos import picture
from PIL import Image as PILImage
from torch import Generator, Tensor

from sfm_lightglue.images import to_grey
from sfm_lightglue.training import photometric
from sfm_lightglue.training.photometric import PhotometricRange, change_photos

NOTHING = {"contrast": 1, "brightness": 0, "gamma": 1, "shadow": 0, "lighting": 0, "blur": 0.3, "noise": 0, "jpeg_quality": 95}
"""Ranges without changes. A blur of 0.3 px and JPEG at its best still change a view; `plain` removes them."""
NUMBER = 400


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def view() -> Tensor:
    """(48, 52), values in 0.25 to 0.75, so that small changes are not clipped at 0 and 1."""
    return torch.rand(48, 52, generator=seeded()) / 2 + 0.25


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches off blur and JPEG."""
    monkeypatch.setattr(photometric, "convolve", lambda x, kernels: x)
    monkeypatch.setattr(photometric, "_jpeg", lambda x, quality: x)


def changed(view: Tensor, **ranges: float) -> list[Tensor]:
    """Makes `NUMBER` copies of the view with one kind of change, and returns the copies that differ from the view."""
    options = PhotometricRange(**{**NOTHING, **ranges})  # type: ignore[arg-type]
    views = change_photos(view.expand(NUMBER, 1, -1, -1), seeded(), options)[:, 0]
    return [each for each in views if (each - view).abs().max() > 1e-4]


def draws(number: int, seed: int = 0) -> photometric.Draws:
    return photometric.Draws(number, seeded(seed))


def test_values_stay_in_range_and_views_are_not_changed_in_place(shipped, view: Tensor) -> None:
    wide = (view * 2 - 0.5).expand(100, 1, -1, -1).contiguous()  # 0 to 1
    before = wide.clone()
    found = change_photos(wide, seeded(), shipped.views.photometric)
    assert found.shape == wide.shape and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(wide, before)


def test_the_same_generator_gives_the_same_views_and_each_view_has_its_own_changes(shipped, view: Tensor) -> None:
    views = view.expand(30, 1, -1, -1)
    first, again, other = (change_photos(views, seeded(seed), shipped.views.photometric) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({each.sum().item() for each in first}) > 25


def test_the_change_of_a_view_does_not_depend_on_the_other_views(shipped) -> None:
    views = torch.rand(12, 1, 40, 48, generator=seeded())
    others = torch.cat([views[:5], torch.rand(7, 1, 40, 48, generator=seeded(1))])
    first, second = (change_photos(each, seeded(2), shipped.views.photometric) for each in (views, others))
    torch.testing.assert_close(first[:5], second[:5], atol=1e-6, rtol=0)


def test_each_kind_of_change_is_applied_to_its_share_of_views(view: Tensor, plain: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"shadow": 0.6, "lighting": 0.3, "contrast": 1.6, "brightness": 0.2, "gamma": 1.7, "noise": 0.04}
    shares = {kind: len(changed(view, **{kind: strength})) / NUMBER for kind, strength in kinds.items()}
    expected = {"shadow": 0.3, "lighting": 0.3, "contrast": 0.8, "brightness": 0.8, "gamma": 0.4, "noise": 0.5}
    assert shares == pytest.approx(expected, abs=0.075)  # three standard deviations of a share of 400
    for kind, share in (("_jpeg", 0.3), ("convolve", 0.37)):
        with monkeypatch.context() as patch:
            patch.setattr(photometric, kind, lambda x, *_: 1 - x)
            assert len(changed(view)) / NUMBER == pytest.approx(share, abs=0.075)


def test_without_ranges_nothing_changes(view: Tensor, plain: None) -> None:
    assert changed(view) == []


def test_brightness_is_added(view: Tensor, plain: None) -> None:
    views = changed(view, brightness=0.2)
    added = [(each - view).mean().item() for each in views]
    for each, shift in zip(views, added, strict=True):
        torch.testing.assert_close(each, view + shift, atol=1e-5, rtol=0)
    assert -0.2 <= min(added) < -0.18 and 0.18 < max(added) <= 0.2


def test_contrast_is_multiplied_about_the_middle(view: Tensor, plain: None) -> None:
    views = changed(view, contrast=1.6)
    factors = [(((each - 0.5) * (view - 0.5)).sum() / ((view - 0.5) ** 2).sum()).item() for each in views]
    for each, factor in zip(views, factors, strict=True):
        torch.testing.assert_close(each, (view - 0.5) * factor + 0.5, atol=1e-5, rtol=0)
    assert 1 / 1.601 <= min(factors) < 0.66 and 1.52 < max(factors) <= 1.601


def test_gamma_is_an_exponent(view: Tensor, plain: None) -> None:
    views = changed(view, gamma=1.7)
    exponents = [(each.log() / view.log()).mean().item() for each in views]
    for each, exponent in zip(views, exponents, strict=True):
        torch.testing.assert_close(each, view**exponent, atol=1e-5, rtol=0)
    assert 1 / 1.701 <= min(exponents) < 0.64 and 1.57 < max(exponents) <= 1.701


def test_noise_has_at_most_the_requested_standard_deviation(view: Tensor, plain: None) -> None:
    errors = [each - view for each in changed(view, noise=0.04)]
    deviations = np.array([error.std().item() for error in errors])
    assert 0.035 < deviations.max() < 0.04 * 1.06  # from 2496 draws, so exact to 1.4 %
    assert len(np.unique(deviations.round(4))) > 50
    strongest = torch.stack([error.flatten() for error, deviation in zip(errors, deviations, strict=True) if deviation > 0.03])
    correlation = torch.corrcoef(strongest) - torch.eye(len(strongest))
    assert correlation.abs().max() < 0.12  # each view has its own noise; six standard deviations


def test_a_shadow_darkens_one_side_of_a_line(view: Tensor, plain: None) -> None:
    darkest, steepest = [], []
    for each in changed(view, shadow=0.6):
        share = (each / view).numpy()
        assert share.min() >= 0.4 - 1e-5 and share.max() <= 1 + 1e-5
        # A function of the distance to a line is monotonic along each row and each column.
        for axis in (0, 1):
            steps = np.diff(share, axis=axis)
            assert (steps > -1e-5).all() or (steps < 1e-5).all()
        darkest.append(share.min())
        steepest.append(np.abs(np.diff(share, axis=0)).max())
    assert min(darkest) < 0.5
    assert min(steepest) < 0.01 and max(steepest) > 0.1  # shadows have sharp and soft edges


def test_lights_vary_slowly_with_the_requested_standard_deviation() -> None:
    lights = photometric._lights(torch.zeros(500, 1, 60, 80), draws(500), 0.3).log()
    assert lights.shape == (500, 1, 60, 80)
    corners = lights[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]  # the positions of the drawn values
    assert corners.mean().item() == pytest.approx(0, abs=0.03)
    assert corners.std().item() == pytest.approx(0.3, abs=0.03)
    assert torch.corrcoef(corners.T).sub(torch.eye(4)).abs().max() < 0.2
    # Drawn values 20 px apart differ by about 0.3 * sqrt(2), so values 1 px apart differ by a twentieth of that.
    for axis in (2, 3):
        assert lights.diff(dim=axis).std() < 0.03 and lights.diff(dim=axis).abs().max() < 0.15


def test_a_light_is_multiplied(view: Tensor, plain: None) -> None:
    ratios = torch.stack([each / view for each in changed(view, lighting=0.05)])
    assert ratios.diff(dim=1).abs().max() < 0.03 and ratios.diff(dim=2).abs().max() < 0.03
    assert ratios.std(dim=(1, 2)).mean() > 0.02


def test_blur_equals_gaussian_blur(view: Tensor) -> None:
    kernels = photometric._gaussians(draws(20), 1.4)
    reach = kernels.shape[-1] // 2
    step = np.arange(-reach, reach + 1)
    views = torch.stack([view, 1 - view] * 10)[:, None]
    blurred = photometric.convolve(views, kernels)
    assert blurred.shape == views.shape and reach >= 3 * 1.4
    sigmas = []
    for blur, before, kernel in zip(
        blurred[:, 0].numpy(), views[:, 0].double().numpy(), kernels[:, 0].double().numpy(), strict=True
    ):
        sigmas.append(np.sqrt(0.5 / np.log(kernel[reach, reach] / kernel[reach, reach + 1])))
        along = np.exp(-0.5 * (step / sigmas[-1]) ** 2)
        np.testing.assert_allclose(kernel, np.outer(along, along) / along.sum() ** 2, atol=1e-5)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(before, reach, mode="edge"), kernel.shape)
        np.testing.assert_allclose(blur, np.einsum("yxij,ij->yx", windows, kernel), atol=1e-5)
    assert 0.299 < min(sigmas) < 0.5 and 1.2 < max(sigmas) < 1.401


def test_motion_blur_is_a_mean_along_a_short_line() -> None:
    kernels = photometric.motions(draws(60), 5.6)[:, 0].double()
    reach = kernels.shape[-1] // 2
    rows, columns = torch.meshgrid(*[torch.arange(-reach, reach + 1).double()] * 2, indexing="ij")
    directions, lengths = [], []
    for kernel in kernels:
        assert kernel.min() >= 0 and kernel.sum() == pytest.approx(1)
        torch.testing.assert_close(kernel, kernel.flip(0, 1))  # the kernel is centred
        spread = torch.stack([columns, rows]).flatten(1)
        values, axes = torch.linalg.eigh(spread * kernel.flatten() @ spread.T)
        assert values[0].sqrt() < 0.6  # the line is thin
        lengths.append((12 * values[1]).sqrt().item())  # length of a uniform distribution with this variance
        directions.append(torch.atan2(axes[1, 1], axes[0, 1]).item() % np.pi)
    assert 1 < min(lengths) < 3 and 4.5 < max(lengths) < 5.6 + 1
    assert np.histogram(directions, 4, (0, np.pi))[0].min() > 5


@pytest.mark.parametrize("quality", [20, 40, 60, 75, 95])
def test_jpeg_equals_pillows(quality: int) -> None:
    smooth = to_grey(picture((93, 61), 0))  # not a whole number of blocks
    noisy = np.random.default_rng(0).uniform(0, 1, (61, 93)).astype(np.float32)
    greys = (np.stack([smooth, noisy]) * 255).round().astype(np.uint8)
    qualities = torch.full((2, 1, 1, 1), float(quality))
    found = photometric._jpeg(torch.from_numpy(greys)[:, None].float() / 255, qualities)[:, 0].numpy() * 255
    np.testing.assert_allclose(found, found.round(), atol=1e-3)
    for grey, mine in zip(greys, found, strict=True):
        buffer = io.BytesIO()
        PILImage.fromarray(grey).save(buffer, "JPEG", quality=quality)
        expected = np.asarray(PILImage.open(buffer), float)
        lost = np.abs(expected - grey).mean()
        assert np.abs(mine - expected).mean() < min(1.0, lost / 4)


def test_each_view_has_its_own_quality(view: Tensor) -> None:
    views, qualities = view.expand(3, 1, -1, -1), torch.tensor([40.0, 70.0, 95.0]).view(3, 1, 1, 1)
    found = photometric._jpeg(views, qualities)
    for i in range(3):
        assert torch.equal(found[i : i + 1], photometric._jpeg(views[:1], qualities[i : i + 1]))
    worst, _, best = (found - views).abs().mean(dim=(1, 2, 3)).tolist()
    assert 0 < best < 0.02 < worst < 0.1
