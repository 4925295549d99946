"""A run whose members are started each by itself: the server waits for sites, a site looks for the server.

What a member does once it has been started; that it is started again after a crash is `supervisor`'s business.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import models.registry as nets
from launch import build, folder
from launch.address import interface_towards, parse_address
from launch.config import RunOptions, required
from launch.cores import ready_torch
from launch.enclosure import enclose
from launch.keepsakes import ClientFolder, client_folder
from launch.logs import set_up
from launch.progress import Progress
from launch.ranks import conduct
from runtime import calls, endpoints, transport
from runtime.coordinator import Coordinator
from runtime.entry import Door
from runtime.errors import ConfigError, PeerLostError, UnreachableError, WireError
from runtime.exchange import OVER_RPC
from runtime.members import Members, OpenDoor
from runtime.session import Member, take_part
from runtime.transport import Transport, TransportConfig

log = logging.getLogger(__name__)

_MOST_CLASSES = 1000
_SECONDS_BETWEEN_TRIES = 0.25


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The server of a run that sites join by themselves.

    Attributes:
        listen: HOST:PORT of the rendezvous; the server listens there and on no other address.
        min_clients: with so many sites the run begins when ``grace`` is over; None for all of ``--clients``.
        grace: seconds; see `OpenDoor`.
    """

    listen: str = "127.0.0.1:29500"
    min_clients: int | None = None
    grace: float = 60.0


@dataclass(frozen=True, kw_only=True)
class JoinConfig:
    """One site.

    Attributes:
        server: HOST:PORT where the server listens.
        name: the site's name: a letter, then up to 39 letters, digits or underscores.
        patience: seconds to look for a server that does not answer, at the start and after it went away.
    """

    server: str
    name: str
    patience: float = 600.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,39}", self.name) or self.name == transport.SERVER:
            raise ConfigError(
                "name must be a letter and then up to 39 letters, digits or underscores, and not 'server', "
                f"got {self.name!r}"
            )
        if not self.patience > 0:
            raise ConfigError(f"patience must be above 0 seconds, got {self.patience}")
        parse_address(self.server)


def check_options(options: RunOptions, command: str) -> None:
    """Refuses options that a run of sites does not have, or not at this end.

    Raises:
        ConfigError: names the option.
    """
    for option, what in (("attack", "none"), ("tape", "off"), ("unsplit", False)):
        if getattr(options, option) not in (None, what):
            raise ConfigError(f"{option} is for a lab, where one machine plays all roles: use suture train")
    if options.exchange == "local":
        raise ConfigError("exchange local plays all roles in one process: use suture train")
    for option in ("schedule", "clients", "resume", "tokens") if command == "join" else ("handoff_key",):
        given, usual = getattr(options, option), RunOptions.__dataclass_fields__[option].default
        if given != usual:
            other = "serve" if command == "join" else "join"
            raise ConfigError(f"{option} is an option of suture {other}; leave it out here")
    if command == "serve" and options.clients is None:
        raise ConfigError("serve needs --clients N: how many sites the run waits for before it begins")


def serve_site(options: RunOptions, config: ServeConfig) -> None:
    """The server, until the run is over. Takes up the run that --run-dir holds, if it holds one.

    Raises:
        SutureError: the run could not start, or stopped.
    """
    progress = Progress()
    set_up("server", progress.console)
    host, port = parse_address(config.listen)
    options = options.resolved()
    run_dir, num_clients = Path(required(options.run_dir)), required(options.clients)
    options = replace(options, resume=folder.holds_run(run_dir))
    tokens = build.given_tokens(options, one_host=False)
    assert tokens is not None
    opening = OpenDoor(least=1 if options.resume else config.min_clients or num_clients, grace=config.grace)
    torch.set_num_threads(1)  # threads that are older than the sandbox stay outside it
    line = Transport(
        TransportConfig(
            host=host,
            port=port,
            rank=transport.SERVER_RANK,
            bound=True,
            one_host=False,
            interface=options.interface or interface_towards(host, port),
            timeout=options.lease,
        )
    )
    try:
        log.info("listening on %s for %d sites", config.listen, num_clients)
        # The server opens no data source: the first site to join says which classes there are, and a run keeps them.
        classes = () if options.resume else _first_classes(line)
        place = folder.open_folder(options, build.new_run_id(), classes)
        classes = place.classes or _first_classes(line)
        server = build.build_server(options, len(classes), build.device_of(options, 0))

        def close() -> None:
            enclose(options, place.path, links=[place.path / "figures"])
            ready_torch(options)

        def play(coordinator: Coordinator) -> None:
            line.join(transport.SERVER)
            endpoints.serve_run(calls.knock)

        members = Members(num_clients, options.site_agreement(classes), opening)
        door = Door(place.run, tokens, line)
        conduct(options, server, place, len(classes), progress, play, close, members, door)
    finally:
        line.leave()


def _first_classes(line: Transport) -> tuple[str, ...]:
    while (said := line.heard("classes")) is None:
        time.sleep(0.2)
    try:
        classes = json.loads(said)
    except ValueError:
        classes = None
    if not isinstance(classes, list) or not 1 <= len(classes) <= _MOST_CLASSES:
        raise WireError(
            f"the first site to join said {said!r:.80} of its classes; refused: expected their names"
        )
    return tuple(f"{name!s:.80}" for name in classes)


def join_site(options: RunOptions, config: JoinConfig) -> None:
    """A site, until the run is over.

    Raises:
        UnreachableError: there was no server for as long as ``patience`` says.
        PeerLostError: the server went away, or took this site for lost: join again, in a process of its own.
        SutureError: the site was refused, or could not go on.
    """
    set_up(config.name)
    options = replace(options, clients=1).resolved()
    torch.set_num_threads(1)  # threads that are older than the sandbox stay outside it
    key = build.given_key(options, one_host=False)
    token = build.given_token(options, one_host=False)
    assert key is not None and token is not None
    images = build.build_site_images(options, config.name)
    for note in images.source.notes:
        log.info("%s: %s", images.source.name, note)
    data = build.build_data(options, images, 0)
    memory, device = build.memory_folder(), build.device_of(options, 0)
    client = build.build_client(options, data, config.name, key, device, memory)
    own = client_folder(Path(required(options.run_dir)), config.name)
    normalisation = nets.model_entry(required(options.model)).normalisation
    keepsakes = ClientFolder(options, normalisation, data.task, own)
    agreement = options.site_agreement(data.classes)  # reads --weights, which the sandbox will not let us do
    line = find_server(options, config)
    try:
        kept = f"{data.num_images()} images are in memory ({data.num_bytes() / 1e6:.2g} MB)"
        enclose(options, own, write=[memory], kept=kept)
        ready_torch(options)
        line.publish("classes", json.dumps(data.classes))
        rpc_name = f"{config.name}_{line.config.rank}"
        line.join(rpc_name)
        member = Member(client, OVER_RPC[options.exchange](line, token), keepsakes)
        take_part(member, agreement, rpc_name, config.patience)
    finally:
        line.leave()


def find_server(options: RunOptions, config: JoinConfig) -> Transport:
    """Knocks at the server's address until it answers, and takes a rank that nobody has had.

    Raises:
        UnreachableError: nobody answered for ``patience`` seconds, or somebody who is no Suture server.
    """
    host, port = parse_address(config.server)
    deadline = time.monotonic() + config.patience
    reason, said = "", False
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection((host, port), timeout=max(min(left, 5.0), 0.1)) as found:
                address = str(found.getpeername()[0])  # in the sandbox no name can be looked up again
            return Transport(
                TransportConfig(
                    host=address,
                    port=port,
                    rank=transport.NEW_RANK,
                    one_host=False,
                    interface=options.interface or interface_towards(host, port),
                    timeout=options.lease,
                )
            )
        except OSError as error:
            reason = error.strerror or str(error)
        except PeerLostError as error:
            reason = str(error)
        if left <= 0:
            raise UnreachableError(
                f"no server at {config.server} for {config.patience:g} s ({reason}); is the address right, is "
                "suture serve running there, and may this machine reach it? --patience SECONDS waits longer"
            )
        if not said:
            said = True
            log.warning(
                "no server at %s yet (%s); looking for it for %g s more", config.server, reason, max(left, 0)
            )
        time.sleep(min(_SECONDS_BETWEEN_TRIES, max(left, 0)))
