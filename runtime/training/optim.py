"""The optimizers a part may be trained with; each side steps its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from suture.runtime.errors import ConfigError
from suture.runtime.wire.checks import Sometimes

OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How every part is optimised.

    Attributes:
        name: "adam" (torch's defaults) or "sgd" (momentum 0.9).
        lr: learning rate, above 0.
    """

    name: str = "adam"
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ConfigError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.name!r}")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"lr must be above 0 and finite, got {self.lr}")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A torch optimizer over ``parameters``."""
        if self.name == "adam":
            return torch.optim.Adam(parameters, lr=self.lr)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9)


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer has gathered, by its parameters' numbers: what the next client goes on with."""
    return {"state": optimizer.state_dict()["state"]}


def moments_like(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the moments of ``optimizer`` look like once it has stepped, for `check_state`; takes no memory."""
    groups = [
        {**group, "params": [nn.Parameter(torch.empty_like(p, device="meta")) for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    like: torch.optim.Optimizer = type(optimizer)(groups)  # type: ignore[call-arg]  # a subclass fills the rest in
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    like.step()
    return {"state": Sometimes(like.state_dict()["state"])}


def take_moments(optimizer: torch.optim.Optimizer, given: Mapping[str, Any]) -> None:
    """Takes up another's moments; the learning rate and the like stay one's own."""
    own = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": copy.deepcopy(dict(given["state"])), "param_groups": own})


def step_with(optimizer: torch.optim.Optimizer, gradients: Mapping[Tensor, Tensor]) -> None:
    """Steps ``optimizer`` with ``gradients``, which came from an autograd context and not from ``.grad``.

    A parameter without a gradient is left alone, as in ordinary training.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = gradients.get(parameter)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
