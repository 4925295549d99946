"""A rank of launch/run.py that, while it trains, tries to open the file TRY_TO_OPEN: from the thread of its every forward.

At a client that is the main thread, at the server one of RPC's. What came of it goes to a file in the folder of temporary
files, which inside the sandbox is the rank's own.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from suture.launch.rank import run_rank_command
from suture.runtime.client.step import ClientStep
from suture.runtime.server.model import ServerModel

TARGET = os.environ["TRY_TO_OPEN"]


def trying(role, forward):
    """``forward`` after an attempt whose outcome is written down."""

    def tried(*args, **kwargs):
        try:
            Path(TARGET).read_bytes()
            outcome = "opened"
        except OSError as error:
            outcome = f"refused: {error.strerror}"
        (Path(tempfile.gettempdir()) / f"attempt-{role}").write_text(outcome)
        return forward(*args, **kwargs)

    return tried


ClientStep.down = trying("client", ClientStep.down)
ServerModel.forward = trying("server", ServerModel.forward)

if __name__ == "__main__":
    run_rank_command()
