"""The supervisor of a member: what is started again, what is not, and that nothing is left behind.

Oracle: small members that write each of their starts into a file, and end as they are told.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.supervisor import SupervisorConfig
from runtime.errors import ERRORS, ConfigError, PeerLostError, SeatLostError

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"restarts": 2, "first_wait": 0.01, "longest_wait": 0.02, "farewell": 0.5}
WAYS = ("forked", "fresh")  # fresh: a supervisor that has a second thread does not fork

# A process of its own: pytest's may have threads. As "member" it is what a supervisor with threads starts.
SCRIPT = """
import json, os, signal, subprocess, sys, threading, time
from launch.supervisor import MemberStart, SupervisorConfig, die_with_supervisor, supervise

way, starts, how, config = sys.argv[1:]

def be_member():
    die_with_supervisor()
    started = "fresh" if way == "member" else "forked"
    with open(starts, "a") as file:
        file.write(f"{os.getpid()} {os.getsid(0)} {started}\\n")
    with open(starts) as file:
        count = len(file.readlines())
    if how == "sleep":
        time.sleep(60)
    elif how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        below = subprocess.Popen(["sleep", "60"])
        open(f"{starts}.below", "w").write(str(below.pid))
        time.sleep(60)
    elif how == "defect":
        raise RuntimeError("a defect")
    elif how.startswith("killed until ") and count < int(how.split()[-1]):
        os.kill(os.getpid(), signal.SIGKILL)
    print("bye", flush=True)
    os._exit(int(how) if how.isdigit() else 0)

if way == "member":
    be_member()
if way == "fresh":
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
command = [sys.executable, "-c", os.environ["SCRIPT"], "member", starts, how, config]
code = supervise(MemberStart(run=be_member, command=command), SupervisorConfig(**json.loads(config)))
print("supervised", flush=True)
sys.exit(code)
"""


class Supervised:
    """A supervisor in a process of its own, its member's starts, and what both printed."""

    def __init__(self, folder: Path, how: str, way: str = "forked", **config: float) -> None:
        self._starts = folder / "starts"
        told = [way, str(self._starts), how, json.dumps(QUICK | config)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *told],
            cwd=ROOT,
            env=os.environ | {"SCRIPT": SCRIPT},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def starts(self) -> list[list[str]]:
        """Process id, session and way of each start."""
        return [line.split() for line in self._starts.read_text().splitlines()]

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def sleeping_member(self) -> psutil.Process:
        return psutil.Process(int(self._when_there(self._starts).split()[0]))

    def below_member(self) -> psutil.Process:
        return psutil.Process(int(self._when_there(self._starts.with_name("starts.below"))))

    def _when_there(self, file: Path) -> str:
        deadline = time.monotonic() + 30
        while not (file.exists() and file.read_text()):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.02)
        return file.read_text()


@pytest.mark.parametrize("code", sorted({0, 1, 2, 3, 4, 5, 130, *(e.exit_code for e in ERRORS.values())}))
def test_only_a_member_that_lost_the_others_is_started_again(code, tmp_path):
    """Oracle: how often the member was started, by its exit code; a person's mistake comes again anyway."""
    supervised = Supervised(tmp_path, str(code))
    assert supervised.ended()[0] == code
    again = code in (PeerLostError.exit_code, SeatLostError.exit_code)
    assert len(supervised.starts()) == (3 if again else 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_member_is_started_again_in_another_process(way, tmp_path):
    """Oracle: two starts in the way that the supervisor's threads allow, by two processes that lead sessions of
    their own; a line that says why; the code of the one that ended well; nothing printed twice."""
    supervised = Supervised(tmp_path, "killed until 2", way)
    code, out, err = supervised.ended()
    assert code == 0 and out.split() == ["bye", "supervised"]
    (one, *_), (other, *_) = starts = supervised.starts()
    assert one != other and all(pid == session and how == way for pid, session, how in starts)
    assert "suture: it was ended by SIGKILL; starting it again in 0.01 s (1 of 2)" in err


def test_it_gives_up_in_the_end(tmp_path):
    """Oracle: first start and two restarts; 128 + 9 as a shell would say."""
    supervised = Supervised(tmp_path, "killed until 99")
    code, _, err = supervised.ended()
    assert code == 128 + signal.SIGKILL and len(supervised.starts()) == 3
    assert "was ended by SIGKILL again, after 2 restarts; giving up" in err


def test_after_a_steady_spell_the_count_begins_anew(tmp_path):
    """Oracle: with a spell of no length at all the limit is never reached; the fifth start ends well."""
    supervised = Supervised(tmp_path, "killed until 5", restarts=1, steady=0.0)
    assert supervised.ended()[0] == 0 and len(supervised.starts()) == 5


@pytest.mark.parametrize("way", WAYS)
def test_a_defect_is_shown_and_ends_the_member_where_it_is(way, tmp_path):
    """Oracle: one traceback, Python's code for it, and the supervisor's own last line once."""
    code, out, err = Supervised(tmp_path, "defect", way).ended()
    assert code == 1 and out.split() == ["supervised"]
    assert err.count("Traceback") == 1 and "RuntimeError: a defect" in err


def test_restarts_cannot_be_negative():
    """Oracle: the message."""
    with pytest.raises(ConfigError, match="restarts must be at least 0, got -1"):
        SupervisorConfig(restarts=-1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_ends_its_member_first(number, way, tmp_path):
    """Oracle: the member is gone and was not started again; the code is the shell's for that signal."""
    supervised = Supervised(tmp_path, "sleep", way)
    member = supervised.sleeping_member()
    supervised.process.send_signal(number)
    assert supervised.ended()[0] == 128 + number
    assert not member.is_running() and len(supervised.starts()) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_member_that_does_not_listen_is_killed_with_all_that_it_started(way, tmp_path):
    """Oracle: it ignores SIGTERM and has a child; half a second later neither is there."""
    supervised = Supervised(tmp_path, "stubborn", way)
    below, member = supervised.below_member(), supervised.sleeping_member()
    supervised.process.terminate()
    assert supervised.ended()[0] == 128 + signal.SIGTERM
    assert not psutil.wait_procs([member, below], timeout=20)[1]


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_supervisor_takes_its_member_with_it(way, tmp_path):
    """Oracle: SIGKILL leaves the supervisor no time to do anything; the system ends the member."""
    supervised = Supervised(tmp_path, "sleep", way)
    member = supervised.sleeping_member()
    supervised.process.kill()
    supervised.process.wait(20)
    assert not psutil.wait_procs([member], timeout=20)[1]
    supervised.ended()
