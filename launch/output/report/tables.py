"""The page's tables: sites with their scores and intervals, and what a step or the turns cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suture.launch.output.report.intervals import auroc_interval, wilson
from suture.launch.output.report.lines import Cost
from suture.launch.output.report.numbers import RunNumbers, Site
from suture.launch.output.report.svg import swatch
from suture.launch.output.report.values import number, whole
from suture.launch.output.scores import NAMES, SHOWN
from suture.launch.output.step_times import PARTS
from suture.launch.output.table import Html, Table, column_heads
from suture.launch.output.text import DASH, duration, score, size, text
from suture.runtime.server.membership import natural

_KINDS = {"train": "training", "evaluate": "evaluating", "average": "averaging", "handoff": "hand-off"}

Interval = tuple[float, float]
_PART = "part of a step"


def sites_table(numbers: RunNumbers, looks: Mapping[str, int]) -> str:
    """A row a site: images, last losses and scores, test scores with n and intervals."""
    if not numbers.sites:
        return '<p class="empty">no site has joined yet</p>'
    tested = bool(_tests(numbers))
    rows = [_site_row(numbers, site, looks[site.name], tested) for site in numbers.sites]
    total = tested and len(numbers.sites) > 1
    if total:
        rows.append(_all_row(numbers))
    note = SHOWN[numbers.task].note if tested else "Test images are scored at the end of the run."
    table = Table(rows, "Sites and their scores")
    shown = table.to_html(head=_sites_head(numbers.task, tested), cards=True, total=total)
    return f'{shown}<p class="note">{note}</p>'


def _sites_head(task: str, tested: bool) -> str:
    groups = (
        '<th rowspan="2" scope="col">site</th><th colspan="2" scope="colgroup">images</th>'
        '<th rowspan="2" scope="col">train loss, last turn</th>'
        f'<th colspan="{len(SHOWN[task].validated)}" scope="colgroup">validation images</th>'
    )
    below = ["train", "validation", *(NAMES[name] for name in SHOWN[task].validated)]
    if tested:
        groups += f'<th colspan="{len(SHOWN[task].tested) + 1}" scope="colgroup">test images</th>'
        below += ["n", *(NAMES[name] for name in SHOWN[task].tested)]
    return f"<tr>{groups}</tr><tr>{column_heads(below)}</tr>"


def _site_row(numbers: RunNumbers, site: Site, index: int, tested: bool) -> dict[str, str]:
    state = f' <span class="badge">{text(site.state)}</span>' if site.state else ""
    newest = max((other.scored or 0 for other in numbers.sites), default=0)
    if site.scored is not None and site.scored < newest:
        state += f"<small>scores of round {site.scored}</small>"
    validation, test = site.scores.get("validation", {}), site.scores.get("test", {})
    row: dict[str, str] = {
        "site": Html(f'{swatch(index)}<span class="name">{text(site.name)}</span>{state}'),
        "train images": _count(site.images.get("train")),
        "val. images": _count(site.images.get("validation")),
        "train loss": score(site.train_loss),
    }
    for name in SHOWN[numbers.task].validated:
        row[f"val. {NAMES[name]}"] = score(number(validation.get(name)))
    if tested:
        row["test images"] = _count(site.images.get("test"))
        for name in SHOWN[numbers.task].tested:
            row[f"test {NAMES[name]}"] = _score_cell(name, test, num_classes(numbers))
    return row


def _all_row(numbers: RunNumbers) -> dict[str, str]:
    """All sites together: accuracy over all their test images, means of what cannot be pooled."""
    row = {"site": "all sites"}
    for phase, label in (("train", "train images"), ("validation", "val. images")):
        known = [site.images[phase] for site in numbers.sites if phase in site.images]
        row[label] = _count(sum(known) if len(known) == len(numbers.sites) else None)
    row["test images"] = _count(sum(whole(test.get("num_images")) or 0 for test in _tests(numbers)))
    for name in SHOWN[numbers.task].tested:
        value, n = over_sites(numbers, name)
        if value is None or name == "majority_accuracy":
            cell = score(value)
        elif name == "accuracy":
            cell = _with_interval(value, share_interval(value, n), None)
        else:
            cell = Html(f"{score(value)}<br><small>mean of sites</small>")
        row[f"test {NAMES[name]}"] = cell
    return row


def over_sites(numbers: RunNumbers, name: str) -> tuple[float | None, int]:
    """A test score of all sites and their images: shares over all images, of other scores the mean of the sites'."""
    known = [
        (value, whole(test.get("num_images")) or 0)
        for test in _tests(numbers)
        if (value := number(test.get(name))) is not None
    ]
    total = sum(n for _, n in known)
    if not known:
        return None, 0
    if name in ("accuracy", "majority_accuracy"):
        return sum(value * n for value, n in known) / total, total
    return sum(value for value, _ in known) / len(known), total


def _tests(numbers: RunNumbers) -> list[Mapping[str, Any]]:
    scored = [site.scores.get("test", {}) for site in numbers.sites]
    return [test for test in scored if whole(test.get("num_images"))]


def num_classes(numbers: RunNumbers) -> int | None:
    """How many classes the run has, None where nothing says so."""
    classes = numbers.options.get("classes")
    return (
        len(classes)
        if isinstance(classes, list | tuple) and classes
        else whole(numbers.options.get("num_classes"))
    )


def share_interval(share: float, n: int) -> Interval | None:
    """Of an accuracy on ``n`` images; None for what is none."""
    return wilson(round(share * n), n) if n and 0 <= share <= 1 else None


def area_interval(area: float, n: int | None, majority: float | None, classes: int | None) -> Interval | None:
    """Of an AUROC: only for two classes, whose counts follow from n and the share of the commoner one."""
    if classes != 2 or not n or majority is None or not 0 <= area <= 1:
        return None
    one = round(majority * n)
    return auroc_interval(area, one, n - one) if 0 < one < n else None


def _score_cell(name: str, test: Mapping[str, Any], classes: int | None) -> str:
    value, n, majority = (
        number(test.get(name)),
        whole(test.get("num_images")),
        number(test.get("majority_accuracy")),
    )
    if value is None:
        return DASH
    if name == "accuracy":
        return _with_interval(value, share_interval(value, n or 0), majority)
    if name == "auroc":
        return _with_interval(value, area_interval(value, n, majority, classes), 0.5)
    return score(value)


def _with_interval(value: float, interval: Interval | None, guess: float | None) -> str:
    """A score, its interval in digits and drawn on a scale from 0 to 1, and what guessing reaches, dotted."""
    if interval is None:
        return score(value)
    low, high = interval
    mark = "" if guess is None else f'<path class="guess" d="M{round(100 * guess)} 0V12"/>'
    whisker = (
        '<svg class="whisker" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="scale" d="M0 6H100"/>{mark}<path class="span" d="M{round(100 * low)} 6H{round(100 * high)}"/>'
        f'<path class="point" d="M{round(100 * value)} 6h0"/></svg>'
    )
    unsure = guess is not None and low <= guess <= high
    told = '<small class="unsure">may be guessing</small>' if unsure else ""
    return Html(f"{score(value)} <small>{low:.2f} to {high:.2f}</small>{whisker}{told}")


def _count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def profile_table(profile: Mapping[str, Mapping[str, float]]) -> str:
    """Median milliseconds of each part of a step, a column a site; the bar is the part's share of the longest one."""
    parts = [part for part in PARTS if any(times.get(part, 0.0) > 0 for times in profile.values())]
    longest = max((times.get(part, 0.0) for times in profile.values() for part in parts), default=0.0)
    rows = [
        {_PART: part}
        | {f"{site}, ms": _bar(times.get(part, 0.0), longest) for site, times in profile.items()}
        for part in parts
    ]
    sums = {f"{site}, ms": f"{1e3 * sum(times.values()):.1f}" for site, times in profile.items()}
    return Table([*rows, {_PART: "together"} | sums], "Median time of a step by part").to_html(total=True)


def _bar(seconds: float, longest: float) -> str:
    width = 100 * seconds / longest if longest else 0
    return Html(f'{1e3 * seconds:.1f}<span class="bar"><i style="width:{width:.1f}%"></i></span>')


def costs_table(costs: Mapping[str, Cost]) -> str:
    """Seconds by kind of turn, waiting, images a second and bytes, a row a site."""
    kinds = [*_KINDS, *sorted({kind for cost in costs.values() for kind in cost.seconds} - set(_KINDS))]
    kinds = [kind for kind in kinds if any(cost.seconds.get(kind) for cost in costs.values())]
    rows: list[dict[str, str]] = []
    for name, cost in sorted(costs.items(), key=lambda item: natural(item[0])):
        trained = cost.seconds.get("train", 0.0)
        rows.append(
            {"site": ""}
            | {_KINDS.get(kind, kind): duration(cost.seconds.get(kind, 0.0)) for kind in kinds}
            | {
                "site": Html(f'<span class="name">{text(name)}</span>'),
                "waiting for turns": duration(cost.waited),
                "images/s": f"{cost.images / trained:.1f}" if trained > 0 and cost.images else DASH,
                "sent": size(cost.up),
                "received": size(cost.down),
            }
        )
    return Table(rows, "What the turns cost").to_html(cards=True)
