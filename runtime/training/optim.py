"""The optimizers a part may be trained with; each side steps its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from suture.models.freezing import trained
from suture.runtime.errors import ConfigError
from suture.runtime.training.learning_rates import LearningRates
from suture.runtime.wire.checks import Sometimes

OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How every part is optimised.

    Attributes:
        name: "adam" or "adamw" (torch's defaults), or "sgd" (momentum 0.9).
        lr: learning rate, above 0.
        lr_bottom: the bottom's; None for the same.
        weight_decay: as torch's optimizers take it: added to the gradient, decoupled with "adamw".
        clip: most that the norm of a part's gradient may be, bottom, top and head each by itself; None for any.
        rates: how the learning rates change from round to round.
    """

    name: str = "adam"
    lr: float = 1e-3
    lr_bottom: float | None = None
    weight_decay: float = 0.0
    clip: float | None = None
    rates: LearningRates = field(default_factory=LearningRates)

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ConfigError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.name!r}")
        for what, value in (("lr", self.lr), ("lr-bottom", self.lr_bottom), ("clip", self.clip)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{what} must be above 0 and finite, got {value}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"weight-decay must be at least 0 and finite, got {self.weight_decay}")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A torch optimizer over ``parameters`` of one part that is no bottom."""
        return self._over([self._group(parameters, self.lr)])

    def build_by_part(self, parts: Mapping[str, nn.Module]) -> torch.optim.Optimizer:
        """A torch optimizer over what is trained of ``parts``, by name, a group each."""
        bottom = self.lr if self.lr_bottom is None else self.lr_bottom
        rates = {name: bottom if name == "bottom" else self.lr for name in parts}
        return self._over([self._group(trained(part), rates[name]) for name, part in parts.items()])

    def _group(self, parameters: Iterable[nn.Parameter], lr: float) -> dict[str, Any]:
        return {"params": list(parameters), "lr": lr, "initial_lr": lr, "clip": self.clip}

    def _over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.name == "sgd":
            return torch.optim.SGD(groups, momentum=0.9, weight_decay=self.weight_decay)
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        return kind(groups, weight_decay=self.weight_decay)


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


def pulled(
    gradients: Mapping[Tensor, Tensor], start: Mapping[Tensor, Tensor], mu: float
) -> dict[Tensor, Tensor]:
    """Gradients with that of ``mu / 2`` times the squared distance from ``start``, parameter by parameter."""
    return {
        parameter: gradients[parameter].to(parameter.device) + mu * (parameter.detach() - begun)
        for parameter, begun in start.items()
        if parameter in gradients
    }


def step_with(optimizer: torch.optim.Optimizer, gradients: Mapping[Tensor, Tensor]) -> None:
    """Steps ``optimizer`` with ``gradients``, which came from an autograd context and not from ``.grad``.

    A parameter without a gradient is left alone, as in ordinary training. Each group's gradient is clipped by itself.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = gradients.get(parameter)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        if group.get("clip") is not None:
            clip_grad_norm_(group["params"], group["clip"])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
