"""From options to objects: the only module that knows how a run's parts fit together.

Nothing here talks to another process; each rank builds what it needs and no more: the server never opens a data
source, a client never builds a top's optimizer.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import suture.models.registry as nets
from suture.launch.options.model import as_config_error, parse_cut
from suture.launch.options.options import RunOptions
from suture.models.freezing import freeze, frozen_names
from suture.models.precision import has_bf16, to_bf16
from suture.models.pretrained import IMAGENET, initial_state_dict
from suture.models.split import SplitModel
from suture.models.weights import final_layer
from suture.runtime.client.client import Client
from suture.runtime.client.model import ClientConfig, ClientModel
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.consortium.site import SiteConsortium
from suture.runtime.data.client_data import ClientData
from suture.runtime.data.partition import Share, partition
from suture.runtime.data.source import Source, Task
from suture.runtime.data.whole import is_whole
from suture.runtime.errors import ConfigError, DataError
from suture.runtime.grpc.chunks import SMALL, Limits
from suture.runtime.host.unpacking import zip_bomb
from suture.runtime.randomness import PUBLIC, Randomness
from suture.runtime.records.observers import Watcher
from suture.runtime.scheduler import parse_schedule
from suture.runtime.server.coordinator import Coordinator, RunConfig
from suture.runtime.server.membership import Membership
from suture.runtime.server.model import ServerModel
from suture.runtime.server.run_state import RunState
from suture.runtime.server.turn_log import TurnLog
from suture.runtime.state.checkpoint import Checkpoints, NoCheckpoints
from suture.runtime.training.objectives import objective
from suture.runtime.wire.checks import TensorSpec
from suture.threats.client_view import ClientView
from suture.threats.registry import build_defence, build_detector

log = logging.getLogger(__name__)
NORMS_FOLDER = "norms"
"""Below RUN/clients/NAME, with ``--norms local``: what the client keeps to itself, file by file."""
_DRAWN = 20  # images a client that a drawn source, which has no end, makes where all are to be used


def client_name(index: int) -> str:
    """The name of the client of rank ``index + 1`` under torchrun."""
    return f"client{index}"


def device_of(options: RunOptions, local_rank: int) -> torch.device:
    """The device of a rank: its own GPU where there are any and ``--device`` allows it.

    Raises:
        ConfigError: cuda was asked for and there is none, or bf16 and the device has none.
    """
    device = _device_of(options, local_rank)
    if options.precision == "bf16" and not has_bf16(device.type):
        raise ConfigError(
            f"precision is bf16, and this machine's {device.type} has none; use --precision fp32"
        )
    return device


def _device_of(options: RunOptions, local_rank: int) -> torch.device:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU here; use --device cpu or auto")
    if options.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


@dataclass(frozen=True)
class Images:
    """A data source and how it was shared out."""

    source: Source
    shares: tuple[Share, ...]


def build_images(options: RunOptions, num_clients: int) -> Images:
    """Opens the data source and shares it out; reads no picture."""
    config = options.partition_config()
    each = config.train_images + config.validation_images + config.test_images + config.held_out_images
    need = num_clients * (_DRAWN if is_whole(config.scheme) else each) + (
        options.auxiliary_images() if not options.unsplit else 0
    )
    source = options.open_own(need, options.seed)
    if len(source.classes) < 2:  # a site of several may have one: the others have the run's other classes
        raise DataError(
            f"{source.name} holds pictures of one class, {source.classes[0]!r}, and a run needs 2; sort them by class"
        )
    return Images(source, partition(source, config, num_clients, options.seed))


def build_site_images(options: RunOptions, name: str) -> Images:
    """A site's own source where it asks for numbers of images, balanced; reads no picture."""
    return build_images(replace(options, seed=site_seed(options, name)), 1)


def site_seed(options: RunOptions, name: str) -> int:
    """The seed of what a site of that name draws of its own: its division, and its images where they are drawn."""
    # Drawn sources are drawn from the seed: with the site's name in it, two sites do not draw the same patients.
    named = hashlib.sha256(f"suture/site/{options.seed}/{name}".encode()).digest()
    return int.from_bytes(named[:4], "big")


def build_split(options: RunOptions, num_classes: int, secret: bytes) -> SplitModel:
    """The whole net's parts. A part's initial weights follow from the generator that ``secret`` allows.

    Args:
        secret: the hand-off key at a client; at the server ``PUBLIC``, with which bottom and head come out
            other than the clients' own: the server's copies of them are thrown away.
    """
    hidden, public = Randomness(secret, options.seed), Randomness(PUBLIC, options.seed)
    entry = nets.model_entry(options.model)
    with as_config_error():
        split = nets.build(
            entry.name,
            cut=parse_cut(options.cut),
            num_outputs=objective(options.task).num_outputs(num_classes),
            labels=options.labels,
            width=options.width,
            init=lambda part: (public if part == "top" else hidden).reseed("initial weights", part),
        )
        if options.weights is not None:
            _start_from(split, options)
        if options.freeze is not None:
            freeze(split, frozen_names(split, options.freeze, options.model, options.width))
    if options.precision == "bf16":
        to_bf16(split)
    return split


def _start_from(split: SplitModel, options: RunOptions) -> None:
    """Loads the weights that the options name."""
    assert options.weights is not None
    if options.weights != IMAGENET and (reason := zip_bomb(Path(options.weights))):
        raise ConfigError(f"cannot read weights from {options.weights}: {reason}; give others")
    if not nets.load_weights(split, initial_state_dict(options.model, options.weights)):
        log.info(
            "weights %s: the final layer %s is newly drawn, for it has none with as many outputs",
            options.weights,
            final_layer(split),
        )


def smashed_spec(options: RunOptions, split: SplitModel) -> TensorSpec:
    """What smashed data must look like on the wire."""
    shape = nets.smashed_shape(split, options.image_size)
    return TensorSpec(shape, torch.float32, options.batch_size)


def output_spec(options: RunOptions, split: SplitModel) -> TensorSpec:
    """What the top's output must look like on the wire."""
    shape = nets.top_output_shape(split, options.image_size)
    return TensorSpec(shape, torch.float32, options.batch_size)


def wire_limits(options: RunOptions, num_classes: int) -> Limits:
    """The most bytes that the run's messages have, with head-room; computes nothing."""
    with torch.device("meta"):
        split = build_split(options, num_classes, PUBLIC)
    own = [split.bottom] if split.head is None else [split.bottom, split.head]
    batch = max(_num_bytes(spec) for spec in (smashed_spec(options, split), output_spec(options, split)))
    parts, top = sum(map(_state_bytes, own)), _state_bytes(split.top)
    # Twice a batch: topk sends a place beside each value. Four times the parts: weights and two moments.
    handoff = 4 * parts + SMALL + (_DEFENCE_BYTES if options.defence_specs() else 0)
    return Limits(batch=2 * batch + SMALL, handoff=handoff, release=2 * top + handoff + SMALL)


_DEFENCE_BYTES = 64 * 2**20
"""What a defence's own net and its moments may add to a hand-off."""


def _num_bytes(spec: TensorSpec) -> int:
    return spec.max_batch * math.prod(spec.shape) * spec.dtype.itemsize


def _state_bytes(part: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in part.state_dict().values())


def build_server(options: RunOptions, num_classes: int, device: torch.device) -> ServerModel:
    """The server's half, with nothing of a bottom or a head left in it."""
    split = build_split(options, num_classes, PUBLIC)
    shared = options.labels == "shared"
    top, config = split.top.to(device), options.optimizer_config()
    return ServerModel(
        top,
        config.build_by_part({"top": top}),
        smashed=smashed_spec(options, split),
        labels=objective(options.task).labels(num_classes, options.batch_size) if shared else None,
        task=options.task,
        seed=options.seed,
        device=device,
        wire=options.wire,
        rates=config.rates,
        label_smoothing=options.label_smoothing,
    )


def build_coordinator(
    options: RunOptions,
    server: ServerModel,
    *,
    run: str,
    run_dir: Path,
    num_classes: int,
    watcher: Watcher | None = None,
    membership: Membership | None = None,
    board: ServerBoard | None = None,
) -> Coordinator:
    """The run at the server, not yet begun; ``membership`` where they are others than the ranks of one start, ``board``
    where they sign.
    """
    turn_log = TurnLog(parse_schedule(options.schedule, options.seed), options.epochs)
    kept = NoCheckpoints if options.checkpoints == "off" else Checkpoints
    checkpoints = kept(run_dir / "checkpoints")
    best_by = objective(options.task).metrics
    run_state = RunState(run, run_dir, server, turn_log, checkpoints, best_by, board, options.early_stop)
    if membership is None:
        membership = Membership(options.clients, options.agreement(num_classes))
    config = RunConfig(
        run=run,
        run_dir=run_dir,
        lease=options.lease,
        release_top=options.release_top,
        seed=options.seed,
        race=options.race,
        in_flight=2 if options.overlap else 1,
    )
    return Coordinator(run_state, membership, config, watcher)


def build_data(options: RunOptions, images: Images, index: int) -> ClientData:
    """One client's images, read into memory."""
    entry = nets.model_entry(options.model)
    return ClientData(
        images.source,
        images.shares[index],
        image_size=options.image_size,
        channels=entry.in_channels,
        normalisation=entry.normalisation,
        augment=options.augment,
    )


def class_weights(options: RunOptions, data: ClientData) -> tuple[float, ...] | None:
    """weights_K by which the rarer classes count for more, see `Objective.balanced`; None for equal ones."""
    if options.class_weights == "none":
        return None
    if data.task is Task.SEGMENTATION:
        raise ConfigError("class_weights is for classification; Dice already balances lung and background")
    if not data.share.train:
        return None  # it only evaluates, and scores weigh no class
    return objective(data.task).balanced(data.class_counts("train"), len(data.share.train))


def client_view(options: RunOptions, split: SplitModel, data: ClientData) -> ClientView:
    """What a defence or detector is told of the run."""
    entry = nets.model_entry(options.model)
    size = options.image_size
    return ClientView(
        images=(entry.in_channels, size, size),
        smashed=smashed_spec(options, split).shape,
        normalisation=entry.normalisation,
        task=options.task,
        num_classes=len(data.classes),
        labels_shared=options.labels == "shared",
    )


@dataclass(frozen=True)
class SiteOwn:
    """What a client has between hospitals, and not on one person's machines.

    Attributes:
        secret: what it draws everything from but initial weights.
        consortium: whom it signs for and believes; None where its turns are only played again.
        repeats: how often one round's pass may be asked for again; None for any number.
    """

    secret: bytes = field(repr=False)
    consortium: SiteConsortium | None
    repeats: int | None


def build_client(
    options: RunOptions,
    data: ClientData,
    name: str,
    key: bytes,
    device: torch.device,
    memory: Path | None,
    own: SiteOwn | None = None,
    folder: Path | None = None,
) -> Client:
    """One client, in its own process.

    Args:
        options: the run's.
        data: its images.
        name: the member's.
        key: what initial weights are drawn from; where it is no site also what everything else is.
        device: where it computes.
        memory: where it remembers what it has seen; see `ClientConfig`.
        own: what a site has of its own.
        folder: RUN/clients/NAME, for what it keeps of a run to go on with; None to keep nothing.
    """
    split = build_split(options, len(data.classes), key)
    view = client_view(options, split, data)
    initial = Randomness(key, options.seed)
    randomness = initial if own is None else Randomness(own.secret, options.seed)
    config = ClientConfig(
        name=name,
        labels_shared=options.labels == "shared",
        batch_size=options.batch_size,
        optimizer=options.optimizer_config(),
        class_weights=class_weights(options, data),
        label_smoothing=options.label_smoothing,
        prox=options.prox,
        accept_rollback=options.accept_rollback,
        memory=memory,
        on_alarm=options.on_alarm,
        wire=options.wire,
        overlap=options.overlap,
        offered_from=options.first_query_round(),
        tested_from=options.first_test_round(),
        norms=options.norms,
        norms_folder=None if folder is None else folder / NORMS_FOLDER,
        rounds=None if own is None else options.epochs,
        repeats=None if own is None else own.repeats,
    )
    model = ClientModel(
        split,
        data,
        config,
        randomness=randomness,
        output=output_spec(options, split),
        defence=build_defence(
            options.defence_specs(),
            view,
            lambda name: initial.reseed("initial weights", f"defence/{name}"),
        ),
        detector=build_detector(options.detector_spec(), view),
        device=device,
    )
    return Client(model, key, None if own is None else own.consortium)


def new_run_id() -> str:
    """A run's id: random, so that no two runs share a hand-off."""
    return secrets.token_hex(8)
