"""RUN/summary.json: what a run came to, in one small file."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.launch.options.options import RunOptions
from suture.models.plugins import split
from suture.runtime.errors import WireError
from suture.runtime.host.disk import writing
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.state.checkpoint import write_atomically


def summarise(
    options: RunOptions, coordinator: Coordinator, events: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The summary of a run that has ended; ``events`` are all of its metrics.jsonl, before a resume too.

    Where the clients report different weights ``weights_sha256`` is None and ``disagreement`` says so.
    """
    run_state, totals = coordinator.run_state, coordinator.run_state.totals
    clients: dict[str, dict[str, dict[str, float]]] = {}
    for name in coordinator.trained_clients():
        clients[name] = dict(run_state.scores.get(name, {}))
        if name in run_state.train_loss:
            clients[name]["train"] = {"loss": run_state.train_loss[name]} | _num_images(coordinator, name)
    try:
        digest, disagreement = coordinator.weights_sha256(), None
    except WireError as error:  # hours of training must not lose their summary to one client's word
        digest, disagreement = None, str(error)
    memory = {name: farewell.peak_memory for name, farewell in coordinator.farewells().items()}
    memory |= {"server": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    trained_on = header(options)
    if coordinator.membership.door is not None:
        del trained_on["data"]  # each site has its own, and the server none
    return {
        **trained_on,
        "clients": clients,
        "wall_seconds": run_state.wall_seconds(),
        "seconds": _seconds(coordinator),
        "images_per_second": totals.train_images / max(totals.train_seconds, 1e-9),
        "wire_bytes_per_step": {"up": totals.bytes_up, "down": totals.bytes_down},
        "peak_memory_bytes": memory,
        "turns": len(run_state.turn_log.entries),
        "rolled_back_turns": sum(event["event"] == "rolled_back" for event in events),
        "lost_clients": list(coordinator.membership.lost),
        "rounds": run_state.turn_log.round,
        "best_round": run_state.best_round,
        "best": run_state.best_scores,
        "attack": {},
        "weights_sha256": digest,
    } | ({} if disagreement is None else {"disagreement": disagreement})


def _num_images(coordinator: Coordinator, client: str) -> dict[str, float]:
    member = coordinator.membership.get(client)
    return {} if member is None or member.hello is None else {"num_images": member.hello.num_images}


def _seconds(coordinator: Coordinator) -> dict[str, float]:
    """Where the time went: turns that counted, and all the rest, which is waiting, hand-offs and what was undone."""
    totals, wall = coordinator.run_state.totals, coordinator.run_state.wall_seconds()
    counted = {"training": totals.train_seconds, "evaluating": totals.evaluate_seconds}
    return counted | {"waiting and handing over": max(0.0, wall - sum(counted.values()))}


def header(options: RunOptions) -> dict[str, Any]:
    """What was trained on what."""
    return {
        "task": options.task,
        "model": options.model,
        "cut": options.cut,
        "data": split(options.data)[0],
        "seed": options.seed,
        "exchange": "unsplit" if options.unsplit else options.exchange,
    }


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Writes RUN/summary.json atomically.

    Raises:
        CheckpointError: it cannot be written; a run that is resumed writes it again.
    """
    path = run_dir / "summary.json"
    with writing(path):
        write_atomically(path, (json.dumps(summary, indent=2) + "\n").encode())


def final_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Means over the clients of the last train loss and test scores, for TensorBoard's HPARAMS tab."""
    collected: dict[str, list[float]] = {}
    for scores in summary["clients"].values():
        for phase in ("train", "test"):
            for name, value in scores.get(phase, {}).items():
                collected.setdefault(f"{phase}_{name}", []).append(value)
    return {name: sum(values) / len(values) for name, values in collected.items()}
