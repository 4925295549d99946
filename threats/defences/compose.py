"""Several defences as one, in the order in which they are written.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from suture.runtime.hooks import Defence


class ComposedDefence(Defence):
    """``first+second+third``: transforms are chained from left to right, penalties are added.

    So the first defence sees what the bottom computed and the last decides what crosses the wire:
    ``noise+quantise`` rounds noisy values, ``quantise+noise`` sends rounded values with noise on them. Every
    penalty is given the bottom's own smashed data, as door 1 gives it to a single defence.

    Args:
        defences: by name, in order.
    """

    def __init__(self, defences: Mapping[str, Defence]) -> None:
        self.defences = dict(defences)

    # A class-level constant in the base; here it follows from the parts.
    @property
    def acts_in_evaluation(self) -> bool:  # type: ignore[override]
        """Whether any part does; a part that does not must have no transform of its own."""
        return any(defence.acts_in_evaluation for defence in self.defences.values())

    def transform(self, smashed: Tensor) -> Tensor:
        """The parts' transforms, one after the other."""
        for defence in self.defences.values():
            smashed = defence.transform(smashed)
        return smashed

    def penalty(self, inputs: Tensor, smashed: Tensor) -> Tensor | float:
        """The sum of the parts' penalties."""
        total: Tensor | float = 0.0
        for defence in self.defences.values():
            penalty = defence.penalty(inputs, smashed)
            # A plain 0 is "none" (see `Defence`): adding it would put a node into the graph.
            if not isinstance(penalty, float) or penalty != 0.0:
                total = penalty if isinstance(total, float) and total == 0.0 else total + penalty
        return total

    def step(self) -> None:
        """Steps every part."""
        for defence in self.defences.values():
            defence.step()

    def state_dict(self) -> dict[str, Any]:
        """The parts' states by name."""
        return {name: defence.state_dict() for name, defence in self.defences.items()}

    def state_like(self) -> dict[str, Any]:
        """What they look like."""
        return {name: defence.state_like() for name, defence in self.defences.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores every part."""
        for name, defence in self.defences.items():
            defence.load_state_dict(state[name])
