"""The partitions that use every image: the official split, and cross-validation on what is trained on.

Training images are shared out among the clients, patient by patient, each class as evenly as patients allow. The test
set is not shared out: every client scores all of it, so that a score is of the whole set.
"""

from __future__ import annotations

import numpy as np

from suture.runtime.data.deal import Pool, Shortage
from suture.runtime.data.quotas import MIN_CLIENT_IMAGES
from suture.runtime.errors import ConfigError

ALL, FOLD = "all", "fold"
FORMS = (ALL, f"{FOLD}:K/N")


def is_whole(scheme: str) -> bool:
    """Whether a partition uses all images, so that no numbers are asked for."""
    return scheme.partition(":")[0] in (ALL, FOLD)


def parse_fold(scheme: str) -> tuple[int, int] | None:
    """K and N of ``fold:K/N``; None of ``all``.

    Raises:
        ConfigError: it is neither.
    """
    kind, colon, text = scheme.partition(":")
    if kind == ALL and not colon:
        return None
    first, _, last = text.partition("/")
    if kind != FOLD or not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) >= 2):
        raise ConfigError(
            f"partition must be {' or '.join(FORMS)} with K in 1..N, such as fold:1/5, got {scheme!r}"
        )
    return int(first), int(last)


def whole_shares(
    training: Pool, testing: Pool | None, scheme: str, num_clients: int, rng: np.random.Generator
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Training and test images, by client.

    Args:
        training: what is trained on; its folds are the same for any number of clients.
        testing: the official test set, which ``fold:K/N`` does not touch.
        scheme: of ``FORMS``.
        num_clients: how many share it.
        rng: the only source of chance.

    Raises:
        ConfigError: ``all`` where the source has no official test set.
        Shortage: a client has too few images.
    """
    fold = parse_fold(scheme)
    if fold is None:
        if testing is None:
            raise ConfigError(
                "partition all tests on the official test set, and this source has none; use --partition fold:1/5"
            )
        trained, tested = [*training.patients], [*testing.patients]
        images = training.patients | testing.patients
    else:
        number, count = fold
        folds = _dealt(training, [*training.patients], count, rng)
        tested = folds.pop(number - 1)
        trained, images = [patient for one in folds for patient in one], training.patients
    shares = [_images(images, patients) for patients in _dealt(training, trained, num_clients, rng)]
    test = _images(images, tested)
    if not test or min(map(len, shares)) < MIN_CLIENT_IMAGES:
        raise Shortage(training.description, f"{len(training.patients)} patients are too few for {scheme}")
    return [(tuple(int(i) for i in rng.permutation(share)), test) for share in shares]


def _dealt(pool: Pool, patients: list[str], count: int, rng: np.random.Generator) -> list[list[str]]:
    """Patients in ``count`` groups, those of each class in turn."""
    shuffled = [patients[place] for place in rng.permutation(len(patients))]
    ordered = sorted(shuffled, key=lambda patient: max(label for _, label in pool.patients[patient]))
    return [ordered[first::count] for first in range(count)]


def _images(images: dict[str, list[tuple[int, int]]], patients: list[str]) -> tuple[int, ...]:
    return tuple(index for patient in patients for index, _ in images[patient])
