"""Runs side by side, a process each with one thread: two runs on two cores end sooner than one run on both.

The processes are forked from one that has imported everything once, which saves seconds a run. A run that fails does
not stop the others; all failures are told at the end.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from suture.launch.start import fork_server
from suture.runtime.errors import SutureError
from suture.studies.experiments.runs.job import Job, result_path, runs_folder

_POLL_SECONDS = 0.2
_PATIENCE = 15.0


@dataclass(frozen=True)
class Task:
    """A job of the experiment in ``folder``."""

    folder: Path
    job: Job

    @property
    def is_done(self) -> bool:
        """Whether it has a result."""
        return result_path(self.folder, self.job.name).exists()

    @property
    def log(self) -> Path:
        """What its process said."""
        return runs_folder(self.folder) / f"{self.job.name}.log"


@dataclass
class _Running:
    task: Task
    process: BaseProcess
    begun: float


def run_all(tasks: Sequence[Task], slots: int, done: Callable[[Task], None]) -> None:
    """Runs what has no result yet, ``slots`` at a time, in the order given.

    Args:
        tasks: all of them; those that are done count as done at once.
        slots: processes at a time.
        done: called after each task that ends well, also for those that were done before.

    Raises:
        SutureError: runs failed; all others have been run, and each failure's last line is told.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:48}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failures: list[str] = []
    waiting, running = [task for task in tasks if not task.is_done], list[_Running]()
    # A stop by SIGTERM must end the runs as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, _interrupt)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(tasks), completed=len(tasks) - len(waiting))
        try:
            for task in tasks:
                if task.is_done:
                    done(task)
            while waiting or running:
                while waiting and len(running) < slots:
                    running.append(_begin(waiting.pop(0)))
                progress.update(bar, description=", ".join(_named(one.task) for one in running))
                time.sleep(_POLL_SECONDS)
                for one in [one for one in running if one.process.exitcode is not None]:
                    running.remove(one)
                    progress.advance(bar)
                    said = _end(one)
                    if said:
                        failures.append(said)
                    else:
                        done(one.task)
                    if not console.is_terminal:
                        left = len(waiting) + len(running)
                        told = said or f"{_named(one.task)} done in {time.monotonic() - one.begun:.0f} s"
                        print(f"[{len(tasks) - left}/{len(tasks)}] {told}", file=sys.stderr, flush=True)
        finally:
            signal.signal(signal.SIGTERM, before)
            _stop(running)
    if failures:
        raise SutureError(
            f"{len(failures)} of {len(tasks)} runs failed, the others are kept: {'; '.join(failures)}"
        )


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _begin(task: Task) -> _Running:
    runs_folder(task.folder).mkdir(parents=True, exist_ok=True)
    fork_server.begin("suture.studies.experiments.engine.worker")
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_work, args=(task,), name=_named(task))
    process.start()
    return _Running(task, process, time.monotonic())


def _work(task: Task) -> None:
    """The process of one run: a session of its own, so that it can be ended with all that it starts."""
    os.setsid()
    Thread(target=_end_with_parent, daemon=True).start()
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What clients remember of hand-offs belongs to the experiment, not to the person who runs it.
    state = str((task.folder / "inputs" / "state").resolve())
    os.environ |= {"XDG_STATE_HOME": state, "CI": "1", "OMP_NUM_THREADS": "1"}
    from suture.launch.options.outcome import outcome
    from suture.studies.experiments.engine.worker import work

    code = outcome(lambda: work(task.folder, task.job.name))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of torch's must not hold a run that is done


def _end_with_parent() -> None:
    """Ends this run, and all that it started, when the command is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _end(one: _Running) -> str:
    """What went wrong, empty where nothing did."""
    if one.process.exitcode == 0 and one.task.is_done:
        return ""
    lines = one.task.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = next((line for line in reversed(lines) if line.startswith("suture: ")), (lines or ["nothing"])[-1])
    return f"{_named(one.task)} failed: {told.removeprefix('suture: ')} (all of it in {one.task.log})"


def _stop(running: Sequence[_Running]) -> None:
    """Ends each run with all of its processes."""
    for one in running:
        _signal(one, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE
    for one in running:
        one.process.join(max(0.1, deadline - time.monotonic()))
        if one.process.exitcode is None:
            _signal(one, signal.SIGKILL)
            one.process.join()


def _signal(one: _Running, number: signal.Signals) -> None:
    assert one.process.pid is not None
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(one.process.pid, number)


def _named(task: Task) -> str:
    return f"{task.folder.name} {task.job.name}"
