"""A site's calls to the server over gRPC; what crosses in a step is the explicit step's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from suture.runtime.exchange.fused import FusedStep
from suture.runtime.grpc.client import GrpcClient
from suture.runtime.scheduler import Turn
from suture.runtime.server.api import Endpoint, ServerApi, check_answer
from suture.runtime.wire.messages import Hello, Welcome


class GrpcExchange(FusedStep):
    """The explicit step over gRPC.

    Args:
        line: one connection.
    """

    def __init__(self, line: GrpcClient) -> None:
        self._line = line

    def begin(self, endpoint: Endpoint, *messages: Any, patient: bool = False) -> Callable[[], Any]:
        wait = self._line.begin(endpoint.__name__, messages, patient)
        return lambda: check_answer(endpoint, wait())

    def next_turn(self, meanwhile: Callable[[], None] | None = None) -> Callable[[], Turn]:
        wait = self._line.begin("next_turn", (), meanwhile=meanwhile)
        return lambda: check_answer(ServerApi.next_turn, wait())

    def join(self, hello: Hello) -> Welcome:
        welcome = super().join(hello)
        self._line.stay()
        return welcome

    def close(self) -> None:
        """Ends the connection, whatever became of it; may be called again."""
        self._line.close()
