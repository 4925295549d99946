"""A site's search for a server that is not there."""

from __future__ import annotations

import logging
import time

from suture.runtime.errors import PeerLostError, UnreachableError

log = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 0.25, 4.0
"""Seconds between two tries to reach the server; doubled each time, so that no proxy's log fills."""
_SECONDS_FOR_THE_GOODBYE = 60.0
"""In which a site that has the model looks for a server that was lost before it knew: it would wait for the site."""


class Search:
    """The search for a server that is not there: how long it goes on, and what a person is told of it.

    Args:
        server: HOST:PORT.
        patience: seconds that it goes on.

    Attributes:
        is_for_the_goodbye: whether the site has the model, and the server may not know it.
    """

    def __init__(self, server: str, patience: float) -> None:
        self.is_for_the_goodbye = False
        self._server, self._patience = server, patience
        self._wait, self._said, self._since = _FIRST_WAIT, False, time.monotonic()
        self._what = "no server at %s yet (%s); looking for it for %g s more"

    def found(self) -> None:
        """The site is in; where it loses the server the search begins anew, and patience with it."""
        self._wait, self._said, self._since = _FIRST_WAIT, False, 0.0
        self._what = "lost the server at %s (%s); looking for it for %g s"

    def goes_on(self, why: PeerLostError) -> bool:
        """Waits until it is time for another try; False where none is worth it.

        Raises:
            UnreachableError: the site's patience is at its end.
        """
        server, patience = self._server, self._patience
        if self.is_for_the_goodbye:
            patience = min(patience, _SECONDS_FOR_THE_GOODBYE)
        self._since = self._since or time.monotonic()
        left = patience - (time.monotonic() - self._since)
        if left <= 0 and self.is_for_the_goodbye:
            log.warning("the server did not hear the goodbye (%s); the model is here", why)
            return False
        if left <= 0:
            raise UnreachableError(
                f"no server at {server} for {patience:g} s ({why}); is the address right, is suture serve running "
                "there, and may this machine reach it? --patience SECONDS waits longer"
            )
        if not self._said:
            self._said = True
            log.warning(self._what, server, why, round(left))
        time.sleep(min(self._wait, left))
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        return True
