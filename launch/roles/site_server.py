"""A run whose members are started each by itself: the server listens on one port, a site dials out to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

import suture.models.registry as nets
from suture.launch import build, keys
from suture.launch.host.address import check_line_timeout, parse_address
from suture.launch.host.cores import ready_torch
from suture.launch.host.logs import set_up
from suture.launch.host.sandbox_setup import enclose
from suture.launch.kits.kit import Kit
from suture.launch.kits.standing import ServerStanding
from suture.launch.options.classes import read_classes
from suture.launch.options.model import as_config_error
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.output import run_folder
from suture.launch.output.progress import Progress
from suture.launch.roles.conduct import conduct
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.consortium.credentials import Credentials
from suture.runtime.consortium.identity import Trust
from suture.runtime.data.registry import SOURCES
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError
from suture.runtime.grpc.server import GrpcServer, GrpcServerConfig
from suture.runtime.grpc.service import MUTUAL, check_mode
from suture.runtime.host.sandbox import Ports
from suture.runtime.server.membership import Membership, OpenMembership
from suture.runtime.wire.messages import Terms

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The server of a run that sites join by themselves.

    Attributes:
        kit: the server's.
        listen: HOST:PORT; the server listens there and nowhere else.
        min_clients: with so many sites the run begins when ``grace`` is over; None for all of ``--clients``.
        grace: seconds; see `OpenMembership`.
        line_timeout: seconds within which a cut cable is noticed.
        tls: "mutual", or "proxy" where one opens TLS on the way from any of the sites.
        revoked: the authority's list of revoked certificates; None for the kit's.
        classes: names of the run's classes, in their order; empty where the first site to join says its own.
    """

    kit: Kit
    listen: str
    min_clients: int | None = None
    grace: float = 60.0
    line_timeout: float = 15.0
    tls: str = MUTUAL
    revoked: Path | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parse_address(self.listen)
        check_mode(self.tls)
        check_line_timeout(self.line_timeout)

    @classmethod
    def given(cls, kit: Kit, values: Mapping[str, Any]) -> ServeConfig:
        """From what was given, now or when the run was begun; see `saved`.

        Raises:
            ConfigError: a value that cannot work, or that was saved and spoilt.
        """
        settings: dict[str, Any] = {"kit": kit, "listen": kit.server} | dict(values)
        try:
            if settings.get("revoked"):
                settings["revoked"] = Path(settings["revoked"])
            return cls(**settings)
        except TypeError as error:
            raise ConfigError(f"what the run's run.json says of the server is damaged: {error}") from None

    def saved(self) -> dict[str, Any]:
        """What differs from the usual, as it is written down with the run; its classes are kept apart."""
        apart = ("kit", "classes")
        values = {
            option.name: getattr(self, option.name) for option in fields(self) if option.name not in apart
        }
        usual = {option.name: option.default for option in fields(self)} | {"listen": self.kit.server}
        values = {name: value for name, value in values.items() if value != usual[name]}
        return values if self.revoked is None else values | {"revoked": str(self.revoked.absolute())}


def check_options(options: AskedOptions, command: str) -> None:
    """Refuses options that a run of sites does not have, or not at this end.

    Raises:
        ConfigError: names the option.
    """
    for option, what in (("attack", "none"), ("recording", "off"), ("unsplit", False)):
        if getattr(options, option) not in (None, what):
            raise ConfigError(f"{option} is for a lab, where one machine plays all roles: use suture train")
    if options.exchange != "fused":
        raise ConfigError(
            f"exchange {options.exchange} is for one machine or cluster (suture train); between sites it is fused: "
            "leave it out"
        )
    if options.interface is not None:
        raise ConfigError(
            "interface is for ranks that talk RPC; a site dials the server's address: leave it out"
        )
    if options.isolate == "on":
        raise ConfigError(
            "isolate is for suture train, whose ranks open the ports of RPC; between sites nobody does: leave it out"
        )
    others = ("schedule", "clients", "resume") if command == "join" else ("handoff_key", "class_weights")
    for option in others:
        given, usual = getattr(options, option), AskedOptions.__dataclass_fields__[option].default
        if given != usual:
            other = "serve" if command == "join" else "join"
            raise ConfigError(f"{option} is an option of suture {other}; leave it out here")
    if command == "serve" and options.clients is None:
        raise ConfigError("serve needs --clients N: how many sites the run waits for before it begins")


def with_task(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they were given to a server, which opens no images: of ``data`` only the task counts, which a net has.

    Raises:
        ConfigError: there is no such net.
    """
    if "data" in asked or not asked.get("model"):
        return dict(asked)
    with as_config_error():
        task = nets.model_entry(asked["model"]).task
    return {"data": next(entry.name for entry in SOURCES.values() if entry.task.of_net == task)} | dict(asked)


def check_classes(options: RunOptions, classes: tuple[str, ...]) -> None:
    """Refuses classes that the run's net cannot have.

    Args:
        options: the run's.
        classes: as ``--classes`` names them.

    Raises:
        ConfigError: a net that marks pixels has another number of classes than two.
    """
    task = Task(nets.model_entry(options.model).task)
    if classes and task is Task.SEGMENTATION and len(classes) != 2:
        raise ConfigError(
            f"--classes names {len(classes)} classes, and {options.model} marks one against its background; write "
            "them as --classes background,lung"
        )


def serve_site(options: RunOptions, config: ServeConfig) -> None:
    """The server, until the run is over.

    Raises:
        SutureError: the run could not start, or stopped.
    """
    progress = Progress()
    set_up("server", progress.console)
    keys.forget_key(options)
    credentials, standing = config.kit.credentials(), ServerStanding(config.kit, config.revoked)
    trust = Trust(credentials.authority, revocations=standing.revocations)
    torch.set_num_threads(1)  # threads that are older than the sandbox stay outside it
    place = run_folder.open_folder(options, build.new_run_id(), config.saved())
    if config.classes:
        place = _named_classes(place, config.classes)
    _enclose(options, config, place.path, standing)
    ready_torch(options)
    line = _line(options, config, place.run, credentials, standing)
    try:
        standing.start()
        line.start()
        log.info("listening on %s for %d sites", config.listen, options.clients)
        if not place.classes:
            place = _classes_of_first(line, place)
        line.settle(Terms(place.run, options.terms(place.classes)))
        _conduct(options, config, place, progress, line, trust)
    finally:
        line.close()
        standing.close()


def _enclose(options: RunOptions, config: ServeConfig, run_dir: Path, standing: ServerStanding) -> None:
    _, port = parse_address(config.listen)
    weights = [] if (file := options.weights_file()) is None else [file]
    # The kit stays readable: what the authority withdraws counts while the run goes on.
    read = [*standing.folders, *weights]
    enclose(options, run_dir, read=read, links=[run_dir / "figures"], ports=Ports(listen=(port,)))


def _line(
    options: RunOptions, config: ServeConfig, run: str, credentials: Credentials, standing: ServerStanding
) -> GrpcServer:
    host, port = parse_address(config.listen)
    return GrpcServer(
        GrpcServerConfig(
            host=host,
            port=port,
            credentials=credentials,
            sites=options.clients,
            lease=options.lease,
            line_timeout=config.line_timeout,
            tls=config.tls,
            terms=Terms(run, options.terms()),
            first_is_sound=lambda hello: read_classes(hello.agreement, hello.client),
            refuses=standing.refuses,
        )
    )


def _classes_of_first(line: GrpcServer, place: run_folder.RunFolder) -> run_folder.RunFolder:
    """The run's folder with the first site's classes: the server opens no data source, and nobody has named them."""
    hello = line.first_hello()
    place = run_folder.keep_classes(place, read_classes(hello.agreement, hello.client))
    log.info("%s is the first: the run's classes are %s", hello.client, ", ".join(place.classes))
    return place


def _conduct(
    options: RunOptions,
    config: ServeConfig,
    place: run_folder.RunFolder,
    progress: Progress,
    line: GrpcServer,
    trust: Trust,
) -> None:
    num_classes = len(place.classes)
    limits = build.wire_limits(options, num_classes)
    least = 1 if options.resume else config.min_clients or options.clients
    opening = OpenMembership(least=least, grace=config.grace)
    membership = Membership(options.clients, options.site_agreement(place.classes), opening)
    conduct(
        options,
        place,
        num_classes,
        progress,
        lambda coordinator: line.play(coordinator, limits),
        membership=membership,
        board=ServerBoard(trust, place.run),
    )


def _named_classes(place: run_folder.RunFolder, classes: tuple[str, ...]) -> run_folder.RunFolder:
    """The run's folder with the classes that ``--classes`` names.

    Raises:
        ConfigError: the run has others already.
    """
    if place.classes and place.classes != classes:
        raise ConfigError(
            f"{place.path} holds a run with the classes {', '.join(place.classes)}, got --classes {','.join(classes)}; "
            "leave --classes out, or name another --run-dir"
        )
    return place if place.classes else run_folder.keep_classes(place, classes)
