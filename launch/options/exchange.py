"""Options: what crosses between the clients and the server, and how."""

from __future__ import annotations

from dataclasses import dataclass

import suture.runtime.wire.compression as formats
from suture.launch.options.group import Group, option
from suture.runtime.errors import ConfigError
from suture.runtime.exchange import EXCHANGES


@dataclass(frozen=True, kw_only=True)
class ExchangeOptions(Group):
    """Steps, hand-offs, and the line that carries them."""

    exchange: str = option("fused", "how a step crosses the wire", choices=tuple(EXCHANGES))
    wire: str = option(
        "fp32",
        f"what tensors look like while they cross, both ways: {', '.join(formats.names())} (see below)",
        agree=True,
    )
    overlap: bool = option(
        False,
        "the next batch passes the bottom while wire and server work, with weights one step old (exchange fused or "
        "local)",
        agree=True,
    )
    handoff_key: str | None = option(
        None, "file with the clients' shared key; made for you on a single machine", free=True
    )
    accept_rollback: int | None = option(
        None, "let this client go back to the hand-off of this turn", free=True
    )
    release_top: bool = option(True, "hand the trained top to the clients at the end", agree=True)
    lease: float = option(120.0, "seconds of silence after which a peer counts as lost", free=True)
    interface: str | None = option(None, "network interface for all traffic between ranks", free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        formats.parse_format(self.wire)
        if not self.lease > 0:
            raise ConfigError(f"lease must be above 0 seconds, got {self.lease}")
