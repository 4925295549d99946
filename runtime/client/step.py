"""A client's half of one training step: down from the images to the cut, and back from there to the weights.

A batch goes through whole, or in parts that follow each other over the wire (``--microbatches``). What looks at a
whole batch does so in either case: the loss where labels are at home, a defence's penalty, a detector.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from suture.runtime.client.model import ClientModel
from suture.runtime.data.client_data import Batch
from suture.runtime.errors import DivergedError
from suture.runtime.records.step_timer import WAITING
from suture.runtime.scheduler import Turn
from suture.runtime.training.randomness import BatchAddress, part_place
from suture.runtime.wire.checks import check_loss

TopCall = Callable[[Tensor, Tensor | None], Any]  # (smashed, labels or None) -> LossReply or the top's output


@dataclass(frozen=True)
class _Part:
    """Images on their way to the server and back; ``sent`` is ``smashed`` as the defence let it through."""

    inputs: Tensor
    smashed: Tensor
    skips: tuple[Tensor, ...]
    sent: Tensor


class ClientStep:
    """One training step of a client.

    Args:
        client: whose.
        turn: in which.
        batch: on what.
        num_parts: into how many parts the batch is cut.
        stashed: go down with a copy of the bottom's weights as they are now, so that the optimizer may step before
            the batch is back; its gradient is then applied to newer weights than it was computed with.
    """

    def __init__(
        self, client: ClientModel, turn: Turn, batch: Batch, num_parts: int = 1, stashed: bool = False
    ) -> None:
        self.client, self.batch, self.num_parts = client, batch, num_parts
        self.place = BatchAddress(turn.round, client.name, batch.number)
        fake = client.fake_labels(turn, batch)
        self.learns = fake is None
        self.targets = batch.targets if fake is None else fake
        self._inputs = batch.inputs.tensor_split(num_parts)
        self._stash: dict[str, Tensor] | None = None
        if stashed:
            own = client.bottom.named_parameters()
            self._stash = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in own}
        self._parts: list[_Part] = []
        self._at_skips: list[tuple[Tensor | None, ...]] = []
        self._at_smashed: list[Tensor | None] = []
        self._came_home: list[Tensor] = []
        self._gradients: dict[Tensor, Tensor] = {}

    # In one graph with the server ----------------------------------------------------------------

    def whole(self, top: TopCall) -> tuple[Tensor, float]:
        """The forward pass of the whole batch, with the top at the other end of ``top``.

        Returns:
            The root of backward (the loss and the defence's penalty) and the task loss as a number.

        Raises:
            DivergedError: the loss is not finite; names client, round and batch.
        """
        client = self.client
        part = self._pass_bottom()
        sent = self._watched(part.sent)
        with client.step_timer.part(WAITING):
            reply = top(sent.cpu(), self.labels)
        if client.config.labels_shared:
            answer = check_loss(reply, "server")
            loss, shown = answer.loss, answer.task_loss
        else:
            output = client.output.check(reply, "server", "output")
            loss = self._loss_at_home(output, part.skips)
            shown = float(loss.detach())
        self.check_loss(loss)
        if not self.learns:
            return loss, shown
        penalty = client.defence.penalty(part.inputs, part.smashed)
        # Adding a zero would put a node into the graph of every undefended run.
        total = loss if isinstance(penalty, float) and penalty == 0.0 else loss + penalty
        return total, shown

    def _watched(self, sent: Tensor) -> Tensor:
        if not self.client.is_watching:
            return sent
        detector, shown, targets = self.client.detector, sent.detach(), self.targets
        # An alias of its own: where the defence changes nothing ``sent`` is ``smashed``, and a hook on that would
        # also see the penalty's gradient, which did not come from the server.
        alias = sent.view_as(sent)
        alias.register_hook(lambda grad: detector.observe(shown, grad, targets))
        return alias

    # In explicit halves --------------------------------------------------------------------------

    @property
    def labels(self) -> Tensor | None:
        """The batch's labels where they go up."""
        return self.targets if self.client.config.labels_shared else None

    def down(self) -> Tensor:
        """The next part through the bottom and the defence; what crosses the wire, on the CPU, without a graph."""
        return self._pass_bottom().sent.detach().cpu()

    def penalise(self) -> None:
        """The gradient of the defence's penalty, which needs no answer of the server's."""
        self._at_smashed = [None] * len(self._parts)
        if not self.learns:
            return
        # A penalty over the whole batch, whatever it computes: it may be no sum over images (dcor is not).
        leaves = [part.smashed.detach().requires_grad_() for part in self._parts]
        inputs = _joined([part.inputs for part in self._parts])
        penalty = self.client.defence.penalty(inputs, _joined(leaves))
        if isinstance(penalty, Tensor) and penalty.requires_grad:
            self._at_smashed = list(torch.autograd.grad(penalty, leaves, allow_unused=True))

    def head(self, outputs: list[Tensor]) -> tuple[float, list[Tensor]]:
        """Labels at home: the head and the loss over the whole batch, and back to the top's output.

        Args:
            outputs: the top's output of each part, on the CPU; checked.

        Returns:
            The loss, and its gradient in each output.

        Raises:
            DivergedError: as `whole`.
        """
        client = self.client
        assert client.head is not None
        leaves = [output.detach().requires_grad_() for output in outputs]
        skips = [
            tuple(skip.detach().requires_grad_(skip.requires_grad) for skip in p.skips) for p in self._parts
        ]
        joined = tuple(_joined(list(each)) for each in zip(*skips, strict=True))
        loss = self._loss_at_home(_joined(leaves), joined)
        self.check_loss(loss)
        wanted = [skip for each in skips for skip in each if skip.requires_grad]
        ours = list(client.head.parameters())
        with client.step_timer.part("head"):
            found = torch.autograd.grad(loss, [*leaves, *wanted, *ours], allow_unused=True)
        at_skips = iter(found[len(leaves) : len(leaves) + len(wanted)])
        self._at_skips = [tuple(next(at_skips) if s.requires_grad else None for s in each) for each in skips]
        self._keep(zip(ours, found[len(leaves) + len(wanted) :], strict=True))
        return float(loss.detach()), [
            torch.zeros_like(leaf) if grad is None else grad
            for leaf, grad in zip(leaves, found, strict=False)
        ]

    def back(self, at_cut: Tensor) -> None:
        """The gradient at the cut (h_ND) of the next part has come home: on through defence and bottom."""
        number, client = len(self._came_home), self.client
        part = self._parts[number]
        at_cut = at_cut.to(client.device)
        self._came_home.append(at_cut)
        if not self.learns:
            return
        roots: list[tuple[Tensor, Tensor | None]] = [(part.sent, at_cut)]
        roots.append((part.smashed, self._at_smashed[number]))
        roots += zip(
            part.skips, self._at_skips[number] if self._at_skips else (), strict=bool(self._at_skips)
        )
        graph = [(root, grad) for root, grad in roots if grad is not None and root.requires_grad]
        weights = dict(client.bottom.named_parameters())
        taken = weights if self._stash is None else self._stash
        # autograd.grad leaves the parameters of a defence's own nets alone, as a distributed context does.
        with client.step_timer.part("backward"):
            found = torch.autograd.grad(
                [root for root, _ in graph],
                list(taken.values()),
                [grad for _, grad in graph],
                allow_unused=True,
            )
        self._keep(zip((weights[name] for name in taken), found, strict=True))

    def finish(self) -> None:
        """All parts are home: the detector looks, optimizer and defence step."""
        client = self.client
        if client.is_watching:
            with torch.no_grad():
                sent = _joined([part.sent.detach() for part in self._parts])
                client.detector.observe(sent, _joined(self._came_home), self.targets)
        self.learn(self._gradients)

    # Both -----------------------------------------------------------------------------------------

    def learn(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Optimizer and defence step with the gradients of one backward.

        Those of a detector's fake batch are thrown away; the client's batch norms have seen true images.
        """
        if self.learns:
            self.client.step(gradients)

    def check_loss(self, loss: Tensor) -> None:
        """Refuses to learn from a loss that is no number.

        Raises:
            DivergedError: names client, round and batch.
        """
        if not torch.isfinite(loss.detach()).all():
            round, name, batch = self.place
            raise DivergedError(
                f"{name}: round {round}, batch {batch}: the loss is {float(loss.detach())}; "
                "start a new run with a lower --lr, or look at this client's images; the last good checkpoint is kept"
            )

    def _pass_bottom(self) -> _Part:
        client, number = self.client, len(self._parts)
        client.train_mode()
        inputs = self._inputs[number].to(client.device)
        client.randomness.reseed("bottom", *part_place(self.place, number))
        with client.step_timer.part("bottom"):
            if self._stash is None:
                smashed, skips = client.bottom(inputs)
            else:
                smashed, skips = functional_call(client.bottom, self._stash, (inputs,))
            part = _Part(inputs, smashed, tuple(skips), client.defence.transform(smashed))
        self._parts.append(part)
        return part

    def _loss_at_home(self, output: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
        client = self.client
        assert client.head is not None
        client.randomness.reseed("head", *self.place)
        with client.step_timer.part("head"):
            logits = client.head(output.to(client.device), skips)
            loss: Tensor = client.criterion(logits, self.targets.to(client.device))
        return loss

    def _keep(self, found: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        for parameter, grad in found:
            if grad is not None:
                before = self._gradients.get(parameter)
                self._gradients[parameter] = grad if before is None else before + grad


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts of a batch as one; a copy of the one that there is would be for nothing."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
