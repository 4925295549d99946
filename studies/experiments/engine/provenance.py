"""Where, when asked for how, and with which commit of the program an experiment was run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from suture import __version__
from suture.runtime.state.checkpoint import write_atomically
from suture.studies.experiments.engine.plan import Request
from suture.studies.machine import processor

MACHINE = "machine.json"


def write_provenance(request: Request, folder: Path) -> None:
    """Writes where an experiment is run; a later command on the same folder is added to those before."""
    path, told = folder / MACHINE, machine(request)
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        commands = before["command"].split("; ")
        if told["command"] in commands:
            return
        told = before | {"command": "; ".join([*commands, told["command"]])}
    write_atomically(path, (json.dumps(told, indent=1) + "\n").encode())


def machine(request: Request) -> dict[str, Any]:
    """Where and with what an experiment was run, for the report."""
    asked = ["suture experiment", request.name, "--scale", request.scale]
    if request.budget is not None:
        asked += ["--budget", f"{request.budget:g}"]
    if request.num_seeds is not None:
        asked += ["--seeds", str(request.num_seeds)]
    if request.config is not None:
        asked += ["--config", request.config.name]
    return {
        "command": " ".join(asked),
        "commit": commit(),
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "suture": __version__,
        "runs at a time": request.slots,
    }


def commit() -> str:
    """The commit's short hash, with a plus where files differ from it; "unknown" outside a repository."""
    root = Path(__file__).resolve().parents[3]

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
