"""Memory that one thread frees is never handed to another: RPC's threads must not find a client's images.

A peer may call torch's built-in operators, and ``torch.empty`` gives it memory as it was left. With glibc's defaults,
eight arenas a core shared by all threads, such a call returned what the training thread had just freed (a quarter
of the values, in tests/integration/hostile/test_freed_memory.py). With an arena for every thread, RPC's threads
are given back only what RPC's threads have freed. So nothing that a peer should not see may be computed there:
see `Tasks`, and `overwrite` for the exchange that computes in RPC's threads.

References: mallopt(3), M_ARENA_MAX and M_PERTURB.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, TypeVar

from torch import Tensor

from runtime.allocator import ARENA_MAX, PERTURB, mallopt
from runtime.errors import StoppedError

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


class Tasks:
    """What RPC's threads have done by the one thread that computes on what clients sent, and copies and writes what the
    server has learnt.

    It is the main thread. Only that one's heap has no bound: other threads have glibc's heaps of 64 MB each, and a
    larger tensor is new memory from the system every time, zeroed page by page (at 224 px and cut 1 a fifth of a step).
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closed = False

    def call(self, function: Callable[..., T], *messages: Any) -> Future[T]:
        """``function(*messages)`` on copies; what arrived is overwritten at once.

        Returns:
            Its answer; fails with `StoppedError` where nobody works on tasks any more.
        """
        answer: Future[T] = Future()

        def work() -> None:
            try:
                if self._closed:
                    raise StoppedError("the server is ending; see its log")
                value = function(*map(_taken, messages))
            except Exception as error:
                answer.set_exception(error)
            except BaseException:  # this thread is interrupted; who asked is not
                answer.set_exception(StoppedError("the server was interrupted"))
                raise
            else:  # an interrupt in here finds a future that has its answer, and goes on as it is
                answer.set_result(value)

        self._waiting.put(work)
        if self._closed:
            self._drop()
        return answer

    def work(self, ended: Event, seconds: float) -> bool:
        """As `threading.Event.wait`, with tasks done meanwhile. The last one may take longer."""
        deadline = time.monotonic() + seconds
        while not ended.is_set() and (left := deadline - time.monotonic()) > 0:
            try:
                task = self._waiting.get(timeout=left)
            except Empty:
                break
            task()
        return ended.is_set()

    def close(self) -> None:
        """Nobody works on tasks any more: those that wait fail, and so does every later one."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        with suppress(Empty):
            while True:
                self._waiting.get_nowait()()


def _taken(value: Any) -> Any:
    """A copy of a message, of the messages in it too; the tensors that arrived are overwritten."""
    if isinstance(value, Tensor):
        copy = value.clone()
        value.zero_()
        return copy
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: _taken(getattr(value, field.name)) for field in fields(value)})
