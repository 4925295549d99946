"""Options: what a rank takes of its machine, and what it gives up there."""

from __future__ import annotations

from dataclasses import dataclass

from suture.launch.options.group import Group, option


@dataclass(frozen=True, kw_only=True)
class HostOptions(Group):
    """Rights, cores and devices of a rank."""

    sandbox: str = option(
        "auto",
        "take from each rank, before a peer can reach it, the right to files that are not its own (Linux Landlock); "
        "auto: where that can be done, and say so",
        choices=("auto", "on", "off"),
        free=True,
    )
    isolate: str = option(
        "auto",
        "suture train: give the ranks a network namespace of their own, so that no other user of this machine reaches "
        "their ports (Linux); auto: where the system lets an ordinary user make one, else say so",
        choices=("auto", "on", "off"),
        free=True,
    )
    threads: int | None = option(
        None,
        "computing threads of each rank (default: all cores, shared by ranks that compute at once)",
        least=1,
        free=True,
    )
    device: str = option("auto", "where parts compute", choices=("auto", "cpu", "cuda"), free=True)
    profile: bool = option(
        False,
        "write down where each step's time goes: the server's into metrics.jsonl, a client's into its own folder, "
        "and figures/profile.png",
        free=True,
    )
