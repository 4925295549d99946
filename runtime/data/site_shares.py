"""What a site takes of its own images: all of them by default, divided in shares patient by patient, or counts.

The division in shares follows iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, ECML PKDD), with patients
in place of examples and images by class in place of labels.
"""

import math
from dataclasses import dataclass

import numpy as np

from suture.runtime.data.deal import Deal, Pool, Shortage, deal
from suture.runtime.data.partition import PartitionConfig, Share, partition, pools
from suture.runtime.data.quotas import MIN_CLIENT_IMAGES, Counts, even_quota
from suture.runtime.data.source import Source
from suture.runtime.errors import ConfigError, DataError

TEST_SHARE = 0.2
_TRAIN, _VALIDATION, _TEST = "train", "validation", "test"


@dataclass(frozen=True, kw_only=True)
class SharesConfig:
    """How a site divides all of its images.

    Attributes:
        validation: the part of the images that is held out of the training patients, from 0 to below 1.
        test: the part that is tested on, above 0 and below 1; None for all official test images where the source has
            some, and else for `TEST_SHARE`.

    Raises:
        ConfigError: a share is out of range, or nothing is left to train on.
    """

    validation: float = 0.1
    test: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.validation < 1.0:
            raise ConfigError(
                f"--validation is a share of the images, from 0 to below 1, got {self.validation:g}; for a number of "
                "images use --validation-images"
            )
        if self.test is not None and not 0.0 < self.test < 1.0:
            raise ConfigError(
                f"--test is a share of the images, above 0 and below 1, got {self.test:g}; for a number of images use "
                "--test-images"
            )
        if self.validation + (self.test or 0.0) >= 1.0:
            raise ConfigError(
                f"--validation {self.validation:g} and --test {self.test or 0.0:g} leave nothing to train on; together "
                "they must be below 1"
            )


def site_share(source: Source, config: SharesConfig, seed: int) -> Share:
    """All images of a site, divided in shares: whole patients, each class as evenly as patients allow.

    Args:
        source: the site's own; its labels are what is divided evenly.
        config: the shares.
        seed: not negative; the same seed gives the same division.

    Raises:
        ConfigError: a share of test images was asked for where the source has an official test set.
        DataError: there are fewer patients than sets, or a single image to train on; names the remedy.
    """
    training, testing = pools(source, None)
    if testing is not None and config.test is not None:
        raise ConfigError(
            f"--test {config.test:g}: {source.name} has an official test set of {sum(testing.supply())} images here, "
            "which are used for testing only, and all of them by default; leave --test out"
        )
    test = 0.0 if testing is not None else (TEST_SHARE if config.test is None else config.test)
    if config.validation + test >= 1.0:
        raise ConfigError(
            f"--validation {config.validation:g} leaves nothing to train on beside the test images' share of {test:g}; "
            f"use less than {1.0 - test:g}, or a smaller --test"
        )
    # The training set comes last: where two sets lack as much, it is served first.
    wanted = {_VALIDATION: config.validation, _TEST: test, _TRAIN: 1.0 - config.validation - test}
    wanted = {name: part for name, part in wanted.items() if part > 0.0}
    if len(training.patients) < len(wanted):
        raise DataError(_too_few_patients(source, training, wanted, official=testing is not None))
    rng = np.random.default_rng(seed)
    dealt = _stratified(training, wanted, rng)
    if testing is not None:
        dealt[_TEST] = [*testing.patients]
    images = training.patients | (testing.patients if testing is not None else {})
    chosen = {
        name: tuple(
            int(i) for i in rng.permutation([i for one in dealt.get(name, ()) for i, _ in images[one]])
        )
        for name in (_TRAIN, _VALIDATION, _TEST)
    }
    if len(chosen[_TRAIN]) < MIN_CLIENT_IMAGES:
        raise DataError(
            f"{source.name}: {len(chosen[_TRAIN])} image is left to train on, at least {MIN_CLIENT_IMAGES} are needed; "
            "add patients, or join with --evaluate-only"
        )
    return Share(chosen[_TRAIN], chosen[_VALIDATION], chosen[_TEST])


def counted_share(source: Source, config: PartitionConfig, seed: int) -> Share:
    """As many images of a site as it asks for, balanced; see `partition`.

    Raises:
        ConfigError, DataError: as `partition`, with a remedy that a site can apply.
    """
    try:
        (share,) = partition(source, config, 1, seed)
    except DataError as error:
        raise DataError(
            f"{error}; without --train-images, --validation-images and --test-images all images are used, unbalanced"
        ) from None
    return share


def largest_balanced(source: Source, seed: int) -> PartitionConfig | None:
    """The largest balanced sets in the proportions of the default shares that the source has images for.

    Returns:
        The numbers of images, or None where not even the smallest sets work.
    """
    training, _ = pools(source, None)
    shares = SharesConfig()
    train = 1.0 - shares.validation - TEST_SHARE

    def sets(total: int) -> PartitionConfig:
        return PartitionConfig(
            train_images=max(2, round(train * total)),
            validation_images=max(1, round(shares.validation * total)),
            test_images=max(1, round(TEST_SHARE * total)),
        )

    def works(total: int) -> bool:
        try:
            partition(source, sets(total), 1, seed)
        except DataError:
            return False
        return True

    # An official test set lies beside what is trained on; then the sum may be larger than the supply.
    least, most = (
        4,
        max(4, math.ceil(int(training.supply().min()) * training.num_classes / (train + shares.validation))),
    )
    if works(most):
        return sets(most)
    if not works(least):
        return None
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if works(middle) else (least, middle)
    return sets(least)


def evaluation_share(source: Source, *, validation_images: int, test_images: int | None, seed: int) -> Share:
    """What a site that only evaluates takes of its source: no training images.

    Args:
        source: its own.
        validation_images: balanced, of patients who are not in the test set; 0 for none.
        test_images: balanced; None for all images of the patients that are left.
        seed: not negative.

    Raises:
        DataError: there are too few images or patients; names class, needed and present.
    """
    rng = np.random.default_rng(seed)
    training, testing = pools(source, None)
    held = (
        {(0, "validation"): even_quota(validation_images, training.num_classes)} if validation_images else {}
    )
    test = {} if test_images is None else {(0, "test"): even_quota(test_images, training.num_classes)}
    dealt: Deal = {}
    try:
        for pool, wanted in (
            ((training, held | test),) if testing is None else ((training, held), (testing, test))
        ):
            if wanted:
                dealt |= deal(pool, wanted, rng)
    except Shortage as shortage:
        raise DataError(
            f"{source.name}: {shortage}; use fewer --validation-images or --test-images, or leave both out: then all "
            "images are test images"
        ) from None
    if test_images is None:
        validated = {source.examples[index].patient for index in dealt.get((0, "validation"), ())}
        rest = [index for index, one in enumerate(source.examples) if one.patient not in validated]
        dealt[0, "test"] = tuple(rest[place] for place in rng.permutation(len(rest)))
        if not rest:
            raise DataError(
                f"{source.name}: no patient is left for the test set beside {validation_images} validation images; use "
                "fewer --validation-images"
            )
    return Share((), dealt.get((0, "validation"), ()), dealt[0, "test"])


def _too_few_patients(source: Source, pool: Pool, wanted: dict[str, float], *, official: bool) -> str:
    names = {_TRAIN: "training", _VALIDATION: "validation", _TEST: "test"}
    sets = " and ".join(names[name] for name in (_TRAIN, _VALIDATION, _TEST) if name in wanted)
    where = " beside those of the official test set" if official else ""
    remedies = ["add patients"]
    if _VALIDATION in wanted and len(pool.patients) == len(wanted) - 1:
        remedies.append("use --validation 0")
    remedies.append("join with --evaluate-only, for which all images are test images")
    count = len(pool.patients)
    return (
        f"{source.name} has {count} patient{'' if count == 1 else 's'}{where}, but {sets} need one each, and a "
        f"patient is in one set only; {', or '.join(remedies)}"
    )


def _stratified(pool: Pool, wanted: dict[str, float], rng: np.random.Generator) -> dict[str, list[str]]:
    """Patients of each set: the rarest class is dealt first, each patient to the set that lacks most of it."""
    names = [*pool.patients]
    order = [names[place] for place in rng.permutation(len(names))]
    counts = {
        name: np.bincount([label for _, label in pool.patients[name]], minlength=pool.num_classes)
        for name in order
    }
    sets = [*wanted]
    lacks = np.outer([wanted[name] for name in sets], pool.supply().astype(np.float64))
    left, dealt = dict.fromkeys(order), {name: [] for name in sets}  # type: dict[str, None], dict[str, list[str]]
    supply = pool.supply()
    while left:
        label = int(np.argmin(np.where(supply > 0, supply, np.iinfo(np.int64).max)))
        patients = sorted(
            (name for name in left if counts[name][label]), key=lambda name: -counts[name][label]
        )
        for name in patients:
            row = int(np.lexsort((lacks.sum(axis=1), lacks[:, label]))[-1])
            lacks[row] -= counts[name]
            supply = supply - counts[name]
            dealt[sets[row]].append(name)
            del left[name]
    _give_train_every_class(dealt, counts)
    _leave_no_set_empty(dealt, counts)
    return dealt


def _give_train_every_class(dealt: dict[str, list[str]], counts: dict[str, Counts]) -> None:
    """Moves patients until each class that there is can be learnt, where a set can spare one."""
    for label in range(len(next(iter(counts.values())))):
        if any(counts[name][label] for name in dealt[_TRAIN]):
            continue
        spare = [
            (int(counts[name].sum()), set_name, name)
            for set_name, patients in dealt.items()
            if set_name != _TRAIN and len(patients) > 1
            for name in patients
            if counts[name][label]
        ]
        if spare:
            _, set_name, name = min(spare)
            dealt[set_name].remove(name)
            dealt[_TRAIN].append(name)


def _leave_no_set_empty(dealt: dict[str, list[str]], counts: dict[str, Counts]) -> None:
    """Gives each set at least one patient, of the training set's: one whose classes are learnt from others, too."""
    for empty in [name for name, patients in dealt.items() if not patients]:
        source = _TRAIN if len(dealt[_TRAIN]) > 1 else max(dealt, key=lambda name: len(dealt[name]))

        total = np.sum([counts[name] for name in dealt[source]], axis=0)

        def cost(name: str, total: Counts = total) -> tuple[int, int]:
            gone = (total == counts[name]) & (counts[name] > 0)
            return int(gone.sum()), int(counts[name].sum())

        moved = min(dealt[source], key=cost)
        dealt[source].remove(moved)
        dealt[empty].append(moved)
