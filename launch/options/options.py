"""Every option of a run: one frozen dataclass and the table of defaults per task.

Anything below launch takes small configs of its own; this module is the only place where they meet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import suture.models.registry as nets
import suture.runtime.wire.compression as formats
from suture.runtime.data.partition import PartitionConfig
from suture.runtime.data.registry import DataConfig, split_spec
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError
from suture.runtime.exchange import EXCHANGES
from suture.runtime.hooks import Attack, Defence, Detector
from suture.runtime.scheduler import Together, parse_schedule
from suture.runtime.training.optim import OptimizerConfig
from suture.threats.attacks.auxiliary import SAME_SOURCE
from suture.threats.client_view import ClientView
from suture.threats.plugin import Spec
from suture.threats.registry import ATTACKS, DEFENCES, DETECTORS, build_detector

SUTURE_VERSION = version("suture")
"""Read now: a sandbox may shut off the package's own description later."""

DEFAULT_CLIENTS = 4
"""How many clients `suture train` starts; under torchrun its ranks decide."""

SITES_OWN = (
    "data",
    "grades",
    "train_images",
    "validation_images",
    "test_images",
    "held_out_images",
    "partition",
    "class_weights",
)
"""What every rank must share where one source is shared out, and each site decides for itself where it has its own."""

DEFAULTS: dict[Task, dict[str, Any]] = {
    Task.CLASSIFICATION: {
        "model": "resnet34",
        "cut": "3",
        "image_size": 64,
        "train_images": 128,
        "validation_images": 16,
        "test_images": 64,
        "epochs": 6,
        "batch_size": 32,
        "lr": 3e-4,
        "optimizer": "adam",
    },
    Task.SEGMENTATION: {
        "model": "unet",
        "cut": "2",
        "image_size": 128,
        "train_images": 24,
        "validation_images": 4,
        "test_images": 8,
        "epochs": 20,
        "batch_size": 4,
        "lr": 1e-3,
        "optimizer": "adam",
    },
}
"""What an option is when nobody sets it, by the task of the data (ruling 16). Chosen to end within about two
minutes (classification) and ten (segmentation) on two cores; the study's own values are larger."""


def _option(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help} | metadata)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """All options of one run. None means: the task's default.

    Each field's help text is what ``--help`` prints; ``flag`` is its name there where a field cannot be called so;
    ``agree`` marks those that every rank must share, ``free`` those that may change when a run is resumed.

    Raises:
        ConfigError: a value that cannot work; names value, bound and remedy.
    """

    data: str = _option("fundus-phantom", "data source, NAME or NAME:PATH", agree=True)
    grades: str = _option(
        "binary", "binary (grade above 0) or all grades", choices=("binary", "all"), agree=True
    )
    model: str | None = _option(
        None, f"network to train: {', '.join([*nets.MODELS, *nets.FORMS])}", agree=True
    )
    width: int | None = _option(None, "channels of the U-Net's first block", agree=True)
    cut: str | None = _option(
        None, "cut layer, a number or a block's name; see 'suture cuts MODEL'", agree=True
    )
    labels: str | None = _option(
        None,
        "shared (loss at the server) or home (loss at the client)",
        choices=("shared", "home"),
        agree=True,
    )
    weights: str | None = _option(None, "state dict of the whole net to start from")
    image_size: int | None = _option(None, "pixels a side", agree=True)
    augment: bool = _option(True, "rotate, scale and flip training images a little", agree=True)
    train_images: int | None = _option(None, "training images per client", agree=True)
    validation_images: int | None = _option(
        None, "validation images per client, held out of the training patients", agree=True
    )
    test_images: int | None = _option(None, "test images per client", agree=True)
    test_every_round: bool = _option(
        False, "score test images after every round, not only after the last one", free=True
    )
    partition: str = _option("iid", "iid, dirichlet:ALPHA, quantity:ALPHA or by-site", agree=True)
    epochs: int | None = _option(None, "rounds; every client trains once a round", free=True, agree=True)
    batch_size: int | None = _option(None, "images a step", agree=True)
    optimizer: str | None = _option(None, "optimizer of every part", choices=("adam", "sgd"), agree=True)
    lr: float | None = _option(None, "learning rate", agree=True)
    class_weights: str = _option(
        "none", "weigh classes against imbalance", choices=("none", "balanced"), agree=True
    )
    defence: str | None = _option(
        None,
        "what clients do to what they send: SPEC, or SPEC+SPEC from the bottom to the wire; all clients alike, and "
        "the server may know (see below)",
        agree=True,
    )
    detector: str | None = _option(None, "what watches the gradient that comes home, SPEC (see below)")
    on_alarm: str = _option(
        "log",
        "what a detector's alarm leads to; stop: the client leaves before sending more",
        choices=("log", "stop"),
        free=True,
    )
    attack: str | None = _option(
        None,
        "what the server does beyond the protocol, SPEC (see below); a lab's setting: all ranks are told",
    )
    held_out_images: int = _option(0, "images per client that only attacks are judged on", agree=True)
    judge: str = _option(
        "on",
        "judge an attacked run on one machine when it ends; off: later, with 'suture judge RUN'",
        choices=("on", "off"),
        free=True,
    )
    recording: str = _option(
        "off",
        "record what crosses the wire under RUN/recording, for 'suture attack'",
        choices=("off", "last-round", "all"),
    )
    schedule: str = _option(
        "round-robin",
        "who trains when: in turns (round-robin, shuffled), or all at once (parallel: one top takes their batches one "
        "by one; splitfed: a top each, averaged; concat: their batches joined to one step), or replay:TURNS.JSONL",
    )
    race: bool = _option(
        False,
        "with parallel: take batches in the order of arrival, not in a drawn one; no two runs are alike",
        flag="async",
    )
    exchange: str = _option("fused", "how a step crosses the wire", choices=tuple(EXCHANGES))
    wire: str = _option(
        "fp32",
        f"what tensors look like while they cross, both ways: {', '.join(formats.names())} (see below)",
        agree=True,
    )
    overlap: bool = _option(
        False,
        "the next batch passes the bottom while wire and server work, with weights one step old (exchange fused or "
        "local)",
        agree=True,
    )
    clients: int | None = _option(
        None,
        "number of clients (under torchrun: its ranks less one; suture serve: all sites, evaluating ones too)",
    )
    unsplit: bool = _option(
        False, "train the joined net in one process, batch for batch the same: the oracle"
    )
    pooled: bool = _option(False, "with --unsplit: shuffle all clients' images together (central training)")
    seed: int = _option(
        0, "public seed; what the server must not know also depends on the hand-off key", agree=True
    )
    handoff_key: str | None = _option(
        None, "file with the clients' shared key; made for you on a single machine", free=True
    )
    accept_rollback: int | None = _option(
        None, "let this client go back to the hand-off of this turn", free=True
    )
    release_top: bool = _option(True, "hand the trained top to the clients at the end", agree=True)
    lease: float = _option(120.0, "seconds of silence after which a peer counts as lost", free=True)
    interface: str | None = _option(None, "network interface for all traffic between ranks", free=True)
    sandbox: str = _option(
        "auto",
        "take from each rank, before a peer can reach it, the right to files that are not its own (Linux Landlock); "
        "auto: where that can be done, and say so",
        choices=("auto", "on", "off"),
        free=True,
    )
    isolate: str = _option(
        "auto",
        "suture train: give the ranks a network namespace of their own, so that no other user of this machine reaches "
        "their ports (Linux); auto: where the system lets an ordinary user make one, else say so",
        choices=("auto", "on", "off"),
        free=True,
    )
    threads: int | None = _option(
        None,
        "computing threads of each rank (default: all cores, shared by ranks that compute at once)",
        free=True,
    )
    device: str = _option("auto", "where parts compute", choices=("auto", "cpu", "cuda"), free=True)
    profile: bool = _option(
        False,
        "write down where each step's time goes: the server's into metrics.jsonl, a client's into its own folder, "
        "and figures/profile.png",
        free=True,
    )
    run_dir: str | None = _option(None, "folder of the run (default: runs/<time>)", free=True)
    resume: bool = _option(False, "go on from the newest checkpoint in --run-dir", free=True)
    checkpoints: str = _option(
        "turn",
        "turn: one after every turn; off: none, for short runs that can start anew",
        choices=("turn", "off"),
        free=True,
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            choices, value = option.metadata.get("choices"), getattr(self, option.name)
            if choices and value is not None and value not in choices:
                raise ConfigError(f"{option.name} must be one of {', '.join(choices)}, got {value!r}")
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("clients", 1),
            ("threads", 1),
            ("width", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        if not self.lease > 0:
            raise ConfigError(f"lease must be above 0 seconds, got {self.lease}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must lie in 0..2**63 - 1, got {self.seed}")
        if self.pooled and not self.unsplit:
            raise ConfigError("pooled goes with --unsplit: split training never mixes the clients' images")
        if self.unsplit and (self.defence_specs() or self.detector_spec()):
            raise ConfigError(
                "defence and detector guard what crosses the cut: with --unsplit nothing does; leave out"
            )
        if self.resume and self.unsplit:
            raise ConfigError("resume does not go with --unsplit, which keeps no checkpoints; start it anew")
        if self.resume and self.checkpoints == "off":
            raise ConfigError("resume goes on from a checkpoint: use --checkpoints turn, or start it anew")
        if self.resume and self.run_dir is None:
            raise ConfigError("resume needs --run-dir: name the folder of the run to go on with")
        split_spec(self.data)
        if self.model is not None:
            with as_config_error():
                nets.model_entry(self.model)
        self.defence_specs(), self.detector_spec(), self.attack_spec()
        if self.sandbox == "on" and self.attack_spec() is not None:
            raise ConfigError(
                "sandbox on does not go with attack: the judge reads the clients' images; use --sandbox auto or off"
            )
        self._check_wire()
        self._check_schedule()
        self._check_pipeline()
        if self.unsplit and (self.attack_spec() or self.recording != "off"):
            raise ConfigError(
                "attack and recording need a server: with --unsplit there is none; leave them out"
            )

    def _check_wire(self) -> None:
        """Refuses a wire format that there is no wire for, or that the exchange cannot carry."""
        differentiable = formats.parse_format(self.wire).differentiable
        if self.unsplit and self.wire != "fp32":
            raise ConfigError(f"wire {self.wire} needs a wire: with --unsplit nothing crosses; leave it out")
        if self.exchange == "autograd" and not self.unsplit and not differentiable:
            raise ConfigError(
                f"wire {self.wire} does not go with exchange autograd, which lets a graph cross: use --exchange fused "
                "(or local), or --wire bf16"
            )

    def _check_schedule(self) -> None:
        """Refuses a schedule that the exchange cannot carry, or an order that there is none of."""
        together = parse_schedule(self.schedule, self.seed).together
        if together is not None and self.unsplit:
            raise ConfigError(
                f"schedule {self.schedule} needs a server: with --unsplit there is none; use --schedule round-robin"
            )
        if together is not None and self.exchange == "autograd":
            raise ConfigError(
                f"schedule {self.schedule} does not go with exchange autograd, whose server may have one graph open at "
                "a time: use --exchange fused (or local)"
            )
        if together is not None and self.overlap:
            raise ConfigError(
                f"schedule {self.schedule} does not go with overlap: while a client waits the server works for others; "
                f"leave overlap out, or use --schedule round-robin"
            )
        if self.race and together is not Together.PARALLEL:
            raise ConfigError(
                f"async is for --schedule parallel, where one top takes all clients' batches, got {self.schedule}"
            )

    def _check_pipeline(self) -> None:
        """Refuses overlap where it cannot go."""
        if self.overlap and self.unsplit:
            raise ConfigError("overlap needs a wire: with --unsplit nothing crosses; leave it out")
        if self.overlap and self.exchange == "autograd":
            raise ConfigError(
                "overlap does not go with exchange autograd, whose one graph holds one batch at a time: use "
                "--exchange fused (or local)"
            )
        if self.overlap and self.detector_spec():
            raise ConfigError(
                "overlap does not go with detector, which must see a batch's gradient before it sends the next: "
                "leave one out"
            )

    def resolved(self) -> RunOptions:
        """These options with the task's defaults filled in, checked against each other."""
        entry, _ = split_spec(self.data)
        defaults = DEFAULTS[entry.task]
        filled = dataclasses.replace(
            self, **{name: value for name, value in defaults.items() if getattr(self, name) is None}
        )
        assert filled.model is not None and filled.image_size is not None and filled.cut is not None
        net = nets.model_entry(filled.model)
        if net.task != entry.task:
            fitting = ", ".join(name for name, other in nets.MODELS.items() if other.task == entry.task)
            raise ConfigError(
                f"model {filled.model} is for {net.task}, data {entry.name} is for {entry.task}; use --model {fitting}"
            )
        with as_config_error():
            nets.validate_image_size(filled.model, filled.image_size, required(filled.batch_size))
        filled = dataclasses.replace(filled, labels=filled.labels or net.labels[0])
        filled.data_config(), filled.partition_config(), filled.optimizer_config()
        parse_schedule(filled.schedule, filled.seed)
        if filled.weights is not None and not Path(filled.weights).is_file():
            raise ConfigError(f"weights {filled.weights} is no file; name a state dict saved by torch.save")
        filled.check_detector()
        filled.check_cut()
        return filled

    def check_cut(self) -> None:
        """Refuses a cut that the model does not have, before any process is started."""
        import torch

        assert self.model is not None and self.cut is not None
        with as_config_error(), torch.device("meta"):
            nets.build(
                self.model, cut=parse_cut(self.cut), num_outputs=2, labels=self.labels, width=self.width
            )

    def defence_specs(self) -> tuple[Spec[Defence], ...]:
        """The defences asked for, in order."""
        return DEFENCES.parse_chain(self.defence)

    def attack_spec(self) -> Spec[Attack] | None:
        """The attack asked for."""
        return None if self.attack in (None, "none") else ATTACKS.parse(str(self.attack))

    def auxiliary_images(self) -> int:
        """Images of the run's own source that the attacker is to own."""
        spec = self.attack_spec()
        takes = spec is not None and getattr(spec.config, "aux", "") == SAME_SOURCE
        return int(spec.config.aux_images) if spec is not None and takes else 0

    def first_query_round(self) -> int:
        """The round from which a lab's client passes an attacker's images through its bottom."""
        spec = self.attack_spec()
        rounds: int = required(self.epochs)
        return max(1, rounds + 1 - int(getattr(spec.config, "average", 1) if spec else 1))

    def first_test_round(self) -> int:
        """The round from which test images are scored: the last one, but in a lab, where attackers see them pass."""
        every_round = self.test_every_round or self.attack_spec() is not None or self.recording != "off"
        return 1 if every_round else int(required(self.epochs))

    def detector_spec(self) -> Spec[Detector] | None:
        """The detector asked for."""
        return None if self.detector in (None, "none") else DETECTORS.parse(self.detector)

    def check_detector(self) -> None:
        """Refuses a detector that cannot work with this task and these labels, before any process is started."""
        entry = nets.model_entry(required(self.model))
        view = ClientView(
            images=(entry.in_channels, required(self.image_size), required(self.image_size)),
            smashed=(1, 1, 1),
            normalisation=entry.normalisation,
            task=entry.task,
            num_classes=2,
            labels_shared=self.labels == "shared",
        )
        build_detector(self.detector_spec(), view)

    def data_config(self) -> DataConfig:
        """The part that concerns images."""
        grades: Any = self.grades
        return DataConfig(
            spec=self.data, classes=grades, image_size=required(self.image_size), augment=self.augment
        )

    def partition_config(self) -> PartitionConfig:
        """The part that concerns sharing images out."""
        return PartitionConfig(
            scheme=self.partition,
            train_images=required(self.train_images),
            validation_images=required(self.validation_images),
            test_images=required(self.test_images),
            held_out_images=self.held_out_images,
        )

    def optimizer_config(self) -> OptimizerConfig:
        """The part that concerns optimisation."""
        return OptimizerConfig(name=required(self.optimizer), lr=required(self.lr))

    def agreement(self, num_classes: int) -> dict[str, str]:
        """The options that every rank must share, as strings, with the versions that must match."""
        import torch

        from suture.runtime.wire.messages import PROTOCOL

        shared = {o.name: str(getattr(self, o.name)) for o in fields(self) if o.metadata.get("agree")}
        # A path differs from site to site; what is behind it must be of one kind.
        shared["data"] = split_spec(self.data)[0].name
        if self.weights is not None:
            shared["weights"] = hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()
        versions = {"protocol": str(PROTOCOL), "torch": torch.__version__, "suture": SUTURE_VERSION}
        return shared | {"classes": str(num_classes)} | versions

    def site_agreement(self, classes: Sequence[str]) -> dict[str, str]:
        """The same among sites that have images of their own: how many, from where, is each site's business."""
        shared = {k: v for k, v in self.agreement(len(classes)).items() if k not in SITES_OWN}
        return shared | {"classes": json.dumps([*classes])}

    def terms(self, classes: Sequence[str] = ()) -> dict[str, str]:
        """What a site is told before it joins: `site_agreement`, without the classes where nobody has said them."""
        said = self.site_agreement(classes)
        return {name: text for name, text in said.items() if classes or name != "classes"}


def required(value: Any) -> Any:
    if value is None:
        raise ConfigError("options must be resolved first")
    return value


class as_config_error:
    """Turns the ValueErrors of models/, which knows no errors of ours, into ConfigErrors."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if type(error) is ValueError:
            raise ConfigError(str(error)) from None


def parse_cut(cut: str) -> int | str:
    """``--cut`` as a number where it is one, else as a block's name."""
    return int(cut) if cut.lstrip("-").isdigit() else cut
