"""Which modules of runtime/ one training step enters, noted by Python's profiler in every thread of a process."""

import sys
import threading
from pathlib import Path

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"


class Trace:
    """Notes the modules whose functions are called while it is on.

    What looks after members beside the steps (`Coordinator.watch`, `Client.wishes`) is no part of a step, nor is what
    writes its numbers down (`StepLog.step_done`), nor the inside of the loader: a step begins with the batch that it
    hands out.
    """

    beside = frozenset({"watch", "in_turn", "step_done", "train_batches"})

    def __init__(self) -> None:
        self.is_on = False
        self.entered: set[str] = set()
        self._here = threading.local()

    def start(self) -> None:
        """Every thread that Python starts from now on, and this one, is looked at."""
        threading.setprofile(self.profile)
        sys.setprofile(self.profile)

    def profile(self, frame, event, argument) -> None:
        """As `sys.setprofile` takes it; a thread of C++ that enters Python sets it for itself."""
        name = frame.f_code.co_name
        if name in self.beside:
            self._here.depth = getattr(self._here, "depth", 0) + {"call": 1, "return": -1}.get(event, 0)
            return
        if event == "call" and self.is_on and not getattr(self._here, "depth", 0):
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(RUNTIME):
                self.entered.add(str(file.relative_to(RUNTIME)))
