"""The server's half of a step: the top, its loss and its optimizer, and the doors of an attack.

Shape legend: N batch; D dimensions at the cut (h_ND); K classes (logits_NK).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runtime.compression import Packer
from runtime.handoff import part_digest
from runtime.hooks import Attack, SmashedBatch
from runtime.optim import step_with
from runtime.randomness import EVALUATION_BATCH, PUBLIC, Randomness, part_place
from runtime.stopwatch import SERVER, NoStopwatch, Stopwatch
from runtime.wire import LossReply, TensorSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pending:
    """A forward that waits for its backward: smashed data as a leaf, and what was computed from it."""

    smashed: Tensor
    root: Tensor


class Server:
    """Computes; who may ask for it is the coordinator's business, under whose lock every method runs.

    Args:
        top: the server's part.
        optimizer: over the top's parameters.
        smashed: what smashed data must look like.
        labels: what labels must look like where they are shared (loss at the server), None where the loss is
            at the client.
        attack: what this server does beyond the protocol; the base class is the honest server.
        seed: the run's public seed.
        device: where the top computes; tensors cross the wire on the CPU.
        wire: the format in which they cross, see ``compression``.
        microbatches: parts that a batch may come in, see ``parts``.
    """

    def __init__(
        self,
        top: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        smashed: TensorSpec,
        labels: TensorSpec | None,
        attack: Attack | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        wire: str = "fp32",
        microbatches: int = 1,
    ) -> None:
        self.top = top
        self.optimizer = optimizer
        self.smashed = smashed
        self.labels = labels
        self.attack = Attack() if attack is None else attack
        self._randomness = Randomness(PUBLIC, seed)
        self.packer = Packer(wire, self._randomness)
        self.stopwatch: Stopwatch = NoStopwatch()
        self._device = torch.device(device)
        self.microbatches = microbatches

    def forward(
        self, batch: SmashedBatch, class_weights: Tensor | None = None, whole: Tensor | None = None
    ) -> LossReply | Tensor:
        """One training batch through the top, keeping the graph for the backward that the client starts.

        Args:
            batch: checked smashed data with its graph, on the CPU.
            class_weights: weights_K of the loss, None for equal ones.
            whole: where ``batch`` is a part of several, y_N of the whole batch: the parts' losses add up to the whole
                batch's mean, by class weights where there are any.

        Returns:
            Labels shared: the loss; labels at home: the top's output, on the CPU.
        """
        with self.stopwatch.part(SERVER):
            return self._forward(batch, class_weights, whole)

    def _forward(
        self, batch: SmashedBatch, class_weights: Tensor | None, whole: Tensor | None
    ) -> LossReply | Tensor:
        # The alias gives the server a node of its own in the graph, where its hook cannot touch the client's.
        smashed = batch.smashed.view_as(batch.smashed)
        seen = self._seen(batch, smashed)
        self.attack.observe(self._seen(batch, smashed.detach()))
        self.top.train()
        place = part_place((batch.round, batch.client, batch.batch), batch.part)
        self._randomness.reseed("top", *place)
        output: Tensor = self.top(seen.smashed)
        if batch.labels is None:
            smashed.register_hook(lambda grad: self._attacked(seen, grad))
            return output.cpu()
        weights = None if class_weights is None else class_weights.to(output)
        if whole is None:
            task_loss = cross_entropy(output, batch.labels.to(output.device), weight=weights)
            loss = self.attack.loss(seen, task_loss)
            return LossReply(loss.cpu(), float(task_loss.detach()))
        ours, theirs = _weight(batch.labels, class_weights), _weight(whole, class_weights)
        summed = cross_entropy(output, batch.labels.to(output.device), weight=weights, reduction="sum")
        # A part may hold nothing but images of classes that do not count.
        task_loss, share = summed / float(ours if ours > 0 else 1), float(ours / theirs)
        loss = self.attack.loss(seen, task_loss) * share
        return LossReply(loss.cpu(), float(task_loss.detach()) * share)

    def forward_apart(
        self, batch: SmashedBatch, class_weights: Tensor | None = None, whole: Tensor | None = None
    ) -> tuple[LossReply | Tensor, Pending]:
        """`forward` on a graph that ends at this server.

        Returns:
            As `forward`, detached; and what `backward`, its other half, takes.
        """
        smashed = batch.smashed.detach().requires_grad_()
        answer = self.forward(replace(batch, smashed=smashed), class_weights, whole)
        if isinstance(answer, LossReply):
            return replace(answer, loss=answer.loss.detach()), Pending(smashed, answer.loss)
        return answer.detach(), Pending(smashed, answer)

    def backward(self, pending: Pending, of_answer: Tensor | None) -> tuple[Tensor, dict[Tensor, Tensor]]:
        """The backward of a `forward_apart`.

        Args:
            pending: what that returned.
            of_answer: gradient of its output; None where the loss is this server's.

        Returns:
            The gradient at the cut (h_ND, on the CPU) and the gradients of the top's parameters.
        """
        ours: list[Tensor] = list(self.top.parameters())
        # autograd.grad leaves the parameters of an attack's own nets alone, as a distributed context does.
        leaves = [pending.smashed, *ours]
        with self.stopwatch.part(SERVER):
            at_cut, *found = torch.autograd.grad(pending.root, leaves, of_answer, allow_unused=True)
        gradients = {p: grad for p, grad in zip(ours, found, strict=True) if grad is not None}
        return at_cut, gradients

    def _seen(self, batch: SmashedBatch, smashed: Tensor) -> SmashedBatch:
        return replace(batch, smashed=smashed.to(self._device))

    def _attacked(self, seen: SmashedBatch, grad: Tensor) -> Tensor:
        # Autograd runs hooks with gradients disabled; an attack differentiates its own nets here.
        with torch.enable_grad():
            return self.attack.gradient(seen, grad.to(self._device)).to(grad.device)

    @torch.no_grad()
    def predict(self, batch: SmashedBatch) -> Tensor:
        """The top's output in evaluation mode, on the CPU; no graph, no autograd context, nothing updated."""
        seen = self._seen(batch, batch.smashed.detach())
        self.attack.observe(seen)
        self.top.eval()
        self._randomness.reseed("top", batch.round, batch.client, EVALUATION_BATCH - batch.batch)
        output: Tensor = self.top(seen.smashed)
        return output.cpu()

    def step(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the top's optimizer with the gradients of one backward, then the attack's own."""
        with self.stopwatch.part(SERVER):
            step_with(self.optimizer, gradients)
            self.attack.step()

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that training changes here, on the CPU: what a checkpoint and a rollback need."""
        state = {
            "top": self.top.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "attack": self.attack.state_dict(),
        }
        return {name: _to_cpu(copy.deepcopy(part)) for name, part in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to ``state``."""
        self.top.load_state_dict(state["top"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.attack.load_state_dict(copy.deepcopy(state["attack"]))

    def digest(self) -> str:
        """SHA-256 (hex) of the top's state."""
        return part_digest(self.top.state_dict())


def _weight(labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """What these images count together."""
    return torch.tensor(float(len(labels))) if class_weights is None else class_weights[labels].sum()


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_cpu(item) for item in value)
    return value
