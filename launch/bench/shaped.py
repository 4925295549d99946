"""A line between two network namespaces of this host: so many Mbit/s (tbf) and so many milliseconds (a relay).

The server's namespace and the clients' are joined through a third one, in which a process passes frames on, each
after the latency (the kernel's own netem is missing in many containers). Frames travel in both directions through a
token bucket at the sender's end. Needs root.
"""

from __future__ import annotations

import ctypes
import heapq
import multiprocessing
import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from runtime.errors import SutureError

_SUBNET = "10.97.7"
_CLONE_NEWNET = 0x40000000
_PACKET_VNET_HDR, _SOL_PACKET, _ETH_P_ALL = 15, 263, 3
_FRAME = 1 << 17
_BURST = "128kb"  # what the bucket holds: above one segment that the kernel has not cut into packets yet
_QUEUE = "400ms"  # how long a packet may wait in it


@dataclass(frozen=True, kw_only=True)
class Cable:
    """One end of a line.

    Attributes:
        namespace: whose network this end is in.
        interface: its name there.
        server_address: where the server is.
    """

    namespace: str
    interface: str = "line0"
    server_address: str = f"{_SUBNET}.1"


def why_not() -> str:
    """Why there can be no such line here; empty where there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        return "needs root and iproute2 (ip and tc)"
    try:
        with ShapedLine() as line:
            line.shape(1000)
    except (SutureError, OSError) as error:
        return f"the system makes no such line: {error}"
    return ""


def enter(namespace: str) -> None:
    """Moves this thread, and those that it starts from now on, into a network namespace.

    Raises:
        OSError: there is none of that name, or this process may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{namespace}").open() as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


class ShapedLine:
    """The line. A context manager: its namespaces and its relay are gone when it ends.

    Args:
        latency: milliseconds one way.
    """

    def __init__(self, latency: float = 0.0) -> None:
        self.latency = latency
        own = os.getpid()
        self._server, self._clients, self._middle = (f"suture_{who}{own}" for who in ("hub", "ward", "way"))
        self._ports = iter(range(29500, 65000))
        self._relay: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> ShapedLine:
        try:
            for number, namespace in enumerate((self._server, self._clients), 1):
                _run(f"ip netns add {namespace}")
                if number == 1:
                    _run(f"ip netns add {self._middle}")
                _run(
                    f"ip link add line0 netns {namespace} type veth peer name end{number} netns {self._middle}"
                )
                _run(f"ip -n {namespace} addr add {_SUBNET}.{number}/24 dev line0")
                _run(f"ip -n {namespace} link set lo up")
                _run(f"ip -n {namespace} link set line0 up")
                _run(f"ip -n {self._middle} link set end{number} up")
            context = multiprocessing.get_context("forkserver")
            ours, theirs = context.Pipe()
            self._relay = context.Process(
                target=_pass_on, args=(self._middle, self.latency / 1e3, theirs), daemon=True
            )
            self._relay.start()
            if not ours.poll(60.0) or ours.recv() != "ready":
                raise SutureError("the relay of the shaped line did not start")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._relay is not None and self._relay.pid is not None:
            self._relay.kill()
            self._relay.join()
        for namespace in (self._server, self._clients, self._middle):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)

    def shape(self, megabits: float) -> None:
        """From now on the line carries so many Mbit/s each way.

        Raises:
            SutureError: the system refuses.
        """
        for namespace in (self._server, self._clients):
            limits = f"rate {megabits:g}mbit burst {_BURST} latency {_QUEUE}"
            _run(f"ip netns exec {namespace} tc qdisc replace dev line0 root tbf {limits}")

    def end(self, is_server: bool) -> Cable:
        """The server's end, or the clients'."""
        return Cable(namespace=self._server if is_server else self._clients)

    def new_port(self) -> int:
        """A port at the server's end that no other part of this line uses."""
        return next(self._ports)

    def relay_seconds(self) -> float:
        """Processor time of the relay so far: what the line itself takes from the cores."""
        assert self._relay is not None
        fields = Path(f"/proc/{self._relay.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise SutureError(f"{command}: {done.stderr.strip()}")


def _pass_on(namespace: str, latency: float, line: multiprocessing.connection.Connection) -> None:
    """The relay's whole life: what comes in at one end goes out at the other, ``latency`` seconds later."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    enter(namespace)
    ends = [_tap(f"end{number}") for number in (1, 2)]
    selector = selectors.DefaultSelector()
    for index, end in enumerate(ends):
        selector.register(end, selectors.EVENT_READ, index)
    line.send("ready")
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for key, _ in selector.select(pause):
            while True:
                try:
                    frame, address = ends[key.data].recvfrom(_FRAME)
                except BlockingIOError:
                    break
                if address[2] != socket.PACKET_OUTGOING:  # a tap sees what it has sent itself, too
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + latency, number, 1 - key.data, frame))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, out, frame = heapq.heappop(waiting)
            with suppress(OSError):  # as on any line, a frame may be lost; TCP sends it again
                ends[out].send(frame)


def _tap(interface: str) -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    tap.bind((interface, _ETH_P_ALL))
    # Segments that the kernel has not cut into packets pass as they are, with the header that says so.
    tap.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        tap.setsockopt(socket.SOL_SOCKET, option, 1 << 24)
    tap.setblocking(False)
    return tap
