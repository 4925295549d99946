"""A proxy adversary: the client trains an inverter of its own and the bottom against it.

Li, Rakin, Chen, He, Fan, Chakrabarti: ResSFL: A resistance transfer framework for defending model inversion attack in
split federated learning, CVPR 2022, arXiv:2205.04007.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import interpolate

from suture.runtime.data.normalise import denormalise
from suture.runtime.hooks import Defence
from suture.runtime.training.optim import moments, moments_like, take_moments
from suture.threats.client_view import ClientView, check_bounds
from suture.threats.needs import Cost
from suture.threats.strength import Strength


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """Parameters of `ProxyDefence`.

    Attributes:
        task_weight: w in w * task - (1 - w) * proxy's error, above 0 and at most 1. The study's .01 left a
            classifier that names one class; see ``threshold`` and watch the task's metric.
        threshold: relative error of the proxy beyond which it is left alone, above 0; 1 is the error of the
            batch's mean image, which needs no smashed data at all.
        width: channels of the proxy's net.
        steps: steps of the proxy for each of the client's, at least 1.
        lr: the proxy's learning rate (Adam).
    """

    strength: ClassVar[Strength] = Strength(parameter="task_weight", stronger="lower")
    cost: ClassVar[Cost] = Cost(image=0.01)

    task_weight: float = 0.5
    threshold: float = 1.0
    width: int = 32
    steps: int = 1
    lr: float = 3e-3

    def __post_init__(self) -> None:
        check_bounds("defence proxy: task_weight", self.task_weight, 0.0, 1.0, open_low=True)
        check_bounds("defence proxy: threshold", self.threshold, 0.0, open_low=True)
        check_bounds("defence proxy: width", self.width, 1)
        check_bounds("defence proxy: steps", self.steps, 1)
        check_bounds("defence proxy: lr", self.lr, 0.0, open_low=True)


class ProxyDefence(Defence):
    """Moves the bottom to where a decoder that follows it fails. It changes no tensor on the wire.

    Does not act in evaluation: what protects there is the bottom that it has trained. The decoder and its
    optimizer travel in the sealed hand-off, so that all clients train one and the server never has it.

    Note:
        The error is relative, the proxy's mean squared error over that of the batch's mean image, and counts no
        further than ``threshold``: an unbounded error is cheapest to raise by turning pictures into negatives,
        which hides nothing and drowns the task. Weight 1 of the task is fixed at door 2, so the error counts
        (1 - w) / w; for Adam only that ratio matters.
        The proxy's own error flatters the defence: judge it with a fresh and larger attacker.
    """

    def __init__(self, config: ProxyConfig, view: ClientView) -> None:
        self.config = config
        self._normalisation = view.normalisation
        # Initial weights come from the default generator, which the client's builder seeds from the key.
        self.net = ProxyDecoder(view.smashed, view.images, config.width)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self._seen: tuple[Tensor, Tensor] | None = None

    def penalty(self, inputs: Tensor, smashed: Tensor) -> Tensor:
        """Minus the weighted relative error of the proxy as it stands; the proxy itself gets no gradient."""
        self.net.to(smashed.device)
        images = denormalise(inputs, self._normalisation)
        self._seen = smashed.detach(), images
        self.net.start_from(images)
        frozen = {name: parameter.detach() for name, parameter in self.net.named_parameters()}
        error = relative_error(functional_call(self.net, frozen, (smashed,)), images)
        weight = (1 - self.config.task_weight) / self.config.task_weight
        return -weight * error.clamp(max=self.config.threshold)

    def step(self) -> None:
        """Trains the proxy on the batch that the bottom was just stepped with."""
        if self._seen is None:
            return
        (smashed, images), self._seen = self._seen, None
        for _ in range(self.config.steps):
            parameters = list(self.net.parameters())
            error = relative_error(self.net(smashed), images)
            # Not backward(): inside a distributed context .grad belongs to nobody.
            for parameter, gradient in zip(parameters, torch.autograd.grad(error, parameters), strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The proxy's net and its optimizer's moments."""
        return {"net": self.net.state_dict(), "optimizer": moments(self.optimizer)}

    def state_like(self) -> dict[str, Any]:
        """See `Defence.state_like`."""
        return {"net": self.net.state_dict(), "optimizer": moments_like(self.optimizer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the proxy that another client left."""
        self.net.load_state_dict(state["net"])
        take_moments(self.optimizer, state["optimizer"])
        self._seen = None


def relative_error(rebuilt_NCHW: Tensor, images_NCHW: Tensor) -> Tensor:
    """Mean squared error over that of the batch's mean image: 0 perfect, 1 as bad as knowing nothing."""
    baseline = (images_NCHW - images_NCHW.mean(dim=0, keepdim=True)).square().mean()
    return (rebuilt_NCHW - images_NCHW).square().mean() / baseline.clamp_min(1e-6)


class ProxyDecoder(nn.Module):
    """h_ND to x_NCHW in [0, 1]: a convolution, transposed convolutions up to the image's size, a sigmoid.

    It starts at the mean image. From anywhere else dozens of batches pass before it beats that, and so long the
    defence does nothing at all (`ProxyConfig.threshold`).

    Attributes:
        start: the picture that it departs from, before the sigmoid.
        started: whether ``start`` was set.

    Args:
        smashed: shape at the cut; features without a picture count as one pixel.
        images: C, H, W.
        width: channels in between.
    """

    started: Tensor

    def __init__(self, smashed: tuple[int, ...], images: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, columns = smashed if len(smashed) == 3 else (math.prod(smashed), 1, 1)
        doublings = max(
            0, math.ceil(math.log2(images[1] / height)), math.ceil(math.log2(images[2] / columns))
        )
        # Smashed data has any scale and training moves it; the norm has no statistics that could leak on.
        layers: list[nn.Module] = [nn.GroupNorm(1, channels), nn.Conv2d(channels, width, 3, padding=1)]
        for _ in range(doublings):
            layers += [nn.LeakyReLU(0.2), nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)]
        last = nn.Conv2d(width, images[0], 3, padding=1)
        with torch.no_grad():
            last.weight.mul_(0.1)
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.2), last)
        self.start = nn.Parameter(torch.zeros(images))
        self.register_buffer("started", torch.tensor(False))
        self._size = images[1:]

    @torch.no_grad()
    def start_from(self, images_NCHW: Tensor) -> None:
        """Makes the mean of the first images that it is shown, in [0, 1], what it answers before it has learnt."""
        if not self.started:
            self.start.copy_(torch.logit(images_NCHW.mean(0).clamp(0.02, 0.98)))
            self.started.fill_(True)

    def forward(self, h_ND: Tensor) -> Tensor:
        """x_NCHW in [0, 1]."""
        rebuilt: Tensor = self.layers(h_ND if h_ND.dim() == 4 else h_ND.flatten(1)[:, :, None, None])
        if rebuilt.shape[2:] != self._size:
            rebuilt = interpolate(rebuilt, size=self._size, mode="bilinear", align_corners=False)
        return torch.sigmoid(rebuilt + self.start)
