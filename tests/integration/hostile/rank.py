"""A rank of a world in which the server attacks client0 and client1 attacks the server; then the run is played.

    python rank.py RANK PORT FOLDER        (0 serves; 1 is client0, honest; 2 is client1)

Every rank has its walls up. FOLDER/private holds the secret; each writes what it saw to its own folder.
"""

import inspect
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

import attacks
import torch
from attacks import Target

from launch import build
from launch.config import RunOptions
from launch.enclosure import enclose
from launch.logs import set_up
from runtime import calls, endpoints, entry, transport
from runtime.entry import Door, Tokens
from runtime.errors import SutureError
from runtime.exchange import AutogradExchange
from runtime.lockdown import Lockdown
from runtime.observers import NoRecorder
from runtime.session import Member, NoKeepsakes, take_part
from runtime.transport import Transport, TransportConfig
from runtime.wire import Answer, Farewell, Hello, OutputGradient, Refusal, Report, StepDone, Upload

KEY, TOKEN = bytes(range(32)), bytes(range(1, 33))
OPTIONS = {
    "model": "resnet18", "image_size": 32, "train_images": 4, "validation_images": 0, "test_images": 2,
    "batch_size": 2, "epochs": 1, "clients": 2, "lr": 1e-3, "sandbox": "auto", "threads": 1,
}  # fmt: skip


def main() -> None:
    rank, port, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    options = RunOptions(**OPTIONS).resolved()
    torch.set_num_threads(1)
    name = transport.SERVER if rank == 0 else build.client_name(rank - 1)
    set_up(name)
    own = folder / name
    images = build.build_images(options, options.clients)
    data = None if rank == 0 else build.build_data(options, images, rank - 1)
    enclose(options, own)
    (own / "kept.txt").write_bytes(attacks.SECRET)  # pictures of its own images, say
    line = Transport(TransportConfig(host="127.0.0.1", port=port, rank=rank, timeout=60))
    play = {0: serve, 1: suffer, 2: attack}[rank]
    (own / "seen.json").write_text(json.dumps(play(options, line, folder, images, data)))
    line.publish(f"done{rank}", "1")
    for other in range(3):
        line.hear(f"done{other}")
    line.leave()
    os._exit(0)


def target(folder: Path, peer: str, attack: str) -> Target:
    secret, outside = folder / "private" / "patient.txt", folder / "outside" / attack
    return Target(peer, str(secret), str(folder / peer / f"mark-{attack}"), str(outside))


def attack_all(folder: Path, peer: str) -> dict[str, dict[str, str]]:
    return {
        one.__name__.replace("_", " "): attacks.outcome(one, target(folder, peer, one.__name__))
        for one in attacks.PEER
    }


def serve(options, line, folder, images, data):
    answers = list(attacks.gadgets(str(folder / "client0" / "mark-answer")).values())
    honest = Lockdown.serialize

    def serialize(wall, obj):
        if answers and isinstance(obj, Refusal):
            return answers.pop(0), []
        return honest(wall, obj)

    serialize.__signature__ = inspect.signature(honest)
    Lockdown.serialize = serialize
    server = build.build_server(options, len(images.source.classes), torch.device("cpu"))
    run_dir = folder / transport.SERVER / "run"
    run_dir.mkdir()
    coordinator = build.build_coordinator(
        options, server, run="run", run_dir=run_dir, num_classes=len(images.source.classes)
    )
    coordinator.begin(False, lambda step: NoRecorder())
    endpoints.open_run(coordinator, Door("run", Tokens(shared=TOKEN), line))
    line.join(transport.SERVER)
    line.hear("client0 is in")
    seen = attack_all(folder, "client0")
    line.publish("client0 was attacked", "1")
    endpoints.serve_run(calls.knock)
    return {"attacks": seen, "weights_sha256": coordinator.weights_sha256()}


def suffer(options, line, folder, images, data):
    """The honest client: asks before it is in, so that the server answers with its gadgets; then takes part."""
    client = build.build_client(options, data, "client0", KEY, torch.device("cpu"), None)
    line.join("client0")
    mark, seen = folder / "client0" / "mark-answer", {}
    for what in attacks.gadgets(str(mark)):
        seen[what] = refused(lambda: calls.call(endpoints.fetch, "0" * 32))
        if mark.exists():
            seen[what] = {"outcome": "open", "said": "it ran code"}
    line.publish("client0 is in", "1")
    line.hear("the server was attacked")
    agreement = options.agreement(len(data.classes))
    take_part(Member(client, AutogradExchange(line, TOKEN), NoKeepsakes()), agreement, "client0")
    return {"attacks": seen}


def refused(call) -> dict[str, str]:
    """What comes of a call that only a wall can stop: it has no other effect."""
    try:
        call()
    except (SutureError, RuntimeError) as error:
        return {"outcome": "refused", "said": attacks.short(f"{type(error).__name__}: {error}")}
    return {"outcome": "open", "said": "it was answered"}


class Hostile(AutogradExchange):
    """Goes through a run and tries what it must not do wherever it may do something."""

    def __init__(self, line, token):
        super().__init__(line, token)
        self.seen, self._sealed = {}, []

    def refused(self, what, endpoint, *arguments):
        if what not in self.seen:
            self.seen[what] = refused(lambda: self.call(endpoint, *arguments))

    def join(self, hello, rpc_name=""):
        welcome = super().join(hello, rpc_name)
        upload = Upload(1, 0, "train", torch.zeros(2, 64, 16, 16), torch.zeros(2, dtype=torch.int64))
        self.refused("another client's turn: forward", endpoints.forward, upload)
        self.refused("another client's turn: train", endpoints.train, upload)
        self.refused("other clients' shares", endpoints.share, 0)
        self.refused("another client's turn: step", endpoints.step, StepDone(1, 0, 0.5), 0)
        self.refused("another client's turn: report", endpoints.report, Report(1, {}))
        self.refused("another client's turn: give up", endpoints.abort, Refusal("WireError", "no"))
        self.refused("the trained top before the end", endpoints.finish, Farewell({"bottom": "a" * 64}, 1))
        return welcome

    def train_step(self, client, turn, batch):
        if batch.number == 0:
            shape = (2, 64, 8, 8)
            good = Upload(turn.number, 0, "train", torch.zeros(shape), batch.targets)
            wrong = {
                "NaN": {"smashed": torch.full(shape, float("nan"))},
                "infinity": {"smashed": torch.full(shape, float("inf"))},
                "wrong shape": {"smashed": torch.zeros(2, 3)},
                "wrong type": {"smashed": torch.zeros(shape, dtype=torch.float64)},
                "too large a batch": {"smashed": torch.zeros(64, *shape[1:])},
                "labels out of range": {"labels": torch.tensor([0, 99])},
                "a batch out of order": {"batch": 5},
                "a turn to come": {"turn": turn.number + 1},
            }
            for what, fields in wrong.items():
                self.refused(what, endpoints.forward, replace(good, **fields))
            self.refused("a part of too many", endpoints.train, replace(good, parts=9))
            gradient = OutputGradient(turn.number, 0, 0.5, torch.zeros(2, 2))
            self.refused("a gradient without a forward", endpoints.backward, gradient)
            self.refused("a step without a batch", endpoints.step, StepDone(turn.number, 0, 0.5), 0)
        return super().train_step(client, turn, batch)

    def fetch(self):
        handoff = super().fetch()
        if handoff is not None:
            self._sealed.append(handoff)
        return handoff

    def commit(self, handoff):
        for old in self._sealed:
            self.refused("a hand-off replayed", endpoints.commit, old)
            self.refused("another's hand-off as one's own", endpoints.commit, replace(old, turn=handoff.turn))
        self.refused("a hand-off with another past", endpoints.commit, replace(handoff, previous=b"x" * 32))
        super().commit(handoff)


def strangers(line) -> dict[str, dict[str, str]]:
    """Coming in without what it takes."""

    def greet():
        return calls.call(endpoints.greet, "client1", "client1", b"n" * 32)

    def hello_with(proof):
        challenge = greet()
        message = Hello("client1", {}, 1, 1)
        return calls.call(endpoints.hello, Answer(challenge.nonce, proof(challenge)), message, "client1")

    def made_with(token):
        def proof(challenge):
            parts = (
                "run",
                "client1",
                "client1",
                b"n" * 32,
                challenge.nonce,
                line.server_address,
                line.own_address,
            )
            return entry.proof(token, "client", *parts)

        return proof

    return {
        "no token": refused(lambda: hello_with(lambda challenge: b"")),
        "a wrong token": refused(lambda: hello_with(made_with(bytes(32)))),
        "the server's own proof": refused(lambda: hello_with(lambda challenge: challenge.proof)),
        "no ticket": refused(lambda: calls.call(endpoints.fetch, "")),
        "a guessed ticket": refused(lambda: calls.call(endpoints.fetch, "f" * 32)),
        "a turn without a ticket": refused(
            lambda: calls.wait(transport.rpc.rpc_async(transport.SERVER, endpoints.next_turn, args=("",)))
        ),
    }


def attack(options, line, folder, images, data):
    client = build.build_client(options, data, "client1", KEY, torch.device("cpu"), None)
    line.join("client1")
    line.hear("client0 was attacked")
    seen = attack_all(folder, transport.SERVER) | strangers(line)
    line.publish("the server was attacked", "1")
    exchange = Hostile(line, TOKEN)
    take_part(Member(client, exchange, NoKeepsakes()), options.agreement(len(data.classes)), "client1")
    return {"attacks": seen | exchange.seen}


if __name__ == "__main__":
    main()
