"""Where the server computes: in its main thread, whichever thread brought the message.

Two reasons. The coordinator's work never waits for a lock in a thread that carries other members' messages. And only
the main thread's heap has no bound: other threads have glibc's heaps of 64 MB each, and a larger tensor is then new
memory from the system every time, zeroed page by page (at 224 px and cut 1 a fifth of a step).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event
from typing import Protocol, TypeVar

from suture.runtime.errors import PeerLostError, SutureError

T = TypeVar("T")


class Executor(Protocol):
    """Runs functions one after the other."""

    def submit(self, function: Callable[[], T]) -> Future[T]: ...


class SameThread:
    """Runs a function where it is submitted: server and clients share a process."""

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Runs ``function`` now.

        Raises:
            Exception: a defect. A `SutureError` is the future's.
        """
        answer: Future[T] = Future()
        try:
            answer.set_result(function())
        except SutureError as error:
            answer.set_exception(error)
        return answer


class MainThreadExecutor:
    """Runs, in the thread that calls `work`, what other threads submit; in the order in which they do."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closed = False

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Has ``function`` run.

        Returns:
            Its result; fails with `PeerLostError` where `work` is not called any more: to whoever asked, the server is
            gone, and a site looks for it again.
        """
        answer: Future[T] = Future()

        def run() -> None:
            try:
                if self._closed:
                    raise PeerLostError("the server is ending; see its log")
                value = function()
            except Exception as error:
                answer.set_exception(error)
            except BaseException:  # this thread is interrupted; who asked is not
                answer.set_exception(PeerLostError("the server was interrupted"))
                raise
            else:  # an interrupt in here finds a future that has its answer, and goes on as it is
                answer.set_result(value)

        self._waiting.put(run)
        if self._closed:
            self._drop()
        return answer

    def work(self, ended: Event, seconds: float) -> bool:
        """As `threading.Event.wait`, running what was submitted meanwhile. The last function may take longer."""
        deadline = time.monotonic() + seconds
        while not ended.is_set() and (left := deadline - time.monotonic()) > 0:
            try:
                run = self._waiting.get(timeout=left)
            except Empty:
                break
            run()
        return ended.is_set()

    def close(self) -> None:
        """Nothing is run any more: what waits fails, and so does whatever is submitted later."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        with suppress(Empty):
            while True:
                self._waiting.get_nowait()()
