"""HOST:PORT as people write it, and how soon a cut line to it is noticed."""

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


def check_line_timeout(seconds: float) -> None:
    """
    Raises:
        ConfigError: it is below a second.
    """
    if not seconds >= 1:
        raise ConfigError(f"line_timeout must be at least 1 second, got {seconds}")
