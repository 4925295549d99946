"""What a site takes of its own images: all of them in shares, patient by patient, or as many as it says."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from source_lists import ListSource, check_exclusive, labels, simple

from suture.runtime.data.kaggle_dr import open_kaggle_dr
from suture.runtime.data.partition import PartitionConfig, Share, partition
from suture.runtime.data.site_shares import SharesConfig, counted_share, evaluation_share, site_share
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.errors import ConfigError, DataError


def of_all(share: Share) -> list[int]:
    return sorted(share.train + share.validation + share.test)


@st.composite
def hospitals(draw):
    """Five patients or more with one to five images each, of unbalanced classes, perhaps an official test set."""
    num_classes, rng = draw(st.integers(1, 5)), np.random.default_rng(draw(st.integers(0, 999)))
    official = draw(st.booleans())
    sizes = draw(st.lists(st.integers(1, 5), min_size=5, max_size=80))
    weights = rng.dirichlet(np.full(num_classes, 0.5))
    examples = [
        Example(f"{number}_{image}", f"p{number}", int(rng.choice(num_classes, p=weights)), "", official and number >= 3 and number % 4 == 3)
        for number, size in enumerate(sizes)
        for image in range(size)
    ]  # fmt: skip
    return ListSource(examples, num_classes)


@settings(max_examples=150, deadline=None)
@given(source=hospitals(), seed=st.integers(0, 2**31), validation=st.sampled_from([0.0, 0.1, 0.3]))
def test_all_images_are_used_once_and_no_patient_is_in_two_sets(source, seed, validation):
    """Oracle: plain sets of indices and patients; the same seed gives the same division."""
    config = SharesConfig(validation=validation)
    share = site_share(source, config, seed)
    assert share == site_share(source, config, seed)
    check_exclusive(source, [share])
    assert of_all(share) == list(range(len(source.examples)))
    assert share.train and share.test and bool(share.validation) == (validation > 0)
    tested = {index for index, one in enumerate(source.examples) if one.official_test}
    assert not tested or set(share.test) == tested


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    shares=st.sampled_from([(0.1, 0.2), (0.0, 0.5), (0.2, 0.2)]),
)
def test_where_every_patient_has_one_image_each_class_is_divided_within_one_image(counts, seed, shares):
    """Oracle: share times images of the class, by hand; sets that must not be empty may take one more."""
    examples = [Example(f"{k}_{i}", f"{k}_{i}", k) for k, count in enumerate(counts) for i in range(count)]
    validation, test = shares
    assume(sum(counts) >= 10)
    share = site_share(
        ListSource(examples, len(counts)), SharesConfig(validation=validation, test=test), seed
    )
    for number, count in enumerate(counts):
        got = [sum(examples[i].label == number for i in part) for part in (share.validation, share.test)]
        assert abs(got[0] - validation * count) <= 1 and abs(got[1] - test * count) <= 1
        assert count - sum(got) >= 1, "each class can be learnt"


@settings(max_examples=150, deadline=None)
@given(source=hospitals(), seed=st.integers(0, 99))
def test_a_class_of_two_patients_is_trained_on_where_there_are_patients_to_spare(source, seed):
    """Oracle: patients by class, counted; a set that has one patient only keeps it."""
    share = site_share(source, SharesConfig(), seed)
    trained = {source.examples[i].label for i in share.train}
    few = [
        part for part in (share.validation, share.test) if len({source.examples[i].patient for i in part}) < 2
    ]
    owners: dict[int, set[str]] = {}
    for one in source.examples:
        if not one.official_test:
            owners.setdefault(one.label, set()).add(one.patient)
    missing = {label for label, patients in owners.items() if len(patients) > 1} - trained
    assert not missing or few


def test_the_shares_of_images_are_near_what_was_asked_for_with_many_images_a_patient():
    """Oracle: the shares, within one patient's images; the seed decides who is where."""
    source = simple(900, num_classes=3, per_patient=6)
    share = site_share(source, SharesConfig(validation=0.1, test=0.2), 1)
    assert abs(len(share.validation) - 90) <= 6 and abs(len(share.test) - 180) <= 6
    assert share != site_share(source, SharesConfig(validation=0.1, test=0.2), 2)
    assert [*share.train] != sorted(share.train), "patients' images are mixed"


def test_a_patient_on_both_sides_of_an_official_split_is_tested_on_only():
    """Oracle: who is where, by hand."""
    examples = [Example(f"k{i}", f"p{i}", i % 2) for i in range(30)]
    examples += [Example(f"t{i}", f"p{i}", i % 2, "", True) for i in range(10)]
    share = site_share(ListSource(examples), SharesConfig(), 0)
    assert sorted(share.test) == list(range(30, 40))
    assert sorted(share.train + share.validation) == list(range(10, 30)) and len(share.validation) == 2


def test_a_share_of_test_images_is_refused_where_there_is_an_official_test_set():
    """Oracle: the message; how many there are stands in it."""
    with pytest.raises(
        ConfigError, match=r"--test 0.3: list has an official test set of 10 images here.*leave --test out"
    ):
        site_share(simple(40, test_from=30), SharesConfig(test=0.3), 0)


@pytest.mark.parametrize(
    ("source", "config", "words"),
    [
        (simple(8, per_patient=4), {}, "list has 2 patients, but training and validation and test need one each, .*; add "
         "patients, or use --validation 0, or join with --evaluate-only, for which all"),
        (simple(4, per_patient=4), {}, "list has 1 patient, but training .*; add patients, or join with --evaluate-only"),
        (simple(8, test_from=1), {}, "list has 1 patient beside those of the official test set, but training and validation "
         "need one each, .* use --validation 0"),
        (simple(2), {"validation": 0.0}, "list: 1 image is left to train on, at least 2 are needed; add patients, or join"),
        (simple(40), {"validation": 0.8}, "--validation 0.8 leaves nothing to train on beside the test images' share of 0.2"),
    ],
)  # fmt: skip
def test_a_tiny_site_is_told_what_it_can_do(source, config, words):
    """Oracle: the messages; no other client is spoken of."""
    with pytest.raises((ConfigError, DataError), match=words) as raised:
        site_share(source, SharesConfig(**config), 0)
    assert "clients" not in str(raised.value)


def test_what_a_tiny_site_is_told_helps():
    """Oracle: the division that the message speaks of."""
    share = site_share(simple(8, per_patient=4), SharesConfig(validation=0.0), 0)
    assert (len(share.train), len(share.validation), len(share.test)) == (4, 0, 4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"validation": 16}, "--validation is a share of the images, from 0 to below 1, got 16; .* --validation-images"),
        ({"validation": float("nan")}, "--validation is a share"),
        ({"test": 1.0}, "--test is a share of the images, above 0 and below 1, got 1; .* --test-images"),
        ({"test": 0.0}, "--test is a share of the images"),
        ({"validation": 0.5, "test": 0.5}, "--validation 0.5 and --test 0.5 leave nothing to train on"),
    ],
)  # fmt: skip
def test_shares_that_are_none_are_refused(values, words):
    """Oracle: the messages name value, bound and remedy."""
    with pytest.raises(ConfigError, match=words):
        SharesConfig(**values)


def test_masks_are_divided_as_one_class():
    """Oracle: the numbers."""
    source = ListSource([Example(f"k{i}", f"p{i}", None) for i in range(30)], task=Task.SEGMENTATION)
    share = site_share(source, SharesConfig(), 0)
    assert (len(share.train), len(share.validation), len(share.test)) == (21, 3, 6)


def test_idrid_at_a_site_is_used_whole(real_data):
    """Oracle: the official split; classes in proportion."""
    source = open_kaggle_dr(real_data / "idrid", grades="binary")
    share = site_share(source, SharesConfig(), 0)
    tested = [one for one in source.examples if one.official_test]
    assert len(share.test) == len(tested)
    check_exclusive(source, [share])
    whole, held = labels(source, share.train + share.validation), labels(source, share.validation)
    assert all(abs(held[label] - 0.1 * count) <= 2 for label, count in whole.items())


# Counts --------------------------------------------------------------------------------------------


def test_counts_are_balanced_as_among_clients():
    """Oracle: `partition` for one client."""
    config = PartitionConfig(train_images=20, validation_images=4, test_images=8)
    assert counted_share(simple(80), config, 5) == partition(simple(80), config, 1, 5)[0]


def test_counts_that_are_too_high_are_told_the_most_and_what_uses_all():
    """Oracle: the message; no other client is spoken of."""
    with pytest.raises(
        DataError, match="largest --train-images that works is 36; without --train-images, .* all"
    ) as raised:
        counted_share(simple(60), PartitionConfig(train_images=100, validation_images=8, test_images=16), 0)
    assert "clients" not in str(raised.value)


# A site that only evaluates ------------------------------------------------------------------------


def evaluated(source: Source, validation: int = 0, test: int | None = None) -> Share:
    return evaluation_share(source, validation_images=validation, test_images=test, seed=3)


@pytest.mark.parametrize("test_from", [None, 30])
def test_all_images_of_a_site_that_only_evaluates_are_test_images(test_from):
    """Oracle: every index once, official test images among them."""
    share = evaluated(simple(40, per_patient=4, test_from=test_from))
    assert sorted(share.test) == list(range(40))
    assert share == Share((), (), share.test)


@pytest.mark.parametrize(("validation", "test"), [(6, None), (6, 8), (0, 8)])
@pytest.mark.parametrize("test_from", [None, 24])
def test_it_takes_as_many_as_it_is_asked_for_and_no_patient_twice(validation, test, test_from):
    """Oracle: the numbers, balanced classes, sets of patients; of an official test set only test images."""
    source = simple(48, per_patient=2, test_from=test_from)
    share = evaluated(source, validation, test)
    check_exclusive(source, [share])
    assert len(share.validation) == validation
    assert test is None or len(share.test) == test
    labels = Counter(source.examples[index].label for index in share.validation)
    assert len(set(labels.values())) <= 1
    assert not any(source.examples[index].official_test for index in share.validation)
    if test_from is not None and test is not None:
        assert all(source.examples[index].official_test for index in share.test)
    if test is None:
        validated = {source.examples[index].patient for index in share.validation}
        assert len(share.test) == sum(one.patient not in validated for one in source.examples)


def test_too_few_for_evaluation_are_said_with_the_remedy():
    """Oracle: the messages."""
    with pytest.raises(
        DataError, match="needs 50 images of class 'class0', but 20 .* leave both out: then all"
    ):
        evaluated(simple(40), test=100)
    with pytest.raises(DataError, match="no patient is left for the test set beside 4 validation images"):
        evaluated(simple(4), validation=4)
