"""The warm process that starts members, as the harness sees it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Stage:
    """The warm process that starts members; see warm_process.py."""

    process: subprocess.Popen[str]

    def start(self, **order: Any) -> int:
        """Starts a member's keeper, or a replay; returns its process id."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def open_stage() -> Iterator[Stage]:
    """A stage that is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("warm_process.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield Stage(process)
    finally:
        process.kill()
        process.wait()
