"""audit.md: a table a cut that a hospital can read, what it says, and every column of the judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from suture.studies.audit.report import MEASURES, Group, Interval, Result, grouped, strongest_alive

_KINDS = {"held_out": "held-out", "train": "training"}
_BESIDE = ("mean image", "shuffled", "untrained client")
_DIGITS = {"psnr": 1, "mse": 4, "mse_median": 4, "mse_worst_tenth": 4}


def to_markdown(
    results: Sequence[Result], about: Mapping[str, Any], frontier: str, galleries: Mapping[str, str]
) -> str:
    """The page.

    Args:
        results: run by run.
        about: what was run.
        frontier: file name of the frontier's picture.
        galleries: by cut, of the reconstructions; a cut without has none.
    """
    groups = grouped(results)
    first = results[0]
    scores = first["attackers"]["static"]["scores"]["held_out"]["attack"]
    lines = [
        "# Audit: what would I leak if I joined?",
        "",
        f"`{about['command']}`",
        "",
        f"{about['model']} on {about['data']}, {about['image_size']} px, {about['clients']} client(s) with "
        f"{about['train_images']} training images each, {about['epochs']} rounds. "
        f"{about['done']} of {about['planned']} runs are done"
        + (f"; {about['note']}." if about.get("note") else "."),
        "",
        f"Attackers (ADRA, passive): both own {about['aux_images']} auxiliary images and pass them through a "
        "client's bottom, defence on. **Static**: a decoder as it would be without defence "
        f"(`{about['attackers']['static']}`). **Adaptive**: a fresh decoder of twice the width with a residual block, "
        "trained longer, on smashed data averaged over the last three rounds "
        f"(`{about['attackers']['adaptive']}`). Judged on {scores['num_images']:.0f} held-out images that nobody "
        "trained on. Means over seeds, in brackets the smallest and largest seed. **Void**: the classifier is at most "
        "two points above naming the commonest class; what it hides is then no merit.",
        "",
        f"![frontier]({frontier})",
        "",
    ]
    for cut in dict.fromkeys(group.cut for group in groups):
        lines += _table(cut, [group for group in groups if group.cut == cut], first["metric_name"])
        if cut in galleries:
            lines += [f"![truth over reconstruction, cut {cut}]({galleries[cut]})", ""]
    lines += ["## What the tables say", "", *verdicts(groups), ""]
    lines += [
        "## Every column of the judge",
        "",
        'Means over the seeds; "worst tenth" is of the tenth of the images that leaked most. In italics what no '
        "smashed data of these images would give: the mean image, and the adaptive attacker fed with somebody "
        "else's smashed data or with those of an untrained client.",
        "",
    ]
    for cut in dict.fromkeys(group.cut for group in groups):
        lines += _long_table(cut, [group for group in groups if group.cut == cut], first["metric_name"])
    return "\n".join(lines)


def _table(cut: str, groups: Sequence[Group], metric: str) -> list[str]:
    reference = groups[0]
    mean_ssim = reference.leak("ssim", "static", row="mean image")[0]
    mean_mse = reference.leak("mse", "static", row="mean image")[0]
    chance = float(reference.results[0]["attackers"]["static"]["scores"]["held_out"]["attack"]["chance"])
    majorities = [result["majority"] for group in groups for result in group.results]
    majority = "" if None in majorities else f"majority class {sum(majorities) / len(majorities):.3f}, "
    lines = [
        f"## Cut {cut}",
        "",
        f"Beside it: {majority}mean image MSE {mean_mse:.4f} and SSIM {mean_ssim:.3f}, re-identification by chance "
        f"{chance:.3f}.",
        "",
        f"| defence | {metric} | MSE static | MSE adaptive | SSIM static | SSIM adaptive | worst tenth SSIM, adaptive "
        "| re-identified static | re-identified adaptive | in training, SSIM adaptive | void |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in groups:
        cells = [
            _shown(group.metric, 3),
            _shown(group.leak("mse", "static"), 4),
            _shown(group.leak("mse", "adaptive"), 4),
            _shown(group.leak("ssim", "static"), 3),
            _shown(group.leak("ssim", "adaptive"), 3),
            _shown(group.leak("ssim_worst_tenth", "adaptive"), 3),
            _shown(group.leak("reidentified", "static"), 2),
            _shown(group.leak("reidentified", "adaptive"), 2),
            _shown(group.leak("ssim", "adaptive", kind="train"), 3),
            f"**{group.num_void} of {len(group.results)}**" if group.num_void else "",
        ]
        lines.append(f"| {group.defence} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def verdicts(groups: Sequence[Group]) -> list[str]:
    """A sentence a cut and defence, on the strongest setting that keeps the classifier alive."""
    said = []
    for cut in dict.fromkeys(group.cut for group in groups):
        here = [group for group in groups if group.cut == cut]
        plain = next((group for group in here if group.family == "none"), None)
        for family in dict.fromkeys(group.family for group in here if group.family != "none"):
            best = strongest_alive([group for group in here if group.family == family])
            if best.num_void:
                said.append(f"- Cut {cut}, {family}: **void at every strength tried**.")
                continue
            text = (
                f"- Cut {cut}, {family}: at best `{best.defence}`, SSIM {best.worst('ssim')[0]:.3f} and "
                f"re-identification {best.worst('reidentified')[0]:.2f} under the stronger attacker, "
                f"{best.results[0]['metric_name']} {best.metric[0]:.3f}"
            )
            if plain is not None:
                text += (
                    f" (undefended {plain.worst('ssim')[0]:.3f}, {plain.worst('reidentified')[0]:.2f}, "
                    f"{plain.metric[0]:.3f})"
                )
            static = best.leak("ssim", "static")[0]
            if best.worst("ssim")[0] - static > 0.05:
                text += f"; the static attacker alone would suggest SSIM {static:.3f}"
            said.append(text + ".")
    return said


def _shown(interval: Interval, digits: int) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in interval)
    return mean if low == high else f"{mean} ({low} to {high})"


def _long_table(cut: str, groups: Sequence[Group], metric: str) -> list[str]:
    """Lines of one cut's table, means over the seeds.

    The mean image, the attacker's answers to shuffled smashed data and to an untrained client stand below each
    defence, of the adaptive attacker; so each number has beside it what no smashed data would give.
    """
    headings = [
        "defence",
        metric,
        "majority",
        "images",
        "attacker",
        *(name.replace("_", " ") for name in MEASURES),
    ]
    lines = [f"### Cut {cut}", "", "| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for group in groups:
        majority = group.results[0]["majority"]
        told = [group.defence, f"{group.metric[0]:.3f}", "" if majority is None else f"{majority:.3f}"]
        for kind, shown in _KINDS.items():
            for attacker, row in _rows(group, kind):
                named = attacker if row == "attack" else f"*{row}*"
                scores = [_cell(group, measure, attacker, kind, row) for measure in MEASURES]
                lines.append("| " + " | ".join([*told, shown, named, *scores]) + " |")
                told = ["", "", ""]
    return [*lines, ""]


def _rows(group: Group, kind: str) -> Iterator[tuple[str, str]]:
    attackers = list(group.results[0]["attackers"])
    yield from ((attacker, "attack") for attacker in attackers)
    last = group.results[0]["attackers"][attackers[-1]]["scores"].get(kind, {})
    yield from ((attackers[-1], row) for row in _BESIDE if row in last)


def _cell(group: Group, measure: str, attacker: str, kind: str, row: str) -> str:
    return f"{group.leak(measure, attacker, kind=kind, row=row)[0]:.{_DIGITS.get(measure, 3)}f}"
