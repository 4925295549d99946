"""What an audit found: its runs grouped over seeds, and audit.csv, a line for each row of the judge."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from suture.launch.output.table import Table
from suture.studies.statistics import share_interval

Result = Mapping[str, Any]
Interval = tuple[float, float, float]  # mean, and smallest and largest over the seeds, or the ends of 95 %

VOID_MARGIN = 0.02  # rule 6: at or below the majority class plus two points a classifier is no classifier

CONVERGED_MARGIN = 0.01
CONTROL_SHARE = 0.95  # of the mean image's error: what the mean of a tenth fewer images may differ by
LEAST_KEYS = 5

MEASURES = (
    "mse",
    "psnr",
    "ssim",
    "reidentified",
    "mse_median",
    "ssim_median",
    "mse_worst_tenth",
    "ssim_worst_tenth",
)
SHARES = ("reidentified",)
KINDS = ("held_out", "train")
_ROWS = ("attack", "mean image", "shuffled", "shuffled pairs", "untrained client")


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
        """The task's metric, in [0, 1], with its interval over seeds."""
        found = [float(result["metric"]) for result in self.results]
        mean, low, high = share_interval(found)
        return (mean, mean, mean) if math.isnan(low) else (mean, low, high)

    def leak(self, measure: str, attacker: str, *, kind: str = "held_out", row: str = "attack") -> Interval:
        """A score of one attacker, or of what stands beside it; a share with its interval, see `share_interval`."""
        if measure in SHARES:
            return self._share(lambda result: score_of(result, measure, attacker, kind=kind, row=row), kind)
        return self.over(lambda result: score_of(result, measure, attacker, kind=kind, row=row))

    def _share(self, value: Callable[[Result], float], kind: str = "held_out") -> Interval:
        every = [
            found["scores"][kind]["attack"]["num_images"]
            for result in self.results
            for found in result["attackers"].values()
        ]
        return share_interval([value(result) for result in self.results], int(min(every)))

    def worst(self, measure: str) -> Interval:
        """The stronger attacker's score, seed by seed: a defence is as good as its worst case."""

        def stronger(result: Result) -> float:
            return max(score_of(result, measure, attacker) for attacker in result["attackers"])

        return self._share(stronger) if measure in SHARES else self.over(stronger)

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


def is_void(metric: float, majority: float | None) -> bool:
    """Whether the task was lost, so that the point says nothing (rule 6); a segmentation has no majority class."""
    return majority is not None and metric <= majority + VOID_MARGIN


def has_converged(by_round: Sequence[float]) -> bool:
    """Whether a victim had stopped gaining: over the last third of the rounds its test metric, in 0..1, is on average
    at most a point above that over the third before (rule 12); fewer than three rounds show nothing.
    """
    third = len(by_round) // 3
    if not third:
        return False
    late, before = by_round[-third:], by_round[-2 * third : -third]
    return sum(late) / third <= sum(before) / third + CONVERGED_MARGIN


def objections(group: Group) -> tuple[list[str], list[str]]:
    """What keeps a verdict from being said of a group, and what makes it descriptive only (rules 11, 13 and 14).

    What an older result does not say is held against it.
    """
    against, results = [], group.results
    learning = {
        name
        for result in results
        for name, found in result["attackers"].items()
        if found.get("learning", {}).get("ended") != "plateau"
    }
    if learning:
        against.append(
            f"still learning when its budget ended: the {' and the '.join(sorted(learning))} attacker"
        )
    if not all(_control_fell(result) for result in results):
        against.append("a decoder trained on shuffled pairs does not fall to the mean image")
    keys = [result.get("key") for result in results]
    only = []
    if len(results) > 1 and (None in keys or len(set(keys)) < len(keys)):
        only.append("its seeds share one key")
    if len(results) < LEAST_KEYS:
        only.append(f"{len(results)} of at least {LEAST_KEYS} keys")
    return against, only


def _control_fell(result: Result) -> bool:
    """Whether the decoder of shuffled pairs comes to the mean image or worse, and re-identifies by chance alone."""
    rows = result["attackers"]["adaptive"]["scores"]["held_out"]
    control = rows.get("shuffled pairs")
    if control is None:
        return False
    at_most = share_interval([control["chance"]], int(control["num_images"]))[2]
    return bool(
        control["mse"] >= CONTROL_SHARE * rows["mean image"]["mse"] and control["reidentified"] <= at_most
    )


def strongest_alive(groups: Sequence[Group]) -> Group:
    """Of one defence's strengths the one that hides most with a living classifier; if none lives, the strongest."""
    alive = [group for group in groups if group.num_void == 0]
    return min(alive, key=lambda group: group.worst("ssim")[0]) if alive else groups[-1]


def to_csv(results: Sequence[Result]) -> str:
    """A line for every run, attacker, set of images and row of the judge."""
    rows = []
    for result in results:
        told = {name: result[name] for name in ("cut", "defence", "seed")} | {
            "metric": result["metric_name"],
            "value": f"{result['metric']:.4f}",
            "majority": "" if result["majority"] is None else f"{result['majority']:.4f}",
            "void": int(result["void"]),
        }
        for (attacker, found), kind, row in product(result["attackers"].items(), KINDS, _ROWS):
            scores = found["scores"].get(kind, {}).get(row)
            if scores is not None:
                numbers = {measure: f"{scores[measure]:.5f}" for measure in MEASURES}
                rows.append(told | {"attacker": attacker, "images": kind, "row": row} | numbers)
    return Table(rows).to_csv()
