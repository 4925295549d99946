"""Whatever is killed, frozen or cut off, and whenever: the others go on, nobody hangs, and nothing counts by half.

Oracle: the weights of the run in which the same turns counted and nothing happened, bit for bit (`replayed`).
``make faults`` plays every cell and prints the table; ``make test`` plays one of each kind.
"""

import subprocess
from contextlib import contextmanager

import pytest
from cell import REVOKED, STRUCK, Case, Failed, Play
from hosts import Hosts, why_not
from plant import Fault
from warm import open_stage

from suture.runtime.errors import CheckpointError
from suture.runtime.state.checkpoint import read_checkpoint

KINDS = ("kill", "stop", "cut")
WHO = ("client", "server")
MOMENTS = (
    "waiting",
    "forward",
    "backward",
    "server step",
    "hand-off upload",
    "half a hand-off",
    "hand-off counted",
    "hand-off download",
    "evaluation",
    "checkpoint write",
)
QUICK = (
    ("kill", "server", "hand-off upload"),
    ("stop", "client", "forward"),
    ("cut", "client", "hand-off download"),
)
CELLS = [
    pytest.param(
        kind,
        who,
        moment,
        id=f"{kind}-{who}-{moment.replace(' ', '-')}",
        marks=[] if (kind, who, moment) in QUICK else pytest.mark.slow,
    )
    for kind in KINDS
    for who in WHO
    for moment in MOMENTS
]
LEASE = 5.0  # where somebody has to wait for it

pytestmark = pytest.mark.xdist_group("faults")


def fault(who: str, moment: str, kind: str, after: Fault | None = None) -> Fault:
    """A fault in the second site's turn."""
    name = "server" if who == "server" else STRUCK
    return Fault(who=name, moment=moment, kind=kind, turn_of=STRUCK, after=after.name if after else "")


def _chain(*faults: tuple[str, str]) -> tuple[Fault, ...]:
    """Kills, each after the one before."""
    chain: list[Fault] = []
    for who, moment in faults:
        chain.append(fault(who, moment, "kill", chain[-1] if chain else None))
    return tuple(chain)


TWICE = {
    "both killed in the same second": Case(faults=(fault("server", "forward", "ask"),), act="both"),
    "client killed, and again as it joins": Case(faults=_chain(("client", "forward"), ("client", "joining"))),
    "server killed, and again as it resumes": Case(
        faults=_chain(("server", "forward"), ("server", "resuming"))
    ),
    "client killed, then the server as it joins": Case(
        faults=_chain(("client", "backward"), ("server", "joining"))
    ),
    "server killed, then the client as it joins": Case(
        faults=_chain(("server", "server step"), ("client", "joining"))
    ),
    "client killed, and again as it is let in": Case(
        faults=(
            fault("client", "forward", "kill"),
            fault("server", "joining", "ask", after=fault("client", "forward", "kill")),
        ),
        act="client",
    ),
    "client killed, and again when it has joined": Case(
        faults=_chain(("client", "forward"), ("client", "joined"))
    ),
    "client frozen, the server killed meanwhile": Case(
        faults=(fault("client", "forward", "stop"),), act="server", lease=LEASE, grace=2.0
    ),
}

AT_ONCE = {
    f"{who} killed at {moment}, {schedule}": Case(faults=_chain((who, moment)), schedule=schedule)
    for who, moment, schedule in (
        ("client", "forward", "parallel"),
        ("client", "hand-off upload", "concat"),
        ("server", "server step", "splitfed"),
    )
} | {
    "client frozen at forward, parallel": Case(
        faults=(fault("client", "forward", "stop"),), lease=LEASE, schedule="parallel"
    ),
}

TAKEN_BACK = Fault(who="server", moment="backward", kind="ask", turn_of=REVOKED)
PUT_OUT = (
    {
        "a site revoked in its turn": Case(faults=(TAKEN_BACK,), act="revoke"),
    }
    | {
        f"a site revoked, and the server killed {when}": Case(
            faults=(
                TAKEN_BACK,
                Fault(who="server", moment=moment, kind="kill", turn_of="ward_a", after=TAKEN_BACK.name),
            ),
            act="revoke",
        )
        for moment, when in (
            ("key made", "as it is told of the new key"),
            ("key taken", "when it has the new key's epoch"),
        )
    }
    | {
        f"a site revoked, and the new key's maker killed {when}": Case(
            faults=(
                TAKEN_BACK,
                Fault(who="anybody", moment=moment, kind="kill", turn_of="", after=TAKEN_BACK.name),
            ),
            act="revoke",
        )
        for moment, when in (("key made", "as it sends it"), ("key taken", "before it hands it on"))
    }
)

KEYS = {
    f"{who} killed {when}": Case(faults=(Fault(who=who, moment=moment, kind="kill", turn_of=turn_of),))
    for who, moment, turn_of, when in (
        ("ward_a", "key made", "ward_a", "as it makes the first key"),
        ("ward_a", "key taken", "ward_a", "before it hands the key on"),
        ("ward_b", "asking for a key", "ward_b", "as it asks for the key"),
        ("server", "key made", "ward_a", "as it is told of the key"),
        ("server", "key taken", "ward_a", "when it has the key's epoch"),
        ("server", "asking for a key", "ward_b", "as it is asked for the key"),
    )
}

AT_THE_END = {
    f"{who} {what} at {moment}": Case(
        faults=(fault(who, moment, kind),),
        act="cut" if kind == "ask" else "",
        grace=5.0,
        goes_on=False,
        lease=LEASE if kind == "stop" else 30.0,
    )
    for what, kind in (("killed", "kill"), ("frozen", "stop"), ("cut off", "ask"))
    for who, moment in (
        ("client", "farewell"),
        ("server", "farewell"),
        ("client", "comparing heads"),
        ("server", "comparing heads"),
        ("server", "goodbye"),
        ("server", "summary"),
    )
}


class Table:
    """What became of each cell."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str, str], str] = {}
        self.others: dict[str, str] = {}
        self.notes: list[str] = []

    def __str__(self) -> str:
        columns = [(kind, who) for kind in KINDS for who in WHO]
        rows = [["", *(f"{kind} {who}" for kind, who in columns)]]
        rows += [[m, *(self.cells.get((k, w, m), "not run") for k, w in columns)] for m in MOMENTS]
        lines = [
            "".join(f"{cell:<19}" if i == 0 else f"{cell:<14}" for i, cell in enumerate(r)) for r in rows
        ]
        lines += [f"{name:<66}{what}" for name, what in self.others.items()]
        return "\n".join([*lines, *self.notes])


@pytest.fixture(scope="module")
def table(request):
    """Collects the cells, and prints them at the end."""
    made = Table()
    yield made
    seconds = "Seconds until training went on; after a server was frozen or cut off, from its return."
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n\n{seconds}\n\n{made}\n")


@pytest.fixture(scope="module")
def stage():
    with open_stage() as opened:
        yield opened


def _played(play: Play) -> float:
    """Plays and judges a run; the logs are shown if it failed."""
    try:
        seconds = play.play()
        play.judge()
    except Failed as failed:
        tails = [f"--- {who}\n{play.printed(who)[-3000:]}" for who in ("server", "ward_a", "ward_b")]
        pytest.fail("\n".join([str(failed), *tails]), pytrace=False)
    return seconds


@contextmanager
def _row(table: Table, cells: dict, name):
    """Writes down that a cell could not be played, or failed, and why."""
    try:
        yield
    except BaseException as error:
        cells[name] = "n/a" if isinstance(error, pytest.skip.Exception) else "FAILED"
        what = name if isinstance(name, str) else " ".join(name)
        table.notes.append(f"{cells[name]}: {what}: {str(error).splitlines()[0]}")
        raise


@pytest.mark.parametrize(("kind", "who", "moment"), CELLS)
def test_a_fault_costs_one_turn_at_most(kind, who, moment, stage, table, tmp_path):
    """Oracle: the replay; both clients train in the last round; every process ends well."""
    with _row(table, table.cells, (kind, who, moment)):
        if kind == "cut" and (reason := why_not()):
            pytest.skip(reason)
        hosts = Hosts(["server", "ward_a", "ward_b"]) if kind == "cut" else None
        case = Case(
            faults=(fault(who, moment, "ask" if kind == "cut" else kind),),
            act="cut" if kind == "cut" else "",
            lease=LEASE if kind == "stop" else 30.0,
        )
        try:
            seconds = _played(Play(stage, case, tmp_path, hosts))
        finally:
            if hosts is not None:
                hosts.remove()
        table.cells[kind, who, moment] = f"ok {seconds:.1f} s"


@pytest.mark.slow
@pytest.mark.parametrize("name", TWICE)
def test_a_second_fault_during_recovery(name, stage, table, tmp_path):
    """Oracle: the replay, as for one fault."""
    with _row(table, table.others, name):
        table.others[name] = f"ok {_played(Play(stage, TWICE[name], tmp_path)):.1f} s"


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_a_fault_as_the_sites_agree_on_a_key(name, stage, table, tmp_path):
    """Oracle: the replay; whoever comes back has the key that it made, or is given it."""
    with _row(table, table.others, name):
        table.others[name] = f"ok {_played(Play(stage, KEYS[name], tmp_path)):.1f} s"


@pytest.mark.slow
@pytest.mark.parametrize("name", PUT_OUT)
def test_a_fault_as_a_site_is_put_out(name, stage, table, tmp_path):
    """Oracle: the replay; the site that is revoked ends with that error, and the others have a new key."""
    with _row(table, table.others, name):
        table.others[name] = f"ok {_played(Play(stage, PUT_OUT[name], tmp_path)):.1f} s"


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_ONCE)
def test_a_fault_where_sites_train_at_once(name, stage, table, tmp_path):
    """Oracle: the replay; the turn is undone for both, and whoever is there begins it again."""
    with _row(table, table.others, name):
        table.others[name] = f"ok {_played(Play(stage, AT_ONCE[name], tmp_path)):.1f} s"


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_THE_END)
def test_a_fault_at_the_end(name, stage, table, tmp_path):
    """Oracle: the replay; every process ends, and both clients have the model."""
    with _row(table, table.others, name):
        cut = AT_THE_END[name].act == "cut"
        if cut and (reason := why_not()):
            pytest.skip(reason)
        hosts = Hosts(["server", "ward_a", "ward_b"]) if cut else None
        try:
            _played(Play(stage, AT_THE_END[name], tmp_path, hosts))
        finally:
            if hosts is not None:
                hosts.remove()
        assert all((tmp_path / who / "clients" / who / "model.pt").exists() for who in ("ward_a", "ward_b"))
        table.others[name] = "ok"


def _fill(disk) -> None:
    disk.fill()


def _empty(disk) -> None:
    disk.empty()


def _read_only(disk) -> None:
    for how in ("--bind", "-oremount,ro,bind"):
        place = str(disk.folder / "checkpoints")
        subprocess.run(["mount", how, *([place] if how == "--bind" else []), place], check=True)


def _writable(disk) -> None:
    subprocess.run(["umount", str(disk.folder / "checkpoints")], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "moment", "spoil", "mend", "why"),
    [
        ("disk full at checkpoint time", "hand-off upload", _fill, _empty, "No space left on device"),
        ("disk full while a batch is computed", "forward", _fill, _empty, "No space left on device"),
        ("disk full while a client evaluates", "evaluation", _fill, _empty, "No space left on device"),
        (
            "run folder read-only at checkpoint time",
            "hand-off upload",
            _read_only,
            _writable,
            "Read-only file system",
        ),
    ],
)
def test_a_run_folder_that_cannot_be_written(
    name, moment, spoil, mend, why, stage, table, small_disk, tmp_path
):
    """Oracle: server and sites end with that error and its code, again and again; what was there is whole; with room
    again they go on by themselves, to the replay.
    """
    with _row(table, table.others, name):
        case = Case(faults=(fault("server", moment, "ask"),), act=lambda: spoil(small_disk))
        play, code = Play(stage, case, tmp_path), CheckpointError.exit_code
        try:
            play.start()
            play.until(lambda: {(who, code) for who in ("server", "ward_a", "ward_b")} <= set(play.ends()))
            play.until(lambda: play.ends().count(("server", code)) >= 2)
            assert all(read_checkpoint(path) for path in (small_disk.folder / "checkpoints").glob("*.pt"))
            mend(small_disk)
            play.until(lambda: play.codes().keys() >= {"server", "ward_a", "ward_b"})
        finally:
            play.kill()
        errors = [line for line in play.printed("server").splitlines() if line.startswith("suture: ")]
        assert errors and all(why in line for line in errors), play.printed("server")
        play.judge()
        table.others[name] = "ok, went on by themselves"


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", [STRUCK], indirect=True)
def test_a_model_that_cannot_be_written(stage, table, small_disk, tmp_path):
    """Oracle: the site ends with that error and its code; with room again it comes back and gets its model, while the
    server waits for it.
    """
    name = "disk full as a client writes its model"

    def fill() -> None:
        play.until(lambda: "ward_a" in play.codes())  # nobody else keeps the server
        _fill(small_disk)

    with _row(table, table.others, name):
        case = Case(faults=(fault("client", "farewell", "ask"),), act=fill, goes_on=False)
        play, model = Play(stage, case, tmp_path), small_disk.folder / "clients" / STRUCK / "model.pt"
        try:
            play.start()
            play.until(lambda: (STRUCK, CheckpointError.exit_code) in play.ends())
            assert not model.exists() and "server" not in play.codes()
            _empty(small_disk)
            play.until(lambda: play.codes().keys() >= {"server", "ward_a", "ward_b"})
        finally:
            play.kill()
        assert model.exists() and "No space left on device" in play.printed(STRUCK)
        play.judge()
        table.others[name] = "ok, went on by themselves"
