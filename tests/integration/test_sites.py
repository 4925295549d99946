"""A run of sites that are started each by itself, refused, killed and started again.

Oracle: the same sites' turns in one process, undisturbed: weights_sha256, bit for bit.
"""

import json
import signal

import pytest
from conftest import suture
from sites import TURNS, Sites

from runtime.errors import ConfigError

# Minutes of starting processes: `make sites` runs them.
pytestmark = pytest.mark.slow


@pytest.fixture
def sites(tmp_path):
    """Makes sites whose processes are gone after the test."""
    made: list[Sites] = []
    assert suture("keygen", str(tmp_path / "key")).code == 0

    def make(**options: object) -> Sites:
        made.append(Sites(tmp_path, tmp_path / "key", **options))
        return made[-1]

    yield make
    for group in made:
        group.stop()


def _digest(sites: Sites) -> str:
    return json.loads((sites.run / "summary.json").read_text())["weights_sha256"]


def test_sites_join_in_any_order_and_one_that_differs_is_refused_alone(sites, tmp_path):
    """Oracle: the undisturbed run; the refused site's line and code; each site's model is the whole net."""
    here = sites(epochs=2)
    here.join("ward_b")
    here.until(here.says("ward_b", f"no server at {here.address} yet"))
    here.serve("--clients", "2")
    here.until(here.says("server", "ward_b joined"))
    here.join("ward_c", "--lr", "0.5")
    assert here.ended("ward_c") == ConfigError.exit_code
    assert here.log("ward_c").count("suture: ward_c has lr = 0.5, the server has 0.0003") == 1
    here.join("ward_a")
    assert [here.ended(name) for name in ("ward_a", "ward_b", "server")] == [0, 0, 0]
    assert _digest(here) == here.digest_in_one_process(["ward_a", "ward_b"], "round-robin", tmp_path / "one")
    for name in ("ward_a", "ward_b"):
        assert (tmp_path / name / "clients" / name / "model.pt").exists()
    assert not (tmp_path / "ward_c" / "clients" / "ward_c" / "model.pt").exists()


def test_a_site_killed_in_its_turn_comes_back_and_takes_up_its_place(sites, tmp_path):
    """Oracle: a replay of the turns that counted. The other site is frozen until the killed one is back."""
    here = sites(epochs=3, train_images=40)
    here.serve("--clients", "2")
    here.join("ward_a")
    here.join("ward_b")
    here.until(lambda: here.turns() >= 1)  # it is ward_b's turn now
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
    assert "suture: it was ended by SIGKILL; starting it again in 0.25 s (1 of 10)" in here.log("ward_b")
    turns = [json.loads(line) for line in (here.run / TURNS).read_text().splitlines()]
    trained = [(turn["round"], turn["client"]) for turn in turns if turn["kind"] == "train"]
    assert trained[:2] == [(1, "ward_a"), (2, "ward_a")] and trained[-1] == (3, "ward_b")
    replay = f"replay:{here.run / TURNS}"
    assert _digest(here) == here.digest_in_one_process(["ward_a", "ward_b"], replay, tmp_path / "one")


def test_a_killed_server_takes_up_its_run_and_its_sites_find_it_again(sites, tmp_path):
    """Oracle: the undisturbed run: a crash of the server costs nobody a turn, and nobody's consent is asked for."""
    here = sites(epochs=3, train_images=24)
    here.serve("--clients", "2")
    here.join("ward_a")
    here.join("ward_b")
    here.until(lambda: here.turns() >= 3)
    here.member("server").send_signal(signal.SIGKILL)
    assert [here.ended(name) for name in ("ward_a", "ward_b", "server")] == [0, 0, 0]
    for name in ("ward_a", "ward_b"):
        assert "suture: it lost the others; starting it again" in here.log(name)
    assert "resumed after turn" in here.log("server")
    assert _digest(here) == here.digest_in_one_process(["ward_a", "ward_b"], "round-robin", tmp_path / "one")
