"""Deals patients to sets until every set has its number of images of every class."""

from dataclasses import dataclass

import numpy as np

from suture.runtime.data.quotas import Counts

# A set of one client: (client, "train" | "validation" | "test" | "held_out").
Bin = tuple[int, str]
Deal = dict[Bin, tuple[int, ...]]

_ATTEMPTS = 8


class Shortage(Exception):
    """The images do not suffice; caught by ``partition``, which adds what would work."""

    def __init__(self, pool: str, message: str) -> None:
        """Keep which pool is short beside the message."""
        super().__init__(message)
        self.pool = pool


@dataclass(frozen=True, slots=True)
class Pool:
    """Images to deal from.

    Attributes:
        description: Ends a sentence, such as "to train on at site 'MCU'".
        class_names: For messages.
        num_classes: 1 for segmentation.
        patients: Patient to (index, class) of that patient's images.
    """

    description: str
    class_names: tuple[str, ...]
    num_classes: int
    patients: dict[str, list[tuple[int, int]]]

    def supply(self) -> Counts:
        """(classes,) how many images there are."""
        labels = [label for images in self.patients.values() for _, label in images]
        return np.bincount(np.array(labels, dtype=np.int64), minlength=self.num_classes).astype(np.int64)


def deal(pool: Pool, wanted: dict[Bin, Counts], rng: np.random.Generator) -> Deal:
    """Give every set its quota; a patient's images go to one set, those beyond its quota to none.

    Patients come in random order, each to the set that can use most of its images. Where that misses a
    quota, patients with many images come first in further attempts, so that small ones fill the gaps.

    Args:
        pool: What is dealt.
        wanted: (classes,) images of each class for each set.
        rng: The only source of chance.

    Raises:
        Shortage: A class has too few images, or no attempt fitted.
    """
    needed = sum(wanted.values(), np.zeros(pool.num_classes, dtype=np.int64))
    supply = pool.supply()
    for name, want, have in zip(pool.class_names, needed, supply, strict=True):
        if want > have:
            what = "images" if pool.num_classes == 1 else f"images of class {name!r}"
            raise Shortage(
                pool.description, f"needs {want} {what}, but {have} are present {pool.description}"
            )
    patients = list(pool.patients.values())
    for attempt in range(_ATTEMPTS):
        order = [patients[i] for i in rng.permutation(len(patients))]
        if attempt:
            order.sort(key=len, reverse=True)
        dealt = _attempt(order, wanted, rng)
        if dealt is not None:
            return dealt
    raise Shortage(
        pool.description,
        f"{int(needed.sum())} of {int(supply.sum())} images {pool.description} are needed, which would do, "
        "but not without dividing a patient between two sets",
    )


def _attempt(
    order: list[list[tuple[int, int]]], wanted: dict[Bin, Counts], rng: np.random.Generator
) -> Deal | None:
    bins = list(wanted)
    need = np.stack([wanted[one] for one in bins])
    taken: dict[Bin, list[int]] = {one: [] for one in bins}
    for images in order:
        if not need.any():
            break
        counts = np.bincount([label for _, label in images], minlength=need.shape[1])
        usable = np.minimum(need, counts).sum(axis=1)
        # Among sets that can use as many, the emptiest: it stays flexible for the patients to come.
        row = int(np.lexsort((need.sum(axis=1), usable))[-1])
        for position in rng.permutation(len(images)):
            index, label = images[position]
            if need[row, label] > 0:
                need[row, label] -= 1
                taken[bins[row]].append(index)
    if need.any():
        return None
    return {
        one: tuple(int(i) for i in rng.permutation(np.array(indices, dtype=np.int64)))
        for one, indices in taken.items()
    }
