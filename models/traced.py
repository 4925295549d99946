"""Any net, cut where a single tensor crosses: traced by torch.fx and put together again part by part.

A cut point is a place in the order of the computation after which one tensor is enough to go on, and no
parameter or buffer is used on both sides of it. Sizes count: where ``x.shape`` was read before and is used
after, more than the tensor crosses, and there is no cut.

The net is traced twice, for training and for evaluation, since tracing settles what ``self.training`` decides.
What works in place is made to work out of place, with the same values.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND); K classes (logits_NK).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from suture.models.plugins import first_line
from suture.models.shapes import forward_on_meta
from suture.models.split import BottomOutput, CutPoint, SplitModel
from suture.models.tracing import Trace, between

NUM_CHANNELS = 3
"""Channels of an image: grey ones are repeated by the data source."""
LARGEST_SIZE = 1024
"""Most pixels a side that are tried to see which values are tensors."""
_USUAL_SIZES = (224, 64, 32, 28, 96, 128, 256, 299, 384, 512)
_TRIED_BATCH = 3


class Graphs(NamedTuple):
    """One computation as it is in training and as it is in evaluation."""

    training: fx.Graph
    evaluation: fx.Graph


class TracedPart(nn.Module):
    """Runs graphs on the modules of a net that they use, which keep their names and are shared, not copied.

    Args:
        net: whose modules the graphs name.
        graphs: what to compute.
    """

    def __init__(self, net: nn.Module, graphs: Graphs) -> None:
        super().__init__()
        for target in _targets(graphs):
            _adopt(self, net, target)
        # A GraphModule would wrap the modules once more; only the function that it generates is wanted.
        self._in_training, self._in_evaluation = (
            type(fx.GraphModule(net, graph)).forward for graph in graphs
        )

    def forward(self, x: Any) -> Any:
        return (self._in_training if self.training else self._in_evaluation)(self, x)


class TracedBottom(TracedPart):
    """The client's first part: x_NCHW to ``BottomOutput(h_ND, ())``."""

    in_channels = NUM_CHANNELS

    def forward(self, x: Tensor) -> BottomOutput:
        return BottomOutput(super().forward(x))


class TracedHead(TracedPart):
    """What follows the last cut point, where labels stay at home; there are no skips to take."""

    def forward(self, x: Tensor, skips: tuple[Tensor, ...] = ()) -> Any:
        return super().forward(x)


class TracedNet(TracedPart):
    """The uncut net.

    Args:
        net: takes x_N3HW and returns one tensor. Its modules are shared and its in-place flags taken away.
        name: for messages.

    Raises:
        ValueError: it cannot be traced or has no cut point; the message has torch.fx's reason or what crosses.
    """

    def __init__(self, net: nn.Module, name: str) -> None:
        traces = [Trace(net.train(training), name) for training in (True, False)]
        for module in net.train().modules():
            if getattr(module, "inplace", False):
                setattr(module, "inplace", False)  # noqa: B010  (nn.Module types its attributes as tensors)
        graphs = Graphs(*(trace.graph for trace in traces))
        super().__init__(net, graphs)
        self._graphs = graphs
        crossings = [trace.crossings() for trace in traces]
        names = [name for name in crossings[0] if name in crossings[1]]
        self._nodes = {name: (crossings[0][name], crossings[1][name]) for name in names}
        self._sequence = names
        self._sequence = [
            name for name, value in zip(names, self._probed(name), strict=False) if _can_cross(value)
        ]
        if not self._sequence:
            raise ValueError(traces[0].why_no_crossing())
        aliases = traces[0].names
        self.points = [
            CutPoint(index, name, tuple(aliases[self._nodes[name][0]][:-1]))
            for index, name in enumerate(self._sequence)
        ]
        """Every cut point, in the order of the forward pass."""

    def stages(self) -> Iterator[TracedPart]:
        """The net in as many parts as it has cut points, and one more: each runs from one to the next."""
        for begin, end in zip([None, *self._sequence], [*self._sequence, None], strict=True):
            yield TracedPart(self, self._between(begin, end))

    def cut(self, point: CutPoint, labels: str) -> SplitModel:
        """Cuts the net; the parts share its modules and their names.

        Args:
            point: one of ``points``.
            labels: "home" makes what follows the last cut point the head. Cut there, the top is empty, which
                ``registry.build`` refuses.
        """
        bottom = TracedBottom(self, self._between(None, point.name))
        if labels != "home":
            return SplitModel(bottom, TracedPart(self, self._between(point.name, None)))
        last = self._sequence[-1]
        is_empty = point.name == last
        top = nn.Sequential() if is_empty else TracedPart(self, self._between(point.name, last))
        return SplitModel(bottom, top, TracedHead(self, self._between(last, None)))

    def _between(self, begin: str | None, end: str | None) -> Graphs:
        ends = [(None, None) if name is None else self._nodes[name] for name in (begin, end)]
        return Graphs(*(between(graph, *nodes) for graph, *nodes in zip(self._graphs, *ends, strict=True)))

    def _probed(self, name: str) -> list[Any]:
        """What crosses at each candidate, as shapes, at the first image size at which the net runs at all."""
        stages = list(self.stages())
        problem = ""
        for size in (*_USUAL_SIZES, *range(1, LARGEST_SIZE + 1)):
            value: Any = torch.zeros(_TRIED_BATCH, NUM_CHANNELS, size, size, device="meta")
            values = []
            try:
                for stage in stages:
                    value = forward_on_meta(stage, value)
                    values.append(value)
            except Exception as error:  # whatever a net raises on images that it cannot take
                problem = problem or first_line(error)
            else:
                return values
        raise ValueError(
            f"model {name} runs on RGB images of no size up to {LARGEST_SIZE} px: {problem}; "
            "it must take (N, 3, H, W)"
        )


def _can_cross(value: Any) -> bool:
    """Whether a value found with images of shapes only can go over the wire: float32, one row an image."""
    return (
        isinstance(value, Tensor)
        and value.dtype is torch.float32
        and value.dim() > 0
        and value.shape[0] == _TRIED_BATCH
    )


def _targets(graphs: Graphs) -> list[str]:
    """The modules and tensors that graphs name, in order, without what lies inside another one."""
    named = {
        str(node.target): None
        for graph in graphs
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    }
    return [
        name
        for name in named
        if not any(name.startswith(outer + ".") for outer in _outer(name) & named.keys())
    ]


def _outer(name: str) -> set[str]:
    """The names of the modules around ``name``."""
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}


def _adopt(part: nn.Module, net: nn.Module, target: str) -> None:
    """Gives ``part`` the module, parameter or buffer ``target`` of ``net``, under the same name."""
    *outer, name = target.split(".")
    for step in outer:
        net = getattr(net, step)
        if not hasattr(part, step):
            part.add_module(step, nn.Module())
        part = getattr(part, step)
    value = getattr(net, name)
    if isinstance(value, nn.Module):
        part.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        part.register_parameter(name, value)
    else:  # a constant of the forward is none of the net's buffers, but must move with it to a device
        is_kept = name in net._buffers and name not in net._non_persistent_buffers_set
        part.register_buffer(name, value, persistent=is_kept)
