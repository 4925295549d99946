"""HOST:PORT as people write it."""

from __future__ import annotations

from suture.runtime.errors import ConfigError


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
