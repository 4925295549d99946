"""A run folder that is moved, removed or full, at whatever moment, ends a run in one sentence and without a traceback.

Oracle: exit code, what was said, and where nothing but a figure is lost the weights of a run in which nothing happened.
"""

import json
import shutil

import pytest

import suture.cli
from suture.launch import build
from suture.launch.options.outcome import outcome
from suture.launch.roles import conduct
from suture.runtime.errors import CheckpointError
from suture.runtime.server.client_turn import ClientTurn
from suture.runtime.server.run_state import RunState
from suture.runtime.server.transaction import Transaction

TINY = (
    "--data chest-phantom --model unet --width 4 --image-size 32 --train-images 8 --validation-images 4 --test-images 4 "
    "--batch-size 4 --epochs 2 --threads 1 --exchange local --clients 2"
).split()
MOMENTS = {
    "a batch has been computed": (ClientTurn, "record"),
    "a turn is to be kept": (RunState, "save"),
    "a client has evaluated": (Transaction, "report"),
    "a round is to be kept": (RunState, "_keep_best"),
    "the run is over": (conduct, "summarise"),
}


@pytest.fixture
def train(tmp_path, capsys, monkeypatch):
    """Runs `suture train` in this process; returns its exit code and what it said to stderr."""
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text("00" * 32)

    def run(folder, *options):
        words = ["suture", "train", *TINY, *options, "--handoff-key", str(key), "--run-dir", str(folder)]
        monkeypatch.setattr("sys.argv", words)
        code = outcome(lambda: suture.cli.suture.main(standalone_mode=False))
        return code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def expected():
    """The digest of a run that had room, once it is known."""
    return []


def strike(monkeypatch, moment, spoil):
    """Spoils the folder when the moment comes for the second time, or at the end."""
    owner, name = MOMENTS[moment]
    usual, calls = getattr(owner, name), []

    def struck(*args, **fields):
        calls.append(name)
        if len(calls) == 2 or owner is conduct:
            spoil()
        return usual(*args, **fields)

    monkeypatch.setattr(owner, name, struck)


def ended_in_one_sentence(code, said, *words):
    lines = [line for line in said.splitlines() if line.startswith("suture: ")]
    assert code == CheckpointError.exit_code and len(lines) == 1, said
    assert "Traceback" not in said and "Exception" not in said, said
    assert all(word in lines[0] for word in ("cannot write", *words)), lines[0]


def digest(run):
    return json.loads((run / "summary.json").read_text())["weights_sha256"]


@pytest.mark.parametrize("spoilt", ["moved", "removed"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_folder_that_goes_away(moment, spoilt, tmp_path, train, monkeypatch):
    run = tmp_path / "run"
    away = (lambda: run.rename(tmp_path / "elsewhere")) if spoilt == "moved" else (lambda: shutil.rmtree(run))
    strike(monkeypatch, moment, away)
    ended_in_one_sentence(*train(run), "moved or removed")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_fills_up(moment, small_disk, tmp_path, train, monkeypatch, expected):
    """Oracle: with room again the run is resumed to the end, with the weights of the run that had room."""
    with monkeypatch.context() as patch:
        strike(patch, moment, small_disk.fill)
        ended_in_one_sentence(*train(small_disk.folder), "No space left on device", "--resume")
    small_disk.empty()
    code, said = train(small_disk.folder, "--resume")
    assert code == 0, said
    if not expected:
        train(tmp_path / "with room")
        expected.append(digest(tmp_path / "with room"))
    assert digest(small_disk.folder) == expected[0]


def test_a_disk_that_is_full_when_figures_are_drawn_costs_the_figures(small_disk, train, monkeypatch):
    """Oracle: the run ends well and says what is missing."""
    draw = conduct.draw_figures

    def drawn(*args):
        small_disk.fill()
        draw(*args)

    monkeypatch.setattr(conduct, "draw_figures", drawn)
    code, said = train(small_disk.folder)
    assert code == 0 and "figures cannot be written" in said and "Traceback" not in said, said
    assert digest(small_disk.folder)
