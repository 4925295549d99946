"""Says in good time that a certificate ends: who, when, and what to do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509

from suture.runtime.consortium.credentials import common_name

log = logging.getLogger(__name__)

WARNED_BEFORE = timedelta(days=30)
"""How long before its end a certificate is warned of."""
_AGAIN = timedelta(hours=23)
"""Warnings are a day apart; a little less, so that a look at the same hour warns again."""


def now() -> datetime:
    """The clock."""
    return datetime.now(UTC)


class ExpiryWarnings:
    """Warns of certificates that end within `WARNED_BEFORE`, of each once a day however often it is asked.

    Any thread may use it.

    Args:
        clock: what time it is.
    """

    def __init__(self, clock: Callable[[], datetime] = now) -> None:
        self._clock = clock
        self._said: dict[bytes, datetime] = {}
        self._lock = threading.Lock()

    def look(self, certificates: Iterable[x509.Certificate], whose: str, what_to_do: str) -> None:
        """Warns of those that end soon, or have ended.

        Args:
            certificates: of one kind.
            whose: "this machine's", "the authority's", or empty where the name in the certificate says it.
            what_to_do: the remedy.
        """
        for one in certificates:
            moment, ends = self._clock(), one.not_valid_after_utc
            if ends - moment > WARNED_BEFORE:
                continue
            with self._lock:
                said = self._said.get(one.signature)
                if said is not None and moment - said < _AGAIN:
                    continue
                self._said[one.signature] = moment
            when = f"{'ends' if ends > moment else 'ended'} on {ends:%Y-%m-%d %H:%M} UTC"
            if ends > moment:
                when += f", in {(ends - moment).days} days"
            name = common_name(one)
            log.warning("%s certificate%s %s; %s", *_named(whose, name), when, what_to_do)


def _named(whose: str, name: str) -> tuple[str, str]:
    return (whose, f" ({name})") if whose else (f"{name}'s", "")
