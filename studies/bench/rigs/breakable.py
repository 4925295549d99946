"""A line between a site and the server that can be broken, at both ends or at the site's only."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class BreakableLine:
    """Passes bytes on to ``server``, HOST:PORT, from an own port of this machine; to be used in a ``with``."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lines: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> BreakableLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads.pop(0).join()
        for line in self._lines:
            for end in line:
                _end(end)
        for thread in self._threads:
            thread.join()
        for line in self._lines:
            for end in line:
                end.close()

    @property
    def num_lines(self) -> int:
        """Connections so far."""
        return len(self._lines)

    def break_lines(self, *, at_both_ends: bool = True) -> None:
        """Ends every connection; with ``at_both_ends`` False the server hears nothing of it, as behind some proxies."""
        for site, server in self._lines:
            _end(site)
            if at_both_ends:
                _end(server)

    def _accept(self) -> None:
        while True:
            try:
                site, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                site.close()
                continue
            self._lines.append((site, server))
            for from_and_to in ((site, server, False), (server, site, True)):
                self._threads.append(threading.Thread(target=_pass_on, args=from_and_to))
                self._threads[-1].start()


def _pass_on(one: socket.socket, other: socket.socket, end: bool) -> None:
    """Passes bytes on until ``one`` ends; with ``end`` the other is ended, too."""
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    if end:
        _end(other)


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
