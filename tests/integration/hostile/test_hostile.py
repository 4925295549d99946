"""A server that attacks a client, a client that attacks the server, and strangers: real processes, walls up.

Every attack must end refused (an error came back) or contained (it ran, read no data and wrote nothing outside the
run folder). Oracle: a secret file and marks on the disk; and the run's weights, equal bit for bit to those of the same
run without an attack. ``make hostile`` prints the table.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import attacks
import rank as ranks

from launch.config import RunOptions
from launch.ranks import play_locally
from runtime import sandbox

# `make hostile` runs it.
pytestmark = pytest.mark.slow

CONTAINED = {"pure operator"}
"""Run and come to nothing; every other attack must be refused."""


def _start(script: str, rank: int, port: int, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(HERE / script), str(rank), str(port), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CI": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _play(script: str, num_ranks: int, folder: Path) -> list[tuple[str, str]]:
    """Starts the ranks and waits; what each printed. None is left."""
    for name in ("private", "outside", "victim"):
        (folder / name).mkdir()
    (folder / "private" / "patient.txt").write_bytes(attacks.SECRET)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [_start(script, rank, port, folder) for rank in range(num_ranks)]
    try:
        printed = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * num_ranks, printed
    return printed


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What came of every attack, by who attacked whom; the run's digest; what was printed."""
    folder = tmp_path_factory.mktemp("hostile")
    printed = _play("rank.py", 3, folder)
    seen = [
        json.loads((folder / name / "seen.json").read_text()) for name in ("server", "client0", "client1")
    ]
    table = {
        "server attacks client0": seen[0]["attacks"] | seen[1]["attacks"],
        "client1 attacks server": seen[2]["attacks"],
    }
    for side, attacked in table.items():
        print(f"\n{side}")
        for name, result in attacked.items():
            print(f"  {name:36} {result['outcome']:10} {result['said']:.90}")
    return table, seen[0]["weights_sha256"], "".join(error for _, error in printed), folder


def test_no_attack_reads_data_or_runs_code(world):
    """Oracle: the secret, the marks, and that refusals are refusals; needs the sandbox for torch's operators."""
    table, *_ = world
    through = {
        (side, name): result["said"]
        for side, attacked in table.items()
        for name, result in attacked.items()
        if result["outcome"] == "open" and not (sandbox.missing() and "operator" in name)
    }
    assert not through


def test_only_harmless_attacks_are_answered(world):
    """Oracle: the list of those that may be: operators that compute."""
    table, *_ = world
    contained = {
        name for seen in table.values() for name, result in seen.items() if result["outcome"] == "contained"
    }
    assert contained == CONTAINED


def test_there_are_many_attacks_and_none_was_left_out(world):
    """Oracle: the list of attacks; the issue asks for at least 25."""
    table, *_ = world
    named = {attack.__name__.replace("_", " ") for attack in attacks.PEER}
    for seen in table.values():
        assert named <= seen.keys()
    assert len({name for seen in table.values() for name in seen}) >= 60


def test_the_others_train_on_unharmed(world, tmp_path):
    """Oracle: the same run in one process, where nobody attacks: the same weights, bit for bit."""
    torch.set_num_threads(1)
    coordinator = play_locally(RunOptions(**ranks.OPTIONS).resolved(), ranks.KEY, tmp_path)
    assert coordinator.weights_sha256() == world[1]


def test_refusals_are_logged_once_a_peer_and_kind(world):
    """Oracle: dozens of refused calls and messages, a few lines; a member's name stands there where it is known."""
    lines = [line for line in world[2].splitlines() if " refused " in line and " from " in line]
    assert 2 <= len(lines) <= 8, lines
    assert len({line.split("refused ", 1)[1].split(":")[0] + line.split()[1] for line in lines}) == len(lines)


def test_nothing_was_written_outside(world):
    """Oracle: the folder that operators were told to write to."""
    assert not list((world[3] / "outside").iterdir())


def test_without_walls_the_first_five_succeed(tmp_path):
    """The suite is real. Oracle: plain torch RPC, the same functions, the same secret and marks."""
    printed = _play("unwalled.py", 2, tmp_path)
    seen = json.loads(printed[1][0].splitlines()[-1])
    assert seen == {attack.__name__: "open" for attack in attacks.FIRST_FIVE}
