"""``suture bench sites``: what runs between sites, gRPC over mutual TLS, beside torch RPC on the same lines.

Steps, hand-offs, handshakes and joining over `shaped.ShapedLine`; and real processes of ``suture serve`` and
``suture join`` on this machine (``suture.studies.bench.rigs.consortium``).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from suture.launch.options.options import AskedOptions, RunOptions
from suture.runtime.rpc.transport import SERVER
from suture.studies.bench.plan import LEASE, say
from suture.studies.bench.rigs import consortium
from suture.studies.bench.rigs.consortium import ConsortiumPlan
from suture.studies.bench.rigs.shaped import ShapedLine
from suture.studies.bench.rigs.stage import Stage, seconds_by_line

CARRIERS = ("rpc", "grpc")


@dataclass(frozen=True, kw_only=True)
class SitesPlan:
    """What is measured.

    Attributes:
        lines: Mbit/s each way and milliseconds one way.
        turn_steps: steps that a carrier takes before it is the other one's turn.
        turns: turns of each carrier at each line.
        handoff_cut: of ResNet-18, whose client's parts are handed over.
        handoff_rounds: timed, after one that is not; of two clients, so that all but the first turn begin with a
            hand-off.
        visits: joins of one site at each line.
        consortium: real processes.
    """

    lines: tuple[tuple[float, float], ...] = ((1000, 0.0), (100, 5.0), (20, 20.0))
    turn_steps: int = 6
    turns: int = 5
    handoff_cut: str = "6"
    handoff_rounds: int = 3
    visits: int = 10
    consortium: ConsortiumPlan = field(default_factory=ConsortiumPlan)

    def steps(self) -> RunOptions:
        """A run whose steps are timed over a line: 4.7 MB each way."""
        rounds = 1 + self.turns * len(self.lines)
        return _options(model="resnet18", cut="2", image_size=96, batch_size=8, clients=1, epochs=rounds)

    def handoffs(self) -> RunOptions:
        """A run of small steps and large hand-offs."""
        rounds = 1 + self.handoff_rounds
        cut = self.handoff_cut
        return _options(model="resnet18", cut=cut, image_size=32, batch_size=2, clients=2, epochs=rounds)


def _options(**chosen: Any) -> RunOptions:
    return AskedOptions(
        data="fundus-phantom",  # names the task; no image is drawn
        optimizer="sgd",
        augment="none",
        checkpoints="off",  # a server's disk is no part of the line
        lease=LEASE,
        **chosen,
    ).resolved()


STANDARD = SitesPlan()
QUICK = SitesPlan(
    lines=((100, 5.0),),
    turn_steps=3,
    turns=1,
    handoff_cut="4",
    handoff_rounds=1,
    visits=2,
    consortium=ConsortiumPlan(sites=2, cuts=1),
)


def measure(*, quick: bool) -> dict[str, Any]:
    """All of it.

    Raises:
        SutureError: a process failed.
    """
    plan = QUICK if quick else STANDARD
    with ShapedLine() as line:
        steps = _steps(plan, line)
        handed, visits = [], []
        for megabits, latency in plan.lines:
            line.shape(megabits, latency)
            handed.append({carrier: _handed(plan, line, carrier) for carrier in CARRIERS})
            with Stage(
                plan.handoffs(), unsplit=False, line=line, carrier="grpc", visits=plan.visits
            ) as stage:
                visits.append(stage.visit())
            say(f"{megabits:g} Mbit/s and {latency:g} ms: hand-offs and joining are measured")
    return {
        "plan": asdict(plan),
        "steps": steps,
        "handed": handed,
        "handshakes": [visit["handshakes"] for visit in visits],
        "joins": [visit["joins"] for visit in visits],
        "consortium": consortium.measure(plan.consortium),
    }


def _steps(plan: SitesPlan, line: ShapedLine) -> list[dict[str, list[float]]]:
    """Seconds of the same step over each carrier, by line; the carriers are alive at once and take turns."""
    line.shape(*plan.lines[0])
    with ExitStack() as stack:
        stages = {}
        for carrier in CARRIERS:
            stages[carrier] = stack.enter_context(
                Stage(plan.steps(), unsplit=False, round_steps=plan.turn_steps, line=line, carrier=carrier)
            )
            stages[carrier].round()
        order = list(CARRIERS)
        for megabits, latency in plan.lines:
            line.shape(megabits, latency)
            for _ in range(plan.turns):
                for carrier in order:
                    stages[carrier].round()
                order.reverse()  # a drift of the machine's speed then favours neither
            say(f"{megabits:g} Mbit/s and {latency:g} ms: {plan.turns} turns of {plan.turn_steps} steps each")
        reports = {carrier: stage.finish()[SERVER] for carrier, stage in stages.items()}
    found = {carrier: seconds_by_line(report["steps"], plan.turns) for carrier, report in reports.items()}
    return [{carrier: found[carrier][place] for carrier in CARRIERS} for place in range(len(plan.lines))]


def _handed(plan: SitesPlan, line: ShapedLine, carrier: str) -> list[tuple[str, int, float]]:
    """Hand-offs: "up" or "down", bytes, seconds; each client's first of a kind is left out."""
    with Stage(plan.handoffs(), unsplit=False, round_steps=1, line=line, carrier=carrier) as stage:
        for _ in range(1 + plan.handoff_rounds):
            stage.round()
        reports = stage.finish()
    return [
        entry
        for client in stage.clients
        for direction in ("up", "down")
        for entry in [entry for entry in reports[client]["handed"] if entry[0] == direction][1:]
    ]
