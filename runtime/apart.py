"""Memory that one thread frees is never handed to another: RPC's threads must not find a client's images.

A peer may call torch's built-in operators, and ``torch.empty`` gives it memory as it was left. With glibc's defaults,
eight arenas a core shared by all threads, such a call returned what the training thread had just freed (a quarter
of the values, in tests/integration/hostile/test_freed_memory.py). With an arena for every thread, RPC's threads
are given back only what RPC's threads have freed. So nothing that a peer should not see may be computed there:
see `ComputingThread`, and `overwrite` for the exchange that computes in RPC's threads.

References: mallopt(3), M_ARENA_MAX and M_PERTURB.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from runtime.allocator import ARENA_MAX, PERTURB, mallopt

log = logging.getLogger(__name__)

_ARENAS = 65536  # more than threads
_PATTERN = 0xA5
T = TypeVar("T")


def keep_threads_apart() -> None:
    """Gives every thread that starts from now on an arena of its own. Call before RPC starts its threads."""
    if not mallopt(ARENA_MAX, _ARENAS):
        log.warning(
            "this system's allocator is not glibc's: a peer may read memory that this process has freed; "
            "let nobody but members reach its ports"
        )


def overwrite() -> None:
    """Has all memory overwritten when it is freed; a tenth more processor time a training step."""
    mallopt(PERTURB, _PATTERN)


class ComputingThread:
    """The one thread in which a server computes on what its clients sent, and copies and writes what it has learnt."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")

    def run(self, function: Callable[[Any, Any], Any], seat: Any, message: Any) -> Any:
        """``function(seat, message)`` on a copy of ``message``; what arrived is overwritten at once."""
        return self.start(function, seat, message).result()

    def start(self, function: Callable[[Any, Any], Any], seat: Any, message: Any) -> Future[Any]:
        """`run`, without waiting for it."""
        return self._thread.submit(self._run, function, seat, message)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)`` as it is, for what takes much memory: each thread that once did would keep as much."""
        return self._thread.submit(function, *args).result()

    @staticmethod
    def _run(function: Callable[[Any, Any], Any], seat: Any, message: Any) -> Any:
        return function(seat, _taken(message))


def _taken(value: Any) -> Any:
    """A copy of a message, of the messages in it too; the tensors that arrived are overwritten."""
    if isinstance(value, Tensor):
        copy = value.clone()
        value.zero_()
        return copy
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: _taken(getattr(value, field.name)) for field in fields(value)})
