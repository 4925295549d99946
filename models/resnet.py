"""torchvision's residual nets, cut after any child or after any block inside a layer.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385.

Cut N keeps resnet's children 0..N at the client: 0 conv1, 1 bn1, 2 relu, 3 maxpool, 4..7 layer1..layer4,
8 avgpool.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND); K classes (logits_NK).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torchvision  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn

from suture.models.split import BottomOutput, CutPoint, SplitModel

Blocks = list[tuple[str, nn.Module]]

# A residual block is the smallest piece: its shortcut cannot be cut.
LAYERS = ("layer1", "layer2", "layer3", "layer4")


class ResnetBottom(nn.Sequential):
    """The client's first blocks: x_NCHW to ``BottomOutput(h_ND, ())``."""

    def forward(self, x_NCHW: Tensor) -> BottomOutput:
        return BottomOutput(_run(self, x_NCHW))


class ResnetHead(nn.Sequential):
    """Flatten and fc at the client, where labels stay at home; a residual net has no skips to take."""

    def forward(self, top_output: Tensor, skips: tuple[Tensor, ...] = ()) -> Tensor:
        return _run(self, top_output)


def build_resnet(name: str, num_outputs: int) -> nn.Module:
    """Builds torchvision's uncut net ``name`` with random weights and no in-place activation.

    Three input channels always, as in the paper: grey images are repeated by the data source.
    """
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_outputs)
    for module in net.modules():
        if hasattr(module, "inplace"):
            # At cut 1 the top's in-place ReLU would overwrite the smashed data that an attack observed.
            setattr(module, "inplace", False)  # noqa: B010  (nn.Module types its attributes as tensors)
    return net


def resnet_cut_points(net: nn.Module) -> list[CutPoint]:
    """All cut points in the order of the forward pass: resnet's children and the blocks inside its layers."""
    points = []
    for index, (name, child) in enumerate(_body(net)):
        if name in LAYERS:
            points += [CutPoint(None, f"{name}.{block}") for block, _ in child.named_children()]
        points.append(CutPoint(index, name))
    return points


def cut_resnet(net: nn.Module, point: CutPoint, labels: str) -> SplitModel:
    """Cuts a net of ``build_resnet`` in parts that share its modules and their parameter names.

    Args:
        net: the uncut net; not copied and not changed.
        point: one of ``resnet_cut_points(net)``.
        labels: "shared": flatten and fc close the top. "home": they are the head. After avgpool such a top
            is empty, which ``registry.build`` refuses.
    """
    kept, rest = _split_blocks(_body(net), point.name)
    last: Blocks = [("flatten", nn.Flatten(1)), ("fc", net.get_submodule("fc"))]
    if labels == "home":
        return SplitModel(_chain(kept, ResnetBottom), _chain(rest), _chain(last, ResnetHead))
    return SplitModel(_chain(kept, ResnetBottom), _chain(rest + last))


def initialise_resnet(modules: Iterable[nn.Module]) -> None:
    """Draws fresh weights as torchvision does, module by module, from torch's default generator."""
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()  # batch norm: weight 1, bias 0, and the running statistics too


def _body(net: nn.Module) -> Blocks:
    """The children before flatten and fc."""
    return [(name, child) for name, child in net.named_children() if name != "fc"]


def _split_blocks(blocks: Blocks, name: str) -> tuple[Blocks, Blocks]:
    """The blocks up to and with ``name``, and those after; a layer cut inside is in both, by name."""
    outer, _, inner = name.partition(".")
    position = [block_name for block_name, _ in blocks].index(outer)
    if not inner:
        return blocks[: position + 1], blocks[position + 1 :]
    first, second = _split_blocks(list(blocks[position][1].named_children()), inner)
    kept = [*blocks[:position], (outer, _chain(first))]
    # Nothing is left of a layer that is cut after its last block: no empty namesake in the top.
    rest: Blocks = [(outer, _chain(second))] if second else []
    return kept, rest + blocks[position + 1 :]


def _run(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _chain(blocks: Blocks, kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    return kind(OrderedDict(blocks))
