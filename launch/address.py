"""HOST:PORT as people write it, and which network interface leads there."""

from __future__ import annotations

import socket

import psutil

from runtime.errors import ConfigError


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; an IPv6 host stands in brackets.

    Raises:
        ConfigError: there is no host, or the port does not lie in 1..65535.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(f"an address is HOST:PORT with a port in 1..65535, got {text!r}")
    return host, int(port)


def interface_towards(host: str, port: int) -> str | None:
    """The interface by which this machine reaches ``host`` (its own address: the interface that has it).

    None where the system cannot tell: no route, no such name, or any interface will do (0.0.0.0).
    """
    if host in ("0.0.0.0", "::"):
        return None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as route:
            route.connect(address)  # sends nothing: it only asks the system for the route
            own = str(route.getsockname()[0])
    except OSError:
        return None
    return _interface_of(own)


def _interface_of(address: str) -> str | None:
    for interface, addresses in psutil.net_if_addrs().items():
        if any(known.address.partition("%")[0] == address for known in addresses):
            return str(interface)
    return None
