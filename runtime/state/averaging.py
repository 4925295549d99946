"""The weighted mean of states: what clients, or tops, that trained apart come to.

Reference: federated averaging, McMahan et al. 2017 (arXiv 1602.05629).

Weights, optimizer moments and a defence's state are averaged entry by entry; so are batch norm's running means and
variances (the mean of the variances: what the clients' means differ by is left out of it). Whole numbers, such as
batch norm's count of batches, take the largest; everything that is no tensor must be alike and stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suture.runtime.errors import HandoffError


class Mean:
    """Takes states in one by one: in memory are the first one and the sum, however many there are.

    The sum is float64: equal states, and a single one, come out as they went in, bit for bit.
    """

    def __init__(self) -> None:
        self._sum: Any = None
        self._like: Any = None
        self._weight = 0

    def add(self, state: Mapping[str, Any], weight: int) -> None:
        """Adds a state (nested dicts and lists of tensors and plain values) that counts ``weight`` times.

        Raises:
            HandoffError: it is built otherwise than those before it, or counts for nothing.
        """
        if weight < 1:
            raise HandoffError(f"a share of a mean must count for at least one image, got {weight}")
        if self._like is None:
            self._like = state
            self._sum = _weighted(state, weight)
        else:
            self._sum = _added(self._sum, state, weight)
        self._weight += weight

    def value(self) -> Any:
        """The mean of what was added, in the types of the first state."""
        return _divided(self._sum, self._like, self._weight)


def _weighted(value: Any, weight: int) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.double() * weight if value.is_floating_point() else value.clone()
    if isinstance(value, Mapping):
        return {key: _weighted(item, weight) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_weighted(item, weight) for item in value]
    return value


def _added(total: Any, value: Any, weight: int) -> Any:
    if isinstance(value, Tensor) and isinstance(total, Tensor) and value.shape == total.shape:
        value = value.detach().cpu()
        if value.is_floating_point():
            return total.add_(value.double(), alpha=weight)
        return torch.maximum(total, value)
    if isinstance(value, Mapping) and isinstance(total, Mapping) and value.keys() == total.keys():
        return {key: _added(item, value[key], weight) for key, item in total.items()}
    if isinstance(value, (list, tuple)) and isinstance(total, list) and len(value) == len(total):
        return [_added(*pair, weight) for pair in zip(total, value, strict=True)]
    if isinstance(value, (Tensor, Mapping, list, tuple)) or total != value:
        raise HandoffError("clients that trained at once ended with states that cannot be averaged")
    return total


def _divided(total: Any, like: Any, weight: int) -> Any:
    if isinstance(total, Tensor):
        return (total / weight).to(like.dtype) if like.is_floating_point() else total
    if isinstance(total, Mapping):
        return {key: _divided(item, like[key], weight) for key, item in total.items()}
    if isinstance(total, list):
        return type(like)(_divided(*pair, weight) for pair in zip(total, like, strict=True))
    return total
