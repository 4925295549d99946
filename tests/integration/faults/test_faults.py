"""Whatever is killed, frozen or cut off, and whenever: the others go on, nobody hangs, and nothing counts by half.

Oracle: the weights of the run in which the same turns counted and nothing happened, bit for bit (`replayed`).
``make faults`` plays every cell and prints the table; ``make test`` plays one of each kind.
"""

import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from cell import STRUCK, Case, Failed, Play
from hosts import Hosts, why_not
from plant import Fault
from warm import open_stage

from runtime.checkpoint import read_checkpoint
from runtime.errors import CheckpointError

KINDS = ("kill", "stop", "cut")
WHO = ("client", "server")
MOMENTS = (
    "waiting",
    "forward",
    "backward",
    "server step",
    "hand-off upload",
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
}

AT_ONCE = {
    f"{who} killed at {moment}, {schedule}": Case(faults=_chain((who, moment)), schedule=schedule)
    for who, moment, schedule in (
        ("client", "forward", "parallel"),
        ("client", "hand-off upload", "concat"),
        ("server", "server step", "splitfed"),
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
        lines += [f"{name:<47}{what}" for name, what in self.others.items()]
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


@pytest.fixture(scope="module")
def digests():
    """Replays that are known, by what they replay."""
    return {}


def _played(play: Play, digests: dict[str, str]) -> float:
    """Plays and judges a run; the logs are shown if it failed."""
    try:
        seconds = play.play()
        play.judge(digests)
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
def test_a_fault_costs_one_turn_at_most(kind, who, moment, stage, table, digests, tmp_path):
    """Oracle: the replay; both clients train in the last round; every process ends well."""
    with _row(table, table.cells, (kind, who, moment)):
        if kind == "cut" and (reason := why_not()):
            pytest.skip(reason)
        hosts = Hosts(["server", "ward_a", "ward_b"]) if kind == "cut" else None
        case = Case(
            faults=(fault(who, moment, "ask" if kind == "cut" else kind),),
            act="cut" if kind == "cut" else "",
            lease=30.0 if kind == "kill" else LEASE,
        )
        try:
            seconds = _played(Play(stage, case, tmp_path, hosts), digests)
        finally:
            if hosts is not None:
                hosts.remove()
        table.cells[kind, who, moment] = f"ok {seconds:.1f} s"


@pytest.mark.slow
@pytest.mark.parametrize("name", TWICE)
def test_a_second_fault_during_recovery(name, stage, table, digests, tmp_path):
    """Oracle: the replay, as for one fault."""
    with _row(table, table.others, name):
        table.others[name] = f"ok {_played(Play(stage, TWICE[name], tmp_path), digests):.1f} s"


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_ONCE)
def test_a_fault_where_sites_train_at_once(name, stage, table, digests, tmp_path):
    """Oracle: the replay; the turn is undone for both, and whoever is there begins it again."""
    with _row(table, table.others, name):
        table.others[name] = f"ok {_played(Play(stage, AT_ONCE[name], tmp_path), digests):.1f} s"


@pytest.fixture
def small_disk(tmp_path):
    """A run folder on a disk of its own, of 16 MB."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path / "run"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        for place in (folder / "checkpoints", folder):
            subprocess.run(["umount", "--lazy", str(place)], capture_output=True)


def _fill(run: Path) -> None:
    """Leaves no byte free."""
    with (run / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
        while True:
            ballast.write(bytes(4096))


def _empty(run: Path) -> None:
    (run / "ballast").unlink()


def _read_only(run: Path) -> None:
    for how in ("--bind", "-oremount,ro,bind"):
        place = str(run / "checkpoints")
        subprocess.run(["mount", how, *([place] if how == "--bind" else []), place], check=True)


def _writable(run: Path) -> None:
    subprocess.run(["umount", str(run / "checkpoints")], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spoil", "mend", "why"),
    [
        ("disk full at checkpoint time", _fill, _empty, "No space left on device"),
        ("run folder read-only at checkpoint time", _read_only, _writable, "Read-only file system"),
    ],
)
def test_a_checkpoint_that_cannot_be_written(
    name, spoil, mend, why, stage, table, digests, small_disk, tmp_path
):
    """Oracle: server and sites end with that error and its code; what was there is whole, and goes on to the replay."""
    with _row(table, table.others, name):
        case = Case(faults=(fault("server", "hand-off upload", "ask"),), act=lambda: spoil(small_disk))
        play = Play(stage, case, tmp_path)
        with pytest.raises(Failed, match="exit codes"):
            play.play()
        assert play.codes() == dict.fromkeys(("server", "ward_a", "ward_b"), CheckpointError.exit_code)
        error = [line for line in play.printed("server").splitlines() if line.startswith("suture: ")]
        assert len(error) == 1 and why in error[0], play.printed("server")
        assert "Traceback" not in play.printed("server")
        assert all(read_checkpoint(path) for path in (small_disk / "checkpoints").glob("*.pt"))
        mend(small_disk)
        play.start(faults=False)
        play.finish()
        play.judge(digests)
        table.others[name] = "ok, stopped and resumed"
