"""The nets by name: what each is, how to build it, cut it and draw its initial weights part by part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from suture.models.entry import ModelEntry
from suture.models.foreign import FORMS, foreign_entry, is_foreign
from suture.models.plugins import nearest
from suture.models.resnet import build_resnet, cut_resnet, initialise_resnet, resnet_cut_points
from suture.models.shapes import smashed_shape, top_output_shape
from suture.models.split import CutPoint, SplitModel, resolve_cut
from suture.models.unet import DEFAULT_WIDTH, build_unet, cut_unet, initialise_unet, unet_cut_points
from suture.models.weights import load_weights, whole_state_dict

__all__ = [
    "FORMS",
    "MODELS",
    "ModelEntry",
    "build",
    "cut_place",
    "cut_points",
    "load_weights",
    "model_entry",
    "num_cuts",
    "smashed_shape",
    "top_output_shape",
    "validate_image_size",
    "whole_state_dict",
]


def _resnet_entry(name: str, description: str) -> ModelEntry:
    return ModelEntry(
        name=name,
        description=description,
        paper="He, Zhang, Ren, Sun, CVPR 2016, arXiv:1512.03385",
        task="classification",
        labels=("shared", "home"),
        normalisation="imagenet",
        in_channels=3,
        num_outputs=2,
        width=None,
        min_image_size=8,  # below, every feature map after maxpool is one pixel
        image_size_multiple=1,
        stride=32,
        build_net=lambda num_outputs, width: build_resnet(name, num_outputs),
        points=resnet_cut_points,
        cut_net=cut_resnet,
        initialise=lambda part, num_outputs: initialise_resnet(part.modules()),
    )


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        _resnet_entry("resnet18", "residual net, 18 layers, the smallest: quick runs"),
        _resnet_entry("resnet34", "residual net, 34 layers: the study's classifier"),
        _resnet_entry("resnet50", "residual net, 50 layers, bottleneck blocks: wide smashed data"),
        ModelEntry(
            name="unet",
            description="encoder and decoder with skips: the study's segmenter, masks stay at home",
            paper="Ronneberger, Fischer, Brox, MICCAI 2015, arXiv:1505.04597",
            task="segmentation",
            labels=("home",),
            normalisation="symmetric",
            in_channels=1,
            num_outputs=1,
            width=DEFAULT_WIDTH,
            min_image_size=16,
            image_size_multiple=16,
            stride=16,
            build_net=partial(build_unet, in_channels=1),
            points=unet_cut_points,
            cut_net=cut_unet,
            initialise=lambda part, num_outputs: initialise_unet(part.modules()),
        ),
    )
}


def build(
    name: str,
    *,
    cut: int | str,
    num_outputs: int,
    labels: str | None = None,
    width: int | None = None,
    init: Callable[[str], None] | None = None,
) -> SplitModel:
    """Builds the net ``name`` and cuts it.

    Args:
        name: a key of ``MODELS``, or a net of others, such as "torchvision:vgg11".
        cut: the cut's number, or a block's name.
        num_outputs: classes, or output channels of a segmentation.
        labels: "shared" or "home"; None is the net's default.
        width: channels of the first block, where the net lets it be chosen; None is its default.
        init: called with "bottom", "top" and, where there is one, "head"; it seeds torch's default generator
            and then that part's weights are drawn, so that they depend on that seed and on nothing else.
            None keeps the uncut net's weights, all drawn from the generator as it stands.

    Raises:
        ValueError: a value that cannot work; the message names it, its bound and the remedy.
    """
    entry = model_entry(name)
    labels = _labels(entry, labels)
    if num_outputs < 1:
        raise ValueError(
            f"num_outputs must be at least 1 for {name}, got {num_outputs}; give the class count"
        )
    if width is not None and entry.width is None:
        raise ValueError(f"width cannot be chosen for {name}, got {width}; leave it out")
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1 for {name}, got {width}; the default is {entry.width}")
    net = entry.build_net(num_outputs, width)
    point = resolve_cut(name, cut, entry.points(net))
    split = entry.cut_net(net, point, labels)
    if _is_empty(split.top):
        raise ValueError(
            f"cut must leave the server a layer with weights of {name}, got {cut!r} with labels at home; "
            "cut earlier or use --labels shared"
        )
    if init is not None:
        for part_name, part in split.parts().items():
            init(part_name)
            entry.initialise(part, num_outputs)
    return split


def model_entry(name: str) -> ModelEntry:
    """The entry of ``name``.

    Raises:
        ValueError: no such net; the message lists the known ones.
    """
    if name in MODELS:
        return MODELS[name]
    if is_foreign(name):
        return foreign_entry(name)
    known = [*MODELS, *FORMS]
    raise ValueError(f"model must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}")


def cut_points(name: str, labels: str | None = None, *, inside_layers: bool = False) -> list[CutPoint]:
    """The cuts that ``build`` accepts, in the order of the forward pass.

    Args:
        name: a key of ``MODELS``.
        labels: as in ``build``: with labels at home a cut may leave the server no layer, and is left out.
        inside_layers: with the cuts inside a layer, which have a name ("layer2.0") but no number.
    """
    entry = model_entry(name)
    labels = _labels(entry, labels)
    with torch.device("meta"):  # shapes only: no memory, and the generator is left alone
        net = entry.build_net(entry.num_outputs, None)
    return [
        point
        for point in entry.points(net)
        if (inside_layers or point.index is not None) and not _is_empty(entry.cut_net(net, point, labels).top)
    ]


def cut_place(name: str, cut: int | str) -> int:
    """How many of the net's cut points come before ``cut`` in the forward pass: the later the cut, the larger.

    Cuts inside a layer, which have no number, have their place between the numbered ones.

    Raises:
        ValueError: as ``build``, where there is no such net or cut.
    """
    entry = model_entry(name)
    with torch.device("meta"):
        points = entry.points(entry.build_net(entry.num_outputs, None))
    return points.index(resolve_cut(name, cut, points))


def num_cuts(name: str, labels: str | None = None) -> int:
    """How many numbered cuts the net has."""
    return len(cut_points(name, labels))


def validate_image_size(name: str, px: int, batch_size: int | None = None) -> None:
    """Checks that the net ``name`` can train on images of ``px`` pixels a side.

    Args:
        name: a key of ``MODELS``.
        px: pixels a side.
        batch_size: where given, the smallest batch: batch norm cannot train on one value a channel.

    Raises:
        ValueError: the size is too small or not a multiple of what the net halves.
    """
    entry = model_entry(name)
    if entry.check_image is not None:
        entry.check_image(px, batch_size)
    if px < entry.min_image_size:
        raise ValueError(
            f"image size must be at least {entry.min_image_size} for {name}, got {px}; "
            f"use --image-size {entry.min_image_size} or more"
        )
    multiple = entry.image_size_multiple
    if px % multiple:
        below, above = px // multiple * multiple, (px // multiple + 1) * multiple
        raise ValueError(
            f"image size must be a multiple of {multiple} for {name}, got {px}; "
            f"use --image-size {below} or {above}"
        )
    if batch_size is not None and batch_size < 2 and px <= entry.stride:
        raise ValueError(
            f"batch size must be at least 2 for {name} at {px} px, got {batch_size}: batch norm "
            f"cannot train on one value a channel; "
            f"use --batch-size 2 or more, or images of more than {entry.stride} px"
        )


def _labels(entry: ModelEntry, labels: str | None) -> str:
    if labels is None:
        return entry.labels[0]
    if labels not in entry.labels:
        raise ValueError(
            f"labels must be {' or '.join(entry.labels)} for {entry.name}, got {labels!r}; "
            f"use --labels {entry.labels[0]}"
        )
    return labels


def _is_empty(part: nn.Module) -> bool:
    return next(part.parameters(), None) is None
