"""A client rank of a run, from its options to its last turn."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import suture.models.registry as nets
from suture.launch import build, keys
from suture.launch.host.cores import ready_torch
from suture.launch.host.logs import set_up
from suture.launch.host.sandbox_setup import enclose
from suture.launch.lab import lab
from suture.launch.options.options import RunOptions
from suture.launch.output.client_folder import AllOf, ClientFolder, client_folder
from suture.launch.output.client_record import ClientRecord
from suture.runtime.data.client_data import ClientData
from suture.runtime.exchange import OVER_RPC
from suture.runtime.host.sandbox import Ports
from suture.runtime.participant.participant import Participant
from suture.runtime.rpc.transport import Transport
from suture.runtime.session import take_part
from suture.runtime.state.handoff import shared_key

log = logging.getLogger(__name__)


def join(options: RunOptions, line: Transport, sharing: int) -> None:
    """A client rank; ``sharing`` as in `ready_torch`."""
    index = line.config.rank - 1
    name = build.client_name(index)
    set_up(name)
    images = build.build_images(options, options.clients)
    if index == 0:
        for note in images.source.notes:
            log.info("%s: %s", images.source.name, note)
    data = build.build_data(options, images, index)
    given = keys.given_key(options, line.config.one_host)
    line.publish(f"classes of {name}", str(len(data.classes)))
    run_dir = Path(line.hear("run_dir"))
    key = given or shared_key(keys.generated_key(run_dir))
    lab.prepare_client(options, data, index, run_dir, key)
    # Where one person's machine made the key for all clients there is no one to be protected from.
    memory = keys.memory_folder() if given is not None else None
    device = build.device_of(options, int(os.environ.get("LOCAL_RANK", "0")))
    # On another machine the server's path need not exist: what this client was told wins.
    elsewhere = options.run_dir is not None and not line.config.one_host
    own = client_folder(Path(options.run_dir or "") if elsewhere else run_dir, name)
    client = build.build_client(options, data, name, key, device, memory, folder=own)
    agreement = options.agreement(len(data.classes)) | {"run": line.hear("run")}
    kept = enter_folder(options, data, own, write=[memory] if memory is not None else [])
    ready_torch(options, sharing)
    line.join(name)
    observer = AllOf(ClientRecord(options, own), kept)
    take_part(Participant(client, OVER_RPC[options.exchange](), observer), agreement)


def enter_folder(
    options: RunOptions,
    data: ClientData,
    own: Path,
    *,
    read: Iterable[Path] = (),
    write: Iterable[Path] = (),
    ports: Ports | None = None,
) -> ClientFolder:
    """Makes and locks a client's own folder, then closes its sandbox. Whatever it needs of the disk it has read by now.

    Args:
        options: the run's.
        data: the client's images, in memory.
        own: RUN/clients/NAME.
        read: as in `enclose`, with ``write`` and ``ports``.

    Raises:
        ConfigError: as `ClientFolder.lock` and `enclose`.
    """
    folder = ClientFolder(options, nets.model_entry(options.model).normalisation, data.task, own)
    folder.lock()
    kept = f"{data.num_images()} images are in memory ({data.num_bytes() / 1e6:.2g} MB)"
    enclose(options, own, read=read, write=write, ports=ports, kept=kept)
    return folder
