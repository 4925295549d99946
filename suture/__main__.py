"""``python -m suture``; in a checkout where only the dependencies are installed also ``python suture/__main__.py``."""

import sys
from pathlib import Path

if not __package__:  # started as a file: Python put this file's folder on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from suture.entry import main

if __name__ == "__main__":
    main()
