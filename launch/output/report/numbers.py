"""What the page says, gathered from the files of a run's folder; every file and every key may be missing."""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from suture.launch.output.figures.curves import Array, smoothed
from suture.launch.output.report.happened import happened, warnings
from suture.launch.output.report.lines import Cost, MetricsReader, Steps
from suture.launch.output.report.values import mapping, number, read_json, whole
from suture.launch.output.scores import SHOWN
from suture.runtime.server.membership import natural

_MOST_POINTS = 400
MAIN = {str(task): shown.validated[1:] for task, shown in SHOWN.items()}
PHASES = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What only the process that trains can say of the run.

    Attributes:
        phase: "running", "finished" or "stopped".
        text: what it waits for, or why it stopped.
        round: the one that runs, None for the last that metrics.jsonl names.
        rounds: how many there are to be, None for what config.toml says.
        started: seconds since 1970, None where not known.
        seconds_left: None where not known.
    """

    phase: str = "running"
    text: str = ""
    round: int | None = None
    rounds: int | None = None
    started: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class LossCurve:
    """Training loss of a client: (step, loss) rows, smoothed, and thinned out as measured with a nan row at rests."""

    smooth: Array
    raw: Array


@dataclass(frozen=True, kw_only=True)
class Site:
    """One row of the table of sites.

    Attributes:
        name: of the site.
        state: "lost" or "put out" where it does not take part, else empty.
        images: by phase, where known.
        train_loss: mean of its last turn.
        scores: the last ones by phase.
        scored: the round that the last validation closed, None where there was none.
    """

    name: str
    state: str = ""
    images: Mapping[str, int] = field(default_factory=dict)
    train_loss: float | None = None
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scored: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunNumbers:
    """Everything on the page.

    Attributes:
        folder: the run's, or the site's own.
        view: "server" or "site".
        state: with round, rounds and start filled in where the files say them.
        now: when this was gathered, seconds since 1970.
        options: the run's, as config.toml has them, and what the summary and the caller know better.
        task: "classification" or "segmentation".
        summary: of a run that has ended, else empty.
        sites: in the order of their names.
        losses: by site.
        rounds: (round, value) by measure ("loss" or a score's name) and site, of ``phase``.
        phase: "validation", or "test" where nothing was validated.
        main: the score that is drawn.
        best_round: 0 where there is none.
        warnings: sentences.
        happened: sentences with their round.
        costs: by site.
        profile: median seconds by site and part of a step.
    """

    folder: Path
    view: str
    state: RunState
    now: float
    options: Mapping[str, Any]
    task: str
    summary: Mapping[str, Any]
    sites: Sequence[Site]
    losses: Mapping[str, LossCurve]
    rounds: Mapping[str, Mapping[str, Array]]
    phase: str
    main: str
    best_round: int
    warnings: Sequence[str]
    happened: Sequence[tuple[int, str]]
    costs: Mapping[str, Cost]
    profile: Mapping[str, Mapping[str, float]]


def gather(
    folder: Path,
    view: str,
    reader: MetricsReader,
    state: RunState,
    facts: Mapping[str, Any],
    profile: Mapping[str, Mapping[str, float]],
) -> RunNumbers:
    """The numbers of the run in ``folder`` as they are now.

    Args:
        folder: RUN, or RUN/clients/NAME.
        view: "server" or "site".
        reader: of its metrics.jsonl; is read on.
        state: what the caller knows of the run.
        facts: what the caller knows beyond the files: "num_classes", "classes", "name", "clients_data" or an option.
        profile: median seconds of a step by site and part.

    Raises:
        OSError: a file is there and cannot be read.
    """
    reader.read()
    identity, summary = read_json(folder / "run.json"), read_json(folder / "summary.json")
    options = {**_config(folder), **_plain(summary), **identity, **facts}
    if state.phase == "running":
        summary = {}  # of before a resume
    evaluations = reader.evaluations()
    task = _task(options, evaluations)
    phases = {line["phase"] for line in evaluations}
    phase = "test" if "test" in phases and "validation" not in phases else "validation"
    shown = [line for line in evaluations if line["phase"] == phase]
    scored = [name for name in MAIN[task] if any(number(line.get(name)) is not None for line in shown)]
    main = next(iter(scored), MAIN[task][0])
    started = state.started
    if started is None and (folder / "run.json").exists():
        started = (folder / "run.json").stat().st_mtime
    return RunNumbers(
        folder=folder,
        view=view,
        state=RunState(
            phase=state.phase,
            text=state.text,
            round=state.round or reader.round or None,
            rounds=state.rounds or whole(options.get("epochs")),
            started=started,
            seconds_left=state.seconds_left,
        ),
        now=time.time(),
        options=options,
        task=task,
        summary=summary,
        sites=_sites(reader, evaluations, summary, facts),
        losses={name: _loss_curve(steps) for name, steps in reader.curves().items()},
        rounds={measure: _by_round(shown, measure) for measure in ("loss", main)},
        phase=phase,
        main=main,
        best_round=whole(summary.get("best_round"))
        or (_best_round(shown, task) if phase == "validation" else 0),
        warnings=warnings(reader.events),
        happened=happened(reader.events),
        costs=reader.costs,
        profile=profile,
    )


def _config(folder: Path) -> dict[str, Any]:
    """Options of the run: in its own folder, or in RUN for RUN/clients/NAME."""
    for place in (folder, folder.parent.parent):
        try:
            return tomllib.loads((place / "config.toml").read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError):  # a site's sandbox may not let it read RUN
            continue
    return {}


def _plain(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary's text and numbers; its tables are read by name."""
    return {name: value for name, value in summary.items() if isinstance(value, str | int | float)}


def _task(options: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
    if options.get("task") in MAIN:
        return str(options["task"])
    is_mask = any("dice" in line for line in evaluations) or options.get("model") == "unet"
    return "segmentation" if is_mask else "classification"


def _sites(
    reader: MetricsReader,
    evaluations: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> list[Site]:
    counts, said = (
        mapping(facts.get("clients_data") or summary.get("clients_data")),
        mapping(summary.get("clients")),
    )
    joined = {
        event["client"]: event.get("images") for event in reader.events if event.get("event") == "joined"
    }
    losses, names = reader.last_losses(), {*reader.clients, *map(str, said), *map(str, counts)}
    last: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in evaluations:
        last.setdefault(line["client"], {})[str(line["phase"])] = line
    sites = []
    for name in sorted(names, key=natural):
        told = mapping(said.get(name))
        scores = {phase: last.get(name, {}).get(phase) or mapping(told.get(phase)) for phase in PHASES[1:]}
        images = {phase: whole(mapping(counts.get(name)).get(phase)) for phase in PHASES}
        images["train"] = images["train"] or whole(joined.get(name))
        for phase, values in scores.items():
            images[phase] = whole(values.get("num_images")) or images[phase]
        loss = losses.get(name, number(mapping(told.get("train")).get("loss")))
        scored = whole(scores["validation"].get("round"))
        known = {phase: count for phase, count in images.items() if count is not None}
        sites.append(
            Site(
                name=name,
                state=reader.states.get(name, ""),
                images=known,
                train_loss=loss,
                scores=scores,
                scored=scored,
            )
        )
    return sites


def _by_round(lines: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Array]:
    """(round, value) rows by site; nan where a round's value was not finite."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        if measure in line:
            value = number(line[measure])
            found.setdefault(line["client"], {})[line["round"]] = math.nan if value is None else value
    return {name: np.array(sorted(values.items()), dtype=float) for name, values in found.items()}


def _best_round(lines: Sequence[Mapping[str, Any]], task: str) -> int:
    """The first round with the highest mean main score of the sites that evaluated in it, as the server finds it."""
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        values = [value for name in MAIN[task] if (value := number(line.get(name))) is not None]
        if values:
            found.setdefault(line["round"], {})[line["client"]] = values[0]
    means = {round: sum(values.values()) / len(values) for round, values in sorted(found.items())}
    return max(means, key=lambda round: means[round], default=0)


def _loss_curve(steps: Steps) -> LossCurve:
    points = np.stack((np.array(steps.steps, dtype=float), np.array(steps.losses)), axis=1)
    points = points[np.argsort(points[:, 0], kind="stable")]
    finite = points[np.isfinite(points[:, 1])]
    smooth = smoothed(finite) if len(finite) else finite
    return LossCurve(smooth[:: math.ceil(len(smooth) / _MOST_POINTS) or 1], _thinned(points))


def _thinned(points: Array) -> Array:
    """At most 400 rows: of each stretch the lowest and the highest, so that no spike is lost; nan rows at rests."""
    if len(points) < 2:
        return points
    rest = max(1.5, (points[-1, 0] - points[0, 0]) / 50)
    if len(points) > _MOST_POINTS // 2:
        stretches = np.array_split(points[np.isfinite(points[:, 1])], _MOST_POINTS // 4)
        kept = [s[sorted({int(s[:, 1].argmin()), int(s[:, 1].argmax())})] for s in stretches if len(s)]
        points = np.concatenate(kept) if kept else points[:0]
    rests = np.flatnonzero(np.diff(points[:, 0]) > rest) + 1
    return np.insert(points, rests, np.nan, axis=0)
