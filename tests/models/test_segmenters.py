"""Segmentation nets of others, cut in three, against themselves as their authors wrote them.

The oracle of most tests is the net untouched, with the same weights and the default generator in the same state: a few
steps of training must give the same bits.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torchvision
from monai.networks.nets import AttentionUnet, BasicUNet, DenseNet121, SegResNet, UNet
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCN, FCNHead

from suture.models.split import SplitModel
from suture.models.traced import TracedNet
from suture.models.tracing import the_one
from suture.models.weights import load_weights, whole_state_dict
from suture.runtime.training.metrics import DiceLoss

STEPS = 3


def basic_unet(in_channels: int = 1, num_outputs: int = 1) -> nn.Module:
    return BasicUNet(2, in_channels, num_outputs, features=(4, 4, 8, 8, 16, 4), dropout=0.1)


def published(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=1)


def small_fcn() -> nn.Module:
    """torchvision's FCN, as `fcn_resnet50`, on a smaller net."""
    resnet = torchvision.models.resnet18()
    backbone = IntermediateLayerGetter(resnet, {"layer4": "out"})
    return FCN(backbone, FCNHead(512, 1))


# By net: how to build it, channels and pixels a side.
SEGMENTERS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "BasicUNet": (basic_unet, 1, 40),  # 40 is halved to 5: what the decoder gives is padded
    "BasicUNet RGB": (lambda: basic_unet(3), 3, 32),
    "UNet": (lambda: UNet(2, 1, 1, (4, 8, 16), (2, 2), num_res_units=2, dropout=0.1), 1, 32),
    "AttentionUnet": (lambda: AttentionUnet(2, 1, 1, (4, 8, 16), (2, 2)), 1, 32),
    "SegResNet": (lambda: SegResNet(2, 8, 3, 1, dropout_prob=0.1), 3, 32),
    "DeepLabV3": (lambda: published("deeplabv3_mobilenet_v3_large"), 3, 64),
    "LR-ASPP": (lambda: published("lraspp_mobilenet_v3_large"), 3, 64),
    "FCN": (small_fcn, 3, 48),
}


def digest(tensor: Tensor) -> str:
    """Of the bits; the tensors themselves would fill the memory."""
    return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()


class Trial:
    """One net as written and its traced self, which start from the same weights."""

    def __init__(self, build: Callable[[], nn.Module], channels: int, px: int) -> None:
        torch.manual_seed(1)
        self.oracle = build()
        self.net = TracedNet(copy.deepcopy(self.oracle), "it")
        self._start = copy.deepcopy(self.oracle.state_dict())
        self._images = torch.rand(STEPS, 2, channels, px, px)
        self._masks = torch.rand(STEPS, 2, 1, px, px).round()
        self.expected = self.trained(self.oracle, self.oracle)

    def trained(self, net: nn.Module, owner: nn.Module) -> dict[str, str]:
        """Logits and gradients of every step, the weights and buffers at the end, and what is then predicted, as digests."""
        owner.load_state_dict(self._start)
        optimizer = torch.optim.Adam(owner.parameters(), lr=1e-2)
        found = {}
        torch.manual_seed(2)
        net.train()
        for step, (images, masks) in enumerate(zip(self._images, self._masks, strict=True)):
            optimizer.zero_grad()
            logits = the_one(net(images))
            F.binary_cross_entropy_with_logits(logits, masks).backward()
            found[f"logits of step {step}"] = digest(logits)
            for name, parameter in owner.named_parameters():
                assert parameter.grad is not None, name
                found[f"gradient of {name} in step {step}"] = digest(parameter.grad)
            optimizer.step()
        found |= {f"trained {name}": digest(value) for name, value in owner.state_dict().items()}
        with torch.no_grad():
            return found | {"evaluation": digest(the_one(net.eval()(self._images[0])))}

    def differences(self, split: SplitModel) -> list[str]:
        """What does not equal the oracle bit for bit."""
        found = self.trained(split.joined(), self.net)
        assert found.keys() == self.expected.keys()
        return [name for name, value in found.items() if value != self.expected[name]]


@cache
def trial(name: str) -> Trial:
    return Trial(*SEGMENTERS[name])


def three(name: str) -> list[int]:
    last = len(trial(name).net.points) - 1
    return [0, last // 2, last]


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("name", SEGMENTERS)
def test_three_parts_equal_the_net_as_written_bit_for_bit(name: str, place: int) -> None:
    """Oracle: the net as written, over three steps of Adam; dropout draws from the same state of the generator."""
    net = trial(name).net
    assert net.task == "segmentation" and net.in_channels == SEGMENTERS[name][1]
    assert trial(name).differences(net.cut(net.points[three(name)[place]], "home")) == []


def test_so_it_is_at_every_cut() -> None:
    """Oracle: as above."""
    net = trial("UNet").net
    wrong = {point.name: trial("UNet").differences(net.cut(point, "home")) for point in net.points}
    assert len(wrong) > 7 and not any(wrong.values()), wrong


@pytest.mark.parametrize("name", SEGMENTERS)
def test_one_tensor_goes_up_and_one_comes_down(name: str) -> None:
    """Oracle: `torch.autograd`: behind the server's part, nothing but its one output reaches what the server holds."""
    net, (_, channels, px) = trial(name).net, SEGMENTERS[name]
    for place in three(name):
        split = net.cut(net.points[place], "home")
        assert split.head is not None
        smashed, skips = split.bottom(torch.rand(2, channels, px, px))
        assert isinstance(smashed, Tensor) and all(isinstance(skip, Tensor) for skip in skips)
        output = split.top(smashed.detach())
        assert isinstance(output, Tensor) and output.shape[2] * output.shape[3] <= smashed[0, 0].numel()
        assert split.head(output, skips).shape == (2, 1, px, px)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_parts_share_out_the_nets_names(name: str) -> None:
    """Oracle: the state dict of the net as written; each part has weights."""
    net, oracle = trial(name).net, trial(name).oracle
    for place in three(name):
        split = net.cut(net.points[place], "home")
        assert whole_state_dict(split).keys() == oracle.state_dict().keys()
        assert load_weights(split, oracle.state_dict())
        assert all(next(part.parameters(), None) is not None for part in split.parts().values())


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_later_the_cut_the_less_the_server_has(name: str) -> None:
    """Oracle: the definition: each server's part holds all of the next one's."""
    net = trial(name).net
    tops = [
        set(net.cut(point, "home").top.state_dict()) for point in net.points[:: len(net.points) // 6 or 1]
    ]
    assert all(later <= earlier for earlier, later in itertools.pairwise(tops))


def test_a_basic_unet_is_cut_as_the_unet_is_by_hand() -> None:
    """Oracle: cut 1 of the hand-written U-Net: pooled block 1 goes up, decoder block 2 comes down, one skip stays."""
    net = trial("BasicUNet").net
    point = next(point for point in net.points if "down_1.max_pooling" in point.aliases)
    assert point.name == "down_1.max_pooling:upcat_2"
    split = net.cut(point, "home")
    names = [{key.partition(".")[0] for key in part.state_dict()} for part in split.parts().values()]
    assert names[0] == {"conv_0"} and names[2] == {"upcat_1", "final_conv"}
    assert names[1] == {"down_1", "down_2", "down_3", "down_4", "upcat_4", "upcat_3", "upcat_2"}
    smashed, skips = split.bottom(torch.rand(2, 1, 32, 32))
    assert [skip.shape for skip in skips] == [(2, 4, 32, 32)]
    assert torch.equal(smashed, F.max_pool2d(skips[0], 2))


def test_the_size_of_the_masks_is_read_from_the_image_which_stays_at_home() -> None:
    """Oracle: by hand: FCN has no skips but that it scales its logits to the image's size."""
    net = trial("FCN").net
    images = torch.rand(2, 3, 48, 48)
    _, skips = net.cut(net.points[0], "home").bottom(images)
    assert len(skips) == 1 and skips[0] is images


class Branching(nn.Module):
    """Adds a skip, and asks for its kind and size before: torch.fx cannot follow."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.conv, self.relu, self.in_place = nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), in_place

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.in_place:
            x = self.relu(x)
        if not isinstance(skip, Tensor):
            return x
        y = self.conv(x)
        z = self.relu(y)  # which overwrites y
        return y + z + skip[:, :, : x.shape[2]] if x.shape[2] <= skip.shape[2] else z


class Own(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.down, self.up = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(4, 4, 2, 2),
            nn.Upsample(None, 2),
        )
        self.joined, self.last = middle, nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x)
        return {"logits": self.last(self.joined(self.up(self.down(x)), x))}


def test_a_module_that_branches_is_one_step_and_keeps_what_it_does_in_place() -> None:
    """Oracle: the net as written, whose branching module reads what it has overwritten; and by hand, where it is cut."""
    own = Trial(lambda: Own(Branching()), 1, 8)
    assert [point.name for point in own.net.points] == ["first:joined"]
    assert own.differences(own.net.cut(own.net.points[0], "home")) == []


class Tangled(nn.Module):
    """Two branches all the way: between any two places a second value is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1)
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat((self.left(x), self.right(x)), 1))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Own(Branching())
        self.forward_net = Branching()

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_net(x.expand(-1, 4, -1, -1), x).mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Own(Branching(in_place=True)), "^model it works in place: Branching overwrites what it is given"),
        (Tangled(), "^model it cannot be cut in three: no part of it takes one tensor, gives one, and leaves weights "),
        (
            Wrapped(),
            r"^model it has weights in one place only: .*; torch.fx could not look into Branching \(forward_net: .*",
        ),
    ],
    ids=["in place", "tangled", "wrapped"],
)  # fmt: skip
def test_what_cannot_be_cut_in_three_is_refused(net: nn.Module, words: str) -> None:
    """Oracle: the messages, which name the module and the remedy."""
    with pytest.raises(ValueError, match=words):
        TracedNet(net, "it")


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "RGB"])
def test_monais_densenet_split_equals_itself(channels: int) -> None:
    """Oracle: the net as written; a training step at the first, the middle and the last cut."""
    torch.manual_seed(1)
    oracle = DenseNet121(2, channels, 2, dropout_prob=0.1)
    net, start = TracedNet(copy.deepcopy(oracle), "it"), copy.deepcopy(oracle.state_dict())
    assert (net.task, net.in_channels) == ("classification", channels)
    images, labels = torch.rand(2, channels, 64, 64), torch.tensor([0, 1])

    def trained(run: nn.Module, owner: nn.Module) -> list[Tensor]:
        owner.load_state_dict(start)
        owner.zero_grad()
        torch.manual_seed(2)
        logits = run.train()(images)
        F.cross_entropy(logits, labels).backward()
        gradients = [parameter.grad for _, parameter in sorted(owner.named_parameters())]
        return [logits, *gradients, *(value.clone() for _, value in sorted(owner.state_dict().items()))]

    expected = trained(oracle, oracle)
    for point, labels_at in ((0, "shared"), (len(net.points) // 2, "home"), (-1, "shared")):
        split = net.cut(net.points[point], labels_at)
        found = trained(split.joined(), net)
        assert all(torch.equal(value, wanted) for value, wanted in zip(found, expected, strict=True))


def test_behind_a_head_of_one_convolution_the_server_sees_the_mask() -> None:
    """Oracle: the mask itself: the sign of the gradient that goes up, pixel by pixel; docs/nets.md warns of it."""
    net = trial("BasicUNet").net
    split = net.cut(net.points[0], "home")
    assert split.head is not None and list(split.head.state_dict()) == [
        "final_conv.weight",
        "final_conv.bias",
    ]
    images, masks = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32).round()
    output = split.top(split.bottom(images).smashed).detach().requires_grad_()
    DiceLoss()(split.head(output), masks).backward()
    assert output.grad is not None
    up_N1HW = (output.grad * split.head.state_dict()["final_conv.weight"]).sum(1, keepdim=True)
    assert torch.equal(up_N1HW < 0, masks.bool())
