"""Where a traced segmentation net can be cut in three: pairs of places with a part between them for the server.

That part takes one tensor and gives one. All else is the client's: the bottom before it, the head after it, and what
the head needs of the bottom besides, which stays at the client as skips. No parameter or buffer is used in two parts.

What comes down does so as late as it can without more pixels than what went up: as a U-Net is cut by hand. Of all
pairs a chain is kept, in which each part of the server's lies inside the one before: the later the cut, the more the
client has. Inside a residual block, say, the server's part would be smaller than that of cuts after the block.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from suture.models.tracing import Trace, can_cross, tensors_of


class Division(NamedTuple):
    """One graph's nodes by part, and what passes from part to part."""

    up: fx.Node
    down: fx.Node
    skips: tuple[fx.Node, ...]
    bottom: frozenset[fx.Node]
    top: frozenset[fx.Node]
    head: frozenset[fx.Node]


class Pairs:
    """The pairs of places in one graph.

    Args:
        trace: of the net.
        net: whose weights the graph names.
        values: what each node computes of a batch of images, as shapes.
        batch_size: of that batch.
    """

    def __init__(self, trace: Trace, net: nn.Module, values: Mapping[fx.Node, Any], batch_size: int) -> None:
        self._trace, self._values = trace, values
        *_, self._output = trace.graph.nodes
        wanted = self._before([self._output])
        self._order = {node: place for place, node in enumerate(trace.graph.nodes) if node in wanted}
        self._weights = {node: tensors_of(node, net) for node in self._order}
        self._of_images: set[fx.Node] = set()
        for node in self._order:
            if node.op == "placeholder" or any(source in self._of_images for source in node.all_input_nodes):
                self._of_images.add(node)
        self._can_cross = {node for node in self._of_images if can_cross(values.get(node), batch_size)}

    def found(self) -> dict[str, str]:
        """For each place from where a tensor can go up, in order, the one from where one then comes down."""
        divisions = [division for up in self._order if (division := self._last_after(up)) is not None]
        divisions.sort(
            key=lambda division: (self._num_weights(division.top), len(division.top)), reverse=True
        )
        chain: list[Division] = []
        for division in divisions:
            if not chain or division.top < chain[-1].top:
                chain.append(division)
        return {self._trace.name(division.up): self._trace.name(division.down) for division in chain}

    def division(self, up: str, down: str) -> Division:
        """The net in three parts; the names are a pair of `found`."""
        nodes = {self._trace.name(node): node for node in self._order}
        division = self._divided(nodes[up], nodes[down])
        assert division is not None, "found names no other pairs"
        return division

    def graphs(self, division: Division) -> tuple[fx.Graph, fx.Graph, fx.Graph]:
        """Bottom: x to (what goes up, skips); top; head: (what came down, skips) to the output."""
        up, down, skips, bottom, top, head = division
        return (
            self._graph(bottom, (), (up, skips)),
            self._graph(top, (up,), down),
            self._graph(head, (down, *skips), self._output.args[0]),
        )

    def _last_after(self, up: fx.Node) -> Division | None:
        if up not in self._can_cross:
            return None
        limit = _pixels(self._values[up])
        small = (
            node
            for node in reversed(self._follows_from(up))
            if node in self._can_cross and _pixels(self._values[node]) <= limit
        )
        divisions = (self._divided(up, down) for down in small)
        return next((division for division in divisions if division is not None), None)

    def _follows_from(self, up: fx.Node) -> list[fx.Node]:
        """What can be computed of one value and weights alone, in order."""
        known, found = {up}, []
        for node in self._order:
            sources = [source for source in node.all_input_nodes if source in self._of_images]
            if sources and node is not self._output and all(source in known for source in sources):
                known.add(node)
                found.append(node)
        return found

    def _divided(self, up: fx.Node, down: fx.Node) -> Division | None:
        top = self._before([down], but=[up])
        # What the top computes on its way must not be wanted elsewhere; constants are computed in each part anew.
        inner = (top & self._of_images) - {down}
        if any(user in self._order and user not in top for node in inner for user in node.users):
            return None
        head, skips = self._head(up, down)
        bottom = self._before([up, *skips])
        used = [
            {id(tensor) for node in part for tensor in self._weights[node]} for part in (bottom, top, head)
        ]
        if sum(map(len, used)) > len(set().union(*used)) or not all(
            map(self._num_weights, (bottom, top, head))
        ):
            return None
        return Division(up, down, tuple(sorted(skips)), frozenset(bottom), frozenset(top), frozenset(head))

    def _head(self, up: fx.Node, down: fx.Node) -> tuple[set[fx.Node], set[fx.Node]]:
        """What follows ``down``, and the tensors of the bottom that it needs; sizes are read anew from those."""
        head: set[fx.Node] = set()
        skips: set[fx.Node] = set()
        waiting = [self._output]
        while waiting:
            node = waiting.pop()
            is_early = node in self._of_images and self._order[node] <= self._order[up]
            if is_early and isinstance(self._values.get(node), Tensor):
                skips.add(node)
            elif node is not down and node not in head:
                head.add(node)
                waiting += node.all_input_nodes
        return head, skips

    def _before(self, nodes: Iterable[fx.Node], but: Collection[fx.Node] = ()) -> set[fx.Node]:
        """The nodes and all that they are computed from, back to ``but``."""
        found: set[fx.Node] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in found and node not in but:
                found.add(node)
                waiting += node.all_input_nodes
        return found

    def _num_weights(self, part: Iterable[fx.Node]) -> int:
        tensors = (tensor for node in part for tensor in self._weights[node])
        return sum(tensor.numel() for tensor in tensors if isinstance(tensor, nn.Parameter))

    def _graph(self, nodes: Collection[fx.Node], inputs: Collection[fx.Node], output: Any) -> fx.Graph:
        part = fx.Graph()
        copies = {node: part.placeholder(f"x{number}") for number, node in enumerate(inputs)}
        for node in self._order:
            if node in nodes and node not in copies and node is not self._output:
                copies[node] = part.node_copy(node, copies.__getitem__)
        part.output(fx.node.map_arg(output, copies.__getitem__))
        return part


def _pixels(value: Tensor) -> float:
    """Height times width; tokens have neither and are never fewer."""
    return math.prod(value.shape[2:]) if value.dim() == 4 else math.inf
