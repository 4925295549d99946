"""Sites that sign, and what becomes of one among them that seals what no honest site does.

Oracle: the weights of the same run without it; the protocol's rules.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from signing_sites import Play, Wards
from tiny import KEY

from suture.runtime.client.client import Client
from suture.runtime.errors import EvictedError, StoppedError
from suture.runtime.scheduler import AtOnce, Together, Turn, TurnKind
from suture.runtime.wire.messages import SealedHandoff, Share

NAMES = ("ward_a", "ward_b", "ward_c")


@pytest.fixture
def wards(tmp_path) -> Wards:
    return Wards(tmp_path, NAMES)


def test_three_sites_agree_on_a_key_and_end_with_one_model(wards, tmp_path):
    """Oracle: one key is made, once; the first one's initial parts are everybody's; equal digests at the end."""
    coordinator = wards.coordinator(tmp_path / "run", 3)
    play = Play(coordinator, [wards.client(name) for name in NAMES])
    assert play.until() is None
    assert not play.errors and sorted(play.ended) == [*NAMES]
    assert play.kinds(TurnKind.KEY) == ["ward_a"] and len(play.kinds(TurnKind.TRAIN)) == 6
    clients = [member.client for member in play.membership]
    assert len({tuple(client.digests().items()) for client in clients}) == 1
    keys = {client.consortium.key(1) for client in clients}
    assert len(keys) == 1 and KEY not in keys
    assert coordinator.weights_sha256()


def sealing(client: Client, change: Callable[[dict[str, Any]], None], at: int = 1) -> Client:
    """A client that changes what it seals from its ``at``th training turn on, and signs it all the same."""
    state, seen = client.state, []

    def changed() -> dict[str, Any]:
        taken = copy.deepcopy(state())
        if len(seen) >= at:
            change(taken)
        return taken

    def seal(turn: Turn) -> SealedHandoff:
        seen.append(turn)
        if not turn.together:
            return client._seal.seal(changed(), turn.number, client._newest)
        share = {"state": changed(), "num_images": client.model.num_trained}
        return client._seal.seal(share, turn.number, client._newest, sharer=client.name)

    client.seal = seal
    return client


def moments(state: dict[str, Any]) -> dict[str, Any]:
    return next(iter(state["optimizer"]["state"].values()))


def drop(state: dict[str, Any]) -> None:
    del state["parts"]["bottom"]["conv.bias"]


BAD: dict[str, Callable[[dict[str, Any]], None]] = {
    "a weight that is not a number": lambda s: s["parts"]["bottom"]["conv.weight"].fill_(float("nan")),
    "an infinite moment": lambda s: moments(s)["momentum_buffer"].fill_(float("inf")),
    "another shape": lambda s: s["parts"]["bottom"].update({"conv.weight": torch.zeros(3, 1, 3, 3)}),
    "another type": lambda s: s["parts"]["bottom"].update({"conv.bias": torch.zeros(2, dtype=torch.float64)}),
    "a name too few": drop,
    "a name too many": lambda s: s["parts"].update({"head": {}}),
    "a number for a tensor": lambda s: s["parts"]["bottom"].update({"conv.bias": 1.0}),
    "a moment of no parameter": lambda s: s["optimizer"]["state"].update({7: moments(s)}),
    "moments of another kind": lambda s: s["optimizer"]["state"].update({0: {"step": torch.zeros(())}}),
    "a state of a defence that there is none of": lambda s: s.update({"defence": {"x": torch.zeros(1)}}),
    "nothing": lambda s: s.clear(),
}


@pytest.mark.parametrize("what", BAD)
def test_who_seals_what_no_honest_site_does_is_put_out_and_the_others_finish(wards, tmp_path, caplog, what):
    """Oracle: the bad turn never happened: the two end with the weights of the replay of those that counted."""
    coordinator = wards.coordinator(tmp_path / "run", 3)
    clients = [wards.client(name) for name in NAMES]
    sealing(clients[1], BAD[what])
    play = Play(coordinator, clients)
    assert play.until() is None
    assert isinstance(play.errors.pop("ward_b"), EvictedError) and not play.errors
    assert sorted(play.ended) == ["ward_a", "ward_c"]
    assert "put out of this run" in caplog.text and "ward_b" in caplog.text
    assert play.kinds(TurnKind.WITNESS) == ["ward_a"] and len(play.kinds(TurnKind.KEY)) == 2
    entries = [(e.client, e.kind) for e in coordinator.run_state.turn_log.entries if e.kind == "train"]
    assert entries == [(name, "train") for name in ("ward_a", "ward_c", "ward_a", "ward_c")]
    replayed = replay(wards, tmp_path / "replay", ("ward_a", "ward_c"))
    assert coordinator.weights_sha256() == replayed


def replay(wards: Wards, folder: Path, names: tuple[str, ...]) -> str:
    """The digest of the run that these have by themselves."""
    others = Wards(folder, wards.names)
    coordinator = others.coordinator(folder / "run", len(names))
    play = Play(coordinator, [others.client(name) for name in names])
    assert play.until() is None and not play.errors
    return coordinator.weights_sha256()


def test_a_handoff_under_another_key_accuses_its_author(wards, tmp_path):
    """Oracle: its signature is good and it does not open, for anybody: the author is put out."""
    coordinator = wards.coordinator(tmp_path / "run", 3)
    clients = [wards.client(name) for name in NAMES]
    seal = clients[1].seal

    def under_another(turn: Turn) -> SealedHandoff:
        own, clients[1]._seal._derived = clients[1]._seal._derived, lambda epoch: bytes(32)
        try:
            return seal(turn)
        finally:
            clients[1]._seal._derived = own

    clients[1].seal = under_another
    play = Play(coordinator, clients)
    play.until()
    assert sorted(play.ended) == ["ward_a", "ward_c"] and isinstance(play.errors["ward_b"], EvictedError)


def test_with_two_sites_the_run_stops_and_names_both(wards, tmp_path):
    """Oracle: nobody can tell which of the two is at fault."""
    coordinator = wards.coordinator(tmp_path / "run", 2)
    clients = [wards.client(name) for name in NAMES[:2]]
    sealing(clients[0], BAD["a name too few"])
    play = Play(coordinator, clients)
    play.until()
    assert set(play.errors) == {"ward_a", "ward_b"}
    for error in play.errors.values():
        assert isinstance(error, StoppedError)
        assert "ward_b accuses ward_a of a bad hand-off, and no third site is here" in str(error)


def test_who_accuses_falsely_is_put_out_and_the_turn_counts(wards, tmp_path):
    """Oracle: all turns of the two honest ones, and the weights of the replay in which the third one trained once."""
    coordinator = wards.coordinator(tmp_path / "run", 3)
    clients = [wards.client(name) for name in NAMES]
    play = Play(coordinator, clients)
    turn = play.until(lambda turn: turn.client == "ward_b" and turn.kind is TurnKind.TRAIN)
    assert turn is not None
    liar = play.membership[1]
    handoff = liar.exchange.fetch()
    assert handoff is not None and handoff.statement.author == "ward_a"
    liar.exchange.post(liar.client.consortium.accuse(Share("ward_a", handoff), "it is bad"))
    play.until()
    error = play.errors.pop("ward_b")
    assert isinstance(
        error, EvictedError
    ) and "it accused ward_a of a bad hand-off, which ward_c opened" in str(error)
    assert not play.errors and sorted(play.ended) == ["ward_a", "ward_c"]
    assert coordinator.weights_sha256() == replay(wards, tmp_path / "replay", ("ward_a", "ward_c"))


@pytest.mark.parametrize("what", ["a weight that is not a number", "a name too few"])
def test_a_bad_share_of_a_mean_puts_its_author_out(wards, tmp_path, what):
    """Oracle: the turn in which they trained at once is undone, and begins again without it."""
    coordinator = wards.coordinator(tmp_path / "run", 3, scheduler=AtOnce(Together.PARALLEL))
    clients = [wards.client(name) for name in NAMES]
    sealing(clients[2], BAD[what])
    play = Play(coordinator, clients)
    play.until()
    assert isinstance(play.errors.pop("ward_c"), EvictedError) and not play.errors
    assert sorted(play.ended) == ["ward_a", "ward_b"]
    trained = [e.client for e in coordinator.run_state.turn_log.entries if e.kind == "train"]
    assert trained == ["ward_a+ward_b"] * 2
