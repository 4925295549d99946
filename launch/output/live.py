"""A live picture on a terminal, drawn anew when something is reported."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live

_SECONDS_BETWEEN_REFRESHES = 0.25


class LivePicture(ABC):
    """Draws without a thread: only when something is reported, for batches at most four times a second.

    Args:
        console: where to draw, stderr when None.
        clock: seconds from any origin, never going back.

    Attributes:
        console: log to it (rich's RichHandler) while the picture is there; lines written past it would be torn.
        is_live: whether there is a picture; else (no terminal, TERM=dumb, or CI is set) the owner logs lines instead.
    """

    def __init__(self, console: Console | None, clock: Callable[[], float]) -> None:
        self.console = console or Console(stderr=True)
        self.is_live = self.console.is_interactive and "CI" not in os.environ
        self._clock = clock
        self._live: Live | None = None
        self._refreshed = 0.0

    @abstractmethod
    def _picture(self) -> Group:
        """The whole display."""

    def _show(self) -> None:
        if self.is_live and self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, get_renderable=self._picture)
            self._live.start()

    def _refresh(self) -> None:
        if self._live is not None:
            self._refreshed = self._clock()
            self._live.refresh()

    def _refresh_at_times(self) -> None:
        if self._clock() - self._refreshed >= _SECONDS_BETWEEN_REFRESHES:
            self._refresh()

    def _leave(self) -> None:
        """Leaves the last picture and gives the cursor back. May be repeated."""
        if self._live is not None:
            self._refresh()
            self._live.stop()
            self._live = None
