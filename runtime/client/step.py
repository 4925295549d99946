"""A client's half of one training step: down from the images to the cut, and back from there to the weights.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from suture.models.freezing import trained
from suture.runtime.client.model import ClientModel
from suture.runtime.data.client_data import Batch
from suture.runtime.errors import DivergedError
from suture.runtime.hooks import watches
from suture.runtime.randomness import BatchAddress
from suture.runtime.records.step_timer import WAITING
from suture.runtime.scheduler import Turn
from suture.runtime.training.optim import pulled, step_with
from suture.runtime.wire.checks import TensorSpec, check_gradient, check_loss, check_step_reply
from suture.runtime.wire.compression import Payload
from suture.runtime.wire.messages import OutputGradient, StepReply, Upload

TopCall = Callable[[Tensor, Tensor | None], Any]  # (smashed, labels or None) -> LossReply or the top's output


@dataclass(frozen=True)
class _Cut:
    """A batch at the cut; ``sent`` is ``smashed`` as the defence let it through."""

    inputs: Tensor
    smashed: Tensor
    skips: tuple[Tensor, ...]
    sent: Tensor


class ClientStep:
    """One training step of a client: what it sends, and what it makes of the answers.

    Args:
        client: whose.
        turn: in which.
        batch: on what.
        stashed: go down with a copy of the bottom's weights as they are now, so that the optimizer may step before
            the batch is back; its gradient is then applied to newer weights than it was computed with.
    """

    def __init__(self, client: ClientModel, turn: Turn, batch: Batch, stashed: bool = False) -> None:
        self.client, self.turn, self.batch = client, turn, batch
        self.place = BatchAddress(turn.round, client.name, batch.number)
        fake = self._fake_labels()
        self.learns = fake is None
        self.targets = batch.targets if fake is None else fake
        self._stash: dict[str, Tensor] | None = None
        if stashed:
            own = client.bottom.named_parameters()
            self._stash = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in own}
        self._cut: _Cut  # from `down` on
        self._sent: Payload  # from `upload` on
        self._roots: list[tuple[Tensor, Tensor | None]] = []
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
        cut = self._pass_bottom()
        sent = self._watched(cut.sent)
        with client.step_timer.part(WAITING):
            reply = top(sent.cpu(), self.labels)
        if client.config.labels_shared:
            answer = check_loss(reply, "server")
            loss, shown = answer.loss, answer.task_loss
        else:
            output = client.output.check(reply, "server", "output")
            loss = self._loss_at_home(output, cut.skips)
            shown = float(loss.detach())
        self.check_loss(loss)
        if not self.learns:
            return loss, shown
        penalty = client.defence.penalty(cut.inputs, cut.smashed)
        # Adding a zero would put a node into the graph of every undefended run.
        total = loss if isinstance(penalty, float) and penalty == 0.0 else loss + penalty
        return total, shown

    def _watched(self, sent: Tensor) -> Tensor:
        if not watches(self.client.detector):
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

    def upload(self) -> Upload:
        """`down`, as the message that goes up."""
        self._sent = self.client.packer.pack(self.down(), "smashed", *self.place)
        return Upload(self.turn.number, self.batch.number, "train", self._sent, self.labels)

    def down(self) -> Tensor:
        """Through the bottom and the defence; what crosses the wire, on the CPU, without a graph."""
        self._cut = self._pass_bottom()
        return self._cut.sent.detach().cpu()

    def penalise(self) -> None:
        """The gradient of the defence's penalty, which needs no answer of the server's."""
        if not self.learns:
            return
        cut = self._cut
        leaf = cut.smashed.detach().requires_grad_()
        penalty = self.client.defence.penalty(cut.inputs, leaf)
        if isinstance(penalty, Tensor) and penalty.requires_grad:
            self._roots += [(cut.smashed, torch.autograd.grad(penalty, leaf, allow_unused=True)[0])]

    def learn_shared(self, answer: StepReply) -> float:
        """Labels shared: takes the server's answer, and both have stepped.

        Returns:
            The task loss.

        Raises:
            WireError: the answer does not fit.
            DivergedError: as `whole`.
        """
        reply = check_step_reply(answer, "server")
        self.check_loss(reply.loss)
        self.learn_from(reply.gradient)
        return reply.task_loss

    def learn_from(self, payload: Any) -> None:
        """Takes the gradient at the cut as it came, and steps.

        Raises:
            WireError: it is none of what was sent.
        """
        sent = self._cut.sent
        gradient = self.client.packer.unpack(
            payload, TensorSpec.like(sent), "server", "gradient", of=self._sent
        )
        self.back(check_gradient(gradient, sent, "server"))

    def head(self, answer: Any) -> OutputGradient:
        """Labels at home: the head and the loss, and back to the top's output.

        Args:
            answer: the top's output, as it came.

        Returns:
            The loss and its gradient in the output, as the message that goes up.

        Raises:
            WireError: the output does not fit.
            DivergedError: as `whole`.
        """
        client = self.client
        loss, gradient = self._pass_head(
            client.output.check(client.unpack_output(answer), "server", "output")
        )
        packed = client.packer.pack(gradient, "output gradient", *self.place, of=answer)
        return OutputGradient(self.turn.number, self.batch.number, loss, packed)

    def _pass_head(self, output: Tensor) -> tuple[float, Tensor]:
        client, cut, leaf = self.client, self._cut, output.detach().requires_grad_()
        assert client.head is not None
        skips = tuple(skip.detach().requires_grad_(skip.requires_grad) for skip in cut.skips)
        loss = self._loss_at_home(leaf, skips)
        self.check_loss(loss)
        wanted = [(skip, at) for skip, at in zip(cut.skips, skips, strict=True) if at.requires_grad]
        ours = trained(client.head)
        with client.step_timer.part("head"):
            at_output, *found = torch.autograd.grad(
                loss, [leaf, *(at for _, at in wanted), *ours], allow_unused=True
            )
        self._roots += zip((skip for skip, _ in wanted), found, strict=False)
        self._keep(zip(ours, found[len(wanted) :], strict=True))
        return float(loss.detach()), torch.zeros_like(leaf) if at_output is None else at_output

    def back(self, at_cut: Tensor) -> None:
        """The gradient at the cut (h_ND) has come home: on through defence and bottom, and both step."""
        client, cut = self.client, self._cut
        at_cut = at_cut.to(client.device)
        if self.learns:
            self._pass_bottom_back([(cut.sent, at_cut), *self._roots])
        if watches(client.detector):
            with torch.no_grad():
                client.detector.observe(cut.sent.detach(), at_cut, self.targets)
        self.learn(self._gradients)

    def _pass_bottom_back(self, roots: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        client, weights = self.client, dict(self.client.bottom.named_parameters())
        graph = [(root, grad) for root, grad in roots if grad is not None and root.requires_grad]
        taken = weights if self._stash is None else self._stash
        taken = {name: weight for name, weight in taken.items() if weight.requires_grad}
        if not taken:  # all of it is frozen
            return
        # autograd.grad leaves the parameters of a defence's own nets alone, as a distributed context does.
        with client.step_timer.part("backward"):
            found = torch.autograd.grad(
                [root for root, _ in graph],
                list(taken.values()),
                [grad for _, grad in graph],
                allow_unused=True,
            )
        self._keep(zip((weights[name] for name in taken), found, strict=True))

    # Both -----------------------------------------------------------------------------------------

    def learn(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Optimizer and defence step with the gradients of one backward.

        Those of a detector's fake batch are thrown away; the client's batch norms have seen true images.
        """
        client = self.client
        if self.learns:
            with client.step_timer.part("optimizer"):
                if client.config.prox:
                    gradients = pulled(gradients, client.turn_start, client.config.prox)
                step_with(client.optimizer, gradients)
                client.defence.step()

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

    def _pass_bottom(self) -> _Cut:
        client = self.client
        inputs = self.batch.inputs.to(client.device)
        client.randomness.reseed("bottom", *self.place)
        with client.step_timer.part("bottom"):
            if self._stash is None:
                smashed, skips = client.bottom(inputs)
            else:
                smashed, skips = functional_call(client.bottom, self._stash, (inputs,))
            # Of a bottom that is wholly frozen, too: every step asks for the gradient at the cut.
            if not smashed.requires_grad:
                smashed = smashed.detach().requires_grad_()
            return _Cut(inputs, smashed, tuple(skips), client.defence.transform(smashed))

    def _loss_at_home(self, output: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
        client = self.client
        assert client.head is not None
        client.randomness.reseed("head", *self.place)
        with client.step_timer.part("head"):
            logits = client.head(output.to(client.device), skips)
            loss: Tensor = client.criterion(logits, self.targets.to(client.device))
        return loss

    def _fake_labels(self) -> Tensor | None:
        """Wrong labels that the detector sends in place of the batch's own, None for an honest batch."""
        client, batch = self.client, self.batch
        if not watches(client.detector) or not client.config.labels_shared:
            return None
        num_batches = client.data.num_train_batches(client.config.batch_size)
        num_before = (self.turn.round - 1) * num_batches + batch.number
        generator = client.randomness.generator("fake batch", *self.place)
        return client.detector.fake_labels(batch.targets, num_before, generator)

    def _keep(self, found: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        for parameter, grad in found:
            if grad is not None:
                before = self._gradients.get(parameter)
                self._gradients[parameter] = grad if before is None else before + grad
