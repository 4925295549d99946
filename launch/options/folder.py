"""Options: where a run is kept, and whether it goes on with what is kept there."""

from __future__ import annotations

from dataclasses import dataclass

from suture.launch.options.group import Group, option
from suture.runtime.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FolderOptions(Group):
    """RUN, and what it is kept for."""

    run_dir: str | None = option(None, "folder of the run (default: runs/<time>)", free=True)
    resume: bool = option(False, "go on from the newest checkpoint in --run-dir", free=True)
    checkpoints: str = option(
        "turn",
        "turn: one after every turn; off: none, for short runs that can start anew",
        choices=("turn", "off"),
        free=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.checkpoints == "off":
            raise ConfigError("resume goes on from a checkpoint: use --checkpoints turn, or start it anew")
        if self.resume and self.run_dir is None:
            raise ConfigError("resume needs --run-dir: name the folder of the run to go on with")
