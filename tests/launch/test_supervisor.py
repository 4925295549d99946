"""The supervisor of a member: what is started again, what is not, and that nothing is left behind.

Oracle: small children that count their starts in a file, and end as they are told.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.supervisor import SupervisorConfig, supervise
from runtime.errors import ERRORS, ConfigError, PeerLostError, SeatLostError

ROOT = Path(__file__).resolve().parents[2]
QUICK = SupervisorConfig(restarts=2, first_wait=0.01, longest_wait=0.02)

# Says that it runs by a line in a file, then does what it is told.
CHILD = """
import os, signal, sys, time
with open(sys.argv[1], "a") as starts:
    starts.write(f"{os.getpid()}\\n")
how = sys.argv[2]
if how == "sleep":
    if sys.argv[3:] == ["bound"]:
        from launch.supervisor import die_with_supervisor
        die_with_supervisor()
        open(sys.argv[1] + ".bound", "w").close()
    time.sleep(60)
elif how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif how == "killed-once" and len(open(sys.argv[1]).readlines()) == 1:
    os.kill(os.getpid(), signal.SIGKILL)
else:
    sys.exit(int(how) if how.isdigit() else 0)
"""


def command(starts: Path, *how: str) -> list[str]:
    return [sys.executable, "-c", CHILD, str(starts), *how]


@pytest.mark.parametrize("code", sorted({0, 1, 2, 3, 4, 5, 130, *(e.exit_code for e in ERRORS.values())}))
def test_only_a_member_that_lost_the_others_is_started_again(code, tmp_path):
    """Oracle: how often the child was started, by its exit code; a person's mistake comes again anyway."""
    starts = tmp_path / "starts"
    assert supervise(command(starts, str(code)), QUICK) == code
    again = code in (PeerLostError.exit_code, SeatLostError.exit_code)
    assert len(starts.read_text().splitlines()) == (3 if again else 1)


def test_a_killed_member_is_started_again_with_a_fresh_process(tmp_path, capfd):
    """Oracle: two starts by two processes, and a line that says why; then the code of the one that ended well."""
    starts = tmp_path / "starts"
    assert supervise(command(starts, "killed-once"), QUICK) == 0
    assert len(set(starts.read_text().splitlines())) == 2
    assert "suture: it was ended by SIGKILL; starting it again in 0.01 s (1 of 2)" in capfd.readouterr().err


def test_it_gives_up_in_the_end(tmp_path, capfd):
    """Oracle: first start and two restarts; 128 + 9 as a shell would say."""
    starts = tmp_path / "starts"
    assert supervise(command(starts, "kill"), QUICK) == 128 + signal.SIGKILL
    assert len(starts.read_text().splitlines()) == 3
    assert "was ended by SIGKILL again, after 2 restarts; giving up" in capfd.readouterr().err


def test_after_a_steady_spell_the_count_begins_anew(tmp_path):
    """Oracle: with a spell of no length at all the limit is never reached; the fifth start ends well."""
    starts = tmp_path / "starts"
    script = CHILD.replace(
        "len(open(sys.argv[1]).readlines()) == 1", "len(open(sys.argv[1]).readlines()) < 5"
    )
    config = SupervisorConfig(restarts=1, first_wait=0.01, steady=0.0)
    assert supervise([sys.executable, "-c", script, str(starts), "killed-once"], config) == 0
    assert len(starts.read_text().splitlines()) == 5


def test_restarts_cannot_be_negative():
    """Oracle: the message."""
    with pytest.raises(ConfigError, match="restarts must be at least 0, got -1"):
        SupervisorConfig(restarts=-1)


def _started(starts: Path, how: str) -> tuple[subprocess.Popen, psutil.Process]:
    script = f"import sys; from launch.supervisor import supervise; sys.exit(supervise({command(starts, *how.split())!r}))"
    supervisor = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    ready = starts.with_name("starts.bound") if "bound" in how else starts
    deadline = time.monotonic() + 30
    while not (ready.exists() and starts.read_text().endswith("\n")):
        assert time.monotonic() < deadline and supervisor.poll() is None
        time.sleep(0.02)
    return supervisor, psutil.Process(int(starts.read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_ends_its_member_first(number, tmp_path):
    """Oracle: the member is gone and was not started again; the code is the shell's for that signal."""
    supervisor, member = _started(tmp_path / "starts", "sleep")
    supervisor.send_signal(number)
    assert supervisor.wait(20) == 128 + number
    assert not member.is_running()


def test_a_killed_supervisor_takes_its_member_with_it(tmp_path):
    """Oracle: SIGKILL leaves the supervisor no time to do anything; the system ends the member."""
    supervisor, member = _started(tmp_path / "starts", "sleep bound")
    supervisor.kill()
    supervisor.wait(20)
    assert not psutil.wait_procs([member], timeout=20)[1]
    assert os.environ.get("SUTURE_SUPERVISOR") is None
