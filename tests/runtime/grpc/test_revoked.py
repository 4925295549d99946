"""Who was revoked has no part any more: at the server, in the middle of a run, and at a site that looks at its server.

Oracle: the errors' classes, which decide whether a site tries again, and their words; a real server over TLS.
"""

import pytest
from house import LONG, joins, running
from kits import Consortium

from suture.launch.kits.revoke import revoke
from suture.launch.site import join
from suture.runtime.errors import ConfigError, EvictedError, PeerLostError, SutureError
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc.client import GrpcClient
from suture.runtime.participant.participant import NoClientObserver
from suture.runtime.wire.messages import Hello


def joined(made, own: Consortium, name: str) -> tuple[GrpcClient, GrpcExchange]:
    """A site that has joined and stays."""
    line = GrpcClient(own.config(made, name), made.thread)
    made.lines.append(line)
    exchange = GrpcExchange(line)
    exchange.join(Hello(name, {}, 6, 3))
    return line, exchange


def test_a_site_that_was_revoked_is_not_let_in_and_the_others_are(house, tmp_path, caplog):
    """Oracle: EvictedError, each time; one line in the server's log, which names it; the run never heard of it."""
    own = Consortium(tmp_path, 2)
    made = house(2, credentials=own.hub, refuses=own.revocations.why_refused)
    own.revoke("client0")
    for _ in range(2):
        with pytest.raises(
            EvictedError,
            match=r"client0 is not let in: its certificate was revoked on 2\d{3}-.* \(key compromise\)",
        ):
            joined(made, own, "client0")
    _, exchange = joined(made, own, "client1")
    assert exchange.fetch() is None and made.coordinator.membership.present() == ["client1"]
    assert len([message for message in caplog.messages if "client0 is not let in" in message]) == 1


def test_the_first_site_of_all_says_nothing_of_the_classes_if_it_was_revoked(house, tmp_path):
    """Oracle: the hello that the server goes by is the other site's."""
    own = Consortium(tmp_path, 2)
    made = house(2, plays=False, credentials=own.hub, refuses=own.revocations.why_refused)
    own.revoke("client0")
    with pytest.raises(EvictedError):
        joined(made, own, "client0")
    line = GrpcClient(own.config(made, "client1"), made.thread)
    made.lines.append(line)
    line.begin("hello", [Hello("client1", {}, 6, 3)])
    assert made.server.first_hello().client == "client1"


def test_a_session_of_one_that_is_revoked_ends_with_its_next_ping(house, tmp_path):
    """Oracle: the reason; every later call fails, and another session is refused for good."""
    own = Consortium(tmp_path, 2)
    made = house(2, credentials=own.hub, refuses=own.revocations.why_refused)
    line, exchange = joined(made, own, "client0")
    own.revoke("client0")
    assert "its certificate was revoked" in str(made.events.wait("lost")["reason"])
    with pytest.raises((PeerLostError, EvictedError)):
        while True:
            exchange.fetch()
    assert made.server._sessions == {} and line._lost
    with pytest.raises(EvictedError):
        joined(made, own, "client0")
    assert not line.renew(own.kits["client0"].credentials())


def test_a_site_that_is_revoked_in_its_turn_is_put_out_for_good_and_the_others_finish(house, tmp_path):
    """Oracle: its own end is EvictedError, which no loop and no systemd tries again; the others have one model, and the
    list, which outlives a restart at each of them."""
    own = Consortium(tmp_path, 3)
    made = house(3, rounds=3, board=own.board, credentials=own.hub, refuses=own.revocations.why_refused)
    standings = [own.standing(name) for name in own.names]
    clients = [own.client(index, standing, tmp_path) for index, standing in enumerate(standings)]
    done = []

    def revoke_once(step: int, name: str) -> None:
        if name == "client1" and not done:
            done.append(step)
            own.revoke("client1")

    made.events.at_step = revoke_once
    errors: dict[str, SutureError] = {}

    def take_part(index: int) -> None:
        name = f"client{index}"
        config = joins(name, f"127.0.0.1:{made.port}", LONG)
        try:
            join.take_part(
                clients[index], NoClientObserver(), own.config(made, name), {}, config, standings[index]
            )
        except SutureError as error:
            errors[name] = error

    with running(lambda: take_part(1)), running(lambda: take_part(2)):
        take_part(0)
    assert made.ended.wait(LONG) and made.error is None
    assert errors.keys() == {"client1"} and isinstance(errors["client1"], EvictedError)
    assert "revoked" in str(errors["client1"]) and EvictedError.exit_code == 18
    assert own.board.removed.keys() == {"client1"} and own.board.epoch == 2
    assert clients[0].digests() == clients[2].digests()
    for name in ("client0", "client2"):
        assert (own.kits[name].state / "revoked.pem").read_bytes() == own.revoked.read_bytes()
        assert own.standing(name).revocations.number == 1


def test_a_site_does_not_dial_a_server_that_was_revoked(house, tmp_path, monkeypatch):
    """Oracle: the error's words; before there is a list, and of one that names another, it dials without a look."""
    own = Consortium(tmp_path, 2)
    made = house(2, credentials=own.hub)
    standing = own.standing("client0")
    config = own.config(made, "client0")
    assert standing.dial(config).credentials == config.credentials
    hub = [one for one in own.authority.issued() if "hub" in one.subject.rfc4514_string()]
    own.revoke("client1")
    standing.revocations.take(own.revoked.read_bytes())
    assert standing.dial(config).credentials == config.credentials
    revoke(own.authority, hub)
    standing.revocations.take(own.revoked.read_bytes())
    with pytest.raises(
        ConfigError,
        match=r"the server at 127.0.0.1:\d+ has no part in the consortium any more: its certificate was revoked on .*; "
        "nothing was said to it",
    ):
        standing.dial(config)
    made.close()
    assert standing.dial(config).credentials == config.credentials  # that there is nobody, gRPC says


def test_a_site_looks_at_its_server_through_the_proxy(house, tmp_path, monkeypatch):
    """Oracle: the certificate; what the proxy was asked for; one that refuses is left to gRPC, too."""
    from suture.launch.kits.shown_certificate import server_certificate

    own = Consortium(tmp_path, 1)
    made, asked = house(1, credentials=own.hub), []
    with Proxy(asked) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        shown = server_certificate("127.0.0.1", made.port, own.kits["client0"].certificates)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        direct = server_certificate("127.0.0.1", made.port, own.kits["client0"].certificates)
        monkeypatch.delenv("no_proxy")
        assert server_certificate("127.0.0.1", 1, own.kits["client0"].certificates) == b""
    assert shown == direct == own.hub.certificate and len(asked) == 2
    assert asked[0] == f"CONNECT 127.0.0.1:{made.port} HTTP/1.1"


class Proxy:
    """An HTTP proxy that knows CONNECT."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def __enter__(self) -> int:
        import socket
        import threading

        self.listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return int(self.listening.getsockname()[1])

    def _serve(self) -> None:
        import socket
        import threading
        from contextlib import suppress

        def pump(one, other) -> None:
            with suppress(OSError):
                while data := one.recv(65536):
                    other.sendall(data)
            with suppress(OSError):
                other.shutdown(socket.SHUT_WR)

        with suppress(OSError):
            while True:
                line, _ = self.listening.accept()
                said = line.recv(65536).decode()
                self.asked.append(said.splitlines()[0])
                host, _, port = said.split()[1].rpartition(":")
                try:
                    there = socket.create_connection((host, int(port)), 5)
                except OSError:
                    line.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                    line.close()
                    continue
                line.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                for pair in ((line, there), (there, line)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.listening.close()
