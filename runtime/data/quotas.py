"""How many images of each class a client shall get: the arithmetic of the partition schemes."""

import numpy as np
from numpy.typing import NDArray

# Two images are the least that a batch-normalised network can train on.
MIN_CLIENT_IMAGES = 2

Counts = NDArray[np.int64]


def even_quota(total: int, num_classes: int) -> Counts:
    """Divide a count among classes as evenly as it goes; the first classes get the remainder."""
    quota = np.full(num_classes, total // num_classes, dtype=np.int64)
    quota[: total % num_classes] += 1
    return quota


def train_quotas(
    kind: str, alpha: float, train_images: int, num_clients: int, supply: Counts, rng: np.random.Generator
) -> list[Counts]:
    """Training images by class of each client.

    Args:
        kind: "iid", "by-site", "dirichlet" or "quantity".
        alpha: Concentration of the Dirichlet distribution; small means uneven.
        train_images: Images of a client (quantity: on average).
        num_clients: How many quotas.
        supply: (classes,) images there are; only dirichlet looks at it.
        rng: The only source of chance.
    """
    num_classes = len(supply)
    if kind == "dirichlet":
        return _by_class(alpha, train_images, num_clients, supply, rng)
    if kind == "quantity":
        sizes = _sizes(alpha, train_images * num_clients, num_clients, rng)
        return [even_quota(int(size), num_classes) for size in sizes]
    return [even_quota(train_images, num_classes) for _ in range(num_clients)]


def _by_class(
    alpha: float, train_images: int, num_clients: int, supply: Counts, rng: np.random.Generator
) -> list[Counts]:
    """Class proportions by Dirichlet(alpha).

    A class that is used up passes its part on to the classes that are left, as in Hsu et al. 2019
    (arXiv:1909.06335); too few images in all are left for the dealer to complain about.
    """
    left = np.maximum(supply, 0)
    quotas = []
    for _ in range(num_clients):
        weights = rng.dirichlet(np.full(len(supply), alpha))
        quota = np.zeros(len(supply), dtype=np.int64)
        while (missing := train_images - int(quota.sum())) > 0:
            weights = np.where(left > quota, weights, 0.0)
            if not (left > quota).any():
                quota += even_quota(missing, len(supply))
                break
            if weights.sum() <= 0.0:
                weights = (left > quota).astype(np.float64)
            quota = np.minimum(quota + apportion(missing, weights), left)
        quotas.append(quota)
        left = np.maximum(left - quota, 0)
    return quotas


def _sizes(alpha: float, total: int, num_clients: int, rng: np.random.Generator) -> Counts:
    weights = rng.dirichlet(np.full(num_clients, alpha))
    if not np.isfinite(weights).all():
        weights = np.eye(num_clients)[rng.integers(num_clients)]
    return MIN_CLIENT_IMAGES + apportion(total - MIN_CLIENT_IMAGES * num_clients, weights)


def apportion(total: int, weights: NDArray[np.float64]) -> Counts:
    """Whole numbers in proportion to weights that add up to ``total`` (largest remainders)."""
    exact = total * weights / weights.sum()
    whole: Counts = np.floor(exact).astype(np.int64)
    for position in np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]:
        whole[position] += 1
    return whole
