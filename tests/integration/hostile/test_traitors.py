"""A hostile site among honest ones: it joins, takes turns and signs as they do, and then does one thing otherwise.

Real processes over gRPC: `suture serve`, `suture join`, and `suture join` with one thing changed (`traitor`). Every attack
was really sent and answered, and a control by the same means, with nothing changed, ends well. Oracle: where the server
can see what is wrong it refuses at once, the log names the site and the others go on; where only sites can see it the one
that opens it accuses, another one confirms, the hostile site is put out, and the honest ones finish with one model, that of
the turns that counted. ``make hostile`` prints the table.
"""

from collections.abc import Iterator

import pytest
from forker import Forker
from rows import Row, Table
from runs import EVICTED, HANDOFF, STOPPED, WIRE, Case, Played, finished_well, play_all
from traitor import BAD

# Dozens of runs: `make hostile` plays them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PARALLEL = ("--schedule=parallel",)
SECTION = "a hostile site"
SHORT = "--line-timeout=3"

ACCUSED: dict[str, Case] = {
    **{f"it seals {name}": Case(change=name) for name in BAD},
    "it seals a frame that is truncated inside": Case(change="truncated inside"),
    "it seals under another key": Case(change="under another key"),
    "it signs an old one of its own again": Case(change="replayed, signed again"),
    "it signs one that it sealed for another run": Case(change="of another run, signed again"),
    "it seals NaN as its share of a mean": Case(change="NaN", serve=PARALLEL),
    "its share counts 10**308 images": Case(change="a share that counts 10**308 images", serve=PARALLEL),
    "it seals NaN and leaves for good at once": Case(change="leaves at once"),
    "it seals NaN and leaves when it is accused": Case(change="leaves while it is accused"),
    "it founds the run with parts of NaN": Case(
        change="NaN in the initial parts", by="ward_a", serve=PARALLEL
    ),
}
"""What only sites can see. ``serve``: where all open the same thing at once, so that two accuse together."""

PUT_OUT: dict[str, Case] = {
    "it accuses one falsely, in words that forge a log": Case(change="a false accusation"),
    "as founder it releases a key that is none": Case(change="grants of a key that is none", by="ward_a"),
    "as founder it releases what does not open": Case(change="grants that do not open", by="ward_a"),
    "in league with the server: a first epoch without ward_c": Case(
        change="a first epoch that puts ward_c out", by="ward_a", server="takes any epoch"
    ),
}
"""What the others put it out for without a verdict, or with one that is against it."""

REFUSED: dict[str, tuple[Case, int]] = {
    "as founder it states an epoch without ward_c": (
        Case(change="a first epoch that puts ward_c out", by="ward_a"),
        WIRE,
    ),
    "it refuses the key in its turn, again and again": (Case(change="refuses the key for ever"), WIRE),
}
"""What the server refuses, after which the site has given up; and its exit code."""

HARMLESS: dict[str, Case] = {
    "control: nothing changed": Case(change="nothing"),
    "it offers bad hand-offs, which the server refuses": Case(change="bad commits"),
    "it states what it may not": Case(change="bad statements"),
    "it announces 10**12 batches and sends one": Case(
        change="announces 10**12 batches and sends one", serve=PARALLEL
    ),
}
"""After which everybody, the hostile site too, ends well."""

OTHERS: dict[str, Case] = {
    "of two sites it seals NaN": Case(change="NaN", sites=("ward_a", "ward_b")),
    "it never says goodbye": Case(
        change="never says goodbye",
        abides=("ward_b",),
        options={"lease": 5},
        serve=(SHORT,),
        join=(SHORT, "--patience=20"),
    ),
    "as the one that averages it leaves ward_b's share out": Case(
        change="a share left out of the mean", by="ward_a", serve=PARALLEL
    ),
    "its farewell names a hand-off that there is none of": Case(change="a false farewell"),
    "OPEN: it seals finite numbers with which all diverge": Case(change="finite poison", by="ward_a"),
}


@pytest.fixture(scope="module")
def played(warm: Forker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    """All runs, over."""
    refused = {name: case for name, (case, _) in REFUSED.items()}
    cases = ACCUSED | PUT_OUT | refused | HARMLESS | OTHERS
    return play_all(warm, tmp_path_factory.mktemp("traitors"), cases)


@pytest.fixture(scope="module", autouse=True)
def rows(played: dict[str, Played], table: Table) -> Iterator[None]:
    """One row a run; below, one for each thing that was tried in it."""
    for name, run in played.items():
        came = run.last_line(run.case.by) or (
            "ended well" if run.codes.get(run.case.by) == 0 else "did not end"
        )
        by = f"{run.case.by} of {len(run.case.sites)}" + (" + server" if run.case.server else "")
        table.add(SECTION, Row(name, by, run.was_sent, came, run.ends()))
        if run.case.change in ("bad commits", "bad statements"):
            for line in run.said():
                came = line["text"] or "taken"
                table.add(SECTION, Row(f"  {line['attack']}", by, bool(line["answered"]), came, run.ends()))
    yield


def put_out(run: Played) -> None:
    """The hostile site was put out, and everybody's log that matters says so by name."""
    hostile = run.case.by
    assert run.codes[hostile] == EVICTED
    assert f"{hostile} was put out of this run" in run.stage.log("server")
    assert f"suture: {hostile} was put out of this run" in run.stage.log(hostile)


@pytest.mark.parametrize("attack", ACCUSED)
def test_who_seals_what_no_honest_site_does_is_put_out_by_two_and_they_finish(
    played: dict[str, Played], attack: str
) -> None:
    """Oracle: the logs; the honest sites' one model is that of the run in which only the turns that counted were played."""
    run = played[attack]
    assert run.was_sent
    put_out(run)
    hostile, log = run.case.by, run.stage.log("server")
    assert f" accuses {hostile}: the hand-off of turn" in log and "went back to what held after turn" in log
    assert [one for one in run.honest if f"{hostile}: " in run.stage.log(one)], (
        "no honest site's log names it"
    )
    # Who has left for good has no other reason left; what it sealed is undone all the same.
    if "leaves" not in attack:
        assert f"{hostile} was put out of this run: ward_" in log and " say: the hand-off of turn" in log
    if "replayed" in run.case.change:
        assert run.trained().count(hostile) == 1, "its first turn was honest, and counts"
    else:
        assert hostile not in run.trained()
    finished_well(run, run.honest, replayed=hostile != "ward_a")


@pytest.mark.parametrize("attack", PUT_OUT)
def test_a_liar_is_put_out_and_the_others_finish(played: dict[str, Played], attack: str) -> None:
    """Oracle: its exit code, the reasons in the log, one model at the honest sites; it trained nothing that counted."""
    run = played[attack]
    assert run.was_sent
    put_out(run)
    assert run.case.by not in run.trained()
    finished_well(run, run.honest, replayed=run.case.by != "ward_a")


def test_what_a_site_says_forges_no_line_of_anybodys_log(played: dict[str, Played]) -> None:
    """Oracle: the false accuser's reason would begin a line of its own and clear the terminal; ward_a was not put out."""
    run = played["it accuses one falsely, in words that forge a log"]
    assert "ward_b accuses ward_a: bad" in run.stage.log("server")
    for name in ("server", *run.case.sites):
        log = run.stage.log(name)
        assert "\x1b" not in log and "\n12:00:00 server: ward_a was put out" not in log
    assert "it accused ward_a of a bad hand-off, which ward_c opened" in run.stage.log("server")


def test_an_epoch_that_puts_an_honest_site_out_is_refused_by_the_sites(played: dict[str, Played]) -> None:
    """Oracle: the server takes it and passes it on; both others say why they do not."""
    run = played["in league with the server: a first epoch without ward_c"]
    assert [line for line in run.stage.said("server") if line["came"] == "sent"]
    for name in run.honest:
        assert "puts ward_c out, and no two sites have convicted it" in run.stage.log(name)


@pytest.mark.parametrize("attack", REFUSED)
def test_what_the_server_refuses_costs_the_others_nothing(played: dict[str, Played], attack: str) -> None:
    """Oracle: the refusal in the server's log, with the site's name; its exit code; one model at the others."""
    run, code = played[attack], REFUSED[attack][1]
    assert run.was_sent and run.codes[run.case.by] == code
    assert f"of {run.case.by}: " in run.stage.log("server") and "refused" in run.stage.log("server")
    finished_well(run, run.honest)


@pytest.mark.parametrize("attack", HARMLESS)
def test_after_refusals_all_go_on_and_the_control_ends_well(played: dict[str, Played], attack: str) -> None:
    """Oracle: the model of the turns that counted, at all three."""
    run = played[attack]
    assert run.was_sent
    finished_well(run, run.case.sites, replayed=not run.case.serve)
    assert "put out" not in run.stage.log("server") and set(run.trained()) == set(run.case.sites)


@pytest.mark.parametrize(
    ("attack", "least"),
    [("it offers bad hand-offs, which the server refuses", 14), ("it states what it may not", 21)],
)
def test_each_thing_that_was_tried_was_refused_by_the_server(
    played: dict[str, Played], attack: str, least: int
) -> None:
    """Oracle: the kind of the server's own answer to each; that of the honest one which followed by the same means."""
    run = played[attack]
    tried = [line for line in run.said() if not line["attack"].startswith("control")]
    controls = [line for line in run.said() if line["attack"].startswith("control")]
    assert len(tried) >= least and len({line["attack"] for line in tried}) == len(tried)
    assert not [line for line in tried if (line["came"], line["answered"]) != ("refused", ["refusal"])]
    assert [(line["came"], line["answered"]) for line in controls] == [("taken", ["answer"])]
    assert "of ward_b: " in run.stage.log("server")


def test_with_two_sites_the_run_stops_and_names_both(played: dict[str, Played]) -> None:
    """Oracle: nobody can tell which of the two is at fault: all end with an error that names both."""
    run = played["of two sites it seals NaN"]
    assert run.was_sent and run.codes == dict.fromkeys(("server", "ward_a", "ward_b"), STOPPED)
    for name in run.codes:
        assert "ward_a accuses ward_b of a bad hand-off, and no third site is here" in run.last_line(name)
    assert not [name for name in run.case.sites if run.stage.model(name).exists()]


def test_who_never_says_goodbye_keeps_the_model_from_nobody(played: dict[str, Played]) -> None:
    """Oracle: it pings on, and is lost after the lease; the others have the model, and are told whose word is missing."""
    run = played["it never says goodbye"]
    assert run.was_sent and "ward_b" not in run.codes
    finished_well(run, run.honest)
    assert "ward_b is lost: the run is over, and it has not said goodbye for 5 s" in run.stage.log("server")
    for name in run.honest:
        assert "ward_b took part, and nothing says what it ends with" in run.stage.log(name)


def test_a_share_that_is_left_out_of_a_mean_is_missed_by_its_owner(played: dict[str, Played]) -> None:
    """Oracle: who averages signs of which shares; its owner stops, and names both who may have done it."""
    run = played["as the one that averages it leaves ward_b's share out"]
    assert run.was_sent and run.codes["ward_b"] == HANDOFF
    said = run.last_line("ward_b")
    assert "leaves this site's share out" in said and "the server did not pass it on, or ward_a" in said
    finished_well(run, ["ward_c"])


def test_what_is_open_still_is(played: dict[str, Played]) -> None:
    """What docs/security.md lists as open, so that it is noticed when it is no longer. Oracle: exit codes."""
    poisoned = played["OPEN: it seals finite numbers with which all diverge"]
    assert poisoned.was_sent and {poisoned.codes[name] for name in poisoned.honest} == {WIRE}


def test_a_false_farewell_takes_the_model_from_nobody(played: dict[str, Played]) -> None:
    """Oracle: two of three end with one model, and are told who ends with another."""
    run = played["its farewell names a hand-off that there is none of"]
    assert run.was_sent
    finished_well(run, run.honest)
    for name in run.honest:
        assert "ward_b ends with the hand-off of turn" in run.stage.log(name)
        assert "as 2 of 3 do" in run.stage.log(name)
