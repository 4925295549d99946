"""``suture bench line``: a step over shaped lines, in each exchange, carrier, wire format and overlap.

A server and a client in network namespaces of their own, joined by `shaped.ShapedLine`. All ways are alive at once and
take turns of some steps. Beside the times, the test metric that short training runs reach in the same wire formats.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from suture.launch.host.cores import ready_torch
from suture.launch.options.options import AskedOptions
from suture.launch.roles.one_process import play_locally
from suture.runtime.errors import ConfigError
from suture.runtime.rpc.transport import SERVER
from suture.studies.bench.page.line import PLAIN, kind
from suture.studies.bench.plan import LEASE, say
from suture.studies.bench.rigs import shaped
from suture.studies.bench.rigs.stage import Stage, seconds_by_line

_KEY = bytes(range(32))  # a benchmark's images are nobody's secret from itself
DATA_VARIABLE = "SUTURE_DATA"


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way over the line: options of a run.

    Attributes:
        name: what the table calls it.
        options: names and values.
        carrier: "rpc", or "grpc": over mutual TLS, as between sites.
        on_slow: timed on the slowest line, too.
        trained: runs are trained with it, for the metric.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    carrier: str = "rpc"
    on_slow: bool = False
    trained: bool = False


def _way(
    name: str, on_slow: bool = False, trained: bool = False, carrier: str = "rpc", **options: Any
) -> Way:
    options = {"exchange": "fused"} | options
    return Way(name=name, options=options, carrier=carrier, on_slow=on_slow, trained=trained)


WAYS = (
    _way(PLAIN, on_slow=True, trained=True, exchange="autograd"),
    _way("autograd bf16", exchange="autograd", wire="bf16"),
    _way("fused fp32", on_slow=True),
    _way("gRPC fp32", on_slow=True, carrier="grpc"),
    _way("fused fp32, overlap", overlap=True),
    _way("fused bf16", wire="bf16"),
    _way("fused int8", on_slow=True, trained=True, wire="int8"),
    _way("fused int8, overlap", on_slow=True, trained=True, wire="int8", overlap=True),
    _way("gRPC int8, overlap", on_slow=True, carrier="grpc", wire="int8", overlap=True),
    _way("fused topk:0.05", on_slow=True, trained=True, wire="topk:0.05"),
    _way("fused topk:0.05, overlap", on_slow=True, trained=True, wire="topk:0.05", overlap=True),
)


@dataclass(frozen=True, kw_only=True)
class LinePlan:
    """What is measured.

    Attributes:
        lines: Mbit/s each way and milliseconds one way, the fastest first.
        turn_steps: steps that a way takes before it is the next one's turn.
        turns: turns of each way at each rate.
        ways: what is compared with the first.
        seeds: training runs of each wire format, for the metric.
        epochs: rounds of each of these.
        image_size: pixels a side, of both.
        batch_size: images a step, of both.
    """

    lines: tuple[tuple[float, float], ...] = ((1000, 0.0), (100, 5.0), (20, 20.0))
    turn_steps: int = 6
    turns: int = 2
    ways: tuple[Way, ...] = WAYS
    seeds: int = 3
    epochs: int = 4
    image_size: int = 96
    batch_size: int = 8

    def options(self) -> AskedOptions:
        """The run whose steps are timed, before a way's own options."""
        return AskedOptions(
            data="fundus-phantom",  # names the task; no image is drawn
            model="resnet18",
            cut="2",
            image_size=self.image_size,
            batch_size=self.batch_size,
            clients=1,
            epochs=1,
            augment="none",
            checkpoints="off",  # all ways are alive at once, and none is timed while it writes
            lease=LEASE,
        )

    def rates(self, way: Way) -> tuple[float, ...]:
        """The rates at which a way is timed."""
        rates = tuple(megabits for megabits, _ in self.lines)
        return rates if way.on_slow or len(rates) == 1 else rates[:-1]

    def training(self, data: str) -> AskedOptions:
        """A run for the metric."""
        return replace(
            self.options(),
            data=data,
            clients=2,
            train_images=120,
            validation_images=0,
            test_images=32,
            epochs=self.epochs,
            augment="light",
        )


STANDARD = LinePlan()
QUICK = LinePlan(
    lines=((100, 5.0),),
    turn_steps=3,
    turns=1,
    ways=tuple(way for way in WAYS if way.name in (PLAIN, "gRPC fp32", "fused int8")),
    seeds=1,
    epochs=1,
    image_size=32,
)


def default_data(quick: bool) -> str:
    """Photographs where there are any, else drawn ones."""
    folder = Path(os.environ.get(DATA_VARIABLE, "")) / "idrid"
    return f"kaggle-dr:{folder}" if folder.is_dir() and not quick else "fundus-phantom"


def measure(*, quick: bool, data: str | None = None) -> dict[str, Any]:
    """Step times by way and rate, and the metric by wire format on ``data``.

    Raises:
        SutureError: a process failed.
    """
    plan = QUICK if quick else STANDARD
    with ExitStack() as stack:
        line = stack.enter_context(shaped.ShapedLine())
        line.shape(*plan.lines[0])
        stages: dict[str, Stage] = {}
        for way in plan.ways:
            rounds = 1 + plan.turns * len(plan.rates(way))
            options = replace(plan.options(), epochs=rounds, **way.options).resolved()
            stages[way.name] = stack.enter_context(
                Stage(options, unsplit=False, round_steps=plan.turn_steps, line=line, carrier=way.carrier)
            )
            stages[way.name].round()
        for megabits, latency in plan.lines:
            line.shape(megabits, latency)
            order = [way.name for way in plan.ways if megabits in plan.rates(way)]
            taken = dict.fromkeys(order, 0.0)
            for _ in range(plan.turns):
                for name in order:
                    taken[name] = stages[name].round()
                order.reverse()  # a drift of the machine's speed then favours none
            say(
                f"{megabits:g} Mbit/s and {latency:g} ms, a turn of {plan.turn_steps} steps: "
                + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in taken.items())
            )
        reports = {name: stage.finish()[SERVER] for name, stage in stages.items()}
    rows = [
        {
            "way": name,
            "bytes_up": report["bytes_up"],
            "bytes_down": report["bytes_down"],
            "seconds": {
                f"{megabits:g}": seconds
                for megabits, seconds in zip(
                    plan.rates(way), seconds_by_line(report["steps"], plan.turns), strict=True
                )
            },
        }
        for (name, report), way in zip(reports.items(), plan.ways, strict=True)
    ]
    metric = train(plan, data or default_data(quick), [way for way in plan.ways if way.trained])
    shown = {name: value for name, value in asdict(plan).items() if name != "ways"}
    return {"plan": shown, "rows": rows, "metric": metric}


def train(plan: LinePlan, data: str, ways: list[Way]) -> dict[str, Any]:
    """Test AUROC of short runs in one process, by what of a way changes the weights: all but the exchange."""
    kinds = {kind(way.name): {k: v for k, v in way.options.items() if k != "exchange"} for way in ways}
    found: dict[str, list[float]] = {}
    for seed in range(plan.seeds):
        for name, changing in kinds.items():
            try:
                options = replace(plan.training(data), **changing, exchange="local", seed=seed).resolved()
            except ConfigError as error:
                say(f"{name}: no metric: {error}")
                continue
            ready_torch(options)
            with tempfile.TemporaryDirectory(prefix="suture-bench-") as folder:
                scores = play_locally(options, _KEY, Path(folder)).run_state.scores
            auroc = statistics.mean(client["test"]["auroc"] for client in scores.values())
            found.setdefault(name, []).append(auroc)
            say(f"{name}, seed {seed}: test AUROC {auroc:.3f}")
    return {"name": "auroc", "data": data.partition(":")[0], "images": 120, "values": found}
