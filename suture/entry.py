"""The ``suture`` command: begins what takes long, then reads the command line.

Kept free of imports: a command takes seconds to import, during which the fork server of a run can import as well.
"""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line."""
    words = sys.argv[1:]
    if words[:1] == ["train"] and not {"-h", "--help", "--unsplit", "local", "--exchange=local"} & set(words):
        from suture.launch.host import network_namespace
        from suture.launch.start import fork_server

        if network_namespace.said(words, "isolate", "auto") != "off":
            network_namespace.isolate(network_namespace.said(words, "interface", "lo"))
        fork_server.begin()
    from suture.cli import main as run

    run()
