"""The time as the server reads it."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def clock(monkeypatch):
    """The time as the coordinator and the members' table read it."""
    now = SimpleNamespace(seconds=1000.0)
    now.monotonic = lambda: now.seconds
    for module in (
        "api",
        "coordinator",
        "client_turn",
        "consortium_turns",
        "membership",
        "transaction",
        "liveness",
    ):
        monkeypatch.setattr(f"suture.runtime.server.{module}.time", now)
    return now
