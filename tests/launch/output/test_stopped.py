"""What is said to who stops a command.

Oracle: the words, and what a shell makes of the command that is said.
"""

import shlex
import signal
from dataclasses import replace

import pytest

from suture.launch.options.options import AskedOptions
from suture.launch.output import stopped
from suture.launch.output.run_folder import open_folder

OPTIONS = AskedOptions(clients=2).resolved()


def test_a_stop_is_said_once_when_all_is_closed_and_passed_on(capsys):
    """Oracle: the order of what is printed; SIGTERM stops as Ctrl-C does, and afterwards as before."""
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(KeyboardInterrupt),
        stopped.saying(lambda _: "stopped; go on"),
        stopped.sigterm_as_interrupt(),
    ):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            print("closed")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("closed\n", "suture: stopped; go on\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_said_of_what_ends_by_itself(capsys):
    """Oracle: silence, for an end and for an error."""
    with stopped.saying(lambda _: "stopped"):
        pass
    with pytest.raises(ValueError), stopped.saying(lambda _: "stopped"):
        raise ValueError
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changed", "from_environment", "words"),
    [
        ({}, False, "stopped; the run is in {run}; go on with: suture again"),
        ({}, True, "stopped; the run is in {run}; go on with (with the same SUTURE_HANDOFF_KEY): suture again"),
        ({"checkpoints": "off"}, False, "stopped; --checkpoints off kept none to go on from: begin anew with another --run-dir"),
        ({"unsplit": True}, False, "stopped; --unsplit keeps no checkpoints to go on from: begin anew with another --run-dir"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_run(changed, from_environment, words, tmp_path):
    """Oracle: the sentences; before there is a run, that there is none."""
    options, run = replace(OPTIONS, **changed, run_dir=str(tmp_path / "run")), str(tmp_path / "run")
    assert "stopped before the run began" in stopped.run_sentence(
        options, run, "suture again", from_environment
    )
    open_folder(options, "abc").lock.close()
    assert stopped.run_sentence(options, run, "suture again", from_environment) == words.format(run=run)


@pytest.mark.parametrize(
    ("stop", "where"),
    [(stopped.StoppedInRound(3), "in round 3"), (stopped.StoppedInRound(0), "before its first turn"), (KeyboardInterrupt(), "before its first turn")],
)  # fmt: skip
def test_a_site_says_its_own_command_again(stop, where, monkeypatch):
    """Oracle: the words that were typed, read back as a shell does; the folder where none was named."""
    typed = ["join", "kits/ward a", "--data", "image-folder:/data/it's", "--lr", "0.1"]
    monkeypatch.setattr("sys.argv", ["/somewhere/suture", *typed])
    said = stopped.site_sentence(stop, stopped.typed_command("runs/x", is_named=False))
    begin, command = said.split("; go on with: ")
    assert begin == f"stopped {where}" and shlex.split(command) == ["suture", *typed, "--run-dir", "runs/x"]
    assert stopped.typed_command("runs/x", is_named=True) == ["suture", *typed]


def test_under_torchrun_the_command_is_torchrun_s(monkeypatch):
    """Oracle: the words; of several machines each has its own."""
    monkeypatch.setattr("sys.argv", ["launch/run.py", "--lr", "0.1"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    assert (
        stopped.torchrun_command("a b")
        == "torchrun --nproc_per_node=5 launch/run.py --resume --run-dir 'a b'"
    )
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert (
        stopped.torchrun_command("a")
        == "each machine's own torchrun options, and launch/run.py --resume --run-dir a"
    )
