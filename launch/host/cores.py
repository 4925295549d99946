"""What a rank takes of its machine: its share of the cores, and the memory that it once had."""

from __future__ import annotations

import os

import torch

from suture.launch.options.options import AskedOptions, RunOptions
from suture.runtime.host import allocator
from suture.runtime.scheduler import parse_schedule


def ranks_at_once(options: RunOptions, *, serves: bool, here: int) -> int:
    """How many ranks of this machine compute while this one does, itself included, and share its cores.

    Args:
        options: the run's, with ``clients``.
        serves: whether this is the server.
        here: ranks of this machine.
    """
    together = parse_schedule(options.schedule, options.seed).together
    if together is None or options.clients == 1:
        return 1  # they take turns; a single client and the server wait for each other
    if serves and together.server_waits_for_all:
        return 1
    return here


def ready_torch(options: AskedOptions, sharing: int = 1) -> None:
    """Sets torch's threads (torchrun sets them to one) and has torch keep the memory that it frees.

    Args:
        options: the run's.
        sharing: by how many ranks the cores are used at the same time; more threads than cores slow all of them.
    """
    allocator.keep_freed_memory()
    torch.set_num_threads(options.threads or max(1, (os.cpu_count() or 1) // sharing))
