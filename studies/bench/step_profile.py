"""``suture bench profile``: where the time of a step goes, in a run of real processes with ``--profile``."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from itertools import repeat
from pathlib import Path
from typing import Any

from suture.launch.host.program import SUTURE
from suture.launch.output.step_times import PARTS, median_parts, read_steps
from suture.runtime.errors import SutureError
from suture.runtime.records.step_timer import RunningStepTimer
from suture.runtime.scheduler import Turn, TurnKind
from suture.studies.bench.plan import say

_RUN = "--clients 2 --data fundus-phantom --validation-images 0 --test-images 2 --profile"
_SIZES = {
    "standard": "--model resnet34 --cut 3 --image-size 64 --batch-size 32 --train-images 128 --epochs 3",
    "quick": "--model resnet18 --cut 3 --image-size 32 --batch-size 4 --train-images 8 --epochs 1",
}


def measure(*, quick: bool) -> dict[str, Any]:
    """Median seconds of each part by client, and what taking them costs.

    Raises:
        SutureError: the run failed.
    """
    options = f"{_RUN} {_SIZES['quick' if quick else 'standard']}"
    with tempfile.TemporaryDirectory(prefix="suture-bench-") as folder:
        run = Path(folder) / "run"
        done = subprocess.run(
            [*SUTURE, "train", *options.split(), "--run-dir", str(run)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SutureError(f"the profiled run failed: {done.stderr.strip().splitlines()[-1:]}")
        steps = read_steps(run)
        num_steps = min(len(taken) - 1 for taken in steps.values())
        say(f"profile: {num_steps} steps of each client")
        return {
            "options": options,
            "parts": list(PARTS),
            "steps": num_steps,
            "medians": median_parts(run),
            "all_steps": steps,
            "stopwatch_seconds": stopwatch_seconds(),
        }


def stopwatch_seconds(num_steps: int = 1000) -> float:
    """Median seconds that a client's step timer takes of a step: as many parts as in training, and nothing in them."""
    watch, times = RunningStepTimer(), []
    turn = Turn(TurnKind.TRAIN, round=1, number=1, client="client0")
    begun = time.perf_counter()
    for _ in watch.steps(turn, watch.loading(iter(repeat(_Nothing(), num_steps)))):  # type: ignore[arg-type]
        for name in ("bottom", "sending", "waiting", "backward", "optimizer"):
            with watch.part(name):
                pass
        now = time.perf_counter()
        times.append(now - begun)
        begun = now
    return statistics.median(times)


class _Nothing:
    number = 0
