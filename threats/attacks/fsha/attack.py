"""FSHA, feature-space hijacking: an active server trains the client's net into a feature space of its own.

Pasquini, Ateniese, Bernaschi: Unleashing the Tiger: Inference Attacks on Split Learning, CCS 2021,
arXiv:2012.02670. The server ignores the task. It trains a pilot and a decoder on public images, and a critic
that tells the client's smashed data from the pilot's features; the client is sent the critic's gradient
instead of the task's, until its smashed data live in the pilot's feature space, which the decoder reads.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suture.runtime.errors import ConfigError
from suture.runtime.hooks import SmashedBatch
from suture.threats.attacks.auxiliary import Auxiliary
from suture.threats.attacks.fsha.config import FshaConfig
from suture.threats.attacks.fsha.nets import SIZES, Critic, Decoder, Pilot, PropertyReader
from suture.threats.attacks.learning import Learning
from suture.threats.attacks.live import NotFiniteError, ReconstructionAttack
from suture.threats.attacks.server_view import ServerView


class FshaAttack(ReconstructionAttack):
    """Trains pilot, decoder and critic at the server, and answers the client with the critic's gradient.

    Args:
        config: its parameters.
        server_view: where it stands.
        auxiliary: public images of the same domain.
    """

    threat_model: ClassVar[str] = "active server: answers with gradients of its own"
    knows: ClassVar[frozenset[str]] = frozenset({"auxiliary images", "shape of the smashed data"})

    def __init__(self, config: FshaConfig, server_view: ServerView, auxiliary: Auxiliary) -> None:
        super().__init__(server_view, auxiliary)
        self.config = config
        if config.target == "label" and auxiliary.labels is None:
            raise ConfigError("fsha: target=label needs labelled auxiliary images; masks have none")
        sizes = SIZES[config.nets].scaled(config.width)
        self.nets: dict[str, nn.Module] = self.build_nets(lambda: self._build(sizes))
        for net in self.nets.values():
            net.to(server_view.device)
        self.pilot, self.critic = self.nets["pilot"], self.nets["critic"]
        # Per channel: features are centred and scaled once after pre-training, so that critic and client work
        # at unit scale, and the decoder undoes it.
        depth = server_view.smashed_shape[0]
        self.shift = torch.zeros(depth, device=server_view.device)
        self.spread = torch.ones(depth, device=server_view.device)
        betas = (0.5, 0.99)
        self._coder = torch.optim.Adam(self._coder_parameters(), lr=config.lr, betas=betas)
        self._critic = torch.optim.Adam(self.critic.parameters(), lr=config.critic_lr, betas=betas)
        self._prepared = False
        # A game of nets has no plateau: the whole curve is the judge's error by round.
        self.learning = Learning("fixed budget", f"{server_view.num_rounds} rounds of the run")

    def _build(self, sizes: Any) -> dict[str, nn.Module]:
        server_view = self.server_view
        images, shape = server_view.image_shape, server_view.smashed_shape
        start = self.auxiliary.unit().mean(0) * 2 - 1
        return {
            "pilot": Pilot(images, shape, sizes.coder, nonnegative=server_view.nonnegative),
            "decoder": self._build_decoder(sizes.coder, start),
            "critic": Critic(shape, sizes.critic, sizes.blocks),
        } | self._build_reader(sizes.coder)

    def _build_decoder(self, channels: int, start: Tensor) -> nn.Module:
        return Decoder(self.server_view.smashed_shape, self.server_view.image_shape, channels, start)

    def _build_reader(self, channels: int) -> dict[str, nn.Module]:
        if self.config.target == "image":
            return {}
        return {
            "reader": PropertyReader(self.server_view.smashed_shape, channels, self.server_view.num_classes)
        }

    def _coder_parameters(self) -> list[nn.Parameter]:
        return [p for name, net in self.nets.items() if name != "critic" for p in net.parameters()]

    # The attack ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Pre-trains pilot and decoder on the attacker's own images; before the clients are let in."""
        if not self._prepared:
            self._guarded(self._pretrain, None)
            self._prepared = True

    def _observe(self, batch: SmashedBatch) -> None:
        if batch.phase in ("train", "test") and self.config.target == "image":
            self.keep_reconstruction(batch)
        elif batch.phase in ("train", "test"):
            self.keep(batch, self.guess(batch.smashed))
        if batch.phase == "test":
            values = self.evidence.setdefault(batch.round, {})
            values[f"{batch.client}/{batch.batch}"] = self.doubt(batch.smashed)

    def _loss(self, batch: SmashedBatch, task_loss: Tensor) -> Tensor:
        gradient = self.hijack(batch.smashed.detach())
        # Linear in the smashed data: its gradient there is ``gradient``, exactly, and no net of the attack is
        # in the graph that the client's backward walks, so they can step now.
        loss = (batch.smashed * gradient).sum()
        return loss + self.config.task * task_loss if self.config.task else loss

    def _gradient(self, batch: SmashedBatch, grad: Tensor) -> Tensor:
        gradient = self.hijack(batch.smashed.detach())
        return gradient + self.config.task * grad if self.config.task else gradient

    def hijack(self, smashed: Tensor) -> Tensor:
        """Steps the attack's nets on one private batch (h_ND, no graph); the client's gradient (h_ND)."""
        self.prepare()
        self.steps += 1
        for _ in range(self.config.critic_steps):
            images, labels = self.auxiliary_batch(len(smashed))
            with torch.no_grad():
                public = self.features(images)
            gradient, losses = self._critic_step(smashed, public)
        losses["autoencoder"] = self._coder_step(images, labels)
        self.record(**losses)
        return gradient * self.config.scale

    def _critic_step(self, smashed: Tensor, public: Tensor) -> tuple[Tensor, dict[str, float]]:
        private = smashed.clone().requires_grad_()
        if self.config.loss == "wgan":
            mix = torch.rand(len(smashed), generator=self.generator).to(smashed)
            mix = mix.reshape(-1, *[1] * (smashed.ndim - 1))
            between = (mix * smashed + (1 - mix) * public).requires_grad_()
            # One pass serves all: the critic's loss on private data is minus the client's.
            scores = self.critic(torch.cat([private, public, between]))
            on_private, on_public, on_between = scores.split(len(smashed))
            penalty = gradient_penalty(on_between, between)
            loss = on_public.mean() - on_private.mean() + self.config.penalty * penalty
            client_loss, sign = on_private.mean(), -1.0
        else:
            on_private, on_public = self.critic(torch.cat([private, public])).split(len(smashed))
            penalty = torch.zeros(())
            loss = F.softplus(-on_private).mean() + F.softplus(on_public).mean()
            client_loss, sign = F.softplus(on_private).mean(), 1.0
        parameters = list(self.critic.parameters())
        if sign < 0:
            *grads, at_cut = torch.autograd.grad(loss, [*parameters, private])
        else:
            grads = list(torch.autograd.grad(loss, parameters, retain_graph=True))
            (at_cut,) = torch.autograd.grad(client_loss, private)
        _step(self._critic, parameters, grads)
        values = {"critic": float(loss.detach()), "client": float(client_loss.detach())}
        values |= {"distance": float((on_private.mean() - on_public.mean()).detach())}
        return sign * at_cut, values | {"penalty": float(penalty.detach())}

    def _coder_step(self, images: Tensor, labels: Tensor | None) -> float:
        loss = self.coder_loss(images, labels)
        parameters = self._coder_parameters()
        _step(self._coder, parameters, torch.autograd.grad(loss, parameters))
        return float(loss.detach())

    def coder_loss(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """What pilot, decoder and reader minimise on public images (x_NCHW in [-1, 1])."""
        features = self.features(images)
        loss = F.mse_loss(self.decode(features), images)
        if self.config.target == "label":
            assert labels is not None
            # A pilot that serves the classifier alone keeps nothing but the class, and the critic's match may
            # then swap classes; with the decoder beside it the match is one of whole images.
            loss = loss + 0.1 * F.cross_entropy(self.nets["reader"](features), labels)
        return loss

    def _pretrain(self) -> None:
        config, parameters = self.config, self._coder_parameters()
        optimizer = torch.optim.Adam(parameters, lr=config.pretrain_lr)
        for _ in range(config.pretrain):
            loss = self.coder_loss(*self.auxiliary_batch(64))
            if not torch.isfinite(loss):
                raise NotFiniteError("the autoencoder is not finite in pre-training; lower pretrain-lr")
            _step(optimizer, parameters, torch.autograd.grad(loss, parameters))
        if config.pretrain:
            self._standardise()

    @torch.no_grad()
    def _standardise(self) -> None:
        public = self.features(self.auxiliary.unit().mul_(2).sub_(1)[:1000].to(self.server_view.device))
        values = public.transpose(0, 1).flatten(1)
        spread = values.std(1)
        # A channel that the pilot leaves silent must stay silent, not be blown up.
        self.spread = spread.clamp_min(0.05 * float(spread.mean()) + 1e-6)
        if not self.server_view.nonnegative:
            self.shift = values.mean(1)

    # Feature space -------------------------------------------------------------------------------

    def features(self, images: Tensor) -> Tensor:
        """x_NCHW in [-1, 1] to the feature space that the client is trained into (h_ND, unit scale)."""
        h: Tensor = self.pilot(images)
        return (h - self._per_channel(self.shift, h)) / self._per_channel(self.spread, h)

    def decode(self, features: Tensor) -> Tensor:
        """From the feature space (h_ND) to x_NCHW in [-1, 1]."""
        h = features * self._per_channel(self.spread, features) + self._per_channel(self.shift, features)
        out: Tensor = self.nets["decoder"](h)
        return out

    @torch.no_grad()
    def guess(self, smashed: Tensor) -> Tensor:
        """The class of each image (N,), with ``target=label``."""
        logits: Tensor = self.nets["reader"](smashed.to(self.server_view.device))
        return logits.argmax(1)

    @torch.no_grad()
    def reconstruct(self, smashed: Tensor) -> Tensor:
        return (self.decode(smashed.to(self.server_view.device)) + 1) / 2

    @torch.no_grad()
    def doubt(self, smashed: Tensor) -> float:
        """How badly smashed data fit the pilot's feature space: they should survive decoding and encoding.

        The attacker's own evidence of how well the hijack went; no private image enters it.
        """
        again = self.features(self.decode(smashed))
        return float(F.mse_loss(again, smashed) / smashed.var().clamp_min(1e-12))

    def _per_channel(self, values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (like.ndim - 2))

    # State ---------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        return super().report() | {"target": self.config.target}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "nets": {name: net.state_dict() for name, net in self.nets.items()},
            "coder": self._coder.state_dict(),
            "critic": self._critic.state_dict(),
            "shift": self.shift,
            "spread": self.spread,
            "prepared": self._prepared,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, net in self.nets.items():
            net.load_state_dict(state["nets"][name])
        self._coder.load_state_dict(state["coder"])
        self._critic.load_state_dict(state["critic"])
        self.shift = state["shift"].to(self.server_view.device)
        self.spread = state["spread"].to(self.server_view.device)
        self._prepared = state["prepared"]


def gradient_penalty(scores: Tensor, inputs: Tensor) -> Tensor:
    """Mean over samples of (|d score / d input| - 1)^2, the norm over a whole sample, differentiable.

    Gulrajani et al., NeurIPS 2017, arXiv:1704.00028, equation 3.

    Args:
        scores: (N,), each from its own input alone.
        inputs: h_ND, in the graph of ``scores``.
    """
    (slopes,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    norms = slopes.flatten(1).pow(2).sum(1).add(1e-12).sqrt()
    return (norms - 1).pow(2).mean()


def _step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: Any) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
