"""Starts real ranks and whole commands, with hard timeouts."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import forked

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--model resnet18 --image-size 32 --train-images 8 --validation-images 4 --test-images 4 "
    "--batch-size 4 --epochs 2 --threads 1"
).split()


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


def suture(*arguments: str, timeout: float = 120, **environment: str) -> Ended:
    """Runs the command line as a person would."""
    process = forked.run(
        [sys.executable, "-m", "suture", *arguments],
        cwd=ROOT,
        env=os.environ | {"CI": "true"} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        umask=0o022,  # as on most systems, whatever it is where the tests run
    )
    return Ended(process.returncode, process.stdout, process.stderr)


class Ranks:
    """Ranks of launch/run.py started one by one, without torchrun, so that each can be told something else."""

    def __init__(self, world: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._world = world
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, rank: int, *arguments: str, **environment: str) -> None:
        """Starts one rank."""
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": self._world,
            "LOCAL_WORLD_SIZE": self._world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self._port,
        }
        self.processes[rank] = forked.Popen(
            [sys.executable, str(ROOT / "launch" / "run.py"), *arguments],
            env=os.environ | {"CI": "true"} | {k: str(v) for k, v in place.items()} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self, rank: int, timeout: float = 90) -> Ended:
        """Waits for one rank."""
        process = self.processes[rank]
        out, err = process.communicate(timeout=timeout)
        return Ended(process.returncode, out, err)

    def kill(self) -> None:
        """Ends whoever still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


def refused(ended: Ended, *parts: str) -> str:
    """Asserts that a command ended in one clear line and a code, without a traceback; returns the line."""
    lines = [line for line in ended.err.splitlines() if line.startswith("suture: ")]
    assert ended.code > 0, ended
    assert "Traceback" not in ended.err + ended.out, ended.err
    assert len(lines) == 1, ended.err
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]
