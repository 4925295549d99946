"""Under torchrun: restarts by its agent, and several nodes with an interface each.

Oracle: the same run in one process.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import ROOT, TINY, suture

# Minutes of starting processes: `make sites` runs them.
pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def _digest(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["weights_sha256"]


def _in_one_process(tmp_path: Path, clients: int, *options: str) -> str:
    arguments = [*TINY, *options, "--exchange", "local", "--clients", str(clients)]
    ended = suture("train", *arguments, "--run-dir", str(tmp_path / "local"))
    assert ended.code == 0, ended.err
    return _digest(tmp_path / "local")


@pytest.fixture
def key(tmp_path) -> list[str]:
    assert suture("keygen", str(tmp_path / "key")).code == 0
    return ["--handoff-key", str(tmp_path / "key")]


def _start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"CI": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_torchrun_restarts_killed_ranks_and_the_run_resumes_by_itself(tmp_path, key):
    """A SIGKILLed client: the agent restarts all ranks, which find the folder and go on in it."""
    run = tmp_path / "run"
    options = [*TINY, "--epochs", "4", *key]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    agent = _start(
        [*TORCHRUN, "--nproc_per_node=3", "--max-restarts=2", f"--master_port={port}", "launch/run.py"]
        + [*options, "--run-dir", str(run)]
    )
    try:
        deadline = time.monotonic() + 90
        while not (
            (run / "turns.jsonl").exists() and len((run / "turns.jsonl").read_text().splitlines()) >= 2
        ):
            assert time.monotonic() < deadline and agent.poll() is None
            time.sleep(0.05)
        ranks = psutil.Process(agent.pid).children()
        max(ranks, key=lambda rank: int(rank.environ()["RANK"])).send_signal(signal.SIGKILL)
        out, _ = agent.communicate(timeout=120)
    finally:
        agent.kill()
        agent.wait()
    assert agent.returncode == 0, out[-3000:]
    assert "torchrun restarted this job" in out
    assert _digest(run) == _in_one_process(tmp_path, 2, "--epochs", "4", *key)


def _can_make_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "suture_probe"], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", "suture_probe"], capture_output=True)
    return made


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable: hosts a (10.99.0.1, sva) and b (10.99.0.2, svb)."""
    if not _can_make_namespaces():
        pytest.skip("needs root and iproute2 to make network namespaces")
    commands = ["netns add suture_a", "netns add suture_b", "link add sva type veth peer name svb"]
    for host, cable, address in (("suture_a", "sva", "10.99.0.1"), ("suture_b", "svb", "10.99.0.2")):
        commands += [f"link set {cable} netns {host}", f"-n {host} addr add {address}/24 dev {cable}"]
        commands += [f"-n {host} link set {cable} up", f"-n {host} link set lo up"]
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True, capture_output=True)
        yield
    finally:
        for host in ("suture_a", "suture_b"):
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


def test_torchrun_on_two_nodes_over_the_interfaces_that_were_named(two_hosts, tmp_path, key):
    """One server and three clients, two ranks a host; also: a key is required as soon as there are two hosts."""
    nodes = [*TORCHRUN, "--nnodes=2", "--nproc_per_node=2", "--master_addr=10.99.0.1", "--master_port=29777"]

    def start(host: str, node: int, cable: str, *options: str) -> subprocess.Popen:
        rank = [f"--node_rank={node}", "launch/run.py", *TINY, "--interface", cable, *options]
        return _start(["ip", "netns", "exec", host, *nodes, *rank])

    run = tmp_path / "run"
    agents = [
        start("suture_a", 0, "sva", *key, "--run-dir", str(run)),
        start("suture_b", 1, "svb", *key),
    ]
    try:
        printed = [agent.communicate(timeout=120)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert _digest(run) == _in_one_process(tmp_path, 3, *key)
