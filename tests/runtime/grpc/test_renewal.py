"""A certificate that is renewed, or not, while a run goes on over gRPC.

Oracle: the run's events (nobody is lost), equal digests at all sites, and what the server was shown.
"""

import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from house import LONG, credentials, joins, running
from kits import Consortium
from tiny import NUM_BATCHES

from suture.launch.kits.authority import Authority
from suture.launch.kits.expiry import now
from suture.launch.site import join
from suture.runtime.errors import ConfigError, PeerLostError
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc.client import GrpcClient
from suture.runtime.participant.participant import NoClientObserver
from suture.runtime.wire.messages import Hello
from suture.studies.bench.rigs.breakable import BreakableLine


class Shown:
    """Takes every certificate, and notes them."""

    def __init__(self) -> None:
        self.pems: list[bytes] = []

    def __call__(self, certificate: bytes) -> str:
        if certificate not in self.pems:
            self.pems.append(certificate)
        return ""


def test_a_certificate_that_is_renewed_in_a_turn_costs_nothing(house, tmp_path):
    """Oracle: no turn is rolled back and nobody lost; both sites end with the same weights; from then on the server sees
    the new certificate, and so do the others in what the site signs."""
    own, shown = Consortium(tmp_path, 2), Shown()
    made = house(2, rounds=3, board=own.board, credentials=own.hub, refuses=shown)
    standings = [own.standing(name) for name in own.names]
    clients = [own.client(index, standing, tmp_path) for index, standing in enumerate(standings)]
    old, new = own.pem("client0"), []

    def renew_once(step: int, name: str) -> None:
        # A call of client0's is under way over the old connection: it is answered there.
        if step == NUM_BATCHES * 2 + 2 and not new:
            new.append(own.renew("client0"))
            standings[0].look()

    made.events.at_step = renew_once

    def take_part(index: int) -> None:
        name = f"client{index}"
        config = joins(name, f"127.0.0.1:{made.port}", LONG)
        line = own.config(made, name)
        join.take_part(clients[index], NoClientObserver(), line, {}, config, standings[index])

    with running(lambda: take_part(1)):
        take_part(0)
    assert made.ended.wait(LONG) and made.error is None and new
    assert made.events.named("lost") == [] and made.coordinator.run_state.totals.rolled_back == 0
    assert len(made.events.named("joined")) == 2
    assert clients[0].digests() == clients[1].digests() and made.coordinator.weights_sha256()
    assert old in shown.pems and new[0] in shown.pems and new[0] != old
    request = own.board._certified["client0"]  # by which the server looks whether a site was revoked
    assert request.certificate.encode() == new[0] == clients[0].consortium.identity.certificate.encode()


def test_a_session_ends_with_its_last_connection_and_not_before(house, tmp_path):
    """Oracle: calls are answered before, during and after; one event, when the line is closed."""
    own, shown = Consortium(tmp_path, 1), Shown()
    made = house(2, credentials=own.hub, refuses=shown)
    line = GrpcClient(own.config(made, "client0"), made.thread)
    made.lines.append(line)
    exchange = GrpcExchange(line)
    exchange.join(Hello("client0", {}, 6, 3))
    waits = line.begin("next_turn", [])
    for _ in range(3):
        own.renew("client0")
        assert line.renew(own.kits["client0"].credentials()) and exchange.fetch() is None
    assert len(shown.pems) == 4
    assert made.events.named("lost") == []
    line.close()
    assert made.events.wait("lost") == {"client": "client0", "reason": "its connection has ended"}
    with pytest.raises(PeerLostError):
        waits()
    assert not line.renew(own.kits["client0"].credentials())


def test_a_certificate_that_the_server_does_not_take_leaves_the_connection_as_it_was(house, tmp_path):
    """Oracle: the error; calls are answered as before, and nobody is lost."""
    own = Consortium(tmp_path, 1)
    made = house(2, credentials=own.hub)
    line = GrpcClient(own.config(made, "client0"), made.thread)
    made.lines.append(line)
    exchange = GrpcExchange(line)
    exchange.join(Hello("client0", {}, 6, 3))
    stranger = credentials(Authority(tmp_path / "elsewhere"), "client0")
    with pytest.raises(PeerLostError, match="took no new connection with the renewed certificate"):
        line.renew(replace(stranger, authority=own.hub.authority))
    assert exchange.fetch() is None and made.events.named("lost") == []


def test_another_site_s_certificate_takes_over_no_session(house, tmp_path):
    """Oracle: as above; the session's token is right, the name is not."""
    own = Consortium(tmp_path, 2)
    made = house(2, credentials=own.hub, lease=2.0)
    line = GrpcClient(replace(own.config(made, "client0"), lease=2.0), made.thread)
    made.lines.append(line)
    exchange = GrpcExchange(line)
    exchange.join(Hello("client0", {}, 6, 3))
    with pytest.raises(PeerLostError, match="took no new connection"):
        line.renew(own.kits["client1"].credentials())
    assert exchange.fetch() is None and made.events.named("lost") == []


def test_a_certificate_that_ends_unrenewed_is_told_in_words_when_the_site_must_connect_again(house, tmp_path):
    """Oracle: the error's words; until its line broke the site was answered."""
    own, moment = Consortium(tmp_path, 1), [now()]
    made = house(1, rounds=2, board=own.board, credentials=own.hub)
    standing = own.standing("client0", clock=lambda: moment[0])
    client = own.client(0, standing, tmp_path)
    with BreakableLine(f"127.0.0.1:{made.port}") as line:
        broken = threading.Event()

        def break_once(step: int, name: str) -> None:
            if step == 2 and not broken.is_set():
                broken.set()
                moment[0] += timedelta(days=31)
                line.break_lines()

        made.events.at_step = break_once
        config = own.config(made, "client0", int(line.address.rpartition(":")[2]))
        with pytest.raises(
            ConfigError,
            match=r"this site's certificate .*cert.pem expired on .*; suture request .*, then suture sign at the "
            r"authority, then suture install .* CERT.pem, and start suture join again",
        ):
            join.take_part(
                client, NoClientObserver(), config, {}, joins("client0", line.address, LONG), standing
            )
    assert broken.is_set()
    own.renew("client0", days=400)
    assert standing.dial(config).credentials.certificate == own.pem("client0")
