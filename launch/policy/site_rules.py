"""The rules of a site's policy, each checked on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import suture.models.registry as nets
from suture.launch.options.model import as_config_error
from suture.launch.policy.file import Range, nearest
from suture.models.foreign import KIND, is_foreign
from suture.models.plugins import is_outside
from suture.runtime.errors import ConfigError
from suture.runtime.hooks import Defence, Detector
from suture.runtime.wire.compression import FORMATS
from suture.threats.plugin import Spec


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What one site allows; the defaults are those of `policy.toml` as a kit has it.

    Attributes:
        nets: nets that may be trained, as ``--model`` names them.
        earliest_cut: by net, the earliest cut point allowed, a number or a block's name.
        own_code: SHA-256 (hex) of the files that a ``module:`` net, defence or detector may run here.
        pretrained_weights: whether ``--weights`` may be used.
        labels: "home": they must stay here; or "any".
        augment: "on": training images must be augmented; or "any".
        image_size: range of pixels a side.
        width: range of channels of the U-Net's first block.
        batch_size: range of images a step.
        epochs: range of rounds.
        lr: range of the learning rate.
        repeats: how many times one round's training pass may be asked for again, at least 0; the client counts.
        defences: each must be on, at least as strong as here.
        more_defences: whether others may be on beside them.
        detectors: one of them must be on, at least as strong as here; empty for none.
        on_alarm: "stop": a detector's alarm must stop this site; or "log", which leaves it open.
        wire: wire formats allowed, names of `compression.FORMATS`.
        release_top: whether the server must hand out the trained top.
        tls_proxy: whether a proxy that ends TLS may be used.
        least_patients: in this site's training set, or in its test set where it only evaluates.
        least_images: likewise.

    Raises:
        ConfigError: a rule that cannot work; names it, its value and the bound.
    """

    nets: tuple[str, ...] = ("resnet18", "resnet34", "resnet50", "unet")
    earliest_cut: Mapping[str, int | str] = field(
        default_factory=lambda: {"resnet18": 3, "resnet34": 3, "resnet50": 3, "unet": 2}
    )
    own_code: tuple[str, ...] = ()
    pretrained_weights: bool = False
    labels: str = "any"
    augment: str = "any"
    image_size: Range = (16, 512)
    width: Range = (1, 128)
    batch_size: Range = (4, 256)
    epochs: Range = (1, 200)
    lr: Range = (1e-6, 0.1)
    repeats: int = 3
    defences: tuple[Spec[Defence], ...] = ()
    more_defences: bool = False
    detectors: tuple[Spec[Detector], ...] = ()
    on_alarm: str = "log"
    wire: tuple[str, ...] = ("fp32", "bf16", "fp16", "int8", "topk")
    release_top: bool = True
    tls_proxy: bool = False
    least_patients: int = 10
    least_images: int = 20

    def __post_init__(self) -> None:
        for rule, choices in (
            ("labels", ("any", "home")),
            ("augment", ("any", "on")),
            ("on_alarm", ("log", "stop")),
        ):
            if (value := getattr(self, rule)) not in choices:
                raise ConfigError(f"{rule}: must be one of {', '.join(choices)}, got {value!r}")
        for rule in ("repeats", "least_patients", "least_images"):
            if (value := getattr(self, rule)) < 0:
                raise ConfigError(f"{rule}: must be at least 0, got {value}")
        for name in self.wire:
            if name not in FORMATS:
                raise ConfigError(f"wire: unknown format {name!r:.60}; {nearest(name, FORMATS)}")
        for digest in self.own_code:
            if len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef"):
                raise ConfigError(f"own_code: must be SHA-256 in 64 hexadecimal digits, got {digest!r:.80}")
        self._check_nets()

    def _check_nets(self) -> None:
        for rule, names in (("nets", self.nets), ("earliest_cut", tuple(self.earliest_cut))):
            for name in names:
                if not is_foreign(name) and name not in nets.MODELS:
                    known = [*nets.MODELS, *nets.FORMS]
                    raise ConfigError(f"{rule}: unknown net {name!r:.60}; {nearest(name, known)}")
        for name in self.nets:
            if name not in self.earliest_cut:
                raise ConfigError(
                    f"earliest_cut: none for {name}; add \"{name}\" = CUT, see 'suture cuts {name}'"
                )
            if not is_own(name):  # that would run code whose digest nobody has compared yet
                try:
                    with as_config_error():
                        nets.cut_place(name, self.earliest_cut[name])
                except ConfigError as error:
                    raise ConfigError(f"earliest_cut: {error}") from None


def is_own(model: str) -> bool:
    """Whether a net is code that neither this program nor torchvision has."""
    return model not in nets.MODELS and is_outside(KIND, model)
