"""The server's half of a step: the top, its loss and its optimizer, and the doors of an attack.

Shape legend: N batch; D dimensions at the cut (h_ND); K classes (logits_NK).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from suture.models.freezing import train_mode, trained
from suture.runtime.data.source import Task
from suture.runtime.hooks import Attack, SmashedBatch
from suture.runtime.randomness import PUBLIC, BatchAddress, Randomness
from suture.runtime.records.step_timer import SERVER, NoStepTimer, StepTimer
from suture.runtime.state.averaging import Mean
from suture.runtime.state.handoff import part_digest
from suture.runtime.training.learning_rates import LearningRates
from suture.runtime.training.objectives import build_criterion
from suture.runtime.training.optim import step_with
from suture.runtime.wire.checks import TensorSpec
from suture.runtime.wire.compression import Packer
from suture.runtime.wire.messages import LossReply

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForwardPass:
    """A forward that waits for its backward: smashed data as a leaf, and what was computed from it.

    Attributes:
        smashed: h_ND.
        root: the loss, or the top's output.
        joined: the clients' own batches, detached, where several make this one and labels stay at home.
    """

    smashed: Tensor
    root: Tensor
    joined: tuple[SmashedBatch, ...] = ()


class ServerModel:
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
        rates: how the optimizer's learning rate changes from round to round.
        task: whose loss is computed, where it is computed here.
        label_smoothing: of that loss.
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
        rates: LearningRates | None = None,
        task: str = Task.CLASSIFICATION,
        label_smoothing: float = 0.0,
    ) -> None:
        self.top = top
        self.optimizer = optimizer
        self.smashed = smashed
        self.labels = labels
        self.attack = Attack() if attack is None else attack
        self._randomness = Randomness(PUBLIC, seed)
        self.packer = Packer(wire, self._randomness)
        self.step_timer: StepTimer = NoStepTimer()
        self._rates = LearningRates() if rates is None else rates
        self._task, self._label_smoothing = task, label_smoothing
        self._criterion: tuple[Tensor | None, nn.Module] | None = None
        self._device = torch.device(device)
        self._copies: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {}

    def begin_turn(self, round: int) -> None:
        """From now on the optimizer has the round's learning rates. Call before `fork`."""
        self._rates.apply(self.optimizer, round)

    def _half(self, client: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The top that a client's batches go through, and its optimizer."""
        return self._copies.get(client, (self.top, self.optimizer))

    def fork(self, clients: Iterable[str]) -> None:
        """From now on each of ``clients`` trains a top of its own, which starts as a copy of this one."""
        self._copies = {client: copy.deepcopy((self.top, self.optimizer)) for client in clients}

    @property
    def is_forked(self) -> bool:
        """Whether clients train tops of their own."""
        return bool(self._copies)

    def merge(self, weights: Mapping[str, int]) -> None:
        """Makes the mean of the forked tops, and of their optimizers' states, the one top again.

        Args:
            weights: what each client's copy counts for; copies of others are dropped.
        """
        mean = Mean()
        for client, weight in weights.items():
            top, optimizer = self._copies[client]
            mean.add({"top": top.state_dict(), "optimizer": optimizer.state_dict()}, weight)
        state = mean.value()
        self.top.load_state_dict(state["top"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._copies = {}

    def forward(self, batch: SmashedBatch, class_weights: Tensor | None = None) -> LossReply | Tensor:
        """One training batch through the top, keeping the graph for the backward that the client starts.

        Args:
            batch: checked smashed data with its graph, on the CPU.
            class_weights: weights_K of the loss, None for equal ones.

        Returns:
            Labels shared: the loss; labels at home: the top's output, on the CPU.
        """
        with self.step_timer.part(SERVER):
            return self._forward(batch, class_weights)

    def _forward(self, batch: SmashedBatch, class_weights: Tensor | None) -> LossReply | Tensor:
        # The alias gives the server a node of its own in the graph, where its hook cannot touch the client's.
        smashed = batch.smashed.view_as(batch.smashed)
        seen = self._seen(batch, smashed)
        self.attack.observe(self._seen(batch, smashed.detach()))
        output = self._through_top(seen)
        if batch.labels is None:
            self._attack_gradient(smashed, batch)
            self._open_received(output, batch)
            return output.cpu()
        task_loss = self._task_loss(output, batch.labels, class_weights)
        loss = self.attack.loss(seen, task_loss)
        return LossReply(loss.cpu(), float(task_loss.detach()))

    def _through_top(self, seen: SmashedBatch) -> Tensor:
        top, _ = self._half(seen.client)
        train_mode(top)
        self._randomness.reseed("top", *BatchAddress(seen.round, seen.client, seen.batch))
        output: Tensor = top(seen.smashed)
        return output

    def forward_apart(
        self, batch: SmashedBatch, class_weights: Tensor | None = None
    ) -> tuple[LossReply | Tensor, ForwardPass]:
        """`forward` on a graph that ends at this server.

        Returns:
            As `forward`, detached; and what `backward`, its other half, takes.
        """
        smashed = batch.smashed.detach().requires_grad_()
        answer = self.forward(replace(batch, smashed=smashed), class_weights)
        if isinstance(answer, LossReply):
            return replace(answer, loss=answer.loss.detach()), ForwardPass(smashed, answer.loss)
        return answer.detach(), ForwardPass(smashed, answer)

    def backward(
        self, forward_pass: ForwardPass, of_answer: Tensor | None, client: str = ""
    ) -> tuple[Tensor, dict[Tensor, Tensor]]:
        """The backward of a `forward_apart`.

        Args:
            forward_pass: what that returned.
            of_answer: gradient of its output; None where the loss is this server's.
            client: whose batch it was.

        Returns:
            The gradient at the cut (h_ND, on the CPU) and the gradients of the top's parameters.
        """
        ours: list[Tensor] = [*trained(self._half(client)[0])]
        # autograd.grad leaves the parameters of an attack's own nets alone, as a distributed context does.
        leaves = [forward_pass.smashed, *ours]
        with self.step_timer.part(SERVER):
            at_cut, *found = torch.autograd.grad(forward_pass.root, leaves, of_answer, allow_unused=True)
        gradients = {p: grad for p, grad in zip(ours, found, strict=True) if grad is not None}
        return at_cut, gradients

    def forward_joined(
        self, batches: Sequence[SmashedBatch], class_weights: Sequence[Tensor | None]
    ) -> tuple[list[LossReply | Tensor], ForwardPass]:
        """Several clients' batches through the top as one batch; `backward_joined` is its other half.

        The joint loss is the mean of the clients' own, weighted by their images. An attack observes each client's
        batch and sees the joint one at its other doors.

        Returns:
            For each batch what `forward_apart` would answer with, its own loss or its rows of the output; and what
            `backward_joined` takes.
        """
        for batch in batches:
            self.attack.observe(self._seen(batch, batch.smashed.detach()))
        first, sizes = batches[0], [len(batch.smashed) for batch in batches]
        smashed = torch.cat([batch.smashed.detach() for batch in batches]).requires_grad_()
        labels = [batch.labels for batch in batches if batch.labels is not None]
        names = tuple(name for batch in batches for name in batch.clients)
        joint = SmashedBatch(smashed, torch.cat(labels) if labels else None, names, first.round, first.batch)
        alias = smashed.view_as(smashed)
        seen = self._seen(joint, alias)
        with self.step_timer.part(SERVER):
            output = self._through_top(seen)
        rows = output.split(sizes)
        if not labels:
            self._attack_gradient(alias, joint)
            parts = tuple(self._seen(batch, batch.smashed.detach()) for batch in batches)
            return [row.detach().cpu() for row in rows], ForwardPass(smashed, output.cpu(), parts)
        losses = [self._task_loss(*each) for each in zip(rows, labels, class_weights, strict=True)]
        whole = torch.stack(
            [loss * (size / sum(sizes)) for loss, size in zip(losses, sizes, strict=True)]
        ).sum()
        answers: list[LossReply | Tensor] = [
            LossReply(loss.detach().cpu(), float(loss.detach())) for loss in losses
        ]
        return answers, ForwardPass(smashed, self.attack.loss(seen, whole))

    def backward_joined(
        self, forward_pass: ForwardPass, sizes: Sequence[int], of_answers: Sequence[Tensor] | None
    ) -> tuple[list[Tensor], dict[Tensor, Tensor]]:
        """The backward of a `forward_joined`.

        Args:
            forward_pass: what that returned.
            sizes: images of each batch.
            of_answers: gradient of each one's rows of the output; None where the losses are this server's.

        Returns:
            For each batch the gradient of its client's own mean loss at the cut, so that a mean over the clients is
            the joint loss's; and the gradients of the top's parameters.
        """
        total = sum(sizes)
        for batch, grad in zip(forward_pass.joined, of_answers or (), strict=True):
            self._received(batch, grad.to(self._device))
        joint = (
            None
            if of_answers is None
            else torch.cat([grad * (size / total) for grad, size in zip(of_answers, sizes, strict=True)])
        )
        at_cut, gradients = self.backward(forward_pass, joint)
        parts = at_cut.split(list(sizes))
        return [part * (total / size) for part, size in zip(parts, sizes, strict=True)], gradients

    def _seen(self, batch: SmashedBatch, smashed: Tensor) -> SmashedBatch:
        return replace(batch, smashed=smashed.to(self._device))

    def _task_loss(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
        if self._criterion is None or self._criterion[0] is not class_weights:  # of another client's
            weights = None if class_weights is None else class_weights.to(logits)
            self._criterion = class_weights, build_criterion(self._task, weights, self._label_smoothing)
        loss: Tensor = self._criterion[1](logits, labels.to(logits.device))
        return loss

    def _attack_gradient(self, smashed: Tensor, batch: SmashedBatch) -> None:
        """Opens the attack's door in the backward through ``smashed``, an alias of the batch's."""
        # The hook must not hold ``smashed``: that circle leads through torch's graph, where Python's collector does not
        # see it, and every batch would be kept for good.
        seen = self._seen(batch, smashed.detach())
        smashed.register_hook(lambda grad: self._attacked(seen, grad))

    def _open_received(self, output: Tensor, batch: SmashedBatch) -> None:
        """Opens the attack's door to what comes back for ``output``, whichever exchange carries it."""
        seen = self._seen(batch, batch.smashed.detach())
        output.register_hook(lambda grad: self._received(seen, grad))

    def _received(self, seen: SmashedBatch, grad: Tensor) -> None:
        with torch.enable_grad():
            self.attack.received(seen, grad.detach())

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
        address = BatchAddress.evaluation(batch.round, batch.client, batch.batch)
        self._randomness.reseed("top", *address)
        output: Tensor = self.top(seen.smashed)
        return output.cpu()

    def step(self, gradients: Mapping[Tensor, Tensor], client: str = "") -> None:
        """Steps the optimizer of the client's top with the gradients of one backward, then the attack's own."""
        with self.step_timer.part(SERVER):
            step_with(self._half(client)[1], gradients)
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
        self._copies = {}
        self.top.load_state_dict(state["top"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.attack.load_state_dict(copy.deepcopy(state["attack"]))

    def digest(self) -> str:
        """SHA-256 (hex) of the top's state."""
        return part_digest(self.top.state_dict())


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_cpu(item) for item in value)
    return value
