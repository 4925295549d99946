"""A client's line to the server over torch RPC; what crosses it in a step is for the exchanges to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.distributed import rpc
from torch.futures import Future

from runtime import endpoints, transport
from runtime.exchange.seam import Exchange
from runtime.scheduler import Turn
from runtime.wire import Refusal


class RpcLine(Exchange):
    """Built after `transport.Transport.join`."""

    def __init__(self) -> None:
        self._seat = rpc.remote(transport.SERVER, endpoints.take_seat)

    def call(self, endpoint: Callable[..., Any], *args: Any) -> Any:
        return transport.call(endpoint, self._seat, *args)

    def next_turn(self) -> Future[Turn | Refusal]:
        future: Future[Turn | Refusal] = rpc.rpc_async(
            transport.SERVER, endpoints.next_turn, args=(self._seat,)
        )
        return future
