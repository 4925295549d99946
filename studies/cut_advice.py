"""``suture cuts MODEL --advise``: what a step of each cut would take over a given line.

Predicted is client time (over the client's speed) + server time + bytes over the bandwidth + round trips. The two
times are measured here, each half alone; measured beside it is a whole step of that cut in this one process,
where no line is in between, to be compared with the sum of the halves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import suture.models.registry as nets
from suture.models.cuts import CutRow
from suture.models.split import SplitModel, resolve_cut
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError
from suture.runtime.training.objectives import build_criterion
from suture.runtime.training.optim import OptimizerConfig

ROUND_TRIPS = {"autograd": {"shared": 4, "home": 4}, "fused": {"shared": 1, "home": 2}}
"""How often a step of an exchange waits for an answer, by where labels are. autograd: forward, the gradient's way
through the server (two: it is also confirmed), the step."""

NEAR = 1.25
"""A step up to so many times the fastest one is worth a look at later cuts."""

_ENOUGH_SECONDS, _MOST_SWEEPS = 40.0, 5


@dataclass(frozen=True, kw_only=True)
class Line:
    """What lies between client and server, and how fast the client is.

    Raises:
        ConfigError: a value that no line has.
    """

    bandwidth: float
    """Mbit/s, the same both ways."""
    latency: float
    """Milliseconds one way."""
    client_speed: float = 1.0
    """The client's speed over this machine's; 0.5 takes twice as long."""
    exchange: str = "fused"
    """autograd or fused."""

    def __post_init__(self) -> None:
        for name, value in (("bandwidth", self.bandwidth), ("client-speed", self.client_speed)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0, got {value:g}")
        if not 0 <= self.latency < float("inf"):
            raise ConfigError(f"latency must be at least 0 ms, got {self.latency:g}")
        if self.exchange not in ROUND_TRIPS:
            raise ConfigError(f"exchange must be one of {', '.join(ROUND_TRIPS)}, got {self.exchange!r}")

    def seconds(self, row: CutRow, labels: str) -> float:
        """What the line takes of a step."""
        trips = ROUND_TRIPS[self.exchange][labels]
        return (row.bytes_up + row.bytes_down) * 8 / (self.bandwidth * 1e6) + trips * 2 * self.latency / 1e3


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One cut: what was measured here, and what follows for a line. Times are seconds a step."""

    row: CutRow
    client: float
    """Measured: the client's half alone, optimizer included, at this machine's speed."""
    server: float
    """Measured: the server's half alone."""
    measured: float
    """Measured: the whole step in this process."""
    line: float
    """Predicted."""
    predicted: float
    """Predicted: the whole step over the line."""


def advise(
    model: str,
    rows: Sequence[CutRow],
    line: Line,
    *,
    image_size: int,
    batch_size: int,
    labels: str | None = None,
    width: int | None = None,
) -> list[Advice]:
    """Times each cut of ``rows`` on images of noise.

    Goes through all cuts again and again until 40 seconds have passed, once at least and five times at most, and
    keeps the shortest times: what else the machine does only ever makes a step longer, and rarely all the time.

    Args:
        model: as in ``registry.build``.
        rows: of ``suture.models.cuts.cut_table`` for the same net, image size, batch size and labels.
        line: between client and server.
        image_size: pixels a side.
        batch_size: images a step.
        labels: "shared" or "home"; None is the net's default.
        width: as in ``registry.build``.
    """
    entry = nets.model_entry(model)
    labels = labels or entry.labels[0]
    net = entry.build_net(entry.num_outputs, width)
    images = torch.rand(batch_size, entry.in_channels, image_size, image_size)
    if Task(entry.task) is Task.CLASSIFICATION:
        targets = torch.arange(batch_size) % entry.num_outputs
    else:
        targets = (torch.rand(batch_size, entry.num_outputs, image_size, image_size) < 0.5).float()
    criterion = build_criterion(Task(entry.task), None)
    cuts = [resolve_cut(model, row.name, entry.points(net)) for row in rows]
    best = [(math.inf, math.inf, math.inf)] * len(rows)
    begun, sweeps = time.monotonic(), 0
    while sweeps == 0 or (sweeps < _MOST_SWEEPS and time.monotonic() - begun < _ENOUGH_SECONDS):
        for number, cut in enumerate(cuts):
            trial = _Trial(entry.cut_net(net, cut, labels), images, targets, criterion)
            runs = (trial.client_half, trial.server_half, trial.whole_step)
            client, server, whole = (
                min(old, _seconds(run)) for old, run in zip(best[number], runs, strict=True)
            )
            best[number] = client, server, whole
        sweeps += 1
    found = []
    for row, (client, server, whole) in zip(rows, best, strict=True):
        on_line = line.seconds(row, labels)
        predicted = client / line.client_speed + server + on_line
        found.append(
            Advice(row=row, client=client, server=server, measured=whole, line=on_line, predicted=predicted)
        )
    return found


def notes(found: Sequence[Advice]) -> list[str]:
    """A word beside each cut: the fastest, and the last one that takes at most `NEAR` times as long."""
    fastest = min(advice.predicted for advice in found)
    near = [number for number, advice in enumerate(found) if advice.predicted <= NEAR * fastest]
    words = [""] * len(found)
    words[near[-1]] = f"last within {NEAR - 1:.0%} of the fastest"
    first = next(number for number in near if found[number].predicted == fastest)
    words[first] = "fastest" if first != near[-1] else f"fastest; none later within {NEAR - 1:.0%}"
    return words


class _Trial:
    """One cut's step, in halves and as a whole."""

    def __init__(
        self,
        split: SplitModel,
        images: Tensor,
        targets: Tensor,
        criterion: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self._split, self._images, self._targets, self._criterion = split, images, targets, criterion
        for part in split.parts().values():
            part.train()
        clients = [part for name, part in split.parts().items() if name != "top"]
        config = OptimizerConfig()
        self._client = config.build(p for part in clients for p in part.parameters())
        self._server = config.build(split.top.parameters())
        with torch.no_grad():
            self._smashed = split.bottom(images).smashed
            self._output = split.top(self._smashed)
        self._gradients = torch.rand_like(self._smashed), torch.rand_like(self._output)

    def client_half(self) -> None:
        """Forward, backward from gradients that stand in for the server's, and the optimizer."""
        smashed, skips = self._split.bottom(self._images)
        roots, gradients = [smashed], [self._gradients[0]]
        if self._split.head is not None:
            logits = self._split.head(self._output.detach().requires_grad_(), skips)
            roots.append(self._criterion(logits, self._targets))
            gradients.append(torch.ones(()))
        torch.autograd.backward(roots, gradients)
        self._stepped(self._client)

    def server_half(self) -> None:
        """The same of the top, down to the gradient of the smashed data."""
        output = self._split.top(self._smashed.detach().requires_grad_())
        if self._split.head is None:
            self._criterion(output, self._targets).backward()
        else:
            output.backward(self._gradients[1])
        self._stepped(self._server)

    def whole_step(self) -> None:
        """Both, over one graph."""
        logits = self._split.joined()(self._images)
        self._criterion(logits, self._targets).backward()
        self._stepped(self._client)
        self._stepped(self._server)

    @staticmethod
    def _stepped(optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _seconds(run: Callable[[], None]) -> float:
    """The shorter of two runs: the first one of a new optimizer also makes its state."""
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)
