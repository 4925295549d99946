"""glibc's allocator, told to keep what a training step frees: the next step needs just as much.

By default it gives freed memory of any size back to the system, which hands it out again page by page and zeroed. A
training step of a ResNet-34 at 128 px then meets some 60,000 page faults, a tenth of its time; kept, a few hundred.

Reference: mallopt(3).
"""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
_MOST = 2**31 - 1
_HEAP = 64 * 2**20


def keep_freed_memory() -> None:
    """Has this process keep freed memory for itself: its size stays at its peak. Does nothing without glibc."""
    mallopt(MMAP_THRESHOLD, _MOST)
    mallopt(TRIM_THRESHOLD, _MOST)
    # Threads but the main one have heaps of this size, and give up one that is empty unless told to keep as much.
    mallopt(TOP_PAD, _HEAP)


def mallopt(option: int, value: int) -> bool:
    """mallopt(3); whether there is one and it took the value."""
    try:
        return bool(ctypes.CDLL(None).mallopt(option, value))
    except (AttributeError, OSError, TypeError):  # musl has none; Windows has no such library
        return False
