"""Sites that sign, and what becomes of one among them that seals what no honest site does.

Oracle: the weights of the same run without it; the protocol's rules.
"""

import pytest
from signing_sites import BAD, NAMES, Play, Wards, replay, sealing
from tiny import KEY

from suture.runtime.errors import EvictedError, StoppedError
from suture.runtime.scheduler import AtOnce, Together, Turn, TurnKind
from suture.runtime.wire.messages import SealedHandoff, Share


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
