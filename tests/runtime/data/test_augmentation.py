"""The presets of augmentation."""

import pytest
import torch

from suture.runtime.data.augmentation import AUGMENTATIONS

MOVING = [name for name in AUGMENTATIONS if name != "none"]


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_preset_is_a_function_of_its_generator_and_leaves_torchs_own_alone(name, channels):
    """Oracle: the same draw again; the default generator's state from before; values stay in [0, 1]."""
    images, before = torch.rand(3, channels, 24, 24, generator=draw(0)), torch.get_rng_state()
    one, again, other = (AUGMENTATIONS[name](images, None, True, draw(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, again) and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, other) == (name == "none")
    assert one.shape == images.shape and 0 <= one.min() and one.max() <= 1


@pytest.mark.parametrize("name", MOVING)
def test_an_image_moves_with_its_mask(name):
    """Oracle: a disc that is its own mask: where the moved image is bright the moved mask is set."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = (((x - 40) ** 2 + (y - 26) ** 2) < 120).float()[None, None]
    images, masks = AUGMENTATIONS[name](disc, disc, True, draw(3))
    assert masks is not None and set(masks.unique().tolist()) == {0.0, 1.0}
    bright = images > images.max() / 2
    assert (bright == (masks > 0.5)).float().mean() > 0.97
    assert not torch.equal(masks, disc)


def test_an_xray_keeps_its_upright_and_a_fundus_does_not():
    """Oracle: where the bright half of a picture comes to lie over 40 draws; the heart's side stays without mirror."""
    left = torch.zeros(40, 1, 32, 32)
    left[..., :16] = 0.5
    upper = left.transpose(2, 3).contiguous()

    def share(name: str, images: torch.Tensor, mirror: bool) -> float:
        moved, _ = AUGMENTATIONS[name](images, None, mirror, draw(5))
        first = moved[..., :16] if images is left else moved[..., :16, :]
        return float((first.mean((1, 2, 3)) > moved.mean((1, 2, 3))).float().mean())

    assert share("xray", left, False) == share("xray", upper, False) == share("xray", upper, True) == 1
    assert 0.2 < share("fundus", upper, False) < 0.8 and 0.2 < share("xray", left, True) < 0.8


def test_the_draw_of_an_image_does_not_depend_on_those_behind_it():
    """Oracle: a batch of the first image alone."""
    images = torch.rand(3, 3, 16, 16, generator=draw(0))
    whole, _ = AUGMENTATIONS["fundus"](images, None, True, draw(1))
    first, _ = AUGMENTATIONS["fundus"](images[:1], None, True, draw(1))
    assert torch.equal(whole[:1], first)
