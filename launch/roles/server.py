"""What each rank of a run does, from options to exit: the server, a client, or all of them in one process."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from suture.launch import build, keys
from suture.launch.host.address import parse_address
from suture.launch.host.cores import ready_torch
from suture.launch.host.logs import set_up
from suture.launch.host.sandbox_setup import enclose
from suture.launch.kits.standing import ServerStanding
from suture.launch.lab import lab
from suture.launch.options.options import RunOptions
from suture.launch.output import run_folder, stopped
from suture.launch.output.progress import Progress
from suture.launch.roles.conduct import conduct
from suture.launch.roles.site_server import ServeConfig
from suture.launch.site.terms import read_classes
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.consortium.identity import Trust
from suture.runtime.errors import ConfigError
from suture.runtime.grpc.server import GrpcServer, GrpcServerConfig
from suture.runtime.host.sandbox import Ports
from suture.runtime.rpc import calls, transport
from suture.runtime.rpc.functions import RpcServer
from suture.runtime.rpc.transport import Transport
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.server.membership import Membership, OpenMembership
from suture.runtime.wire.messages import Terms

log = logging.getLogger(__name__)


def serve(options: RunOptions, line: Transport, sharing: int) -> None:
    """The server rank; ``sharing`` as in `ready_torch`."""
    progress = Progress()
    set_up("server", progress.console)
    options = _restarted(options, line)
    given = keys.KEY_VARIABLE in os.environ
    keys.forget_key(options)
    # The server opens no data source: how many classes there are, the clients say, each when it has its images.
    # Only then is there a folder, so that a run which could not begin leaves none.
    for index in range(options.clients):
        num_classes = int(line.hear(f"classes of {build.client_name(index)}"))
    place = run_folder.open_folder(options, build.new_run_id())
    line.publish("run", place.run)
    line.publish("run_dir", str(place.path.resolve()))
    server = build.build_server(options, num_classes, build.device_of(options, 0))
    lab.arm(server, options, place.run, place.path, num_classes)

    if options.attack_spec() is not None:
        ready_torch(options)  # an attack may pre-train first; a lab's sandbox stays open

    def close() -> None:
        enclose(options, place.path, links=[place.path / "figures"])
        ready_torch(options, sharing)

    def play(coordinator: Coordinator) -> None:
        served = RpcServer(coordinator)
        line.join(transport.SERVER, served.table())
        served.serve(calls.ping)

    membership = Membership(options.clients, options.agreement(num_classes) | {"run": place.run})
    with ExitStack() as stack:
        if transport.LOOPBACK_STORE not in os.environ:  # else `suture train` says it
            again = stopped.torchrun_command(str(place.path))
            stack.enter_context(
                stopped.saying(lambda _: stopped.run_sentence(options, str(place.path), again, given))
            )
            stack.enter_context(stopped.sigterm_as_interrupt())
        conduct(options, server, place, num_classes, progress, play, close, membership)


def _restarted(options: RunOptions, line: Transport) -> RunOptions:
    """After a restart by torchrun's agent, goes on with the run that this job had begun."""
    begun = line.of_earlier_attempt("run_dir")
    if begun is None or options.resume:
        return options
    log.info("torchrun restarted this job: resuming %s", begun)
    return replace(options, run_dir=begun, resume=True)


def serve_site(options: RunOptions, config: ServeConfig) -> None:
    """The server, until the run is over.

    Raises:
        SutureError: the run could not start, or stopped.
    """
    progress = Progress()
    set_up("server", progress.console)
    host, port = parse_address(config.listen)
    keys.forget_key(options)
    opening = OpenMembership(
        least=1 if options.resume else config.min_clients or options.clients, grace=config.grace
    )
    credentials, standing = config.kit.credentials(), ServerStanding(config.kit, config.revoked)
    torch.set_num_threads(1)  # threads that are older than the sandbox stay outside it
    place = run_folder.open_folder(options, build.new_run_id(), config.saved())
    if config.classes:
        place = _named_classes(place, config.classes)
    weights = [] if options.weights is None else [Path(options.weights)]
    # The kit stays readable: what the authority withdraws counts while the run goes on.
    read = [*standing.folders, *weights]
    enclose(options, place.path, read=read, links=[place.path / "figures"], ports=Ports(listen=(port,)))
    ready_torch(options)
    line = GrpcServer(
        GrpcServerConfig(
            host=host,
            port=port,
            credentials=credentials,
            sites=options.clients,
            lease=options.lease,
            line_timeout=config.line_timeout,
            tls=config.tls,
            terms=Terms(place.run, options.terms()),
            first_is_sound=lambda hello: read_classes(hello.agreement, hello.client),
            refuses=standing.refuses,
        )
    )
    try:
        standing.start()
        line.start()
        log.info("listening on %s for %d sites", config.listen, options.clients)
        # The server opens no data source: where nobody has named the classes, the first site says its own.
        if not place.classes:
            hello = line.first_hello()
            place = run_folder.keep_classes(place, read_classes(hello.agreement, hello.client))
            log.info("%s is the first: the run's classes are %s", hello.client, ", ".join(place.classes))
        line.settle(Terms(place.run, options.terms(place.classes)))
        num_classes = len(place.classes)
        server = build.build_server(options, num_classes, build.device_of(options, 0))
        limits = build.wire_limits(options, num_classes)

        def play(coordinator: Coordinator) -> None:
            line.play(coordinator, limits)

        membership = Membership(options.clients, options.site_agreement(place.classes), opening)
        board = ServerBoard(Trust(credentials.authority, revocations=standing.revocations), place.run)
        conduct(options, server, place, num_classes, progress, play, membership=membership, board=board)
    finally:
        line.close()
        standing.close()


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
