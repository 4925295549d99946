"""What the parts of a run at the server know of the run itself: the coordinator's side that they call back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from suture.runtime.consortium.board import ServerBoard
from suture.runtime.errors import SutureError
from suture.runtime.records.observers import Recorder, Watcher
from suture.runtime.server.membership import Member, Membership
from suture.runtime.server.run_state import RunState
from suture.runtime.server.transaction import Transaction
from suture.runtime.wire.messages import Farewell


class Run(Protocol):
    """A run that is going on; `Coordinator` is one. Every method is called under its lock."""

    run_state: RunState
    membership: Membership
    board: ServerBoard | None
    transaction: Transaction
    watcher: Watcher
    recorder: Recorder
    error: SutureError | None

    def go_on(self) -> None: ...
    def lose(self, member: Member, reason: str, error: SutureError | None = None) -> None: ...
    def miss(self, name: str, reason: str) -> None: ...
    def save(self) -> None: ...
    def stop(self, error: SutureError) -> None: ...
    def stopping(self) -> AbstractContextManager[None]: ...
    def farewells(self) -> Mapping[str, Farewell]: ...
