"""Where this program lies, for processes that start it again."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the packages."""


def python_path() -> str:
    """PYTHONPATH with which a new Python finds these packages first, whatever its working folder is."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
