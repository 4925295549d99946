"""``suture bench startup``: seconds from the command to the first step of five ranks, and where they go.

Two ways to start the same run, in turn: ``torchrun launch/run.py``, in which every rank imports for itself, and
``suture train``, whose ranks are forks of one process that has. The milestones are what the run writes.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from suture.launch.host.program import ROOT, SUTURE
from suture.runtime.errors import SutureError
from suture.runtime.records.tracking import METRICS_FILE
from suture.studies.bench.plan import say

RANKS = 5
PROCESSOR = "processor"
MILESTONES = ("images read", "all joined", "first step")
_SIGNS = {"all joined": '"event": "begun"', "first step": '"phase": "train"'}
_PATIENCE = 300.0
_TINY = (
    "--data fundus-phantom --model resnet18 --image-size 64 --epochs 1 --train-images 32 --validation-images 0 "
    "--test-images 2 --batch-size 8 --augment none"
).split()


def measure(*, quick: bool) -> dict[str, Any]:
    """Seconds of each start to each milestone, by way; and what importing takes, by package.

    Raises:
        SutureError: a run did not come to its first step.
    """
    repeats, warm_up = (1, 0) if quick else (10, 1)  # those of the warm-up are not counted: the disk's cache
    ways = {
        "torchrun launch/run.py": [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={RANKS}",
            str(ROOT / "launch" / "run.py"),
        ],
        "suture train": [*SUTURE, "train", "--clients", str(RANKS - 1)],
    }
    starts: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    order, shuffle = list(ways), random.Random(0).shuffle
    for number in range(repeats + warm_up):
        shuffle(order)
        for way in order:
            found = start(ways[way])
            if number >= warm_up:
                starts[way].append(found)
            say(f"{way}: " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in found.items()))
    return {"ranks": RANKS, "starts": starts, "imports": imports()}


def start(command: Sequence[str]) -> dict[str, float]:
    """Starts a run, waits for its first step and ends it; seconds from the command to each milestone.

    Raises:
        SutureError: it ended, or five minutes passed, before the first step.
    """
    with tempfile.TemporaryDirectory(prefix="suture-bench-") as folder:
        run = Path(folder) / "run"
        begun = time.perf_counter()
        with (Path(folder) / "output").open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*command, *_TINY, "--run-dir", str(run)],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )
        try:
            return _watch(process, run, begun)
        except SutureError as error:
            said = (Path(folder) / "output").read_text(encoding="utf-8").strip().splitlines()[-3:]
            raise SutureError(f"{error}: {' / '.join(said)}") from None
        finally:
            _end(process)


def _watch(process: subprocess.Popen[bytes], run: Path, begun: float) -> dict[str, float]:
    found: dict[str, float] = {}
    while len(found) < len(MILESTONES):
        # Whether the run has ended is asked before its file is read, so that nothing it wrote is missed.
        ended = process.poll() is not None
        elapsed = time.perf_counter() - begun
        if run.exists():
            found.setdefault("images read", elapsed)  # the folder is made when every client has its images
        path = run / METRICS_FILE
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for what, sign in _SIGNS.items():
            if sign in text:
                found.setdefault(what, elapsed)
        if len(found) < len(MILESTONES) and (ended or elapsed > _PATIENCE):
            raise SutureError(f"a run that was started did not come to its first step in {elapsed:.0f} s")
        time.sleep(0.01)
    return found | {PROCESSOR: _processor_seconds(process.pid)}


def _processor_seconds(pid: int) -> float:
    """Processor time of a process and of all that it started, so far."""
    first = psutil.Process(pid)
    spent = 0.0
    for process in [first, *first.children(recursive=True)]:
        with suppress(psutil.Error):
            spent += sum(process.cpu_times()[:4])  # their own, and of children that have ended
    return spent


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()  # torchrun's agent ends its ranks, which have sessions of their own
        with suppress(subprocess.TimeoutExpired):
            process.wait(20.0)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def imports() -> dict[str, float]:
    """Seconds that a rank's imports take, by top-level package, as ``python -X importtime`` has it; the largest."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import suture.launch.roles.server, torch._dynamo"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    seconds: dict[str, float] = {}
    for match in re.finditer(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", done.stderr):
        parts = match[2].split(".")
        name = (
            ".".join(parts[:2]) if parts[:2] in (["torch", "_dynamo"], ["torch", "distributed"]) else parts[0]
        )
        seconds[name] = seconds.get(name, 0.0) + int(match[1]) / 1e6
    ranked = sorted(seconds.items(), key=lambda item: -item[1])
    return dict(ranked[:8]) | {"everything else": sum(value for _, value in ranked[8:])}
