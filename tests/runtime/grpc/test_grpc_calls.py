"""One call after the other by hand: who is let in, what is refused, and how each end learns that the other has gone.

Oracle: the protocol's rules and the words of the errors; a real server and real sites over loopback and TLS.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from house import HELLO, LONG, House, credentials, free_port, joined, noting, told

from suture.launch.kits.authority import Authority
from suture.runtime.consortium.credentials import Role
from suture.runtime.errors import (
    ConfigError,
    MemberLostError,
    NameTakenError,
    PeerLostError,
    StoppedError,
    WireError,
)
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc import client as client_module
from suture.runtime.grpc.chunks import SMALL, Limits
from suture.runtime.grpc.client import GrpcClient
from suture.runtime.grpc.loop import LoopThread
from suture.runtime.grpc.server import CALLS_OF_A_SITE, GrpcServer, GrpcServerConfig
from suture.runtime.grpc.service import ALIVE, PING, PREFIX, endpoint_of, within
from suture.runtime.scheduler import TurnKind
from suture.runtime.server.api import ENDPOINTS, ServerApi
from suture.runtime.wire import frames
from suture.runtime.wire.messages import Refusal, Upload, Welcome

# Joining -------------------------------------------------------------------------------------------


def test_a_site_joins_as_the_one_that_its_certificate_names(house):
    """Oracle: the run's welcome; the first hello is the one that the server was told of before there was a run."""
    made = house(1, plays=False)
    line = made.line()
    waits = line.begin("hello", [HELLO])
    assert made.server.first_hello() == HELLO
    made.play()
    assert waits() == Welcome("run", str(made.coordinator.config.run_dir), made.coordinator.config.lease)
    assert made.events.wait("joined") == {"client": "client0", "images": HELLO.num_images}


def test_a_name_that_is_another_sites_is_refused(house):
    """Oracle: the message; what the certificate says counts, not what the site says."""
    made = house(2)
    with pytest.raises(
        WireError, match="client0: hello: it must name the site that the certificate names; refused"
    ):
        joined(made.line("client0"), "client1")
    joined(made.line("client1"), "client1")


@pytest.mark.parametrize("messages", [[], [HELLO, HELLO], [Refusal("WireError", "no")], [None], ["client0"]])
def test_a_hello_that_is_none_is_refused(messages, house):
    """Oracle: the message, as an answer; the site may mend it."""
    line = house(1).line()
    answer = line.begin("hello", messages)()
    assert answer.error == "WireError" and "hello: it must name the site" in answer.message
    joined(line)


def test_a_second_hello_under_the_same_name_while_the_first_is_alive_is_refused(house):
    """Oracle: the error's class and words; the first one goes on, and once it has gone there is room."""
    made = house(2)
    first = joined(made.line())
    with pytest.raises(
        NameTakenError, match="client0 is in the run already; give every client a name of its own"
    ):
        joined(made.line())
    assert first.fetch() is None
    first.close()
    made.events.wait("lost")
    assert joined(made.line()).fetch() is None


def test_options_that_differ_are_refused_with_both_values(house):
    """Oracle: the server's own error, raised at the site; a run that sites join by themselves goes on."""
    made = house(1)
    with pytest.raises(
        ConfigError, match="client0 has lr = 0.5, the server has None; start both with the same"
    ):
        GrpcExchange(made.line()).join(replace(HELLO, agreement={"lr": "0.5"}))
    joined(made.line())


# Sessions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", [name for name in ENDPOINTS if name != "hello"])
def test_a_call_without_a_session_is_refused(endpoint, house):
    """Oracle: MemberLostError, after which a site joins again; the run has heard of nobody."""
    made = house(1)
    answer = made.line().begin(endpoint, [])()
    assert answer == NO_SESSION
    assert made.coordinator.membership.present() == []


NO_SESSION = Refusal("MemberLostError", "client0 has no session here, or an older one; join again")


def in_session(line: GrpcClient, token: str) -> Any:
    """What a call is answered that says ``token``; the line's own session is as it was."""
    own, line._session = (line._session, line._num_calls), token
    try:
        return line.begin("fetch", [])()
    finally:
        line._session, line._num_calls = own


@pytest.mark.parametrize("token", ["", "0" * 32, "x" * 1000])
def test_a_call_with_another_session_is_refused(token, house):
    """Oracle: MemberLostError for a made-up session, and for that of the connection before."""
    made = house(1)
    line = made.line()
    first = joined(line)
    assert in_session(line, token) == NO_SESSION
    assert first.fetch() is None
    first.close()
    made.events.wait("lost")
    again = made.line()
    second = joined(again)
    assert in_session(again, line._session) == NO_SESSION
    assert second.fetch() is None


def test_the_session_of_one_site_is_of_no_use_to_another(house):
    """Oracle: MemberLostError; whose a session is the certificate says."""
    made = house(2)
    ones, others = made.line("client0"), made.line("client1")
    one, other = joined(ones, "client0"), joined(others, "client1")
    others._session = ones._session
    with pytest.raises(MemberLostError, match="client1 has no session here"):
        other.fetch()
    assert one.fetch() is None


# What a call may be ----------------------------------------------------------------------------------


def test_too_many_calls_of_a_site_are_refused_and_the_others_are_answered(house):
    """Oracle: one stream and seven calls wait; the next one is refused at once, and another site's is not."""
    made = house(2)
    line = made.line("client0")
    joined(line)
    for _ in range(CALLS_OF_A_SITE - 1):
        line.begin("next_turn", [])
    refused = line.begin("fetch", [])()
    assert refused == Refusal("WireError", f"client0: more than {CALLS_OF_A_SITE} calls under way; refused")
    assert GrpcExchange(made.line("client1")).join(replace(HELLO, client="client1")).run == "run"


def test_calls_are_taken_in_the_order_in_which_they_were_made(house, monkeypatch):
    """Oracle: the numbers of 400 calls, four at once. Streams of one connection overtake each other (in this process
    one pair in twenty did, between two one in a thousand), and then a batch's second part would be refused."""
    made = house(1)
    line, asked = made.line(), noting(made, monkeypatch)
    joined(line)
    for begin in range(0, 400, 4):
        for wait in [line.begin("share", [number]) for number in range(begin, begin + 4)]:
            assert wait().error == "WireError"
    assert asked == list(range(400))


def test_a_call_whose_predecessor_never_comes_waits_only_so_long(house, monkeypatch):
    """Oracle: the refusal; the calls whose place is at hand, or who say none, are taken as they come."""
    made = house(1, line_timeout=1.0)
    line, asked = made.line(), noting(made, monkeypatch)
    joined(line)
    line.begin("share", [0])()
    line._num_calls = 5
    assert line.begin("share", [5])() == Refusal("WireError", "call 5 came, and of those before it only 1")
    for place in (1, 2, 0, 0):
        line._num_calls = place
        line.begin("share", [place])()
    assert asked == [0, 1, 2, 0, 0]


@pytest.mark.parametrize("place", ["-1", "1.5", "x", "9" * 50])
def test_a_place_that_is_no_number_is_refused(place, house):
    """Oracle: the message; the session goes on."""
    line = house(1).line()
    exchange = joined(line)

    class Place(int):
        def __str__(self) -> str:
            return place

    line._num_calls = Place()
    assert line.begin("fetch", [])() == Refusal("WireError", f"a call whose place is {place!r:.40}")
    line._num_calls = 0
    assert exchange.fetch() is None


@pytest.mark.parametrize(
    ("endpoint", "messages", "words"),
    [
        ("fetch", [None], "fetch: it takes other messages; refused"),
        ("train", [], "train: it takes other messages; refused"),
        ("train", [HELLO], "train: it takes other messages; refused"),
        ("share", [0.5], "share: it takes other messages; refused"),
        ("commit", [None, None], "commit: it takes other messages; refused"),
    ],
)
def test_other_messages_than_an_endpoint_takes_are_refused(endpoint, messages, words, house):
    """Oracle: the message; the session goes on."""
    line = house(1).line()
    exchange = joined(line)
    assert line.begin(endpoint, messages)() == Refusal("WireError", words)
    assert exchange.fetch() is None


def test_a_message_that_is_too_large_is_not_sent_and_if_it_is_it_is_refused(house, caplog):
    """Oracle: the sender's own bound, and the server's where the sender has none; both sides go on."""
    small = Limits(batch=1000, handoff=SMALL, release=SMALL)
    made = house(1, plays=False)
    made.play(small)
    upload = Upload(1, 0, "train", torch.zeros(2**16))
    honest = made.line(limits=small)
    exchange = joined(honest)
    with pytest.raises(
        WireError, match=r"train: a message of \d+ bytes; this run's have at most 1000: not sent"
    ):
        exchange.call(ServerApi.train, upload)
    with pytest.raises(WireError, match="client0: next_turn|granted no turn|expected shape"):
        exchange.call(ServerApi.train, Upload(1, 0, "train", torch.zeros(1, 2)))
    exchange.close()
    made.events.wait("lost")
    hostile = joined(made.line())
    with pytest.raises(WireError, match=r"a message of \d+ bytes; at most 1000 are taken here"):
        hostile.call(ServerApi.train, upload)
    assert hostile.fetch() is None
    assert len([line for line in caplog.messages if "at most 1000 are taken" in line]) == 1


def test_an_answer_that_is_too_large_is_refused_at_the_site(house):
    """Oracle: the site's own bound; nothing is read beyond it, and the site may call again."""
    made = house(1)
    line = made.line()
    exchange = joined(line)
    release = made.coordinator.transaction.newest_handoff

    def grown(member):
        release(member)
        return Refusal("WireError", "x" * (SMALL + 1))

    grown.__name__ = "newest_handoff"
    made.coordinator.transaction.newest_handoff = grown
    with pytest.raises(
        WireError, match=r"server: fetch: a message of \d+ bytes; at most 1048576 are taken here; refused"
    ):
        exchange.fetch()
    made.coordinator.transaction.newest_handoff = release
    assert exchange.fetch() is None


def sending(monkeypatch, pack) -> None:
    """From now on a site sends what ``pack`` makes of its messages; the server's answers stay as they are."""
    sites = SimpleNamespace(pack=pack, unpack=frames.unpack)
    monkeypatch.setattr(client_module, "frames", sites)


def test_bytes_that_are_no_message_are_refused_and_the_site_may_go_on(house, monkeypatch):
    """Oracle: the frames' words as a refusal."""
    line = house(1).line()
    exchange = joined(line)
    sending(monkeypatch, lambda messages: [memoryview(b"not a frame")])
    answer = line.begin("fetch", [])()
    assert answer.error == "WireError" and "a frame of 11 bytes" in answer.message
    monkeypatch.undo()
    assert exchange.fetch() is None


def test_a_message_that_is_no_list_is_refused(house, monkeypatch):
    """Oracle: the message, for a session's call and for a newcomer's."""
    made = house(2)
    line, newcomer = made.line(), made.line("client1")
    joined(line)
    sending(monkeypatch, lambda messages: frames.pack(None))
    for answer in (line.begin("fetch", [])(), newcomer.begin("hello", [])()):
        assert answer == Refusal("WireError", "a call whose messages are no list")


def test_a_refusal_of_a_sites_is_logged_once(house, caplog):
    """Oracle: a hundred refused calls, one line that names the site, and one of another site's."""
    made = house(2)
    for name in ("client0", "client1"):
        line = made.line(name)
        for _ in range(50):
            assert line.begin("hello", [None])().error == "WireError"
    refused = [line for line in caplog.messages if line.startswith("refused hello of ")]
    assert [line.split(":")[0] for line in refused] == [
        "refused hello of client0",
        "refused hello of client1",
    ]


# Signs of life ---------------------------------------------------------------------------------------


def test_a_site_that_closes_its_connection_is_lost_at_once(house):
    """Oracle: the event, long before any lease or timeout of a minute; the other site is told its turn."""
    made = house(2)
    first, second = joined(made.line("client0"), "client0"), joined(made.line("client1"), "client1")
    assert first.next_turn()().kind is TurnKind.TRAIN
    first.close()
    assert made.events.wait("lost") == {"client": "client0", "reason": "its connection has ended"}
    assert second.next_turn()().client == "client1"
    first.close()


def test_an_end_that_falls_together_with_a_ping_is_not_forgotten():
    """Oracle: the cancellation; of Python 3.11 ``asyncio.wait_for`` answers with the ping, and the stream goes on."""

    async def together() -> None:
        ping = asyncio.get_running_loop().create_future()

        async def read() -> bytes:
            return await ping

        reading = asyncio.ensure_future(within(LONG, read()))
        await asyncio.sleep(0)
        ping.set_result(PING)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        with pytest.raises(TimeoutError):
            await within(0.01, asyncio.sleep(LONG))
        assert await within(LONG, asyncio.sleep(0, PING)) == PING

    asyncio.run(together())


def test_a_connection_that_is_closed_as_soon_as_it_stays_is_closed(house):
    """Oracle: the server hears of each, at the moment at which its first ping comes."""
    for _ in range(5):
        made = house(1)
        joined(made.line()).close()
        made.events.wait("lost")


def waiting(made: House, line: GrpcClient) -> Callable[[], Any]:
    """A call for a turn that has come to the run, which lets it wait."""
    waits, deadline = line.begin("next_turn", []), time.monotonic() + LONG
    while (member := made.coordinator.membership.get("client0")) is None or member.waiting is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return waits


def test_a_call_that_waits_when_the_server_stops_fails_and_so_does_every_later_one(house):
    """Oracle: PeerLostError, long before the call's deadline of more than a minute."""
    made = house(2)
    line = made.line()
    exchange = joined(line)
    waits = waiting(made, line)
    made.server.close(0)
    for call in (waits, exchange.fetch):
        with pytest.raises(PeerLostError):
            call()


def test_a_call_that_waits_when_the_site_closes_its_own_line_fails(house):
    """Oracle: PeerLostError, where a thread of the site's would wait for ever."""
    made = house(2)
    line = made.line()
    joined(line)
    waits = waiting(made, line)
    line.close()
    with pytest.raises(PeerLostError, match="the connection was closed"):
        waits()


def test_a_run_that_stops_answers_those_who_wait_with_its_error(house):
    """Oracle: the end of the run with its reason, over the wire; the server's own error is the same."""
    made = house(2)
    exchange = joined(made.line())
    waits = exchange.next_turn()
    made.coordinator.stop(StoppedError("the disk is full"))
    turn = waits()
    assert (turn.kind, turn.error, turn.reason) == (TurnKind.END, "StoppedError", "the disk is full")
    exchange.leave()
    assert made.ended.wait(LONG) and str(made.error) == "the disk is full"


def test_a_site_that_says_nothing_for_its_lease_is_lost(house):
    """Oracle: the reason; its connection stands, and its pings come too seldom."""
    made = house(1, lease=0.5)
    exchange = joined(made.line(line_timeout=1000.0))
    reason = made.events.wait("lost")["reason"]
    assert reason == "no word from it for 0.5 s"
    with pytest.raises((MemberLostError, PeerLostError)):
        exchange.fetch()


def test_a_server_that_says_nothing_for_the_lease_is_given_up(house):
    """Oracle: the reason; the connection stands, and the server's pings come too seldom."""
    made = house(2, line_timeout=1000.0)
    line = made.line(lease=0.5)
    joined(line)
    with pytest.raises(PeerLostError, match="no word from the server for 0.5 s; see the server's log"):
        line.begin("next_turn", [], patient=True)()


def test_a_site_that_joins_and_opens_no_stream_gives_its_seat_back(house):
    """Oracle: the reason; nobody would notice its end."""
    made = house(1, line_timeout=1.0)
    assert isinstance(made.line().begin("hello", [HELLO])(), Welcome)
    assert made.events.wait("lost")["reason"] == "it has joined and opened no stream for 1 s"


def test_a_call_that_is_not_answered_in_time_is_given_up(house):
    """Oracle: the deadline that the site set; the server has not begun to play, so that a hello waits."""
    made = house(1, plays=False)
    line = made.line(lease=0.2, limits=Limits(batch=0, handoff=0, release=0))
    line._config = replace(
        line._config, lease=-8.0 - SMALL / 1e9
    )  # the smallest answer's own seconds are in it
    with pytest.raises(
        PeerLostError, match=r"the server at 127.0.0.1:\d+ did not answer in time; see its log"
    ):
        line.begin("hello", [HELLO])()


# Who is at the other end -------------------------------------------------------------------------------


def test_nobody_at_the_port_is_a_lost_peer(authority, thread, house):
    """Oracle: gRPC's reason in a sentence; a site that looks for its server goes on looking."""
    made = house(1)
    line = made.line(port=free_port())
    with pytest.raises(PeerLostError, match="Connection refused"):
        line.begin("hello", [HELLO])()


def test_a_server_of_another_authority_is_told_nothing(house, tmp_path):
    """Oracle: the site's error says what to check; the server has heard no hello."""
    made = house(1)
    stranger = Authority(tmp_path / "stranger")
    with pytest.raises(
        ConfigError,
        match=r"shows a certificate that is not to be trusted \(.*\); nothing was said to it: check the kit.s ca.pem",
    ):
        made.line(credentials=credentials(stranger, "client0")).begin("hello", [HELLO])()
    assert not made.server._first.done()


def test_a_server_whose_certificate_names_another_address_is_told_nothing(house, tmp_path, thread):
    """Oracle: the site's error; the server has heard no hello."""
    elsewhere = Authority(tmp_path / "elsewhere", hosts=("10.0.0.1",))
    made = house(1, credentials=credentials(elsewhere, "hub", Role.SERVER))
    with pytest.raises(
        ConfigError, match="shows a certificate for another address; nothing was said to it: dial"
    ):
        made.line(credentials=credentials(elsewhere, "client0")).begin("hello", [HELLO])()
    assert not made.server._first.done()


def test_a_site_of_another_authority_is_not_let_in(house, tmp_path):
    """Oracle: an error of ours at the site, whose authority the server's certificate fits; the server heard no hello."""
    made = house(1)
    stranger = Authority(tmp_path / "stranger")
    own = credentials(stranger, "client0")
    with pytest.raises((PeerLostError, ConfigError)):
        made.line(credentials=replace(own, authority=made.authority.ca.read_bytes())).begin(
            "hello", [HELLO]
        )()
    assert not made.server._first.done()


def test_a_server_of_another_protocol_is_said(house, monkeypatch):
    """Oracle: the message; no method of this protocol's has the other one's name."""
    made = house(1)
    monkeypatch.setattr(client_module, "PREFIX", "/suture/999/")
    error = told(made, "hello")
    assert isinstance(error, ConfigError)
    assert "speaks another version of the protocol; install the same suture" in str(error)


def test_a_method_names_an_endpoint_of_this_protocol_or_none():
    """Oracle: by hand."""
    assert [endpoint_of(PREFIX + name) for name in (*ENDPOINTS, ALIVE)] == [*ENDPOINTS, ALIVE]
    for method in ("", "/", "hello", "/suture/hello", "/suture/999/hello", "/suture.Server/hello"):
        assert endpoint_of(method) == ""


@pytest.mark.parametrize("method", ["nothing", "forward", "step", "", "hello/again"])
def test_a_method_that_is_no_endpoint_is_not_there(method, house):
    """Oracle: gRPC's own answer, before any of the run's code; the site may join."""
    made = house(1)
    assert "speaks another version of the protocol" in str(told(made, method))
    joined(made.line())


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_said(house, authority):
    """Oracle: the message; two servers on one port would share its sites."""
    config = GrpcServerConfig(
        host="127.0.0.1", port=house(1).port, credentials=credentials(authority, "hub", Role.SERVER), sites=1, lease=1, line_timeout=1
    )  # fmt: skip
    for taken in (config, replace(config, host="192.0.2.1")):
        server = GrpcServer(taken)
        with pytest.raises(
            ConfigError, match=f"cannot listen on {taken.host}:{taken.port}; name an address of this"
        ):
            server.start()
        server.close(0)
        server.close(0)


def test_an_ipv6_address_is_dialled_and_listened_on(house, tmp_path):
    """Oracle: a site joins over ::1."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1")
    authority = Authority(tmp_path / "six", hosts=("::1",))
    made = house(1, host="::1", credentials=credentials(authority, "hub", Role.SERVER))
    joined(made.line(host="::1", credentials=credentials(authority, "client0")))


# The loop of a process ---------------------------------------------------------------------------------


def test_a_loop_runs_what_other_threads_give_it_until_it_is_closed():
    """Oracle: the results, and the loop's own thread; closing twice is closing once."""
    thread = LoopThread()

    async def where(number: int) -> tuple[int, str]:
        await asyncio.sleep(0)
        return number, threading.current_thread().name

    assert [thread.run(where(number)).result(LONG) for number in range(3)] == [(n, "grpc") for n in range(3)]
    thread.close()
    thread.close()
    assert thread.loop.is_closed()


def test_one_loop_serves_connection_after_connection(house):
    """Oracle: each hello is answered; a connection of its own thread ends with it, one of a given thread leaves it."""
    made = house(1)
    for number in range(1, 4):
        line = made.line()
        assert joined(line).fetch() is None
        line.close()
        made.events.wait("lost", number)
    assert not made.thread.loop.is_closed()
    alone = GrpcClient(made.config())
    joined(alone)
    alone.close()
    assert alone._thread.loop.is_closed()


def test_a_turn_that_is_given_up_is_there_for_whoever_joins_next(house):
    """Oracle: its number; the one that gave it up is lost, and told so when it calls again."""
    made = house(1)
    exchange = joined(made.line())
    first = exchange.next_turn()()
    exchange.abort(StoppedError("a picture is gone"))
    assert made.events.wait("lost") == {"client": "client0", "reason": "a picture is gone"}
    with pytest.raises(MemberLostError, match="client0 was lost: a picture is gone; join again"):
        exchange.fetch()
    again = joined(made.line()).next_turn()()
    assert (first.kind, first.number) == (again.kind, again.number) == (TurnKind.TRAIN, 1)
