"""Any net, cut where a single tensor crosses: traced by torch.fx and put together again part by part.

A classifier's cut point is a place in the order of the computation after which one tensor is enough to go on, and no
parameter or buffer is used on both sides of it. Sizes count: where ``x.shape`` was read before and is used
after, more than the tensor crosses, and there is no cut. A segmenter's is a pair of places (`suture.models.pairs`).

The net is traced twice, for training and for evaluation, since tracing settles what ``self.training`` decides.
What works in place is made to work out of place, with the same values.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND); K classes (logits_NK).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from suture.models.entry import Task
from suture.models.pairs import Division, Pairs
from suture.models.plugins import first_line
from suture.models.shapes import forward_on_meta
from suture.models.split import CutPoint, SplitModel
from suture.models.traced_part import Graphs, TracedBottom, TracedHead, TracedPart
from suture.models.tracing import Trace, Whole, between, can_cross

_CHANNELS = {3: "RGB", 1: "grey"}
"""Channels of an image, in the order in which they are tried."""
LARGEST_SIZE = 1024
"""Most pixels a side that are tried to see which values are tensors."""
_USUAL_SIZES = (224, 64, 32, 28, 96, 128, 256, 299, 384, 512)
_TRIED_BATCH = 3


class TracedNet(TracedPart):
    """The uncut net.

    Args:
        net: takes x_NCHW, RGB or grey, and returns one tensor. Its modules are shared and its in-place flags taken
            away, but inside modules that torch.fx cannot follow.
        name: for messages.

    Raises:
        ValueError: it cannot be traced or has no cut point; the message has torch.fx's reason or what crosses.
    """

    def __init__(self, net: nn.Module, name: str) -> None:
        traces, whole = _traces(net, name)
        _work_out_of_place(net.train(), whole)
        super().__init__(net, Graphs(*(trace.graph for trace in traces)))
        self._graphs = Graphs(*(trace.graph for trace in traces))
        self.in_channels, size, values = self._runs_on(name, whole)
        *_, output = values.values()
        self.task: Task = "segmentation" if _is_by_pixel(output, size) else "classification"
        """One logit a class, or one a pixel."""
        self.points = (
            self._pair_points(traces, size, values)
            if self.task == "segmentation"
            else self._crossing_points(traces, values)
        )
        """Every cut point, in the order of the forward pass."""

    def _crossing_points(self, traces: list[Trace], values: dict[fx.Node, Any]) -> list[CutPoint]:
        crossings = [trace.crossings() for trace in traces]
        names = [name for name in crossings[0] if name in crossings[1]]
        self._nodes = {name: (crossings[0][name], crossings[1][name]) for name in names}
        self._sequence = [name for name in names if can_cross(values.get(self._nodes[name][1]), _TRIED_BATCH)]
        if not self._sequence:
            raise ValueError(traces[0].why_no_crossing())
        aliases = traces[0].names
        return [
            CutPoint(index, name, tuple(aliases[self._nodes[name][0]][:-1]))
            for index, name in enumerate(self._sequence)
        ]

    def _pair_points(self, traces: list[Trace], size: int, values: dict[fx.Node, Any]) -> list[CutPoint]:
        # Most nets compute the same in training and in evaluation, step by step.
        is_same = str(self._graphs.training) == str(self._graphs.evaluation)
        in_training = (
            dict(zip(self._graphs.training.nodes, values.values(), strict=True))
            if is_same
            else _values(
                self._graphs.training, self._everything(self._graphs.training), self.in_channels, size
            )
        )
        self._pairs = [
            Pairs(trace, self, of_mode, _TRIED_BATCH)
            for trace, of_mode in zip(traces, (in_training, values), strict=True)
        ]
        found = self._pairs[0].found()
        in_evaluation = found if is_same else self._pairs[1].found()
        self._ends = {
            f"{up}:{down}": (up, down) for up, down in found.items() if in_evaluation.get(up) == down
        }
        if not self._ends:
            raise ValueError(traces[0].why_no_pair())
        by_name = {names[-1]: tuple(names[::-1]) for names in traces[0].names.values()}
        return [
            CutPoint(index, name, by_name[up]) for index, (name, (up, _)) in enumerate(self._ends.items())
        ]

    def stages(self) -> Iterator[TracedPart]:
        """The net in as many parts as it has cut points, and one more: each runs from one to the next."""
        for begin, end in zip([None, *self._sequence], [*self._sequence, None], strict=True):
            yield TracedPart(self, self._between(begin, end))

    def cut(self, point: CutPoint, labels: str) -> SplitModel:
        """Cuts the net; the parts share its modules and their names.

        Args:
            point: one of ``points``.
            labels: "home" makes what follows the last cut point the head. Cut there, the top is empty, which
                ``registry.build`` refuses. A segmenter's head is its cut point's own, whatever is said here.
        """
        if self.task == "segmentation":
            return self._cut_twice(point)
        bottom = TracedBottom(self, self._between(None, point.name), self.in_channels)
        if labels != "home":
            return SplitModel(bottom, TracedPart(self, self._between(point.name, None)))
        last = self._sequence[-1]
        is_empty = point.name == last
        top = nn.Sequential() if is_empty else TracedPart(self, self._between(point.name, last))
        return SplitModel(bottom, top, TracedHead(self, self._between(last, None)))

    def _between(self, begin: str | None, end: str | None) -> Graphs:
        ends = [(None, None) if name is None else self._nodes[name] for name in (begin, end)]
        return Graphs(*(between(graph, *nodes) for graph, *nodes in zip(self._graphs, *ends, strict=True)))

    def _cut_twice(self, point: CutPoint) -> SplitModel:
        by_mode = [pairs.graphs(pairs.division(*self._ends[point.name])) for pairs in self._pairs]
        bottom, top, head = (Graphs(*graphs) for graphs in zip(*by_mode, strict=True))
        return SplitModel(
            TracedBottom(self, bottom, self.in_channels), TracedPart(self, top), TracedHead(self, head)
        )

    @property
    def graph(self) -> fx.Graph:
        """All steps as they are in evaluation."""
        return self._graphs.evaluation

    def division(self, point: CutPoint) -> Division:
        """The nodes of ``graph`` by part where a segmenter is cut at ``point``."""
        return self._pairs[1].division(*self._ends[point.name])

    def _runs_on(self, name: str, whole: Whole) -> tuple[int, int, dict[fx.Node, Any]]:
        """Channels and pixels a side of the first images on which the net runs at all, and what it computes of them."""
        problems: dict[int, str] = {}
        steps = self._everything(self._graphs.evaluation)
        for size in (*_USUAL_SIZES, *range(1, LARGEST_SIZE + 1)):
            for channels in _CHANNELS:
                try:
                    with _writing_seen(steps, whole) as written:
                        values = _values(self._graphs.evaluation, steps, channels, size)
                except Exception as error:  # whatever a net raises on images that it cannot take
                    problems.setdefault(channels, first_line(error))
                    continue
                if written:
                    raise ValueError(
                        f"model {name} works in place: {written[0].__name__} overwrites what it is given, and torch.fx "
                        "cannot look into it; let it work on a copy"
                    )
                return channels, size, values
        said = "; ".join(f"{_CHANNELS[channels]}: {problem}" for channels, problem in problems.items())
        raise ValueError(
            f"model {name} runs on RGB and on grey images of no size up to {LARGEST_SIZE} px ({said}); "
            "it must take (N, 3, H, W) or (N, 1, H, W)"
        )

    def _everything(self, graph: fx.Graph) -> TracedPart:
        """The net as a part that gives what every one of its steps gives, the output last."""
        steps = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        *nodes, output = graph.nodes
        for node in nodes:
            copies[node] = steps.node_copy(node, copies.__getitem__)
        steps.output((*copies.values(), copies[output.args[0]]))
        return TracedPart(self, Graphs(steps, steps))


def _traces(net: nn.Module, name: str) -> tuple[list[Trace], Whole]:
    """The net traced for training and for evaluation, with the same modules taken whole in both."""
    whole: Whole = {}
    while True:
        known = len(whole)
        traces = [Trace(net.train(training), name, whole) for training in (True, False)]
        if len(whole) == known:
            return traces, whole


def _values(graph: fx.Graph, steps: TracedPart, channels: int, size: int) -> dict[fx.Node, Any]:
    """What every node computes of a batch of images, as shapes."""
    images = torch.zeros(_TRIED_BATCH, channels, size, size, device="meta")
    return dict(zip(graph.nodes, forward_on_meta(steps, images), strict=True))


def _work_out_of_place(net: nn.Module, whole: Whole) -> None:
    kept = {inner for outer in net.modules() if type(outer) in whole for inner in outer.modules()}
    for module in net.modules():
        if getattr(module, "inplace", False) and module not in kept:
            setattr(module, "inplace", False)  # noqa: B010  (nn.Module types its attributes as tensors)


@contextmanager
def _writing_seen(net: nn.Module, whole: Whole) -> Iterator[list[type[nn.Module]]]:
    """Lists which of the modules that are taken whole write into their inputs, while ``net`` runs."""
    written: list[type[nn.Module]] = []
    before: dict[nn.Module, list[int]] = {}

    def versions(inputs: tuple[Any, ...]) -> list[int]:
        return [value._version for value in inputs if isinstance(value, Tensor)]

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        before[module] = versions(inputs)

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if versions(inputs) != before[module]:
            written.append(type(module))

    watched = [module for module in net.modules() if type(module) in whole]
    hooks = [
        hook for m in watched for hook in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))
    ]
    try:
        yield written
    finally:
        for hook in hooks:
            hook.remove()


def _is_by_pixel(output: Any, size: int) -> bool:
    """Whether a net that was shown images of ``size`` pixels a side gives a value a pixel."""
    return isinstance(output, Tensor) and output.dim() == 4 and tuple(output.shape[2:]) == (size, size)
