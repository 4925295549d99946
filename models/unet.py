"""U-Net, cut so that the client keeps both ends and every skip between them.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015,
arXiv:1505.04597.

Note:
    As in the usual re-implementations, and unlike the paper: convolutions are padded, so that masks have the
    image's size; batch norm follows each 3x3 convolution; the output is one logit a pixel and class.

Cut N keeps encoder blocks 1..N, each with the pooling after it (bottom), and decoder blocks N..1 with the
output convolution (head) at the client; the top is what lies between.

Shape legend: N batch; C, H, W image or feature map; K outputs a pixel (logits_NKHW).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suture.models.split import BottomOutput, CutPoint, SplitModel

DEPTH = 4
DEFAULT_WIDTH = 64


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and ReLU: (N, C, H, W) to (N, C', H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            OrderedDict(
                # No bias: the batch norm behind each convolution has one.
                conv1=nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                bn1=nn.BatchNorm2d(out_channels),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                bn2=nn.BatchNorm2d(out_channels),
                relu2=nn.ReLU(),
            )
        )


class EncoderBlock(DoubleConv):
    """A DoubleConv whose output is kept as a skip and then pooled to half its height and width."""


class DecoderBlock(nn.Module):
    """Up-convolution, concatenation with the skip, DoubleConv: (N, 2C, H, W) to (N, C, 2H, 2W)."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * out_channels, out_channels, 2, stride=2)
        self.convs = DoubleConv(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.convs(torch.cat((skip, self.up(x)), dim=1))
        return out


class Unet(nn.Module):
    """The uncut net, or its middle as a top: x_NCHW to logits_NKHW; its skips open and close inside it."""

    def __init__(self, blocks: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        for name, block in blocks:
            self.add_module(name, block)

    def forward(self, x: Tensor) -> Tensor:
        return _run(self.children(), x, [])


class UnetBottom(Unet):
    """Encoder blocks 1..N: x_NCHW to the pooled output of block N, and the N skips, outermost first."""

    def forward(self, x: Tensor) -> BottomOutput:  # type: ignore[override]
        skips: list[Tensor] = []
        smashed = _run(self.children(), x, skips)
        return BottomOutput(smashed, tuple(skips))


class UnetHead(Unet):
    """Decoder blocks N..1 and the output convolution: the top's output and the N skips to logits_NKHW."""

    def forward(self, x: Tensor, skips: tuple[Tensor, ...]) -> Tensor:  # type: ignore[override]
        return _run(self.children(), x, list(skips))


def build_unet(num_outputs: int = 1, width: int | None = None, in_channels: int = 1) -> nn.Module:
    """Builds the uncut net with random weights.

    Args:
        num_outputs: channels of the output; 1 is one logit a pixel.
        width: channels of the first block, 64 in the paper; the bottleneck has 16 times as many.
        in_channels: channels of the image.
    """
    width = DEFAULT_WIDTH if width is None else width
    channels = [in_channels] + [width << level for level in range(DEPTH + 1)]
    blocks: list[tuple[str, nn.Module]] = [
        (f"enc{level}", EncoderBlock(channels[level - 1], channels[level])) for level in range(1, DEPTH + 1)
    ]
    blocks.append(("bottleneck", DoubleConv(channels[DEPTH], channels[DEPTH + 1])))
    blocks += [(f"dec{level}", DecoderBlock(channels[level])) for level in range(DEPTH, 0, -1)]
    blocks.append(("out", nn.Conv2d(width, num_outputs, 1)))
    net = Unet(blocks)
    initialise_unet(net.modules())
    return net


def unet_cut_points(net: nn.Module) -> list[CutPoint]:
    """The cut points 1..4, after each encoder block."""
    return [CutPoint(level, f"enc{level}") for level in range(1, DEPTH + 1)]


def cut_unet(net: nn.Module, point: CutPoint, labels: str) -> SplitModel:
    """Cuts a net of ``build_unet`` in parts that share its modules and their parameter names.

    Args:
        net: the uncut net; not copied and not changed.
        point: one of ``unet_cut_points(net)``.
        labels: only "home" makes sense and only it is let in by ``registry.build``: the head needs the skips.
    """
    blocks = list(net.named_children())
    level = [name for name, _ in blocks].index(point.name) + 1
    head_length = level + 1  # as many decoder blocks, and the output convolution
    return SplitModel(
        bottom=UnetBottom(blocks[:level]),
        top=Unet(blocks[level:-head_length]),
        head=UnetHead(blocks[-head_length:]),
    )


def initialise_unet(modules: Iterable[nn.Module]) -> None:
    """Draws fresh weights as the paper does, module by module, from torch's default generator.

    Weights are Gaussian with variance 2 over the number of incoming nodes; biases are 0.
    """
    for module in modules:
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # Each output pixel of a 2x2 up-convolution with stride 2 sees one input pixel, not four.
            taps = 1 if isinstance(module, nn.ConvTranspose2d) else math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_channels * taps)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _run(blocks: Iterable[nn.Module], x: Tensor, skips: list[Tensor]) -> Tensor:
    """Runs blocks in order; encoder blocks push onto ``skips``, decoder blocks pop from it."""
    for block in blocks:
        if isinstance(block, EncoderBlock):
            skips.append(block(x))
            x = F.max_pool2d(skips[-1], 2)
        elif isinstance(block, DecoderBlock):
            x = block(x, skips.pop())
        else:
            x = block(x)
    return x
