"""Joining and leaving torch RPC: with ``lockdown`` the only module that touches RPC's private parts.

Membership is a star. Every member joins a dynamic group in a store of its own, in its own process, in which it finds
the server and nobody else: clients never learn of each other, and a dead client blocks no one. The store that all
ranks share (torchrun's) tells where the server is and, to the server, where a newcomer is.

Transport: torch's default shared-memory transport busy-polls (an idle rank burns a whole core), so members use
``uv``, with cross-memory attach (``cma``) between processes of one host.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import psutil
import torch.distributed as dist
import torch.distributed.autograd as dist_autograd
from torch.distributed import rpc
from torch.distributed.rpc import api

from suture.runtime.errors import ConfigError, PeerLostError, WireError
from suture.runtime.host import sandbox
from suture.runtime.rpc import lockdown

log = logging.getLogger(__name__)

SERVER = "server"
SERVER_RANK = 0
LOOPBACK_STORE = "SUTURE_LOOPBACK_STORE"  # the port of the store of `suture train`, for its ranks
START_SECONDS = 3600
SECONDS_FOR_LAST_ANSWERS = 0.5  # which are still on their way when the run is over
ANNOUNCE_SECONDS = 5  # a newcomer's address is in the store before it announces itself


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """Where and how a member joins.

    Attributes:
        host: address of the rendezvous store (torchrun's MASTER_ADDR).
        port: its port (MASTER_PORT).
        rank: 0 for the server; each client's is its own.
        hosted: True where torchrun's agent already hosts the store; else the server does.
        attempt: torchrun's restart count: a restarted run must not read the last attempt's keys.
        one_host: all members share this host, so tensors may be copied from process to process.
        interface: network interface for all traffic, None for the system's choice.
        timeout: seconds after which an unanswered call fails.
    """

    host: str
    port: int
    rank: int
    hosted: bool = False
    attempt: int = 0
    one_host: bool = True
    interface: str | None = None
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ConfigError(f"the timeout must be above 0 seconds, got {self.timeout}")
        if self.interface is not None and self.interface not in psutil.net_if_addrs():
            known = ", ".join(sorted(psutil.net_if_addrs()))
            raise ConfigError(f"interface must be one of {known}, got {self.interface!r}")

    @classmethod
    def from_environment(cls, interface: str | None, timeout: float) -> TransportConfig:
        """The membership that torchrun assigned to this process (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
        own_store = os.environ.get(LOOPBACK_STORE)
        return cls(
            host="127.0.0.1" if own_store else os.environ["MASTER_ADDR"],
            port=int(own_store or os.environ["MASTER_PORT"]),
            rank=int(os.environ["RANK"]),
            hosted=own_store is not None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
            one_host=local == world,
            interface=interface,
            timeout=timeout,
        )


class Transport:
    """One process's membership, from ``join`` to ``leave``. Main thread only."""

    def __init__(self, config: TransportConfig) -> None:
        self.config = config
        self.store = self._open_store()

    def _open_store(self) -> dist.Store:
        config = self.config
        try:
            store: dist.Store = dist.TCPStore(
                config.host,
                config.port,
                is_master=config.rank == SERVER_RANK and not config.hosted,
                wait_for_workers=False,
                multi_tenant=True,
                timeout=timedelta(seconds=config.timeout),
            )
        except (RuntimeError, dist.DistError) as error:
            reason = str(error).splitlines()[0]
            raise PeerLostError(
                f"no rendezvous at {config.host}:{config.port} within {config.timeout:g} s ({reason}); "
                "is the server running, and is its port open?"
            ) from None
        self._root = dist.PrefixStore("suture", store)
        return dist.PrefixStore(f"attempt{config.attempt}", self._root)

    def publish(self, key: str, value: str) -> None:
        """Tells every rank something before there is RPC; the first value stays.

        Raises:
            PeerLostError: the rendezvous has gone since it was joined, and the server with it.
        """
        try:
            self.store.compare_set(f"public/{key}", "", value)
            self._root.set(f"newest/{key}", value)
        except (RuntimeError, dist.DistError) as error:
            where, reason = f"{self.config.host}:{self.config.port}", str(error).splitlines()[0]
            raise PeerLostError(
                f"the rendezvous at {where} is gone ({reason}); see the server's log"
            ) from None

    def hear(self, key: str) -> str:
        """Waits for what some rank publishes; reading images may take it long.

        Raises:
            PeerLostError: no rank did within an hour.
        """
        try:
            self.store.wait([f"public/{key}"], timedelta(seconds=START_SECONDS))
            return str(self.store.get(f"public/{key}").decode())
        except (RuntimeError, dist.DistError):
            raise PeerLostError(
                f"no rank said {key!r} within {START_SECONDS} s; see the other ranks' errors"
            ) from None

    def of_earlier_attempt(self, key: str) -> str | None:
        """What was published under ``key`` before torchrun restarted the ranks; None on the first attempt."""
        if self.config.attempt == 0 or not self._root.check([f"newest/{key}"]):
            return None
        return str(self._root.get(f"newest/{key}").decode())

    def join(self, name: str, table: Mapping[str, Callable[..., Any]] = MappingProxyType({})) -> None:
        """Joins under ``name`` (letters, digits, underscore); a client waits for the server first.

        Args:
            name: "server", or the client's.
            table: what a peer may call here, by full name; at a client nothing.

        Raises:
            PeerLostError: the server did not appear or did not answer within the timeout.
        """
        if self.config.interface is not None:
            os.environ["TP_SOCKET_IFNAME"] = os.environ["GLOO_SOCKET_IFNAME"] = self.config.interface
        elif self.config.one_host:
            os.environ.setdefault("TP_SOCKET_IFNAME", _loopback())
        rank, serves = self.config.rank, self.config.rank == SERVER_RANK
        self._alone = dist.HashStore()
        self._alone.set_timeout(timedelta(seconds=1))
        group = lockdown.Group(self._admit if serves else self._only(name))
        wall = lockdown.close(group.table() | dict(table))
        try:
            self._shared = self.store.clone()
            if not serves:
                self._find_only_the_server()
            self._publish_address(name)
            dist_autograd._init(rank)
            # init_rpc would put all members into one namespace; everything else it does is done here.
            rpc._init_rpc_backend(  # type: ignore[attr-defined]
                rpc.BackendType.TENSORPIPE,  # type: ignore[attr-defined]
                self._alone,
                name,
                rank,
                None,
                self._options(),
            )
        except (RuntimeError, dist.DistError) as error:
            raise PeerLostError(
                f"{name} could not join within {self.config.timeout:g} s ({str(error).splitlines()[0]}); "
                "is the server running?"
            ) from None
        wall.check_in_force()
        self._wall = wall
        if serves:
            self.store.set("server/ready", "1")
        else:
            wall.table.clear()

    def offer(self, table: Mapping[str, Callable[..., Any]]) -> None:
        """From now on a peer may call what ``table`` holds, besides what it could before."""
        self._wall.table.update(table)

    def _find_only_the_server(self) -> None:
        self.store.wait(["server/ready"], timedelta(seconds=self.config.timeout))
        address = str(self.store.get(f"address/{SERVER}").decode())
        dist.PrefixStore("addrs", self._alone).set(SERVER, address)
        names = dist.PrefixStore("names", self._alone)
        names.set(str(SERVER_RANK), SERVER)
        names.set("_ALL_WORKER_INFOS", f"{SERVER}-{SERVER_RANK},")

    def _publish_address(self, name: str) -> None:
        """Puts this process's address into the shared store as soon as RPC has one, inside the call that joins."""

        def publish(alone: dist.Store, shared: dist.Store) -> None:
            alone.wait([name], timedelta(seconds=self.config.timeout))
            shared.set(f"address/{name}", alone.get(name).decode())

        stores = (dist.PrefixStore("addrs", self._alone), self.store.clone())
        threading.Thread(target=publish, args=stores, name="publish-address", daemon=True).start()

    def _only(self, own: str) -> Callable[[str, int], None]:
        """A client is told of itself alone."""

        def check(name: str, rank: int) -> None:
            if (name, rank) != (own, self.config.rank):
                raise WireError("a peer announced itself to a client, which knows the server alone")

        return check

    def _admit(self, name: str, rank: int) -> None:
        """The server is told of a newcomer: writes down where it is.

        Raises:
            WireError: its address is not in the store.
        """
        if (name, rank) == (SERVER, SERVER_RANK):
            return
        key, deadline = f"address/{name}", time.monotonic() + ANNOUNCE_SECONDS
        while not self._shared.check([key]):
            if time.monotonic() > deadline:
                raise WireError(f"a newcomer called {name:.40} whose address is not in the store")
            time.sleep(0.05)
        address = str(self._shared.get(key).decode())
        dist.PrefixStore("addrs", self._alone).set(name, address)

    def _options(self) -> rpc.TensorPipeRpcBackendOptions:
        # cma reads the other process's memory, which the kernel refuses a sandboxed process.
        by_copy = self.config.one_host and not sandbox.is_closed()
        channels = ["cma", "basic"] if by_copy else ["basic"]
        try:
            return rpc.TensorPipeRpcBackendOptions(
                rpc_timeout=self.config.timeout, _transports=["uv"], _channels=channels
            )
        except TypeError:  # the two arguments are private and may go
            log.warning("this torch does not let us choose RPC's transport: idle ranks will use a core each")
            return rpc.TensorPipeRpcBackendOptions(rpc_timeout=self.config.timeout)

    def leave(self) -> None:
        """Leaves without waiting for anyone: the protocol's own farewell has been said, or no one listens."""
        if api._is_current_rpc_agent_set():
            if self.config.rank == SERVER_RANK:
                time.sleep(SECONDS_FOR_LAST_ANSWERS)
            # The graceful path asks members that a star does not know.
            rpc.shutdown(graceful=False)


def first_to_say(message: str) -> bool:
    """Whether no other rank of this host, started by the same torchrun, has shown ``message`` yet."""
    try:
        config = TransportConfig.from_environment(None, timeout=5)
        if not config.hosted:
            return True
        line = Transport(config)
        key = f"said/{socket.gethostname()}/{hashlib.sha256(message.encode()).hexdigest()}"
        said = f"{config.rank}"
        return bool(line.store.compare_set(key, "", said).decode() == said)
    except (KeyError, RuntimeError, dist.DistError):
        return True  # better twice than never


def loopback_store() -> dist.TCPStore:
    """A store on a free port that this machine alone reaches; it lives as long as the object does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        return dist.TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listener.detach(),
        )


def _loopback() -> str:
    for interface, addresses in psutil.net_if_addrs().items():
        if any(address.family == socket.AF_INET and address.address == "127.0.0.1" for address in addresses):
            return str(interface)
    return "lo"
