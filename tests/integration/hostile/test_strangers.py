"""Strangers and members against `suture serve`: real bytes on the line, while an honest site trains.

Every attack must come to an answer of the server's that refuses, or to a connection that the server ended; a control with
the same means must get through, so that no attack can fail for a reason of its own. Oracle: the honest site ends well, and
with the weights of the run in which its turns alone were played. ``make hostile`` prints the table.
"""

import json
import ssl
import struct
import time
from dataclasses import replace

import pytest
import torch
from peer import Peer, Said, answered, framed, plain, raw_frame, tls
from replayed import replay
from rows import Row
from stage import Stage

from suture.launch.kits.authority import DAY, Authority
from suture.launch.kits.kit import Certificates
from suture.runtime.consortium.credentials import Role
from suture.runtime.consortium.identity import Identity
from suture.runtime.grpc.server import CALLS_OF_A_SITE
from suture.runtime.grpc.service import PREFIX
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.api import ENDPOINTS
from suture.runtime.state.handoff import HANDOFF, handoff_digest, named
from suture.runtime.wire.messages import (
    Board,
    Farewell,
    Hello,
    OutputGradient,
    Refusal,
    Report,
    SealedHandoff,
    Terms,
    Upload,
    Welcome,
)

# Real processes and waiting for leases: `make hostile` runs it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EMPTY = ("an empty call", "an empty chunk")
"""Which are sent, and are no bytes."""
GOT_NOWHERE = {"refused", "status", "closed"}
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A server for two sites; ward_a is honest and trains as soon as ward_b is in."""
    made = Stage(tmp_path_factory.mktemp("hostile"), epochs=3)
    made.serve(2)
    made.join("ward_a")
    made.until(lambda: "ward_a joined" in made.log("server"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def tried() -> dict[str, Said]:
    """What came of each attack."""
    return {}


@pytest.fixture(scope="module", autouse=True)
def rows(played, tried, table):
    """One row an attack."""
    codes, controls = played
    honest = ", ".join(f"{name}: {code}" for name, code in codes.items())
    controls = {f"control: {name}": said for name, said in controls.items() if name != "grown by"}
    for name, said in (tried | controls).items():
        by, _, attack = name.partition(": ")
        sent = said.sent > 0 or by == "stranger" or attack in EMPTY
        came = f"{said.kind}: {said.text}" if said.kind != "answer" else "answered"
        table.add("strangers and members, by hand", Row(attack, by, sent, came, honest))


def peer(stage: Stage, name: str = "ward_b", shown: Certificates | None = None) -> Peer:
    """A peer that shows the certificate of ``name``, or another one."""
    return Peer(shown or stage.certificates(name), stage.address, stage.authority.ca)


# Strangers: nobody of the consortium's ---------------------------------------------------------------


def strangers(stage: Stage) -> dict[str, Said]:
    """What strangers try; before anybody trains."""
    address, ca, own = stage.address, stage.authority.ca, stage.certificates("ward_b")
    elsewhere = Authority(stage.folder / "elsewhere").issue("ward_b")
    expired = stage.authority.issue("expired", begins=-9 * DAY, ends=-DAY)
    early = stage.authority.issue("early", begins=DAY, ends=9 * DAY)
    impostor = stage.authority.issue("impostor", Role.SERVER)
    hello = Hello("ward_b", stage.agreement(), 8, 2)
    settings = HTTP2 + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

    old = tls(address, ca, own.cert, own.key, newest=ssl.TLSVersion.TLSv1_2)
    return {
        "TLS without a certificate": answered(tls(address, ca), settings),
        "a certificate of another authority": answered(
            tls(address, ca, elsewhere.cert, elsewhere.key), settings
        ),
        "an expired certificate": answered(tls(address, ca, expired.cert, expired.key), settings),
        "a certificate of tomorrow's": answered(tls(address, ca, early.cert, early.key), settings),
        "a server's certificate": answered(tls(address, ca, impostor.cert, impostor.key), settings),
        "gRPC with another authority's certificate": peer(stage, shown=elsewhere).ask("hello", hello),
        "TLS 1.2 with a good certificate": _call_by_hand(old, f"{PREFIX}hello"),
        "no TLS: HTTP/1": answered(plain(address), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        "no TLS: HTTP/2": answered(plain(address), settings),
        "no TLS: random bytes": answered(plain(address), bytes(range(256)) * 64),
        "no TLS: nothing at all": answered(plain(address), b"\x16"),
    }


def _call_by_hand(connection: ssl.SSLSocket, method: str) -> Said:
    """One HTTP/2 request over a TLS connection of any version; what its trailers say."""
    assert connection.version() == "TLSv1.2"

    def literal(name: bytes, value: bytes) -> bytes:  # HPACK, never indexed, no Huffman code
        return b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value

    fields = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", method.encode()),
        (b":authority", b"x"),
    ]
    fields += [(b"te", b"trailers"), (b"content-type", b"application/grpc")]
    block = b"".join(literal(*field) for field in fields)
    head = struct.pack(">I", len(block))[1:] + bytes([1, 4 | 1]) + struct.pack(">I", 1)
    connection.sendall(HTTP2 + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]) + head + block)
    said, deadline = b"", time.monotonic() + 20
    while b"grpc-message" not in said and time.monotonic() < deadline:
        said += connection.recv(4096)
    connection.close()
    text = said.partition(b"grpc-message")[2][1:].decode(errors="replace")
    return Said("status" if b"grpc-status" in said else "answer", text, sent=len(block))


@pytest.fixture(scope="module")
def played(stage, tried):
    """Everything that is tried, in order: strangers, then a member, then the run to its end."""
    controls = {}
    tried.update({f"stranger: {name}": said for name, said in strangers(stage).items()})
    shown = stage.certificates("ward_c")
    good = tls(stage.address, stage.authority.ca, shown.cert, shown.key)
    controls["TLS 1.3 with a good certificate"] = answered(good, HTTP2 + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    tried["stranger: 300 connections that say nothing"] = _flood(stage)
    tried.update({f"member: {name}": said for name, said in outside(stage).items()})
    controls["the terms, before joining"] = peer(stage).ask("terms")
    inside, more = members(stage)
    controls |= more
    tried.update({f"member: {name}": said for name, said in inside.items()})
    codes = {name: stage.ended(name, 240) for name in ("ward_a", "server")}
    return codes, controls


def _flood(stage: Stage) -> Said:
    """Connections that never shake hands; the server gives them up by itself."""
    held = [plain(stage.address) for _ in range(300)]
    ended = 0
    for connection in held:
        try:
            ended += connection.recv(1) == b""
        except OSError:
            ended += 1
        connection.close()
    return Said("closed" if ended == len(held) else "answer", f"{ended} of {len(held)} were given up")


# Members: a certificate of the consortium's, and no good will ---------------------------------------


def messages(stage: Stage) -> dict[str, list]:
    """Every endpoint but hello, and well-formed messages for it."""
    statement = identity(stage).state("withdrawal", run="x")
    handoff = SealedHandoff(1, b"", bytes(12), torch.zeros(64, dtype=torch.uint8))
    every = {
        "next_turn": [],
        "fetch": [],
        "share": [0],
        "train": [Upload(1, 0, "train", torch.zeros(4, 64, 8, 8), torch.zeros(4, dtype=torch.int64))],
        "backward": [OutputGradient(1, 0, 0.5, torch.zeros(4, 2))],
        "predict": [Upload(1, 0, "test", torch.zeros(4, 64, 8, 8))],
        "commit": [handoff],
        "report": [Report(1, {})],
        "abort": [Refusal("WireError", "no")],
        "finish": [Farewell({"bottom": "a" * 64}, 1)],
        "leave": [],
        "board": [],
        "post": [statement],
        "begin_epoch": [statement, handoff],
        "exhibit": [],
        "heads": [],
    }
    assert every.keys() | {"hello"} == ENDPOINTS.keys(), "an endpoint is missing here"
    return every


def identity(stage: Stage) -> Identity:
    """Who signs for the hostile member."""
    return Identity.of(stage.certificates("ward_b").read(Role.CLIENT))


def outside(stage: Stage) -> dict[str, Said]:
    """What a site tries before it has joined, or under another's name."""
    wrong, hello = peer(stage), Hello("ward_b", stage.agreement(), 8, 2)
    every = messages(stage)
    tried = {f"{name} without having joined": wrong.ask(name, *given) for name, given in every.items()}
    tried |= {
        "a session that it made up": wrong.ask("next_turn", session="f" * 32),
        "another site's name": wrong.ask("hello", replace(hello, client="ward_a")),
        "the server's name": wrong.ask("hello", replace(hello, client="server")),
        "another version": wrong.send("/suture/2/hello", framed([hello])),
        "other options": wrong.ask("hello", replace(hello, agreement=hello.agreement | {"lr": "9"})),
        "other software": wrong.ask("hello", replace(hello, agreement=hello.agreement | {"torch": "1.0"})),
        "the name of a site that is in": peer(stage, "ward_a").ask("hello", replace(hello, client="ward_a")),
        # What worked over torch RPC, in the forms that the line knows.
        "an operator as a method": wrong.send("/aten/segment_reduce", framed([torch.zeros(1)])),
        "torch's operator as an endpoint": wrong.send(
            f"{PREFIX}aten::save", framed([torch.zeros(1), "checkpoints"])
        ),
        "a method of Python's": wrong.send(f"{PREFIX}__init__", framed([])),
        "a call in RPC's form": wrong.send(
            f"{PREFIX}hello", raw_frame(b'{"call":["builtins.eval",["1"]]}', b"[]")
        ),
        "a reference in RPC's form": wrong.send(
            f"{PREFIX}hello", raw_frame(b'[{"RRef":[0,0,0,0,0,0,"PyObject"]}]', b"[]")
        ),
        "a pickle": wrong.send(f"{PREFIX}hello", [struct.pack("<Q", 5) + b"\x80\x04N.."]),
    }
    wrong.close()
    return tried


def members(stage: Stage) -> tuple[dict[str, Said], dict[str, Said]]:
    """What a site tries when it has joined, in and out of its turn, until its lease runs out; and the controls."""
    hostile, hello = peer(stage), Hello("ward_b", stage.agreement(), 8, 2)
    joined = hostile.ask("hello", hello)
    tried = {"too many calls at once": at_once(hostile)}
    stage.until(lambda: hostile.ask("hello", hello).kind == "answer")
    held = hostile.hold()
    while True:
        granted = hostile.ask("next_turn")
        if granted.kind == "answer" and granted.value.kind is TurnKind.TRAIN:
            break
        assert granted.kind == "answer", granted
    turn: Turn = granted.value
    memory = stage.memory("server")  # nobody trains now
    tried |= malformed(hostile)
    tried |= to_each_endpoint(stage, hostile)
    grown = stage.memory("server") - memory
    shape = (4, 64, 8, 8)
    good = Upload(turn.number, 0, "train", torch.zeros(shape), torch.zeros(4, dtype=torch.int64))
    wrong = {
        "NaN": {"smashed": torch.full(shape, float("nan"))},
        "infinity": {"smashed": torch.full(shape, float("inf"))},
        "another shape": {"smashed": torch.zeros(4, 3)},
        "another type": {"smashed": torch.zeros(shape, dtype=torch.float64)},
        "too many images": {"smashed": torch.zeros(5, *shape[1:])},
        "labels out of range": {"labels": torch.tensor([0, 1, 99, -1])},
        "a batch out of order": {"batch": 5},
        "a turn to come": {"turn": turn.number + 1},
        "a phase of another turn": {"phase": "test"},
    }
    tried |= {
        f"its turn: {name}": hostile.ask("train", replace(good, **fields)) for name, fields in wrong.items()
    }
    before = handoff_digest(hostile.ask("fetch").value)
    run = json.loads((stage.run / "run.json").read_text())["run"]
    signs = identity(stage)

    def signed(handoff: SealedHandoff) -> SealedHandoff:
        return replace(handoff, statement=signs.state(HANDOFF, **named(handoff, run)))

    handoff = signed(SealedHandoff(turn.number, before, bytes(12), torch.zeros(64, dtype=torch.uint8), 1))
    tried |= {
        "its turn: a hand-off that follows another": hostile.ask(
            "commit", signed(replace(handoff, previous=bytes(32)))
        ),
        "its turn: committed without a step": hostile.ask("commit", handoff),
        "its turn: a hand-off that nobody signed": hostile.ask("commit", replace(handoff, statement=None)),
        "its turn: a hand-off of another turn": hostile.ask("commit", signed(replace(handoff, turn=99))),
        "its turn: a share of a mean": hostile.ask("share", 0),
        "its turn: an epoch that nobody asked for": hostile.ask(
            "begin_epoch", signs.state("epoch", run=run), handoff
        ),
        "its turn: an accusation of nothing": hostile.ask(
            "post", signs.state("accusation", run=run, handoff=[], why="")
        ),
        "its turn: a verdict that nobody asked for": hostile.ask(
            "post", signs.state("verdict", run=run, accusation="00", is_bad=True)
        ),
        "its turn: a withdrawal of another run": hostile.ask("post", signs.state("withdrawal", run="x")),
        "its turn: the exhibit, and nobody is accused": hostile.ask("exhibit"),
        "its turn: the heads, before the end": hostile.ask("heads"),
        "its turn: a gradient that nobody waits for": hostile.ask(
            "backward", OutputGradient(turn.number, 0, 0.5, torch.zeros(4, 2))
        ),
        "its turn: scores instead": hostile.ask("report", Report(turn.number, {})),
        "its turn: the trained top before the end": hostile.ask("finish", Farewell({"bottom": "a" * 64}, 1)),
    }
    step, board = hostile.ask("train", good), hostile.ask("board")
    # It keeps its turn: the lease runs out although the stream and questions go on.
    end = time.monotonic() + 60
    while (late := hostile.ask("fetch")).kind == "answer" and time.monotonic() < end:
        time.sleep(0.5)
    tried["its turn: kept beyond the lease"] = late
    held.cancel()
    hostile.close()
    again = peer(stage)
    stage.until(lambda: again.ask("hello", hello).kind == "answer")
    again.hold()
    again.close()  # it leaves in the middle
    good = {"a member's good hello": joined, "its turn: a good step": step, "its turn: the board": board}
    return tried, good | {"grown by": Said("answer", "", grown)}


def to_each_endpoint(stage: Stage, hostile: Peer) -> dict[str, Said]:
    """Messages of other kinds, too few, too many and too large ones, to every endpoint."""
    tried, head = {}, struct.Struct("<Q").pack
    for name, given in messages(stage).items():
        to = f"{PREFIX}{name}"
        tried[f"{name}: messages of other kinds"] = hostile.ask(
            name, *[Turn(TurnKind.WAIT)] * max(1, len(given))
        )
        tried[f"{name}: one message too many"] = hostile.ask(name, *given, 3)
        tried[f"{name}: a message of 64 MB"] = hostile.send(to, [head(2**26), *[bytes(2**20)] * 4])
        if given:
            tried[f"{name}: no message"] = hostile.ask(name)
    return tried


def malformed(hostile: Peer) -> dict[str, Said]:
    """Frames that are none, too large, or lie; endless and empty ones."""
    to, head = f"{PREFIX}train", struct.Struct("<Q").pack
    entry = b'[["float32",[%b]]]'

    def lies(sizes: bytes, values: bytes = b"") -> Said:
        return hostile.send(to, raw_frame(b'[{"tensor":0}]', entry % sizes, values))

    def endless():
        yield head(1000)
        while True:
            yield bytes(2**20)

    return {
        "an empty call": hostile.send(to, []),
        "an empty chunk": hostile.send(to, [b""]),
        "a length and nothing": hostile.send(to, [head(100)]),
        "more than it says": hostile.send(to, [head(4) + bytes(100)]),
        "2**63 bytes": hostile.send(to, [head(2**63)]),
        "a frame of 1 GB": hostile.send(to, [head(2**30), *[bytes(2**20)] * 64]),
        "one message of 64 MB": hostile.send(to, [head(2**26) + bytes(2**26)]),
        "an endless stream": hostile.send(to, endless()),
        "random bytes": hostile.send(to, [head(4096) + bytes(range(256)) * 16]),
        "nested 100,000 deep": hostile.send(to, raw_frame(b"[" * 100_000, b"[]")),
        "a tensor larger than the frame": lies(b"4,64,8,8"),
        "a tensor of 2**60 values": lies(b"1073741824,1073741824"),
        "negative sizes": lies(b"-4,-4", bytes(64)),
        "a tensor of another type": hostile.send(
            to, raw_frame(b'[{"tensor":0}]', b'[["object",[1]]]', bytes(8))
        ),
        "values that no tensor has": hostile.send(to, raw_frame(b"[]", b"[]", bytes(2**20))),
        "a tensor that is not there": hostile.send(to, raw_frame(b'[{"tensor":7}]', b"[]")),
        "messages of other kinds": hostile.ask("train", Report(1, {}), 3),
    }


def at_once(hostile: Peer) -> Said:
    """One call more than a site may have under way; its streams then end, and its membership with them."""
    streams = [hostile.hold() for _ in range(CALLS_OF_A_SITE)]
    time.sleep(1)
    said = hostile.ask("fetch")
    for stream in streams:
        stream.cancel()
    return said


def test_no_attack_gets_anywhere(played, tried):
    """Oracle: what came back to the sender; nothing was given up on this side."""
    through = {name: said for name, said in tried.items() if said.kind not in GOT_NOWHERE}
    assert not through
    assert len(tried) >= 130


def test_the_same_means_get_through_where_nothing_is_wrong(played):
    """The control. Oracle: an honest handshake, hello and step over the same raw means are answered."""
    _, controls = played
    assert controls["TLS 1.3 with a good certificate"].kind == "answer"
    assert isinstance(controls["a member's good hello"].value, Welcome)
    assert controls["its turn: a good step"].kind == "answer"
    assert isinstance(controls["its turn: the board"].value, Board)
    assert isinstance(controls["the terms, before joining"].value, Terms)


def test_every_refusal_was_the_server_s(played, tried, stage):
    """Oracle: refusals name the server's reasons, and every attack on an open line had been written to it."""
    members_tried = {name: said for name, said in tried.items() if name.startswith("member")}
    empty = {f"member: {name}" for name in EMPTY}
    assert all(said.sent > 0 for name, said in members_tried.items() if name not in empty)
    assert "TLS 1.3 is the oldest" in tried["stranger: TLS 1.2 with a good certificate"].text
    assert "NameTakenError" in tried["member: the name of a site that is in"].text
    assert "MemberLostError" in tried["member: its turn: kept beyond the lease"].text
    assert "lr = 9" in tried["member: other options"].text


def test_the_honest_site_trains_on_to_the_weights_of_its_own_turns(played, stage):
    """Oracle: exit codes; a replay of the turns that counted, in one process."""
    codes, _ = played
    assert codes == {"ward_a": 0, "server": 0}
    turns = [json.loads(line) for line in (stage.run / "turns.jsonl").read_text().splitlines()]
    assert {turn["client"] for turn in turns} == {"ward_a"}
    digest = json.loads((stage.run / "summary.json").read_text())["weights_sha256"]
    options = json.dumps(stage.options)
    assert digest == replay(options, str(stage.folder / "kits"), str(stage.run), "ward_a")


def test_nobody_s_gigabyte_was_kept(played, stage):
    """Oracle: the server's resident memory before and after."""
    _, controls = played
    assert controls["grown by"].value < 200 * 2**20


def test_refusals_are_logged_by_name_and_not_in_floods(played, stage):
    """Oracle: the server's log: the site's name, a few lines, no traceback."""
    log = stage.log("server")
    assert "Traceback" not in log
    refused = [line for line in log.splitlines() if "refused" in line]
    assert any("ward_b" in line for line in refused) and len(refused) <= 40
