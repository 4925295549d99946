"""All roles of a run in one process: ``--exchange local``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import suture.models.registry as nets
from suture.launch import build, keys
from suture.launch.host.cores import ready_torch
from suture.launch.host.logs import set_up
from suture.launch.lab import lab
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.output import run_folder
from suture.launch.output.client_folder import AllOf, ClientFolder, client_folder
from suture.launch.output.client_record import ClientRecord
from suture.launch.output.progress import Progress
from suture.launch.roles.conduct import conduct
from suture.runtime.data.client_data import ClientData
from suture.runtime.exchange import LocalExchange
from suture.runtime.one_process import run_local
from suture.runtime.participant.participant import ClientObserver, NoClientObserver, Participant
from suture.runtime.records.observers import NoRecorder, Recorder
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.server.model import ServerModel
from suture.runtime.state.handoff import shared_key

log = logging.getLogger(__name__)


def run_in_one_process(asked: AskedOptions) -> None:
    """``--exchange local``: the server and all clients here, through the same protocol."""
    progress = Progress()
    set_up("local", progress.console)
    options = asked.resolved()
    ready_torch(options)
    images = build.build_images(options, options.clients)
    for note in images.source.notes:
        log.info("%s: %s", images.source.name, note)
    data = [build.build_data(options, images, index) for index in range(options.clients)]
    device = build.device_of(options, 0)
    num_classes = len(images.source.classes)
    given = keys.given_key(options)
    place = run_folder.open_folder(options, build.new_run_id())
    key = given or shared_key(keys.generated_key(place.path))
    for index, own in enumerate(data):
        lab.prepare_client(options, own, index, place.path, key)

    def play(coordinator: Coordinator) -> None:
        normalisation = nets.model_entry(options.model).normalisation
        task = images.source.task
        observer = [AllOf(ClientRecord(options), ClientFolder(options, normalisation, task)) for _ in data]
        _play(options, coordinator, data, key, device, observer, place.path)

    conduct(options, place, num_classes, progress, play)


def play_locally(
    options: RunOptions,
    key: bytes,
    run_dir: Path,
    *,
    resume: bool = False,
    arm: Callable[[ServerModel, int], None] | None = None,
    images: build.Images | None = None,
    recorder: Recorder | None = None,
) -> Coordinator:
    """A whole run in this process that shows nothing and keeps nothing but what it can be resumed from.

    Args:
        options: resolved, with ``clients`` set.
        key: the clients' hand-off key.
        run_dir: where the checkpoints go; exists.
        resume: go on from the newest checkpoint there.
        arm: gives the server, with that many classes, an attack; None for the honest server.
        images: what is trained on; None for what ``options`` say.
        recorder: is told the run's numbers.

    Returns:
        The coordinator of the run that has ended.
    """
    images = images or build.build_images(options, options.clients)
    data = [build.build_data(options, images, index) for index in range(options.clients)]
    device, num_classes = build.device_of(options, 0), len(images.source.classes)
    server = build.build_server(options, num_classes, device)
    if arm is not None:
        for index, own in enumerate(data):
            lab.prepare_client(options, own, index, run_dir, key)
        arm(server, num_classes)
        server.attack.prepare()
    coordinator = build.build_coordinator(
        options, server, run=build.new_run_id(), run_dir=run_dir, num_classes=num_classes
    )
    coordinator.begin(resume, lambda step: recorder or NoRecorder())
    _play(options, coordinator, data, key, device, [NoClientObserver() for _ in data], run_dir)
    server.attack.finish()
    return coordinator


def _play(
    options: RunOptions,
    coordinator: Coordinator,
    data: Sequence[ClientData],
    key: bytes,
    device: torch.device,
    observer: Sequence[ClientObserver],
    run_dir: Path,
) -> None:
    members = []
    for index, (images, keeps) in enumerate(zip(data, observer, strict=True)):
        name = build.client_name(index)
        own = client_folder(run_dir, name)
        client = build.build_client(options, images, name, key, device, None, folder=own)
        members.append(Participant(client, LocalExchange(coordinator), keeps))
    run_local(members, options.agreement(len(data[0].classes)))
