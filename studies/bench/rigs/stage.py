"""Real processes that stay alive together and take turns at being timed, so that noise hits all alike."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import socket
import tempfile
import time
from collections.abc import Iterable
from itertools import chain, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch.distributed as dist

from suture.launch import build
from suture.launch.kits.kit import Kit
from suture.launch.kits.provision import Project, provision
from suture.launch.options.options import RunOptions
from suture.runtime.errors import SutureError
from suture.runtime.rpc.transport import SERVER
from suture.studies.bench.plan import LEASE
from suture.studies.bench.rigs.actors import Part, act
from suture.studies.bench.rigs.shaped import ShapedLine

UNSPLIT = "unsplit"


class Stage:
    """A server rank, the clients of ``options`` and, on request, the unsplit net, each a process of its own.

    A context manager: no process is left when it ends.

    Args:
        options: the run's, resolved.
        unsplit: whether the unsplit net is there too.
        round_steps: steps of each client in a round, for `round`; None for `block`.
        line: what lies between server and clients; None where all share this host's network.
        carrier: "rpc" (torch RPC) or "grpc" (over mutual TLS, with certificates that are made for the purpose).
        visits: over gRPC, client0 alone is there and joins and leaves so often, for `visit`; the run never begins.
    """

    def __init__(
        self,
        options: RunOptions,
        *,
        unsplit: bool,
        round_steps: int | None = None,
        line: ShapedLine | None = None,
        carrier: str = "rpc",
        visits: int = 0,
    ) -> None:
        self.clients = [build.client_name(index) for index in range(1 if visits else options.clients)]
        self._options = options
        self._round_steps = round_steps
        self._line = line
        self._carrier, self._visits = carrier, visits
        self._ended = False
        self._roles = [SERVER, *self.clients, *([UNSPLIT] if unsplit else [])]
        self._processes: dict[str, multiprocessing.process.BaseProcess] = {}
        self._lines: dict[str, Connection] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="suture-bench-")

    def __enter__(self) -> Stage:
        # As torchrun sets it; each process then sets its own threads, as in training.
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        port = self._port()
        kits = self._kits(port) if self._carrier == "grpc" else {}
        # A process that has imported torch and nothing more is forked for each part: seconds saved a row.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["suture.studies.bench.rigs.actors", "torch._dynamo"])
        for rank, role in enumerate(self._roles):
            ours, theirs = context.Pipe()
            part = Part(
                role=role,
                rank=rank,
                options=self._options,
                port=port,
                run_dir=Path(self._folder.name),
                round_steps=self._round_steps,
                cable=None if self._line is None else self._line.end(role == SERVER),
                kit=kits.get(role),
                visits=0 if role == SERVER else self._visits,
            )
            process = context.Process(target=act, args=(part, theirs), name=role, daemon=True)
            process.start()
            theirs.close()
            self._processes[role], self._lines[role] = process, ours
            if role == SERVER and kits:
                self._hear(SERVER, "listening")
        return self

    def _port(self) -> int:
        """Of the ranks' store, or at which the server of gRPC will listen."""
        if self._line is not None:
            return self._line.new_port()
        if self._carrier == "grpc":
            return free_port()
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return int(self._store.port)

    def _kits(self, port: int) -> dict[str, Kit]:
        host = "127.0.0.1" if self._line is None else self._line.end(True).server_address
        project = Project(address=f"{host}:{port}", sites=tuple(self.clients))
        return provision(project, Path(self._folder.name) / "kits")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.join(5.0 if self._ended else 0.0)
            if process.is_alive():
                process.kill()
                process.join()
        for line in self._lines.values():
            line.close()
        self._folder.cleanup()

    def block(self, role: str, num_steps: int) -> list[float]:
        """Lets ``role`` take some steps while the others stand still; returns the seconds of each.

        Raises:
            SutureError: a process failed.
        """
        self._tell(role, num_steps)
        times: list[float] = self._hear(role, "times")
        return times

    def round(self) -> float:
        """Lets every client take its turn, in the run's own schedule; returns the seconds until the last has.

        Raises:
            SutureError: a process failed.
        """
        begun = time.perf_counter()
        for client in self.clients:
            self._tell(client, self._round_steps or 1)
        for client in self.clients:
            self._hear(client, "times")
        return time.perf_counter() - begun

    def cpu_seconds(self, roles: Iterable[str]) -> float:
        """Processor time that ``roles`` have used so far, all together."""
        return sum(_cpu_seconds(psutil.Process(self._processes[role].pid)) for role in roles)

    def idle_share(self, roles: Iterable[str], seconds: float, meanwhile: str | None) -> dict[str, float]:
        """The share of one core that each of ``roles`` uses while ``meanwhile`` trains (None: nobody does)."""
        watched = {role: psutil.Process(self._processes[role].pid) for role in roles}
        before, begun = {role: _cpu_seconds(process) for role, process in watched.items()}, time.monotonic()
        while (elapsed := time.monotonic() - begun) < seconds:
            if meanwhile is None:
                time.sleep(seconds - elapsed)
            else:
                self.block(meanwhile, 1)
        return {role: (_cpu_seconds(process) - before[role]) / elapsed for role, process in watched.items()}

    def finish(self) -> dict[str, dict[str, Any]]:
        """Ends the run; each process's report by role.

        Raises:
            SutureError: a process failed.
        """
        for role in self._roles:
            # A run of rounds ends by itself.
            if role != SERVER and (self._round_steps is None or role == UNSPLIT):
                self._tell(role, 0)
        found = {role: self._hear(role, "report") for role in self._roles}
        self._ended = True
        return found

    def visit(self) -> dict[str, Any]:
        """Waits until client0 has joined and left so often; the seconds that it noted.

        Raises:
            SutureError: a process failed.
        """
        found: dict[str, Any] = self._hear(self.clients[0], "report")
        return found

    def _tell(self, role: str, num_steps: int) -> None:
        try:
            self._lines[role].send(num_steps)
        except OSError:  # it has gone and closed its end
            raise SutureError(f"benchmark: {self._last_words(role)}") from None

    def _hear(self, role: str, kind: str) -> Any:
        """Waits for ``role``, with an eye on all: it would wait for ever for one that has died."""
        line, sentinels = self._lines[role], {p.sentinel: r for r, p in self._processes.items()}
        deadline = time.monotonic() + LEASE
        while not line.poll(0):
            ready = multiprocessing.connection.wait([line, *sentinels], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise SutureError(f"benchmark: {role} did not answer within {LEASE:g} s")
            for sentinel in ready:
                dead = sentinels.pop(sentinel, None) if isinstance(sentinel, int) else None
                if dead is None:
                    continue
                self._processes[dead].join()  # a sentinel can be early: the exit code comes with the join
                if self._processes[dead].exitcode != 0:
                    raise SutureError(f"benchmark: {self._last_words(dead)}")
        try:
            said, content = line.recv()
        except EOFError:
            raise SutureError(f"benchmark: {self._last_words(role)}") from None
        if said == "error":
            raise SutureError(f"benchmark: {content}")
        assert said == kind, f"{role} said {said}, expected {kind}"
        return content

    def _last_words(self, role: str) -> str:
        line = self._lines[role]
        try:
            while line.poll(0):
                said, content = line.recv()
                if said == "error":
                    return str(content)
        except (EOFError, OSError):
            pass
        self._processes[role].join(5.0)
        return f"{role} ended with code {self._processes[role].exitcode}"


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def seconds_by_line(steps: Iterable[tuple[int, float]], turns_each: int) -> list[list[float]]:
    """Seconds between a turn's steps, for each line over which so many turns were taken, in order.

    Args:
        steps: number of the turn, and when the server had stepped; a first turn, to warm up, is left out.
        turns_each: turns at each line.
    """
    turns: dict[int, list[float]] = {}
    for turn, moment in steps:
        turns.setdefault(turn, []).append(moment)
    timed = [[after - before for before, after in pairwise(moments)] for moments in list(turns.values())[1:]]
    return [list(chain(*timed[first : first + turns_each])) for first in range(0, len(timed), turns_each)]
