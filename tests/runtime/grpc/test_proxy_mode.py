"""A proxy that opens TLS between sites and server: an honest one is not in the way, a hostile one reads, and does nothing
else that anybody believes.

Oracle: a real proxy with a certificate of its own authority (``relay``). Each attack is refused by the end that it is
meant for, the run has heard nothing of it, and the same call without it is answered.
"""

import itertools
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch
from house import HELLO, LONG, House, credentials, free_port, joined, local, noting, running, told
from relay import Chunks, Relay, Status, as_it_is, sealed_by_nobody
from tiny import build_client

from suture.launch.kits.authority import Authority
from suture.launch.kits.kit import Kit
from suture.launch.roles import site_server
from suture.launch.site import join
from suture.launch.site.join import JoinConfig
from suture.runtime.consortium.credentials import Role
from suture.runtime.errors import ConfigError, MemberLostError, PeerLostError, WireError
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc import authenticated
from suture.runtime.grpc.chunks import CHUNK_BYTES, Limits
from suture.runtime.grpc.client import GrpcClient
from suture.runtime.grpc.handshake import Identity, SiteHandshake
from suture.runtime.grpc.server import CALLS_OF_A_SITE
from suture.runtime.grpc.service import HANDSHAKE, MUTUAL, PROXY
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.scheduler import Replay
from suture.runtime.server.api import ServerApi
from suture.runtime.server.client_turn import ClientTurn
from suture.runtime.session import take_part
from suture.runtime.wire.messages import Refusal, Upload, Welcome
from suture.studies.bench.rigs.breakable import BreakableLine

FORGED = "was changed on its way, or is not the other end's own"


@pytest.fixture
def behind(house, tmp_path) -> Iterator[Callable[..., tuple[House, Relay]]]:
    """Builds servers of mode proxy, each with a proxy before it."""
    relays: list[Relay] = []

    def build(clients: int = 1, **changes: Any) -> tuple[House, Relay]:
        made = house(clients, tls=PROXY, **changes)
        relays.append(Relay(tmp_path / f"proxy{len(relays)}", made.port, made.authority.ca))
        return made, relays[-1]

    yield build
    for relay in relays:
        relay.close()


def line(made: House, relay: Relay | None, name: str = "client0", **changes: Any) -> GrpcClient:
    """A site's connection, through the proxy if there is one."""
    if relay is not None:
        changes = {"port": relay.port, "proxy_ca": relay.ca} | changes
    return made.line(name, **{"tls": PROXY} | changes)


def member(
    made: House, relay: Relay | None, index: int, home: bool = False, **config: Any
) -> Participant[GrpcExchange]:
    exchange = GrpcExchange(line(made, relay, f"client{index}"))
    return Participant(build_client(index, home, **config), exchange, NoClientObserver())


# An honest one ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [False, True])
def test_a_run_behind_a_proxy_ends_with_the_weights_of_the_run_in_one_process(home, behind, tmp_path):
    """Oracle: the digest; one site is behind the proxy, the other one dials the server itself."""
    made, relay = behind(2, rounds=2, home=home)
    members = [member(made, relay, 0, home), member(made, None, 1, home)]
    with running(lambda: take_part(members[1], {})):
        take_part(members[0], {})
    assert made.ended.wait(LONG) and made.error is None and made.events.named("lost") == []
    assert made.coordinator.weights_sha256() == local(tmp_path / "local", 2, 2, home)
    assert len({tuple(one.client.digests().items()) for one in members}) == 1
    assert len(relay.named("train")) == 6 and len(relay.named(HANDSHAKE)) == 1


def test_batches_that_overtake_each_other_in_a_proxy_are_taken_in_their_order(behind, tmp_path):
    """Oracle: as above; every second call is held back a little, so that the next one is there before it."""
    overlap = {"num_train": 8, "batch_size": 2, "overlap": True}
    made, relay = behind(1, rounds=2, batch_size=2)
    turns = itertools.count()

    def hold_back(endpoint: str, chunks: Chunks) -> Chunks:
        if endpoint == "train" and next(turns) % 2:
            time.sleep(0.01)
        return chunks

    relay.request = hold_back
    take_part(member(made, relay, 0, **overlap), {})
    assert made.ended.wait(LONG) and made.error is None
    assert made.coordinator.weights_sha256() == local(tmp_path / "local", 1, 2, False, **overlap)


def test_a_site_behind_a_proxy_whose_line_breaks_in_a_turn_comes_back(behind, tmp_path):
    """Oracle: the turns that counted, played in one process; each connection has a handshake of its own."""
    made, relay = behind(1, rounds=3, run_dir=tmp_path / "run")
    files = made.authority.folder
    credentials(made.authority, "client0")
    with BreakableLine(f"127.0.0.1:{relay.port}") as cable:
        broken = []

        def break_once(step: int, name: str) -> None:
            if step in (2, 5) and step not in broken:
                broken.append(step)
                cable.break_lines()

        made.events.at_step = break_once
        port = int(cable.address.rpartition(":")[2])
        config = JoinConfig(
            kit=Kit(folder=files, role=Role.CLIENT, name="client0", server=cable.address),
            server=cable.address,
            patience=LONG,
            tls=PROXY,
        )
        dialled = made.config(port=port, tls=PROXY, proxy_ca=relay.ca)
        join.take_part(build_client(0), NoClientObserver(), dialled, {}, config)
    assert made.ended.wait(LONG) and made.error is None and broken == [2, 5]
    assert len(relay.named(HANDSHAKE)) == len({call.session for call in relay.named("hello")}) == 3
    assert made.coordinator.weights_sha256() == local(
        tmp_path / "local", 1, 3, False, Replay(tmp_path / "run" / "turns.jsonl")
    )


def test_a_proxy_that_cuts_messages_into_others_is_not_in_the_way(behind, monkeypatch):
    """Oracle: the answer of the run; the proxy sends every chunk in two, but for the last one, which has the tag."""
    limits = Limits(batch=2**23, handoff=2**20, release=2**20)
    made, relay = behind(1, plays=False)
    made.play(limits)
    exchange = joined(line(made, relay, limits=limits))

    def in_two(endpoint: str, chunks: Chunks) -> Chunks:
        if endpoint != "train":
            yield from chunks
            return
        *rest, last = chunks
        for chunk in rest:
            yield from (chunk[:1000], chunk[1000:])
        yield last

    relay.request = in_two
    with pytest.raises(WireError, match="granted no turn"):
        exchange.call(ServerApi.train, Upload(1, 0, "train", torch.zeros(2**19)))


# It reads --------------------------------------------------------------------------------------------------


def test_a_proxy_reads_smashed_data_and_labels(behind, monkeypatch):
    """Oracle: what the server received, in the proxy's own hands. The documents say so; sealed hand-offs stay sealed."""
    made, relay = behind(1)
    received, train = [], ClientTurn.train

    def noted(turn, upload, answer):
        received.append(upload)
        train(turn, upload, answer)

    monkeypatch.setattr(ClientTurn, "train", noted)
    taker = member(made, relay, 0)
    take_part(taker, {})
    read = [call.messages[0] for call in relay.named("train")]
    assert len(read) == len(received) == 3
    for seen, true in zip(read, received, strict=True):
        assert torch.equal(seen.smashed, true.smashed) and torch.equal(seen.labels, true.labels)
    (commit,) = relay.named("commit")
    sealed = [weights.numpy().tobytes() for weights in taker.client.model.bottom.state_dict().values()]
    assert sealed and not any(weights in b"".join(commit.request) for weights in sealed)


# It changes something --------------------------------------------------------------------------------------


def flipping(place: int, *endpoints: str) -> Callable[[str, Chunks], Chunks]:
    """Changes one byte of a message."""

    def flip(endpoint: str, chunks: Chunks) -> Chunks:
        if endpoint not in endpoints:
            yield from chunks
            return
        whole = bytearray(b"".join(chunks))
        whole[place] ^= 1
        yield bytes(whole)

    return flip


PLACES = {
    "length": 0,
    "a length beyond any": 7,
    "head": 8,
    "text": 20,
    "last byte": -33,
    "tag": -32,
    "end": -1,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_byte_that_is_flipped_in_a_request_is_refused_by_the_server(place, behind, monkeypatch):
    """Oracle: the error; the run was not asked, and is when the next session asks."""
    made, relay = behind(1)
    asked = noting(made, monkeypatch)
    exchange = joined(line(made, relay))
    relay.request = flipping(place, "share")
    with pytest.raises(WireError, match=r"server: (data loss|invalid argument): .*nobody signs a status"):
        exchange.call(ServerApi.share, 3)
    assert asked == []
    exchange.close()
    made.events.wait("lost")
    relay.request = as_it_is
    with pytest.raises(WireError, match="share"):
        joined(line(made, relay)).call(ServerApi.share, 4)
    assert asked == [4]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_byte_that_is_flipped_in_an_answer_is_refused_by_the_site(place, behind):
    """Oracle: the error is the site's own; the same call's next answer is taken."""
    made, relay = behind(1)
    exchange = joined(line(made, relay))
    relay.answer = flipping(place, "fetch")
    with pytest.raises(WireError, match=r"server: fetch: .*; refused"):
        exchange.fetch()
    relay.answer = as_it_is
    assert exchange.fetch() is None


@pytest.mark.parametrize("way", ["request", "answer"])
def test_a_tensor_that_is_changed_is_refused_and_nothing_is_computed_with_it(way, behind, monkeypatch):
    """Oracle: one number of the second batch. The server has trained on the first one, the site has stepped once."""
    made, relay = behind(1)
    trained, train, batches = [], ClientTurn.train, itertools.count()

    def noted(turn, upload, answer):
        trained.append(upload.batch)
        train(turn, upload, answer)

    monkeypatch.setattr(ClientTurn, "train", noted)

    def meddle(endpoint: str, chunks: Chunks) -> Chunks:
        hits = endpoint == "train" and next(batches) == 1
        return flipping(-40, "train")(endpoint, chunks) if hits else chunks

    setattr(relay, way, meddle)
    with pytest.raises(WireError, match=f"train {FORGED}"):
        take_part(member(made, relay, 0), {})
    assert trained == ([0] if way == "request" else [0, 1])


@pytest.mark.parametrize(
    "change",
    [
        lambda one, two, three: [one, three],
        lambda one, two, three: [one, two],
        lambda one, two, three: [two, one, three],
        lambda one, two, three: [one, three, two],
        lambda one, two, three: [one, two, two, three],
        lambda one, two, three: [one, two, three[:-32]],
    ],
    ids=["dropped", "cut short", "swapped", "swapped at the end", "doubled", "without its tag"],
)
def test_chunks_that_are_dropped_or_swapped_are_refused(change, behind):
    """Oracle: a message of three chunks; as it is it comes to the run, which says what it says of any batch out of turn."""
    limits = Limits(batch=2**23, handoff=2**20, release=2**20)
    made, relay = behind(1, plays=False)
    made.play(limits)
    exchange = joined(line(made, relay, limits=limits))
    upload = Upload(1, 0, "train", torch.arange(2 * CHUNK_BYTES // 4 + 99, dtype=torch.float32))
    relay.request = lambda endpoint, chunks: iter(change(*chunks)) if endpoint == "train" else chunks
    with pytest.raises(WireError, match="server: (data loss|invalid argument): "):
        exchange.call(ServerApi.train, upload)
    with pytest.raises(WireError, match="it is 0's turn"):  # a session in which a call was changed is over
        exchange.fetch()
    exchange.close()
    made.events.wait("lost")
    relay.request = as_it_is
    with pytest.raises(WireError, match="granted no turn"):
        joined(line(made, relay, limits=limits)).call(ServerApi.train, upload)


@pytest.mark.parametrize(
    ("other", "error", "words"),
    [
        (lambda endpoint, session, place: ("leave", session, place), WireError, "leave " + FORGED),
        (lambda endpoint, session, place: (endpoint, session, "1"), WireError, "invalid argument|" + FORGED),
        (lambda endpoint, session, place: (endpoint, session, "x"), WireError, "a call whose place is 'x'"),
        (lambda endpoint, session, place: (endpoint, "0" * 32, place), PeerLostError, "no such session here"),
        (lambda endpoint, session, place: (endpoint, "", place), ConfigError, "it runs with --tls proxy"),
    ],
    ids=["endpoint", "place", "no place", "session", "no session"],
)
def test_a_request_that_is_taken_to_another_call_is_refused(other, error, words, behind, monkeypatch):
    """Oracle: the error; the same call as it was is answered after it."""
    made, relay = behind(1, line_timeout=1.0)
    asked = noting(made, monkeypatch)
    exchange = joined(line(made, relay))
    relay.called = lambda *call: other(*call) if call[0] == "share" else call
    with pytest.raises(error, match=words):
        exchange.call(ServerApi.share, 0)
    assert asked == [] and made.events.named("lost") == []


def test_a_request_of_one_site_in_the_session_of_another_is_refused(behind):
    """Oracle: the error; both sites are behind the same proxy, which knows both names."""
    made, relay = behind(2, line_timeout=1.0)
    one = joined(line(made, relay, "client0"), "client0")
    joined(line(made, relay, "client1"), "client1")
    others = relay.named("hello")[1].session
    relay.called = lambda endpoint, session, place: (
        endpoint,
        others if endpoint == "fetch" else session,
        place,
    )
    with pytest.raises(WireError, match="fetch " + FORGED):
        one.fetch()
    relay.called = lambda *call: call
    with pytest.raises(WireError, match="call 1 came, and of those before it only 0"):  # one was taken away
        one.fetch()


# It answers with something else ----------------------------------------------------------------------------


def answering(asked: str, old: list[bytes]) -> Callable[[str, Chunks], Chunks]:
    """Gives a recorded answer when the server has answered."""

    def answer(endpoint: str, chunks: Chunks) -> Chunks:
        true = list(chunks) if endpoint == asked else None
        yield from chunks if true is None else old

    return answer


class Said(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = lambda: code, lambda: details


def saying(asked: str, code: grpc.StatusCode, details: str) -> Callable[[str, Chunks], Chunks]:
    """Gives a status when the server has answered."""

    def say(endpoint: str, chunks: Chunks) -> Chunks:
        if endpoint != asked:
            yield from chunks
            return
        list(chunks)
        raise Said(code, details)

    return say


def test_two_answers_that_are_swapped_are_refused(behind):
    """Oracle: both are the server's own, to two calls of one endpoint; each is refused at the other."""
    made, relay = behind(1)
    site = line(made, relay)
    joined(site)
    answers: list[list[bytes]] = []
    both = threading.Barrier(2)

    def swap(endpoint: str, chunks: Chunks) -> Chunks:
        if endpoint != "share":
            yield from chunks
            return
        answers.append(list(chunks))
        mine = len(answers) - 1
        both.wait(LONG)
        yield from answers[1 - mine]

    relay.answer = swap
    for wait in [site.begin("share", [number]) for number in range(2)]:
        with pytest.raises(WireError, match=f"server: share: share {FORGED}"):
            wait()
    relay.answer = as_it_is
    assert isinstance(site.begin("share", [2])(), Refusal)


def test_an_answer_of_an_earlier_call_or_session_is_refused(behind):
    """Oracle: the same question, answered by what was answered before; None both times, and refused all the same."""
    made, relay = behind(1)
    exchange = joined(line(made, relay))
    assert exchange.fetch() is None
    old = relay.named("fetch")[0].answer
    relay.answer = answering("fetch", old)
    with pytest.raises(WireError, match="fetch " + FORGED):
        exchange.fetch()
    relay.answer = as_it_is
    assert exchange.fetch() is None
    exchange.close()
    made.events.wait("lost")
    relay.answer = answering("fetch", old)
    with pytest.raises(WireError, match="fetch " + FORGED):
        joined(line(made, relay)).fetch()


def test_a_welcome_of_an_earlier_session_is_refused(behind):
    """Oracle: the site does not take itself for joined."""
    made, relay = behind(2)
    first = joined(line(made, relay))
    old = relay.named("hello")[0].answer
    first.close()
    made.events.wait("lost")
    relay.answer = answering("hello", old)
    site = line(made, relay)
    with pytest.raises(WireError, match="hello (was changed|was answered before)"):
        site.begin("hello", [HELLO])()
    with pytest.raises(MemberLostError, match="this site has not joined"):
        site.begin("fetch", [])()


# It sends something again, or of its own -------------------------------------------------------------------


def refused(status: Status, *codes: grpc.StatusCode) -> bool:
    return status.code in codes and not status.answer


def test_a_request_that_is_sent_again_is_refused(behind, monkeypatch):
    """Oracle: every call of a session, while it lives, after it, and in the next one; the run was asked once."""
    made, relay = behind(1)
    asked = noting(made, monkeypatch)
    site = line(made, relay)
    exchange = joined(site)
    for number in range(3):
        site.begin("share", [number])()
    recorded = [call for call in relay.calls if call.endpoint in ("hello", "share")]
    again = [relay.again(call) for call in recorded]
    assert all(refused(status, grpc.StatusCode.DATA_LOSS) for status in again)
    assert "it is 3's turn" in again[-1].details
    assert all(refused(relay.again(call, place="3"), grpc.StatusCode.DATA_LOSS) for call in recorded[1:])
    exchange.close()
    made.events.wait("lost")
    assert all(refused(relay.again(call), grpc.StatusCode.UNAVAILABLE) for call in recorded)
    joined(line(made, relay))
    now = relay.named("hello")[-1].session
    assert all(refused(relay.again(call, session=now), grpc.StatusCode.DATA_LOSS) for call in recorded)
    assert asked == [0, 1, 2] and len(made.events.named("joined")) == 2


def test_a_handshake_that_is_sent_again_lets_nobody_in(behind):
    """Oracle: it is answered; in its session, whose name the proxy is even told here, every recorded call is refused."""
    made, relay = behind(1)
    exchange = joined(line(made, relay))
    exchange.fetch()
    recorded = [call for call in relay.calls if call.endpoint in ("hello", "fetch")]
    exchange.close()
    made.events.wait("lost")
    assert relay.again(relay.named(HANDSHAKE)[0]).code is grpc.StatusCode.OK
    (session,) = made.server._authenticator._sessions
    statuses = [relay.again(call, session=session) for call in recorded]
    assert [status.code for status in statuses] == [grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE]
    assert len(made.events.named("joined")) == 1
    joined(line(made, relay))


def test_a_server_s_answer_to_a_handshake_that_is_sent_again_is_refused(behind):
    """Oracle: the site's error; it said nothing but its handshake."""
    made, relay = behind(1)
    joined(line(made, relay)).close()
    made.events.wait("lost")
    old = relay.named(HANDSHAKE)[0].answer
    relay.answer = answering(HANDSHAKE, old)
    with pytest.raises(
        WireError, match="server: handshake: a handshake that its certificate's key did not sign; nothing"
    ):
        line(made, relay).begin("hello", [HELLO])()
    assert len(relay.named("hello")) == 1


@pytest.mark.parametrize("place", [0, 30, 90, 200, -1])
@pytest.mark.parametrize("way", ["request", "answer"])
def test_a_handshake_that_is_changed_is_refused(way, place, behind):
    """Oracle: an error at the site, whichever end found it; without the change it joins."""
    made, relay = behind(1)
    setattr(relay, way, flipping(place, HANDSHAKE))
    with pytest.raises((WireError, ConfigError)):
        line(made, relay).begin("hello", [HELLO])()
    assert not made.server._first.done()
    setattr(relay, way, as_it_is)
    joined(line(made, relay))


def test_a_call_of_the_proxy_s_own_is_refused(behind):
    """Oracle: no session, a made-up one, a true one; with a tag that is none, without one, and with nothing at all."""
    made, relay = behind(1)
    exchange = joined(line(made, relay))
    session = relay.named("hello")[0].session
    codes = []
    for name in ("", "0" * 32, "x" * 1000, session):
        for said in (sealed_by_nobody([]), [b"".join(sealed_by_nobody([]))[:-32]], [b"x"], []):
            status = relay.call("fetch", said, name)
            assert not status.answer
            codes.append(status.code)
    gone, unknown = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED
    assert codes[:12] == [unknown] * 4 + [gone] * 8
    assert set(codes[12:]) == {grpc.StatusCode.DATA_LOSS, grpc.StatusCode.INVALID_ARGUMENT}
    for endpoint in ("leave", "abort", "hello"):
        assert not relay.call(endpoint, sealed_by_nobody([HELLO]), session).answer
    assert exchange.fetch() is None  # none of them took a true call's place


def test_a_status_that_the_proxy_makes_up_is_said_to_be_nobody_s(behind):
    """Oracle: the words; it ends the site's call, as cutting the line does."""
    made, relay = behind(1)
    exchange = joined(line(made, relay))

    relay.answer = saying("fetch", grpc.StatusCode.PERMISSION_DENIED, "no\x1b[2J\x07way")
    with pytest.raises(WireError) as raised:
        exchange.fetch()
    assert str(raised.value).endswith("(the proxy may have said so: nobody signs a status)")
    assert "\x1b" not in str(raised.value) and "\x07" not in str(raised.value)


# It shows another certificate ------------------------------------------------------------------------------


def stranger(tmp_path, name: str, role: Role) -> Identity:
    return Identity(credentials(Authority(tmp_path / "stranger"), name, role), role)


def posing(relay: Relay, identity: Identity, certificate: bytes | None = None) -> None:
    """From now on the proxy answers handshakes itself, as a server of this identity."""

    def answer(endpoint: str, chunks: Chunks) -> Chunks:
        if endpoint != HANDSHAKE:
            yield from chunks
            return
        list(chunks)
        said = b"".join(relay.named(HANDSHAKE)[-1].request)[8:]
        shown = identity.signed(
            authenticated.handshake.X25519PrivateKey.generate(), authenticated.handshake._digest(said)
        )
        if certificate is not None:
            shown = shown[: -len(identity._certificate)] + certificate
        yield struct.pack("<Q", len(shown)) + shown

    relay.answer = answer


def test_a_proxy_with_a_certificate_of_another_authority_is_no_server(behind, tmp_path):
    """Oracle: the site's error; it has said nothing but its handshake."""
    made, relay = behind(1)
    posing(relay, stranger(tmp_path, "hub", Role.SERVER))
    words = "server: handshake: the certificate of 'hub' was not signed by the authority of this kit"
    with pytest.raises(ConfigError, match=words):
        line(made, relay).begin("hello", [HELLO])()
    assert relay.named("hello") == []


@pytest.mark.parametrize("name", ["client1", "client0"])
def test_a_proxy_with_a_site_s_kit_is_no_server(name, behind):
    """Oracle: the site's error, whether it is another member's kit or its own that was stolen."""
    made, relay = behind(1)
    identity = Identity(credentials(made.authority, name), Role.CLIENT)
    identity.role = Role.SERVER  # it signs as a server would
    posing(relay, identity)
    with pytest.raises(ConfigError, match=f"the certificate of '{name}' is not one of a server"):
        line(made, relay).begin("hello", [HELLO])()
    assert relay.named("hello") == []


def test_a_proxy_that_shows_the_server_s_certificate_has_not_its_key(behind):
    """Oracle: the site's error."""
    made, relay = behind(1)
    identity = Identity(credentials(made.authority, "client1"), Role.CLIENT)
    identity.role = Role.SERVER
    posing(relay, identity, credentials(made.authority, "hub", Role.SERVER).certificate)
    with pytest.raises(WireError, match="a handshake that its certificate's key did not sign"):
        line(made, relay).begin("hello", [HELLO])()


def handshake_of(identity: Identity) -> list[bytes]:
    message = SiteHandshake(identity).message
    return [struct.pack("<Q", len(message)) + message]


def test_a_site_of_another_authority_a_server_and_a_certificate_without_its_key_are_not_let_in(
    behind, tmp_path, caplog
):
    """Oracle: the server's words; one line in its log for all of them."""
    made, relay = behind(1)
    hub = Identity(credentials(made.authority, "hub", Role.SERVER), Role.SERVER)
    hub.role = Role.CLIENT
    own = Identity(credentials(made.authority, "client0"), Role.CLIENT)
    thief = stranger(tmp_path, "client0", Role.CLIENT)
    thief._certificate = own._certificate
    for identity, words in (
        (stranger(tmp_path / "again", "client0", Role.CLIENT), "'client0' was not signed by the authority"),
        (hub, "'hub' is not one of a client"),
        (thief, "that its certificate's key did not sign"),
    ):
        status = relay.call(HANDSHAKE, handshake_of(identity))
        assert status.code is grpc.StatusCode.UNAUTHENTICATED and words in status.details
    assert relay.call(HANDSHAKE, handshake_of(own)).code is grpc.StatusCode.OK
    assert len([text for text in caplog.messages if text.startswith("refused a handshake")]) == 1


def test_a_site_that_names_another_one_is_refused(behind):
    """Oracle: the message; the name is its certificate's, as in mode mutual."""
    made, relay = behind(2)
    with pytest.raises(
        WireError, match="client0: hello: it must name the site that the certificate names; refused"
    ):
        joined(line(made, relay, "client0"), "client1")


def test_tls_believes_the_proxy_only_with_its_authority(behind):
    """Oracle: the sentence names the option."""
    made, relay = behind(1)
    with pytest.raises(ConfigError, match="not to be trusted .*: check --proxy-ca"):
        line(made, relay, proxy_ca=None).begin("hello", [HELLO])()
    with pytest.raises(
        ConfigError, match="check the kit's ca.pem, .*; where a proxy opens TLS, see --tls proxy"
    ):
        line(made, relay, tls=MUTUAL, proxy_ca=None).begin("hello", [HELLO])()


# Signs of life ---------------------------------------------------------------------------------------------


def cut(made: House, relay: Relay, forged: Callable[[list[bytes]], Iterator[bytes]]) -> None:
    """Cuts the site off in the middle of its stream, and goes on in its place with what ``forged`` makes of its pings."""
    gone, true = threading.Event(), []

    def pings(endpoint: str, chunks: Chunks) -> Chunks:
        if endpoint != "alive":
            yield from chunks
            return
        for ping in chunks:
            true.append(ping)
            yield ping
            if len(true) == 3:
                break
        gone.set()
        for ping in forged(true):
            time.sleep(0.1)
            yield ping

    relay.request = pings
    joined(line(made, relay, line_timeout=0.6))
    assert gone.wait(LONG)


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        (lambda true: itertools.repeat(b"."), "a ping was made up, sent again or left out on its way"),
        (lambda true: itertools.repeat(bytes(48)), "a ping was made up"),
        (lambda true: itertools.cycle(true), "a ping was made up"),
        (
            lambda true: (struct.pack("<QQ", n, n) + true[-1][16:] for n in itertools.count(4)),
            "a ping was made up",
        ),
        (lambda true: iter(lambda: time.sleep(LONG), None), "no word from it for 1 s"),
    ],
    ids=["plain", "zeros", "again", "counted on", "none"],
)
def test_a_site_that_was_cut_off_is_not_kept_alive_by_made_up_pings(forged, reason, behind):
    """Oracle: the event and its reason."""
    made, relay = behind(1, lease=1.0, line_timeout=1.5)
    cut(made, relay, forged)
    assert made.events.wait("lost")["reason"].startswith(reason)


def test_a_site_is_not_kept_alive_by_its_own_pings_that_were_saved_up(behind):
    """Oracle: the reason. The pings are true, in their order, and come five times as often as they must; each is just older
    than the one before."""
    made, relay = behind(1, lease=0.6, line_timeout=0.6)

    def slowly(endpoint: str, chunks: Chunks) -> Chunks:
        for ping in chunks:
            yield ping
            if endpoint == "alive":
                time.sleep(0.2)

    relay.request = slowly
    joined(line(made, relay, line_timeout=0.15))
    assert made.events.wait("lost")["reason"] == "no word from it for 0.6 s"


def test_a_site_whose_pings_come_in_time_is_there(behind):
    """Oracle: no event, three leases long; the control of the two above."""
    made, relay = behind(1, lease=0.6, line_timeout=0.6)
    exchange = joined(line(made, relay, line_timeout=0.6))
    time.sleep(2.5)
    assert made.events.named("lost") == [] and exchange.fetch() is None


def test_a_second_stream_of_a_session_is_refused(behind):
    """Oracle: the status; the site's own goes on."""
    made, relay = behind(1)
    exchange = joined(line(made, relay))
    deadline = time.monotonic() + LONG
    while not (relay.named("alive") and relay.named("alive")[0].answer):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    status = relay.again(relay.named("alive")[0])
    assert status.code is grpc.StatusCode.DATA_LOSS and "a second one was opened" in status.details
    assert made.events.named("lost") == [] and exchange.fetch() is None


def test_a_stream_that_nobody_pings_in_is_none(behind):
    """Oracle: the reason; the proxy opens the stream in the place of a site that has joined and died."""
    made, relay = behind(1, line_timeout=1.0)
    site = line(made, relay)
    assert isinstance(site.begin("hello", [HELLO])(), Welcome)
    opened = relay._begin("alive", iter(lambda: time.sleep(LONG), None), relay.named("hello")[0].session, "0")
    assert made.events.wait("lost")["reason"] == "it has joined and opened no stream for 1 s"
    opened.cancel()


def test_a_server_that_was_cut_off_is_not_kept_alive_by_made_up_pings(behind):
    """Oracle: the site's error."""
    made, relay = behind(2)

    def pings(endpoint: str, chunks: Chunks) -> Chunks:
        for ping in chunks:
            yield ping
            if endpoint == "alive":
                yield ping

    relay.answer = pings
    site = line(made, relay)
    joined(site)
    with pytest.raises(
        PeerLostError, match="a ping was made up, sent again or left out on its way; see the server's"
    ):
        site.begin("next_turn", [], patient=True)()


# The other mode --------------------------------------------------------------------------------------------


def test_a_site_of_the_other_mode_is_told_which_one_the_server_runs(house):
    """Oracle: the sentence, both ways; a site of the server's own mode gets in without any proxy."""
    for runs, other in ((PROXY, MUTUAL), (MUTUAL, PROXY)):
        made = house(1, tls=runs)
        words = f"does not let this site in: it runs with --tls {runs}, and this site does not; join with --tls {runs}"
        with pytest.raises(ConfigError, match=words):
            raise told(made, "hello", tls=other)
        joined(made.line(tls=runs))


def test_a_mode_that_there_is_none_of_is_said():
    """Oracle: the message, at both ends' configurations; the authority of a proxy is for its mode."""
    kit = Kit(folder=Path("kit"), role=Role.CLIENT, name="client0", server="a:1")
    with pytest.raises(ConfigError, match="tls must be one of mutual, proxy, got 'none'"):
        JoinConfig(kit=kit, server="a:1", tls="none")
    with pytest.raises(ConfigError, match="tls must be one of mutual, proxy, got 'none'"):
        site_server.ServeConfig(kit=kit, listen="a:1", tls="none")
    with pytest.raises(ConfigError, match="proxy_ca is for a proxy that opens TLS: give --tls proxy, too"):
        JoinConfig(kit=kit, server="a:1", proxy_ca="d")


# Bounds ----------------------------------------------------------------------------------------------------


def test_more_handshakes_than_are_checked_in_a_second_are_told_to_try_again(behind, monkeypatch):
    """Oracle: the status; a member goes on meanwhile, and a newcomer gets in when it tries again."""
    now = time.monotonic()
    made, relay = behind(2)
    exchange = joined(line(made, relay))
    monkeypatch.setattr(authenticated, "HANDSHAKES_A_SECOND", 5)
    monkeypatch.setattr(authenticated, "time", SimpleNamespace(monotonic=lambda: now))
    said = handshake_of(Identity(credentials(made.authority, "client1"), Role.CLIENT))
    told = [relay.call(HANDSHAKE, said) for _ in range(30)]
    assert [status.code for status in told] == [grpc.StatusCode.OK] * 5 + [grpc.StatusCode.UNAVAILABLE] * 25
    assert told[-1].details == "too many newcomers at once; try again in a moment"
    assert exchange.fetch() is None
    with pytest.raises(PeerLostError, match="too many newcomers at once"):
        joined(line(made, relay, "client1"), "client1")
    now += 0.3
    joined(line(made, relay, "client1"), "client1")


def test_handshakes_that_do_not_end_are_ended_and_only_so_many_wait(behind, monkeypatch):
    """Oracle: the statuses; there is room again when the time is over."""
    monkeypatch.setattr(authenticated, "HANDSHAKES_AT_ONCE", 3)
    monkeypatch.setattr(authenticated, "HANDSHAKE_SECONDS", 1.0)
    made, relay = behind(1)
    stuck = [relay._begin(HANDSHAKE, iter(lambda: time.sleep(3), None), "", "0") for _ in range(3)]
    time.sleep(0.3)
    assert relay.call(HANDSHAKE, []).details == "too many newcomers at once; try again in a moment"
    for call in stuck:
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert call.details() == "a handshake that did not come to its end in time; try again"
    assert relay.call(HANDSHAKE, []).details == "a handshake without a message"
    joined(line(made, relay))


def test_a_server_that_takes_no_call_of_anybody_s_is_looked_for_again(behind):
    """Oracle: an error after which a site tries again: strangers can fill a server whose port asks for no certificate."""
    made, relay = behind(1)

    relay.answer = saying("hello", grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
    with pytest.raises(PeerLostError, match="has all hands full; try again in a moment"):
        line(made, relay).begin("hello", [HELLO])()


NGINX = Path(__file__).resolve().parents[3] / "docs" / "deploy" / "nginx.conf"


@pytest.mark.skipif(shutil.which("nginx") is None, reason="there is no nginx")
def test_a_run_behind_nginx_as_the_documents_set_it_up(house, tmp_path):
    """Oracle: the digest of the run in one process; both sites go through it."""
    made, port, own = house(2, rounds=2, tls=PROXY), free_port(), Authority(tmp_path / "proxy")
    own.issue("proxy", Role.SERVER)
    server = NGINX.read_text()
    for line_of_ours, here in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("192.0.2.1:29500", f"127.0.0.1:{made.port}"),
        ("server.suture.internal", "localhost"),
        ("/etc/nginx/suture/ca.pem", str(made.authority.ca)),
        ("/etc/nginx/suture", str(own.folder)),
    ):
        assert line_of_ours in server
        server = server.replace(line_of_ours, here)
    temporary = " ".join(
        f"{kind}_temp_path tmp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid nginx.pid; events {{}} http {{ access_log access.log; {temporary} {server} }}"
    )
    command = ["nginx", "-p", str(tmp_path), "-c", "nginx.conf", "-e", "error.log"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as nginx:
        try:
            ours = {"port": port, "proxy_ca": own.ca.read_bytes()}
            members = [
                Participant(
                    build_client(i, False),
                    GrpcExchange(line(made, None, f"client{i}", **ours)),
                    NoClientObserver(),
                )
                for i in range(2)
            ]
            _when_open(port)
            with running(lambda: take_part(members[1], {})):
                take_part(members[0], {})
            assert made.ended.wait(LONG) and made.error is None and made.events.named("lost") == []
        finally:
            nginx.terminate()
    assert made.coordinator.weights_sha256() == local(tmp_path / "local", 2, 2, False)
    assert (tmp_path / "access.log").read_text().count("/train HTTP/2.0") == 12


def _when_open(port: int) -> None:
    deadline = time.monotonic() + LONG
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_handshake_that_is_too_long_is_refused(behind):
    """Oracle: the message."""
    relay = behind(1)[1]
    status = relay.call(HANDSHAKE, [struct.pack("<Q", 2**14 + 1) + bytes(2**14 + 1)])
    assert status.code is grpc.StatusCode.UNAUTHENTICATED
    assert status.details == "a message of 16385 bytes; at most 16384 are taken here"


def test_few_sessions_of_a_site_wait_and_those_that_are_in_stay(behind):
    """Oracle: their number; a proxy sends one site's handshake again and again, and another site gets in and stays in."""
    made, relay = behind(2)
    first = joined(line(made, relay, "client0"), "client0")
    for _ in range(20):
        assert relay.again(relay.named(HANDSHAKE)[0]).code is grpc.StatusCode.OK
    assert len(made.server._authenticator._sessions) == 1 + 4
    assert first.fetch() is None
    joined(line(made, relay, "client1"), "client1")


def test_a_session_that_nobody_uses_is_dropped(behind):
    """Oracle: the error after its time, and the sessions that the next handshake leaves."""
    made, relay = behind(1)

    def late(*call: str) -> tuple[str, str, str]:
        for session in made.server._authenticator._sessions.values():
            session.drop_at = time.monotonic()
        return call

    relay.called = late
    with pytest.raises(PeerLostError, match="no such session here, or an older one; join again"):
        line(made, relay).begin("hello", [HELLO])()
    relay.called = lambda *call: call
    joined(line(made, relay))
    assert len(made.server._authenticator._sessions) == 1


def test_a_site_that_waits_for_the_run_is_in_when_it_begins(behind):
    """Oracle: the welcome and a call after it; other handshakes have cleared its session away meanwhile."""
    made, relay = behind(1, plays=False)
    site = line(made, relay)
    waits = site.begin("hello", [HELLO])
    made.server.first_hello()
    for session in made.server._authenticator._sessions.values():
        session.drop_at = time.monotonic()
    for _ in range(3):
        relay.again(relay.named(HANDSHAKE)[0])
    made.play()
    assert isinstance(waits(), Welcome)
    site.stay()
    assert site.begin("fetch", [])() is None


def test_a_proxy_may_carry_all_sites_over_one_connection(behind):
    """Oracle: three sites with all calls that a site may have; the last one's is answered, although the others' wait."""
    made, relay = behind(4)
    for index in range(3):
        site = line(made, relay, f"client{index}")
        joined(site, f"client{index}")
        for _ in range(CALLS_OF_A_SITE - 2):
            site.begin("next_turn", [])
        assert site.begin("fetch", [])() is None


def test_a_hello_that_is_refused_may_be_said_again(behind):
    """Oracle: the refusal with the server's tag, and the welcome after it, in one session."""
    made, relay = behind(1)
    site = line(made, relay)
    for messages in ([], [None], ["client0"]):
        assert "hello: it must name the site" in site.begin("hello", messages)().message
    assert joined(site).fetch() is None
    assert len({call.session for call in relay.named("hello")}) == 1 and len(relay.named("hello")) == 4


def test_a_session_ends_with_its_site(behind):
    """Oracle: the server keeps no key of a site that has gone."""
    made, relay = behind(1)
    joined(line(made, relay)).close()
    made.events.wait("lost")
    deadline = time.monotonic() + LONG
    while made.server._authenticator._sessions:
        assert time.monotonic() < deadline
        time.sleep(0.01)
