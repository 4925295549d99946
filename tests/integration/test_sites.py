"""A run of sites that are started each by itself, refused, killed and started again, cut off and connected again.

Oracle: the same sites' turns in one process, undisturbed: weights_sha256, bit for bit.
"""

import json
import signal
import time
from pathlib import Path

import pytest
from sites import TURNS, Sites

from suture.runtime.errors import ConfigError, EvictedError
from suture.runtime.records.outbox import LEFT_FILE
from suture.runtime.records.tracking import METRICS_FILE, read_metrics
from suture.studies.bench.rigs.breakable import BreakableLine

# Minutes of starting processes: `make sites` runs them.
pytestmark = pytest.mark.slow


@pytest.fixture
def sites(tmp_path):
    """Makes sites whose processes are gone after the test."""
    made: list[Sites] = []

    def make(**options: object) -> Sites:
        made.append(Sites(tmp_path, **options))
        return made[-1]

    yield make
    for group in made:
        group.stop()


def _digest(sites: Sites) -> str:
    return json.loads((sites.run / "summary.json").read_text())["weights_sha256"]


def _has_its_own_numbers(sites: Sites, name: str, folder: Path) -> None:
    """Oracle: what the server was told of this site: the same losses and scores, step by step; its summary."""
    own = folder / "clients" / name
    told = [line for line in read_metrics(sites.run / METRICS_FILE) if line["client"] == name]
    written = read_metrics(own / METRICS_FILE)
    assert told and written == [_nearly(line) for line in told]
    summary = json.loads((own / "summary.json").read_text())
    assert summary["weights_sha256"] == _digest(sites) and summary["images"]["train"] > 0
    assert summary["bytes"]["up"] > 0 and summary["bytes"]["down"] > 0 and summary["seconds"]["training"] > 0
    assert "the last round's model" in sites.log(name) and str(own / "model.pt") in sites.log(name)


def _nearly(line: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in line.items() if not isinstance(value, float)} | {
        name: pytest.approx(value, rel=1e-6) for name, value in line.items() if isinstance(value, float)
    }


def test_sites_join_in_any_order_and_one_that_differs_is_refused_alone(sites, tmp_path):
    """Oracle: the undisturbed run; the refused site's line and code; each site's model is the whole net."""
    here = sites(epochs=2)
    here.join("ward_b")
    here.until(here.says("ward_b", f"no server at {here.address} yet"))
    here.serve("--clients", "2")
    here.until(here.says("server", "ward_b joined"))
    here.join("ward_c", "--lr", "0.5")
    assert here.ended("ward_c") == ConfigError.exit_code
    assert here.log("ward_c").count("suture: this site asks for lr = 0.5, the server's run has 0.0003") == 1
    here.join("ward_a")
    assert [here.ended(name) for name in ("ward_a", "ward_b", "server")] == [0, 0, 0]
    assert _digest(here) == here.digest_in_one_process(["ward_a", "ward_b"], "round-robin", tmp_path / "one")
    for name in ("ward_a", "ward_b"):
        own = tmp_path / name / "clients" / name
        assert (own / "model.pt").exists() and (own / LEFT_FILE).stat().st_mode & 0o777 == 0o600
        left = [json.loads(line)["kind"] for line in (own / LEFT_FILE).read_text().splitlines()]
        assert left[0] == "hello" and left[-1] == "leave" and left.count("commit") == 2
        _has_its_own_numbers(here, name, tmp_path / name)
    assert not (tmp_path / "ward_c" / "clients" / "ward_c" / "model.pt").exists()


def test_a_site_killed_in_its_turn_comes_back_and_takes_up_its_place(sites, tmp_path):
    """Oracle: a replay of the turns that counted. The other site is frozen until the killed one is back."""
    here = sites(epochs=3, train_images=40)
    here.serve("--clients", "2")
    here.join("ward_a")
    here.join("ward_b")
    here.until(lambda: here.steps("ward_b") >= 2)  # it has taken the hand-off
    here.member("ward_b").send_signal(signal.SIGKILL)
    other = here.member("ward_a")
    here.until(lambda: here.events("lost", "ward_b") == 1)
    other.send_signal(signal.SIGSTOP)
    try:
        here.until(lambda: here.events("joined", "ward_b") == 2)
    finally:
        other.send_signal(signal.SIGCONT)
    assert [here.ended(name) for name in ("ward_a", "ward_b", "server")] == [0, 0, 0]
    assert here.events("rolled_back", "ward_b") == 1 and here.events("lost", "ward_a") == 0
    turns = [json.loads(line) for line in (here.run / TURNS).read_text().splitlines()]
    trained = [(turn["round"], turn["client"]) for turn in turns if turn["kind"] == "train"]
    assert trained[:2] == [(1, "ward_a"), (2, "ward_a")] and trained[-1] == (3, "ward_b")
    for name in ("ward_a", "ward_b"):
        _has_its_own_numbers(here, name, tmp_path / name)
    replay = f"replay:{here.run / TURNS}"
    assert _digest(here) == here.digest_in_one_process(["ward_a", "ward_b"], replay, tmp_path / "one")


def test_a_killed_server_takes_up_its_run_and_the_same_processes_find_it_again(sites, tmp_path):
    """Oracle: the undisturbed run: a crash of the server costs nobody a turn; the sites' process ids stay."""
    here = sites(epochs=3, train_images=24)
    here.serve("--clients", "2")
    here.join("ward_a")
    here.join("ward_b")
    here.until(lambda: here.turns() >= 3)
    before = {name: here.member(name).pid for name in ("ward_a", "ward_b")}
    here.member("server").send_signal(signal.SIGKILL)
    assert [here.ended(name) for name in ("ward_a", "ward_b", "server")] == [0, 0, 0]
    for name in ("ward_a", "ward_b"):
        assert f"lost the server at {here.address}" in here.log(name)
        assert here.processes[name].pid == before[name]
    assert "resumed after turn" in here.log("server")
    assert _digest(here) == here.digest_in_one_process(["ward_a", "ward_b"], "round-robin", tmp_path / "one")


@pytest.mark.parametrize(
    "at_both_ends", [True, False], ids=["both ends notice", "the server does not notice"]
)
def test_a_site_whose_connection_is_lost_trains_on_in_the_same_process(sites, tmp_path, at_both_ends):
    """Oracle: a replay of the turns that counted; process ids and events. It is lost in the site's turn.

    Where the server does not notice, as behind a proxy that holds connections, the site's name is taken until its lease
    has run out.
    """
    here = sites(epochs=4, train_images=40, lease=8)
    here.serve("--clients", "2")
    here.join("ward_a")
    with BreakableLine(here.address) as line:
        here.join("ward_b", at=line.address)
        here.until(lambda: here.steps("ward_b") >= 2)  # it has taken the hand-off
        before = here.member("ward_b").pid
        line.break_lines(at_both_ends=at_both_ends)
        here.until(lambda: here.events("joined", "ward_b") == 2)
        assert [here.ended(name) for name in ("ward_a", "ward_b", "server")] == [0, 0, 0]
    assert here.processes["ward_b"].pid == before
    assert ("ward_b is in the run already" in here.log("ward_b")) is not at_both_ends
    assert here.events("lost", "ward_b") == here.events("rolled_back", "ward_b") == 1
    assert here.events("lost", "ward_a") == 0
    turns = [json.loads(line) for line in (here.run / TURNS).read_text().splitlines()]
    assert {turn["client"] for turn in turns if turn["round"] == 4} == {"ward_a", "ward_b"}
    replay = f"replay:{here.run / TURNS}"
    assert _digest(here) == here.digest_in_one_process(["ward_a", "ward_b"], replay, tmp_path / "one")


@pytest.mark.parametrize("frozen", ["server", "ward_b"])
def test_a_frozen_process_is_not_given_up_before_its_lease_runs_out(sites, tmp_path, frozen):
    """Oracle: the events and the undisturbed run. The frozen process's kernel still acknowledges what comes: unlike a
    cable that is cut, it is given up by nobody after the line timeout, and goes on where it was. Its messages are
    small: one that is frozen while it takes a longer one, such as a hand-off, is lost (`service.common_options`).
    """
    here = sites(epochs=2, train_images=40, batch_size=2, lease=60, line_timeout=2)
    here.serve("--clients", "2")
    here.join("ward_a")
    here.join("ward_b")
    here.until(lambda: here.steps("ward_b") >= 2)  # it has taken the hand-off
    process = here.member(frozen)
    process.send_signal(signal.SIGSTOP)
    try:
        woken = time.monotonic() + 12
        here.until(lambda: time.monotonic() > woken)
    finally:
        process.send_signal(signal.SIGCONT)
    assert [here.ended(name) for name in ("ward_a", "ward_b", "server")] == [0, 0, 0]
    assert not any(here.events("lost", name) for name in ("ward_a", "ward_b"))
    assert not any("lost the server" in here.log(name) for name in ("ward_a", "ward_b"))
    assert _digest(here) == here.digest_in_one_process(["ward_a", "ward_b"], "round-robin", tmp_path / "one")


# What a site's own people want ---------------------------------------------------------------------


def _trained(sites: Sites) -> list[tuple[int, str]]:
    turns = [json.loads(line) for line in (sites.run / TURNS).read_text().splitlines()]
    return [(turn["round"], turn["client"]) for turn in turns if turn["kind"] == "train"]


def test_a_site_that_leaves_ends_well_and_the_others_go_on_without_it(sites, tmp_path):
    """Oracle: codes, sentences, the turns that counted, the second epoch; the same site is not let in again."""
    here = sites(epochs=6, train_images=24)
    assert here.ask("leave", "ward_b")[0] == ConfigError.exit_code
    here.serve("--clients", "3")
    for name in here.NAMES:
        here.join(name)
    here.until(lambda: here.steps("ward_b") >= 2)
    code, said = here.ask("leave", "ward_b")
    assert code == 0 and "ward_b leaves run" in said
    assert here.ended("ward_b") == 0
    assert "ward_b has left this run" in here.log("ward_b")
    here.join("ward_b")
    assert here.ended("ward_b") == EvictedError.exit_code
    assert "for good, by 'suture leave', and cannot come back into it" in here.log("ward_b")
    assert [here.ended(name) for name in ("ward_a", "ward_c", "server")] == [0, 0, 0]
    trained = _trained(here)
    assert (1, "ward_b") in trained and (6, "ward_b") not in trained
    assert {name for round, name in trained if round == 6} == {"ward_a", "ward_c"}
    assert here.events("rolled_back", "ward_b") <= 1 and here.events("put_out", "ward_b") == 1
    assert not (tmp_path / "ward_b" / "clients" / "ward_b" / "model.pt").exists()
    assert (tmp_path / "ward_c" / "clients" / "ward_c" / "model.pt").exists() and _digest(here)
    assert here.ask("leave", "ward_a")[0] == ConfigError.exit_code, "its join has ended"


def test_a_site_that_pauses_stays_and_trains_again_when_the_pause_has_ended(sites, tmp_path):
    """Oracle: a replay of the turns that counted; the pause is noticed while it waits, and outlives a restart."""
    here = sites(epochs=8, train_images=24)
    here.serve("--clients", "2")
    here.join("ward_a")
    here.join("ward_b")
    here.until(lambda: here.steps("ward_b") >= 2)
    assert here.ask("pause", "ward_b")[0] == 0
    here.until(here.says("ward_b", "ward_b pauses: "))
    other = here.member("ward_a")
    other.send_signal(signal.SIGSTOP)  # so that the run is not over before the site is back
    try:
        code, said = here.ask("pause", "ward_b", "--status")
        assert code == 0 and "ward_b pauses in run" in said
        here.until(lambda: here.events("lost", "ward_b") == 1)
        here.member("ward_b").send_signal(signal.SIGKILL)
        here.until(lambda: here.log("ward_b").count("ward_b pauses: ") == 2)
        assert here.ask("pause", "ward_b", "--end")[0] == 0
        asked = time.monotonic()
        here.until(lambda: here.events("joined", "ward_b") == 2)
        assert time.monotonic() - asked < 10
    finally:
        other.send_signal(signal.SIGCONT)
    assert [here.ended(name) for name in ("ward_a", "ward_b", "server")] == [0, 0, 0]
    trained = _trained(here)
    assert (1, "ward_b") in trained and (8, "ward_b") in trained and (2, "ward_a") in trained
    replay = f"replay:{here.run / TURNS}"
    assert _digest(here) == here.digest_in_one_process(["ward_a", "ward_b"], replay, tmp_path / "one")


def test_a_site_that_only_evaluates_has_scores_and_the_model_and_changes_nothing(sites, tmp_path):
    """Oracle: weights_sha256 of the two others alone, in one process; the turns that counted."""
    here = sites(epochs=2)
    here.serve("--clients", "3")
    own = {name: here.options.pop(name) for name in ("train_images", "validation_images", "test_images")}
    here.join("ward_c", "--evaluate-only", "--test-images", "6")
    here.options |= own
    here.until(here.says("server", "ward_c joined for evaluation only"))
    here.join("ward_a")
    here.join("ward_b")
    assert [here.ended(name) for name in (*here.NAMES, "server")] == [0, 0, 0, 0]
    assert "evaluates only, trains nothing: 6 test images" in here.log("ward_c")
    turns = [json.loads(line) for line in (here.run / TURNS).read_text().splitlines()]
    assert [(turn["round"], turn["kind"]) for turn in turns if turn["client"] == "ward_c"] == [
        (1, "evaluate"),
        (2, "evaluate"),
    ]
    summary = json.loads((here.run / "summary.json").read_text())
    assert summary["clients"]["ward_c"].keys() == {"test"}
    assert (tmp_path / "ward_c" / "clients" / "ward_c" / "model.pt").exists()
    assert _digest(here) == here.digest_in_one_process(["ward_a", "ward_b"], "round-robin", tmp_path / "one")
