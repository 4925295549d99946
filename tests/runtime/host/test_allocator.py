"""glibc's allocator keeps what was freed; page faults are counted by the kernel."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from suture.runtime.host import allocator

ROOT = Path(__file__).resolve().parents[3]
COUNTS = """
import resource, sys, threading
import torch
from suture.runtime.host.allocator import keep_freed_memory

def step():
    [torch.ones(millions * 1_000_000) for millions in (1, 2, 5, 10, 3)]

def work():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
if sys.argv[2] == "main":
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


def faults(*how):
    command = [sys.executable, "-c", COUNTS, *how]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system's allocator is not glibc's")
@pytest.mark.parametrize("thread", ["main", "other"])
def test_memory_that_was_freed_is_there_for_the_next_tensor(thread):
    """Oracle: 84 MB of tensors five times are 100,000 pages of 4 KiB, of which more than half fault again unless kept.

    Where the heap begins is drawn anew for each process, and in one of four it leaves no hole that all tensors fit in.
    """
    assert faults("left", thread) > 4 * min(faults("kept", thread) for _ in range(6))


def test_a_system_without_mallopt_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.mallopt(allocator.TOP_PAD, 1) is False
    allocator.keep_freed_memory()
