"""``suture bench security``: what codec and checks cost a training step, and how long a sealed hand-off takes.

The messages of one real step go through the codec and the checks that every carrier has, and through torch's own
pickler, in turn with real steps. Whole runs with and without the checks differ by less than two runs of the same kind
do, so the checks' own time is measured and set against a step's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed.rpc import internal

from suture.launch.host.cores import ready_torch
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.output.table import Table
from suture.runtime.client.client import Client
from suture.runtime.errors import ConfigError
from suture.runtime.scheduler import Turn
from suture.runtime.server.api import ServerApi, answer_type
from suture.runtime.state.handoff import handoff_digest
from suture.runtime.wire import codec
from suture.runtime.wire.checks import check_step_reply, check_upload
from suture.runtime.wire.messages import StepReply, Upload
from suture.studies.bench.rigs.rig import Rig
from suture.studies.bench.rigs.signed import SignedHandoff

LEAST = 10
STEP_CUT, HANDOFF_CUT = "3", "7"


@dataclass(frozen=True)
class Costs:
    """Seconds, one entry a measurement.

    Attributes:
        step: a training step of both halves in one process: a step over the wire takes longer.
        plain: the step's messages through torch's pickler, unchecked.
        checked: the same through the codec and the checks.
        handoff: a bottom and its optimizer sealed, counted and taken up by the next client, by cut.
        signed: the same between hospitals, by cut: sealed and signed, checked by the server, checked and opened.
        handoff_bytes: of one, by cut.
    """

    step: list[float]
    plain: list[float]
    checked: list[float]
    handoff: dict[str, list[float]]
    signed: dict[str, list[tuple[float, float, float]]]
    handoff_bytes: dict[str, int]


class _Messages:
    """What crosses the wire in an explicit step: a call and its answer."""

    def __init__(self, rig: Rig) -> None:
        self._smashed, self._labels = rig.server.smashed, rig.server.labels
        shape = (self._smashed.max_batch, *self._smashed.shape)
        self._upload = Upload(1, 0, "train", torch.randn(shape), torch.zeros(shape[0], dtype=torch.int64))
        self._answer = StepReply(torch.tensor(0.5), 0.5, torch.randn(shape))
        self._pickler = internal._InternalRPCPickler()  # type: ignore[no-untyped-call]

    def checked(self) -> None:
        """As client and server treat them, whichever carrier brings the bytes."""
        (upload,) = codec.decode(*codec.encode([self._upload]))
        check_upload(upload, "client0", self._smashed, self._labels, training=True)
        answer = codec.decode(*codec.encode(self._answer))
        assert codec.fits(answer, answer_type(ServerApi.train))
        check_step_reply(answer, "server")

    def plain(self) -> None:
        """As torch would treat them."""
        for message in (self._upload, self._answer):
            self._pickler.deserialize(*self._pickler.serialize(message))  # type: ignore[no-untyped-call]


def measure(options: AskedOptions, repeats: int) -> Costs:
    """All of it, in turn.

    Raises:
        ConfigError: fewer repetitions than a median needs.
    """
    if repeats < LEAST:
        raise ConfigError(f"repeats must be at least {LEAST}, got {repeats}")
    cuts = (STEP_CUT, HANDOFF_CUT)
    costs = Costs([], [], [], {cut: [] for cut in cuts}, {cut: [] for cut in cuts}, {})
    with tempfile.TemporaryDirectory(prefix="suture-bench-") as folder:
        rigs, signed = {}, {}
        for cut in costs.handoff:
            (Path(folder) / cut).mkdir()
            rigs[cut] = Rig(_at_cut(options, cut), Path(folder) / cut)
            rigs[cut].step()  # an optimizer has no state to hand off before its first step
            signed[cut] = SignedHandoff(rigs[cut].client, Path(folder) / cut, bytes(range(32)))
            costs.handoff_bytes[cut] = rigs[cut].client.seal(rigs[cut].turn).ciphertext.numel()
        messages = _Messages(rigs[STEP_CUT])
        messages.checked()
        messages.plain()
        for _ in range(repeats):
            costs.step.append(rigs[STEP_CUT].step())
            costs.plain.append(_seconds(messages.plain))
            costs.checked.append(_seconds(messages.checked))
            for cut, rig in rigs.items():
                costs.handoff[cut].append(_seconds(lambda of=rig: _hand_over(of.client, of.turn)))  # type: ignore[misc]
                costs.signed[cut].append(signed[cut].hand_over())
    return costs


def _hand_over(client: Client, turn: Turn) -> None:
    """All that is done to a hand-off because it is sealed, by both clients and the server, in one process."""
    sealed = client.seal(turn)
    handoff_digest(sealed)  # the server's, when the next one says what it follows
    client.committed(sealed)
    client.open(sealed)


def _at_cut(options: AskedOptions, cut: str) -> RunOptions:
    num_images = 4 * (options.batch_size or 32)
    shares = {"train_images": num_images, "validation_images": 0, "test_images": 4}
    return replace(options, cut=cut, clients=1, epochs=1, **shares).resolved()  # type: ignore[arg-type]


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def default_options() -> AskedOptions:
    """ResNet-34 at 64 px on drawn photographs: no files needed."""
    return AskedOptions(
        data="fundus-phantom", model="resnet34", image_size=64, batch_size=32, exchange="local"
    )


def run_command(repeats: int, threads: int | None) -> None:
    """``suture bench security``."""
    options = default_options()
    ready_torch(AskedOptions(threads=threads))
    costs = measure(options, repeats)
    step, plain, checked = (statistics.median(times) for times in (costs.step, costs.plain, costs.checked))
    measured = {
        f"a step at cut {STEP_CUT}, one process": costs.step,
        "its messages, torch's pickler": costs.plain,
        "its messages, codec and checks": costs.checked,
        f"hand-off at cut {STEP_CUT}: sealed, counted, opened": costs.handoff[STEP_CUT],
        f"hand-off at cut {HANDOFF_CUT}: sealed, counted, opened": costs.handoff[HANDOFF_CUT],
    }
    for cut, each in costs.signed.items():
        named = f"between hospitals, cut {cut} ({costs.handoff_bytes[cut] / 1e6:.1f} MB)"
        parts = ("sealed, signed", "checked by the server", "checked, opened")
        measured |= {f"{named}: {part}": [one[i] for one in each] for i, part in enumerate(parts)}
        measured[f"{named}: all of it"] = [sum(one) for one in each]
    rows = [
        {
            "": name,
            "median": f"{statistics.median(times) * 1e3:.2f} ms",
            "fastest and slowest": f"{min(times) * 1e3:.2f} to {max(times) * 1e3:.2f} ms",
            "of a step": f"{statistics.median(times) / step:.2%}",
        }
        for name, times in measured.items()
    ]
    steps = 4  # of a turn by default: 128 images, 32 a batch
    a_step = checked - plain + statistics.median(costs.handoff[STEP_CUT]) / steps
    note = (
        f"codec, checks and sealed hand-off together: {a_step * 1e3:.2f} ms a step, {a_step / step:.2%} of it "
        f"(a hand-off every {steps} steps)"
    )
    title = f"ResNet-34, 64 px, batch {options.batch_size}; medians of {repeats}, taken in turn"
    Table(rows, title, [note]).print()
