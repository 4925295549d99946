"""``suture bench wire``: what each wire format saves and what it costs, in time, in the test metric and in what leaks.

Times: all formats are alive at once in one process and take turns at single steps. Metric and leak: an audit's point
for each format, undefended, with ADRA's static attacker on what crossed, decoded.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from suture.launch.host.cores import ready_torch
from suture.launch.options.options import RunOptions, required
from suture.launch.options.toml import to_arguments
from suture.runtime.errors import ConfigError
from suture.runtime.state.checkpoint import write_atomically
from suture.runtime.wire.compression import parse_format
from suture.studies.audit.plan import Point
from suture.studies.audit.point import Means, run_point
from suture.studies.bench.rigs.machine import machine
from suture.studies.bench.rigs.rig import Rig, check_steps, over, times_in_turn

WIRES = ("fp32", "bf16", "fp16", "int8", "topk:0.1")
PAGE = "benchmarks-wire.md"
_LINE = 100e6  # bits a second, of the computed column
_KEY = bytes(range(32)).hex()  # a benchmark's images are nobody's secret from itself


@dataclass(frozen=True, kw_only=True)
class WirePlan:
    """What is measured.

    Attributes:
        wires: formats, as ``--wire`` takes them; the first is what the others are compared with.
        steps: timed steps of each.
        seeds: runs of each for metric and leak, counting up from the options' seed.
        aux_images: images that the attacker owns.
    """

    wires: tuple[str, ...] = WIRES
    steps: int = 12
    seeds: int = 1
    aux_images: int = 100

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.seeds}")
        for wire in self.wires:
            parse_format(wire)


def default_options() -> RunOptions:
    """Drawn fundus photographs at 64 px, ResNet-18 cut at maxpool: no files needed."""
    return RunOptions(
        data="fundus-phantom",
        model="resnet18",
        cut="3",
        image_size=64,
        batch_size=16,
        clients=2,
        train_images=64,
        validation_images=0,
        test_images=32,
        held_out_images=16,
        epochs=3,
        lr=1e-3,
        exchange="local",
    )


def measure(options: RunOptions, plan: WirePlan) -> dict[str, dict[str, Any]]:
    """Per format: ``seconds`` of each step, ``up`` and ``down`` (bytes a step), ``points`` of an audit, one a seed."""
    rows = measure_steps(options, plan)
    means = Means(aux_images=plan.aux_images)
    for seed in range(options.seed, options.seed + plan.seeds):
        for wire in plan.wires:
            point = Point(str(options.cut), "none", "none", 0, seed)
            with tempfile.TemporaryDirectory(prefix="suture-bench-") as folder:
                base = replace(options, wire=wire)
                found = run_point(point, base, means, _KEY, Path(folder) / "samples.npz")
            rows[wire]["points"].append(found)
            print(f"{wire}, seed {seed}: {found['metric_name']} {found['metric']:.3f}", flush=True)
    return rows


def measure_steps(options: RunOptions, plan: WirePlan) -> dict[str, dict[str, Any]]:
    """What `measure` returns but for the points, of which there are none yet; images are drawn."""
    rows: dict[str, dict[str, Any]] = {wire: {} for wire in plan.wires}
    timed = replace(
        options,
        clients=1,
        train_images=2 * required(options.batch_size),  # a rig takes them again and again
        validation_images=0,
        test_images=2,
        held_out_images=0,
        epochs=1,
        data="fundus-phantom",
    )
    with ExitStack() as stack:
        rigs = {}
        for wire in plan.wires:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="suture-bench-"))
            rigs[wire] = Rig(replace(timed, wire=wire).resolved(), Path(folder))
        for wire, seconds in times_in_turn(rigs, plan.steps).items():
            up, down = rigs[wire].bytes_per_step
            rows[wire] |= {"seconds": seconds, "up": up, "down": down, "points": []}
    return rows


def run_command(given: RunOptions, plan: WirePlan, out: Path | None) -> None:
    """``suture bench wire``."""
    options, where = over(default_options(), given), machine()
    if options.attack or options.defence or options.wire != "fp32":
        raise ConfigError(
            "bench wire brings formats and attack itself: leave out --wire, --attack, --defence"
        )
    ready_torch(options)
    text = page(options, plan, where, measure(options, plan))
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / PAGE, text.encode())


def page(options: RunOptions, plan: WirePlan, where: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """The page, in Markdown."""
    name, colon, _ = options.data.partition(":")
    arguments = [
        f"{name}:PATH" if argument == options.data and colon else argument
        for argument in to_arguments(options)
    ]
    command = f"suture bench wire --steps {plan.steps} --seeds {plan.seeds} --aux-images {plan.aux_images}"
    several = f"Means of {plan.seeds} seeds, smallest to largest in brackets."
    plain = statistics.median(rows[plan.wires[0]]["seconds"])
    first = rows[plan.wires[0]]["points"][0]
    majority = "" if first["majority"] is None else f" (always the commoner class: {first['majority']:.3f})"
    load = ", ".join(f"{value:.2f}" for value in where["load_before"])
    return "\n".join(
        [
            "# Wire formats",
            "",
            f"Measured with `{command} {' '.join(arguments)}` on {where['date']}: {where['processor']}, "
            f"{where['cores']} cores, torch {where['torch']}; load average before it began: {load}.",
            "",
            "Bytes are those of a training step's tensors, scales and places included. Times are of a whole step in "
            "one process, the format's encoding and decoding in it and no line at all; medians of "
            f"{plan.steps} steps taken in turn on drawn images, fastest and slowest in brackets. The next column is "
            "computed: how long the bytes take on a line of 100 Mbit/s. "
            f"The metric is the test {first['metric_name']}, mean over the clients{majority}; the leak is what ADRA's "
            f"static attacker makes of held-out images ({plan.aux_images} images of its own, passed through the "
            "bottom), beside the mean image, which needs no smashed data. "
            + ("One seed: small differences mean nothing." if plan.seeds == 1 else several),
            "",
            "| wire | bytes up | bytes down | a step, s | ratio | on 100 Mbit/s, s "
            "| metric | ADRA, SSIM | mean image, SSIM |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_line(wire, row, plain) for wire, row in rows.items()),
            "",
            *(f"- {caveat}" for caveat in caveats(rows)),
        ]
    )


def caveats(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What the figures cannot show, said plainly."""
    said = ["Accuracy after a short run on few test images does not rank formats."]
    if any(max(row["seconds"]) > 2 * min(row["seconds"]) for row in rows.values()):
        said.append(
            "**The times say nothing**: steps of one format differ by more than twice, the machine was busy."
        )
    held_out = [
        p["attackers"]["static"]["scores"]["held_out"] for row in rows.values() for p in row["points"]
    ]
    if any(found["attack"]["ssim"] <= found["mean image"]["ssim"] for found in held_out):
        said.append(
            "**The leaks say nothing**: ADRA stays below the mean image, too weak an attacker to tell formats apart."
        )
    return said


def _line(wire: str, row: dict[str, Any], plain: float) -> str:
    seconds, median = row["seconds"], statistics.median(row["seconds"])
    leaks: dict[str, list[float]] = {"attack": [], "mean image": []}
    for point in row["points"]:
        scores = point["attackers"]["static"]["scores"]["held_out"]
        for who, values in leaks.items():
            values.append(float(scores[who]["ssim"]))
    metrics = [float(point["metric"]) for point in row["points"]]
    shown = [_spread(values) for values in (metrics, leaks["attack"], leaks["mean image"])]
    return (
        f"| {wire} | {row['up']:,} | {row['down']:,} | {median:.3f} ({min(seconds):.3f} to {max(seconds):.3f}) "
        f"| {median / plain:.2f} | {8 * (row['up'] + row['down']) / _LINE:.3f} | {' | '.join(shown)} |"
    )


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"
