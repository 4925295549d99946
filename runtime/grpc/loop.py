"""An event loop in a thread of its own, for gRPC's calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

_SECONDS_TO_END = 2.0


class LoopThread:
    """Runs coroutines for other threads until it is closed.

    A process that connects again uses the same one for every connection. gRPC has one queue of events for all loops
    of a process: an event that comes late for a loop that is closed fails in whichever loop takes it from there, and
    those behind it wait for the next one.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="grpc", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Begins ``work``; the future takes what comes of it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        """Ends the thread; what has not come to its end is dropped. May be called again."""
        if not self._thread.is_alive():
            return
        self.run(_drop_the_rest()).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _drop_the_rest() -> None:
    """Ends every other task: one that is still waiting when its loop goes says so on the terminal."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    with suppress(TimeoutError):
        async with asyncio.timeout(_SECONDS_TO_END):
            await asyncio.gather(*rest, return_exceptions=True)
