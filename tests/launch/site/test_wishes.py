"""`suture leave` and `suture pause`, and the site that reads there what is wanted of it.

Oracle: the files, and sentences written out.
"""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import build_client

from suture.cli import suture
from suture.launch.kits.kit import Kit
from suture.launch.kits.provision import Project, provision
from suture.launch.output.lock import who_has
from suture.launch.site import join, wishes
from suture.launch.site.join import JoinConfig
from suture.launch.site.wishes import SiteWishes, Status, Wanted
from suture.runtime.client.wishes import Parting, Wish
from suture.runtime.errors import ConfigError, EvictedError, UnreachableError
from suture.runtime.grpc.chunks import Limits
from suture.runtime.grpc.client import GrpcClientConfig
from suture.runtime.participant.participant import NoClientObserver
from suture.runtime.state.rollback_guard import RollbackGuard

RUN = "0123456789abcdef"


@pytest.fixture(scope="module")
def kits(tmp_path_factory) -> dict[str, Kit]:
    return provision(Project(address="127.0.0.1:1", sites=("ward_a",)), tmp_path_factory.mktemp("kits") / "k")


@pytest.fixture
def kit(kits) -> Kit:
    """A site's kit, whose state is new."""
    own = kits["ward_a"]
    own.make_state()
    for file in own.state.iterdir():
        file.unlink()
    return own


@pytest.fixture
def site(kit):
    """The site that takes part with it, as far as wishes go."""
    made = SiteWishes(kit.state, "ward_a", RUN)
    yield made
    made.close()


def said(capsys, *typed: object) -> str:
    suture.main([str(word) for word in typed], standalone_mode=False)
    return capsys.readouterr().out.strip()


def look(site: SiteWishes, awaits_mean: bool = False) -> tuple[Wish | None, Wish | None]:
    """What the site is to do between turns, and in a turn."""
    site._look()
    found = []
    for ask in (lambda: site.between_turns(awaits_mean), site.in_turn):
        try:
            ask()
            found.append(None)
        except Parting as parting:
            found.append(parting.wish)
    return found[0], found[1]


# What a person types ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["leave", "pause"])
@pytest.mark.parametrize("once", [False, True], ids=["never joined", "has ended"])
def test_where_no_join_runs_the_command_says_so(command, once, kit):
    """Oracle: the message; nothing is written that a later join would find."""
    if once:
        SiteWishes(kit.state, "ward_a", RUN).close()
    with pytest.raises(
        ConfigError, match=f"no 'suture join {kit.folder}' runs on this machine .* to {command}"
    ):
        suture.main([command, str(kit.folder)], standalone_mode=False)
    assert not (kit.state / "wish.json").exists()


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("wish", list(Wish))
def test_a_site_is_told_what_is_wanted_of_it(wish, now, kit, site, capsys):
    """Oracle: between turns always, in a turn with --now."""
    assert look(site) == (None, None)
    verb = "leaves" if wish is Wish.LEAVE else "pauses in"
    when = "at once" if now else "when the turn that it is in is over"
    words = said(capsys, wish.value, kit.folder, *(["--now"] if now else []))
    assert words.startswith(f"ward_a {verb} run {RUN} {when}; ")
    assert look(site) == (wish, wish if now else None)
    assert (kit.state / "wish.json").stat().st_mode & 0o777 == 0o600


def test_a_pause_ends_by_command_and_only_where_there_is_one(kit, site, capsys):
    """Oracle: the sentences."""
    with pytest.raises(ConfigError, match="ward_a does not pause, and is not to"):
        said(capsys, "pause", kit.folder, "--end")
    said(capsys, "pause", kit.folder)
    assert look(site)[0] is Wish.PAUSE
    assert said(capsys, "pause", kit.folder, "--end") == f"ward_a goes on with run {RUN}"
    assert look(site) == (None, None)
    said(capsys, "pause", kit.folder)
    site.close()
    assert "no 'suture join' runs here: start it" in said(capsys, "pause", kit.folder, "--end")


def test_there_is_no_pause_of_leaving_but_a_pause_may_become_leaving(kit, site, capsys):
    """Oracle: the message; what the site finds."""
    said(capsys, "pause", kit.folder)
    said(capsys, "leave", kit.folder)
    assert look(site)[0] is Wish.LEAVE
    for more, words in ((), "is to leave run .*: there is no pause"), (["--end"], "does not pause"):
        with pytest.raises(ConfigError, match=words):
            said(capsys, "pause", kit.folder, *more)
    assert look(site)[0] is Wish.LEAVE


@pytest.mark.parametrize("more", [("--end", "--now"), ("--end", "--status"), ("--now", "--status")])
def test_what_does_not_go_together_is_refused(more, kit):
    """Oracle: the message."""
    with pytest.raises(ConfigError, match="--now, --end and --status do not go together"):
        suture.main(["pause", str(kit.folder), *more], standalone_mode=False)


def test_a_sites_status_is_a_sentence(kit, capsys):
    """Oracle: written out, from the first run to the one that was left."""

    def status() -> str:
        return said(capsys, "pause", kit.folder, "--status")

    assert status() == "ward_a has joined no run with this kit"
    site = SiteWishes(kit.state, "ward_a", RUN)
    assert status().startswith(f"ward_a takes part in run {RUN} since 20")
    assert f"(process {os.getpid()} on " in status()
    said(capsys, "pause", kit.folder)
    assert status().endswith("); it is to pause")
    site.close()
    assert (
        status() == f"ward_a is not started; its last run is {RUN}; it is to pause when it is started again"
    )
    site = SiteWishes(kit.state, "ward_a", RUN)
    site.left()
    site.close()
    assert status() == f"ward_a is not started; its last run is {RUN}, which it has left for good"


def test_a_command_that_runs_as_another_user_is_refused(kit, site, monkeypatch):
    """Oracle: the message; the site could not read what root has written."""
    monkeypatch.setattr(wishes.os, "geteuid", lambda: 12345)
    with pytest.raises(
        ConfigError, match="as whom the site runs, but this command runs as user 12345: run it as"
    ):
        suture.main(["leave", str(kit.folder)], standalone_mode=False)


def test_the_servers_kit_is_refused(kits):
    """Oracle: the message."""
    with pytest.raises(ConfigError, match="is the server's kit"):
        suture.main(["leave", str(kits["server"].folder)], standalone_mode=False)


# The site --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        '{"run": "another", "wish": "leave", "now": true}',
        '{"run": "0123456789abcdef", "wish": "dance", "now": true}',
        '{"run": "0123456789abcdef", "wish": "leave"}',
        '["leave"]',
        "{",
        "\\udcff",
        "",
    ],
)
def test_what_is_for_another_run_or_no_wish_is_nothing(content, kit, site):
    """Oracle: the site goes on."""
    (kit.state / "wish.json").write_text(content, errors="surrogateescape")
    assert look(site) == (None, None)


def test_one_that_leaves_waits_for_the_mean_unless_it_is_to_go_now(kit, site):
    """Oracle: a turn that all have trained at once would be undone for all; a pause undoes nothing."""
    Wanted(RUN, Wish.LEAVE).write(kit.state)
    assert look(site, awaits_mean=True) == (None, None)
    Wanted(RUN, Wish.LEAVE, now=True).write(kit.state)
    assert look(site, awaits_mean=True)[0] is Wish.LEAVE
    Wanted(RUN, Wish.PAUSE).write(kit.state)
    assert look(site, awaits_mean=True)[0] is Wish.PAUSE


@pytest.mark.parametrize("then", ["the pause ends", "it is to leave"])
def test_a_restarted_site_still_pauses_until_it_is_to_do_something_else(then, kit, caplog):
    """Oracle: the log and the status; within two seconds of the change it goes on."""
    caplog.set_level("INFO")
    Wanted(RUN, Wish.PAUSE).write(kit.state)
    site = SiteWishes(kit.state, "ward_a", RUN)
    site.watch()
    ended: list[float] = []
    waiting = threading.Thread(target=lambda: ended.append(site.sit_out() and time.monotonic()))
    waiting.start()
    time.sleep(0.8)
    assert not ended and "ward_a pauses: the others go on without it" in caplog.text
    assert Status.read(kit.state).what == wishes.PAUSED
    changed = time.monotonic()
    if then == "the pause ends":
        Wanted.forget(kit.state)
    else:
        Wanted(RUN, Wish.LEAVE).write(kit.state)
    waiting.join(5)
    assert ended and ended[0] - changed < 2 and not site.sit_out()
    assert Status.read(kit.state).what == wishes.IN
    assert site.wants_to_leave is (then == "it is to leave")
    site.close()


def test_a_site_that_has_left_cannot_come_back_into_that_run_but_into_the_next(kit):
    """Oracle: the error; what the site remembered of the run besides is kept."""
    site = SiteWishes(kit.state, "ward_a", RUN)
    Wanted(RUN, Wish.LEAVE).write(kit.state)
    RollbackGuard(kit.state, "ward_a", RUN).keep(7, b"digest")
    site.left()
    site.close()
    with pytest.raises(
        EvictedError, match=rf"ward_a has left this run \({RUN}\) for good, by 'suture leave'"
    ):
        SiteWishes(kit.state, "ward_a", RUN)
    assert RollbackGuard(kit.state, "ward_a", RUN).recall() == (7, b"digest")
    again = SiteWishes(kit.state, "ward_a", "next")
    assert look(again) == (None, None)
    again.close()


def test_two_processes_do_not_take_part_with_one_kit(kit, site):
    """Oracle: the message; the lock is free when the first one has ended."""
    assert who_has(kit.state).startswith(f"{os.getpid()} on ")
    with pytest.raises(
        ConfigError, match=f"{kit.state} is in use by process .* or take part with another kit"
    ):
        SiteWishes(kit.state, "ward_a", RUN)
    site.close()
    assert who_has(kit.state) == ""


def test_a_disk_that_fails_costs_the_status_and_is_said_once(kit, site, monkeypatch, caplog):
    """Oracle: one warning; the site goes on."""

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wishes, "replace_private", full)
    site._stands(wishes.PAUSED)
    site._stands(wishes.IN)
    assert len(caplog.messages) == 1 and "suture leave and suture pause may not work" in caplog.text


def test_one_that_is_to_leave_at_once_does_not_look_for_a_server_that_is_away(kit):
    """Oracle: the error, long before patience is at its end, and what to do."""
    Wanted(RUN, Wish.LEAVE, now=True).write(kit.state)
    site = SiteWishes(kit.state, "ward_a", RUN)
    limits = Limits(batch=1, handoff=1, release=1)
    line = GrpcClientConfig(
        host="127.0.0.1", port=1, credentials=kit.credentials(), limits=limits, lease=5.0, line_timeout=3.0
    )
    config = JoinConfig(kit=kit, server="127.0.0.1:1", patience=60.0)
    with pytest.raises(UnreachableError, match="ward_a is to leave at once, and the server .* was not told"):
        join.take_part(build_client(0, name="ward_a"), NoClientObserver(), line, {}, config, wishes=site)
    site.close()


@pytest.mark.parametrize("wanted", [False, True])
def test_an_eviction_is_an_error_unless_the_site_had_said_that_it_leaves(wanted, kit, monkeypatch):
    """Oracle: the server's answer to the withdrawal was lost on its way: told again, it has left all the same."""
    if wanted:
        Wanted(RUN, Wish.LEAVE).write(kit.state)
    site = SiteWishes(kit.state, "ward_a", RUN)

    def evicted(*_: object) -> None:
        raise EvictedError("ward_a was put out of this run: it left for good")

    monkeypatch.setattr(join, "join", evicted)
    member, search = SimpleNamespace(), SimpleNamespace()
    if wanted:
        assert join._play(member, {}, 1.0, search, site)
        assert Status.read(kit.state).what == wishes.LEFT
    else:
        with pytest.raises(EvictedError):
            join._play(member, {}, 1.0, search, site)
    site.close()
