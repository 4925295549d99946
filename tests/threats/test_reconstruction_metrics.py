"""The metrics of leakage on pairs whose scores are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from suture.threats.judging import metrics


def _images(count: int = 8, size: int = 16, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def _constant(value: float, count: int = 2, size: int = 16) -> Tensor:
    return torch.full((count, 1, size, size), value)


@pytest.mark.parametrize(
    ("rebuilt", "truth", "expected"), [(0.25, 0.75, 0.25), (0.0, 1.0, 1.0), (0.5, 0.5, 0.0)]
)
def test_mse_of_constant_images_is_the_square_of_their_difference(
    rebuilt: float, truth: float, expected: float
) -> None:
    """Oracle: arithmetic, in units of [0, 1]."""
    assert metrics.mse(_constant(rebuilt), _constant(truth)).tolist() == pytest.approx([expected] * 2)


def test_mse_in_units_of_minus_one_to_one_would_be_four_times_larger() -> None:
    """Oracle: arithmetic; papers that report [-1, 1] units are divided by four beside these."""
    a, b = _images(seed=1), _images(seed=2)
    wide = ((2 * a - 1) - (2 * b - 1)).square().flatten(1).mean(dim=1)
    assert torch.allclose(wide.double(), 4 * metrics.mse(a, b), rtol=1e-5)


def test_psnr_is_taken_at_peak_one() -> None:
    """Oracle: -10 log10 of the squared difference; .1 apart is 20 dB, .5 apart is 6.02 dB."""
    assert metrics.psnr(_constant(0.4), _constant(0.5)).tolist() == pytest.approx([20.0] * 2, abs=1e-4)
    assert metrics.psnr(_constant(0.0), _constant(0.5)).tolist() == pytest.approx([6.0206] * 2, abs=1e-4)


def test_a_perfect_copy_has_the_best_scores_and_is_finite() -> None:
    """Oracle: the definitions."""
    scores = metrics.score(_images(), _images())
    assert (scores.mse, scores.psnr, scores.reidentified) == (0.0, metrics.LARGEST_PSNR, 1.0)
    assert scores.ssim == pytest.approx(1.0)
    assert all(math.isfinite(value) for value in vars(scores).values())


def test_ssim_agrees_with_the_formula_written_out() -> None:
    """Oracle: Wang et al.'s formula at every pixel as loops in numpy, edges reflected, then the mean."""
    a, b = _images(1, 13, seed=1), _images(1, 13, seed=2)
    steps = np.arange(-5, 6)
    line = np.exp(-(steps**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    x, y = (np.pad(image[0, 0].double().numpy(), 5, mode="reflect") for image in (a, b))
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for row in range(13):
        for column in range(13):
            p, q = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * p * p).sum() - mp**2, (weights * q * q).sum() - mq**2
            cov = (weights * p * q).sum() - mp * mq
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert float(metrics.ssim(a, b)) == pytest.approx(float(np.mean(values)), abs=1e-5)


@pytest.mark.parametrize("size", [3, 4, 5, 8, 10, 11, 12, 32])
def test_the_ssim_window_adapts_to_tiny_images(size: int) -> None:
    """Oracle: equal images score 1, others less, at any size from 3 pixels."""
    a, b = _images(3, size, seed=1), _images(3, size, seed=2)
    assert metrics.ssim(a, a).tolist() == pytest.approx([1.0] * 3)
    assert float(metrics.ssim(a, b).max()) < 0.9


def test_ssim_refuses_images_of_two_pixels() -> None:
    """Oracle: no odd window above one pixel fits."""
    with pytest.raises(ValueError, match="at least 3 pixels"):
        metrics.ssim(_images(1, 2), _images(1, 2))


def test_reidentification_finds_each_image_through_noise_and_a_change_of_brightness() -> None:
    """Oracle: dimmed and slightly noisy copies are nearest to their originals; a shuffled set never is."""
    truth = _images(20)
    noise = 0.02 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(3))
    rebuilt = (0.3 * truth + 0.1 + noise).clamp(0, 1)
    assert metrics.reidentified(rebuilt, truth).all()
    assert not metrics.reidentified(rebuilt.roll(1, dims=0), truth).any()


def test_the_mean_image_and_a_flat_image_reidentify_nobody() -> None:
    """Oracle: an answer that is the same for everybody is a guess; ties count as not found."""
    truth = _images(50)
    found = metrics.reidentified(metrics.mean_image(truth).expand_as(truth), truth)
    assert float(found.double().mean()) <= 1 / 50
    assert not metrics.reidentified(_constant(0.3, 50), truth).any()


def test_equal_images_cannot_be_told_apart() -> None:
    """Oracle: with two copies of one image in the set neither is identified."""
    truth = _images(3)
    truth = torch.cat((truth, truth[:1]))
    assert metrics.reidentified(truth, truth).tolist() == [False, True, True, False]


def test_further_candidates_make_reidentification_harder() -> None:
    """Oracle: a candidate equal to the reconstruction takes the place of a noisy truth."""
    truth = _images(4)
    rebuilt = (truth + 0.2 * torch.rand(truth.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert metrics.reidentified(rebuilt, truth).all()
    assert not metrics.reidentified(rebuilt, truth, rebuilt).any()


def test_the_worst_tenth_is_the_mean_of_those_that_leak_most() -> None:
    """Oracle: counted by hand over 20 values; of 5 values it is the single worst."""
    values = torch.arange(20).float()
    assert metrics.worst_tenth(values, leaks_when="low") == 0.5
    assert metrics.worst_tenth(values, leaks_when="high") == 18.5
    assert metrics.worst_tenth(values[:5], leaks_when="high") == 4.0


def test_the_summary_takes_medians_and_worst_tenths_over_images() -> None:
    """Oracle: nine images off by .5 and one copied; the mean hides the one that leaked whole."""
    truth = _constant(0.5, 10)
    rebuilt = torch.cat((_constant(0.0, 9), _constant(0.5, 1)))
    scores = metrics.score(rebuilt, truth)
    assert scores.mse == pytest.approx(0.225)
    assert (scores.mse_median, scores.mse_worst_tenth) == pytest.approx((0.25, 0.0))
    assert scores.psnr_worst_tenth == metrics.LARGEST_PSNR
    assert scores.chance == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("rebuilt", "hint"),
    [
        (_images() * 2 - 1, "undo the normalisation"),
        (_images() * 255, "divide by 255"),
        ((_images() * 255).to(torch.uint8), "divide by 255"),
        (torch.full((8, 1, 16, 16), float("nan")), "expected values in"),
    ],
)
def test_images_on_another_scale_are_refused_with_the_remedy(rebuilt: Tensor, hint: str) -> None:
    """Oracle: rule 4 of judging; [-1, 1], 0..255, bytes and NaN are no pictures in [0, 1]."""
    for measure in (metrics.mse, metrics.psnr, metrics.ssim, metrics.reidentified):
        with pytest.raises(ValueError, match=hint):
            measure(rebuilt, _images())


def test_shapes_must_agree() -> None:
    """Oracle: broadcasting one image against many would score nonsense in silence."""
    with pytest.raises(ValueError, match="one shape"):
        metrics.mse(_images(1), _images(8))


def test_baselines_are_plain_means() -> None:
    """Oracle: the mean over all, and over each class; a class without an image gets the mean over all."""
    images, labels = _images(4), torch.tensor([0, 0, 1, 1])
    assert torch.allclose(metrics.mean_image(images)[0], images.double().mean(dim=0))
    means = metrics.class_means(images, labels, torch.tensor([1, 0, 7]))
    assert torch.allclose(means[0], images[2:].double().mean(dim=0))
    assert torch.allclose(means[1], images[:2].double().mean(dim=0))
    assert torch.allclose(means[2], images.double().mean(dim=0))
