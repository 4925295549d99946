"""Where this program lies, for processes that start it again."""

from __future__ import annotations

import sys
from pathlib import Path

import suture

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the packages: a checkout, or the installed package."""

SUTURE = (sys.executable, str(Path(suture.__file__).with_name("__main__.py")))
"""The ``suture`` command of this very program, whatever is installed and whatever the working folder is."""
