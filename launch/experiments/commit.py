"""Which commit of the program this is."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit's short hash, with a plus where files differ from it; "unknown" outside a repository."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            ended = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
            )
        except OSError:  # no git here
            return None
        return ended.stdout.strip() if ended.returncode == 0 else None

    found = git("rev-parse", "--short=12", "HEAD")
    if found is None:
        return "unknown"
    return found + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
