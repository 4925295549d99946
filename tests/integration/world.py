"""A rank of a world of real processes that plays many small runs, one after the other: one torch import for all.

    python world.py RANK PORT CASES.json OUT      (rank 0 serves, the others are clients)

Every case is a dict of `RunOptions`, and "carrier" ("rpc", the default, or "grpc": kits are in OUT/kits); each
rank writes OUT/<rank>.json: per case what it has to show.
"""

import inspect
import json
import os
import socket
import sys
import time
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.distributed import rpc
from trace_step import Trace

from suture.launch import build
from suture.launch.kits.kit import Kit
from suture.launch.options.options import AskedOptions, RunOptions
from suture.runtime.consortium.credentials import Credentials, Role
from suture.runtime.data.client_data import Batch, ClientData
from suture.runtime.exchange import OVER_RPC
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc.client import GrpcClient, GrpcClientConfig
from suture.runtime.grpc.server import GrpcServer, GrpcServerConfig
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.records.observers import NoRecorder
from suture.runtime.rpc import transport
from suture.runtime.rpc.functions import RpcServer
from suture.runtime.rpc.lockdown import Lockdown
from suture.runtime.rpc.transport import Transport, TransportConfig
from suture.runtime.scheduler import Turn
from suture.runtime.session import take_part

KEY = bytes(range(32))
python_calls: list[str] = []
TRACES: list[Trace] = []


def main() -> None:
    rank, port, cases, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    line = Transport(TransportConfig(host="127.0.0.1", port=port, rank=rank, timeout=60))
    name = transport.SERVER if rank == 0 else build.client_name(rank - 1)
    count_python_calls()
    line.join(name)
    joined = len(python_calls)
    results = []
    for number, case in enumerate(json.loads(cases.read_text())):
        carrier, traced = case.pop("carrier", "rpc"), case.pop("trace", False)
        trace = Trace() if traced else None
        if trace is not None:
            TRACES.append(trace)
            trace.start()
        options = AskedOptions(**case).resolved()
        torch.set_num_threads(1)
        if rank > options.clients:
            results.append({})
        elif rank == 0:
            results.append(serve(options, line, number, out, carrier, trace))
        else:
            results.append(take(options, line, number, rank - 1, out, carrier, trace))
    (out / f"{rank}.json").write_text(json.dumps({"cases": results, "calls": python_calls[joined:]}))
    # Nobody leaves before everybody is done: the server's store is the clients' too.
    line.publish(f"done{rank}", "1")
    for other in range(int(os.environ["WORLD"])):
        line.hear(f"done{other}")
    line.leave()
    os._exit(0)


def count_python_calls() -> None:
    """Notes the name of every Python function that a peer makes this process run."""
    run = Lockdown.run_function

    def noted(wall, python_udf):
        if TRACES:  # a thread of RPC's own, which Python has not started
            sys.setprofile(TRACES[-1].profile)
        python_calls.append(getattr(python_udf, "func", noted).__name__)
        return run(wall, python_udf)

    noted.__signature__ = inspect.signature(run)
    Lockdown.run_function = noted


def serve(
    options: RunOptions, line: Transport, number: int, out: Path, carrier: str, trace: Trace | None
) -> dict:
    images = build.build_images(options, options.clients)
    num_classes = len(images.source.classes)
    server = build.build_server(options, num_classes, torch.device("cpu"))
    run_dir = out / f"case{number}"
    run_dir.mkdir()
    coordinator = build.build_coordinator(
        options, server, run="run", run_dir=run_dir, num_classes=num_classes
    )
    steps = CountingRecorder(trace)
    coordinator.begin(False, lambda step: steps)
    if carrier == "grpc":
        port = free_port()
        own = credentials(out, "server", Role.SERVER)
        server_line = GrpcServer(
            GrpcServerConfig(
                host="127.0.0.1", port=port, credentials=own, sites=options.clients, lease=60, line_timeout=15
            )
        )
        server_line.start()
        line.publish(f"open{number}", str(port))
        server_line.play(coordinator, build.wire_limits(options, num_classes))
        server_line.close()
    else:
        served = RpcServer(coordinator)
        line.offer(served.table())
        line.publish(f"open{number}", "1")
        served.serve()
    line.publish(f"closed{number}", "1")
    return {
        "owned_while_training": sorted(steps.owned),
        "owned_after_leaving": owned_once_all_have_left(),
        "entered": sorted(trace.entered) if trace is not None else [],
        "weights_sha256": coordinator.weights_sha256(),
        "train_loss": coordinator.run_state.train_loss,
        "scores": coordinator.run_state.scores,
    }


class CountingRecorder(NoRecorder):
    """Counts the objects that this process owns for others, at each training step."""

    def __init__(self, trace: Trace | None) -> None:
        self.owned: set[int] = set()
        self._trace, self._steps = trace, 0

    def train_step(self, step: int, round: int, turn: int, client: str, loss: float, num_images: int) -> None:
        self.owned.add(num_owned())
        self._steps += 1
        if self._trace is not None:
            self._trace.is_on = self._steps == 1  # from the end of one step to that of the next


class StepWatcher(NoClientObserver):
    """Turns a trace on for the second step of a client, from the end of the first on."""

    def __init__(self, trace: Trace | None) -> None:
        self._trace, self._steps = trace, 0

    def trained(self, turn: Turn, batch: Batch, loss: float) -> None:
        self._steps += 1
        if self._trace is not None:
            self._trace.is_on = self._steps == 1


def num_owned() -> int:
    """Objects that remote references of other ranks keep alive in this process."""
    return int(rpc._rref_context_get_debug_info()["num_owner_rrefs"])


def owned_once_all_have_left(seconds: float = 10.0) -> int:
    """A reference's end is a message of its own: it may come a moment after the goodbye."""
    deadline = time.monotonic() + seconds
    while num_owned() and time.monotonic() < deadline:
        time.sleep(0.01)
    return num_owned()


def take(
    options: RunOptions,
    line: Transport,
    number: int,
    index: int,
    out: Path,
    carrier: str,
    trace: Trace | None,
) -> dict:
    images = build.build_images(options, options.clients)
    data = build.build_data(options, images, index)
    name = build.client_name(index)
    client = build.build_client(options, data, name, KEY, torch.device("cpu"), None)
    opened = int(line.hear(f"open{number}"))
    exchange = OVER_RPC[options.exchange]() if carrier == "rpc" else dialled(options, data, name, opened, out)
    take_part(Participant(client, exchange, StepWatcher(trace)), options.agreement(len(data.classes)))
    if carrier == "grpc":
        exchange.close()
    line.hear(f"closed{number}")
    return {"digests": client.digests(), "entered": sorted(trace.entered) if trace is not None else []}


def dialled(options: RunOptions, data: ClientData, name: str, port: int, out: Path) -> GrpcExchange:
    """A client's way to the server over gRPC."""
    limits, own = build.wire_limits(options, len(data.classes)), credentials(out, name, Role.CLIENT)
    config = GrpcClientConfig(
        host="127.0.0.1", port=port, credentials=own, limits=limits, lease=60, line_timeout=15
    )
    return GrpcExchange(GrpcClient(config))


def credentials(out: Path, name: str, role: Role) -> Credentials:
    """Of the kit that the test had made for ``name``."""
    return Kit.read(out / "kits" / name, role).credentials()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
