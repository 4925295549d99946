"""Four network namespaces in a star: a server and three sites, one of which is lost in the middle and comes back.

Oracle: a replay of the turns that counted, in one process.
"""

import json
import os
import shutil
import subprocess
import time

import pytest
from sites import TURNS, Sites

# Minutes of starting processes: `make sites` runs them.
pytestmark = pytest.mark.slow

SERVER = "suture_hub"
WARDS = ("ward_a", "ward_b", "ward_c")
ROUNDS = 6
"""Enough to go on without it: a site is back within seconds, and must not be too late."""
LINE_TIMEOUT, MARGIN = 15.0, 15.0


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)


def _inside(host: str) -> list[str]:
    return ["ip", "netns", "exec", host]


@pytest.fixture
def hospitals():
    """The server at 10.98.0.1 on a bridge; each ward at a cable's end of its own, 10.98.0.2 and up."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 to make network namespaces")
    if subprocess.run(["ip", "netns", "add", SERVER], capture_output=True).returncode:
        pytest.skip("this kernel or container does not let us make network namespaces")
    try:
        _ip(
            f"-n {SERVER} link add hub type bridge",
            f"-n {SERVER} link set hub up",
            f"-n {SERVER} link set lo up",
        )
        _ip(f"-n {SERVER} addr add 10.98.0.1/24 dev hub")
        for number, ward in enumerate(WARDS, start=2):
            _ip(f"netns add suture_{ward}", f"link add {ward} type veth peer name wan{number}")
            _ip(f"link set {ward} netns {SERVER}", f"link set wan{number} netns suture_{ward}")
            _ip(f"-n {SERVER} link set {ward} master hub", f"-n {SERVER} link set {ward} up")
            _ip(f"-n suture_{ward} addr add 10.98.0.{number}/24 dev wan{number}")
            _ip(f"-n suture_{ward} link set wan{number} up", f"-n suture_{ward} link set lo up")
        yield
    finally:
        for host in (SERVER, *(f"suture_{ward}" for ward in WARDS)):
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


def test_a_cut_cable_is_noticed_long_before_the_lease_and_three_finish(hospitals, tmp_path):
    """Oracle: the clock, under default settings (line 15 s, lease 120 s); events, process ids, the replayed weights."""
    here = Sites(tmp_path, host="10.98.0.1", epochs=ROUNDS, train_images=16)
    try:
        here.serve("--clients", "3", inside=_inside(SERVER))
        for ward in WARDS:
            here.join(ward, inside=_inside(f"suture_{ward}"))
        here.until(lambda: here.turns() >= 1)
        before = here.member("ward_b").pid
        _ip(f"-n {SERVER} link set ward_b down")
        cut = time.monotonic()
        here.until(lambda: here.events("lost", "ward_b") == 1, LINE_TIMEOUT + MARGIN)
        here.until(here.says("ward_b", "lost the server"), cut + LINE_TIMEOUT + MARGIN - time.monotonic())
        _ip(f"-n {SERVER} link set ward_b up")
        here.until(lambda: here.events("joined", "ward_b") == 2)
        assert [here.ended(name) for name in (*WARDS, "server")] == [0, 0, 0, 0]
    finally:
        here.stop()
    assert here.processes["ward_b"].pid == before
    turns = [json.loads(line) for line in (here.run / TURNS).read_text().splitlines()]
    assert {turn["client"] for turn in turns if turn["round"] == ROUNDS} == set(WARDS)
    ended = json.loads((here.run / "summary.json").read_text())
    assert ended["lost_clients"] == [] and ended["rolled_back_turns"] <= 1
    replay = f"replay:{here.run / TURNS}"
    assert ended["weights_sha256"] == here.digest_in_one_process(WARDS, replay, tmp_path / "one")
