"""All options of a run: the groups together, as they are asked for (`AskedOptions`) and resolved (`RunOptions`).

The command line, ``--config`` and RUN/config.toml follow from the groups' fields. Anything below launch takes small
configs of its own; this module is the only place where they meet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

import suture.models.registry as nets
import suture.runtime.wire.compression as formats
from suture import __version__
from suture.launch.options.classes import CLASSES, written_classes
from suture.launch.options.data import DataOptions
from suture.launch.options.exchange import ExchangeOptions
from suture.launch.options.folder import FolderOptions
from suture.launch.options.host import HostOptions
from suture.launch.options.model import ModelOptions, as_config_error, parse_cut
from suture.launch.options.threats import ThreatOptions
from suture.launch.options.training import TrainingOptions
from suture.models.freezing import freeze, frozen_names
from suture.models.norms import LOCAL, check_local
from suture.models.pretrained import weights_file
from suture.runtime.data.partition import PartitionConfig
from suture.runtime.data.registry import DataConfig, open_source, split_spec
from suture.runtime.data.source import Source, Task
from suture.runtime.data.whole import is_whole
from suture.runtime.errors import ConfigError
from suture.runtime.scheduler import parse_schedule
from suture.runtime.training.learning_rates import LearningRates
from suture.runtime.training.objectives import objective
from suture.runtime.training.optim import OptimizerConfig
from suture.runtime.wire.messages import PROTOCOL
from suture.threats.client_view import ClientView
from suture.threats.needs import SAME_SOURCE
from suture.threats.registry import build_detector

DEFAULT_CLIENTS = 4
"""How many clients `suture train` starts; under torchrun its ranks decide."""

SITES_OWN = (
    "data",
    "grades",
    "columns",
    "structure",
    "frame",
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


@dataclass(frozen=True, kw_only=True)
class AskedOptions(
    # Dataclasses take the fields of the last base first.
    FolderOptions,
    HostOptions,
    ExchangeOptions,
    ThreatOptions,
    TrainingOptions,
    ModelOptions,
    DataOptions,
):
    """The options of a run as a person asks for them. None means: left open, see `resolved`.

    Raises:
        ConfigError: a value that cannot work; names value, bound and remedy.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unsplit:
            self._check_unsplit()
        if self.sandbox == "on" and self.attack_spec() is not None:
            raise ConfigError(
                "sandbox on does not go with attack: the judge reads the clients' images; use --sandbox auto or off"
            )
        if self.exchange == "autograd" and not self.unsplit:
            self._check_autograd()
        self._check_pipeline()

    def _check_unsplit(self) -> None:
        """Refuses what needs a cut, a server or a wire."""
        if self.defence_specs() or self.detector_spec():
            raise ConfigError(
                "defence and detector guard what crosses the cut: with --unsplit nothing does; leave out"
            )
        if self.resume:
            raise ConfigError("resume does not go with --unsplit, which keeps no checkpoints; start it anew")
        if self.wire != "fp32":
            raise ConfigError(f"wire {self.wire} needs a wire: with --unsplit nothing crosses; leave it out")
        if self.is_lab():
            raise ConfigError(
                "attack and recording need a server: with --unsplit there is none; leave them out"
            )

    def _check_autograd(self) -> None:
        """Refuses what the one graph of exchange autograd cannot carry."""
        if not formats.parse_format(self.wire).differentiable:
            raise ConfigError(
                f"wire {self.wire} does not go with exchange autograd, which lets a graph cross: use --exchange fused "
                "(or local), or --wire bf16"
            )
        if parse_schedule(self.schedule, self.seed).together is not None:
            raise ConfigError(
                f"schedule {self.schedule} does not go with exchange autograd, whose server may have one graph open at "
                "a time: use --exchange fused (or local)"
            )

    def _check_pipeline(self) -> None:
        """Refuses overlap where it cannot go."""
        if not self.overlap:
            return
        if self.unsplit:
            raise ConfigError("overlap needs a wire: with --unsplit nothing crosses; leave it out")
        if parse_schedule(self.schedule, self.seed).together is not None:
            raise ConfigError(
                f"schedule {self.schedule} does not go with overlap: while a client waits the server works for others; "
                f"leave overlap out, or use --schedule round-robin"
            )
        if self.exchange == "autograd":
            raise ConfigError(
                "overlap does not go with exchange autograd, whose one graph holds one batch at a time: use "
                "--exchange fused (or local)"
            )
        if self.detector_spec():
            raise ConfigError(
                "overlap does not go with detector, which must see a batch's gradient before it sends the next: "
                "leave one out"
            )

    def resolved(self) -> RunOptions:
        """These options with what was left open filled in, checked against each other.

        Raises:
            ConfigError: they do not fit together; names values and remedy.
        """
        options = self.with_defaults()
        options.check()
        return options

    def with_defaults(self) -> RunOptions:
        """As `resolved`, without checking: costs nothing, for planning."""
        defaults = {"clients": DEFAULT_CLIENTS} | DEFAULTS[Task(split_spec(self.data)[0].task.of_net)]
        if is_whole(self.partition):
            defaults |= {"train_images": 0, "validation_images": 0, "test_images": 0}
        values = defaults | {name: value for name, value in vars(self).items() if value is not None}
        values.setdefault("task", str(split_spec(self.data)[0].task))
        values.setdefault("labels", nets.model_entry(values["model"]).labels[0])
        return RunOptions(**values)


def _filled(name: str) -> Any:
    """A field of `AskedOptions`, without its default: a resolved run must have a value."""
    return field(metadata=AskedOptions.__dataclass_fields__[name].metadata)


@dataclass(frozen=True, kw_only=True)
class RunOptions(AskedOptions):
    """The options of one run, made by `AskedOptions.resolved`: nothing is left open that resolving fills."""

    task: str = _filled("task")
    model: str = _filled("model")
    cut: str = _filled("cut")
    labels: str = _filled("labels")
    image_size: int = _filled("image_size")
    train_images: int = _filled("train_images")
    validation_images: int = _filled("validation_images")
    test_images: int = _filled("test_images")
    epochs: int = _filled("epochs")
    batch_size: int = _filled("batch_size")
    optimizer: str = _filled("optimizer")
    lr: float = _filled("lr")
    clients: int = _filled("clients")

    def check(self) -> None:
        """Refuses options that do not fit together, before any process is started.

        Raises:
            ConfigError: names values and remedy.
        """
        entry, net = split_spec(self.data)[0], nets.model_entry(self.model)
        if net.task != entry.task.of_net:
            fitting = ", ".join(
                name for name, other in nets.MODELS.items() if other.task == entry.task.of_net
            )
            raise ConfigError(
                f"model {self.model} is for {net.task}, data {entry.name} is for {entry.task}; use --model {fitting}"
            )
        self._check_task()
        with as_config_error():
            nets.validate_image_size(self.model, self.image_size, self.batch_size)
        self.data_config(), self.partition_config(), self.optimizer_config()
        parse_schedule(self.schedule, self.seed)
        self.weights_file()
        self.check_smoothing()
        if self.early_stop and not self.validation_images:
            raise ConfigError(
                f"early-stop {self.early_stop} looks at validation scores, and validation-images is 0; use more, or "
                "leave early-stop out"
            )
        self.check_detector()
        self.check_cut()

    def _check_task(self) -> None:
        """Refuses a task that neither data nor net are for, and an attack on one that no attack knows."""
        entry = split_spec(self.data)[0]
        if Task(self.task).of_net != entry.task.of_net:
            raise ConfigError(f"task {self.task} does not fit data {entry.name}, which is for {entry.task}")
        if self.is_lab() and self.task not in (Task.CLASSIFICATION, Task.SEGMENTATION):
            raise ConfigError(
                f"attack and recording know classes and masks, and the task is {self.task}; leave them out"
            )

    def weights_file(self) -> Path | None:
        """The file that the net starts from; torchvision's are downloaded where they are not there.

        Raises:
            ConfigError: there is no such file, or none that fits.
        """
        with as_config_error():
            return None if self.weights is None else weights_file(self.model, self.weights)

    def check_smoothing(self) -> None:
        """Refuses label smoothing where no label is a class."""
        if self.label_smoothing and not objective(self.task).smooths:
            raise ConfigError(
                f"label-smoothing is for classification, and {self.model} is for {self.task}; leave it out"
            )

    def check_cut(self) -> None:
        """Refuses a cut that the model does not have, and freezing or local norms that do not fit it."""
        with as_config_error(), torch.device("meta"):
            split = nets.build(
                self.model, cut=parse_cut(self.cut), num_outputs=2, labels=self.labels, width=self.width
            )
            if self.freeze is not None:
                freeze(split, frozen_names(split, self.freeze, self.model, self.width))
            if self.norms == LOCAL:
                check_local(split, self.model, self.cut)

    def check_detector(self) -> None:
        """Refuses a detector that cannot work with this task and these labels."""
        entry = nets.model_entry(self.model)
        view = ClientView(
            images=(entry.in_channels, self.image_size, self.image_size),
            smashed=(1, 1, 1),
            normalisation=entry.normalisation,
            task=self.task,
            num_classes=2,
            labels_shared=self.labels == "shared",
        )
        build_detector(self.detector_spec(), view)

    def auxiliary_images(self) -> int:
        """Images of the run's own source that the attacker is to own."""
        spec = self.attack_spec()
        return spec.needs.images if spec is not None and spec.needs.source == SAME_SOURCE else 0

    def first_query_round(self) -> int:
        """The round from which a lab's client passes an attacker's images through its bottom."""
        spec = self.attack_spec()
        rounds: int = self.epochs
        return max(1, rounds + 1 - (spec.needs.query_rounds if spec else 1))

    def first_test_round(self) -> int:
        """The round from which test images are scored: the last one, but in a lab, where attackers see them pass."""
        # Where a run may stop early nobody knows beforehand which round is the last, or the best.
        return 1 if self.test_every_round or self.early_stop or self.is_lab() else self.epochs

    def data_config(self) -> DataConfig:
        """The part that concerns images."""
        grades: Any = self.grades
        return DataConfig(
            spec=self.data,
            classes=grades,
            image_size=self.image_size,
            augment=self.augment,
            columns=self.columns,
            structure=self.structure,
            frame=self.frame,
        )

    def open_own(self, need: int, seed: int) -> Source:
        """Opens the run's data source; see `open_source`."""
        data = self.data_config()
        return open_source(
            data.spec,
            grades=data.classes,
            need=need,
            seed=seed,
            columns=data.columns,
            structure=data.structure,
            frame=data.frame,
            by_site=self.partition == "by-site",
            task=self.task,
        )

    def partition_config(self) -> PartitionConfig:
        """The part that concerns sharing images out."""
        return PartitionConfig(
            scheme=self.partition,
            train_images=self.train_images,
            validation_images=self.validation_images,
            test_images=self.test_images,
            held_out_images=self.held_out_images,
        )

    def optimizer_config(self) -> OptimizerConfig:
        """The part that concerns optimisation."""
        return OptimizerConfig(
            name=self.optimizer,
            lr=self.lr,
            lr_bottom=self.lr_bottom,
            weight_decay=self.weight_decay,
            clip=self.clip,
            rates=LearningRates(schedule=self.lr_schedule, warm_up=self.warm_up, rounds=self.epochs),
        )

    def agreement(self, num_classes: int) -> dict[str, str]:
        """The options that every rank must share, as strings, with the versions that must match."""
        shared = {o.name: str(getattr(self, o.name)) for o in fields(AskedOptions) if o.metadata.get("agree")}
        # A path differs from site to site; what is behind it must be of one kind.
        shared["data"] = split_spec(self.data)[0].name
        if (file := self.weights_file()) is not None:
            shared["weights"] = hashlib.sha256(file.read_bytes()).hexdigest()
        versions = {"protocol": str(PROTOCOL), "torch": torch.__version__, "suture": __version__}
        return shared | {"classes": str(num_classes)} | versions

    def site_agreement(self, classes: Sequence[str]) -> dict[str, str]:
        """The same among sites that have images of their own: how many, from where, is each site's business."""
        shared = {k: v for k, v in self.agreement(len(classes)).items() if k not in SITES_OWN}
        return shared | {CLASSES: written_classes(classes)}

    def terms(self, classes: Sequence[str] = ()) -> dict[str, str]:
        """What a site is told before it joins: `site_agreement`, without the classes where nobody has said them."""
        said = self.site_agreement(classes)
        return {name: text for name, text in said.items() if classes or name != CLASSES}
