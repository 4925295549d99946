"""Whether an attack's net had stopped learning when its training ended: a figure of one that had not is no bound.

A net is trained until its loss on validation pairs of the attacker's own no longer falls (a plateau), or until a hard
budget ends it; the verdict says which.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Ending = Literal["plateau", "still learning", "fixed budget", "nothing to learn", "not said"]

LEAST_GAIN = 0.005  # of the loss: less in `patience` passes is no gain
_DROPS, _FACTOR = 2, 0.3  # of the learning rate, before a plateau counts
_LEAST_PAIRS = 4  # with fewer there are none to validate on
_SHOWN = 60


@dataclass
class Learning:
    """How a training went.

    Attributes:
        ended: "plateau"; "still learning" when the budget ended it first; "fixed budget" for a game of nets, which has
            no plateau: read the whole curve; "not said" by an attack of one's own.
        budget: what the hard budget was, in words; empty where there is none.
        curve: steps, CPU seconds and validation loss, pass by pass.
    """

    ended: Ending = "not said"
    budget: str = ""
    curve: list[tuple[int, float, float]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Plain values for a report; of a long curve every so many points and the last."""
        every = max(1, -(-len(self.curve) // _SHOWN))
        kept = [point for at, point in enumerate(self.curve) if at % every == 0 or at == len(self.curve) - 1]
        curve = [[steps, round(seconds, 2), loss] for steps, seconds, loss in kept]
        return {"ended": self.ended, "budget": self.budget, "curve": curve}


def split_pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to train on and a tenth to validate on (at least one), drawn; of fewer than four all are trained on."""
    order = torch.randperm(count, generator=generator)
    held_back = 0 if count < _LEAST_PAIRS else max(1, count // 10)
    return order[held_back:], order[:held_back]


class Plateau:
    """Lowers the learning rate when validation no longer gains, and says when that no longer helps either.

    Args:
        optimizer: whose learning rate is lowered.
        patience: passes without gain that are waited for, at each learning rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, patience: int) -> None:
        self.learning = Learning(ended="still learning")
        self._optimizer, self._patience = optimizer, patience
        self._begun = time.process_time()
        self._reference = self.best = float("inf")
        self._waited = self._drops = 0

    def is_best(self, steps: int, loss: float) -> bool:
        """Notes a pass's validation loss; whether it is the lowest so far."""
        self.learning.curve.append((steps, time.process_time() - self._begun, loss))
        best = loss < self.best
        self.best = loss if best else self.best  # NaN is never the best
        gains = loss < self._reference * (1 - LEAST_GAIN)
        self._reference = loss if gains else self._reference
        self._waited = 0 if gains else self._waited + 1
        return best

    def is_reached(self) -> bool:
        """Whether training is over; call once after each `is_best`."""
        if self._waited < self._patience:
            return False
        if self._drops == _DROPS:
            self.learning.ended = "plateau"
            return True
        for group in self._optimizer.param_groups:
            group["lr"] *= _FACTOR
        self._drops, self._waited = self._drops + 1, 0
        return False
