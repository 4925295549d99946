"""Servers that answer everything wrongly, against an honest site: real processes, real bytes.

Oracle: each meeting ends in one sentence of the site's (or well, where there was nothing to refuse), the site's process
lives through all of them, and grows by no gigabyte; and an honest server, met by the same means, is served to the end.
``make hostile`` prints the table.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
import torch
from peer import framed, raw_frame
from rows import Row
from stage import OPTIONS

from suture.launch import build
from suture.launch.kits.authority import DAY, Authority
from suture.launch.kits.provision import Project, provision
from suture.launch.options.options import AskedOptions, RunOptions
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.consortium.credentials import Credentials, Role
from suture.runtime.consortium.identity import Trust
from suture.runtime.errors import ConfigError, PeerLostError
from suture.runtime.grpc.chunks import Limits
from suture.runtime.grpc.client import GrpcClient, GrpcClientConfig
from suture.runtime.grpc.server import GrpcServer, GrpcServerConfig
from suture.runtime.grpc.service import endpoint_of, place_of
from suture.runtime.records.observers import NoRecorder
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.membership import Membership, OpenMembership
from suture.runtime.wire.messages import (
    Board,
    Heads,
    Hello,
    Refusal,
    Release,
    Report,
    SealedHandoff,
    Statement,
    StepReply,
    Terms,
    Welcome,
)

# Real processes, one of which waits for a lease: `make hostile` runs it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZE = struct.Struct("<Q").pack
RUN = OPTIONS | {"epochs": 1, "lease": 4, "checkpoints": "off"}
SHAPE = (4, 64, 8, 8)


def reply(loss: float = 0.5, gradient: torch.Tensor | None = None) -> list[bytes]:
    """An answer to a step."""
    at_cut = torch.zeros(SHAPE) if gradient is None else gradient
    return framed(StepReply(torch.tensor(loss), loss, at_cut))


def endless() -> list[bytes]:
    """A message that goes on after its end."""
    return [SIZE(1000), *[bytes(2**20)] * 200]


TRAIN = Turn(TurnKind.TRAIN, "ward_a", 1, 1)
HANDOFF = SealedHandoff(1, b"", bytes(12), torch.zeros(64, dtype=torch.uint8))
MADE_UP = Statement("epoch", "ward_b", '{"number": 1}', "-----BEGIN", "00")
CASES: dict[str, tuple[str, list[bytes]]] = {
    "hello: a turn": ("hello", framed(TRAIN)),
    "hello: fields of other types": ("hello", raw_frame(b'{"Welcome":[1,2,"x"]}', b"[]")),
    "hello: nothing": ("hello", []),
    "hello: a length and nothing": ("hello", [SIZE(100)]),
    "hello: 2**63 bytes": ("hello", [SIZE(2**63)]),
    "hello: an endless message": ("hello", endless()),
    "hello: a call in RPC's form": ("hello", raw_frame(b'{"call":["builtins.eval",["1"]]}', b"[]")),
    "hello: a reference in RPC's form": ("hello", raw_frame(b'{"RRef":[1,1,1,1,1,1,"PyObject"]}', b"[]")),
    "hello: a pickle": ("hello", [SIZE(40) + b"cos\nsystem\n(S'touch stolen'\ntR.".ljust(40)]),
    "hello: a tensor of 2**60 values": ("hello", raw_frame(b'{"tensor":0}', b'[["float32",[1073741824,1073741824]]]')),
    "hello: nested 100,000 deep": ("hello", raw_frame(b"[" * 100_000, b"[]")),
    "hello: an error of no kind": ("hello", framed(Refusal("__import__", "x"))),
    "hello: a folder elsewhere": ("hello", framed(Welcome("../../../etc/run", "/etc", 4.0))),
    "next turn: numbers below zero": ("next_turn", framed(Turn(TurnKind.TRAIN, "ward_a", -1, -1, -1, -1))),
    "next turn: a hand-off that there is none of": ("next_turn", framed(Turn(TurnKind.TRAIN, "ward_a", 1, 1, 0, 10**9))),
    "next turn: a kind of its own": ("next_turn", raw_frame(b'{"Turn":["steal","ward_a",1,1,0,0,"","",false]}', b"[]")),
    "next turn: a mean of nobody's shares": ("next_turn", framed(Turn(TurnKind.AVERAGE, "ward_a", 1, 1))),
    "next turn: over, with a made-up error": ("next_turn", framed(Turn(TurnKind.END, reason="\x1b[2J", error="eval"))),
    "step: a loss that is not a number": ("train", reply(float("nan"))),
    "step: a gradient of NaN": ("train", reply(gradient=torch.full(SHAPE, float("nan")))),
    "step: a gradient of another shape": ("train", reply(gradient=torch.zeros(4, 3))),
    "step: a gradient of another type": ("train", reply(gradient=torch.zeros(SHAPE, dtype=torch.float64))),
    "step: a report": ("train", framed(Report(1, {}))),
    "step: sizes that lie": ("train", raw_frame(b'{"StepReply":[{"tensor":0},0.5,{"tensor":1}]}', b'[["float32",[]],["float32",[4,64,8,8]]]', bytes(20))),
    "evaluation: outputs of another shape": ("predict", framed(torch.zeros(2, 7))),
    "evaluation: outputs of NaN": ("predict", framed(torch.full((2, 2), float("nan")))),
    "board: a turn": ("board", framed(TRAIN)),
    "board: an endless message": ("board", endless()),
    "board: an epoch that is none": ("board", framed(Board([MADE_UP], [], [], [], ""))),
    "board: a key that nobody of its roster grants": ("board", framed(Board([], [], [], [MADE_UP], ""))),
    "board: evidence without end": ("board", framed(Board([], [MADE_UP] * 5000, [], [], ""))),
    "board: a list of the revoked that is none": ("board", framed(Board([], [], [], [], "\x1b[2J"))),
    "post: a hand-off": ("post", framed(HANDOFF)),
    "a first key: a hand-off of nobody's before it": ("fetch", framed(HANDOFF)),
    "a first key: answered with a board": ("begin_epoch", framed(Board([], [], [], [], ""))),
    "next turn: a verdict, and nobody is accused": ("next_turn", framed(Turn(TurnKind.WITNESS, "ward_a", 1, epoch=0))),
    "next turn: an epoch to come": ("next_turn", framed(replace(TRAIN, epoch=10**9))),
    "heads: of nobody": ("heads", framed(Heads([]))),
    "heads: a made-up one": ("heads", framed(Heads([replace(MADE_UP, kind="head")]))),
    "heads: a hand-off": ("heads", framed(HANDOFF)),
    "the end: a top of other tensors": ("finish", framed(Release({"x": torch.zeros(1)}, 0))),
    "the end: nothing that it can be": ("finish", framed(HANDOFF)),
    "the end: a best round that does not open": ("finish", framed(Release({}, 1, {"x": torch.zeros(1)}, HANDOFF))),
    "alive: ended at once": ("alive", []),
    "honest": ("", []),
}  # fmt: skip
ASKED: dict[str, tuple[str, list[bytes]]] = {
    "terms: a turn": ("terms", framed(TRAIN)),
    "terms: nothing": ("terms", []),
    "terms: an endless message": ("terms", endless()),
    "terms: nested 100,000 deep": ("terms", raw_frame(b"[" * 100_000, b"[]")),
    "terms: numbers for options": ("terms", raw_frame(b'{"Terms":["x",{"dict":{"lr":1}}]}', b"[]")),
    "terms: an option that there is none of": ("terms", framed(Terms("x", {"\x1b[2J": "1"}))),
    "terms: 10,000 options": ("terms", framed(Terms("x", {str(n): "1" for n in range(10_000)}))),
    "terms: an error of no kind": ("terms", framed(Refusal("__import__", "x"))),
    "terms: honest": ("", []),
}
"""What a site is told before it joins."""
CASES_AND_ASKED = ASKED | CASES
HARMLESS = {
    "honest",
    "terms: honest",
    "hello: a folder elsewhere",
    "board: evidence without end",
    "board: a list of the revoked that is none",
    "board: a key that nobody of its roster grants",
}
"""Which may end well: a site writes nowhere but into its own folder, whatever it is told, and takes up nothing that does
not hold."""


class HostileServer(GrpcServer):
    """Answers one endpoint with bytes of its own choice, and all others as it should."""

    def __init__(self, config: GrpcServerConfig, endpoint: str, answer: list[bytes]) -> None:
        super().__init__(config)
        self._endpoint, self._answer = endpoint, answer
        self.written = 0

    async def _handle(self, method, context) -> None:
        if endpoint_of(method) != self._endpoint:
            await super()._handle(method, context)
            return
        while self._endpoint != "alive" and await context.read() is not grpc.aio.EOF:
            pass  # an answer to a question that is not all there yet may be lost on its way
        for (
            session
        ) in self._sessions.values():  # of its one site: what that asks next is not to wait for this call
            async with session.order:
                session.num_taken = max(session.num_taken, place_of(context) + 1)
                session.order.notify_all()
        for chunk in self._answer:
            self.written += 1
            await context.write(chunk)
        self.written += not self._answer


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def met(tmp_path_factory, table):
    """How each meeting ended for the site, and how much each server had written."""
    folder = tmp_path_factory.mktemp("met")
    kits = provision(Project(address="127.0.0.1:1", sites=("ward_a", "ward_b")), folder / "kits")
    options = AskedOptions(**RUN, clients=1).resolved()
    classes = build.build_site_images(options, "ward_a").source.classes
    torch.set_num_threads(1)
    servers, threads = {}, []
    own = kits["server"].credentials()
    for case, (endpoint, answer) in CASES_AND_ASKED.items():
        config = replace(_config(own, free_port()), terms=Terms("a run", options.terms()))
        server = HostileServer(config, endpoint, answer)
        server.start()
        servers[case] = server
        if endpoint == "hello" or case in ASKED:
            continue  # there is no rest of the run
        threads.append(
            threading.Thread(
                target=_play, args=(server, options, classes, folder / f"run{len(threads)}"), daemon=True
            )
        )
        threads[-1].start()
    site = folder / "site"
    site.mkdir()
    ports = {case: server._config.port for case, server in servers.items()}
    (folder / "orders.json").write_text(
        json.dumps(
            {
                "options": RUN,
                "kit": str(kits["ward_a"].folder),
                "ports": {case: port for case, port in ports.items() if case in CASES},
                "terms": {case: port for case, port in ports.items() if case in ASKED},
            }
        )
    )
    script = Path(__file__).with_name("victim.py")
    victim = subprocess.run(
        [sys.executable, str(script), str(folder / "orders.json"), str(site / "met.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CI": "true"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    for server in servers.values():
        server.close(grace=0)
    assert victim.returncode == 0, victim.stderr[-3000:]
    ended = json.loads((site / "met.json").read_text())
    written = {case: server.written for case, server in servers.items()}
    for case, said in ended.items():
        came = f"{said['ended']}: {said['said']}"
        table.add(
            "a server that answers otherwise, by hand",
            Row(case, "server", bool(written[case]) or "honest" in case, came, "the site's process lives on"),
        )
    return ended, written, folder


def _config(own: Credentials, port: int) -> GrpcServerConfig:
    return GrpcServerConfig(host="127.0.0.1", port=port, credentials=own, sites=1, lease=4, line_timeout=3)


def _play(server: GrpcServer, options: RunOptions, classes: tuple[str, ...], run_dir: Path) -> None:
    """The rest of the server: an honest run of one site, which is built when that comes."""
    server._first.result(timeout=500)
    torch.set_num_threads(1)
    run_dir.mkdir()
    coordinator = build.build_coordinator(
        options,
        build.build_server(options, len(classes), torch.device("cpu")),
        run=run_dir.name,
        run_dir=run_dir,
        num_classes=len(classes),
        membership=Membership(1, options.site_agreement(classes), OpenMembership(least=1, grace=0)),
        board=ServerBoard(Trust(server._config.credentials.authority), run_dir.name),
    )
    coordinator.begin(False, lambda step: NoRecorder())
    server.play(coordinator, build.wire_limits(options, len(classes)))


def test_every_meeting_ends_in_one_sentence(met):
    """Oracle: the site's own report; a defect would show as one."""
    ended, *_ = met
    wrong = {case: said for case, said in ended.items() if said["ended"].startswith("DEFECT")}
    assert not wrong
    taken = {case for case, said in ended.items() if said["ended"] == "well"}
    assert taken <= HARMLESS and {"honest", "terms: honest"} <= taken
    assert all(
        said["said"].strip() and "\x1b" not in said["said"]
        for case, said in ended.items()
        if case not in taken
    )


def test_every_server_really_answered(met):
    """Oracle: what each server counted as written; the honest one wrote nothing of its own."""
    _, written, _ = met
    assert {case for case, count in written.items() if not count} == {"honest", "terms: honest"}
    assert len(written) >= 50


def test_no_answer_fills_the_site_s_memory(met):
    """Oracle: the site's resident memory before and after each meeting, but for the first, which trains for the first time."""
    ended, *_ = met
    assert max(said["grown"] for said in list(ended.values())[14:]) < 300 * 2**20


@pytest.mark.parametrize(
    ("poses", "why"),
    [
        (
            "as the server with a site's certificate",
            "unsuitable certificate purpose|unsupported certificate purpose",
        ),
        ("as the server with another authority's certificate", "not to be trusted"),
        ("as the server with an expired certificate", "has expired"),
        ("as the server of another address", "another address"),
    ],
)
def test_a_false_server_is_told_nothing(poses, why, tmp_path):
    """Oracle: TLS at the site: the call ends in that sentence, and the false server was never asked anything."""
    pki, other = Authority(tmp_path / "consortium"), Authority(tmp_path / "elsewhere")
    elsewhere = Authority(tmp_path / "moved", hosts=("10.1.2.3",))
    elsewhere._key, elsewhere._name = pki._key, pki._name
    files = {
        "as the server with a site's certificate": pki.issue("ward_b"),
        "as the server with another authority's certificate": other.issue("server", Role.SERVER),
        "as the server with an expired certificate": pki.issue(
            "expired", Role.SERVER, begins=-9 * DAY, ends=-DAY
        ),
        "as the server of another address": elsewhere.issue("server", Role.SERVER),
    }[poses]
    true = _config(pki.issue("server", Role.SERVER).read(Role.SERVER), free_port())
    shown = replace(true.credentials, certificate=files.cert.read_bytes(), key=files.key.read_bytes())
    server = HostileServer(replace(true, credentials=shown), "hello", framed(TRAIN))
    server.start()
    own = pki.issue("ward_a").read(Role.CLIENT)
    limits = Limits(batch=2**20, handoff=2**20, release=2**20)
    line = GrpcClient(
        GrpcClientConfig(
            host="127.0.0.1", port=true.port, credentials=own, limits=limits, lease=5, line_timeout=3
        )
    )
    try:
        with pytest.raises(ConfigError, match=why):
            line.begin("hello", [Hello("ward_a", {}, 1, 1)])()
        assert server.written == 0
    finally:
        line.close()
        server.close(grace=0)


def test_a_proxy_that_refuses_is_named(tmp_path, monkeypatch):
    """Oracle: the proxy's own answer, which it really gave to a CONNECT, in the site's sentence."""
    pki = Authority(tmp_path / "consortium")
    asked = []

    def refuse(proxy: socket.socket) -> None:
        while True:
            try:
                connection, _ = proxy.accept()
            except OSError:
                return
            asked.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as proxy:
        thread = threading.Thread(target=refuse, args=(proxy,), daemon=True)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        own = pki.issue("ward_a").read(Role.CLIENT)
        limits = Limits(batch=2**20, handoff=2**20, release=2**20)
        line = GrpcClient(
            GrpcClientConfig(
                host="192.0.2.1", port=9, credentials=own, limits=limits, lease=5, line_timeout=3
            )
        )
        try:
            with pytest.raises(PeerLostError, match="HTTP proxy returned response code 403"):
                line.begin("hello", [Hello("ward_a", {}, 1, 1)])()
        finally:
            line.close()
    assert asked[0].startswith(b"CONNECT 192.0.2.1:9")


def test_nothing_was_written_elsewhere(met):
    """Oracle: the folders of the site and of the test."""
    _, _, folder = met
    assert not (folder / "stolen").exists() and not (folder / "site" / "stolen").exists()
