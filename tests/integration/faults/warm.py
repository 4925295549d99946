"""The warm process that starts members, as the harness sees it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forks import ask, warm_process


@dataclass
class Stage:
    """The warm process that starts members; see warm_process.py."""

    process: "subprocess.Popen[str]"

    def start(self, **order: Any) -> int:
        """Starts a member's keeper, or a replay; returns its process id."""
        return ask(self.process, order)


@contextmanager
def open_stage() -> Iterator[Stage]:
    """A stage that is gone afterwards."""
    with warm_process(str(Path(__file__).with_name("warm_process.py"))) as process:
        yield Stage(process)
