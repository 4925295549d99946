"""``suture bench clients``: 1 to 32 clients in each schedule, over the same net unsplit on the same cores.

Real processes, a server and N clients. In a round every client takes its turn, hand-off included, in the order or at
the same time as the schedule has it, while the server writes the checkpoint of what was before. After some rounds in a
row, and when that last checkpoint is written, the unsplit net takes some steps alone.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from suture.launch.host.memory_check import check_memory
from suture.launch.options.options import AskedOptions, RunOptions
from suture.runtime.errors import ConfigError
from suture.runtime.rpc.transport import SERVER
from suture.studies.bench.plan import LEASE, say
from suture.studies.bench.rigs.stage import UNSPLIT, Stage

SCHEDULES = ("round-robin", "parallel", "splitfed", "concat")


@dataclass(frozen=True, kw_only=True)
class ClientsPlan:
    """What is measured.

    Attributes:
        turns: numbers of clients, and steps of each of them in a round.
        model: the net.
        image_size: pixels a side.
        batch_size: images a step.
        cut: where it is cut.
        blocks: how often split and unsplit take turns.
        rounds: timed rounds of a block, after one that is not: no checkpoint of an earlier one falls into it.
        unsplit_steps: timed steps of the unsplit net in a block, after one that is not.
        pause: seconds for the last checkpoint of a block.
    """

    turns: tuple[tuple[int, int], ...]
    model: str = "resnet18"
    image_size: int = 64
    batch_size: int = 16
    cut: str = "3"
    blocks: int = 2
    rounds: int = 5
    unsplit_steps: int = 15
    pause: float = 0.5

    def options(self, clients: int, schedule: str) -> RunOptions:
        """The run that is timed; SGD, so that the checkpoints of small turns do not hide everything else."""
        return AskedOptions(
            data="fundus-phantom",  # names the task; no image is drawn
            model=self.model,
            cut=self.cut,
            image_size=self.image_size,
            batch_size=self.batch_size,
            clients=clients,
            schedule=schedule,
            optimizer="sgd",
            epochs=self.blocks * (1 + self.rounds) + 1,
            augment="none",
            lease=LEASE,
        ).resolved()


STANDARD = ClientsPlan(
    turns=((1, 32), (2, 24), (4, 12), (8, 6), (16, 2), (32, 1)),
    model="torchvision:squeezenet1_1",
    cut="features.5",
    image_size=96,
)
QUICK = ClientsPlan(
    turns=((1, 2), (2, 1)),
    image_size=32,
    batch_size=2,
    rounds=1,
    unsplit_steps=1,
    pause=0.0,
)


def measure(*, quick: bool) -> dict[str, Any]:
    """Every number of clients in every schedule.

    Raises:
        SutureError: a process failed.
    """
    plan = QUICK if quick else STANDARD
    rows, left_out = [], []
    for count, turn_steps in plan.turns:
        try:
            check_memory(plan.options(count, SCHEDULES[0]), forked=True)
        except ConfigError as error:
            left_out.append(str(error))
            say(f"{count} clients: {error}")
            continue
        for schedule in SCHEDULES:
            row = measure_row(plan, count, turn_steps, schedule)
            rows.append(row)
            say(
                f"{count} clients, {schedule}: {row['images_per_second']:.1f} images/s, "
                f"{row['over_unsplit']:.3f} times unsplit"
            )
    return {"plan": asdict(plan), "rows": rows, "left_out": left_out}


def measure_row(plan: ClientsPlan, count: int, turn_steps: int, schedule: str) -> dict[str, Any]:
    """One line of the table."""
    with Stage(plan.options(count, schedule), unsplit=True, round_steps=turn_steps) as stage:
        rounds: list[float] = []
        unsplit: list[float] = []
        server = 0.0
        for _ in range(plan.blocks):
            stage.round()
            server -= stage.cpu_seconds([SERVER])
            rounds += [stage.round() for _ in range(plan.rounds)]
            # Else the checkpoint slows the unsplit net, and counts for nobody.
            time.sleep(plan.pause)
            server += stage.cpu_seconds([SERVER])
            unsplit += stage.block(UNSPLIT, 1 + plan.unsplit_steps)[1:]
        stage.round()  # the last, after which the processes end: nobody is asked for his seconds any more
        reports = stage.finish()
    images = count * turn_steps * plan.batch_size
    rate, plain = images / statistics.median(rounds), plan.batch_size / statistics.median(unsplit)
    return {
        "clients": count,
        "schedule": schedule,
        "turn_steps": turn_steps,
        "round_seconds": rounds,
        "unsplit_seconds": unsplit,
        "images_per_second": rate,
        "unsplit_images_per_second": plain,
        "over_unsplit": rate / plain,
        "server_cpu_seconds_a_step": server / (len(rounds) * count * turn_steps),
        "server_memory_bytes": reports[SERVER]["peak_memory_bytes"],
        "client_memory_bytes": statistics.median(
            reports[name]["peak_memory_bytes"] for name in stage.clients
        ),
        "client_own_memory_bytes": statistics.median(
            reports[name]["own_memory_bytes"] for name in stage.clients
        ),
    }
