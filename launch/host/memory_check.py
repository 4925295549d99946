"""Whether this machine's memory holds all ranks of a run, estimated before any of them is started.

An estimate from below: what a rank's own imports take, and weights, gradients and optimizer state of its part. What
activations take on top depends on too much; a run that is refused here would not have fitted.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

import suture.models.registry as nets
from suture.launch.options.model import as_config_error, parse_cut
from suture.launch.options.options import RunOptions
from suture.runtime.errors import ConfigError

RANK_BYTES = 300_000_000
"""What a rank takes that has imported everything and joined, measured at 330 to 400 MB."""

FORKED_RANK_BYTES = 100_000_000
"""The same of one that shares its imports with others: what it writes to."""

_COPIES = {"adam": 4, "sgd": 2}
"""How often the weights are there while training: themselves, their gradients, and Adam's two moments."""


def estimate(options: RunOptions, *, forked: bool = False) -> int:
    """Bytes that the ranks of a run take, at least.

    Args:
        options: resolved.
        forked: the ranks share what was imported before they were started.
    """
    with as_config_error(), torch.device("meta"):
        split = nets.build(
            options.model,
            cut=parse_cut(options.cut),
            num_outputs=2,
            labels=options.labels,
            width=options.width,
        )
    weights = {
        name: sum(p.numel() * p.element_size() for p in part.parameters())
        for name, part in split.parts().items()
    }
    top, clients = weights.pop("top"), options.clients
    copies = _COPIES[options.optimizer]
    rank = FORKED_RANK_BYTES if forked else RANK_BYTES
    return rank * (clients + 1) + copies * (top + clients * sum(weights.values()))


def check_memory(options: RunOptions, *, forked: bool = False) -> None:
    """Refuses a run that cannot fit into this machine's free memory.

    Args:
        options: resolved.
        forked: as in `estimate`.

    Raises:
        ConfigError: names need, what is free, and the remedy.
    """
    need, free = estimate(options, forked=forked), free_memory()
    if need > free:
        clients = options.clients
        raise ConfigError(
            f"clients is {clients}: {clients + 1} processes need at least {need / 1e9:.1f} GB of "
            f"memory, {free / 1e9:.1f} GB are free here; use fewer --clients, several machines, "
            "or --exchange local (one process)"
        )


def free_memory() -> int:
    """Bytes that can be had without swapping: the machine's, or what a container's limit leaves."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (
            (group / "memory.max").read_text(encoding="utf-8").strip(),
            (group / "memory.current").read_text(encoding="utf-8"),
        )
        return free if limit == "max" else min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        return free  # no such limits here
