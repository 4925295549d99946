"""The server rank of a run, from its options to its last turn."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import replace

from suture.launch import build, keys
from suture.launch.host.cores import ready_torch
from suture.launch.host.logs import set_up
from suture.launch.host.sandbox_setup import enclose
from suture.launch.options.options import RunOptions
from suture.launch.output import run_folder, stopped
from suture.launch.output.progress import Progress
from suture.launch.roles.conduct import conduct
from suture.runtime.rpc import transport
from suture.runtime.rpc.functions import RpcServer
from suture.runtime.rpc.transport import Transport
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.server.membership import Membership

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
    if options.attack_spec() is not None:
        ready_torch(options)  # an attack may pre-train first; a lab's sandbox stays open

    def close() -> None:
        enclose(options, place.path, links=[place.path / "figures"])
        ready_torch(options, sharing)

    def play(coordinator: Coordinator) -> None:
        served = RpcServer(coordinator)
        line.join(transport.SERVER, served.table())
        served.serve()

    membership = Membership(options.clients, options.agreement(num_classes) | {"run": place.run})
    with ExitStack() as stack:
        if transport.LOOPBACK_STORE not in os.environ:  # else `suture train` says it
            again = stopped.torchrun_command(str(place.path))
            stack.enter_context(
                stopped.saying(lambda _: stopped.run_sentence(options, str(place.path), again, given))
            )
            stack.enter_context(stopped.sigterm_as_interrupt())
        conduct(options, place, num_classes, progress, play, close, membership)


def _restarted(options: RunOptions, line: Transport) -> RunOptions:
    """After a restart by torchrun's agent, goes on with the run that this job had begun."""
    begun = line.of_earlier_attempt("run_dir")
    if begun is None or options.resume:
        return options
    log.info("torchrun restarted this job: resuming %s", begun)
    return replace(options, run_dir=begun, resume=True)
