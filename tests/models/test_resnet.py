"""The cut residual nets against torchvision's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18  # type: ignore[import-untyped, unused-ignore]

from suture.models.registry import build, cut_points, whole_state_dict
from suture.models.resnet import build_resnet

CASES = [
    (labels, point.name)
    for labels in ("shared", "home")
    for point in cut_points("resnet18", labels, inside_layers=True)
]


@pytest.fixture(scope="module")
def batch() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("labels", "cut"), CASES)
def test_forward_gradients_and_buffers_equal_torchvisions_bit_for_bit(
    labels: str, cut: str, batch: Tensor
) -> None:
    """Oracle: torchvision's uncut resnet18, in-place ReLUs and all, with the same weights."""
    torch.manual_seed(3)
    split = build("resnet18", cut=cut, num_outputs=4, labels=labels)
    oracle = resnet18(weights=None, num_classes=4)
    oracle.load_state_dict(whole_state_dict(split))
    targets = torch.tensor([0, 3, 1])

    logits, expected = split.joined()(batch), oracle(batch)
    nn.functional.cross_entropy(logits, targets).backward()
    nn.functional.cross_entropy(expected, targets).backward()

    assert torch.equal(logits, expected)
    gradients = {
        name: parameter.grad for part in split.parts().values() for name, parameter in part.named_parameters()
    }
    for name, parameter in oracle.named_parameters():
        assert torch.equal(gradients[name], parameter.grad), name
    for name, value in oracle.state_dict().items():
        assert torch.equal(whole_state_dict(split)[name], value), name


@pytest.mark.parametrize("cut", [0, 3, 8])
def test_without_init_the_weights_are_torchvisions_under_the_same_seed(cut: int) -> None:
    """Oracle: torchvision's constructor."""
    torch.manual_seed(5)
    split = build("resnet18", cut=cut, num_outputs=2)
    torch.manual_seed(5)
    expected = resnet18(weights=None, num_classes=2).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in whole_state_dict(split).items())


def test_init_draws_from_torchvisions_distributions() -> None:
    """Oracle: standard deviations of kaiming fan-out and of a linear layer's uniform, by hand."""
    split = build("resnet18", cut=3, num_outputs=1000, init=lambda part: torch.manual_seed(1))
    state = whole_state_dict(split)
    assert state["conv1.weight"].std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    assert state["layer4.1.conv2.weight"].std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert state["fc.weight"].std().item() == pytest.approx(512**-0.5 / 3**0.5, rel=0.01)
    assert state["layer4.1.bn2.weight"].eq(1).all() and state["layer4.1.bn2.bias"].eq(0).all()


def test_a_layer_cut_inside_is_in_both_parts_under_torchvisions_names() -> None:
    """Oracle: the names, written out."""
    split = build("resnet18", cut="layer2.0", num_outputs=2)
    bottom, top = split.bottom.state_dict(), split.top.state_dict()
    assert "layer2.0.conv1.weight" in bottom and "layer2.0.downsample.0.weight" in bottom
    assert "layer2.1.conv1.weight" in top
    assert not any(key.startswith("layer2.1") for key in bottom)
    assert not any(key.startswith("layer2.0") for key in top)


def test_a_cut_after_a_layers_last_block_is_the_cut_after_the_layer() -> None:
    """Oracle: the cut named after the layer."""
    inside, after = (build("resnet18", cut=cut, num_outputs=2) for cut in ("layer2.1", "layer2"))
    assert [name for name, _ in inside.top.named_children()] == [
        name for name, _ in after.top.named_children()
    ]


def test_the_parts_are_named_after_resnets_children() -> None:
    """Oracle: the study's numbering, written out."""
    split = build("resnet18", cut=4, num_outputs=2, labels="home")
    assert [name for name, _ in split.bottom.named_children()] == [
        "conv1",
        "bn1",
        "relu",
        "maxpool",
        "layer1",
    ]
    assert [name for name, _ in split.top.named_children()] == ["layer2", "layer3", "layer4", "avgpool"]
    assert split.head is not None
    assert [name for name, _ in split.head.named_children()] == ["flatten", "fc"]


def test_labels_at_home_after_the_last_block_are_refused_with_the_remedy() -> None:
    """Oracle: the message, written out."""
    message = (
        "^cut must leave the server a layer with weights of resnet18, got 8 with labels at home; "
        "cut earlier or use --labels shared$"
    )
    with pytest.raises(ValueError, match=message):
        build("resnet18", cut=8, num_outputs=2, labels="home")
    assert build("resnet18", cut=6, num_outputs=2, labels="home").head is not None


def test_a_width_is_refused_where_it_cannot_be_chosen() -> None:
    """Oracle: the message, written out."""
    with pytest.raises(ValueError, match=r"^width cannot be chosen for resnet18, got 8; leave it out$"):
        build("resnet18", cut=3, num_outputs=2, width=8)


def test_the_uncut_net_computes_what_torchvisions_does(batch: Tensor) -> None:
    """Oracle: torchvision's net: a ReLU in place or not gives the same bits."""
    ours, theirs = build_resnet("resnet18", 2), resnet18(weights=None, num_classes=2)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(batch), theirs(batch))
