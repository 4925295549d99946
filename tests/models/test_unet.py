"""The cut U-Net against a U-Net written out as one function."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from suture.models.registry import build, smashed_shape, validate_image_size, whole_state_dict

WIDTH = 4


def obvious_unet(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """The whole net over a dict of weights, with no module in sight: the oracle."""

    def double_conv(x: Tensor, at: str) -> Tensor:
        for i in ("1", "2"):
            x = F.conv2d(x, p[f"{at}conv{i}.weight"], padding=1)
            x = F.batch_norm(x, None, None, p[f"{at}bn{i}.weight"], p[f"{at}bn{i}.bias"], training=True)
            x = F.relu(x)
        return x

    def decode(x: Tensor, skip: Tensor, at: str) -> Tensor:
        x = F.conv_transpose2d(x, p[f"{at}up.weight"], p[f"{at}up.bias"], stride=2)
        return double_conv(torch.cat((skip, x), dim=1), f"{at}convs.")

    s1 = double_conv(x, "enc1.")
    s2 = double_conv(F.max_pool2d(s1, 2), "enc2.")
    s3 = double_conv(F.max_pool2d(s2, 2), "enc3.")
    s4 = double_conv(F.max_pool2d(s3, 2), "enc4.")
    x = double_conv(F.max_pool2d(s4, 2), "bottleneck.")
    x = decode(x, s4, "dec4.")
    x = decode(x, s3, "dec3.")
    x = decode(x, s2, "dec2.")
    x = decode(x, s1, "dec1.")
    return F.conv2d(x, p["out.weight"], p["out.bias"])


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_forward_and_gradients_equal_an_unsplit_unet_bit_for_bit(cut: int) -> None:
    """Oracle: ``obvious_unet`` over copies of the same weights."""
    torch.manual_seed(3)
    split = build("unet", cut=cut, num_outputs=1, width=WIDTH)
    weights = {key: value.clone() for key, value in whole_state_dict(split).items()}
    oracle = {key: value.requires_grad_() for key, value in weights.items() if value.is_floating_point()}
    x = torch.rand(2, 1, 32, 32)
    masks = torch.rand(2, 1, 32, 32).round()

    logits, expected = split.joined()(x), obvious_unet(oracle, x)
    F.binary_cross_entropy_with_logits(logits, masks).backward()
    F.binary_cross_entropy_with_logits(expected, masks).backward()

    assert logits.shape == masks.shape
    assert torch.equal(logits, expected)
    for part in split.parts().values():
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and torch.equal(parameter.grad, oracle[name].grad), name


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_the_client_keeps_both_ends_and_the_skips(cut: int) -> None:
    """Oracle: the definition of cut N, written out."""
    split = build("unet", cut=cut, num_outputs=1, width=WIDTH)
    assert split.head is not None
    names = [[name for name, _ in part.named_children()] for part in split.parts().values()]
    assert names[0] == [f"enc{i}" for i in range(1, cut + 1)]
    inner = range(cut + 1, 5)
    assert names[1] == [f"enc{i}" for i in inner] + ["bottleneck"] + [f"dec{i}" for i in reversed(inner)]
    assert names[2] == [f"dec{i}" for i in range(cut, 0, -1)] + ["out"]

    smashed, skips = split.bottom(torch.rand(2, 1, 32, 32))
    assert smashed.shape == (2, WIDTH << cut - 1, 32 >> cut, 32 >> cut)
    assert [skip.shape for skip in skips] == [(2, WIDTH << i, 32 >> i, 32 >> i) for i in range(cut)]
    assert torch.equal(smashed, F.max_pool2d(skips[-1], 2))
    assert len(skips) == cut and len(split.head(split.top(smashed), skips)) == 2
    assert len(skips) == cut  # the head takes from a copy


def test_at_the_papers_width_the_bottleneck_has_1024_channels() -> None:
    """Oracle: the paper's figure 1, and all parameters counted by hand.

    Per level of c channels: 9 * (in * c + c * c) weights, 4 * c of batch norm; the up-convolution
    has 4 * 2c * c + c.
    """
    with torch.device("meta"):
        split = build("unet", cut=1, num_outputs=1)
        state = whole_state_dict(split)
    assert state["bottleneck.conv1.weight"].shape == (1024, 512, 3, 3)

    def convs(fan_in: int, c: int) -> int:
        return 9 * (fan_in * c + c * c) + 4 * c

    widths = [64, 128, 256, 512]
    by_hand = sum(convs(a, b) for a, b in zip([1, *widths], [*widths, 1024], strict=True))
    by_hand += sum(4 * 2 * c * c + c + convs(2 * c, c) for c in widths) + 64 + 1
    parameters = [p for part in split.parts().values() for p in part.parameters()]
    assert sum(p.numel() for p in parameters) == by_hand == 31_036_481


def test_initial_weights_have_the_papers_deviation() -> None:
    """Oracle: sqrt(2 / incoming nodes), by hand; an up-convolution's pixel has one incoming pixel."""
    split = build("unet", cut=1, num_outputs=1, width=16, init=lambda part: torch.manual_seed(1))
    state = whole_state_dict(split)
    assert state["enc4.conv2.weight"].std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert state["dec4.up.weight"].std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert state["dec4.up.bias"].eq(0).all() and state["out.bias"].eq(0).all()


def test_shared_labels_are_refused() -> None:
    """Oracle: the message, written out."""
    with pytest.raises(ValueError, match=r"^labels must be home for unet, got 'shared'; use --labels home$"):
        build("unet", cut=2, num_outputs=1, labels="shared")


@pytest.mark.parametrize("cut", ["bottleneck", "dec2", "out", "enc5"])
def test_only_encoder_blocks_can_be_named_as_the_cut(cut: str) -> None:
    """Oracle: the message, written out."""
    message = f"^cut must name a block of unet, got '{cut}'; known: enc1, enc2, enc3, enc4$"
    with pytest.raises(ValueError, match=message):
        build("unet", cut=cut, num_outputs=1)


@pytest.mark.parametrize(("px", "remedy"), [(17, "16 or 32"), (40, "32 or 48"), (250, "240 or 256")])
def test_an_image_size_that_16_does_not_divide_is_refused(px: int, remedy: str) -> None:
    """Oracle: the message, written out, and the net itself, which cannot join its skips at that size."""
    message = f"^image size must be a multiple of 16 for unet, got {px}; use --image-size {remedy}$"
    with pytest.raises(ValueError, match=message):
        validate_image_size("unet", px)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        smashed_shape(build("unet", cut=1, num_outputs=1, width=WIDTH), px)
