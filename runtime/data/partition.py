"""Who gets which image: the seeded division of a source among clients, patient by patient.

Every rank computes the same division from the same public seed. No patient is in two sets, within a client
or across clients; official test images are used for testing only; training, validation and test sets reach
their sizes exactly or an error says what is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from suture.runtime.data.deal import Deal, Pool, Shortage, deal
from suture.runtime.data.quotas import even_quota, train_quotas
from suture.runtime.data.source import Source, Task
from suture.runtime.data.whole import FORMS as WHOLE
from suture.runtime.data.whole import is_whole, parse_fold, whole_shares
from suture.runtime.errors import ConfigError, DataError

SCHEMES = ("iid", "dirichlet:ALPHA", "by-site", "quantity:ALPHA", *WHOLE)


@dataclass(frozen=True, slots=True)
class Share:
    """One client's images, as indices into ``source.examples``; the order is random but fixed by the seed."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    held_out: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How a source is divided; all counts are per client.

    Attributes:
        scheme: "iid" and "by-site" give every client ``train_images`` with balanced classes (by-site from
            one hospital each); "dirichlet:ALPHA" the same number with class proportions drawn from a
            Dirichlet distribution; "quantity:ALPHA" shares ``train_images`` times clients unevenly. "all" and
            "fold:K/N" use every image and take no counts, which are 0; see `whole`.
        train_images: Training images of a client, at least 2.
        validation_images: Images held out of the training patients, balanced; 0 for none.
        test_images: Test images, balanced, at least 1.
        held_out_images: Images on which attacks are judged, of the training patients' kind but never trained,
            validated or tested on, balanced; 0 for none.
    """

    scheme: str = "iid"
    train_images: int = 100
    validation_images: int = 16
    test_images: int = 32
    held_out_images: int = 0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: Unknown scheme, an alpha that is not a positive number, a count out of range.
        """
        self.kind_and_alpha()
        if is_whole(self.scheme):
            self._check_no_counts()
            return
        for name, bound in (
            ("train_images", 2),
            ("validation_images", 0),
            ("test_images", 1),
            ("held_out_images", 0),
        ):
            if getattr(self, name) < bound:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{option} must be at least {bound}, got {getattr(self, name)}")

    def _check_no_counts(self) -> None:
        parse_fold(self.scheme)
        for name in ("train_images", "validation_images", "test_images", "held_out_images"):
            if getattr(self, name):
                option = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"partition {self.scheme} uses every image, got {option} {getattr(self, name)}; leave {option} out"
                )

    def kind_and_alpha(self) -> tuple[str, float]:
        """Split the scheme into its name and its ALPHA (nan where it has none)."""
        kind, colon, text = self.scheme.partition(":")
        if (kind in ("iid", "by-site") and not colon) or is_whole(kind):
            return kind, math.nan
        if kind not in ("dirichlet", "quantity"):
            raise ConfigError(f"unknown partition {self.scheme!r}; known: {', '.join(SCHEMES)}")
        try:
            alpha = float(text)
        except ValueError:
            alpha = math.nan
        if not 0.0 < alpha < math.inf:
            raise ConfigError(
                f"partition {kind} needs a positive number, such as {kind}:0.5 (small = uneven), "
                f"got {self.scheme!r}"
            )
        return kind, alpha


def partition(source: Source, config: PartitionConfig, num_clients: int, seed: int) -> tuple[Share, ...]:
    """Divide a source among clients.

    Args:
        source: What is divided; for by-site a line about sites left out is added to its ``notes``.
        config: How.
        num_clients: At least 1.
        seed: The run's public seed, not negative; the same seed gives the same shares on every rank.

    Returns:
        One share a client, in the order of the clients; with by-site, in the alphabetical order of sites.

    Raises:
        ConfigError: The scheme does not fit the source, such as by-site without sites.
        DataError: Too few images or patients; names class, needed, present and what would work.
    """
    if num_clients < 1:
        raise ConfigError(f"the number of clients must be at least 1, got {num_clients}")
    if seed < 0:
        raise ConfigError(f"seed must not be negative, got {seed}")
    num_patients = len({example.patient for example in source.examples})
    if num_clients > num_patients:
        raise DataError(
            f"{num_clients} clients but only {num_patients} patients in {source.name}; a patient belongs to "
            "one client, so use fewer clients or more data"
        )
    kind, alpha = config.kind_and_alpha()
    if kind == "dirichlet" and not source.task.has_one_class:
        what = "masks have none" if source.task is Task.SEGMENTATION else "an image may have several findings"
        raise ConfigError(
            f"partition dirichlet divides by class, and {what}; use quantity:ALPHA, iid or by-site"
        )
    sites: tuple[str, ...] = ()
    if kind == "by-site":
        sites = _choose_sites(source, num_clients)
    try:
        return _divide(source, config, num_clients, seed, sites, kind, alpha)
    except Shortage as shortage:
        remedy = _remedy(source, config, num_clients, seed, sites, shortage)
        raise DataError(f"{source.name}: {shortage}; {remedy}") from None


def pools(source: Source, site: str | None) -> tuple[Pool, Pool | None]:
    """The images to train on and, where the source has official test images, those to test on.

    Args:
        source: whose.
        site: only that one's images; None for all.
    """
    num_classes = len(source.classes) if source.task.has_one_class else 1
    names = source.classes if source.task.has_one_class else ("images",)
    # A patient with images at two sites, or on both sides of an official split, is used on one side only.
    home: dict[str, str] = {}
    for example in source.examples:
        home.setdefault(example.patient, example.site)
    tested = {example.patient for example in source.examples if example.official_test}
    training: dict[str, list[tuple[int, int]]] = {}
    testing: dict[str, list[tuple[int, int]]] = {}
    for index, example in enumerate(source.examples):
        if site is not None and not example.site == home[example.patient] == site:
            continue
        if example.patient in tested and not example.official_test:
            continue
        pool = testing if example.official_test else training
        pool.setdefault(example.patient, []).append((index, example.label or 0))
    where = "" if site is None else f" at site {site!r}"
    return (
        Pool(f"to train on{where}" if tested else f"in all{where}", names, num_classes, training),
        Pool(f"to test on{where}", names, num_classes, testing) if tested else None,
    )


def _divide(
    source: Source,
    config: PartitionConfig,
    num_clients: int,
    seed: int,
    sites: tuple[str, ...],
    kind: str,
    alpha: float,
) -> tuple[Share, ...]:
    """Compute the shares or raise Shortage."""
    rng = np.random.default_rng(seed)
    if is_whole(kind):
        whole = whole_shares(*pools(source, None), config.scheme, num_clients, rng)
        return tuple(Share(train, (), test) for train, test in whole)
    dealt: Deal = {}
    for where, clients in _groups(num_clients, sites):
        training, testing = pools(source, where)
        num_classes = training.num_classes
        test = {(c, "test"): even_quota(config.test_images, num_classes) for c in clients}
        held = {(c, "validation"): even_quota(config.validation_images, num_classes) for c in clients}
        if config.held_out_images:  # a set of zero images would still change how the others are dealt
            held |= {(c, "held_out"): even_quota(config.held_out_images, num_classes) for c in clients}
        reserved = dict(held) if testing is not None else test | held
        supply = training.supply() - sum(reserved.values(), np.zeros(num_classes, dtype=np.int64))
        train = train_quotas(kind, alpha, config.train_images, len(clients), supply, rng)
        wanted = reserved | {(c, "train"): quota for c, quota in zip(clients, train, strict=True)}
        dealt |= deal(training, wanted, rng)
        if testing is not None:
            dealt |= deal(testing, test, rng)
    return tuple(
        Share(dealt[c, "train"], dealt[c, "validation"], dealt[c, "test"], dealt.get((c, "held_out"), ()))
        for c in range(num_clients)
    )


def _groups(num_clients: int, sites: tuple[str, ...]) -> list[tuple[str | None, list[int]]]:
    """Which clients draw from the same images: all of them, or each from its own site."""
    if sites:
        return [(site, [client]) for client, site in enumerate(sites)]
    return [(None, list(range(num_clients)))]


def _choose_sites(source: Source, num_clients: int) -> tuple[str, ...]:
    """The largest sites, one a client, in alphabetical order; the rest is noted."""
    counts: dict[str, int] = {}
    for example in source.examples:
        if example.site:
            counts[example.site] = counts.get(example.site, 0) + 1
    if not counts:
        raise ConfigError(
            f"partition by-site needs sites and {source.name} has none here; sites come from a CSV's column "
            "site, the top folders of image-folder or the file prefix of kaggle-cxr; else use iid"
        )
    if len(counts) < num_clients:
        raise ConfigError(
            f"partition by-site gives each client one site: {num_clients} clients but {len(counts)} sites "
            f"({', '.join(sorted(counts))}); use {len(counts)} clients or another partition"
        )
    largest = sorted(counts, key=lambda site: (-counts[site], site))
    left_out = sorted(largest[num_clients:])
    if left_out:
        note = f"by-site: {num_clients} clients, so these sites are left out: {', '.join(left_out)}"
        if note not in source.notes:
            source.notes.append(note)
    return tuple(sorted(largest[:num_clients]))


def _remedy(
    source: Source,
    config: PartitionConfig,
    num_clients: int,
    seed: int,
    sites: tuple[str, ...],
    shortage: Shortage,
) -> str:
    """The largest --train-images (or --test-images, if those are short) that works, found by bisection."""
    if is_whole(config.scheme):
        return "use fewer clients or folds, or more data"
    of_test = shortage.pool.startswith("to test on")
    field, option = ("test_images", "--test-images") if of_test else ("train_images", "--train-images")
    kind, alpha = config.kind_and_alpha()
    least, works, fails = (1 if of_test else 2), 0, getattr(config, field)
    while least < fails and fails - works > 1:
        trial = max(least, (works + fails) // 2)
        smaller = replace(config, test_images=trial) if of_test else replace(config, train_images=trial)
        try:
            _divide(source, smaller, num_clients, seed, sites, kind, alpha)
        except Shortage:
            if trial == least:
                break
            fails = trial
        else:
            works = trial
    if works:
        return f"the largest {option} that works is {works}"
    if num_clients == 1:
        return "add images of that kind" if of_test else "use fewer --test-images and --validation-images"
    if of_test:
        return "use fewer clients"
    return "use fewer clients, or fewer --test-images and --validation-images"
