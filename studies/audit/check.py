"""The audit's check: one of its runs again with real processes, whose weights must be the same bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from suture.launch.host.program import SUTURE
from suture.launch.options.options import AskedOptions
from suture.launch.options.toml import to_arguments
from suture.runtime.errors import SutureError
from suture.runtime.host.private_files import replace_private
from suture.runtime.wire.compression import parse_format
from suture.studies.audit.plan import Point
from suture.studies.audit.point import Means, options_of


def check_with_processes(
    point: Point, result: Mapping[str, Any], base: AskedOptions, means: Means, folder: Path, key: str
) -> str:
    """Trains ``point`` over RPC with its key (hex) and compares; returns a sentence.

    Raises:
        SutureError: the run failed, or its weights are others.
    """
    options = options_of(point, base, means, "static")
    run_dir = folder / "check"
    shutil.rmtree(run_dir, ignore_errors=True)
    key_file = folder / "check.key"
    replace_private(key_file, f"{key}\n".encode())
    # A passive attack leaves the weights alone, so the check goes without it.
    options = replace(
        options,
        attack=None,
        exchange="autograd" if parse_format(options.wire).differentiable else "fused",
        handoff_key=str(key_file),
        run_dir=str(run_dir),
    )
    command = [*SUTURE, "train", *to_arguments(options)]
    ended = subprocess.run(command, capture_output=True, check=False)
    if ended.returncode != 0:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        raise SutureError(f"the check with real processes failed: {said[-1] if said else ended.returncode}")
    found = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["weights_sha256"]
    if found != result["weights_sha256"]:
        raise SutureError(
            f"the check with real processes came to weights {found}, the audit's {point.name} to "
            f"{result['weights_sha256']}: the audit does not speak for a real run"
        )
    return f"check: {point.name} over RPC with real processes has the same weights ({found[:12]}...)"
