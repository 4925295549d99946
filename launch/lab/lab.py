"""The lab: what a run with ``--attack`` does beyond an ordinary one, on one machine.

The server rank gets its attack and the attacker's own images; a client rank checks that none of them are its
own and, where the threat model says so, passes images through its bottom or leaks some. A real client knows
nothing of this.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import get_args

import numpy as np
import torch

import suture.models.registry as nets
from suture.launch import build
from suture.launch.options.model import parse_cut
from suture.launch.options.options import RunOptions
from suture.models.split import SplitModel
from suture.runtime.data.client_data import ClientData, Split
from suture.runtime.data.registry import open_source
from suture.runtime.errors import ConfigError
from suture.runtime.randomness import PUBLIC, Randomness
from suture.runtime.server.model import ServerModel
from suture.threats.attacks.auxiliary import Auxiliary, check_disjoint, read_auxiliary
from suture.threats.attacks.live import KNOWN_FILE, LEAKED_FILE, LiveAttack
from suture.threats.attacks.recording import RecordedAttack, Recording
from suture.threats.attacks.server_view import ServerView
from suture.threats.judging.replayed_client import ReplayedClient
from suture.threats.needs import SAME_SOURCE, Known, Needs

log = logging.getLogger(__name__)
ATTACK, RECORDING = "attack", "recording"


def arm(server: ServerModel, options: RunOptions, run: str, run_dir: Path, num_classes: int) -> None:
    """Gives the server its attack and its recording; without either it stays the honest server that it is."""
    attack = build_attack(options, server.top, num_classes, run_dir / ATTACK)
    if attack is not None:
        log.info("attacked run: %r", attack)
        server.attack = attack
    if options.recording != "off":
        recording = Recording(run_dir / RECORDING, recording_origin(options, run, server.smashed.shape))
        server.attack = RecordedAttack(server.attack, recording, options.recording)


def recording_origin(options: RunOptions, run: str, smashed_shape: tuple[int, ...]) -> dict[str, object]:
    """What a recording is bound to."""
    return {
        "run": run,
        "model": options.model,
        "cut": options.cut,
        "image_size": options.image_size,
        "smashed_shape": list(smashed_shape),
    }


def build_attack(
    options: RunOptions, top: torch.nn.Module, num_classes: int, folder: Path | None
) -> LiveAttack | None:
    """The attack of ``--attack`` with its images and its view of the server; None without one.

    Raises:
        ConfigError: it does not fit the run.
        DataError: its images cannot be had.
    """
    spec = options.attack_spec()
    if spec is None:
        return None
    classes = nets.model_entry(options.model).task == "classification"
    spec.needs.check(str(spec), labels_shared=options.labels == "shared", classes=classes)
    attack = spec.entry.plugin(
        spec.config, build_vantage(options, top, num_classes, folder), build_auxiliary(options)
    )
    assert isinstance(attack, LiveAttack), "the registry takes no other"
    return attack


def build_vantage(
    options: RunOptions, top: torch.nn.Module, num_classes: int, folder: Path | None
) -> ServerView:
    """What the server rank of this run knows by itself."""
    split = build.build_split(options, num_classes, PUBLIC)
    entry, size = nets.model_entry(options.model), options.image_size
    return ServerView(
        spec=str(options.attack or ""),
        smashed_shape=build.smashed_spec(options, split).shape,
        image_shape=(entry.in_channels, size, size),
        normalisation=entry.normalisation,
        num_classes=num_classes,
        labels_shared=options.labels == "shared",
        nonnegative=ends_in_relu(split, (entry.in_channels, size, size)),
        num_rounds=options.epochs,
        folder=folder,
        seed=options.seed,
        device=build.device_of(options, 0),
        top=top,
        fresh_bottom=lambda: (
            nets.build(
                entry.name,
                cut=parse_cut(options.cut),
                num_outputs=num_classes,
                labels=options.labels,
                width=options.width,
            ).bottom
        ),
    )


def ends_in_relu(split: SplitModel, image_shape: tuple[int, int, int]) -> bool:
    """Whether a bottom of this architecture, with any weights, gives no negative value."""
    noise = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
    modes = split.bottom.training
    with torch.no_grad():
        smashed = split.bottom.eval()(noise)[0]
    split.bottom.train(modes)
    return bool((smashed >= 0).all())


def build_auxiliary(options: RunOptions) -> Auxiliary | None:
    """The attacker's images; None where it owns none, or is handed private ones during the run."""
    spec = options.attack_spec()
    if spec is None or spec.needs.queries == "private" or not spec.needs.images:
        return None
    where, count = spec.needs.source, spec.needs.images
    entry = nets.model_entry(options.model)
    if where in (SAME_SOURCE, options.data):
        images = build.build_images(options, options.clients)
        source, origin = images.source, "the run's source, images that no client was dealt"
        taken = [i for s in images.shares for i in (*s.train, *s.validation, *s.test, *s.held_out)]
    else:
        source, taken = (
            open_source(where, grades=options.data_config().classes, need=count, seed=options.seed + 1),
            [],
        )
        origin = source.name
        if source.task != entry.task:
            raise ConfigError(
                f"aux {where} is for {source.task}, the run is for {entry.task}; use other aux images"
            )
    return read_auxiliary(
        source,
        count,
        image_size=options.image_size,
        channels=entry.in_channels,
        seed=options.seed,
        taken=taken,
        origin=origin,
    )


def prepare_client(options: RunOptions, data: ClientData, index: int, run_dir: Path, key: bytes) -> None:
    """A client's part in a lab's run: refuses shared images, then offers or leaks what the threat model says.

    Args:
        options: the run's.
        data: the client's.
        index: of the client.
        run_dir: RUN.
        key: the clients', by which the order of their images is drawn.

    Raises:
        DataError: auxiliary images are also this client's own; the overlap is counted.
    """
    spec = options.attack_spec()
    if spec is None:
        return
    auxiliary = build_auxiliary(options)
    if auxiliary is not None:
        for split in get_args(Split):
            check_disjoint(auxiliary.images, data.pixels(split), build.client_name(index))
    if index == 0:
        offer_queries(spec.needs, data, auxiliary, run_dir / ATTACK)
        if spec.needs.known is not None:
            tell_known(spec.needs.known, options, data, run_dir / ATTACK, key)


def offer_queries(needs: Needs, data: ClientData, auxiliary: Auxiliary | None, folder: Path) -> None:
    """Puts aside what a client is to pass through its bottom for the attack, and hands over what is the client's own.

    Args:
        needs: the attack's.
        data: the client's.
        auxiliary: the attacker's images.
        folder: RUN/attack.
    """
    if needs.queries == "auxiliary" and auxiliary is not None:
        data.offer(auxiliary.images)
    elif needs.queries == "private":
        leaked = data.pixels("train")[: needs.images]
        data.offer(leaked)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / LEAKED_FILE, leaked.numpy())


def tell_known(known: Known, options: RunOptions, data: ClientData, folder: Path, key: bytes) -> None:
    """Tells the attack the class of some of the first client's training images, and where in a round they come.

    Args:
        known: how many, and of which round.
        options: the run's.
        data: the first client's.
        folder: of the attack.
        key: the clients'.
    """
    name = build.client_name(0)
    client = ReplayedClient(name, data, Randomness(key, options.seed), options.batch_size)
    batches = client.train_batches(known.round)
    places = [
        (batch.number, row, label) for batch in batches for row, label in enumerate(batch.targets.tolist())
    ]
    order = np.random.default_rng([options.seed, known.draw, 0x1B]).permutation(len(places))
    of_class: dict[int, list[tuple[str, int, int, int]]] = {}
    for number, row, label in (places[index] for index in order):
        of_class.setdefault(label, []).append((name, number, row, label))
    told = [place for label in sorted(of_class) for place in of_class[label][: known.images]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KNOWN_FILE).write_text(json.dumps(told) + "\n", encoding="utf-8")
