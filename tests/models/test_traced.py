"""Nets of others, cut wherever one tensor crosses, against themselves uncut.

The oracle of most tests is the net as its authors wrote it, in-place activations and all, with the same weights and
the default generator in the same state; training once forward and backward must give the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from suture.models.split import SplitModel
from suture.models.traced import TracedNet
from suture.models.weights import load_weights, whole_state_dict


def published(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=3)


def tiny_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32,
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        dropout=0.1,
        num_classes=3,
    )


def tiny_swin() -> nn.Module:
    return torchvision.models.SwinTransformer(
        [4, 4], 12, [1, 2], [1, 2], [4, 4], stochastic_depth_prob=0.5, dropout=0.1, num_classes=3
    )


def tiny_densenet() -> nn.Module:
    return torchvision.models.DenseNet(8, (2, 2), 16, drop_rate=0.2, num_classes=3)


def tiny_convnext() -> nn.Module:
    stages = [
        torchvision.models.convnext.CNBlockConfig(*sizes)
        for sizes in ((16, 32, 2), (32, 64, 2), (64, None, 1))
    ]
    return torchvision.models.ConvNeXt(stages, stochastic_depth_prob=0.5, num_classes=3)


def tiny_regnet() -> nn.Module:
    params = torchvision.models.regnet.BlockParams.from_init_params(
        depth=4, w_0=16, w_a=16.0, w_m=2.0, group_width=8, se_ratio=0.25
    )
    return torchvision.models.RegNet(params, num_classes=3, stem_width=16)


def tiny_vgg() -> nn.Module:
    features = torchvision.models.vgg.make_layers([8, "M", 16, "M"], batch_norm=True)
    with torch.device("meta"):  # 100 million weights that are replaced at once
        net = torchvision.models.VGG(features)
    net.classifier = nn.Sequential(
        nn.Linear(16 * 49, 16),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(16, 16),
        nn.ReLU(True),
        nn.Linear(16, 3),
    )
    return net


# By architecture: how to build it, and pixels a side.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: published("resnet18"), 32),
    "densenet": (tiny_densenet, 32),
    "mobilenet": (lambda: published("mobilenet_v3_small"), 32),
    "efficientnet": (lambda: published("efficientnet_b0"), 32),
    "convnext": (tiny_convnext, 32),
    "vgg": (tiny_vgg, 32),
    "vit": (tiny_vit, 32),
    "swin": (tiny_swin, 32),
    "regnet": (tiny_regnet, 32),
    "shufflenet": (lambda: published("shufflenet_v2_x0_5"), 32),
    "mnasnet": (lambda: published("mnasnet0_5"), 32),
    "squeezenet": (lambda: published("squeezenet1_1"), 32),
}
AT_EVERY_POINT = ["densenet", "vgg", "vit", "swin"]


class Trial:
    """One net as written and its traced self, which start from the same weights."""

    def __init__(self, build: Callable[[], nn.Module], px: int) -> None:
        torch.manual_seed(1)
        self.oracle = build()
        self.net = TracedNet(copy.deepcopy(self.oracle), "it")
        self._start = copy.deepcopy(self.oracle.state_dict())
        self._images = torch.rand(2, 3, px, px)
        self.expected = self.step(self.oracle)
        self.predicted = self.evaluated(self.oracle)

    def step(self, net: nn.Module) -> dict[str, Tensor]:
        """Logits, gradients and buffers of one training step from the start."""
        owner = self.net if net is not self.oracle else self.oracle
        owner.load_state_dict(self._start)
        owner.zero_grad(set_to_none=True)
        torch.manual_seed(2)
        logits = net.train()(self._images)
        F.cross_entropy(logits, torch.tensor([0, 2])).backward()
        found = {"logits": logits.detach()}
        found |= {f"gradient of {name}": p.grad for name, p in owner.named_parameters() if p.grad is not None}
        state = self._start.keys() & dict(owner.named_buffers()).keys()
        found |= {f"buffer {name}": owner.get_buffer(name).clone() for name in state}
        return found

    @torch.no_grad()
    def evaluated(self, net: nn.Module) -> Tensor:
        return net.eval()(self._images)

    def differences(self, split: SplitModel) -> list[str]:
        """What does not equal the oracle bit for bit after a training step, and in evaluation."""
        joined = split.joined()
        found = self.step(joined)
        wrong = [name for name in self.expected.keys() | found.keys() if not self._equal(name, found)]
        return wrong + ["evaluation"] * (not torch.equal(self.evaluated(joined), self.predicted))

    def _equal(self, name: str, found: dict[str, Tensor]) -> bool:
        return name in found and name in self.expected and torch.equal(found[name], self.expected[name])


@cache
def trial(name: str) -> Trial:
    return Trial(*ARCHITECTURES[name])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_split_equals_unsplit_bit_for_bit(name: str) -> None:
    """Oracle: the net as written. At the first, middle and last point, or at every one of small nets."""
    points = trial(name).net.points
    chosen = points if name in AT_EVERY_POINT else [points[0], points[len(points) // 2], points[-1]]
    wrong = {point.name: trial(name).differences(trial(name).net.cut(point, "shared")) for point in chosen}
    assert not {cut: names for cut, names in wrong.items() if names}


@pytest.mark.parametrize("name", ["mobilenet", "vit", "swin"])
def test_labels_at_home_make_the_last_layers_the_head(name: str) -> None:
    """Oracle: the net as written; the head holds the classifier's two tensors alone."""
    net = trial(name).net
    split = net.cut(net.points[1], "home")
    assert split.head is not None and len(split.head.state_dict()) == 2
    assert trial(name).differences(split) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("labels", ["shared", "home"])
def test_the_parts_share_out_the_nets_names(name: str, labels: str) -> None:
    """Oracle: the state dict of the net as written; a name in two parts is refused by `whole_state_dict`."""
    net, oracle = trial(name).net, trial(name).oracle
    for point in (net.points[0], net.points[len(net.points) // 2]):
        split = net.cut(point, labels)
        whole = whole_state_dict(split)
        assert whole.keys() == oracle.state_dict().keys()
        load_weights(split, oracle.state_dict())
        assert all(next(part.parameters(), None) is not None for part in split.parts().values())


def test_points_are_named_by_the_modules_that_end_there() -> None:
    """Oracle: torchvision's names, read in its source; blocks inside a block with a shortcut have no point."""
    names = [point.name for point in trial("densenet").net.points]
    assert names[:6] == [
        "features.conv0", "features.norm0", "features.relu0", "features.pool0", "features.denseblock1",
        "features.transition1.norm",
    ]  # fmt: skip
    resnet = trial("resnet").net.points
    assert [point.name for point in resnet][:8] == [
        "conv1", "bn1", "relu", "maxpool", "layer1.0.add", "layer1.0", "layer1.1.add_1", "layer1",
    ]  # fmt: skip
    assert [point.index for point in resnet] == list(range(len(resnet)))
    assert "layer1.1" in resnet[7].aliases
    assert (
        trial("vit").net.points[0].name == "reshape"
    )  # conv_proj's batch size is read before and used after


class Leaky(nn.Module):
    """Two stems, joined; relu in place on what is used again; dropout as a function; a constant table."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.table = nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("scale", torch.full((8, 1, 1), 0.5), persistent=False)
        self.conv = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.table.exp() * self.scale  # depends on no image
        joined = torch.cat((self.left(x), self.right(x)), 1)
        normed = self.norm(joined)
        active = self.relu(normed)
        mixed = F.relu(self.conv(F.dropout(active, 0.5, self.training)), True)
        crossed = mixed + normed  # which the in-place relu has overwritten
        pooled = (crossed * weight).mean((2, 3)) + torch.arange(8.0)
        return self.fc(pooled)


def test_a_users_net_with_a_skip_is_cut_beside_the_skip_only() -> None:
    """Oracle: by hand: one tensor crosses after cat, norm, relu (twice used), and from the sum on."""
    own = Trial(Leaky, 12)
    assert [point.name for point in own.net.points] == [
        "cat", "norm", "relu", "add", "mul_1", "mean", "add_1"
    ]  # fmt: skip
    for labels in ("shared", "home"):
        wrong = {point.name: own.differences(own.net.cut(point, labels)) for point in own.net.points[:-1]}
        assert not any(wrong.values()), wrong
    assert "scale" not in own.net.state_dict() and not any("constant" in key for key in own.net.state_dict())


def test_a_table_of_weights_is_trained_where_it_is_used() -> None:
    """Oracle: the parts' parameter names; computed from weights alone, it crosses no cut."""
    net = Trial(Leaky, 12).net
    split = net.cut(net.points[0], "shared")
    assert "table" in split.top.state_dict() and "table" not in split.bottom.state_dict()


class Shared(nn.Module):
    """One convolution at both ends and another between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.between = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.between(self.twice(self.first(x))))
        return self.fc(x.mean((2, 3)))


def test_there_is_no_cut_between_two_uses_of_a_weight() -> None:
    """Oracle: by hand: only before the first use and after the last."""
    assert [point.name for point in TracedNet(Shared(), "it").points] == ["first", "twice", "mean"]


class Branching(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](x) if x.sum() > 0 else self[0](-x)


class TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.left(x) + self.right(x)).mean((2, 3))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mul_(2).mean((2, 3))


class Noisy(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + torch.randn(3, 1, 1)).mean((2, 3))


class Pair(InPlace):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.conv(x), x


class Masked(InPlace):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return (self.conv(x) * mask).mean((2, 3))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Branching(nn.Conv2d(3, 3, 1)), "^model it cannot be traced, .*control flow.*torch.fx.wrap$"),
        (
            TwoWays(),
            "^model it has no place where a single tensor crosses .* after left, the narrowest, there cross left, x; ",
        ),
        (InPlace(), r"^model it works in place: mul_ \(mul_\); write mul$"),
        (Noisy(), "^model it draws random numbers that torch.fx does not see; "),
        (Pair(), "^model it: forward must return one tensor, it returns a tuple; "),
        (Masked(), "^model it: forward must take the images alone, it also takes mask$"),
        (nn.ReLU(), "^model it has weights in one place only: there is nothing to cut$"),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1)), "^model it has weights in one place only"),
        (
            nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1)),
            "^model it runs on RGB and on grey images of no size up to 1024 px .*channel.*; it must take "
            "\\(N, 3, H, W\\) or \\(N, 1, H, W\\)$",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_cut_is_refused(net: nn.Module, words: str) -> None:
    """Oracle: the messages: what torch.fx said or what crosses, and what to do."""
    with pytest.raises(ValueError, match=words):
        TracedNet(net, "it")


def test_a_chunk_is_no_tensor_and_a_size_is_none() -> None:
    """Oracle: by hand: the tuple of torch.chunk crosses alone, but only a tensor can go over the wire."""

    class Chunked(Shared):
        def forward(self, x: Tensor) -> Tensor:
            left, right = self.first(x).chunk(2, 1)
            return self.fc(torch.cat((right, left), 1).mean((2, 3)))

    assert [point.name for point in TracedNet(Chunked(), "it").points] == ["first", "cat", "mean"]


def test_windows_in_the_batch_dimension_are_no_cut() -> None:
    """Oracle: by hand: a server that is sent more rows than labels cannot tell whose they are."""

    class Windowed(Shared):
        def forward(self, x: Tensor) -> Tensor:
            rows = self.between(self.first(x)).reshape(-1, 4)
            return self.fc(rows.unflatten(0, (-1, 16)).mean(1))

    net = TracedNet(Windowed().eval(), "it")
    assert "reshape" not in [point.name for point in net.points]
