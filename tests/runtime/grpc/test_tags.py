"""A message with its tag comes out whole, and one that anybody touched does not come out at all; so with pings.

Oracle: the bytes that went in; every single change of what a tag covers is refused.
"""

import asyncio
import struct

import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.runtime.consortium.credentials import Role
from suture.runtime.errors import MemberLostError, WireError
from suture.runtime.grpc import chunks, pings
from suture.runtime.grpc.chunks import CHUNK_BYTES, MESSAGE_LIMIT
from suture.runtime.grpc.handshake import Keys
from suture.runtime.grpc.pings import PlainPings, TaggedPings
from suture.runtime.grpc.site_session import SiteSession
from suture.runtime.grpc.tags import NO_TAGS, TAG_BYTES, CallTags, Counted, ForgedError
from suture.runtime.wire.messages import Refusal, Welcome

KEYS = Keys("ab" * 16, b"s" * 32, b"r" * 32)
FORGED = "was changed on its way, or is not the other end's own; ask whoever runs the proxy"


def site(endpoint="train", place=0, keys=KEYS) -> CallTags:
    return CallTags(keys, Role.CLIENT, endpoint, place)


def server(endpoint="train", place=0, keys=KEYS, counted=None) -> CallTags:
    return CallTags(keys, Role.SERVER, endpoint, place, counted)


def said(tags, content: bytes) -> list[bytes]:
    return list(tags.sent(chunks.chunks([memoryview(content)])))


def heard(tags, sent, most=2**30) -> bytes | None:
    waiting = iter(sent)

    async def read():
        return next(waiting, grpc.aio.EOF)

    frame = asyncio.run(chunks.gather(tags.received(read), most))
    return None if frame is None else frame.numpy().tobytes()


# Messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, 24, 1000, CHUNK_BYTES - 32, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]
)
def test_a_request_and_its_answer_come_out_whole(size):
    """Oracle: the bytes; the frame is the one without tags and 32 bytes, in messages that gRPC takes."""
    content, asks, serves = bytes(range(256)) * (size // 256 + 1), site(), server()
    content = content[:size]
    assert not serves.are_checked
    for one, other in ((asks, serves), (serves, asks)):
        sent = said(one, content)
        assert b"".join(sent)[:-TAG_BYTES] == b"".join(chunks.chunks([memoryview(content)]))
        assert all(len(chunk) <= MESSAGE_LIMIT for chunk in sent)
        assert heard(other, sent) == content
    assert serves.are_checked


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.data())
def test_any_change_of_what_is_sent_is_refused(content, data):
    """Property: a bit, the end, a piece out of the middle, the order. Oracle: an error of ours, and nothing comes out."""
    whole = b"".join(said(site(), content))
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(1, len(whole) - place))
    flipped = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
    for changed in (
        flipped,
        whole[:place] + whole[place + cut :],
        whole + whole[place:],
        whole[place:] + whole[:place],
    ):
        if changed == whole:
            continue
        serves = server()
        try:
            out = heard(serves, [changed], most=10**6)
        except WireError:
            out = None
        assert out is None and not serves.are_checked


@pytest.mark.parametrize("order", [(0, 2), (0, 1), (1, 0, 2), (0, 2, 1), (0, 1, 1, 2), (2,), (0, 0, 1, 2)])
def test_chunks_that_are_left_out_swapped_or_doubled_are_refused(order):
    """Oracle: three chunks in every other order; as they are they pass."""
    sent = said(site(), bytes(CHUNK_BYTES) + b"\1" * CHUNK_BYTES + b"\2" * 9)
    assert len(sent) == 3 and len(heard(server(), sent)) == 2 * CHUNK_BYTES + 9
    with pytest.raises(WireError):
        heard(server(), [sent[place] for place in order])


@pytest.mark.parametrize(
    "other",
    [
        {"endpoint": "predict"},
        {"endpoint": "trai"},
        {"place": 1},
        {"keys": Keys("cd" * 16, KEYS.site, KEYS.server)},
        {"keys": Keys(KEYS.session, b"x" * 32, KEYS.server)},
    ],
)
def test_a_request_of_another_call_session_or_key_is_refused(other):
    """Oracle: the message names the endpoint that was called."""
    with pytest.raises(ForgedError, match=f"{other.get('endpoint', 'train')} {FORGED}"):
        heard(server(**other), said(site(), b"content"))


def test_a_request_that_is_sent_back_is_no_answer():
    """Oracle: refused; the two directions have keys of their own."""
    asks = site()
    sent = said(asks, b"content")
    with pytest.raises(ForgedError, match=FORGED):
        heard(asks, sent)


def test_an_answer_belongs_to_one_request():
    """Oracle: refused, although session, endpoint and place are the same: the request said something else."""
    one, other, serves = site(), site(), server()
    mine, another = said(one, b"one"), said(other, b"other")
    assert heard(serves, mine) == b"one"
    answer = said(serves, b"answer")
    with pytest.raises(ForgedError, match=FORGED):
        heard(other, answer)
    assert heard(one, answer) == b"answer" and another != mine


def test_an_answer_that_comes_before_the_request_is_whole_is_refused():
    """Oracle: the message; an honest server reads all of it first."""
    serves = server()
    heard(serves, said(site(), b"content"))
    with pytest.raises(ForgedError, match="train was answered before it had been asked whole"):
        heard(site(), said(serves, b"answer"))


def test_a_server_says_nothing_with_a_tag_before_the_request_is_checked():
    """Oracle: refused by its own side."""
    with pytest.raises(ForgedError, match="before it had been asked whole"):
        said(server(), b"answer")


@pytest.mark.parametrize("sent", [[b"x"], [struct.pack("<Q", 0)], [struct.pack("<Q", 24) + bytes(24)]])
def test_a_message_without_a_tag_is_refused(sent):
    """Oracle: an error of ours."""
    with pytest.raises(WireError):
        heard(server(), sent)


def test_nothing_at_all_is_no_message():
    """Oracle: None, as without tags: the call has ended with a status."""
    assert heard(server(), []) is None and heard(site(), []) is None


def test_a_message_that_says_too_much_is_refused_before_memory_is_taken(monkeypatch):
    """Oracle: torch is not asked for any, although no tag has been seen."""
    monkeypatch.setattr(chunks.torch, "empty", lambda *_, **__: pytest.fail("memory was taken"))
    sent = said(site(), bytes(3 * CHUNK_BYTES))
    with pytest.raises(WireError, match="at most 100 are taken here"):
        heard(server(), sent, most=100)


def test_each_call_is_taken_once_and_in_its_order():
    """Oracle: the places of calls and of hellos, which have an order of their own."""
    counted = Counted()
    for endpoint, place in (("hello", 0), ("hello", 1), ("train", 0), ("fetch", 1), ("hello", 2)):
        assert heard(server(endpoint, place, counted=counted), said(site(endpoint, place), b"")) == b""
    for endpoint, place, due in (("train", 0, 2), ("train", 3, 2), ("hello", 1, 3)):
        words = f"{endpoint} says that it is call {place} of its session, and it is {due}'s turn"
        serves = server(endpoint, place, counted=counted)
        with pytest.raises(ForgedError, match=words):
            heard(serves, said(site(endpoint, place), b""))
        assert not serves.are_checked


def test_a_call_that_is_refused_does_not_take_the_place_of_the_true_one():
    """Oracle: the true one is taken after one that was made up."""
    counted, sent = Counted(), said(site(), b"content")
    with pytest.raises(ForgedError):
        heard(server(counted=counted), [sent[0][:-1] + b"\0"])
    assert heard(server(counted=counted), sent) == b"content"


def test_without_tags_everything_is_as_it_was():
    """Oracle: the very objects."""
    sent, read = iter([b"x"]), object()
    assert NO_TAGS.sent(sent) is sent and NO_TAGS.received(read) is read and NO_TAGS.are_checked


def test_a_site_signs_nothing_but_a_hello_before_it_has_joined():
    """Oracle: MemberLostError; a refusal lets nobody in, a welcome does."""
    session = SiteSession(KEYS, line_timeout=3.0)
    assert [session.begin("hello")[0] for _ in range(3)] == [0, 1, 2]
    for answer in (None, Refusal("WireError", "no")):
        session.answered(answer)
        with pytest.raises(MemberLostError, match="fetch: this site has not joined; join again"):
            session.begin("fetch")
    session.answered(Welcome("run", "folder", 1.0))
    assert [session.begin("fetch")[0], session.begin("train")[0]] == [0, 1]


# Pings ---------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(pings.time, "monotonic", lambda: self.now)


def both(every=1.0) -> tuple[TaggedPings, TaggedPings]:
    made = TaggedPings(KEYS, Role.CLIENT, every), TaggedPings(KEYS, Role.SERVER, every)
    for one in made:
        one.begin()
    return made


def test_pings_go_both_ways():
    """Oracle: none is refused, in whatever order the two ends write."""
    one, other = both()
    for number in range(20):
        if number % 3:
            other.take(one.made())
        one.take(other.made())
        other.take(one.made())


def test_pings_that_are_made_up_changed_repeated_left_out_or_sent_back_are_refused():
    """Oracle: the message; after each the true one is taken."""
    one, other = both()
    first, second, third = one.made(), one.made(), one.made()
    other.take(first)
    changed = [
        second[:place] + bytes([second[place] ^ 1]) + second[place + 1 :] for place in range(len(second))
    ]
    longer = struct.pack("<QQ", 2, 0) + bytes(32)
    for ping in (b"", b".", first, third, other.made(), longer, second + b"x", second[:-1], *changed):
        with pytest.raises(ForgedError, match="a ping was made up, sent again or left out on its way"):
            other.take(ping)
    other.take(second)
    other.take(third)


def test_pings_of_another_session_are_refused():
    """Oracle: the message."""
    stranger = TaggedPings(Keys("cd" * 16, KEYS.site, KEYS.server), Role.CLIENT, 1.0)
    with pytest.raises(ForgedError, match="a ping was made up"):
        both()[1].take(stranger.made())


def test_a_ping_that_has_seen_what_was_never_written_is_refused():
    """Oracle: the message; a member that says so would be there for ever."""
    one, other = both()
    one._num_taken = 5
    with pytest.raises(ForgedError, match="a ping was made up"):
        other.take(one.made())


def test_a_stream_is_opened_once():
    """Oracle: the message: in a second stream the same pings could be sent again."""
    with pytest.raises(ForgedError, match="a session has one stream, and a second one was opened"):
        both()[0].begin()


def test_patience_begins_anew_with_what_a_ping_has_seen(monkeypatch):
    """Oracle: the lease and two intervals from the moment at which the newest ping that the other end saw was written."""
    clock = Clock(monkeypatch)
    one, other = both(every=2.0)
    assert other.patience(10.0) == 14.0
    clock.now += 3
    seen = other.made()
    clock.now += 1
    other.take(one.made())
    assert (
        other.patience(10.0) == 10.0
    )  # it has seen nothing yet: the stream's beginning is all that is known
    one.take(seen)
    clock.now += 4
    other.take(one.made())
    assert other.patience(10.0) == 14.0 - 5


def test_pings_that_were_saved_up_keep_nobody_alive(monkeypatch):
    """Oracle: the site is dead after 100 s; a proxy that lets one ping in five through has 80 left, and they are of no use
    beyond the lease."""
    clock = Clock(monkeypatch)
    one, other = both()
    saved = []
    for _ in range(100):
        clock.now += 1
        one.take(other.made())
        saved.append(one.made())
    died = clock.now
    for ping in saved:
        if other.patience(10.0) < 0:
            break
        other.take(ping)
        clock.now += 5
    assert clock.now - died <= 10.0 + 5 + 2


def test_what_the_other_end_never_sees_is_kept_no_longer_than_its_lease(monkeypatch):
    """Oracle: patience is at its end, and that is checked at every ping."""
    clock = Clock(monkeypatch)
    one, other = both()
    for _ in range(13):
        clock.now += 1
        other.made()
        other.take(one.made())
    assert other.patience(10.0) < 0


def test_plain_pings_are_one_byte_and_begin_anew_with_each():
    """Oracle: by hand."""
    plain = PlainPings()
    plain.begin()
    plain.begin()
    plain.take(b"anything")
    assert plain.made() == b"." and plain.patience(7.0) == 7.0
