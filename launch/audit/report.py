"""An audit's audit.csv and audit.md: a line a run, and a table a cut that a hospital can read."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]
Interval = tuple[float, float, float]  # mean, smallest and largest over the seeds

_MEASURES = (
    "mse",
    "psnr",
    "ssim",
    "reidentified",
    "mse_median",
    "ssim_median",
    "mse_worst_tenth",
    "ssim_worst_tenth",
)
_KINDS = ("held_out", "train")
_ROWS = ("attack", "mean image", "shuffled", "untrained client")


@dataclass(frozen=True)
class Group:
    """All seeds of one cut and defence.

    Attributes:
        cut: as given.
        family: the defence's name.
        defence: its SPEC.
        rank: strength, weakest 0.
        results: seed by seed.
    """

    cut: str
    family: str
    defence: str
    rank: int
    results: tuple[Result, ...]

    def over(self, value: Callable[[Result], float]) -> Interval:
        """Mean, smallest and largest over the seeds."""
        values = [value(result) for result in self.results]
        return sum(values) / len(values), min(values), max(values)

    @property
    def metric(self) -> Interval:
        """The task's metric."""
        return self.over(lambda result: float(result["metric"]))

    def leak(self, measure: str, attacker: str, *, kind: str = "held_out", row: str = "attack") -> Interval:
        """A score of one attacker, or of what stands beside it."""
        return self.over(lambda result: score_of(result, measure, attacker, kind=kind, row=row))

    def worst(self, measure: str) -> Interval:
        """The stronger attacker's score, seed by seed: a defence is as good as its worst case."""
        return self.over(lambda r: max(score_of(r, measure, attacker) for attacker in r["attackers"]))

    @property
    def num_void(self) -> int:
        """Runs whose classifier was no better than naming the commonest class."""
        return sum(bool(result["void"]) for result in self.results)

    @property
    def is_void(self) -> bool:
        """Whether most runs were void."""
        return 2 * self.num_void > len(self.results)


def score_of(
    result: Result, measure: str, attacker: str, *, kind: str = "held_out", row: str = "attack"
) -> float:
    """One number of one run."""
    return float(result["attackers"][attacker]["scores"][kind][row][measure])


def grouped(results: Iterable[Result]) -> list[Group]:
    """Runs by cut, defence and strength, in that order."""
    by_key: dict[tuple[str, str, int, str], list[Result]] = defaultdict(list)
    for result in results:
        by_key[result["cut"], result["family"], result["rank"], result["defence"]].append(result)
    cuts = list(dict.fromkeys(key[0] for key in by_key))
    families = list(dict.fromkeys(key[1] for key in by_key))
    order = sorted(by_key, key=lambda key: (cuts.index(key[0]), families.index(key[1]), key[2]))
    return [
        Group(cut, family, defence, rank, tuple(by_key[cut, family, rank, defence]))
        for cut, family, rank, defence in order
    ]


def to_csv(results: Sequence[Result]) -> str:
    """A line for every run, attacker, set of images and row of the judge."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "cut",
            "defence",
            "seed",
            "metric",
            "value",
            "majority",
            "void",
            "attacker",
            "images",
            "row",
            *_MEASURES,
        ]
    )
    for result in results:
        told = [
            result["cut"],
            result["defence"],
            result["seed"],
            result["metric_name"],
            f"{result['metric']:.4f}",
        ]
        told += ["" if result["majority"] is None else f"{result['majority']:.4f}", int(result["void"])]
        for attacker, found in result["attackers"].items():
            for kind in _KINDS:
                for row in _ROWS:
                    scores = found["scores"].get(kind, {}).get(row)
                    if scores is not None:
                        numbers = [f"{scores[measure]:.5f}" for measure in _MEASURES]
                        writer.writerow([*told, attacker, kind, row, *numbers])
    return text.getvalue()


def to_markdown(results: Sequence[Result], about: Mapping[str, Any], picture: str) -> str:
    """The page."""
    groups = grouped(results)
    first = results[0]
    scores = first["attackers"]["static"]["scores"]["held_out"]["attack"]
    lines = [
        "# Audit: what would I leak if I joined?",
        "",
        f"`{about['command']}`",
        "",
        f"{about['model']} on {about['data']}, {about['image_size']} px, {about['clients']} clients of "
        f"{about['train_images']} images, {about['epochs']} rounds. {about['done']} of {about['planned']} runs are done"
        + (f"; {about['note']}." if about.get("note") else "."),
        "",
        f"Attackers (ADRA, passive): both own {about['aux_images']} auxiliary images and pass them through a "
        "client's bottom, defence on. **Static**: a decoder as it would be without defence. **Adaptive**: a "
        "fresh decoder of twice the width with a residual block, trained longer, on smashed data averaged over the "
        f"last three rounds. Judged on {scores['num_images']:.0f} held-out images that nobody trained on. Means over "
        "seeds, in brackets the smallest and largest seed. **Void**: the classifier is at most two points above "
        "naming the commonest class; what it hides is then no merit.",
        "",
        f"![frontier]({picture})",
        "",
    ]
    for cut in dict.fromkeys(group.cut for group in groups):
        lines += _table(cut, [group for group in groups if group.cut == cut], first["metric_name"])
    lines += ["## What the table says", "", *verdicts(groups), ""]
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
            alive = [group for group in here if group.family == family and group.num_void == 0]
            if not alive:
                said.append(f"- Cut {cut}, {family}: **void at every strength tried**.")
                continue
            best = min(alive, key=lambda group: group.worst("ssim")[0])
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
