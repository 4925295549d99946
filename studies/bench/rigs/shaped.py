"""A line between two network namespaces of this host: so many Mbit/s (tbf) and so many milliseconds (a relay).

The server's namespace and the clients' are joined through a third one, in which a process passes frames on, each
after the latency (the kernel's own netem is missing in many containers). Frames travel in both directions through a
token bucket at the sender's end. Needs root. The relay is ``suture.studies.bench.rigs.relay``.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from suture.launch.host.program import ROOT
from suture.runtime.errors import SutureError

_SUBNET = "10.97.7"
_CLONE_NEWNET = 0x40000000
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
    probe = f"suture_probe{os.getpid()}"
    try:
        _run(f"ip netns add {probe}")
        _run(f"ip netns exec {probe} tc qdisc add dev lo root tbf rate 1mbit burst {_BURST} latency {_QUEUE}")
    except SutureError as error:
        return f"the system makes no such line: {error}"
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return ""


def enter(namespace: str) -> None:
    """Moves this thread, and those that it starts from now on, into a network namespace.

    Raises:
        OSError: there is none of that name, or this process may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{namespace}").open(encoding="utf-8") as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


class ShapedLine:
    """The line. A context manager: its namespaces and its relay are gone when it ends.

    It carries as much as the system can, without latency, until `shape` is called.
    """

    def __init__(self) -> None:
        own = os.getpid()
        self._server, self._clients, self._middle = (f"suture_{who}{own}" for who in ("hub", "ward", "way"))
        self._ports = iter(range(29500, 65000))
        self._relay: subprocess.Popen[bytes] | None = None

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
            self._relay = subprocess.Popen(
                [sys.executable, "-m", "suture.studies.bench.rigs.relay", self._middle],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )
            assert self._relay.stdout is not None
            if self._relay.stdout.readline() != b"ready\n":
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
        if self._relay is not None:
            with self._relay:  # closes its pipes and waits
                self._relay.kill()
        for namespace in (self._server, self._clients, self._middle):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)

    def shape(self, megabits: float, latency: float) -> None:
        """From now on the line carries so many Mbit/s each way, and a frame is under way for so long.

        Args:
            megabits: of each direction.
            latency: milliseconds one way.

        Raises:
            SutureError: the system refuses.
        """
        assert self._relay is not None and self._relay.stdin is not None
        self._relay.stdin.write(f"{latency:g}\n".encode())
        self._relay.stdin.flush()
        for namespace in (self._server, self._clients):
            limits = f"rate {megabits:g}mbit burst {_BURST} latency {_QUEUE}"
            _run(f"ip netns exec {namespace} tc qdisc replace dev line0 root tbf {limits}")

    def end(self, is_server: bool) -> Cable:
        """The server's end, or the clients'."""
        return Cable(namespace=self._server if is_server else self._clients)

    def new_port(self) -> int:
        """A port at the server's end that no other part of this line uses."""
        return next(self._ports)


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise SutureError(f"{command}: {done.stderr.strip()}")
