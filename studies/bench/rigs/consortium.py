"""Real processes of ``suture serve`` and ``suture join`` on this machine: many at once, and one that loses its line."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from suture.launch.host.program import ROOT, SUTURE
from suture.launch.kits.provision import Project, provision
from suture.runtime.errors import SutureError
from suture.runtime.records.tracking import METRICS_FILE, read_events, read_metrics
from suture.studies.bench.plan import say
from suture.studies.bench.rigs.actors import own_memory, peak_memory
from suture.studies.bench.rigs.breakable import BreakableLine
from suture.studies.bench.rigs.stage import free_port

_PATIENCE = 900.0
_POLICY = "least_patients = 0\nleast_images = 0\nrepeats = 1000\nepochs = [1, 1000000]\n"
"""Few drawn images, and a line that is broken on purpose again and again."""
_SMALL = (
    "--data fundus-phantom --model resnet18 --image-size 32 --train-images 8 --validation-images 2 --test-images 2 "
    "--batch-size 4 --threads 1"
).split()
_U_NET = (
    "--data chest-phantom --model unet --width 4 --image-size 64 --train-images 8 --validation-images 2 "
    "--test-images 2 --batch-size 4 --threads 1"
).split()


@dataclass(frozen=True, kw_only=True)
class ConsortiumPlan:
    """What is measured.

    Attributes:
        sites: that join one run and train to its end.
        cuts: how often one site's line is broken in another run.
    """

    sites: int = 32
    cuts: int = 10


def measure(plan: ConsortiumPlan) -> dict[str, Any]:
    """Seconds and memory.

    Raises:
        SutureError: a process failed, or a run did not come to where it should in fifteen minutes.
    """
    found = {
        "crowd": _crowd(plan.sites, _SMALL),
        "alone": _crowd(1, _U_NET),
        "reconnects": _reconnects(plan.cuts),
    }
    crowd = found["crowd"]
    say(f"{plan.sites} sites: joined after {crowd['joined']:.0f} s, done after {crowd['done']:.0f} s")
    return found


@dataclass
class _Started:
    """A server and its sites, each a process; none is left when it ends."""

    options: list[str]
    folder: Path
    sites: tuple[str, ...]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> _Started:
        self.address = f"127.0.0.1:{free_port()}"
        self._kits = provision(Project(address=self.address, sites=self.sites), self.folder / "kits")
        for name in self.sites:
            self._kits[name].policy.write_text(_POLICY, encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    @property
    def metrics(self) -> Path:
        """Where the server writes what has happened."""
        return self.folder / "run" / METRICS_FILE

    def serve(self, clients: int, *more: str) -> None:
        run = [f"--clients={clients}", f"--run-dir={self.folder / 'run'}"]
        self._start("server", ["serve", str(self._kits["server"].folder), *run, *more])

    def join(self, name: str, at: str | None = None) -> None:
        own = [f"--server={at or self.address}", f"--run-dir={self.folder / name}"]
        self._start(name, ["join", str(self._kits[name].folder), *own])

    def _start(self, name: str, command: list[str]) -> None:
        state = self.folder / "state" / name
        with (self.folder / f"{name}.log").open("w", encoding="utf-8") as log:
            self.processes[name] = subprocess.Popen(
                [*SUTURE, *command, *self.options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"XDG_STATE_HOME": str(state), "CI": "true"},
                cwd=ROOT,
            )

    def until(
        self, true: Callable[[], object], what: str, meanwhile: Callable[[], None] = lambda: None
    ) -> float:
        """Waits; returns the seconds.

        Raises:
            SutureError: a process failed, or patience is at its end.
        """
        begun = time.perf_counter()
        while not true():
            meanwhile()
            failed = [name for name, process in self.processes.items() if process.poll() not in (None, 0)]
            if failed or time.perf_counter() - begun > _PATIENCE:
                who = failed[0] if failed else "server"
                said = " / ".join(
                    (self.folder / f"{who}.log").read_text(encoding="utf-8").strip().splitlines()[-3:]
                )
                raise SutureError(f"benchmark of sites: {what}: {who} said: {said}")
            time.sleep(0.01)
        return time.perf_counter() - begun

    def all_ended(self) -> bool:
        """Whether no process is left."""
        return all(process.poll() is not None for process in self.processes.values())

    def num_joined(self) -> int:
        """How often a site joined."""
        return sum(event["event"] == "joined" for event in self._events())

    def num_steps(self) -> int:
        """Training steps that count."""
        with suppress(FileNotFoundError):
            return sum(line["phase"] == "train" for line in read_metrics(self.metrics))
        return 0

    def _events(self) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            return read_events(self.metrics)
        return []


def _crowd(count: int, options: list[str]) -> dict[str, Any]:
    """A whole run of so many sites: seconds from the first command, and each site's memory while it is there."""
    memory: dict[str, dict[str, int]] = {}
    looked_at = 0.0

    def look() -> None:
        nonlocal looked_at
        if time.monotonic() - looked_at < 1.0:
            return
        looked_at = time.monotonic()
        for name, process in started.processes.items():
            with suppress(OSError, psutil.Error):
                seen = {"peak": peak_memory(process.pid), "own": own_memory(process.pid)}
                before = memory.setdefault(name, seen)
                memory[name] = {what: max(size, before[what]) for what, size in seen.items()}

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-bench-"))
        names = tuple(f"site{number}" for number in range(count))
        started = stack.enter_context(_Started([*options, "--epochs=2"], Path(folder), names))
        begun = time.perf_counter()
        started.serve(count, "--grace=0")
        for name in names:
            started.join(name)
        started.until(lambda: started.num_joined() >= count, "all join")
        joined = time.perf_counter() - begun
        started.until(started.all_ended, "all end", look)
        done = time.perf_counter() - begun
    server = memory.pop("server", {})
    return {"sites": count, "joined": joined, "done": done, "memory": list(memory.values()), "server": server}


def _reconnects(cuts: int) -> dict[str, list[float]]:
    """Seconds from a broken line until the site is a member again, and until its next step has counted."""
    seated, stepped = [], []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-bench-"))
        started = stack.enter_context(_Started([*_SMALL, "--epochs=100000"], Path(folder), ("site0",)))
        line = stack.enter_context(BreakableLine(started.address))
        started.serve(1)
        started.join("site0", line.address)
        for _ in range(cuts):
            member, step = _back_after_a_cut(started, line)
            seated.append(member)
            stepped.append(step)
    return {"seated": seated, "stepped": stepped}


def _back_after_a_cut(started: _Started, line: BreakableLine) -> tuple[float, float]:
    started.until(lambda: started.num_steps() > 0, "first steps")
    before = started.num_joined()
    line.break_lines()
    member = started.until(lambda: started.num_joined() > before, "the site is back")
    steps = started.num_steps()
    return member, member + started.until(lambda: started.num_steps() > steps, "it trains again")
