"""``suture bench security``: what the walls cost a training step, and how long a sealed hand-off takes.

The messages of one real step go through what reads, checks and looks them up, and through torch's own pickler beside
it, in turn; so do real steps. Whole runs with and without walls differ by less than two runs of the same kind do, so
the walls' own time is measured and set against a step's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.distributed.rpc import internal

from launch.bench.rig import Rig
from launch.config import RunOptions
from launch.cores import ready_torch
from runtime import codec, endpoints, lockdown
from runtime.checks import check_loss, check_upload
from runtime.client import Client
from runtime.entry import Door, Tokens
from runtime.errors import ConfigError
from runtime.handoff import handoff_digest
from runtime.lockdown import Lockdown
from runtime.members import Seat
from runtime.scheduler import Turn
from runtime.wire import LossReply, StepDone, Upload

LEAST = 10
STEP_CUT, HANDOFF_CUT = "3", "7"


@dataclass(frozen=True)
class Costs:
    """Seconds, one entry a measurement.

    Attributes:
        step: a training step of both halves in one process: a step over the wire takes longer.
        plain: the step's messages through torch's pickler, unchecked.
        walled: the same through the lockdown, ticket and checks.
        handoff: a bottom and its optimizer sealed, counted and taken up by the next client, by cut.
    """

    step: list[float]
    plain: list[float]
    walled: list[float]
    handoff: dict[str, list[float]]


class _Nowhere:
    """A door asks where members are; tickets do not."""

    own_address = ""

    def address_of(self, rpc_name: str) -> str:
        return ""


class _Messages:
    """What crosses the wire in a step: two calls and their answers."""

    def __init__(self, rig: Rig) -> None:
        server = rig.server
        self.smashed_spec, self.labels_spec = server.smashed, server.labels
        shape = (server.smashed.max_batch, *server.smashed.shape)
        upload = Upload(1, 0, "train", torch.randn(shape), torch.zeros(shape[0], dtype=torch.int64))
        door = Door("bench", Tokens(shared=bytes(32)), _Nowhere())
        self.door, ticket = door, door.ticket(Seat(name="client0"))
        self.exchanged: tuple[tuple[Callable[..., Any], tuple[Any, ...], Any], ...] = (
            (endpoints.forward, (ticket, upload), LossReply(torch.tensor(0.5), 0.5)),
            (endpoints.step, (ticket, StepDone(1, 0, 0.5), 1), None),
        )
        self.wall = Lockdown(endpoints.table(), endpoints.who)
        self.pickler = internal._InternalRPCPickler()  # type: ignore[no-untyped-call]

    def walled(self) -> None:
        """As `calls.call` and the server treat them."""
        for function, arguments, answer in self.exchanged:
            call = self.wall.deserialize(*self.wall.serialize(internal.PythonUDF(function, arguments, {})))
            self.door.seat(call.args[0])
            if isinstance(call.args[1], Upload):
                check_upload(call.args[1], "client0", self.smashed_spec, self.labels_spec, training=True)
            back = self.wall.deserialize(*self.wall.serialize(answer))
            assert codec.fits(back, lockdown.answer_type(function))
            if isinstance(back, LossReply):
                check_loss(back, "server")

    def plain(self) -> None:
        """As torch would treat them."""
        for function, arguments, answer in self.exchanged:
            call = internal.PythonUDF(function, arguments, {})
            self.pickler.deserialize(*self.pickler.serialize(call))  # type: ignore[no-untyped-call]
            self.pickler.deserialize(*self.pickler.serialize(answer))  # type: ignore[no-untyped-call]


def measure(options: RunOptions, repeats: int) -> Costs:
    """All of it, in turn.

    Raises:
        ConfigError: fewer repetitions than a median needs.
    """
    if repeats < LEAST:
        raise ConfigError(f"repeats must be at least {LEAST}, got {repeats}")
    costs = Costs([], [], [], {STEP_CUT: [], HANDOFF_CUT: []})
    with tempfile.TemporaryDirectory(prefix="suture-bench-") as folder:
        rigs = {}
        for cut in costs.handoff:
            (Path(folder) / cut).mkdir()
            rigs[cut] = Rig(_at_cut(options, cut), Path(folder) / cut)
            rigs[cut].step()  # an optimizer has no state to hand off before its first step
        messages = _Messages(rigs[STEP_CUT])
        messages.walled()
        messages.plain()
        for _ in range(repeats):
            costs.step.append(rigs[STEP_CUT].step())
            costs.plain.append(_seconds(messages.plain))
            costs.walled.append(_seconds(messages.walled))
            for cut, rig in rigs.items():
                costs.handoff[cut].append(_seconds(lambda of=rig: _hand_over(of.client, of.turn)))  # type: ignore[misc]
    return costs


def _hand_over(client: Client, turn: Turn) -> None:
    """All that is done to a hand-off because it is sealed, by both clients and the server, in one process."""
    sealed = client.seal(turn)
    handoff_digest(sealed)  # the server's, when the next one says what it follows
    client.committed(sealed)
    client.open(sealed)


def _at_cut(options: RunOptions, cut: str) -> RunOptions:
    num_images = 4 * (options.batch_size or 32)
    shares = {"train_images": num_images, "validation_images": 0, "test_images": 4}
    return replace(options, cut=cut, clients=1, epochs=1, **shares).resolved()  # type: ignore[arg-type]


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def default_options() -> RunOptions:
    """ResNet-34 at 64 px on drawn photographs: no files needed."""
    return RunOptions(data="fundus-phantom", model="resnet34", image_size=64, batch_size=32, exchange="local")


def run_command(repeats: int, threads: int | None) -> None:
    """``suture bench security``."""
    options = default_options()
    ready_torch(RunOptions(threads=threads))
    costs = measure(options, repeats)
    step, plain, walled = (statistics.median(times) for times in (costs.step, costs.plain, costs.walled))
    table = Table(
        title=f"ResNet-34, 64 px, batch {options.batch_size}; medians of {repeats}, taken in turn",
        title_justify="left",
    )
    for heading in ("", "median", "fastest and slowest", "of a step"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = {
        f"a step at cut {STEP_CUT}, one process": costs.step,
        "its messages, torch's pickler": costs.plain,
        "its messages, walls and checks": costs.walled,
        f"hand-off at cut {STEP_CUT}: sealed, counted, opened": costs.handoff[STEP_CUT],
        f"hand-off at cut {HANDOFF_CUT}: sealed, counted, opened": costs.handoff[HANDOFF_CUT],
    }
    for name, times in rows.items():
        median = statistics.median(times)
        spread = f"{min(times) * 1e3:.2f} to {max(times) * 1e3:.2f} ms"
        table.add_row(name, f"{median * 1e3:.2f} ms", spread, f"{median / step:.2%}")
    Console(width=110).print(table)
    steps = 4  # of a turn by default: 128 images, 32 a batch
    a_step = walled - plain + statistics.median(costs.handoff[STEP_CUT]) / steps
    print(
        f"walls, checks and sealed hand-off together: {a_step * 1e3:.2f} ms a step, {a_step / step:.2%} of it "
        f"(a hand-off every {steps} steps)"
    )
