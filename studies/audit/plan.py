"""What an audit runs: every cut with every strength of every defence, seed by seed, the most telling first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from suture.runtime.errors import ConfigError
from suture.threats.registry import DEFENCES

NONE = "none"

# Five strengths from weak to strong, wide enough that the weakest does little and the strongest endangers the task.
STRENGTHS: dict[str, tuple[str, ...]] = {
    "dcor": ("alpha=0.1", "alpha=0.3", "alpha=1", "alpha=3", "alpha=10"),
    "proxy": tuple(f"task_weight={weight},steps=4" for weight in (0.9, 0.7, 0.5, 0.2, 0.05)),
    "noise": ("scale=0.25", "scale=0.5", "scale=1", "scale=2", "scale=4"),
    "quantise": ("bits=6", "bits=4", "bits=3", "bits=2", "bits=1"),
    "dropout": ("p=0.1", "p=0.3", "p=0.5", "p=0.75", "p=0.9"),
}
# With fewer than five strengths these are run; what a smaller plan holds a larger one holds too, where it can.
_CHOSEN = {1: (2,), 2: (1, 3), 3: (0, 2, 4), 4: (0, 1, 2, 4), 5: (0, 1, 2, 3, 4)}
_TELLING = (2, 4, 0, 3, 1)
MOST_STRENGTHS = 5


@dataclass(frozen=True)
class Point:
    """One training run of the audit and the attacks on it.

    Attributes:
        cut: as ``--cut`` takes it.
        family: the defence's name in the table ("none", "noise", or a SPEC that was given whole).
        defence: as ``--defence`` takes it.
        rank: its place among the family's strengths, weakest 0.
        seed: the run's ``--seed``.
    """

    cut: str
    family: str
    defence: str
    rank: int
    seed: int

    @property
    def name(self) -> str:
        """A file name of its own."""
        return re.sub(r"[^\w.=-]+", "_", f"cut{self.cut}_{self.defence}_seed{self.seed}")


def parse_cuts(text: str) -> tuple[str, ...]:
    """``1,3,layer2`` as cuts.

    Raises:
        ConfigError: none is named, or one twice.
    """
    return _distinct([part.strip() for part in text.split(",") if part.strip()], "cuts")


def parse_defences(text: str) -> tuple[str, ...]:
    """``none,dcor,noise:scale=3`` as families: a bare name is audited at several strengths, a SPEC as it stands.

    Raises:
        ConfigError: none is named, one twice, or one that does not exist.
    """
    # A comma before "key=value" belongs to the SPEC, one before a name parts two families.
    families = [part.strip() for part in re.split(r",(?!\s*[\w-]+=)", text) if part.strip()]
    for family in families:
        DEFENCES.parse_chain(family)
    return _distinct(families, "defences")


def _distinct(parts: list[str], what: str) -> tuple[str, ...]:
    if not parts:
        raise ConfigError(f"{what} names nothing; give at least one, parted by commas")
    for part in parts:
        if parts.count(part) > 1:
            raise ConfigError(f"{what}: {part} is named {parts.count(part)} times; name it once")
    return tuple(parts)


def points(
    cuts: Sequence[str], families: Sequence[str], seeds: Sequence[int], num_strengths: int
) -> list[Point]:
    """All points, in the order in which they are run: undefended first, then the middle strengths of all defences.

    So an audit that ends early has said something about every cut and every defence. The strongest and the weakest
    come next: they show the ends of the frontier.
    """
    undefended = [Point(cut, NONE, NONE, 0, seed) for cut in cuts for seed in seeds if NONE in families]
    chosen = sorted(_CHOSEN[num_strengths], key=_TELLING.index)
    rest = []
    for rank in chosen:
        for cut in cuts:
            for family in families:
                strengths = STRENGTHS.get(family)
                if family == NONE or (strengths is None and rank != chosen[0]):
                    continue
                defence = family if strengths is None else f"{family}:{strengths[rank]}"
                rest += [
                    Point(cut, family, defence, 0 if strengths is None else rank, seed) for seed in seeds
                ]
    return undefended + rest


def fitting_strengths(
    cuts: Sequence[str], families: Sequence[str], seeds: Sequence[int], seconds_a_point: float, budget: float
) -> int:
    """The most strengths a defence with which all points fit into ``budget`` seconds; 1 where none do."""
    for number in range(MOST_STRENGTHS, 1, -1):
        if len(points(cuts, families, seeds, number)) * seconds_a_point <= budget:
            return number
    return 1
