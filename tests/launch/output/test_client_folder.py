"""What a client keeps on its own disk is a courtesy to itself: a full disk costs pictures, never a turn.

Oracle: the weights of the same run on a disk with room.
"""

import json

import pytest

import suture.cli
from suture.launch import build
from suture.launch.options.options import AskedOptions
from suture.launch.options.outcome import outcome
from suture.launch.output import client_folder
from suture.launch.output.client_folder import ClientFolder
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError, WireError
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.server.run_state import RunState
from suture.runtime.state.checkpoint import write_atomically
from suture.runtime.wire.messages import Release

TINY = (
    "--model resnet18 --image-size 32 --train-images 8 --validation-images 0 --test-images 4 --batch-size 4 "
    "--epochs 1 --threads 1 --exchange local --clients 2"
).split()


class FullDisk:
    """Pictures on a disk without room."""

    def __init__(self, folder) -> None:
        raise OSError(28, "No space left on device")


@pytest.fixture
def train(tmp_path, capsys, monkeypatch):
    """Runs `suture train` in this process; returns its exit code, its folder and what it said to stderr."""
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    key = tmp_path / "key"
    key.write_bytes(bytes(32).hex().encode())
    key.chmod(0o600)

    def run(name: str, *options: str):
        folder = tmp_path / name
        monkeypatch.setattr(
            "sys.argv",
            ["suture", "train", *TINY, *options, "--run-dir", str(folder), "--handoff-key", str(key)],
        )
        code = outcome(lambda: suture.cli.suture.main(standalone_mode=False))
        return code, folder, capsys.readouterr().err

    return run


def test_a_full_disk_costs_pictures_and_no_turn(train, monkeypatch):
    code, folder, _ = train("room")
    assert code == 0
    expected = json.loads((folder / "summary.json").read_text())

    monkeypatch.setattr(client_folder, "ClientPictures", FullDisk)
    code, folder, errors = train("full")
    assert code == 0, errors
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["weights_sha256"] == expected["weights_sha256"]
    assert summary["rolled_back_turns"] == 0
    assert errors.count("goes on without pictures") == 2, "each client says so once"
    assert "client0: cannot write to" in errors and "No space left on device" in errors
    assert (folder / "clients" / "client0" / "model.pt").exists()


def test_a_model_that_cannot_be_written_is_an_error_that_says_what_to_do(train, monkeypatch):
    def full(path, *chunks):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(client_folder, "write_atomically", full)
    code, folder, errors = train("run")
    assert code == 6
    line = next(line for line in errors.splitlines() if line.startswith("suture: "))
    assert "model.pt" in line and "No space left on device" in line and "--resume" in line
    assert not list(folder.rglob("model.pt"))
    assert client_folder.write_atomically is not write_atomically


def test_a_server_that_keeps_the_top_which_it_had_promised_is_named(train, monkeypatch):
    """Oracle: what each client says; where nothing was promised nobody says anything."""
    monkeypatch.setattr(RunState, "release", lambda self: Release({}, 1))
    code, folder, errors = train("run")
    assert code == 0 and not list(folder.rglob("model.pt"))
    assert errors.count("did not hand out the trained top, although the run's options say so") == 2
    code, folder, errors = train("kept", "--no-release-top")
    assert code == 0 and not list(folder.rglob("model.pt")) and "did not hand out" not in errors


def test_clients_that_report_different_weights_do_not_cost_the_summary(train, monkeypatch):
    def disagreeing(self):
        raise WireError("the clients report 2 different digests of the same parts")

    monkeypatch.setattr(Coordinator, "weights_sha256", disagreeing)
    code, folder, errors = train("run")
    assert code == 4 and "2 different digests" in errors
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["weights_sha256"] is None and "2 different digests" in summary["disagreement"]
    assert summary["clients"]["client1"]["test"]


def test_two_clients_of_one_name_do_not_share_a_folder(tmp_path):
    """Oracle: the second is refused before it could join, and told whom it met; then the folder is free."""
    options = AskedOptions().resolved()
    first, second = (
        ClientFolder(options, "imagenet", Task.CLASSIFICATION, tmp_path / "ward_a") for _ in "12"
    )
    first.lock()
    with pytest.raises(ConfigError, match=r"ward_a is in use by process \d+ on "):
        second.lock()
    del first
    second.lock()
