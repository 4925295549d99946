"""Narrow doors through which threats and protections touch training; identity by default.

The type of a door is its threat model: an `Attack` is handed what crossed the wire and nothing else, a
`Defence` and a `Detector` only what a real client holds. The base classes are null objects: the honest
server is ``Attack()``, the unprotected client ``Defence()`` and ``Detector()``.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SmashedBatch:
    """One batch as the server received it, after the wire's checks: all that an attack may see.

    Attributes:
        smashed: h_ND, float32, on the server's device. In ``loss`` it has its graph, else it is detached.
        labels: y_N int64 where labels are shared, else None.
        clients: whose images they are: one member's name, or those whose batches were joined to one.
        round: from 1.
        batch: from 0 within the turn.
        phase: "train", "validation" or "test"; "query" where a lab lets the attacker pass images of its own
            through a client's bottom.
    """

    smashed: Tensor
    labels: Tensor | None
    clients: tuple[str, ...]
    round: int
    batch: int
    phase: str = "train"

    @property
    def client(self) -> str:
        """``clients`` as one text, for a file's name or a draw's place."""
        return "+".join(self.clients)


class Attack:
    """What a server does beyond the protocol; this base is the honest server.

    All doors are called on the server, by one thread at a time. A subclass owns its nets and their
    optimizers; it must not read ``.grad`` of tensors it did not step itself.
    """

    threat_model: ClassVar[str] = "honest"
    knows: ClassVar[frozenset[str]] = frozenset()

    def prepare(self) -> None:
        """Once, before a new run's first turn: what needs no client, such as pre-training."""

    def observe(self, batch: SmashedBatch) -> None:
        """Passive tap: sees every batch, detached, of every phase."""

    def loss(self, batch: SmashedBatch, task_loss: Tensor) -> Tensor:
        """Active, labels shared: the scalar the client will differentiate instead of the task's loss."""
        return task_loss

    def gradient(self, batch: SmashedBatch, grad: Tensor) -> Tensor:
        """Active, labels at home: the gradient (shape of ``batch.smashed``) sent back instead of ``grad``."""
        return grad

    def received(self, batch: SmashedBatch, gradient: Tensor) -> None:
        """Passive tap, labels at home: what the client sends back during a training step.

        Args:
            batch: whose step it is, one client's, detached; also where clients' batches are joined to one.
            gradient: of the client's own mean loss by the top's output, shaped as that (N first), as the wire brought
                it; to be read only.
        """

    def step(self) -> None:
        """Steps the attack's own optimizers; called after the client's backward, never during it."""

    def finish(self) -> None:
        """Once, after the last turn, when every client has left: what is learnt only from the whole run."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint must keep, plain types and tensors only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned: on resume, and when a turn is rolled back."""

    def __repr__(self) -> str:
        known = ", ".join(sorted(self.knows)) or "nothing beyond the wire"
        return f"{type(self).__name__}(threat_model={self.threat_model!r}, knows: {known})"


class Defence:
    """What a client does to what it sends; this base does nothing."""

    acts_in_evaluation: ClassVar[bool] = False

    def transform(self, smashed: Tensor) -> Tensor:
        """The tensor that crosses the wire in place of ``smashed`` (h_ND, same shape), differentiable."""
        return smashed

    def penalty(self, inputs: Tensor, smashed: Tensor) -> Tensor | float:
        """A scalar added to the loss at the client; ``inputs`` x_NCHW normalised, ``smashed`` before door 1."""
        return 0.0

    def step(self) -> None:
        """Steps the defence's own nets, if it has any; called after the client's optimizer stepped."""

    def state_dict(self) -> dict[str, Any]:
        """State that travels in the sealed hand-off to the next client, plain types and tensors only."""
        return {}

    def state_like(self) -> dict[str, Any]:
        """What another client's ``state_dict`` must look like to be taken up: names, shapes and types; see
        `checks.check_state`. A state that grows while it trains says here what it grows to."""
        return self.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""


class Detector:
    """Watches, on the client, the gradient that comes home; this base sees nothing suspicious."""

    def observe(self, smashed: Tensor, grad: Tensor, labels: Tensor) -> None:
        """Called during backward with what was sent (h_ND), its gradient (same shape) and the targets."""

    def score(self) -> float:
        """How suspicious the server looks so far; higher is worse."""
        return 0.0

    def alarm(self) -> str:
        """Why the client should not go on, in one line; empty where there is no alarm. Once raised it stays."""
        return ""

    def fake_labels(self, labels: Tensor, num_before: int, generator: torch.Generator) -> Tensor | None:
        """Wrong labels to send in place of ``labels`` (y_N) now; None, as nearly always, for an honest batch.

        Asked before each training batch, where labels are shared. To the server a fake batch is a batch like
        any other: it answers and steps. The client watches the gradient and does not learn from it.

        Args:
            num_before: this client's training batches before this one, a function of the place in the run.
            generator: derived from the clients' key and the place, so that a repeated or resumed run sends the
                same and the server cannot foresee it.
        """
        return None


def watches(detector: Detector) -> bool:
    """Whether a client has a detector: the base class watches nothing."""
    return type(detector) is not Detector
