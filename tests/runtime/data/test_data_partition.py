"""Partition: exact quotas, no patient in two sets, official test images for testing only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_lists import ListSource, check_exclusive, labels, sets_of, simple

from suture.runtime.data.fundus_phantom import FundusPhantom
from suture.runtime.data.kaggle_cxr import open_kaggle_cxr
from suture.runtime.data.kaggle_dr import open_kaggle_dr
from suture.runtime.data.partition import PartitionConfig, partition
from suture.runtime.data.source import Example, Task
from suture.runtime.errors import ConfigError, DataError


@st.composite
def sources(draw):
    """Patients of one to four images with labels at random, perhaps an official test set and sites."""
    num_classes = draw(st.integers(1, 4))
    official = draw(st.booleans())
    sizes = draw(st.lists(st.integers(1, 4), min_size=20, max_size=120))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    examples = []
    for patient, size in enumerate(sizes):
        test = official and patient % 3 == 0
        site = "AB"[int(rng.integers(2))]
        for image in range(size):
            label = int(rng.integers(num_classes))
            examples.append(Example(f"{patient}_{image}", f"p{patient}", label, site, test))
    return ListSource(examples, num_classes)


@settings(max_examples=120, deadline=None)
@given(
    source=sources(),
    scheme=st.sampled_from(["iid", "dirichlet:0.5", "dirichlet:50", "quantity:0.5", "by-site"]),
    counts=st.tuples(st.integers(2, 12), st.integers(0, 4), st.integers(1, 6)),
    num_clients=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_a_partition_is_exact_and_exclusive_or_refused(source, scheme, counts, num_clients, seed):
    config = PartitionConfig(
        scheme=scheme, train_images=counts[0], validation_images=counts[1], test_images=counts[2]
    )
    try:
        shares = partition(source, config, num_clients, seed)
    except (DataError, ConfigError):
        return
    assert shares == partition(source, config, num_clients, seed)
    check_exclusive(source, shares)
    official = any(e.official_test for e in source.examples)
    for share in shares:
        assert len(share.validation) == counts[1] and len(share.test) == counts[2]
        for part in (share.validation, share.test):
            numbers = [labels(source, part)[k] for k in range(len(source.classes))]
            assert max(numbers) - min(numbers) <= 1
        assert all(source.examples[i].official_test == official for i in share.test)
        assert not any(source.examples[i].official_test for i in share.train + share.validation)
        if scheme == "by-site":
            assert len({source.examples[i].site for part in sets_of([share]) for i in part}) == 1
    if scheme.startswith("quantity"):
        assert sum(len(share.train) for share in shares) == counts[0] * num_clients
        assert min(len(share.train) for share in shares) >= 2
    else:
        assert all(len(share.train) == counts[0] for share in shares)


@settings(max_examples=30, deadline=None)
@given(num_clients=st.integers(1, 5), train=st.integers(2, 60), seed=st.integers(0, 1000))
def test_a_phantom_of_twice_the_need_always_suffices(num_clients, train, seed):
    config = PartitionConfig(train_images=train, validation_images=5, test_images=9)
    source = FundusPhantom(2 * num_clients * (train + 14), seed)
    check_exclusive(source, partition(source, config, num_clients, seed))


def test_an_odd_number_is_divided_as_evenly_as_it_goes():
    source = simple(400)
    (share,) = partition(source, PartitionConfig(train_images=101), 1, 0)
    assert labels(source, share.train) == {0: 51, 1: 50}


def test_seeds_differ():
    source, config = simple(800), PartitionConfig()
    assert partition(source, config, 2, 0) != partition(source, config, 2, 1)


def test_dirichlet_with_a_small_alpha_is_skewed_and_with_a_large_one_even():
    source = simple(2000)

    def skew(alpha):
        shares = partition(source, PartitionConfig(scheme=f"dirichlet:{alpha}", train_images=100), 4, 1)
        return max(abs(labels(source, share.train)[0] - 50) for share in shares)

    assert skew(0.1) > 25
    assert skew(10000) <= 3


def test_a_class_that_is_used_up_passes_its_part_on():
    """20 of class 1 among 420: some client wants more than there are."""
    source = ListSource([Example(f"k{i}", f"p{i}", int(i < 40)) for i in range(440)])
    config = PartitionConfig(scheme="dirichlet:0.3", train_images=80, validation_images=2, test_images=4)
    shares = partition(source, config, 4, 0)
    assert [len(share.train) for share in shares] == [80] * 4


def test_quantity_is_uneven():
    shares = partition(simple(800), PartitionConfig(scheme="quantity:0.5", train_images=100), 4, 0)
    sizes = [len(share.train) for share in shares]
    assert sum(sizes) == 400 and max(sizes) > 2 * min(sizes)


def test_by_site_gives_each_client_one_site_and_notes_those_left_out():
    source = simple(900, per_patient=2, sites=("north", "south", "east", "south"))
    config = PartitionConfig(scheme="by-site", train_images=20, validation_images=2, test_images=4)
    shares = partition(source, config, 2, 0)
    partition(source, config, 2, 0)
    assert [{source.examples[i].site for i in s.train + s.test} for s in shares] == [{"east"}, {"south"}] or [
        {source.examples[i].site for i in s.train + s.test} for s in shares
    ] == [{"north"}, {"south"}]
    assert len(source.notes) == 1 and "left out" in source.notes[0]


def test_a_patient_at_two_sites_is_used_at_one():
    examples = [Example(f"k{i}", f"p{i // 2}", (i // 2) % 2, "AB"[i % 2]) for i in range(200)]
    examples += [Example(f"b{i}", f"q{i}", i % 2, "B") for i in range(100)]
    source = ListSource(examples)
    config = PartitionConfig(scheme="by-site", train_images=20, validation_images=2, test_images=4)
    check_exclusive(source, partition(source, config, 2, 0))


def test_a_patient_on_both_sides_of_an_official_split_is_tested_on_only():
    examples = [Example(f"k{i}", f"p{i}", i % 2) for i in range(60)]
    examples += [Example(f"t{i}", f"p{i}", i % 2, "", True) for i in range(20)]
    source = ListSource(examples)
    config = PartitionConfig(train_images=36, validation_images=4, test_images=20)
    (share,) = partition(source, config, 1, 0)
    assert min(share.train + share.validation) >= 20


def test_the_remedy_of_a_shortage_works_and_one_more_does_not():
    source = simple(100)
    config = PartitionConfig(train_images=90, validation_images=4, test_images=10)
    with pytest.raises(
        DataError, match=r"needs 52 images of class 'class0', but 50 are present in all"
    ) as info:
        partition(source, config, 1, 0)
    assert str(info.value).endswith("the largest --train-images that works is 86")
    partition(source, PartitionConfig(train_images=86, validation_images=4, test_images=10), 1, 0)


def test_a_shortage_of_official_test_images_names_the_test_option():
    source = simple(400, test_from=380)
    with pytest.raises(DataError, match=r"present to test on; the largest --test-images that works is 10"):
        partition(source, PartitionConfig(train_images=20, test_images=32), 2, 0)


def test_a_shortage_that_no_number_of_training_images_mends_says_so():
    with pytest.raises(DataError, match="; use fewer --test-images and --validation-images"):
        partition(simple(40), PartitionConfig(train_images=20, test_images=40), 1, 0)


def test_a_shortage_among_several_clients_may_be_mended_by_fewer_of_them():
    """Oracle: the messages."""
    with pytest.raises(DataError, match="use fewer clients, or fewer --test-images"):
        partition(simple(40), PartitionConfig(train_images=20, test_images=40), 2, 0)
    with pytest.raises(DataError, match="to test on; add images of that kind"):
        examples = [Example(f"k{i}", f"p{i}", i % 2, "", i == 59) for i in range(60)]
        partition(ListSource(examples), PartitionConfig(train_images=20, test_images=4), 1, 0)


def test_a_shortage_at_a_site_names_the_site():
    source = simple(60, sites=("A", "B"))
    with pytest.raises(DataError, match="present in all at site 'A'"):
        partition(source, PartitionConfig(scheme="by-site"), 2, 0)


def test_patients_that_cannot_be_divided_are_a_shortage_of_their_own():
    source = simple(40, num_classes=1, per_patient=10)
    config = PartitionConfig(train_images=15, validation_images=2, test_images=2)
    with pytest.raises(DataError, match="without dividing a patient between two sets"):
        partition(source, config, 2, 0)


@pytest.mark.parametrize(
    ("make", "num_clients", "message"),
    [
        (lambda: partition(simple(60), PartitionConfig(), 0, 0), 0, "number of clients must be at least 1"),
        (lambda: partition(simple(60), PartitionConfig(), 1, -1), 0, "seed must not be negative"),
        (lambda: partition(simple(60), PartitionConfig(scheme="by-site"), 2, 0), 0, "by-site needs sites"),
        (
            lambda: partition(simple(60, sites=("A", "B")), PartitionConfig(scheme="by-site"), 3, 0),
            0,
            r"3 clients but 2 sites \(A, B\); use 2 clients",
        ),
        (lambda: PartitionConfig(scheme="even"), 0, "unknown partition 'even'; known: iid, dirichlet:ALPHA"),
        (lambda: PartitionConfig(scheme="iid:2"), 0, "unknown partition 'iid:2'"),
        (lambda: PartitionConfig(scheme="dirichlet"), 0, "dirichlet needs a positive number"),
        (lambda: PartitionConfig(scheme="quantity:-1"), 0, "quantity needs a positive number"),
        (lambda: PartitionConfig(scheme="dirichlet:inf"), 0, "dirichlet needs a positive number"),
        (lambda: PartitionConfig(train_images=1), 0, "--train-images must be at least 2, got 1"),
        (lambda: PartitionConfig(validation_images=-1), 0, "--validation-images must be at least 0"),
        (lambda: PartitionConfig(test_images=0), 0, "--test-images must be at least 1"),
    ],
)
def test_options_that_cannot_work_are_refused(make, num_clients, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_dirichlet_is_refused_for_masks():
    source = ListSource([Example(f"k{i}", f"p{i}", None) for i in range(60)], task=Task.SEGMENTATION)
    with pytest.raises(ConfigError, match="masks have none"):
        partition(source, PartitionConfig(scheme="dirichlet:1"), 2, 0)


def test_more_clients_than_patients_are_refused():
    with pytest.raises(DataError, match="5 clients but only 4 patients"):
        partition(simple(40, per_patient=10), PartitionConfig(), 5, 0)


def test_idrid_is_divided_between_two_clients(real_data):
    """2 x (100 train + 16 validation + 32 test), each balanced; test names end in _test."""
    source = open_kaggle_dr(real_data / "idrid", grades="binary")
    shares = partition(source, PartitionConfig(), 2, 0)
    check_exclusive(source, shares)
    for share in shares:
        assert labels(source, share.train) == {0: 50, 1: 50}
        assert labels(source, share.validation) == {0: 8, 1: 8}
        assert labels(source, share.test) == {0: 16, 1: 16}
        assert all(source.examples[i].key.endswith("_test") for i in share.test)


def test_idrid_with_five_grades_names_the_rare_one(real_data):
    source = open_kaggle_dr(real_data / "idrid", grades="all")
    with pytest.raises(DataError, match=r"of class 'mild', but \d+ are present"):
        partition(source, PartitionConfig(), 2, 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_lungs_are_divided_patient_by_patient(real_data, seed):
    """72 of 83 images of 48 patients."""
    source = open_kaggle_cxr(real_data / "lungs")
    config = PartitionConfig(train_images=24, validation_images=4, test_images=8)
    shares = partition(source, config, 2, seed)
    check_exclusive(source, shares)
    assert [len(part) for part in sets_of(shares)] == [24, 4, 8] * 2
