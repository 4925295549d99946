"""The partitions that use every image: the official split, and cross-validation.

Oracle: plain sets of indices and patients.
"""

import re

import pytest
from source_lists import labels, simple

from suture.launch import build
from suture.launch.options.options import AskedOptions
from suture.runtime.data.partition import PartitionConfig, partition
from suture.runtime.errors import ConfigError, DataError


def shares_of(source, scheme, num_clients=2, seed=0):
    config = PartitionConfig(scheme=scheme, train_images=0, validation_images=0, test_images=0)
    return partition(source, config, num_clients, seed)


@pytest.mark.parametrize("num_clients", [1, 2, 3])
def test_all_shares_out_every_training_image_and_each_client_tests_on_the_official_set(num_clients):
    """Oracle: the source's own division; patients of two images stay whole; classes are even to one patient."""
    source = simple(100, num_classes=2, per_patient=2, test_from=80)
    shares = shares_of(source, "all", num_clients)
    assert sorted(index for share in shares for index in share.train) == list(range(80))
    assert all(sorted(share.test) == list(range(80, 100)) and not share.validation for share in shares)
    homes = [{source.examples[index].patient for index in share.train} for share in shares]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 40
    counts = [labels(source, share.train) for share in shares]
    assert max(c[0] for c in counts) - min(c[0] for c in counts) <= 2


def test_folds_divide_the_training_images_and_leave_the_official_set_closed():
    """Oracle: the union of five folds, for any number of clients and seed by seed another."""
    source = simple(100, num_classes=3, test_from=80)
    folds = [shares_of(source, f"fold:{k}/5", 2, 7) for k in range(1, 6)]
    tested = [set(shares[0].test) for shares in folds]
    assert set.union(*tested) == set(range(80)) and sum(map(len, tested)) == 80
    for shares, test in zip(folds, tested, strict=True):
        assert set(shares[1].test) == test
        assert set(shares[0].train) | set(shares[1].train) == set(range(80)) - test
        assert not set(shares[0].train) & set(shares[1].train)
    assert [set(shares_of(source, f"fold:{k}/5", 4, 7)[0].test) for k in range(1, 6)] == tested
    assert set(shares_of(source, "fold:1/5", 2, 8)[0].test) != tested[0]


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("fold:0/5", "partition must be all or fold:K/N with K in 1..N, such as fold:1/5, got 'fold:0/5'"),
        ("fold:6/5", "got 'fold:6/5'"),
        ("fold:1/1", "got 'fold:1/1'"),
        ("fold", "got 'fold'"),
        ("all:2", "got 'all:2'"),
        ("all", "this source has none; use --partition fold:1/5"),
    ],
)
def test_a_division_that_cannot_be_is_refused(scheme, words):
    """Oracle: the message."""
    with pytest.raises(ConfigError, match=re.escape(words)):
        shares_of(simple(20), scheme)


def test_too_few_patients_are_said_with_a_remedy():
    """Oracle: the message."""
    with pytest.raises(DataError, match="6 patients are too few for fold:1/3; use fewer clients or folds"):
        shares_of(simple(6), "fold:1/3", 3)


def test_numbers_of_images_do_not_go_with_all_images():
    """Oracle: the message; left open they are none."""
    options = AskedOptions(partition="fold:1/4", clients=2)
    assert options.resolved().train_images == 0
    assert sum(len(share.train) for share in build.build_images(options.resolved(), 2).shares) == 60
    words = "partition fold:1/4 uses every image, got --train-images 8; leave --train-images out"
    with pytest.raises(ConfigError, match=words):
        AskedOptions(partition="fold:1/4", clients=2, train_images=8).resolved()
