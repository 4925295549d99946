"""The parts of a traced net: each runs graphs of torch.fx on the modules of the net that they use.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND); K classes (logits_NK).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from suture.models.split import BottomOutput


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
        return self.run(x)

    def run(self, *inputs: Any) -> Any:
        """Computes the graph of the mode that it is in."""
        return (self._in_training if self.training else self._in_evaluation)(self, *inputs)


class TracedBottom(TracedPart):
    """The client's first part: x_NCHW to what its graphs compute, ``h_ND`` or ``(h_ND, skips)``."""

    def __init__(self, net: nn.Module, graphs: Graphs, in_channels: int) -> None:
        super().__init__(net, graphs)
        self.in_channels = in_channels

    def forward(self, x: Tensor) -> BottomOutput:
        output = super().forward(x)
        return BottomOutput(output) if isinstance(output, Tensor) else BottomOutput(*output)


class TracedHead(TracedPart):
    """What follows the server's part, where labels stay at home: its output and the bottom's skips to logits."""

    def forward(self, x: Tensor, skips: tuple[Tensor, ...] = ()) -> Any:
        return self.run(x, *skips)


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
