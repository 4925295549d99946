"""What a site's people want of a run that goes on, on its way from a command to the process that takes part.

KIT/state/wish.json      written by ``suture leave`` and ``suture pause``; no such file: nothing is wanted
KIT/state/status.json  written by ``suture join``: in which run it is, and where it stands there
KIT/state/.lock          held by ``suture join`` from the time when it knows its run until it ends

A wish names the run that it is for, so that a later run of the same kit is not affected. It is a file, and no signal:
it outlives the process, whose sandbox lets it read and write there, and reaches it in a container, too.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from suture.launch.output.lock import lock_folder
from suture.runtime.client.wishes import NoWishes, Parting, Wish
from suture.runtime.errors import ConfigError, EvictedError
from suture.runtime.host.private_files import replace_private
from suture.runtime.state.rollback_guard import RollbackGuard

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.5
_LEFT = "left"
IN, PAUSED, LEFT, ENDED = "takes part", "pauses", "has left it for good", "has ended"
"""Where a site stands in its run."""


@dataclass(frozen=True)
class Wanted:
    """What stands in wish.json.

    Attributes:
        run: the id of the run that it is for.
        wish: leave or pause.
        now: the turn that the site is in is rolled back, and not finished.
    """

    run: str
    wish: Wish
    now: bool = False

    def write(self, state: Path) -> None:
        """Puts it in place of what was wanted before.

        Raises:
            OSError: it cannot be written.
        """
        replace_private(_file(state), json.dumps(asdict(self)).encode())

    @staticmethod
    def read(state: Path) -> Wanted | None:
        """What is wanted of the site, None where nothing is."""
        said = _read(_file(state), Wanted)
        try:
            return None if said is None else Wanted(str(said["run"]), Wish(said["wish"]), said["now"] is True)
        except ValueError:
            return None

    @staticmethod
    def forget(state: Path) -> None:
        """Nothing is wanted any more."""
        _file(state).unlink(missing_ok=True)


@dataclass(frozen=True)
class Status:
    """What stands in status.json.

    Attributes:
        run: the id of the run that the site took part in last.
        what: `IN`, `PAUSED`, `LEFT` or `ENDED`.
        since: when that began, in words.
    """

    run: str
    what: str
    since: str

    @staticmethod
    def read(state: Path) -> Status | None:
        """Where a site stands, None where it has joined no run yet."""
        said = _read(state / "status.json", Status)
        return None if said is None else Status(**{name: str(value) for name, value in said.items()})


def _file(state: Path) -> Path:
    return state / "wish.json"


def _read(path: Path, kind: type[Any]) -> dict[str, Any] | None:
    """A file's fields; None where there is no such file, or it is none of ours."""
    try:
        said = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    names = {field.name for field in fields(kind)}
    return said if isinstance(said, dict) and said.keys() == names else None


class SiteWishes:
    """A site's side; see `suture.runtime.client.wishes.Wishes`. Holds the kit's lock until `close`.

    From `watch` on a thread of its own looks at the disk, so that training never waits for it.

    Args:
        state: the kit's folder for what a site keeps.
        name: the site's.
        run: the run's id.

    Raises:
        EvictedError: the site has left this run for good.
        ConfigError: another process takes part with this kit, or the folder cannot be written.
    """

    def __init__(self, state: Path, name: str, run: str) -> None:
        self._state, self._name, self._run = state, name, run
        self._what = IN
        self._complained = False
        self._wanted: Wanted | None = None
        self._changed, self._closed = threading.Event(), threading.Event()
        if RollbackGuard(state, name, run).recall_extra(_LEFT, False):
            raise EvictedError(
                f"{name} has left this run ({run}) for good, by 'suture leave', and cannot come back into it; it may "
                "join the next one"
            )
        self._lock = lock_folder(state, "take part with another kit")
        self._stands(IN)
        self._look()

    def watch(self) -> None:
        """From now on looks for what is wanted. After the sandbox is closed: an older thread would stay outside."""
        threading.Thread(target=self._watch, name="wishes", daemon=True).start()

    def close(self) -> None:
        """The site has ended. May be called again."""
        if not self._closed.is_set():
            self._closed.set()
            if self._what != LEFT:
                self._stands(ENDED)
            self._lock.close()

    # While it takes part -------------------------------------------------------------------------

    def between_turns(self, awaits_mean: bool) -> None:
        wanted = self._wanted
        if wanted is not None and (wanted.now or wanted.wish is Wish.PAUSE or not awaits_mean):
            raise Parting(wanted.wish)

    def in_turn(self) -> None:
        wanted = self._wanted
        if wanted is not None and wanted.now:
            raise Parting(wanted.wish)

    # While it does not ---------------------------------------------------------------------------

    @property
    def wants_to_leave(self) -> bool:
        """Whether the site is to leave for good."""
        return self._wanted is not None and self._wanted.wish is Wish.LEAVE

    @property
    def wants_to_leave_now(self) -> bool:
        """Whether it is not even to look for a server that is away."""
        return self.wants_to_leave and self._wanted is not None and self._wanted.now

    def sit_out(self) -> bool:
        """Waits as long as the site is to pause; whether it did."""
        if self._wanted is None or self._wanted.wish is not Wish.PAUSE:
            return False
        log.info(
            "%s pauses: the others go on without it, and it trains from the next round on when it is back; "
            "suture pause --end ends it",
            self._name,
        )
        self._stands(PAUSED)
        while self._wanted is not None and self._wanted.wish is Wish.PAUSE:
            self._changed.wait()
            self._changed.clear()
        self._stands(IN)
        log.info("%s pauses no longer", self._name)
        return True

    def left(self) -> None:
        """The site has left for good, and the server knows."""
        RollbackGuard(self._state, self._name, self._run).keep_extra(_LEFT, True)
        self._stands(LEFT)
        Wanted.forget(self._state)
        log.info(
            "%s has left this run (%s) for good: the others go on without it, under a new hand-off key; its model is "
            "not here, and it cannot come back into this run",
            self._name,
            self._run,
        )

    # ---------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closed.wait(_SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        try:
            found = Wanted.read(self._state)
        except OSError as error:
            self._complain(f"cannot read there what is wanted of this site ({error})")
            return
        found = found if found is not None and found.run == self._run else None
        if found != self._wanted:
            self._wanted = found
            self._changed.set()
            if found is not None:
                how = "at once; the turn is rolled back" if found.now else "when the turn is over"
                log.info("%s is to %s: %s", self._name, found.wish, how)

    def _stands(self, what: str) -> None:
        self._what = what
        status = Status(self._run, what, time.strftime("%Y-%m-%d %H:%M:%S"))
        try:
            replace_private(self._state / "status.json", json.dumps(asdict(status)).encode())
        except OSError as error:
            self._complain(f"cannot write there where this site stands ({error})")

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning("%s: %s: suture leave and suture pause may not work", self._state, what)


class Unasked(NoWishes):
    """A site that takes no wishes."""

    wants_to_leave = wants_to_leave_now = False

    def sit_out(self) -> bool:
        return False

    def left(self) -> None: ...


def check_owner(state: Path) -> None:
    """Refuses to write what the site could not read.

    Raises:
        ConfigError: the folder belongs to another user.
    """
    owner = state.stat().st_uid
    if owner != os.geteuid():
        raise ConfigError(
            f"{state} belongs to user {owner}, as whom the site runs, but this command runs as user {os.geteuid()}: "
            "run it as that user"
        )
