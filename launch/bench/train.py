"""``suture bench train``: split training against the same net unsplit, and what a waiting rank costs.

Both are alive at once and take turns by blocks of steps, each way round, so that whatever else the machine does
hits both alike. Split training is one server and one client, as processes, over RPC (``--exchange autograd``).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from launch.bench import report
from launch.bench.plan import FULL, QUICK, STANDARD, Plan, Row
from launch.bench.stage import UNSPLIT, Stage
from runtime.errors import ConfigError
from runtime.transport import SERVER

DOCS = Path("docs")


def run_command(*, full: bool, quick: bool, only: str | None, out: Path | None) -> None:
    """``suture bench train``.

    Raises:
        SutureError: an option that cannot work, or a process failed.
    """
    if full and quick:
        raise ConfigError("full and quick are opposites; leave one out")
    plan = FULL if full else QUICK if quick else STANDARD
    if only is not None:
        rows = tuple(row for row in plan.rows if only in row.name)
        if not rows:
            known = ", ".join(row.name for row in plan.rows)
            raise ConfigError(f"only must be part of a row's name, got {only!r}; known: {known}")
        plan = replace(plan, rows=rows)
    if out is None and not quick and only is None:
        out = DOCS
    flags = [("--full", full), ("--quick", quick), (f"--only {only}", only is not None)]
    command = " ".join(["suture bench train", *(flag for flag, given in flags if given)])
    where = report.machine()
    measured = run_plan(plan, print)
    if out is None:
        print(report.page(command, where, measured))
    else:
        report.write(out, command, where, measured)
        print(f"wrote {out / 'benchmarks.md'}")


def run_plan(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures everything in ``plan``.

    Args:
        plan: what and how long.
        say: is told a line a row.

    Returns:
        ``rows`` and ``idle``, for `report`.

    Raises:
        SutureError: a process failed; its error is in the message.
    """
    rows = []
    for number, row in enumerate(plan.rows, 1):
        rows.append(measure_row(row, plan))
        say(
            f"[{number}/{len(plan.rows)}] {row.name}: split {rows[-1]['split_median']:.3f} s, "
            f"unsplit {rows[-1]['unsplit_median']:.3f} s a step, ratio {rows[-1]['ratio']:.3f}"
        )
    idle = measure_idle(plan)
    say(", ".join(f"{who}: {share:.1%} of a core" for who, share in idle.items()))
    return {"rows": rows, "idle": idle}


def measure_row(row: Row, plan: Plan) -> dict[str, Any]:
    """One line of the table."""
    times: dict[str, list[float]] = {"client0": [], UNSPLIT: []}
    cpu, computing = dict.fromkeys(times, 0.0), {"client0": (SERVER, "client0"), UNSPLIT: (UNSPLIT,)}
    with Stage(row.options(), unsplit=True) as stage:
        for role in times:
            stage.block(role, plan.warm_up)
        order = [UNSPLIT, "client0"]
        while len(times[UNSPLIT]) < plan.steps:
            for role in order:
                cpu[role] -= stage.cpu_seconds(computing[role])
                times[role] += stage.block(role, min(plan.block, plan.steps - len(times[role])))
                cpu[role] += stage.cpu_seconds(computing[role])
            order.reverse()  # a drift of the machine's speed then favours neither
        reports = stage.finish()
    split, unsplit = times["client0"], times[UNSPLIT]
    return {
        "name": row.name,
        **asdict(row),
        "split_median": statistics.median(split),
        "unsplit_median": statistics.median(unsplit),
        "ratio": statistics.median(split) / statistics.median(unsplit),
        "ratio_interval": ratio_interval(split, unsplit),
        "split_cpu_seconds": cpu["client0"] / plan.steps,
        "unsplit_cpu_seconds": cpu[UNSPLIT] / plan.steps,
        "bytes_up": reports[SERVER]["bytes_up"],
        "bytes_down": reports[SERVER]["bytes_down"],
        "peak_memory_bytes": {role: report["peak_memory_bytes"] for role, report in reports.items()},
        "split_seconds": split,
        "unsplit_seconds": unsplit,
    }


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


def ratio_interval(split: Sequence[float], unsplit: Sequence[float], draws: int = 2000) -> list[float]:
    """95% interval of the ratio of medians, by the percentile bootstrap (Efron and Tibshirani 1993)."""
    chance = random.Random(0)
    ratios = sorted(
        statistics.median(chance.choices(split, k=len(split)))
        / statistics.median(chance.choices(unsplit, k=len(unsplit)))
        for _ in range(draws)
    )
    return [ratios[int(0.025 * draws)], ratios[int(0.975 * draws) - 1]]
