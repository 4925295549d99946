"""Parameters of FSHA, see threats/attacks/fsha/attack.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suture.runtime.errors import ConfigError
from suture.threats.needs import SAME_SOURCE, Cost, Needs


@dataclass(frozen=True, kw_only=True)
class FshaConfig:
    """Parameters of FSHA; the defaults are a recipe for a CPU, ``published()`` the paper's.

    Attributes:
        aux: the attacker's images: "run" for images of the run's source that no client has, or NAME[:PATH].
        aux_images: how many.
        nets: "light" or "published" sizes.
        width: factor on the channels of all nets.
        target: what is read from the hijacked features: the "image", or its "label" (property inference: a
            classifier beside the decoder, where the paper replaces it; the auxiliary images need labels, the
            clients' may stay at home).
        loss: "wgan" with gradient penalty, or the plain "gan".
        penalty: weight of the gradient penalty (the paper: 500).
        critic_steps: critic steps for one step of the client.
        pretrain: steps of pilot and decoder on public images before training begins.
        pretrain_lr: their learning rate then.
        lr: of pilot and decoder afterwards.
        critic_lr: of the critic.
        scale: factor on the gradient sent to the client: the adaptive form against a client's penalty.
        task: weight of the honest task loss beside the hijack (the paper: 0).
    """

    cost: ClassVar[Cost] = Cost(step=0.085, end=15.0)

    aux: str = SAME_SOURCE
    aux_images: int = 2000
    nets: Literal["light", "published"] = "light"
    width: float = 1.0
    target: Literal["image", "label"] = "image"
    loss: Literal["wgan", "gan"] = "wgan"
    penalty: float = 10.0
    critic_steps: int = 1
    pretrain: int = 300
    pretrain_lr: float = 1e-3
    lr: float = 1e-4
    critic_lr: float = 1e-3
    scale: float = 1.0
    task: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("aux_images", 2), ("critic_steps", 1), ("pretrain", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"fsha: {name} must be at least {least}, got {getattr(self, name)}")
        for name in ("width", "pretrain_lr", "lr", "critic_lr", "scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"fsha: {name} must be above 0, got {getattr(self, name)}")
        if self.penalty < 0 or self.task < 0:
            raise ConfigError(
                f"fsha: penalty and task must not be below 0, got {self.penalty} and {self.task}"
            )

    @property
    def needs(self) -> Needs:
        """It answers while the clients train."""
        return Needs(images=self.aux_images, source=self.aux)

    @classmethod
    def published(cls) -> FshaConfig:
        """The paper's nets and settings; days on a CPU."""
        return cls(nets="published", penalty=500.0, pretrain=0, lr=1e-5, critic_lr=1e-4)
