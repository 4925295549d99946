"""What each cut of a net costs: bytes on the wire, parameters and work at the client.

Cut late and the client works more and sends less; cut early and the reverse. Only data here, no printing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from suture.models.foreign import is_foreign
from suture.models.registry import build, cut_points, model_entry, validate_image_size
from suture.models.shapes import PartShapes, forward_on_meta, part_shapes
from suture.models.traced import TracedNet
from suture.models.tracing import tensors_of

FLOAT_BYTES = 4
LABEL_BYTES = 8  # int64


@dataclass(frozen=True, kw_only=True)
class CutRow:
    """One cut of a net at one image size and batch size."""

    index: int | None
    """The study's number; None for a cut inside a layer."""
    name: str
    """The last block that the client keeps."""
    smashed_shape: tuple[int, ...]
    """Of one image."""
    bytes_up: int
    """Tensor bytes from the client a step, without the messages' own few bytes."""
    bytes_down: int
    """Tensor bytes to the client a step, likewise."""
    client_params: int
    """Parameters of bottom and head."""
    total_params: int
    """Parameters of the whole net."""
    client_flop_share: float
    """The client's share, 0..1, of the forward pass's FLOPs (convolutions and matrix products)."""


def cut_table(
    name: str,
    image_size: int,
    batch_size: int = 32,
    *,
    num_outputs: int | None = None,
    labels: str | None = None,
    width: int | None = None,
    inside_layers: bool = False,
) -> list[CutRow]:
    """Measures every cut of the net ``name``, on shapes only: no weights are drawn and no image is needed.

    Args:
        name: a key of ``MODELS``.
        image_size: pixels a side.
        batch_size: images a step.
        num_outputs: classes or output channels; None is 2 classes, or 1 channel.
        labels: "shared" or "home"; None is the net's default.
        width: as in ``registry.build``.
        inside_layers: with a row for each cut inside a layer.

    Raises:
        ValueError: as ``registry.build`` and ``validate_image_size``; or ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, got {batch_size}; use --batch-size 32, say")
    validate_image_size(name, image_size)
    entry = model_entry(name)
    num_outputs = entry.num_outputs if num_outputs is None else num_outputs
    if is_foreign(name):
        with torch.device("meta"):
            net = entry.build_net(num_outputs, width)
        assert isinstance(net, TracedNet)
        if net.task == "segmentation":
            return _segmenter_table(net, image_size, batch_size)
        return _traced_table(net, image_size, batch_size, labels == "home")
    rows = []
    for point in cut_points(name, labels, inside_layers=inside_layers):
        with torch.device("meta"):
            split = build(name, cut=point.name, num_outputs=num_outputs, labels=labels, width=width)
        flops = {part: FlopCounterMode(display=False) for part in split.parts()}
        shapes = part_shapes(split, image_size, flops.__getitem__)
        counts = {part: counter.get_total_flops() for part, counter in flops.items()}
        bytes_up, bytes_down = step_bytes(shapes, batch_size, split.head is not None)
        params = {part: _num_parameters(module) for part, module in split.parts().items()}
        rows.append(
            CutRow(
                index=point.index,
                name=point.name,
                smashed_shape=shapes.smashed,
                bytes_up=bytes_up,
                bytes_down=bytes_down,
                client_params=sum(params.values()) - params["top"],
                total_params=sum(params.values()),
                client_flop_share=1 - counts["top"] / sum(counts.values()),
            )
        )
    return rows


def step_bytes(shapes: PartShapes, batch_size: int, has_head: bool) -> tuple[int, int]:
    """Float32 tensor bytes (up, down) of one training step.

    Labels shared: smashed data and int64 labels go up, the gradient of the smashed data comes down. Labels at
    home: smashed data and the gradient of the top's output go up, the top's output and the gradient of the
    smashed data come down.
    """
    smashed = FLOAT_BYTES * math.prod(shapes.smashed) * batch_size
    if not has_head:
        return smashed + LABEL_BYTES * batch_size, smashed
    top_output = FLOAT_BYTES * math.prod(shapes.top_output) * batch_size
    return smashed + top_output, top_output + smashed


def _traced_table(net: TracedNet, image_size: int, batch_size: int, has_head: bool) -> list[CutRow]:
    """One pass from cut point to cut point: a net of others has too many to build it for each."""
    shapes, flops, params = [], [], []
    value = torch.zeros(1, net.in_channels, image_size, image_size, device="meta")
    for stage in net.stages():
        with FlopCounterMode(display=False) as counter:
            value = forward_on_meta(stage, value)
        shapes.append(tuple(value.shape[1:]))
        flops.append(counter.get_total_flops())
        params.append(_num_parameters(stage))
    rows = []
    for number, point in enumerate(net.points, start=1):
        if has_head and not sum(params[number:-1]):
            break  # no weights are left for the server between here and the head
        batch = PartShapes(shapes[number - 1], shapes[-2 if has_head else -1], shapes[-1])
        bytes_up, bytes_down = step_bytes(batch, batch_size, has_head)
        rows.append(
            CutRow(
                index=point.index,
                name=point.name,
                smashed_shape=batch.smashed,
                bytes_up=bytes_up,
                bytes_down=bytes_down,
                client_params=sum(params[:number]) + params[-1] * has_head,
                total_params=sum(params),
                client_flop_share=(sum(flops[:number]) + flops[-1] * has_head) / max(sum(flops), 1),
            )
        )
    return rows


class _Costs(fx.Interpreter):
    """Runs a net's steps one by one on shapes: what each gives, and its work."""

    def __init__(self, net: TracedNet) -> None:
        super().__init__(net, garbage_collect_values=False, graph=net.graph)
        self.flops: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.flops[n] = counter.get_total_flops()
        return value


@torch.no_grad()
def _segmenter_table(net: TracedNet, image_size: int, batch_size: int) -> list[CutRow]:
    """One pass over all steps, which each cut then gives to client or server."""
    costs, rows = _Costs(net.eval()), []
    costs.run(torch.zeros(1, net.in_channels, image_size, image_size, device="meta"))
    params = {node: _num_weights(tensors_of(node, net)) for node in net.graph.nodes}
    for point in net.points:
        division = net.division(point)
        up, down = (tuple(costs.env[node].shape[1:]) for node in (division.up, division.down))
        bytes_up, bytes_down = step_bytes(PartShapes(up, down, down), batch_size, has_head=True)
        top_params, top_flops = (
            sum(map(by_node.__getitem__, division.top)) for by_node in (params, costs.flops)
        )
        rows.append(
            CutRow(
                index=point.index,
                name=point.name,
                smashed_shape=up,
                bytes_up=bytes_up,
                bytes_down=bytes_down,
                client_params=sum(params.values()) - top_params,
                total_params=sum(params.values()),
                client_flop_share=1 - top_flops / max(sum(costs.flops.values()), 1),
            )
        )
    return rows


def _num_weights(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, nn.Parameter))


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
