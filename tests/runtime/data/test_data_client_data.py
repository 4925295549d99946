"""Batches: a pure function of the seeds, aligned masks, nothing lost but a single image."""

import pickle

import pytest
import torch

from suture.runtime.data.augment import augment
from suture.runtime.data.chest_phantom import ChestPhantom
from suture.runtime.data.client_data import ClientData
from suture.runtime.data.fundus_phantom import FundusPhantom
from suture.runtime.data.normalise import denormalise, normalise
from suture.runtime.data.partition import Share
from suture.runtime.errors import ConfigError


def fundus(num_train=10, augment="light", channels=3, normalisation="imagenet"):
    share = Share(tuple(range(num_train)), (12, 13), (14, 15, 16))
    return ClientData(
        FundusPhantom(20, 0),
        share,
        image_size=32,
        channels=channels,
        normalisation=normalisation,
        augment=augment,
    )


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def turn(data, batch_size=4, order_seed=7, shift=0):
    return list(
        data.train_batches(batch_size, seeded(order_seed), lambda number: seeded(100 + number + shift))
    )


def test_a_turn_is_repeated_bit_for_bit_by_the_same_seeds():
    for first, again in zip(turn(fundus()), turn(fundus()), strict=True):
        assert first.keys == again.keys and first.number == again.number
        assert torch.equal(first.inputs, again.inputs) and torch.equal(first.targets, again.targets)


def test_each_seed_governs_its_own_part():
    data = fundus()
    base, other_order, other_draws = turn(data), turn(data, order_seed=8), turn(data, shift=50)
    assert [b.keys for b in base] != [b.keys for b in other_order]
    assert [b.keys for b in base] == [b.keys for b in other_draws]
    assert not torch.equal(base[0].inputs, other_draws[0].inputs)


def test_batches_leave_the_default_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    turn(fundus())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**64 - 1])
def test_seeds_of_64_bits_are_taken(seed):
    assert next(fundus().train_batches(4, seeded(seed), lambda number: seeded(seed))).number == 0


@pytest.mark.parametrize(
    ("num_train", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (8, 4, [4, 4]), (3, 8, [3]), (3, 1, [1, 1, 1])],
)
def test_a_short_last_batch_is_kept_unless_it_is_a_single_image(num_train, batch_size, sizes):
    data = fundus(num_train)
    batches = turn(data, batch_size)
    assert [len(b.targets) for b in batches] == sizes == [len(b.keys) for b in batches]
    assert [b.number for b in batches] == list(range(len(sizes)))
    assert data.num_train_batches(batch_size) == len(sizes)
    assert len({key for b in batches for key in b.keys}) == sum(sizes)


def test_targets_belong_to_their_images():
    """Oracle: the source itself."""
    source = FundusPhantom(20, 0)
    for batch in turn(fundus(augment="none")):
        pictures = denormalise(batch.inputs, "imagenet")
        for row, key in enumerate(batch.keys):
            image, label = source.read(key, 32, 3)
            assert batch.targets[row] == label
            assert torch.allclose(pictures[row] * 255, image.float(), atol=1e-3)
    assert batch.targets.dtype == torch.int64 and batch.inputs.dtype == torch.float32


def test_evaluation_is_whole_ordered_and_unaugmented():
    data = fundus()
    batches = list(data.test_batches(2, "test"))
    assert [b.keys for b in batches] == [(14, 15), (16,)]
    assert torch.equal(batches[0].inputs, next(data.test_batches(2, "test")).inputs)
    assert [b.keys for b in data.test_batches(2, "validation")] == [(12, 13)]
    assert sum(len(b.keys) for b in data.test_batches(3, "train")) == 10


def test_counts_and_majority_share():
    data = fundus(8)
    assert data.class_counts() == (4, 4)
    assert data.majority_share("train") == 0.5
    assert data.majority_share("test") >= 0.5
    empty = ClientData(
        FundusPhantom(4, 0), Share((0, 1), (), (2,)), image_size=16, channels=1, normalisation="symmetric",
        augment="none",
    )  # fmt: skip
    assert list(empty.test_batches(4, "validation")) == []
    assert empty.majority_share("validation") != empty.majority_share("validation"), "nan"


def test_masks_are_float_zeros_and_ones_and_counted_by_pixel():
    data = ClientData(
        ChestPhantom(6, 0), Share((0, 1, 2, 3), (4,), (5,)), image_size=32, channels=1,
        normalisation="symmetric", augment="light",
    )  # fmt: skip
    batch = turn(data)[0]
    assert batch.targets.shape == (4, 1, 32, 32) and batch.targets.dtype == torch.float32
    assert set(batch.targets.unique().tolist()) == {0.0, 1.0}
    assert batch.inputs.min() >= -1 and batch.inputs.max() <= 1 and batch.inputs.min() < 0
    assert sum(data.class_counts("train")) == 4 * 32 * 32
    assert 0.6 < data.majority_share("test") < 0.9


def test_images_refuse_to_leave_the_process():
    with pytest.raises(TypeError, match="not picklable"):
        pickle.dumps(fundus())


@pytest.mark.parametrize(
    ("channels", "normalisation", "message"),
    [
        (1, "imagenet", "imagenet needs 3 channels, got 1; use symmetric"),
        (3, "none", "unknown normalisation 'none'; known: imagenet, symmetric"),
        (2, "symmetric", "channels must be 1"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(channels, normalisation, message):
    with pytest.raises(ConfigError, match=message):
        fundus(channels=channels, normalisation=normalisation)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ConfigError, match="batch size must be at least 1, got 0"):
        fundus().num_train_batches(0)


@pytest.mark.parametrize(("normalisation", "channels"), [("imagenet", 3), ("symmetric", 1), ("symmetric", 3)])
def test_denormalise_undoes_normalise(normalisation, channels):
    images = torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(denormalise(normalise(images, normalisation), normalisation), images, atol=1e-6)


def test_normalise_agrees_with_torchvision():
    from torchvision.transforms.functional import normalize

    images = torch.rand(2, 3, 8, 8)
    expected = normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(normalise(images, "imagenet"), expected)


@pytest.mark.parametrize("mirror", [False, True])
def test_augmentation_moves_image_and_mask_together(mirror):
    """Oracle: an image that is its own mask stays so, but for the edge's interpolation."""
    yy, xx = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    shape = (((xx - 20) / 9) ** 2 + ((yy - 30) / 16) ** 2 < 1).float().expand(16, 1, 64, 64)
    images, masks = augment(shape, shape, mirror=mirror, generator=torch.Generator().manual_seed(0))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert float(((images > 0.5) != (masks > 0.5)).float().mean()) < 0.005
    assert not torch.equal(masks, shape)
    on_the_right = masks[..., 32:].sum((1, 2, 3)) > masks[..., :32].sum((1, 2, 3))
    assert bool(on_the_right.any()) == mirror


def test_augmentation_is_light():
    """Oracle: the settings' bounds: area within 10.25 % and the steps of pixels, a flat image within 10 %."""
    flat = torch.full((64, 1, 32, 32), 0.5)
    images, _ = augment(flat, None, mirror=True, generator=torch.Generator().manual_seed(1))
    assert float(images.min()) >= 0.449 and float(images.max()) <= 0.551
    disc = torch.zeros(64, 1, 64, 64)
    disc[:, :, 16:48, 16:48] = 1
    _, masks = augment(disc, disc, mirror=False, generator=torch.Generator().manual_seed(1))
    areas = masks.sum((1, 2, 3)) / 1024
    assert float(areas.min()) > 0.86 and float(areas.max()) < 1.14
