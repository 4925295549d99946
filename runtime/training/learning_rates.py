"""The learning rate by round, as torch's own schedulers have it.

A function of the round alone: both ends know the round, so nothing is handed on, and a resumed run goes on exactly.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import lr_scheduler

from suture.runtime.errors import ConfigError

SCHEDULES = {
    "constant": "the same in all rounds",
    "cosine": "falls along half a cosine towards 0",
    "step": "a tenth after each third of the rounds",
}


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """How the learning rate changes from round to round.

    Attributes:
        schedule: one of ``SCHEDULES``.
        warm_up: rounds in which it first grows to its full value, in equal steps.
        rounds: of the whole run; the schedule begins after the warm-up and fills the rest.
    """

    schedule: str = "constant"
    warm_up: int = 0
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"lr-schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.warm_up and not 0 < self.warm_up < self.rounds:
            raise ConfigError(
                f"warm-up must be fewer rounds than the run's {self.rounds}, got {self.warm_up}; raise --epochs"
            )

    def factor(self, round: int) -> float:
        """What the learning rate is multiplied by in ``round``, which counts from 1; 1 where nothing changes it."""
        if self.schedule == "constant" and not self.warm_up:
            return 1.0
        factors = _factors(self.schedule, self.warm_up, self.rounds)
        return factors[min(round, len(factors)) - 1]

    def apply(self, optimizer: torch.optim.Optimizer, round: int) -> None:
        """Sets the rates of ``optimizer`` for ``round``."""
        for group in optimizer.param_groups:
            group["lr"] = group.get("initial_lr", group["lr"]) * self.factor(round)


@functools.cache
def _factors(schedule: str, warm_up: int, rounds: int) -> tuple[float, ...]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    chain: list[lr_scheduler.LRScheduler] = []
    if warm_up:
        chain.append(lr_scheduler.LinearLR(optimizer, 1 / (warm_up + 1), total_iters=warm_up))
    left = rounds - warm_up
    if schedule == "cosine":
        chain.append(lr_scheduler.CosineAnnealingLR(optimizer, left))
    elif schedule == "step":
        chain.append(lr_scheduler.StepLR(optimizer, max(1, -(-left // 3))))
    else:
        chain.append(lr_scheduler.ConstantLR(optimizer, 1.0))
    whole = lr_scheduler.SequentialLR(optimizer, chain, [warm_up] * (len(chain) - 1))
    factors = []
    for _ in range(rounds):
        factors.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # SequentialLR's own use of what torch deprecates
            whole.step()
    return tuple(factors)
