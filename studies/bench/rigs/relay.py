"""The relay of a shaped line: what comes in at one end goes out at the other, some milliseconds later.

A program of its own, given the network namespace, that imports nothing heavy; it says when it is ready, on
its output. Each line of its input is a latency, in milliseconds, from then on; it ends with its input.
"""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress

from suture.studies.bench.rigs.shaped import enter

_PACKET_VNET_HDR, _SOL_PACKET, _ETH_P_ALL = 15, 263, 3
_FRAME = 1 << 17


def pass_on(namespace: str) -> None:
    """The relay's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    enter(namespace)
    ends = [_tap(f"end{number}") for number in (1, 2)]
    selector = selectors.DefaultSelector()
    for index, end in enumerate(ends):
        selector.register(end, selectors.EVENT_READ, index)
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    print("ready", flush=True)
    waiting: list[tuple[float, int, int, bytes]] = []
    number, latency = 0, 0.0
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for key, _ in selector.select(pause):
            if key.data is None:
                said = os.read(sys.stdin.fileno(), 4096).split()
                if not said:  # who started it is gone
                    return
                latency = float(said[-1]) / 1e3
                continue
            while True:
                try:
                    frame, address = ends[key.data].recvfrom(_FRAME)
                except BlockingIOError:
                    break
                if address[2] != socket.PACKET_OUTGOING:  # a tap sees what it has sent itself, too
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + latency, number, 1 - key.data, frame))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, out, frame = heapq.heappop(waiting)
            with suppress(OSError):  # as on any line, a frame may be lost; TCP sends it again
                ends[out].send(frame)


def _tap(interface: str) -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    tap.bind((interface, _ETH_P_ALL))
    # Segments that the kernel has not cut into packets pass as they are, with the header that says so.
    tap.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        tap.setsockopt(socket.SOL_SOCKET, option, 1 << 24)
    tap.setblocking(False)
    return tap


if __name__ == "__main__":
    pass_on(sys.argv[1])
