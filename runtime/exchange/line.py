"""A client's line to the server over torch RPC; what crosses it in a step is for the exchanges to say."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from torch.distributed import rpc
from torch.futures import Future

from runtime import calls, endpoints, entry, transport
from runtime.exchange.seam import Exchange
from runtime.scheduler import Turn
from runtime.wire import Hello, Refusal, Welcome


class RpcLine(Exchange):
    """See the module.

    Args:
        line: has joined; says where server and client are.
        token: this client's, shown to nobody.
    """

    def __init__(self, line: transport.Transport, token: bytes) -> None:
        self._line = line
        self._token = token
        self._ticket = ""

    def join(self, hello: Hello, rpc_name: str = "") -> Welcome:
        name, rpc_name = hello.client, rpc_name or hello.client
        nonce = secrets.token_bytes(entry.NONCE_BYTES)
        challenge = calls.call(endpoints.greet, name, rpc_name, nonce)
        answer = entry.answer(
            self._token, challenge, name, rpc_name, nonce, self._line.server_address, self._line.own_address
        )
        welcome: Welcome = calls.call(endpoints.hello, answer, hello, rpc_name)
        self._ticket = welcome.ticket
        return welcome

    def call(self, endpoint: Callable[..., Any], *args: Any) -> Any:
        return calls.call(endpoint, self._ticket, *args)

    def begin(self, endpoint: Callable[..., Any], *args: Any, patient: bool = False) -> Callable[[], Any]:
        return calls.begin(endpoint, self._ticket, *args, patient=patient)

    def next_turn(self) -> Future[Turn | Refusal]:
        future: Future[Turn | Refusal] = rpc.rpc_async(
            transport.SERVER, endpoints.next_turn, args=(self._ticket,)
        )
        return future
