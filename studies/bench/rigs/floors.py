"""What no exchange can be faster than: a step's bytes copied in memory, and through a loopback TCP socket."""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import time

import torch

_CHUNK = 1 << 20


def floors(up: int, down: int, repeats: int = 10) -> dict[str, float]:
    """Median seconds of ``copy`` (both ways, within memory) and ``socket`` (up, then down, with another process)."""
    return {"copy": statistics.median(_copies(up + down, repeats)), "socket": _socket(up, down, repeats)}


def _copies(size: int, repeats: int) -> list[float]:
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begun)
    return times


def _socket(up: int, down: int, repeats: int) -> float:
    context = multiprocessing.get_context("forkserver")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = context.Process(
            target=_answer, args=(listener.getsockname()[1], up, down, repeats), daemon=True
        )
        other.start()
        listener.settimeout(60.0)
        line, _ = listener.accept()
        times, sent = [], bytes(up)
        with line:
            line.settimeout(60.0)
            for _ in range(repeats):
                begun = time.perf_counter()
                line.sendall(sent)
                _receive(line, down)
                times.append(time.perf_counter() - begun)
        other.join()
    return statistics.median(times)


def _answer(port: int, up: int, down: int, repeats: int) -> None:
    answer = bytes(down)
    with socket.create_connection(("127.0.0.1", port), timeout=60.0) as line:
        for _ in range(repeats):
            _receive(line, up)
            line.sendall(answer)


def _receive(line: socket.socket, size: int) -> None:
    place = memoryview(bytearray(min(size, _CHUNK)))
    while size > 0:
        got = line.recv_into(place[: min(size, _CHUNK)])
        if not got:
            raise ConnectionError("the other end of the benchmark's socket has gone")
        size -= got
