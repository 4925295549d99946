"""How much of an image a reconstruction gives away: the one metrics module of every attack and defence.

All images are x_NCHW in [0, 1] (rule 4 of judging: a mix-up of [0, 1], [-1, 1] and 0..255 is the commonest error, and
is refused here). Every score is given per image first: the worst-leaked patient counts, not the average one.

SSIM: Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, IEEE Transactions on Image Processing 2004.

Shape legend: N images; C, H, W image; M candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_PSNR = 100.0  # dB, given to a perfect copy in place of infinity
_SLACK = 1e-4  # rounding in normalise and back


@dataclass(frozen=True, kw_only=True)
class LeakScores:
    """What one set of reconstructions scores.

    Attributes:
        num_images: N.
        mse: mean squared error in [0, 1] units.
        psnr: dB at peak 1, the mean of the images' own.
        ssim: structural similarity, 1 for equal.
        reidentified: share of reconstructions whose nearest true image among all N is their own; chance is 1 / N.
        mse_median, psnr_median, ssim_median: of the images.
        mse_worst_tenth, psnr_worst_tenth, ssim_worst_tenth: mean over the tenth of images that leaks most.
    """

    num_images: int
    mse: float
    psnr: float
    ssim: float
    reidentified: float
    mse_median: float
    psnr_median: float
    ssim_median: float
    mse_worst_tenth: float
    psnr_worst_tenth: float
    ssim_worst_tenth: float

    @property
    def chance(self) -> float:
        """Re-identification by guessing."""
        return 1 / self.num_images


def score(rebuilt_NCHW: Tensor, truth_NCHW: Tensor) -> LeakScores:
    """All scores of reconstructions beside the truth, image for image.

    Raises:
        ValueError: shapes differ, there is no image, or values lie outside [0, 1].
    """
    mse_N, psnr_N = mse(rebuilt_NCHW, truth_NCHW), psnr(rebuilt_NCHW, truth_NCHW)
    ssim_N = ssim(rebuilt_NCHW, truth_NCHW)
    return LeakScores(
        num_images=len(truth_NCHW),
        mse=float(mse_N.mean()),
        psnr=float(psnr_N.mean()),
        ssim=float(ssim_N.mean()),
        reidentified=float(reidentified(rebuilt_NCHW, truth_NCHW).double().mean()),
        mse_median=_median(mse_N),
        psnr_median=_median(psnr_N),
        ssim_median=_median(ssim_N),
        mse_worst_tenth=worst_tenth(mse_N, leaks_when="low"),
        psnr_worst_tenth=worst_tenth(psnr_N, leaks_when="high"),
        ssim_worst_tenth=worst_tenth(ssim_N, leaks_when="high"),
    )


def mse(rebuilt_NCHW: Tensor, truth_NCHW: Tensor) -> Tensor:
    """Mean squared error of each image, mse_N in 0..1."""
    rebuilt, truth = _checked(rebuilt_NCHW, truth_NCHW)
    return (rebuilt - truth).square().flatten(1).mean(dim=1)


def psnr(rebuilt_NCHW: Tensor, truth_NCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, psnr_N in dB at peak 1; a perfect copy gets `LARGEST_PSNR`."""
    return (-10 * mse(rebuilt_NCHW, truth_NCHW).log10()).clamp(max=LARGEST_PSNR)


def ssim(rebuilt_NCHW: Tensor, truth_NCHW: Tensor) -> Tensor:
    """Structural similarity of each image, ssim_N in -1..1, by torchmetrics with a data range of 1.

    The window is the paper's, a Gaussian of deviation 1.5 over 11 pixels, edges reflected; images below 11 pixels
    get the largest odd window that fits, with the deviation shrunk alike.
    """
    # torchmetrics takes most of a second to import: not before something is scored.
    from torchmetrics.functional.image import structural_similarity_index_measure

    rebuilt, truth = _checked(rebuilt_NCHW, truth_NCHW)
    side = min(truth.shape[-2:])
    if side < 3:
        raise ValueError(f"SSIM needs images of at least 3 pixels a side, got {tuple(truth.shape[-2:])}")
    window = min(11, side if side % 2 else side - 1)
    sigma = 1.5 * window / 11
    # In float32 and in parts: torch has no fast double convolution, and at 224 px it asks for 35 GB for 48 images.
    parts = zip(rebuilt.float().split(32), truth.float().split(32), strict=True)
    scores = [
        structural_similarity_index_measure(
            ours,
            theirs,
            # With a Gaussian, torchmetrics computes the window from sigma: int(3.5 * sigma + 0.5) * 2 + 1.
            gaussian_kernel=True,
            sigma=sigma,
            kernel_size=window,
            data_range=1.0,
            reduction="none",
        )
        for ours, theirs in parts
    ]
    return torch.cat([part.reshape(-1) for part in scores if isinstance(part, Tensor)]).double()


def reidentified(rebuilt_NCHW: Tensor, truth_NCHW: Tensor, candidates_MCHW: Tensor | None = None) -> Tensor:
    """Whether each reconstruction's nearest true image is its own: found_N, bool.

    Nearest by pixels after each image is brought to mean 0 and deviation 1: a reconstruction that is too
    dark or too flat still names its patient. A tie counts as not found, so the mean image scores 0, at or below
    chance, and equal images in the set cannot be told apart.

    Args:
        candidates_MCHW: further true images among which the own one must be found (M more), None for none.
    """
    rebuilt, truth = _checked(rebuilt_NCHW, truth_NCHW)
    candidates = (
        truth if candidates_MCHW is None else torch.cat((truth, _in_range(candidates_MCHW, "candidates")))
    )
    r_ND, c_MD = _standardised(rebuilt), _standardised(candidates)
    distances_NM = torch.cdist(r_ND, c_MD).square() / r_ND.shape[1]
    own_N = distances_NM.diagonal().clone()
    others_NM = distances_NM.clone()
    others_NM.diagonal().fill_(float("inf"))
    # 1e-6 of variance 1 is rounding, not evidence.
    return own_N < others_NM.min(dim=1).values - 1e-6


def worst_tenth(values_N: Tensor, *, leaks_when: str) -> float:
    """Mean over the tenth of images (at least one) that leaks most; ``leaks_when`` is "low" or "high"."""
    count = max(1, len(values_N) // 10)
    return float(values_N.double().topk(count, largest=leaks_when == "high").values.mean())


def mean_image(images_NCHW: Tensor) -> Tensor:
    """The mean of an attacker's own images, (1, C, H, W): what it can answer without any smashed data."""
    return _in_range(images_NCHW, "images").mean(dim=0, keepdim=True)


def class_means(images_NCHW: Tensor, labels_N: Tensor, wanted_M: Tensor) -> Tensor:
    """For each of ``wanted_M`` the mean of the images with that label: what an attacker can answer from labels alone.

    A label that no image has gets the mean of all images.
    """
    images = _in_range(images_NCHW, "images")
    means = {
        int(label): images[labels_N == label].mean(dim=0)
        if bool((labels_N == label).any())
        else images.mean(dim=0)
        for label in wanted_M.unique()
    }
    return torch.stack([means[int(label)] for label in wanted_M])


def _standardised(images_NCHW: Tensor) -> Tensor:
    flat_ND = images_NCHW.flatten(1)
    flat_ND = flat_ND - flat_ND.mean(dim=1, keepdim=True)
    # A flat image has no pattern: all zeros, equally far from everyone.
    return flat_ND / flat_ND.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)


def _median(values_N: Tensor) -> float:
    return float(values_N.double().quantile(0.5))


def _checked(rebuilt_NCHW: Tensor, truth_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    if rebuilt_NCHW.shape != truth_NCHW.shape or truth_NCHW.dim() != 4 or len(truth_NCHW) == 0:
        raise ValueError(
            "expected reconstructions and truth of one shape (N, C, H, W), N at least 1, "
            f"got {tuple(rebuilt_NCHW.shape)} and {tuple(truth_NCHW.shape)}"
        )
    return _in_range(rebuilt_NCHW, "reconstructions"), _in_range(truth_NCHW, "truth")


def _in_range(images_NCHW: Tensor, what: str) -> Tensor:
    if not images_NCHW.is_floating_point():
        raise ValueError(
            f"{what}: expected float images in [0, 1], got {images_NCHW.dtype}; divide by 255 first"
        )
    images = images_NCHW.detach().double().cpu()
    low, high = float(images.min()), float(images.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # so written, NaN is refused too
        hint = (
            "divide by 255"
            if high > 2
            else "undo the normalisation first (suture.runtime.data.normalise.denormalise)"
        )
        raise ValueError(f"{what}: expected values in [0, 1], got {low:.3g}..{high:.3g}; {hint}")
    return images.clamp(0.0, 1.0)
