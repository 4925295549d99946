"""Which machine a benchmark or an experiment was run on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil
import torch


def machine() -> dict[str, Any]:
    """Where and when, and how busy the machine was before the benchmark added its own load."""
    memory = psutil.virtual_memory().total
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": list(os.getloadavg()),
    }


def processor() -> str:
    """The processor's name, or its architecture where the system does not say one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
