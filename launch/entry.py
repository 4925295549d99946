"""The ``suture`` command: begins what takes long, then reads the command line.

Kept free of imports: `launch.cli` takes a second or two, during which the fork server of a run can import as well.
"""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line."""
    words = sys.argv[1:]
    if words[:1] == ["train"] and not {"-h", "--help", "--unsplit", "local", "--exchange=local"} & set(words):
        from launch import forked, isolation

        if isolation.said(words, "isolate", "auto") != "off":
            isolation.isolate(isolation.said(words, "interface", "lo"))
        forked.begin()
    from launch.cli import main as run

    run()
