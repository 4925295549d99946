"""``suture leave`` and ``suture pause``: what a site's people want of the ``suture join`` that runs here."""

from __future__ import annotations

from pathlib import Path

import click

from suture.launch.kits.kit import Kit
from suture.launch.output.lock import who_has
from suture.launch.site.wishes import ENDED, LEFT, PAUSED, Status, Wanted, check_owner
from suture.runtime.client.wishes import Wish
from suture.runtime.consortium.credentials import Role
from suture.runtime.errors import ConfigError

_KIT = click.argument("kit", type=click.Path(path_type=Path))
_NOW = click.option("--now", is_flag=True, help="roll the turn back that it is in, and do not finish it")


@click.command()
@_KIT
@_NOW
def leave(kit: Path, now: bool) -> None:
    """Have the 'suture join' that runs with KIT leave its run for good.

    It finishes the turn that it is in, signs for the other sites that it leaves, and ends with code 0. The run goes on
    without it, under a new hand-off key; it cannot come back into this run, and gets no model of it. What it had
    trained stays in the others' model.
    """
    own = _site(kit)
    last = _running(own, "leave")
    _want(own, Wanted(last.run, Wish.LEAVE, now))
    when = "at once" if now else "when the turn that it is in is over"
    click.echo(f"{own.name} leaves run {last.run} {when}; 'suture join' says when it has, and ends")


@click.command()
@_KIT
@_NOW
@click.option("--end", is_flag=True, help="end the pause")
@click.option("--status", is_flag=True, help="only say where the site stands")
def pause(kit: Path, now: bool, end: bool, status: bool) -> None:
    """Have the 'suture join' that runs with KIT pause, until 'suture pause KIT --end'.

    It finishes the turn that it is in and then takes no other, and its process stays. The others go on without it; it
    trains from the next round on when it is back. The pause outlives a restart. A run that ends meanwhile waits for the
    site for the server's --grace, and no longer: it then has no model.
    """
    if sum((now, end, status)) > 1:
        raise ConfigError("--now, --end and --status do not go together: give one of them")
    own = _site(kit)
    if status:
        click.echo(_stands(own))
        return
    if end:
        _end(own)
        return
    last = _running(own, "pause")
    if _wanted(own, last) is Wish.LEAVE:
        raise ConfigError(f"{own.name} is to leave run {last.run}: there is no pause of that")
    _want(own, Wanted(last.run, Wish.PAUSE, now))
    when = "at once" if now else "when the turn that it is in is over"
    click.echo(f"{own.name} pauses in run {last.run} {when}; suture pause {kit} --end ends it")


def _site(kit: Path) -> Kit:
    own = Kit.read(kit, Role.CLIENT)
    if own.state.exists():
        check_owner(own.state)
    return own


def _end(own: Kit) -> None:
    last = Status.read(own.state)
    if last is None or _wanted(own, last) is not Wish.PAUSE:
        raise ConfigError(f"{own.name} does not pause, and is not to: there is nothing to end")
    Wanted.forget(own.state)
    runs = "" if who_has(own.state) else "; no 'suture join' runs here: start it"
    click.echo(f"{own.name} goes on with run {last.run}{runs}")


def _running(own: Kit, what: str) -> Status:
    """The run that the kit's site is in.

    Raises:
        ConfigError: it is in none.
    """
    last = Status.read(own.state)
    if not who_has(own.state) or last is None or last.what in (ENDED, LEFT):
        raise ConfigError(
            f"no 'suture join {own.folder}' runs on this machine and is in a run: there is nothing to {what}; start "
            "it first, and wait until it has found its server"
        )
    return last


def _wanted(own: Kit, last: Status) -> Wish | None:
    wanted = Wanted.read(own.state)
    return wanted.wish if wanted is not None and wanted.run == last.run else None


def _want(own: Kit, wanted: Wanted) -> None:
    try:
        wanted.write(own.state)
    except OSError as error:
        raise ConfigError(f"cannot write to {own.state}: {error.strerror}; make room there") from None


def _stands(own: Kit) -> str:
    """A sentence for people."""
    last = Status.read(own.state)
    if last is None:
        return f"{own.name} has joined no run with this kit"
    wish = _wanted(own, last)
    holder = who_has(own.state)
    if not holder:
        left = ", which it has left for good" if last.what == LEFT else ""
        then = f"; it is to {wish} when it is started again" if wish else ""
        return f"{own.name} is not started; its last run is {last.run}{left}{then}"
    soon = f"; it is to {wish}" if wish and not (wish is Wish.PAUSE and last.what == PAUSED) else ""
    return f"{own.name} {last.what} in run {last.run} since {last.since} (process {holder}){soon}"
