"""Writes report.html while a run trains, and again when it has ended.

A thread of its own does so every half minute, so that no step waits for the page and a run in which nothing moves says
so, too. It only reads files and rewrites one; an error costs the page and never the run.
"""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from suture import __version__
from suture.launch.output.lock import who_has
from suture.launch.output.report.lines import MetricsReader
from suture.launch.output.report.numbers import RunState, gather
from suture.launch.output.report.page import to_html
from suture.launch.output.run_folder import holds_run
from suture.launch.output.step_times import PROFILE_FILE, median_parts, own_median_parts
from suture.runtime.errors import SutureError
from suture.runtime.records.tracking import METRICS_FILE
from suture.runtime.state.checkpoint import cannot_write, write_atomically

log = logging.getLogger(__name__)

REPORT_FILE = "report.html"
EVERY = 30.0
SERVER, SITE = "server", "site"


class ReportWriter:
    """The page of one run at one place; a context manager around the run.

    Entered after the sandbox is closed (its thread must not be older). Left without an error the run counts as
    finished, with one as stopped because of it; whoever leaves it has closed metrics.jsonl and written summary.json.

    Args:
        folder: RUN at the server, RUN/clients/NAME at a site: where metrics.jsonl is and report.html goes.
        view: "server" or "site".
        facts: what the files do not say; see `numbers.gather`.
        every: seconds between two pages.
        seconds_left: asked before each page where `update` said nothing of it; from another thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        view: str = SERVER,
        facts: Mapping[str, Any] | None = None,
        every: float = EVERY,
        seconds_left: Callable[[], float | None] | None = None,
    ) -> None:
        self._folder, self._view, self._every = folder, view, every
        self._facts: Mapping[str, Any] = facts or {}
        self._seconds_left = seconds_left
        self._reader = MetricsReader(folder / METRICS_FILE)
        self._state = RunState()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._versions = versions()
        self._complained = False

    def update(self, state: RunState) -> None:
        """Says how the run goes; it stands on the next page. Any thread; takes no time and writes nothing."""
        self._state = state

    def write(self, state: RunState) -> None:
        """Writes the page at once. Never raises for the page's sake; a person is told once."""
        try:
            profile = {} if state.phase == "running" else _profile(self._folder, self._view)
            numbers = gather(self._folder, self._view, self._reader, state, self._facts, profile)
            write_atomically(self._folder / REPORT_FILE, to_html(numbers, self._versions).encode())
        except Exception as error:  # whatever it is: a page is not worth a run
            if not self._complained:
                self._complained = True
                log.warning("%s cannot be written (%s): going on without", self._folder / REPORT_FILE, error)

    def __enter__(self) -> ReportWriter:
        self._thread = threading.Thread(target=self._keep_writing, name="report", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        phase, why = ("finished", "") if error is None else ("stopped", _reason(error, self._folder))
        self.write(replace(self._state, phase=phase, text=why, seconds_left=None))

    def _keep_writing(self) -> None:
        while True:
            self.write(self._now())
            if self._ended.wait(self._every):
                return

    def _now(self) -> RunState:
        state = self._state
        if state.seconds_left is None and self._seconds_left is not None:
            try:
                return replace(state, seconds_left=self._seconds_left())
            except Exception:  # changed by the run's own thread while it was counted: the next page has it
                return state
        return state


def write_report(folder: Path, view: str, out: Path) -> Path:
    """Writes the page of a run that is on the disk, running or not.

    Args:
        folder: RUN, or RUN/clients/NAME.
        view: "server" or "site".
        out: the folder that it goes to; made when missing.

    Returns:
        The page's file.

    Raises:
        SutureError: something cannot be read or written.
    """
    page = out / REPORT_FILE
    try:
        reader = MetricsReader(folder / METRICS_FILE)
        numbers = gather(folder, view, reader, _state_of(folder), {}, _profile(folder, view))
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(page, to_html(numbers, versions()).encode())
    except OSError as error:
        raise cannot_write(page, error, "name another folder with --out") from None
    return page


def pages_of(folder: Path) -> list[tuple[Path, str]]:
    """The folders at and below ``folder`` that have a page, each with its view; none where there is no run.

    A server's folder has its page, and below it the pages of those sites that write numbers of their own to this disk.
    """
    sites = [(place.parent, SITE) for place in sorted(folder.glob(f"clients/*/{METRICS_FILE}"))]
    if holds_run(folder):
        return [(folder, SERVER), *sites]
    return [(folder, SITE)] if (folder / METRICS_FILE).exists() else sites


def versions() -> dict[str, str]:
    """Of what writes the page."""
    return {"suture": __version__, "torch": str(torch.__version__), "Python": platform.python_version()}


def _state_of(folder: Path) -> RunState:
    if who_has(folder):
        return RunState(phase="running")
    if (folder / "summary.json").exists():
        return RunState(phase="finished")
    return RunState(phase="stopped", text=f"its process has ended{_remedy(folder)}")


def _remedy(folder: Path) -> str:
    """How a run goes on: only a server has checkpoints, which `suture serve` takes up by itself."""
    known = (folder / "checkpoints").is_dir()
    return "; to go on, start it again (other than suture serve: with --resume --run-dir)" if known else ""


def _reason(error: BaseException, folder: Path) -> str:
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{_remedy(folder)}"
    return str(error) if isinstance(error, SutureError) and str(error) else f"{type(error).__name__}: {error}"


def _profile(folder: Path, view: str) -> dict[str, dict[str, float]]:
    """Median seconds by site and part of a step, where --profile wrote them; a site has its own only."""
    if view == SITE:
        return own_median_parts(folder)
    return median_parts(folder) if any(folder.glob(f"clients/*/{PROFILE_FILE}")) else {}
