"""``suture bench train``: split training against the same net unsplit, and what a waiting rank costs.

All are alive at once and take turns by blocks of steps, each way round, so that whatever else the machine does
hits all alike. Split training is one server and one client, as processes, over RPC, in either exchange.
"""

from __future__ import annotations

import math
import statistics
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from suture.runtime.errors import ConfigError
from suture.runtime.exchange import OVER_RPC
from suture.runtime.rpc.transport import SERVER
from suture.studies.bench.plan import Plan, Row, read_plan, say
from suture.studies.bench.rigs.stage import UNSPLIT, Stage
from suture.studies.statistics import ratio_interval


def measure(*, quick: bool, full: bool = False, only: str | None = None) -> dict[str, Any]:
    """``rows`` and ``idle``, for its section of the page.

    Args:
        quick: two small rows, which show that it works.
        full: every size, cut and width.
        only: rows whose name holds it; None for all.

    Raises:
        SutureError: an option that cannot work, or a process failed.
    """
    if full and quick:
        raise ConfigError("full and quick are opposites; leave one out")
    plan = read_plan("full" if full else "quick" if quick else "standard")
    if only is not None:
        found = tuple(row for row in plan.rows if only in row.name)
        if not found:
            known = ", ".join(row.name for row in plan.rows)
            raise ConfigError(f"only must be part of a row's name, got {only!r}; known: {known}")
        plan = replace(plan, rows=found)
    rows = []
    for number, row in enumerate(plan.rows, 1):
        rows.append(measure_row(row, plan))
        say(
            f"[{number}/{len(plan.rows)}] {row.name}: unsplit {rows[-1]['unsplit_median']:.3f} s a step, "
            + ", ".join(f"{exchange} {rows[-1][f'{exchange}_ratio']:.3f} times that" for exchange in OVER_RPC)
        )
    idle = measure_idle(plan)
    say(", ".join(f"{who}: {share:.1%} of a core" for who, share in idle.items()))
    return {"rows": rows, "idle": idle}


def measure_row(row: Row, plan: Plan) -> dict[str, Any]:
    """One line of the table."""
    with ExitStack() as stack:
        # The unsplit net stands beside the first exchange; all are alive at once.
        stages = {
            exchange: stack.enter_context(Stage(row.options(exchange=exchange), unsplit=number == 0))
            for number, exchange in enumerate(OVER_RPC)
        }
        timed: dict[str, tuple[Stage, str, tuple[str, ...]]]
        timed = {exchange: (stage, "client0", (SERVER, "client0")) for exchange, stage in stages.items()}
        timed[UNSPLIT] = (next(iter(stages.values())), UNSPLIT, (UNSPLIT,))
        times: dict[str, list[float]] = {name: [] for name in timed}
        cpu = dict.fromkeys(timed, 0.0)
        for stage, role, _ in timed.values():
            stage.block(role, plan.warm_up + 1)
        (step,) = timed[UNSPLIT][0].block(UNSPLIT, 1)
        block = max(plan.block, round(plan.block_seconds / step))
        order = list(timed)
        for _ in range(math.ceil(plan.steps / plan.block)):
            for name in order:
                stage, role, computing = timed[name]
                cpu[name] -= stage.cpu_seconds(computing)
                times[name] += stage.block(role, block)
                cpu[name] += stage.cpu_seconds(computing)
            order.reverse()  # a drift of the machine's speed then favours neither
        reports = {exchange: stage.finish() for exchange, stage in stages.items()}
    unsplit, fused = times[UNSPLIT], reports["fused"]
    peaks = {role: report["peak_memory_bytes"] for role, report in fused.items() if role != UNSPLIT}
    beside = next(report for report in reports.values() if UNSPLIT in report)[UNSPLIT]
    measured: dict[str, Any] = {
        "name": row.name,
        **asdict(row),
        "bytes_up": fused[SERVER]["bytes_up"],
        "bytes_down": fused[SERVER]["bytes_down"],
        "peak_memory_bytes": peaks | {UNSPLIT: beside["peak_memory_bytes"]},
    }
    for name, seconds in times.items():
        measured |= {
            f"{name}_seconds": seconds,
            f"{name}_median": statistics.median(seconds),
            f"{name}_cpu_seconds": cpu[name] / len(seconds),
        }
        if name != UNSPLIT:
            measured |= {
                f"{name}_ratio": statistics.median(seconds) / statistics.median(unsplit),
                f"{name}_ratio_interval": ratio_interval(seconds, unsplit),
            }
    return measured


def measure_idle(plan: Plan) -> dict[str, float]:
    """Shares of a core: of a client that waits for its turn, and of all ranks while nobody computes."""
    with Stage(plan.idle.options(clients=2), unsplit=False) as stage:
        stage.block("client0", plan.warm_up)
        waiting = stage.idle_share(["client1"], plan.idle_seconds, meanwhile="client0")
        quiet = stage.idle_share([SERVER, *stage.clients], plan.idle_seconds, meanwhile=None)
        stage.finish()
    return {
        "client waiting for its turn while another trains": waiting["client1"],
        "server while no client computes": quiet[SERVER],
        "client that holds the turn and does nothing": quiet["client0"],
    }
