"""Clients that train at once: the server takes their batches as the schedule says, and a mean of their parts goes on.

Oracle: the same training written down plainly, in one process: bottoms, heads and tops as ordinary modules with
ordinary optimizers, stepped in that order, and averaged by hand.
"""

import copy
import dataclasses
import itertools
import json

import pytest
import torch
from fakes import Tap
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY
from torch.nn.functional import cross_entropy

import suture.runtime.participant.turn_errors
import suture.runtime.session
from suture.launch import build
from suture.launch.roles.one_process import play_locally
from suture.runtime.exchange.fused import FusedStep
from suture.runtime.exchange.local import LocalExchange
from suture.runtime.randomness import Randomness
from suture.runtime.scheduler import Together, Turn, TurnKind
from suture.runtime.server.step_order import OrderedQueue, waves
from suture.runtime.state.handoff import part_digest, weights_digest
from suture.runtime.training.optim import step_with
from suture.runtime.wire.messages import OutputGradient

KEY = bytes(range(32))
# Batches of 4 and 2 images at one client, of 4 and 4 at the other.
UNEVEN = "quantity:1.0"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def options_of(way, **changes):
    small = dataclasses.replace(TINY, clients=3, train_images=8, optimizer="sgd", schedule=way)
    return dataclasses.replace(small, **changes).resolved()


def play(folder, options, resume=False):
    folder.mkdir(exist_ok=True)
    return play_locally(options, KEY, folder, resume=resume)


def turns(folder):
    return [json.loads(line) for line in (folder / "turns.jsonl").read_text().splitlines()]


class Plain:
    """The same run without any protocol."""

    def __init__(self, options):
        self.options = options
        images = build.build_images(options, options.clients)
        names = [build.client_name(index) for index in range(options.clients)]
        self.data = {name: build.build_data(options, images, index) for index, name in enumerate(names)}
        split = build.build_split(options, len(images.source.classes), KEY)
        self.start = copy.deepcopy(split)
        self.hidden = Randomness(KEY, options.seed)
        # Of the tiny net cut at "norm": its first two modules have four parameters, then come the norm's.
        named = self.start.bottom.state_dict() if options.norms == "local" else {}
        self.own = {name for name in named if name.startswith("norm.")}
        self.own_numbers = {4, 5} if self.own else set()

    def batches(self, round, name):
        draw = self.hidden.generator
        return list(
            self.data[name].train_batches(
                self.options.batch_size, draw("order", round, name), lambda b: draw("augment", round, name, b)
            )
        )

    def optimizer(self, parts):
        return self.options.optimizer_config().build(p for part in parts for p in part.parameters())

    def run(self, way):
        """Digests of bottom, head and top after all rounds."""
        mine, top = {}, self.start.top
        optimizers = {"top": self.optimizer([top])}
        for name in self.data:
            parts = [copy.deepcopy(self.start.bottom)]
            parts += [] if self.start.head is None else [copy.deepcopy(self.start.head)]
            mine[name], optimizers[name] = parts, self.optimizer(parts)
        for round in range(1, self.options.epochs + 1):
            batches = {name: self.batches(round, name) for name in self.data}
            tops = dict.fromkeys(self.data, (top, optimizers["top"]))
            if way == "splitfed":
                tops = {name: copy.deepcopy((top, optimizers["top"])) for name in self.data}
            for group in self.groups(way, round, batches):
                self.step(
                    [(mine[name], optimizers[name], batches[name].pop(0)) for name in group], tops[group[0]]
                )
            weights = {
                name: sum(len(batch.inputs) for batch in self.batches(round, name)) for name in self.data
            }
            if way == "splitfed":
                average([tops[name][0] for name in weights], list(weights.values()))
                top.load_state_dict(tops[next(iter(weights))][0].state_dict())
                average_momentum([tops[name][1] for name in weights], list(weights.values()))
                optimizers["top"].load_state_dict(tops[next(iter(weights))][1].state_dict())
            for parts in zip(*(mine[name] for name in weights), strict=True):
                average(list(parts), list(weights.values()), self.own)
            average_momentum([optimizers[name] for name in weights], list(weights.values()), self.own_numbers)
        found = dict(zip(("bottom", "head"), mine[next(iter(mine))], strict=False)) | {"top": top}
        self.bottoms = {name: parts[0].state_dict() for name, parts in mine.items()}
        states = {name: part.state_dict() for name, part in found.items()}
        return weights_digest(
            {
                name: part_digest({k: t for k, t in s.items() if k not in self.own})
                for name, s in states.items()
            }
        )

    def groups(self, way, round, batches):
        """Whose batches make one step of a top, step by step."""
        left = {name: len(own) for name, own in batches.items()}
        if way == "parallel":
            return [(name,) for name in waves(self.options.seed, round, left)]
        if way == "splitfed":
            return [(name,) for name, number in left.items() for _ in range(number)]
        steps = range(max(left.values()))
        return [tuple(name for name in left if left[name] > step) for step in steps]

    def step(self, clients, top):
        """One step of the top with these clients' batches joined; each client's own parts see their own mean loss."""
        module, optimizer = top
        smashed, skips = zip(*(parts[0](batch.inputs) for parts, _, batch in clients), strict=True)
        for _, mine, _ in clients:
            mine.zero_grad()
        optimizer.zero_grad()
        cut = torch.cat([h.detach() for h in smashed]).requires_grad_()
        sizes = [len(h) for h in smashed]
        output = module(cut)
        rows = [part.detach().requires_grad_() for part in output.split(sizes)]
        shares = [size / len(cut) for size in sizes]
        # The joint loss is the mean over all images; what a client's own parts see is that over its own.
        for (parts, _, batch), row, skip, share in zip(clients, rows, skips, shares, strict=True):
            if len(parts) == 1:
                (cross_entropy(row, batch.targets) * share).backward()
            else:
                cross_entropy(parts[1](row, skip), batch.targets).backward()
                row.grad *= share
        output.backward(torch.cat([row.grad for row in rows]))
        optimizer.step()
        for (_, mine, _), h, grad, size in zip(clients, smashed, cut.grad.split(sizes), sizes, strict=True):
            h.backward(grad * (len(cut) / size))
            mine.step()


def average(parts, weights, kept=frozenset()):
    """Gives all ``parts`` their weighted mean, but for what is ``kept``; whole numbers take the largest."""
    states = [part.state_dict() for part in parts]
    for name, first in states[0].items():
        if name in kept:
            continue
        values = torch.stack([state[name].double() for state in states])
        share = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * first.dim())
        mean = values.amax(0) if not first.is_floating_point() else (values * share).sum(0) / sum(weights)
        for state in states:
            state[name].copy_(mean.to(first.dtype))


def average_momentum(optimizers, weights, kept=frozenset()):
    for number, slots in enumerate(zip(*(o.state_dict()["state"].values() for o in optimizers), strict=True)):
        if number in kept:
            continue
        buffers = [slot["momentum_buffer"] for slot in slots]
        mean = sum(buffer.double() * weight for buffer, weight in zip(buffers, weights, strict=True)) / sum(
            weights
        )
        for buffer in buffers:
            buffer.copy_(mean.float())


@pytest.mark.parametrize("labels", ["shared", "home"])
@pytest.mark.parametrize("way", list(Together))
def test_a_run_is_what_the_paper_says(way, labels, tmp_path):
    """Oracle: `Plain`, bit for bit."""
    options = options_of(way, labels=labels, partition=UNEVEN)
    ended = play(tmp_path, options)
    plain = Plain(options)
    assert len({len(plain.batches(1, name)) for name in plain.data}) > 1, (
        "clients must differ to prove something"
    )
    assert ended.weights_sha256() == plain.run(way)


@pytest.mark.parametrize("way", list(Together))
def test_norms_that_are_local_are_left_out_of_the_mean(way, tmp_path):
    """Oracle: `Plain`, bit for bit; at its clients the norms differ."""
    options = options_of(way, cut="norm", norms="local", partition=UNEVEN)
    plain = Plain(options)
    assert play(tmp_path, options).weights_sha256() == plain.run(way)
    one, two, _ = plain.bottoms.values()
    assert all(
        torch.equal(one[name], two[name]) is (name not in plain.own) for name in one if "num_" not in name
    )


@pytest.mark.parametrize("labels", ["shared", "home"])
@pytest.mark.parametrize("way", list(Together))
def test_a_client_alone_trains_as_in_turns(way, labels, tmp_path):
    """Oracle: round-robin with that client, bit for bit: a mean of one is that one."""
    alone = {"clients": 1, "labels": labels, "optimizer": "adam"}
    ended = play(tmp_path / "alone", options_of(way, **alone))
    assert (
        ended.weights_sha256()
        == play(tmp_path / "turns", options_of("round-robin", **alone)).weights_sha256()
    )


@pytest.mark.parametrize("wire", ["fp32", "int8"])
@pytest.mark.parametrize("way", ["round-robin", *Together])
def test_an_attack_receives_each_clients_own_gradient(way, wire, tmp_path, monkeypatch):
    """Oracle: the messages as the clients sent them, decoded; and the weights of the run without the attack."""
    options, tap, sent = options_of(way, labels="home", partition=UNEVEN, wire=wire), Tap(), []
    begin = LocalExchange.begin
    monkeypatch.setattr(
        LocalExchange,
        "begin",
        lambda self, endpoint, *messages, **how: (
            sent.extend(m for m in messages if isinstance(m, OutputGradient)),
            begin(self, endpoint, *messages, **how),
        )[1],
    )
    (tmp_path / "attacked").mkdir()
    ended = play_locally(
        options, KEY, tmp_path / "attacked", arm=lambda server, classes: setattr(server, "attack", tap)
    )
    assert len(tap.gradients) == len(sent) > 4
    if wire == "fp32":
        assert sorted(value(message.gradient) for message in sent) == sorted(
            value(gradient) for _, gradient in tap.gradients
        )
    assert {len(batch.clients) for batch, _ in tap.gradients} == {1}
    seen = {(b.round, b.client, b.batch) for b in tap.seen if b.phase == "train"}
    assert {(b.round, b.client, b.batch) for b, _ in tap.gradients} == seen
    assert ended.weights_sha256() == play(tmp_path / "honest", options).weights_sha256()


def value(tensor):
    return tensor.numpy().tobytes()


class Killed(BaseException):
    """What no handler of the protocol catches, like SIGKILL."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("moment", ["train", "average", "evaluate"])
@pytest.mark.parametrize("way", list(Together))
def test_a_killed_run_resumes_with_the_same_weights(way, moment, tmp_path, monkeypatch):
    """Oracle: the run that was not killed; in round 2 while batches, the mean or the scores were being made."""
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    # Adam, and a defence with a net of its own: what is averaged beside weights.
    options = options_of(way, clients=2, optimizer="adam", defence="proxy")
    whole = play(tmp_path / "whole", options)
    owner = FusedStep if moment == "train" else suture.runtime.session
    real, calls = getattr(owner, moment), []

    def dies(*args, **kwargs):
        turn = next((arg for arg in args if isinstance(arg, Turn)), None)
        calls.append(turn)
        late = len(calls) > 2 if turn is None else turn.round == 2
        if late:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, dies)
        # Nobody is told that the others are gone: the server of a killed process hears nothing either.
        patch.setattr(suture.runtime.participant.turn_errors, "_give_up", lambda exchange, error: None)
        with pytest.raises(Killed):
            play(tmp_path / "killed", options)
    resumed = play(tmp_path / "killed", options, resume=True)
    assert resumed.weights_sha256() == whole.weights_sha256()
    assert turns(tmp_path / "killed") == turns(tmp_path / "whole")


def test_a_client_undoes_a_turn_whose_share_it_has_sealed(tmp_path):
    """Oracle: its parts, and what its optimizer held, when the turn began; another client of that turn was lost."""
    options = options_of("parallel", optimizer="adam")
    images = build.build_images(options, options.clients)
    data = build.build_data(options, images, 0)
    client = build.build_client(options, data, "client0", KEY, torch.device("cpu"), None)
    client.join("run")
    before = client.digests(), client.model.optimizer.state_dict()["state"]
    turn = Turn(TurnKind.TRAIN, "client0", 1, 1, together=True)
    client.begin(turn)
    ones = {p: torch.ones_like(p) for p in client.model.parameters()}
    step_with(client.model.optimizer, ones)
    client.committed(client.seal(turn), together=True)
    assert client.digests() != before[0] and client.knows(0) and not client.holds(0)
    client.undo()
    assert (client.digests(), client.model.optimizer.state_dict()["state"]) == before and client.holds(0)


def test_the_order_of_a_race_is_written_down_and_can_be_replayed(tmp_path):
    """Oracle: the weights of the race, bit for bit, from its turns.jsonl alone."""
    race = options_of("parallel", race=True)
    ended = play(tmp_path / "race", race)
    trained = [turn for turn in turns(tmp_path / "race") if turn["kind"] == "train"]
    for turn in trained:
        assert turn["together"] == "parallel" and turn["client"] == "client0+client1+client2"
        assert sorted(turn["order"].split()) == sorted(["client0", "client1", "client2"] * 2)
    replayed = options_of(f"replay:{tmp_path / 'race' / 'turns.jsonl'}")
    assert play(tmp_path / "replayed", replayed).weights_sha256() == ended.weights_sha256()


@given(st.integers(0, 2**63 - 1), st.dictionaries(st.sampled_from("abcde"), st.integers(1, 6), min_size=1))
def test_waves_take_one_batch_of_everybody_who_has_one_left(seed, num_batches):
    """Oracle: the definition, wave by wave; drawn again, the order is the same."""
    order = list(waves(seed, 1, num_batches))
    assert order == list(waves(seed, 1, num_batches))
    begin = 0
    for number in range(max(num_batches.values())):
        wave = {name for name, num in num_batches.items() if num > number}
        assert set(order[begin : begin + len(wave)]) == wave
        begin += len(wave)
    assert begin == len(order) == sum(num_batches.values())


def test_a_huge_number_of_batches_costs_nothing_before_they_come():
    """Oracle: a client may announce any number; the order is drawn as it is needed."""
    assert len(list(itertools.islice(waves(0, 1, {"a": 10**15, "b": 10**15}), 10))) == 10


@pytest.mark.timeout(20)
def test_who_has_announced_more_batches_than_it_sends_keeps_nobody_waiting():
    """Oracle: the server looks for the next batch among those who send any; it looked through 10**15 waves."""
    ended: set[str] = set()
    lane = OrderedQueue(waves(0, 1, {"a": 10**15, "b": 2, "c": 2}, ended), ended)
    for name in ("a", "b", "c"):
        lane.ended(name)
    assert ended == {"a", "b", "c"}
