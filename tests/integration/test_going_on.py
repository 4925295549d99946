"""Who stops a run is told the command that goes on with it; the command is run as it stands, and says nothing else.

Oracle: the digest of the run that nobody stopped.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from commands import ROOT, TINY, suture
from sites import Sites

SHELL = f'suture() {{ "{sys.executable}" -m suture "$@"; }}; torchrun() {{ "{sys.executable}" -m torch.distributed.run "$@"; }}\n'
SAID = re.compile(r"^suture: (stopped.*); go on with: (.*)$", re.MULTILINE)
OPTIONS = [*TINY, "--epochs", "5", "--clients", "2", "--lease", "60"]


def environment() -> dict[str, str]:
    return os.environ | {"CI": "true"}


def stopped(command: list[str], folder: Path, run: Path, number: int, group: bool) -> tuple[int, str]:
    """Starts a command in a folder and stops it after its second turn; its exit code and all that it said."""
    with (folder / "log").open("w") as log:
        process = forked.Popen(
            command, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
    turns, deadline = run / "turns.jsonl", time.monotonic() + 90
    while not (turns.exists() and len(turns.read_text().splitlines()) >= 2):
        assert time.monotonic() < deadline and process.poll() is None, (folder / "log").read_text()
        time.sleep(0.02)
    (os.killpg if group else os.kill)(process.pid, number)
    return process.wait(60), (folder / "log").read_text()


def go_on(said: str, folder: Path) -> None:
    """Runs the one command that was said, in the folder where the first was run."""
    ((_, command),) = SAID.findall(said)
    done = subprocess.run(
        ["bash", "-c", SHELL + command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def digest(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["weights_sha256"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """A hand-off key, and the digest of the run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    assert suture("keygen", str(folder / "key")).code == 0
    key = ["--handoff-key", str(folder / "key")]
    ended = suture("train", *OPTIONS, *key, "--exchange", "local", "--run-dir", str(folder / "run"))
    assert ended.code == 0, ended.err
    return folder / "key", digest(folder / "run")


@pytest.mark.parametrize(
    ("exchange", "number", "group"), [("local", signal.SIGTERM, False), ("fused", signal.SIGINT, True)]
)
def test_a_run_of_one_machine_is_gone_on_with_as_said(exchange, number, group, whole, tmp_path):
    """Ctrl-C reaches the whole group of a terminal, SIGTERM one process; nothing but one line is said of it."""
    key, expected = whole
    run = "runs/my run's"
    train = [sys.executable, "-m", "suture", "train", *OPTIONS, "--exchange", exchange]
    code, said = stopped(
        [*train, "--handoff-key", str(key), "--run-dir", run], tmp_path, tmp_path / run, number, group
    )
    assert code == 130, said
    assert "Traceback" not in said and re.findall("^suture: .*", said, re.M) == [
        f"""suture: stopped; the run is in {run}; go on with: suture train --resume --run-dir 'runs/my run'"'"'s'"""
    ]
    go_on(said, tmp_path)
    assert digest(tmp_path / run) == expected


def test_torchrun_is_gone_on_with_as_said(whole, tmp_path):
    """The agent passes the signal on; the rank that serves says it."""
    key, expected = whole
    program = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=3",
        str(ROOT / "launch" / "run.py"),
    ]
    options = [*OPTIONS, "--handoff-key", str(key), "--run-dir", "run"]
    code, said = stopped([*program, *options], tmp_path, tmp_path / "run", signal.SIGINT, group=False)
    command = f"torchrun --nproc_per_node=3 {ROOT / 'launch' / 'run.py'} --resume --run-dir run"
    assert code != 0 and SAID.findall(said) == [("stopped; the run is in run", command)], said
    go_on(said, tmp_path)
    assert digest(tmp_path / "run") == expected


def test_server_and_site_are_gone_on_with_as_said(tmp_path):
    """The server is stopped and then a site; each says its command, with which the run ends as if nothing had been."""
    sites = Sites(tmp_path, epochs=5, lease=30)
    try:
        sites.serve("--clients=2", "--grace=7")
        sites.join("ward_a")
        sites.join("ward_b")
        sites.until(lambda: sites.turns() >= 2)
        for name in ("ward_b", "server"):
            sites.processes[name].send_signal(signal.SIGINT if name == "server" else signal.SIGTERM)
            assert sites.processes[name].wait(30) == 130
        ((server, again),) = SAID.findall(sites.log("server"))
        assert server == f"stopped; the run is in {sites.run}"
        assert again == f"suture serve {sites.kits['server'].folder} --run-dir {sites.run}"
        ((site, back),) = SAID.findall(sites.log("ward_b"))
        assert re.fullmatch("stopped in round [1-5]", site)
        assert "Traceback" not in sites.log("server") + sites.log("ward_b")
        for name, command in (("server", again), ("ward_b", back)):
            words = [sys.executable, "-m", "suture", *command.split()[1:]]
            sites.go_on(name, words)
        for name in sites.processes:
            assert sites.ended(name) == 0, sites.log(name)
        assert json.loads((sites.run / "run.json").read_text())["serve"] == {"grace": 7.0}
        assert digest(sites.run) == sites.digest_in_one_process(
            ["ward_a", "ward_b"], "round-robin", tmp_path / "one"
        )
    finally:
        sites.stop()


def test_a_command_that_cannot_be_gone_on_with_says_so(tmp_path):
    """Oracle: the words, where no checkpoint is kept."""
    run = tmp_path / "run"
    train = [sys.executable, "-m", "suture", "train", *OPTIONS, "--exchange", "local", "--checkpoints", "off"]
    code, said = stopped([*train, "--run-dir", str(run)], tmp_path, run, signal.SIGINT, group=False)
    assert code == 130
    assert (
        "suture: stopped; --checkpoints off kept none to go on from: begin anew with another --run-dir"
        in said
    )
