"""The processes that a benchmark times: a server rank, client ranks, and the same net unsplit.

Each runs the program's own training (`session.take_part`, `Coordinator`, `Unsplit`) and no loop of its own. Its
pace is set from outside: a client's through its exchange (`paced`), the unsplit net's through its images, of which
`PacedData` hands out a block when it is told to, and notes the time until the trainer comes back for the next one.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import ssl
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import suture.models.registry as nets
from suture.launch import build
from suture.launch.host.cores import ranks_at_once, ready_torch
from suture.launch.host.sandbox_setup import enclose
from suture.launch.kits.kit import Kit
from suture.launch.options.options import RunOptions
from suture.launch.roles.site_server import ServeConfig
from suture.launch.roles.unsplit import Unsplit
from suture.launch.site.join import JoinConfig
from suture.runtime.client.client import Client
from suture.runtime.client.model import ClientModel
from suture.runtime.data.client_data import Batch, ClientData
from suture.runtime.data.partition import Share
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.exchange import OVER_RPC, Exchange
from suture.runtime.exchange.exchange import Trained
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc.client import GrpcClient, GrpcClientConfig
from suture.runtime.grpc.loop import LoopThread
from suture.runtime.grpc.server import GrpcServer, GrpcServerConfig
from suture.runtime.host.sandbox import Ports
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.records.observers import NoRecorder
from suture.runtime.rpc import calls
from suture.runtime.rpc.functions import RpcServer
from suture.runtime.rpc.transport import SERVER, Transport, TransportConfig
from suture.runtime.scheduler import Turn
from suture.runtime.server.membership import Membership, OpenMembership
from suture.runtime.session import take_part
from suture.runtime.wire.messages import SealedHandoff
from suture.studies.bench.plan import LEASE
from suture.studies.bench.rigs.shaped import Cable, enter

CLASSES = ("a", "b")
KEY = bytes(32)  # nobody's images are at stake


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a process is told: its part, and where the others are.

    Attributes:
        role: "server", "unsplit", or a client's name.
        rank: of a rank; 0 is the server.
        options: the run's, resolved.
        port: of the store, which is there on this host; or which the server opens, on a line.
        run_dir: where the server checkpoints.
        round_steps: steps that a client takes in each round, once told to; None for blocks of any length.
        cable: this part's end of a shaped line; None where all parts share this host's network.
        kit: this part's, for gRPC; None where it talks torch RPC.
        visits: of a client: so often it only joins and leaves.
    """

    role: str
    rank: int
    options: RunOptions
    port: int
    run_dir: Path
    round_steps: int | None = None
    cable: Cable | None = None
    kit: Kit | None = None
    visits: int = 0

    @property
    def server_address(self) -> str:
        """Where the server listens."""
        return "127.0.0.1" if self.cable is None else self.cable.server_address


def act(part: Part, line: Connection) -> None:
    """A process's whole life. Sends ("times", seconds of a block), at last ("report", dict), or ("error", text)."""
    logging.disable(logging.WARNING)  # a site that joins and leaves, as told, would be warned of
    warnings.filterwarnings("ignore", module=r"torch\..*")
    if part.cable is not None:
        enter(part.cable.namespace)
    here = 1 if part.role == "unsplit" else 1 + part.options.clients
    ready_torch(part.options, ranks_at_once(part.options, serves=part.role == "server", here=here))
    plays: dict[str, Callable[[Part, Connection], dict[str, Any]]]
    plays = {"server": _serve, "unsplit": _train_unsplit}
    try:
        play = _visit if part.visits else plays.get(part.role, _take_part)
        report = play(part, line)
        line.send(("report", report | {"peak_memory_bytes": peak_memory(), "own_memory_bytes": own_memory()}))
        code = 0
    except Exception:  # whatever it is, it must reach the person at the other end
        line.send(("error", f"{part.role}: {traceback.format_exc(limit=3)}"))
        code = 1
    line.close()
    # As in suture.cli: a clean exit can wait for RPC's threads for ever.
    os._exit(code)


class PacedData(ClientData):
    """One batch of noise, handed out again and again: in blocks, and only when told to.

    Args:
        options: the run's.
        line: brings the length of the next block (0: the turn is over) and takes its times.
    """

    def __init__(self, options: RunOptions, line: Connection) -> None:
        entry = nets.model_entry(options.model)
        self._line = line
        super().__init__(
            NoiseSource(Task(entry.task), options.batch_size),
            Share(tuple(range(options.batch_size)), (), ()),
            image_size=options.image_size,
            channels=entry.in_channels,
            normalisation=entry.normalisation,
            augment="none",
        )

    def train_batches(
        self, batch_size: int, order: torch.Generator, augmentation: Callable[[int], torch.Generator]
    ) -> Iterator[Batch]:
        batch, number = next(super().train_batches(batch_size, order, augmentation)), 0
        while length := self._line.recv():
            times = []
            for _ in range(length):
                begun = time.perf_counter()
                yield replace(batch, number=number)
                times.append(time.perf_counter() - begun)
                number += 1
            self._line.send(("times", times))
        if number == 0:  # a turn without a step cannot be committed
            yield batch


class NoiseData(PacedData):
    """The same batch, handed out as often as a turn has steps; the pace is the exchange's, see `paced`.

    Args:
        options: the run's.
        num_steps: batches a turn; None for as many as are asked for.
    """

    def __init__(self, options: RunOptions, line: Connection, num_steps: int | None) -> None:
        super().__init__(options, line)
        self._num_steps = num_steps

    def num_train_batches(self, batch_size: int) -> int:
        return self._num_steps or 1

    def train_batches(
        self, batch_size: int, order: torch.Generator, augmentation: Callable[[int], torch.Generator]
    ) -> Iterator[Batch]:
        batch = next(ClientData.train_batches(self, batch_size, order, augmentation))
        for number in itertools.count() if self._num_steps is None else range(self._num_steps):
            yield replace(batch, number=number)


def paced(kind: type[Exchange], line: Connection, in_blocks: bool) -> type[Any]:
    """An exchange that trains when it is told to, and says how long its steps took.

    A step is timed from where the one before has ended: what an exchange does ahead for the next one, while this
    one is away, is part of it.

    Args:
        kind: the exchange.
        line: brings the length of the next block (0: the turn is over), or the word to begin the turn.
        in_blocks: whether a turn goes on until it is told to end; else it has an end of its own.
    """

    class Paced(kind):  # type: ignore[valid-type, misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.handed: list[tuple[str, int, float]] = []
            """Hand-offs: "up" or "down", bytes, seconds; the server's work on them and its answer included."""

        def commit(self, handoff: SealedHandoff) -> None:
            begun = time.perf_counter()
            super().commit(handoff)
            self.handed.append(("up", handoff.ciphertext.nbytes, time.perf_counter() - begun))

        def fetch(self) -> SealedHandoff | None:
            begun = time.perf_counter()
            handoff: SealedHandoff | None = super().fetch()
            if handoff is not None:
                self.handed.append(("down", handoff.ciphertext.nbytes, time.perf_counter() - begun))
            return handoff

        def train(self, client: ClientModel, turn: Turn, batches: Iterable[Batch]) -> Generator[Trained]:
            with closing(super().train(client, turn, batches)) as steps:
                number = 0
                while length := line.recv():
                    times = []
                    for _ in range(length):
                        begun = time.perf_counter()
                        step = next(steps, None)
                        if step is None:
                            break
                        times.append(time.perf_counter() - begun)
                        number += 1
                        yield step
                    if not in_blocks:
                        # The generator's own end: what is still under way comes home, too.
                        yield from steps
                    line.send(("times", times))
                    if not in_blocks:
                        return
                if number == 0:  # a turn without a step cannot be committed
                    yield next(steps)

    return Paced


class StepTimes(NoRecorder):
    """Notes when the server had stepped, by turn."""

    def __init__(self) -> None:
        self.times: list[tuple[int, float]] = []

    def train_step(self, step: int, round: int, turn: int, client: str, loss: float, num_images: int) -> None:
        self.times.append((turn, time.perf_counter()))


class NoiseSource(Source):
    """Images of noise with targets of noise: a step's time does not depend on what is seen."""

    def __init__(self, task: Task, num_images: int) -> None:
        labels = [index % 2 if task is Task.CLASSIFICATION else None for index in range(num_images)]
        examples = [Example(f"noise{index}", f"noise{index}", label) for index, label in enumerate(labels)]
        super().__init__("noise", task, CLASSES, examples)

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (channels, size, size), dtype=torch.uint8, generator=generator)
        if self.task is Task.SEGMENTATION:
            return image, (torch.rand((1, size, size), generator=generator) < 0.5).float()
        return image, torch.tensor(self.examples[index].label)


def peak_memory(process: int | str = "self") -> int:
    """Peak resident memory of a process in bytes."""
    # Not getrusage: a new process starts with its parent's peak there.
    for entry in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if entry.startswith("VmHWM:"):
            return int(entry.split()[1]) * 1024
    return 0


def own_memory(process: int | str = "self") -> int:
    """Resident memory of a process in bytes that it shares with no other."""
    # A forked process shares what was imported before; one that torchrun starts shares next to nothing.
    entries = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(entry.split()[1]) * 1024 for entry in entries if entry.startswith("Private_"))


def _transport(part: Part) -> Transport:
    if part.cable is None:
        config = TransportConfig(host="127.0.0.1", port=part.port, rank=part.rank, hosted=True, timeout=LEASE)
    else:
        config = TransportConfig(
            host=part.server_address,
            port=part.port,
            rank=part.rank,
            one_host=False,
            interface=part.cable.interface,
            timeout=LEASE,
        )
    return Transport(config)


def _serve(part: Part, line: Connection) -> dict[str, Any]:
    num_classes = len(CLASSES)
    server = build.build_server(part.options, num_classes, torch.device("cpu"))
    expected = part.options.clients
    door = None if part.kit is None else OpenMembership(least=expected, grace=0.0)
    coordinator = build.build_coordinator(
        part.options,
        server,
        run="bench",
        run_dir=part.run_dir,
        num_classes=num_classes,
        membership=Membership(expected, part.options.agreement(num_classes), door),
    )
    steps = StepTimes()
    coordinator.begin(False, lambda step: steps)
    if part.kit is None:
        rpc = _transport(part)
        enclose(part.options, part.run_dir)
        served = RpcServer(coordinator)
        rpc.join(SERVER, served.table())
        served.serve(calls.ping)
        rpc.leave()
    else:
        config = GrpcServerConfig(
            host=part.server_address,
            port=part.port,
            credentials=part.kit.credentials(),
            sites=expected,
            lease=LEASE,
            line_timeout=ServeConfig.line_timeout,
        )
        enclose(part.options, part.run_dir, ports=Ports(listen=(part.port,)))
        listening = GrpcServer(config)
        listening.start()
        line.send(("listening", None))
        listening.play(coordinator, build.wire_limits(part.options, num_classes))
        listening.close()
    totals = coordinator.run_state.totals
    return {"bytes_up": totals.bytes_up, "bytes_down": totals.bytes_down, "steps": steps.times}


def _take_part(part: Part, line: Connection) -> dict[str, Any]:
    client = _client(part, line)
    in_blocks = part.round_steps is None
    exchange: Any
    if part.kit is None:
        rpc = _transport(part)
        enclose(part.options, part.run_dir / "clients" / part.role)
        rpc.join(part.role)
        exchange = paced(OVER_RPC[part.options.exchange], line, in_blocks)()
        goodbye = rpc.leave
    else:
        config = _line(part)
        enclose(part.options, part.run_dir / "clients" / part.role, ports=Ports(connect=(part.port,)))
        exchange = paced(GrpcExchange, line, in_blocks)(GrpcClient(config))
        goodbye = exchange.close
    take_part(Participant(client, exchange, NoClientObserver()), part.options.agreement(len(CLASSES)))
    goodbye()
    return {"handed": exchange.handed}


def _visit(part: Part, line: Connection) -> dict[str, Any]:
    """Joins and leaves again and again: seconds of a bare handshake, and from dialling to having joined."""
    assert part.kit is not None
    client, config = _client(part, line), _line(part)
    hello = client.hello(part.options.agreement(len(CLASSES)))
    handshakes, joins = [], []
    with closing(LoopThread()) as thread:
        for _ in range(part.visits):
            handshakes.append(_handshake_seconds(part))
            begun = time.perf_counter()
            exchange = GrpcExchange(GrpcClient(config, thread))
            exchange.join(hello)
            joins.append(time.perf_counter() - begun)
            exchange.leave()
            exchange.close()
    return {"handshakes": handshakes, "joins": joins}


def _handshake_seconds(part: Part) -> float:
    """Of TCP and mutual TLS 1.3, until the server has let this site in."""
    assert part.kit is not None
    files = part.kit.certificates
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    begun = time.perf_counter()
    with (
        socket.create_connection((part.server_address, part.port), timeout=LEASE) as tcp,
        context.wrap_socket(tcp, server_hostname=part.server_address) as tls,
    ):
        # HTTP/2's settings: in TLS 1.3 a client is done before the server has seen its certificate.
        tls.recv(1)
        return time.perf_counter() - begun


def _client(part: Part, line: Connection) -> Client:
    data = NoiseData(part.options, line, part.round_steps)
    return build.build_client(part.options, data, part.role, KEY, torch.device("cpu"), None)


def _line(part: Part) -> GrpcClientConfig:
    assert part.kit is not None
    return GrpcClientConfig(
        host=part.server_address,
        port=part.port,
        credentials=part.kit.credentials(),
        limits=build.wire_limits(part.options, len(CLASSES)),
        lease=LEASE,
        line_timeout=JoinConfig.line_timeout,
    )


def _train_unsplit(part: Part, line: Connection) -> dict[str, Any]:
    client = build.client_name(0)
    trainer = Unsplit(part.options, {client: PacedData(part.options, line)}, KEY, len(CLASSES))
    for batch in trainer.train_batches(1, client):
        trainer.train_step(1, client, batch)
    return {}
