"""The head of the page: what is trained, how far it is, and what it came to so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np

from suture.launch.output.figures.curves import Array
from suture.launch.output.report.about import facts_of
from suture.launch.output.report.intervals import wilson
from suture.launch.output.report.numbers import RunNumbers
from suture.launch.output.report.tables import over_sites
from suture.launch.output.report.values import number
from suture.launch.output.scores import NAMES
from suture.launch.output.text import DASH, definitions, duration, score, text


def heading(numbers: RunNumbers) -> str:
    """The net, and at a site its name before it."""
    model, cut = numbers.options.get("model"), numbers.options.get("cut")
    net = f"{model}, cut {cut}" if model and cut is not None else str(model or "A run of Suture")
    name = numbers.options.get("name") or (numbers.folder.resolve().name if numbers.view == "site" else "")
    return f"{name}: {net}" if name else net


def state_words(numbers: RunNumbers) -> str:
    """Where the run is, or how it ended."""
    state = numbers.state
    place = f"round {state.round} of {state.rounds}" if state.round and state.rounds else ""
    more = f": {state.text}" if state.text else ""
    if state.phase == "running":
        first = f"before the first of {state.rounds} rounds" if state.rounds else "before the first round"
        return f"running: {place or first}" + more.replace(": ", ", ", 1)
    if state.phase == "finished":
        return "finished" + (f" after {state.rounds} rounds" if state.rounds else "") + more
    return "stopped" + (f" in {place}" if place else "") + more


def header(numbers: RunNumbers) -> str:
    """What is trained, the state, the numbers that one looks for first, and the options."""
    state = numbers.state
    clock = time.strftime("%H:%M:%S", time.localtime(numbers.now))
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(numbers.now))
    verb = "updated" if state.phase == "running" else "written"
    kind = "a site's own view" if numbers.view == "site" else "the server's view"
    over = (
        "Suture, " + kind
        if numbers.view == "site"
        else f"Suture, run {numbers.folder.resolve().name}, {kind}"
    )
    done = max(0, (state.round or 1) - 1) if state.phase != "finished" else state.rounds or 0
    bar = ""
    if state.rounds:
        width = 100 * min(1.0, done / state.rounds)
        bar = f'<div class="progress" aria-hidden="true"><i style="width:{width:.1f}%"></i></div>'
    tiles = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(more)}</small></dd></div>"
        for name, value, more in _tiles(numbers)
    )
    return (
        f'<header><p class="over">{text(over)}</p><h1>{text(heading(numbers))}</h1>'
        f'<p class="state {state.phase}" role="status"><b>{text(state_words(numbers))}</b>, '
        f'{verb} <time datetime="{stamp}">{clock}</time><span id="late"></span></p>{bar}'
        f'<dl class="tiles">{tiles}</dl>{definitions(facts_of(numbers))}</header>'
    )


def _tiles(numbers: RunNumbers) -> Iterator[tuple[str, str, str]]:
    state, runs = numbers.state, numbers.state.phase == "running"
    value, n = over_sites(numbers, numbers.main)
    if not runs and n:
        accuracy, _ = over_sites(numbers, "accuracy")
        more = f"{'mean of sites, ' if len(numbers.sites) > 1 else ''}n = {n:,} images"
        if accuracy is not None:
            low, high = wilson(round(accuracy * n), n)
            more += f"; accuracy {score(accuracy)} (95 %: {low:.2f} to {high:.2f})"
        yield f"test {NAMES[numbers.main]}", score(value), more
    yield _main_tile(numbers)
    losses = [site.train_loss for site in numbers.sites if site.train_loss is not None]
    mean = sum(losses) / len(losses) if losses else None
    yield (
        "training loss",
        score(mean),
        "mean of each site's last turn" if len(numbers.sites) > 1 else "last turn",
    )
    if runs:
        so_far = None if state.started is None else max(0.0, numbers.now - state.started)
        yield "time so far", duration(so_far), _since(state.started)
        yield "time left", duration(state.seconds_left), "at the pace so far" if state.seconds_left else ""
    else:
        yield "time taken", duration(number(numbers.summary.get("wall_seconds"))), _since(state.started)


def _main_tile(numbers: RunNumbers) -> tuple[str, str, str]:
    """The newest round's main score, and the best round's."""
    name, by_round = f"{numbers.phase} {NAMES[numbers.main]}", means(numbers.rounds[numbers.main].values())
    if not by_round:
        return name, DASH, "nothing scored yet"
    last, best = max(by_round), numbers.best_round
    more = f"round {last}{', mean of sites' if len(numbers.sites) > 1 else ''}"
    if best == last:
        more += "; the best so far" if numbers.state.phase == "running" else "; the best"
    elif best in by_round:
        more += f"; best {score(by_round[best])} in round {best}"
    return name, score(by_round[last]), more


def _since(started: float | None) -> str:
    return "" if started is None else "started " + time.strftime("%Y-%m-%d %H:%M", time.localtime(started))


def means(curves: Iterable[Array]) -> dict[int, float]:
    """Mean over sites of what each round gave."""
    found: dict[int, list[float]] = {}
    for points in curves:
        for round, value in points:
            if np.isfinite(value):
                found.setdefault(int(round), []).append(float(value))
    return {round: sum(values) / len(values) for round, values in found.items()}
