"""The page itself: numbers in, HTML out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import TypeVar

import numpy as np

from suture.launch.output.report.about import about_section, costs_section
from suture.launch.output.report.head import header, heading, state_words
from suture.launch.output.report.numbers import RunNumbers
from suture.launch.output.report.svg import MOST_LABELS, Chart, Series, line_chart, swatch
from suture.launch.output.report.tables import num_classes, sites_table
from suture.launch.output.scores import NAMES
from suture.launch.output.text import score, text

T = TypeVar("T")
_MOST_RAW = 12  # sites beyond which single batches are not drawn: they could not be told apart

_SCRIPT = """
const page = document.documentElement, late = document.getElementById("late");
const seconds = () => Date.now() / 1000 - page.dataset.written;
const look = () => { if (seconds() > 150) late.textContent = " This page is " + Math.round(seconds() / 60) +
  " minutes old: its run may have been killed."; };
look(); setInterval(look, 10000);
setTimeout(() => location.reload(), 30000);
"""


def to_html(numbers: RunNumbers, versions: Mapping[str, str]) -> str:
    """The whole page, self-contained; without its few lines of script it only does not reload itself."""
    runs = numbers.state.phase == "running"
    looks = {site.name: index for index, site in enumerate(numbers.sites)}
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    title = f"{heading(numbers)}: {state_words(numbers)}"
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    # Names come from other sites: were one not escaped, no script of theirs would run all the same.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    sites = "This site" if numbers.view == "site" else "Sites"
    body = [
        header(numbers),
        _warnings(numbers),
        _curves(numbers, looks),
        f"<section><h2>{sites}</h2>{sites_table(numbers, looks)}</section>",
        costs_section(numbers),
        _happened(numbers),
        about_section(numbers, versions),
    ]
    return (
        f'<!doctype html>\n<html lang="en" data-written="{numbers.now:.0f}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n"
        + (f"<script>{_SCRIPT}</script>\n" if runs else "")
        + "</body>\n</html>\n"
    )


def _warnings(numbers: RunNumbers) -> str:
    if not numbers.warnings:
        return ""
    lines = "".join(f"<li>{text(line)}</li>" for line in numbers.warnings)
    count = "1 warning" if len(numbers.warnings) == 1 else f"{len(numbers.warnings)} warnings"
    return f'<section class="warnings" aria-label="warnings"><h2>{count}</h2><ul>{lines}</ul></section>'


def _happened(numbers: RunNumbers) -> str:
    if not numbers.happened:
        return ""
    lines = "".join(
        f"<li><span>{f'round {round}' if round else 'before'}</span> {text(line)}</li>"
        for round, line in numbers.happened
    )
    return f'<section class="happened"><h2>What happened</h2><ol>{lines}</ol></section>'


def _curves(numbers: RunNumbers, looks: Mapping[str, int]) -> str:
    raw = len(numbers.losses) <= _MOST_RAW
    training = [
        Series(label=name, look=looks[name], points=curve.smooth, raw=curve.raw if raw else curve.raw[:0])
        for name, curve in _in_order(numbers.losses, looks)
    ]
    best = (float(numbers.best_round), f"best: round {numbers.best_round}") if numbers.best_round else None
    charts = [
        Chart(
            name="training-loss",
            title="Training loss",
            note="each batch faint, smoothed over it" if raw else "smoothed",
            x_label="step (batches over the whole run)",
            series=training,
            summary=_summary(training, "step"),
        ),
        _by_round(numbers, looks, "loss", best),
        _by_round(numbers, looks, numbers.main, best),
    ]
    names = "".join(f"<li>{swatch(looks[name])}{text(name)}</li>" for name in looks)
    legend = f'<ul class="legend" aria-label="sites">{names}</ul>' if len(looks) > 1 else ""
    many = " many" if len(looks) > MOST_LABELS else " one" if len(looks) == 1 else ""
    drawn = "".join(map(line_chart, charts))
    return f'<section class="curves{many}"><h2>Curves</h2>{legend}<div class="charts">{drawn}</div></section>'


def _by_round(
    numbers: RunNumbers, looks: Mapping[str, int], measure: str, best: tuple[float, str] | None
) -> Chart:
    curves = [
        Series(label=name, look=looks[name], points=points)
        for name, points in _in_order(numbers.rounds[measure], looks)
    ]
    level, y_range = None, None
    if measure != "loss":
        classes = num_classes(numbers)
        one_of = 1 / classes if classes else None
        chance = {"auroc": 0.5, "quadratic_kappa": 0.0, "balanced_accuracy": one_of}.get(measure)
        lowest = min(
            (float(np.nanmin(c.points[:, 1])) for c in curves if np.isfinite(c.points[:, 1]).any()),
            default=0.0,
        )
        lowest = lowest if chance is None else min(lowest, chance)
        below = float(np.floor((lowest - 0.03) * 10) / 10)
        y_range = below if lowest < 0 else max(0.0, below), 1.02  # only a kappa can be worse than 0
        level = None if chance is None else (chance, "guessing")
    return Chart(
        name=f"by-round-{measure.replace('_', '-')}",
        title=f"{numbers.phase.capitalize()} {NAMES[measure]}",
        note=f"each site's own {numbers.phase} images, after each round",
        x_label="round",
        series=curves,
        y_range=y_range,
        level=level,
        mark=best,
        summary=_summary(curves, "round"),
    )


def _in_order(curves: Mapping[str, T], looks: Mapping[str, int]) -> list[tuple[str, T]]:
    return sorted(curves.items(), key=lambda item: looks[item[0]])


def _summary(curves: Iterable[Series], unit: str) -> str:
    told = []
    for series in curves:
        finite = series.points[np.isfinite(series.points[:, 1])]
        if len(finite):
            (first, begun), (last, ended) = finite[0], finite[-1]
            told.append(
                f"{series.label}: {score(begun)} at {unit} {first:.0f}, {score(ended)} at {unit} {last:.0f}"
            )
    return "; ".join(told) or "nothing measured yet"
