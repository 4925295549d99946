"""The page's section on many clients, from what ``suture.studies.bench.clients`` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.launch.output.figures.canvas import COLOURS, drawn
from suture.studies.table import megabytes

TITLE = "Many clients"
AIM, AIM_CLIENTS = 0.95, 8
_FLAT = 1.25


def lines(found: Mapping[str, Any]) -> list[str]:
    """The section's text."""
    plan, rows = found["plan"], found["rows"]
    rounds = plan["rounds"]
    said = [
        f"{plan['model']} at {plan['image_size']} px, cut {plan['cut']}, batch {plan['batch_size']}, SGD; one "
        "server and N clients, processes of this machine, over RPC and in the sandbox. In a round every client takes a "
        "turn, its hand-off included, while the server writes the last checkpoint. The study's turns have 32 steps; "
        "where there are many clients theirs are shorter here, and hand-offs count for more. Ranks that compute at "
        "once share the cores, as in `suture train`; the unsplit net has them all. Medians of "
        f"{plan['blocks'] * rounds} rounds, {rounds} in a row; then, with the last checkpoint written, the unsplit net "
        "takes steps alone. The server's seconds a step are processor seconds of its whole process. The processes are "
        "forked from one, and share what that had imported: own memory is what a client has to itself at the end.",
        "",
        "| clients | steps a turn | schedule | images/s | over unsplit | server, CPU s a step "
        "| peak memory: server, a client | a client's own memory |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
    ]
    if found["missing_schedules"]:
        said += [f"Not in this version: {', '.join(found['missing_schedules'])}.", ""]
    said += [f"- left out: {reason}" for reason in found["left_out"]]
    return said + [f"- {verdict}" for verdict in verdicts(rows)]


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the aims are met, a sentence each."""
    said = []
    few = [row for row in rows if row["schedule"] == "parallel" and row["clients"] <= AIM_CLIENTS]
    if few:
        worst = min(few, key=lambda row: float(row["over_unsplit"]))
        met = "met" if worst["over_unsplit"] >= AIM else "**not met**"
        said.append(
            f"parallel at least {AIM:.2f} of unsplit with 1 to {AIM_CLIENTS} clients: {met}; the smallest is "
            f"{worst['over_unsplit']:.3f} with {worst['clients']}."
        )
    for schedule in dict.fromkeys(row["schedule"] for row in rows):
        ours = [row for row in rows if row["schedule"] == schedule]
        first, last = ours[0], ours[-1]
        grown = last["server_cpu_seconds_a_step"] / max(first["server_cpu_seconds_a_step"], 1e-9)
        met = "flat" if grown <= _FLAT else "**not flat**"
        said.append(
            f"server's seconds a step, {schedule}: {met}; with {last['clients']} clients, turns of "
            f"{last['turn_steps']}, {grown:.2f} times those with {first['clients']}, turns of {first['turn_steps']}."
        )
    return said


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Images/s over unsplit, and the server's seconds a step, against the number of clients."""
    rows = found["rows"]
    schedules = list(dict.fromkeys(row["schedule"] for row in rows))
    with drawn(path, 9.0, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        for number, schedule in enumerate(schedules):
            ours = [row for row in rows if row["schedule"] == schedule]
            counts = [row["clients"] for row in ours]
            look: dict[str, Any] = {"color": COLOURS[number], "marker": "o", "ms": 4, "label": schedule}
            left.plot(counts, [row["over_unsplit"] for row in ours], **look)
            right.plot(counts, [1e3 * row["server_cpu_seconds_a_step"] for row in ours], **look)
        left.plot([1, AIM_CLIENTS], [AIM, AIM], color="#404040", lw=1.0, ls=":", label="aim, parallel")
        counts = sorted({row["clients"] for row in rows})
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.set_xlabel("clients")
            axes.set_ylim(bottom=0)
        left.set_title("Images a second over unsplit")
        right.set_title("Server: CPU milliseconds a step")
        left.legend()


def _line(row: Mapping[str, Any]) -> str:
    memory = [row[f"{whose}_memory_bytes"] for whose in ("server", "client", "client_own")]
    server, client, own = map(megabytes, memory)
    return (
        f"| {row['clients']} | {row['turn_steps']} | {row['schedule']} | {row['images_per_second']:.1f} "
        f"| {row['over_unsplit']:.3f} | {row['server_cpu_seconds_a_step']:.4f} | {server}, {client} | {own} |"
    )
