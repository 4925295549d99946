"""A run that was killed and resumed ends with the weights of one that was not.

Oracle: the uninterrupted run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import forked
import pytest
import torch
from commands import ROOT, TINY, suture

from suture.launch import build
from suture.launch.options.options import AskedOptions
from suture.launch.roles.one_process import play_locally
from suture.runtime.records.tracking import read_events, read_metrics
from suture.runtime.server.run_state import RunState

KEY = bytes(range(32))
CASES = {
    "resnet": AskedOptions(
        model="resnet18",
        image_size=32,
        train_images=8,
        validation_images=4,
        test_images=4,
        batch_size=4,
        epochs=2,
        clients=2,
        schedule="shuffled",
    ).resolved(),
    "unet": AskedOptions(
        data="chest-phantom",
        width=4,
        image_size=32,
        train_images=6,
        validation_images=2,
        test_images=2,
        batch_size=3,
        epochs=2,
        clients=2,
    ).resolved(),
}


class Killed(BaseException):
    """The process died here."""


@pytest.fixture(scope="module", params=CASES)
def whole(request, tmp_path_factory):
    """A case and the digest that it ends with when nothing happens to it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    return CASES[request.param], play_locally(CASES[request.param], KEY, folder).weights_sha256()


def test_a_run_without_checkpoints_ends_with_the_same_weights(whole, tmp_path):
    """Oracle: the digest of a run that keeps a checkpoint after every turn."""
    options, digest = whole
    without = replace(options, checkpoints="off")
    assert play_locally(without, KEY, tmp_path).weights_sha256() == digest
    assert not list(tmp_path.rglob("turn_*.pt"))


# Two rounds of two clients: the checkpoints follow turn 0, the training turns 1, 2, 5, 6 and the two rounds' ends.
@pytest.mark.parametrize(
    ("when", "num_saved"), [("before", 2), *(("after", number) for number in (1, 2, 3, 4, 5))]
)
def test_killed_at_any_checkpoint_and_resumed(whole, num_saved, when, tmp_path, monkeypatch):
    """Oracle: the uninterrupted run; killed right before or right after a checkpoint is on the disk."""
    options, expected = whole
    torch.set_num_threads(1)
    save, saved = RunState.save, []

    def dying(run_state):
        if when == "before" and len(saved) == num_saved:
            raise Killed
        save(run_state)
        saved.append(1)
        if when == "after" and len(saved) == num_saved:
            raise Killed

    monkeypatch.setattr(RunState, "save", dying)
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    with pytest.raises(Killed):
        play_locally(options, KEY, tmp_path)
    monkeypatch.setattr(RunState, "save", save)
    assert play_locally(options, KEY, tmp_path, resume=True).weights_sha256() == expected


def test_processes_killed_and_resumed(tmp_path):
    """Oracle: the same run in one process; every step is in metrics.jsonl exactly once."""
    key, run = tmp_path / "key", tmp_path / "run"
    options = [*TINY, "--epochs", "3", "--clients", "2", "--handoff-key", str(key)]
    assert suture("keygen", str(key)).code == 0
    process = forked.Popen(
        [sys.executable, "-m", "suture", "train", *options, "--run-dir", str(run)],
        cwd=ROOT,
        env=os.environ | {"CI": "true"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 90
    turns = run / "turns.jsonl"
    while not (turns.exists() and len(turns.read_text().splitlines()) >= 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    _kill_tree(process)
    interrupted = len(turns.read_text().splitlines())

    resumed = suture("train", *options, "--run-dir", str(run), "--resume")
    assert resumed.code == 0, resumed.err
    whole = suture("train", *options, "--exchange", "local", "--run-dir", str(tmp_path / "whole"))
    assert whole.code == 0, whole.err

    ended, expected = (json.loads((d / "summary.json").read_text()) for d in (run, tmp_path / "whole"))
    assert interrupted < ended["turns"] == expected["turns"]
    assert ended["weights_sha256"] == expected["weights_sha256"]
    steps = [line["step"] for line in read_metrics(run / "metrics.jsonl") if line["phase"] == "train"]
    assert steps == list(range(1, 13))
    assert "resumed" in [event["event"] for event in read_events(run / "metrics.jsonl")]


def _kill_tree(process: subprocess.Popen) -> None:
    """SIGKILLs a command, its agent and its ranks, as a power cut would."""
    import psutil

    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=10)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path):
    """Oracle: the whole run's weights: the turn that was lost is trained again."""
    key, run = tmp_path / "key", tmp_path / "run"
    suture("keygen", str(key))
    options = [
        *TINY,
        "--clients",
        "2",
        "--handoff-key",
        str(key),
        "--exchange",
        "local",
        "--run-dir",
        str(run),
    ]
    assert suture("train", *options).code == 0
    expected = json.loads((run / "summary.json").read_text())["weights_sha256"]
    newest = max((run / "checkpoints").glob("turn_*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)

    resumed = suture("train", *options, "--resume")
    assert resumed.code == 0, resumed.err
    assert f"{newest.name} is damaged" in resumed.err and "falling back" in resumed.err
    assert json.loads((run / "summary.json").read_text())["weights_sha256"] == expected


def test_when_every_checkpoint_is_damaged_the_run_is_refused(tmp_path):
    """Oracle: the error's words; nothing in the folder is touched."""
    run = tmp_path / "run"
    options = [*TINY, "--epochs", "1", "--clients", "1", "--exchange", "local", "--run-dir", str(run)]
    assert suture("train", *options).code == 0
    for checkpoint in (run / "checkpoints").glob("turn_*.pt"):
        checkpoint.write_bytes(b"not a checkpoint")
    resumed = suture("train", *options, "--resume")
    assert resumed.code == 6
    assert "every checkpoint" in resumed.err and "Traceback" not in resumed.err
