"""What `suture train` keeps to itself on a machine that others use, too.

Oracle: what the system shows of the processes while they run; the weights of the same run in one process.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import forked
import psutil
import pytest
from commands import ROOT, TINY, refused, suture
from PIL import Image

from suture.runtime.errors import CheckpointError, ConfigError

KEY = "5e" * 32
OPTIONS = [*TINY, "--clients", "2"]
SMALL = "--data chest-phantom --model unet --width 4 --labels home".split()


@dataclass(frozen=True)
class Expected:
    """The hand-off key of all runs, in a file, and the digest that it leads to."""

    key: Path
    digest: str


class Running:
    """A run with processes, stopped (SIGSTOP) in its middle."""

    def __init__(self, run: Path, process: subprocess.Popen) -> None:
        self.run, self.process = run, process
        # The ranks are the fork server's children; the fork server is the command's.
        self.ranks = [rank for child in psutil.Process(process.pid).children() for rank in child.children()]


@contextmanager
def running(run: Path, *options: str, code: int = 0, popen: type = forked.Popen, **environment: str):
    """Starts a run, stops its ranks when the first turn has counted, lets them go on to the end; yields it."""
    process = popen(
        [sys.executable, "-m", "suture", "train", *OPTIONS, *options, "--run-dir", str(run)],
        cwd=ROOT,
        env=os.environ | {"CI": "true"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        turns, deadline = run / "turns.jsonl", time.monotonic() + 90
        while not (turns.exists() and turns.read_text()):
            assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        here = Running(run, process)
        for rank in here.ranks:
            rank.send_signal(signal.SIGSTOP)
        try:
            yield here
        finally:
            for rank in here.ranks:
                rank.send_signal(signal.SIGCONT)
        here.said = process.communicate(timeout=90)[1]
        assert process.returncode == code, here.said
    finally:
        process.kill()
        process.wait()


def _digest(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["weights_sha256"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The same run in one process, its key from a file."""
    place = tmp_path_factory.mktemp("expected")
    key = place / "key"
    key.touch(mode=0o600)
    key.write_text(KEY)
    ended = suture(
        "train",
        *OPTIONS,
        "--exchange",
        "local",
        "--handoff-key",
        str(key),
        "--run-dir",
        str(place / "run"),
    )
    assert ended.code == 0, ended.err
    return Expected(key, _digest(place / "run"))


def test_the_key_has_left_the_environment_of_every_rank(tmp_path, expected):
    """Oracle: /proc/PID/environ, with another variable as control; the weights that the key leads to."""
    # A fork's /proc entry shows the environment of the process that was forked.
    cold = subprocess.Popen
    with running(tmp_path / "run", popen=cold, SUTURE_HANDOFF_KEY=KEY, CONTROL="is here") as here:
        assert len(here.ranks) == 3
        for process in (here.process.pid, *(rank.pid for rank in here.ranks)):
            shown = Path(f"/proc/{process}/environ").read_bytes()
            assert b"CONTROL=is here" in shown and KEY.encode() not in shown
    assert _digest(tmp_path / "run") == expected.digest


@pytest.mark.parametrize("second", [["--resume"], ["--exchange", "local"]], ids=["resumes", "begins anew"])
def test_a_second_process_on_one_run_is_refused(second, tmp_path, expected):
    """Oracle: one line that names the server's process; the first run's weights, as if nothing had happened."""
    run = tmp_path / "run"
    with running(run, "--handoff-key", str(expected.key)) as here:
        ended = suture("train", *OPTIONS, *second, "--run-dir", str(run))
        line = refused(ended, "run is in use by process ", "or name another --run-dir")
        assert ended.code == ConfigError.exit_code
        assert any(f"process {rank.pid} on " in line for rank in here.ranks)
    assert _digest(run) == expected.digest


@pytest.mark.parametrize("spoil", [shutil.rmtree, "fill"], ids=["removed", "full"])
def test_a_run_folder_that_cannot_be_written_ends_all_ranks_in_one_sentence(spoil, request, tmp_path):
    """Oracle: the code and one line; clients hear of it as they ask for what comes next."""
    disk = request.getfixturevalue("small_disk") if spoil == "fill" else None
    with running(tmp_path / "run", *SMALL, code=CheckpointError.exit_code) as here:
        disk.fill() if disk else spoil(here.run)
    said = [line for line in here.said.splitlines() if "suture: " in line]
    assert len(said) == 1 and "cannot write" in said[0] and "Traceback" not in here.said, here.said


def test_ranks_of_torchrun_take_the_key_from_their_environment(ranks, tmp_path, expected):
    """Oracle: the weights that the key leads to."""
    group = ranks(3)
    for rank in range(3):
        group.start(rank, *TINY, "--run-dir", str(tmp_path / "run"), SUTURE_HANDOFF_KEY=KEY)
    for rank in range(3):
        ended = group.ended(rank)
        assert ended.code == 0, ended.err
    assert _digest(tmp_path / "run") == expected.digest


def test_what_shows_patients_is_the_users_own(tmp_path):
    """Oracle: the mode of every file and folder that training, prediction and export wrote, under umask 022."""
    run, images = tmp_path / "out" / "run", tmp_path / "images"
    images.mkdir()
    Image.new("L", (40, 40)).save(images / "a.png")
    for command in (
        ["train", *TINY, *SMALL, "--clients", "1", "--profile", "--run-dir", str(run)],
        ["predict", str(run), str(images), "--out", str(tmp_path / "out" / "predicted")],
        ["export", str(run), "--format", "torchscript", "--out", str(tmp_path / "out" / "net.pt")],
    ):
        ended = suture(*command)
        assert ended.code == 0, ended.err
    written = [path for path in (tmp_path / "out").rglob("*") if not path.is_symlink()]
    names = {path.name for path in written}
    assert names >= {
        "model.pt",
        "best.pt",
        "segmentation.png",
        "predictions.csv",
        "masks",
        "net.pt",
        "turns.jsonl",
    }
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in written}
    expected = {str(path.relative_to(tmp_path)): 0o700 if path.is_dir() else 0o600 for path in written}
    assert modes == expected


def test_ranks_whose_command_was_killed_end_with_their_run(tmp_path, expected):
    """Oracle: the run's summary, and that none of its processes is left; torchrun's agent cannot release them any more."""
    with running(tmp_path / "run", "--handoff-key", str(expected.key), code=-signal.SIGKILL) as here:
        here.process.kill()
    _, alive = psutil.wait_procs(here.ranks, timeout=90)
    assert not alive, [rank.status() for rank in alive]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["weights_sha256"] == expected.digest
