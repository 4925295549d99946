"""What crosses the cut, by shape: the parts run on meta tensors, so nothing is computed or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from suture.models.split import SplitModel


class PartShapes(NamedTuple):
    """Shapes without the batch dimension; ``logits`` equals ``top_output`` where there is no head."""

    smashed: tuple[int, ...]
    top_output: tuple[int, ...]
    logits: tuple[int, ...]


def smashed_shape(split: SplitModel, image_size: int) -> tuple[int, ...]:
    """The shape of one image's smashed data at ``image_size`` pixels a side, as (channels, height, width)."""
    return part_shapes(split, image_size).smashed


def top_output_shape(split: SplitModel, image_size: int) -> tuple[int, ...]:
    """The shape of the top's output for one image: (K,) with labels shared, what the head takes otherwise."""
    return part_shapes(split, image_size).top_output


def part_shapes(
    split: SplitModel,
    image_size: int,
    around_part: Callable[[str], AbstractContextManager[Any]] = lambda part: nullcontext(),
) -> PartShapes:
    """Sends one image of shapes only through the parts, in eval mode and without gradients.

    Weights, buffers and every module's train mode are as before when it returns, also after an error.

    Args:
        split: the parts, on any device.
        image_size: pixels a side.
        around_part: gives the context in which the named part's forward runs, such as a counter of FLOPs.
    """
    x_NCHW = torch.zeros(1, input_channels(split), image_size, image_size, device="meta")
    with around_part("bottom"):
        smashed, skips = forward_on_meta(split.bottom, x_NCHW)
    with around_part("top"):
        top_output = logits = forward_on_meta(split.top, smashed)
    if split.head is not None:
        with around_part("head"):
            logits = forward_on_meta(split.head, top_output, skips)
    return PartShapes(*(tuple(out.shape[1:]) for out in (smashed, top_output, logits)))


def input_channels(split: SplitModel) -> int:
    """The image channels that the bottom says it takes, or else its first convolution.

    Raises:
        ValueError: the bottom says nothing and has no convolution.
    """
    if (declared := getattr(split.bottom, "in_channels", None)) is not None:
        return int(declared)
    for module in split.bottom.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ValueError("the bottom must hold a Conv2d to tell its input channels, got none; cut the net later")


def forward_on_meta(module: nn.Module, *inputs: Any) -> Any:
    """Runs ``module`` in eval mode on shapes only, whatever device it is on, and changes nothing of it."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    weights = {name: torch.empty_like(tensor, device="meta") for name, tensor in own.items()}
    with _in_eval_mode(module), torch.no_grad():
        return functional_call(module, weights, inputs)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluates ``module``, then gives each submodule its own mode back: some may be frozen in eval."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
