"""``--profile``: what a run writes down of where its steps' time goes, and what is made of it.

The server's times are events of RUN/metrics.jsonl; a client's stay in its own folder, RUN/clients/NAME/profile.jsonl.
Where both are on one disk, and were measured on one machine's clock, they make up the whole step: what a client waited
before the server began is the wire up, what it waited after the server had ended the wire down.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.launch.output.figures.step_times import stacked_steps
from suture.runtime.records.observers import Recorder
from suture.runtime.records.step_timer import SENDING, SERVER, WAITING, RunningStepTimer
from suture.runtime.records.tracking import METRICS_FILE, read_events

PROFILE_FILE = "profile.jsonl"
EVENT = "profiled"
_EARLIER = 60.0  # seconds that a server may compute before the client's step counts as begun (--overlap)
PARTS = (
    "loader",
    "bottom",
    "wire up",
    "server",
    "wire down",
    "wire and waiting",
    "head",
    "backward",
    "optimizer",
    "other",
)


class ProfilingRecorder:
    """Writes the server's times beside each training step that another recorder is told of.

    Args:
        recorder: who is told everything else.
        step_timer: the server's.
    """

    def __init__(self, recorder: Recorder, step_timer: RunningStepTimer) -> None:
        self._recorder, self._stopwatch = recorder, step_timer
        self.scores, self.event, self.flush = recorder.scores, recorder.event, recorder.flush

    def train_step(self, step: int, round: int, turn: int, client: str, loss: float, num_images: int) -> None:
        """A step has ended."""
        self._recorder.train_step(step, round, turn, client, loss, num_images)
        lap = self._stopwatch.take()
        place = {"step": step, "round": round, "turn": turn, "client": client}
        self._recorder.event(EVENT, **place, seconds=lap.seconds.get(SERVER, 0.0), spans=lap.spans)


def draw_profile(run_dir: Path) -> None:
    """Draws RUN/figures/profile.png from what is on this disk; of clients elsewhere only the server's part is known."""
    medians = median_parts(run_dir)
    if medians:
        stacked_steps(medians, PARTS, run_dir / "figures" / "profile.png")


def draw_own_profile(folder: Path) -> None:
    """Draws figures/profile.png in a client's own folder, whose server is elsewhere: the wire and it are one part."""
    medians = own_median_parts(folder)
    if medians:
        stacked_steps(medians, PARTS, folder / "figures" / "profile.png")


def median_parts(run_dir: Path) -> dict[str, dict[str, float]]:
    """Median seconds of each part of a step, by client; each client's first step is left out.

    The parts of one step add up to it; their medians do so nearly.
    """
    return {client: _medians(steps) for client, steps in read_steps(run_dir).items()}


def own_median_parts(folder: Path) -> dict[str, dict[str, float]]:
    """The same of one client from its own folder alone, where the server's share of the waiting is not known."""
    steps = _client_steps(folder, [])
    return {folder.name: _medians(steps)} if steps else {}


def _medians(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    counted = steps[1:] or steps
    return {part: statistics.median(step.get(part, 0.0) for step in counted) for part in PARTS}


def read_steps(run_dir: Path) -> dict[str, list[dict[str, float]]]:
    """Seconds of each part of every step, by client; of a client whose own times are elsewhere the server's alone."""
    server: dict[str, list[Mapping[str, Any]]] = {}
    for event in read_events(run_dir / METRICS_FILE):
        if event["event"] == EVENT:
            server.setdefault(event["client"], []).append(event)
    found = {
        client: [{"server": float(one["seconds"])} for one in events] for client, events in server.items()
    }
    for path in sorted(run_dir.glob(f"clients/*/{PROFILE_FILE}")):
        found[path.parent.name] = _client_steps(path.parent, server.get(path.parent.name, []))
    return found


def _client_steps(folder: Path, server: list[Mapping[str, Any]]) -> list[dict[str, float]]:
    by_turn: dict[int, list[Mapping[str, Any]]] = {}
    for event in server:
        by_turn.setdefault(event["turn"], []).append(event)
    steps = []
    path = folder / PROFILE_FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        ours = json.loads(line)
        theirs, batch = by_turn.get(ours["turn"], []), ours["batch"]
        steps.append(split_up(ours, theirs[batch] if batch < len(theirs) else None))
    return steps


def split_up(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> dict[str, float]:
    """One step's parts: a client's own, and what it sent and waited split among the wire and the server.

    Args:
        ours: a line of the client's file.
        theirs: the server's event about the same step, where there is one.
    """
    parts = dict(ours["seconds"])
    (begun, ended), spans = ours["window"], ours["spans"]
    waited = parts.pop(SENDING, 0.0) + parts.pop(WAITING, 0.0)
    parts["other"] = max(0.0, ended - begun - waited - sum(parts.values()))
    computed = [(since, until) for _, since, until in theirs["spans"]] if theirs is not None else []
    if not computed or not all(begun - _EARLIER <= since and until <= ended for since, until in computed):
        # No times of the server's, or of another machine's clock.
        parts["server"] = 0.0 if theirs is None else min(float(theirs["seconds"]), waited)
        parts["wire and waiting"] = waited - parts["server"]
        return parts
    up = down = inside = 0.0
    for name, since, until in spans:
        meanwhile = [(b, e) for b, e in computed if b < until and e > since]
        if meanwhile:
            first, last = max(since, meanwhile[0][0]), min(until, meanwhile[-1][1])
            up, inside, down = up + first - since, inside + last - first, down + until - last
        elif name == SENDING:
            up += until - since
        else:  # the server had ended when the client began to wait
            down += until - since
    return parts | {"wire up": up, "server": inside, "wire down": down}
