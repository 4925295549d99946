"""A site's policy: the last word on what a run may do with this site's images, whatever the server asks.

A server's operator chooses a run's options, and may be hostile. So everything that all ranks share is either bounded by
a rule here or stands, with the reason, among the options that can do no harm (`policy_rules.HARMLESS`); an option that
is in neither list is refused. A policy bounds what the server asks for. That the server keeps to it, round by round, is
for the site's side of the protocol to check (``repeats``, rounds beyond ``epochs``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import suture.models.registry as nets
from suture.launch.build import Images
from suture.launch.options.options import SITES_OWN, SUTURE_VERSION, RunOptions, as_config_error
from suture.launch.policy.file import DEFAULT_TEXT, Range, nearest, read_rules
from suture.launch.policy.own_code import module_files
from suture.launch.policy.rules import RANGES, complaints, outside, unlisted
from suture.models.foreign import MODULE, is_foreign
from suture.runtime.errors import ConfigError, PolicyError
from suture.runtime.hooks import Defence, Detector
from suture.runtime.wire.compression import FORMATS
from suture.threats.plugin import Spec

_REMEDY = "ask the server's operator for another run, or change policy.toml at this site"
_BESIDE_THE_OPTIONS = ("weights", "classes", "protocol", "torch", "suture")
"""What an agreement holds beside the options that are marked ``agree``; see `RunOptions.agreement`."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules of one site; the defaults are those of `default_text`.

    Attributes:
        nets: nets that may be trained, as ``--model`` names them.
        earliest_cut: by net, the earliest cut point allowed, a number or a block's name.
        own_code: SHA-256 (hex) of the files that a ``module:`` net may run here.
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
            if not name.startswith(MODULE):  # that would run code whose digest nobody has compared yet
                try:
                    with as_config_error():
                        nets.cut_place(name, self.earliest_cut[name])
                except ConfigError as error:
                    raise ConfigError(f"earliest_cut: {error}") from None

    @classmethod
    def read(cls, path: Path) -> Policy:
        """The policy in a file; what the file leaves out is as in `default_text`.

        Raises:
            ConfigError: the file cannot be read, or a rule in it cannot work; names file and rule.
        """
        rules = read_rules(path)
        try:
            return cls(**rules)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @staticmethod
    def default_text() -> str:
        """The commented TOML file that a site begins with."""
        return DEFAULT_TEXT

    # What a server says, before an option is made of it -------------------------------------------

    def screen(self, agreement: Mapping[str, str]) -> None:
        """Refuses what can be refused by the text alone. Must come before a `RunOptions` is made of it, which imports a
        net's code, and tries which image sizes a net takes, for hours if the size is absurd.

        Args:
            agreement: options by name, as the server sent them; see `RunOptions.site_agreement`.

        Raises:
            PolicyError: as `unknown` and `check_code`; or the net is not listed, or a number is out of its range.
        """
        self.unknown(agreement)
        if "model" in agreement:
            self.check_code(agreement["model"])
            if complaint := unlisted(self, agreement["model"]):
                raise PolicyError(f"policy {complaint}; {_REMEDY}")
        for name in RANGES:
            text = agreement.get(name, "None")
            try:
                complaint = "" if text == "None" else outside(self, name, float(text))
            except ValueError:
                complaint = f"{name}: must be a number, got {text!r:.40}"
            if complaint:
                raise PolicyError(f"policy {complaint}; {_REMEDY}")

    @staticmethod
    def unknown(agreement: Mapping[str, str]) -> None:
        """Refuses what a server may not set, or what this program does not know.

        Args:
            agreement: options by name, as the server sent them; see `RunOptions.site_agreement`.

        Raises:
            PolicyError: an option is this site's own business, or unknown here; or a value is no text.
        """
        ours = {option.name: bool(option.metadata.get("agree")) for option in fields(RunOptions)}
        known = [name for name, agreed in ours.items() if agreed and name not in SITES_OWN]
        known += _BESIDE_THE_OPTIONS
        for name, value in agreement.items():
            if name not in known and name in ours:
                raise PolicyError(
                    f"policy: the server set {name}, which is for this site alone to say; refused"
                )
            if name not in known:
                raise PolicyError(
                    f"policy: the server set {name!r:.60}, an option that suture {SUTURE_VERSION} does not know "
                    f"({nearest(str(name), known)}); refused: the same suture must run at both ends"
                )
            if not isinstance(value, str):
                raise PolicyError(
                    f"policy: the server set {name} to a {type(value).__name__}, not a text; refused"
                )

    def check_code(self, model: str) -> None:
        """Refuses code of one's own that this policy does not list, without running it.

        Args:
            model: as ``--model`` takes it; every other form than ``module:FILE:FACTORY`` passes.

        Raises:
            PolicyError: the net is not listed, its files are not found, or one has another SHA-256.
        """
        if not model.startswith(MODULE):
            return
        if model not in self.nets:
            raise PolicyError(
                f"policy nets: {model!r:.100} is code of one's own that is not listed; {_REMEDY}"
            )
        for file in module_files(model.removeprefix(MODULE).partition(":")[0]):
            try:
                content = file.read_bytes()
            except OSError as error:
                raise PolicyError(f"policy own_code: cannot read {file}: {error.strerror}") from None
            digest = hashlib.sha256(content).hexdigest()
            if content and digest not in map(str.lower, self.own_code):
                raise PolicyError(
                    f"policy own_code: {model} would run {file}, whose SHA-256 {digest} is not listed; read that file, "
                    "and add the digest to own_code in policy.toml where it may run"
                )

    # The run ---------------------------------------------------------------------------------------

    def filled(self, options: RunOptions) -> RunOptions:
        """Resolved options with what this policy demands of the site's own side, where the site left it open.

        A detector that was not named becomes the first one demanded that fits the task and the labels.
        """
        if self.on_alarm == "stop":
            options = replace(options, on_alarm="stop")
        for spec in self.detectors if options.detector_spec() is None else ():
            try:
                armed = replace(options, detector=str(spec))
                armed.check_detector()
            except ConfigError:
                continue
            return armed
        return options

    def check(
        self,
        options: RunOptions,
        *,
        patients: int,
        images: int,
        tls_proxy: bool = False,
        counted: str = "training",
    ) -> None:
        """Refuses a run that this policy forbids; every rule that does is named.

        Args:
            options: the run's, resolved.
            patients: in this site's training set; in its test set where it only evaluates.
            images: likewise.
            tls_proxy: whether the line goes through a proxy that ends TLS.
            counted: the name of the set in which they were counted.

        Raises:
            PolicyError: names each rule and the value.
        """
        self.check_code(str(options.model))
        found = list(complaints(self, options))
        if tls_proxy and not self.tls_proxy:
            found.append("policy tls_proxy: a proxy that ends TLS may not be used, got --tls proxy")
        for rule, least, got in (
            ("least_patients", self.least_patients, patients),
            ("least_images", self.least_images, images),
        ):
            if got < least:
                found.append(f"policy {rule}: the {counted} set must have at least {least}, got {got}")
        if found:
            raise PolicyError(f"{'; '.join(found)}; {_REMEDY}")


def training_set(images: Images) -> tuple[int, int]:
    """Patients and images in a site's training set, for `Policy.check`; reads no picture."""
    return _counted(images, images.shares[0].train)


def evaluated_set(images: Images) -> tuple[int, int]:
    """The same of its test set, where it only evaluates."""
    return _counted(images, images.shares[0].test)


def _counted(images: Images, chosen: Collection[int]) -> tuple[int, int]:
    return len({images.source.examples[index].patient for index in chosen}), len(chosen)
