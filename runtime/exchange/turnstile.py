"""Clients that train at once in one process: a thread each, of which one runs at a time.

torch's default generator is one a process and every forward seeds it first, so no two may compute at once. Whoever
waits for the server's answer lets another go on; which one does not matter, since the server takes their batches in
an order of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.futures import Future

_BATON = threading.Lock()


def wait(answer: Future[Any]) -> Any:
    """The value of an answer; meanwhile another thread may run, if this one runs beside others."""
    if answer.done() or not _BATON.locked():
        return answer.wait()
    _BATON.release()
    try:
        return answer.wait()
    finally:
        _BATON.acquire()


def side_by_side(tasks: Sequence[Callable[[], None]]) -> None:
    """Runs all ``tasks`` to their ends; a single one in the caller's own thread.

    Raises:
        Exception: what the first one to fail, in their order, ended with.
    """
    if len(tasks) < 2:
        for task in tasks:
            task()
        return

    def run(task: Callable[[], None]) -> None:
        with _BATON:
            task()

    with ThreadPoolExecutor(len(tasks), thread_name_prefix="client") as threads:
        running = [threads.submit(run, task) for task in tasks]
    for ended in running:
        ended.result()
