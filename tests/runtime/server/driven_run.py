"""A run at the server that tests drive directly, as its clients would; the recorder's events are kept."""

import dataclasses
import json

import torch
from tiny import asked
from torch import nn

from suture.runtime.hooks import Attack
from suture.runtime.records.observers import NoRecorder
from suture.runtime.scheduler import RoundRobin, TurnKind
from suture.runtime.server.api import ServerApi
from suture.runtime.server.coordinator import Coordinator, RunConfig
from suture.runtime.server.membership import Membership
from suture.runtime.server.model import ServerModel
from suture.runtime.server.run_state import RunState
from suture.runtime.server.turn_log import TurnLog
from suture.runtime.state.checkpoint import Checkpoints
from suture.runtime.state.handoff import handoff_digest, part_digest
from suture.runtime.wire.checks import TensorSpec
from suture.runtime.wire.messages import Hello, Report, SealedHandoff, StepDone, Upload, unwrap

LEASE = 100.0
LR = "0.1"


class CountingAttack(Attack):
    """Has a state of its own: how many batches it has seen."""

    def __init__(self):
        self.seen = torch.zeros(1)

    def observe(self, batch):
        self.seen += 1

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Events(NoRecorder):
    def __init__(self):
        self.events = []

    def event(self, name, **fields):
        self.events.append((name, fields))


class Run:
    """One run of a tiny top (batch norm, so that it has buffers, and a linear layer), and what its clients ask with."""

    def __init__(self, run_dir, clients=2, rounds=2, scheduler=None, resume=False, labels=True, door=None):
        torch.manual_seed(0)
        top = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3))
        self.server = ServerModel(
            top,
            torch.optim.Adam(top.parameters(), lr=0.1),
            smashed=TensorSpec((2, 3), torch.float32, 4),
            labels=TensorSpec((), torch.int64, 4, below=3) if labels else None,
            attack=CountingAttack(),
        )
        turn_log = TurnLog(scheduler or RoundRobin(), rounds)
        run_state = RunState(
            "run", run_dir, self.server, turn_log, Checkpoints(run_dir / "checkpoints"), ("auroc",)
        )
        config = RunConfig(run="run", run_dir=run_dir, lease=LEASE)
        self.coordinator = Coordinator(run_state, Membership(clients, {"lr": LR}, door), config)
        self.recorder = Events()
        self.coordinator.begin(resume, lambda step: self.recorder)
        self.run_state = run_state
        self.members = {}
        self.waiting = {}

    def join(self, name, **changes):
        self.members[name] = ServerApi(self.coordinator)
        return asked(
            self.members[name], "hello", dataclasses.replace(Hello(name, {"lr": LR}, 8, 2), **changes)
        )

    def ask(self, name):
        """Calls for a turn; None while the server lets the client wait."""
        self.waiting[name] = self.members[name].next_turn()
        return unwrap(self.answer(name))

    def call(self, name, endpoint, *messages):
        """What the server answers a client; raises what it refuses with."""
        return asked(self.members[name], endpoint, *messages)

    def answer(self, name):
        return self.waiting[name].value() if self.waiting[name].done() else None

    def granted(self):
        """Who has a turn; who is only told whose it is asks again."""
        for name in self.members:
            turn = self.answer(name)
            if turn is not None and turn.kind is TurnKind.WAIT:
                self.ask(name)
        return [n for n in self.members if (t := self.answer(n)) and t.kind is not TurnKind.END]

    def upload(self, turn, batch=0, **changes):
        generator = torch.Generator().manual_seed(100 * turn.number + batch)
        smashed = torch.randn(4, 2, 3, generator=generator).requires_grad_()
        upload = Upload(turn.number, batch, "train", smashed, torch.tensor([0, 1, 2, 0]))
        return dataclasses.replace(upload, **changes)

    def step(self, turn, batch=0, **done):
        parameters = list(self.server.top.parameters())
        reply = self.call(turn.client, "forward", self.upload(turn, batch))
        gradients = dict(zip(parameters, torch.autograd.grad(reply.loss, parameters), strict=True))
        message = StepDone(turn.number, batch, float(reply.task_loss))
        self.call(turn.client, "step", dataclasses.replace(message, **done), gradients)

    def handoff(self, turn):
        sealed = torch.full((32,), turn.number, dtype=torch.uint8)
        return SealedHandoff(turn.number, handoff_digest(self.run_state.handoff), bytes(12), sealed)

    def commit(self, turn):
        self.call(turn.client, "commit", self.handoff(turn))

    def play(self, turn):
        """A whole turn."""
        if turn.kind is TurnKind.EVALUATE:
            self.call(turn.client, "report", Report(turn.number, {"test": {"loss": 1.0}}))
        else:
            self.step(turn, 0)
            self.step(turn, 1)
            self.commit(turn)

    def play_to_the_end(self):
        for name, api in self.members.items():
            if api.member.waiting is None and name not in self.coordinator.transaction.turns:
                self.ask(name)
        played = []
        while granted := self.granted():
            (name,) = granted
            played.append(self.answer(name))
            self.play(played[-1])
            self.ask(name)
        return played

    def state(self):
        return part_digest(self.server.top.state_dict()), json.dumps(_plain(self.server.state_dict()))


def _plain(value):
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes().hex()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
