"""Hand-off keys: who gets which, and what a server that lies about them comes to.

Oracle: the protocol's rules; that a listener with everything that crossed opens nothing.
"""

import dataclasses
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from signing_sites import NAMES, Play, Wards, trains
from tiny import KEY

from suture.runtime.client.client import Client
from suture.runtime.consortium import evidence
from suture.runtime.consortium.epochs import EpochChain
from suture.runtime.consortium.identity import Identity
from suture.runtime.consortium.keys import KeyRequest
from suture.runtime.consortium.roster import Roster
from suture.runtime.errors import (
    ConfigError,
    EvictedError,
    HandoffError,
    MemberLostError,
    UntrustedError,
    WireError,
)
from suture.runtime.exchange import LocalExchange
from suture.runtime.grpc.credentials import Role
from suture.runtime.participant import errands
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.scheduler import AtOnce, Together, Turn, TurnKind
from suture.runtime.server.membership import OpenMembership
from suture.runtime.session import join
from suture.runtime.state.handoff import HandoffSeal
from suture.runtime.wire.messages import Board, Heads, SealedHandoff, Statement


@pytest.fixture
def wards(tmp_path: Path) -> Wards:
    return Wards(tmp_path, NAMES, ghosts=("ghost", "zed"))


def play_of(wards: Wards, folder: Path, names: tuple[str, ...] = NAMES, **more: Any) -> Play:
    coordinator = wards.coordinator(folder / "run", len(names), **more)
    return Play(coordinator, [wards.client(name) for name in names])


# Who is put out ----------------------------------------------------------------------------------


def test_a_site_that_is_revoked_in_the_middle_is_put_out_and_the_others_have_a_new_key(wards, tmp_path):
    """Oracle: two epochs; the newest hand-off opens with the second key and not with the first; the two finish."""
    play = play_of(wards, tmp_path)
    assert play.until(trains("ward_c")) is not None
    old = play.membership[0].client.consortium.key(1)
    wards.revoked.serials.add(wards.certificate("ward_c").serial_number)
    play.coordinator.watch()
    play.until()
    assert (
        isinstance(play.errors.pop("ward_c"), (EvictedError, MemberLostError)) or "ward_c" not in play.ended
    )
    assert not play.errors and sorted(play.ended) == ["ward_a", "ward_b"]
    board = play.coordinator.run_state.board
    assert board.epoch == 2 and json.loads(board.epochs[1].content)["removed"].keys() == {"ward_c"}
    newest = play.coordinator.run_state.handoff
    assert newest.epoch == 2
    opener = HandoffSeal(old, "run")
    with pytest.raises(HandoffError, match="does not open"):
        opener.open(dataclasses.replace(newest, statement=None, epoch=0))
    opener = HandoffSeal(play.membership[0].client.consortium.key(2), "run")
    assert opener.open(dataclasses.replace(newest, statement=None, epoch=0)).keys() == {
        "parts",
        "optimizer",
        "defence",
    }


def test_a_revoked_site_is_not_let_in_again(wards, tmp_path):
    """Oracle: the reason, each time."""
    play = play_of(wards, tmp_path)
    play.until(trains("ward_b"))
    wards.revoked.serials.add(wards.certificate("ward_c").serial_number)
    play.coordinator.watch()
    again = Participant(wards.client("ward_c"), LocalExchange(play.coordinator), NoClientObserver())
    with pytest.raises(EvictedError, match="ward_c was put out of this run: its certificate was revoked"):
        join(again, {})


def test_a_site_that_withdraws_is_gone_for_good_and_gets_no_later_key(wards, tmp_path):
    """Oracle: as for one that is revoked; nobody is accused."""
    play = play_of(wards, tmp_path)
    play.until(trains("ward_b"))
    leaving = play.membership[1]
    leaving.exchange.post(leaving.client.consortium.withdraw())
    play.until()
    assert sorted(play.ended) == ["ward_a", "ward_c"]
    assert "left for good" in str(play.errors["ward_b"])
    assert play.coordinator.run_state.board.epoch == 2


@pytest.mark.parametrize("when", ["while others still train", "before the mean"])
@pytest.mark.parametrize("how", ["revoked", "withdraws"])
def test_a_site_that_goes_between_its_share_and_the_mean_undoes_that_turn(wards, tmp_path, how, when):
    """Oracle: the shares follow from a hand-off that the new epoch replaces; the two that are left train it again. Where
    the one that goes was the last to train, the mean was under way, and its turn counts.
    """
    play = play_of(wards, tmp_path, scheduler=AtOnce(Together.PARALLEL))
    leaving, kinds, was_last = play.membership[2], [], False

    def goes() -> None:
        if how == "withdraws":
            leaving.exchange.post(leaving.client.consortium.withdraw())
        else:
            wards.revoked.serials.add(wards.certificate("ward_c").serial_number)
            play.coordinator.watch()

    commit = leaving.exchange.commit

    def committed(handoff: SealedHandoff) -> None:
        nonlocal was_last
        kinds.append(commit(handoff))
        was_last = was_last or bool(play.coordinator.run_state.turn_log.entries)
        if when == "while others still train":
            goes()

    leaving.exchange.commit = committed
    if when == "before the mean":
        play.until(lambda turn: turn.kind is TurnKind.AVERAGE)
        goes()
        play.coordinator.transaction.roll_back("as if its site had died")
        play.coordinator.dispatcher.go_on()
        play.ask(play.membership[0])
    play.until()
    play.errors.pop("ward_c", None)
    assert not play.errors and sorted(play.ended) == ["ward_a", "ward_b"]
    entries = play.coordinator.run_state.turn_log.entries
    first, second = [e.client for e in entries if e.kind == "train"]
    counted = "ward_a+ward_b+ward_c" if when == "while others still train" and was_last else "ward_a+ward_b"
    assert (first, second) == (counted, "ward_a+ward_b")
    assert play.coordinator.run_state.board.epoch == 2 and play.coordinator.weights_sha256()


def test_one_that_has_the_newest_key_alone_releases_it_before_it_leaves_for_good(wards, tmp_path):
    """Oracle: ward_b made the key of epoch 2 and leaves before anybody else has it: the others have it all the same."""
    play = play_of(wards, tmp_path)
    play.until(trains("ward_b"))
    play.membership[0].exchange.post(play.membership[0].client.consortium.withdraw())
    take(play)
    made = play.until(lambda turn: turn.kind is TurnKind.KEY)
    maker = next(member for member in play.membership if member.client.name == made.client)
    client, exchange = maker.client, maker.exchange
    handoff, board = exchange.fetch(), exchange.board()
    errands.catch_up(maker, made)
    epoch = client.consortium.new_epoch(board, handoff)
    exchange.begin_epoch(epoch, client.begin_epoch(handoff))
    client.consortium.end_new_epoch()
    errands.withdraw(maker)
    play.until()
    left = {"ward_b", "ward_c"} - {made.client}
    assert set(play.ended) == left and play.coordinator.run_state.board.epoch == 3


@pytest.mark.parametrize("name", ["zed", "ghost"])
def test_a_ghost_whom_the_authority_certifies_gets_no_key_and_stops_nobody(wards, tmp_path, caplog, name):
    """Oracle: its certificate is good, no roster lists it; the log says so; also where it is asked to make the key."""
    coordinator = wards.coordinator(tmp_path / "run", 3)
    ghost = wards.client(name)
    play = Play(coordinator, [wards.client("ward_a"), wards.client("ward_b"), ghost])
    play.until()
    error = play.errors.pop(name)
    assert isinstance(error, EvictedError) and "ward_a, ward_b" in str(error)
    assert play.kinds(TurnKind.KEY) == (["ward_a"] if name == "zed" else ["ghost", "ward_a"])
    assert not play.errors and sorted(play.ended) == ["ward_a", "ward_b"]
    assert f"{name} with fingerprint" in caplog.text
    newest = coordinator.run_state.handoff
    with pytest.raises((HandoffError, UntrustedError)):
        ghost._seal.open(newest)


def test_a_late_comer_is_given_the_key_and_trains_from_the_next_round_on(wards, tmp_path):
    """Oracle: its turns, and equal digests at the end."""
    coordinator = wards.coordinator(tmp_path / "run", 3, door=OpenMembership(least=2, grace=0.0))
    play = Play(coordinator, [wards.client("ward_a"), wards.client("ward_b")])
    play.until(trains("ward_b"))
    late = Participant(wards.client("ward_c"), LocalExchange(coordinator), NoClientObserver())
    join(late, {})
    play.membership.append(late)
    from suture.runtime.session import take_turn

    take_turn(play.membership[1], play.turns[-1])
    play.until()
    assert sorted(play.ended) == [*NAMES] and not play.errors
    trained = [e.client for e in coordinator.run_state.turn_log.entries if e.kind == "train"]
    assert trained == ["ward_a", "ward_b", *NAMES]
    assert coordinator.weights_sha256()


# Keys that people give ------------------------------------------------------------------------------


def test_a_key_that_people_give_is_the_first_epochs_and_a_wrong_one_is_refused_at_once(wards, tmp_path):
    """Oracle: the site with another key never has a turn; the others finish."""
    coordinator = wards.coordinator(tmp_path / "run", 3)
    clients = [wards.client("ward_a", KEY), wards.client("ward_b", bytes(32)), wards.client("ward_c", KEY)]
    play = Play(coordinator, clients)
    play.until()
    error = play.errors.pop("ward_b")
    assert isinstance(error, ConfigError) and "--handoff-key is another than that of ward_a" in str(error)
    assert clients[0].consortium.key(1) == KEY == clients[2].consortium.key(1)
    assert sorted(play.ended) == ["ward_a", "ward_c"]
    assert "ward_b" not in [e.client for e in coordinator.run_state.turn_log.entries]


# A server that lies -----------------------------------------------------------------------------


class Lying(LocalExchange):
    """The way to a server that changes what it passes on."""

    def __init__(self, coordinator, **changes: Any) -> None:
        super().__init__(coordinator)
        self.changes = changes

    def fetch(self) -> SealedHandoff | None:
        return self.changes.get("fetch", lambda handoff: handoff)(super().fetch())

    def board(self) -> Board:
        return self.changes.get("board", lambda board: board)(super().board())

    def heads(self) -> Heads:
        return self.changes.get("heads", lambda heads: heads)(super().heads())

    def shares(self):
        return self.changes.get("shares", lambda shares: shares)(super().shares())


def lie_to(play: Play, index: int, **changes: Any) -> None:
    """From now on the server lies to one site."""
    member = play.membership[index]
    lying = Lying.__new__(Lying)
    lying.__dict__.update(member.exchange.__dict__, changes=changes)
    play.membership[index] = dataclasses.replace(member, exchange=lying)


def flipped(handoff: SealedHandoff) -> SealedHandoff:
    altered = handoff.ciphertext.clone()
    altered[40] ^= 1
    return dataclasses.replace(handoff, ciphertext=altered)


def test_a_handoff_that_the_server_altered_accuses_the_server_and_never_the_author(wards, tmp_path):
    """Oracle: the site's own error; no accusation is stated, nobody is put out."""
    play = play_of(wards, tmp_path)
    lie_to(play, 1, fetch=flipped)
    play.until()
    assert "is not what its author signed: the server" in str(play.errors["ward_b"])
    board = play.coordinator.run_state.board
    assert not [one for one in board.evidence if one.kind == evidence.ACCUSATION] and not board.removed


def test_an_old_handoff_is_refused(wards, tmp_path):
    """Oracle: the guard; its author's signature over it is good."""
    play, kept = play_of(wards, tmp_path), []
    play.until(trains("ward_c"))
    kept.append(play.coordinator.run_state.handoff)
    take(play)
    play.until(trains("ward_b", 4))
    lie_to(play, 1, fetch=lambda handoff: kept[0])
    take(play)
    error = play.errors["ward_b"]
    assert "the server offered the hand-off of turn 2, but this client has seen turn" in str(error)


def take(play: Play) -> None:
    """Plays the turn that `until` stopped before."""
    turn = play.turns[-1]
    member = next(member for member in play.membership if member.client.name == turn.client)
    play._take(member, turn)


def test_another_sites_handoff_under_a_made_up_statement_is_refused(wards, tmp_path):
    """Oracle: a signature of somebody outside the roster, and one of a site over another's words."""
    play = play_of(wards, tmp_path)
    play.until(trains("ward_b"))
    handoff = play.coordinator.run_state.handoff
    content = json.loads(handoff.statement.content)
    by_ghost = wards.identity("ghost").state("handoff", **content)
    stolen = dataclasses.replace(by_ghost, author="ward_a")
    for statement, why in (
        (by_ghost, "not in this site's roster"),
        (stolen, "has not signed for it"),
        (None, "nobody has signed"),
    ):
        with pytest.raises(UntrustedError, match=why):
            play.membership[1].client._seal.open(dataclasses.replace(handoff, statement=statement))


def test_two_histories_are_found_at_the_farewell(wards, tmp_path):
    """Oracle: the server shows one site the head of a run that ended elsewhere, signed by its site."""
    play = play_of(wards, tmp_path, NAMES[:2])

    def other_history(heads: Heads) -> Heads:
        consortium = play.membership[1].client.consortium
        other = dataclasses.replace(play.membership[1].client.newest, turn=2)
        forked = [consortium.head(other) if one.author == "ward_b" else one for one in heads.statements]
        return Heads(forked)

    lie_to(play, 0, heads=other_history)
    play.until()
    assert "the server has shown them different histories" in str(play.errors["ward_a"])


def test_a_head_that_is_kept_back_is_missed_where_it_is_ones_own(wards, tmp_path):
    """Oracle: the site's own word does not come back."""
    play = play_of(wards, tmp_path, NAMES[:2])
    lie_to(play, 0, heads=lambda heads: Heads([one for one in heads.statements if one.author != "ward_a"]))
    play.until()
    assert "does not pass on what this site signed" in str(play.errors["ward_a"])


def test_a_share_that_the_server_drops_is_missed_by_its_owner(wards, tmp_path):
    """Oracle: the mean's author signs which shares it is of."""
    play = play_of(wards, tmp_path, scheduler=AtOnce(Together.PARALLEL))
    lie_to(play, 0, shares=lambda shares: (one for one in shares if one.client != "ward_b"))
    play.until()
    assert "leaves this site's share out" in str(play.errors["ward_b"])


def without_removed(board: Board, wards: Wards) -> Board:
    """A board with an epoch that puts ward_b out for nothing, signed by a site."""
    identity, last = wards.identity("ward_c"), board.epochs[-1]
    content = json.loads(last.content)
    from suture.runtime.wire.statements import digest

    made = content | {"number": 2, "before": digest(last), "removed": {"ward_b": "I do not like it"}}
    return dataclasses.replace(board, epochs=[*board.epochs, identity.state("epoch", **made)])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without_removed, "puts ward_b out, and no two sites have convicted it"),
        (lambda board, wards: dataclasses.replace(board, epochs=[]), "another history of the hand-off key"),
        (
            lambda board, wards: dataclasses.replace(board, epochs=board.epochs * 2),
            "does not follow the one before",
        ),
    ],
)
def test_epochs_that_do_not_hold_are_refused(wards, tmp_path, change, why):
    """Oracle: each site checks for itself whom an epoch leaves out, and that it goes on from what it knows."""
    play = play_of(wards, tmp_path)
    play.until(trains("ward_b"))
    consortium, board = play.membership[0].client.consortium, play.coordinator.run_state.board.shown()
    with pytest.raises(UntrustedError, match=why):
        consortium.take(change(board, wards))


def test_a_grant_that_answers_another_question_or_holds_another_key_is_not_taken(wards, tmp_path, caplog):
    """Oracle: replayed to another site, and made by a site that does not know the key."""
    play = play_of(wards, tmp_path)
    play.until(trains("ward_b"))
    board = play.coordinator.run_state.board.shown()
    newcomer = wards.consortium("ward_c")
    from suture.runtime.state.rollback_guard import RollbackGuard

    newcomer.join("run", RollbackGuard(None, "ward_c", "run"))
    newcomer.take(board)  # grants answer requests of another process of its
    assert newcomer.epoch == 1 and newcomer.epoch_of_key == 0
    with pytest.raises(HandoffError, match="no hand-off key of epoch 1"):
        newcomer.key(1)
    from suture.runtime.consortium.keys import grant

    wrong = grant(
        wards.identity("ward_b"), wards.trust("ward_b"), newcomer.request(), "run", board.epochs[0], bytes(32)
    )
    newcomer.take(dataclasses.replace(board, grants=[wrong]))
    assert "ward_b released a hand-off key that is not that of epoch 1; refused" in caplog.text
    assert newcomer.epoch_of_key == 0


def test_nothing_that_crossed_opens_a_key(wards, tmp_path):
    """Oracle: the key's bytes are in no statement, and a listener with every statement has neither ephemeral's secret."""
    play, crossed = play_of(wards, tmp_path), []
    board = play.coordinator.run_state.board
    post, begin = board.post, board.begin_epoch
    board.post = lambda client, statement, handoffs: (
        crossed.append(statement),
        post(client, statement, handoffs),
    )
    board.begin_epoch = lambda client, epoch, *rest: (crossed.append(epoch), begin(client, epoch, *rest))
    play.until()
    key = play.membership[0].client.consortium.key(1).hex()
    grants = [statement for statement in crossed if statement.kind == "key grant"]
    assert len(grants) == 2 and key not in "".join(one.content for one in crossed)
    listener = KeyRequest(wards.identity("ghost"), "run")
    for statement in grants:
        assert listener.open(json.loads(statement.content)) is None


# What a site states at the server ------------------------------------------------------------------


def posted(play: Play, index: int, statement: Statement) -> None:
    play.membership[index].exchange.post(statement)


def test_the_server_takes_only_what_its_sender_signed_and_may_say(wards, tmp_path):
    """Oracle: one refusal for each, and nothing of them is passed on."""
    play = play_of(wards, tmp_path)
    play.until(trains("ward_b"))
    own: Identity = wards.identity("ward_b")
    before = play.coordinator.run_state.board.shown()
    request = wards.identity("ward_a").state("key request", run="run", ephemeral="00" * 32)
    cases = [
        (request, WireError, "a statement of 'ward_a'"),
        (dataclasses.replace(request, author="ward_b"), UntrustedError, "has not signed for it"),
        (own.state("epoch", run="run"), WireError, "is not posted"),
        (own.state("key request", run="another"), WireError, "of another run"),
        (own.state("key grant", run="run", to="ward_c", request="00"), WireError, "nobody waits for"),
        (
            own.state("verdict", run="run", accusation="00", is_bad=True),
            WireError,
            "nobody asked for its verdict",
        ),
        (own.state("accusation", run="run", handoff=["x"]), UntrustedError, "an accusation of nothing"),
        (
            own.state("accusation", run="run", handoff=["handoff", "ward_a", "{}", "", ""]),
            WireError,
            "there is not",
        ),
        (dataclasses.replace(own.state("key request", run="run"), content="{}"), UntrustedError, "not its"),
    ]
    for statement, kind, why in cases:
        with pytest.raises(kind, match=why):
            posted(play, 1, statement)
    assert play.coordinator.run_state.board.shown() == before


def test_who_holds_no_turn_accuses_nobody(wards, tmp_path):
    """Oracle: an accusation comes from who has just opened something."""
    play = play_of(wards, tmp_path)
    play.until(trains("ward_b"))
    newest = play.coordinator.run_state.handoff
    from suture.runtime.wire.messages import Share

    accusation = play.membership[2].client.consortium.accuse(Share("ward_a", newest), "it is bad")
    with pytest.raises(WireError, match="it holds no turn"):
        posted(play, 2, accusation)


# Crashes ----------------------------------------------------------------------------------------


def test_a_server_and_sites_that_start_again_go_on_with_the_keys_that_they_kept(wards, tmp_path):
    """Oracle: the weights of the run that nothing disturbed; nobody makes another key."""
    first = play_of(wards, tmp_path)
    first.until(trains("ward_b", 4))
    resumed = wards.coordinator(tmp_path / "run", 3, resume=True)
    again = Play(resumed, [wards.client(name) for name in NAMES])
    again.until()
    assert not again.errors and sorted(again.ended) == [*NAMES]
    assert not again.kinds(TurnKind.KEY) and not again.kinds(TurnKind.ADMIT)
    undisturbed = Wards(tmp_path / "undisturbed", NAMES, ghosts=("ghost",))
    whole = play_of(undisturbed, tmp_path / "undisturbed")
    whole.until()
    assert resumed.weights_sha256() == whole.coordinator.weights_sha256()


def test_one_that_lost_what_it_kept_is_given_the_key_again(wards, tmp_path):
    """Oracle: an errand of one that has it, and the run's end."""
    first = play_of(wards, tmp_path)
    first.until(trains("ward_b", 4))
    resumed = wards.coordinator(tmp_path / "run", 3, resume=True)
    clients = [wards.client(name) for name in NAMES[:2]]
    clients.append(wards.client("ward_c", memory=tmp_path / "elsewhere"))
    again = Play(resumed, clients)
    again.until()
    assert not again.errors and again.kinds(TurnKind.ADMIT) and sorted(again.ended) == [*NAMES]


def test_a_maker_that_dies_before_it_tells_makes_nothing(wards, tmp_path):
    """Oracle: another one makes the first key, and the run ends."""
    coordinator = wards.coordinator(tmp_path / "run", 3)
    play = Play(coordinator, [wards.client(name) for name in NAMES])
    assert play.until(lambda turn: turn.kind is TurnKind.KEY) is not None
    assert play.turns[-1].client == "ward_a"
    maker = play.membership.pop(0)
    maker.exchange.leave()
    play.until()
    assert play.kinds(TurnKind.KEY) == ["ward_a", "ward_b"]
    assert sorted(play.ended) == ["ward_b", "ward_c"] and not play.errors


def test_a_maker_that_dies_after_the_server_took_the_epoch_still_has_its_key(wards, tmp_path):
    """Oracle: it comes back with what it kept before it told anybody."""
    coordinator = wards.coordinator(tmp_path / "run", 2)
    play = Play(coordinator, [wards.client(name) for name in NAMES[:2]])
    play.until(lambda turn: turn.kind is TurnKind.KEY)
    maker = play.membership.pop(0)
    client: Client = maker.client
    epoch = client.consortium.new_epoch(maker.exchange.board(), None)
    maker.exchange.begin_epoch(epoch, client.begin_epoch(None))
    coordinator.lose(coordinator.membership.get("ward_a"), "its process has died")
    play.until()
    assert not play.ended and not play.errors, "ward_b has no key and waits"
    play.membership.append(
        Participant(wards.client("ward_a"), LocalExchange(coordinator), NoClientObserver())
    )
    join(play.membership[-1], {})
    play.until()
    assert not play.errors and sorted(play.ended) == ["ward_a", "ward_b"]
    assert play.kinds(TurnKind.KEY) == ["ward_a"]


def test_one_that_does_not_do_what_it_is_asked_is_lost(wards, tmp_path):
    """Oracle: after three times another one is asked."""
    coordinator = wards.coordinator(tmp_path / "run", 2, door=OpenMembership(least=2, grace=0.0))
    play = Play(coordinator, [wards.client(name) for name in NAMES[:2]])
    lazy = play.membership[0]

    def refuses(turn: Turn) -> bool:
        return turn.kind is TurnKind.KEY and turn.client == "ward_a"

    for _ in range(6):
        if play.until(refuses) is None:
            break
        play.ask(lazy)
    assert play.kinds(TurnKind.KEY)[-1] == "ward_b" or isinstance(play.errors.get("ward_a"), MemberLostError)


def test_a_founder_that_is_gone_before_anybody_has_its_key_is_not_waited_for_beyond_the_grace(
    wards, tmp_path
):
    """Oracle: another one makes a key after the grace; the first one comes back, with what it kept, and takes part."""
    coordinator = wards.coordinator(tmp_path / "run", 2, door=OpenMembership(least=2, grace=0.0))
    play = Play(coordinator, [wards.client(name) for name in NAMES[:2]])
    play.until(lambda turn: turn.kind is TurnKind.KEY)
    maker = play.membership.pop(0)
    epoch = maker.client.consortium.new_epoch(maker.exchange.board(), None)
    maker.exchange.begin_epoch(epoch, sealed := maker.client.begin_epoch(None))
    maker.client.consortium.end_new_epoch()
    maker.client.began_epoch(sealed)
    coordinator.lose(coordinator.membership.get("ward_a"), "its process has died")
    play.until()
    coordinator.watch()
    coordinator.watch()
    play.until(trains("ward_b"))
    assert play.kinds(TurnKind.KEY) == ["ward_a", "ward_b"]
    play.membership.append(
        Participant(wards.client("ward_a"), LocalExchange(coordinator), NoClientObserver())
    )
    join(play.membership[-1], {})
    take(play)
    play.until()
    assert not play.errors and sorted(play.ended) == ["ward_a", "ward_b"]
    assert coordinator.weights_sha256()


# Certificates that change ---------------------------------------------------------------------------


def test_a_site_that_is_revoked_while_the_server_is_down_and_never_comes_is_put_out(wards, tmp_path):
    """Oracle: a new epoch without it, before another turn: it had the key of the one before."""
    play = play_of(wards, tmp_path)
    assert play.until(trains("ward_b", 4)) is not None
    again = wards.coordinator(tmp_path / "run", 2, resume=True, door=OpenMembership(least=2, grace=0.0))
    wards.revoked.serials.add(wards.certificate("ward_c").serial_number)
    others = [wards.client(name) for name in ("ward_a", "ward_b")]
    second = Play(again, others)
    second.until()
    assert not second.errors and sorted(second.ended) == ["ward_a", "ward_b"]
    assert again.run_state.board.removed.keys() == {"ward_c"} and again.run_state.board.epoch == 2
    assert others[0].consortium.key(2) == others[1].consortium.key(2) != others[0].consortium.key(1)


def test_what_was_signed_with_a_certificate_that_has_ended_since_still_counts(wards, tmp_path, monkeypatch):
    """Oracle: a site that comes when the first epoch's author has renewed its certificate; it is given the key."""
    play = play_of(wards, tmp_path, door=OpenMembership(least=2, grace=0.0))
    play.until(trains("ward_b"))
    (epoch,) = play.coordinator.run_state.board.epochs
    author = next(one for one in play.membership if one.client.name == epoch.author)
    old = wards.certificate(epoch.author)
    renewed = wards.authority.sign(epoch.author, Role.CLIENT, old.public_key())
    own = dataclasses.replace(wards.credentials[epoch.author], certificate=renewed)
    author.client.consortium.renew(Identity.of(own))
    assert author.client.consortium.takes_renewal() and not author.client.consortium.takes_renewal()
    chain = EpochChain(wards.trust("ward_c"), "run")
    ended = old.not_valid_after_utc + timedelta(days=1)
    monkeypatch.setattr("suture.runtime.consortium.identity.datetime", Later(ended))
    chain.take(play.coordinator.run_state.board.shown())
    assert len(chain) == 1
    with pytest.raises(UntrustedError, match="is not valid now; it must be renewed"):
        wards.trust().check(epoch, "epoch", fresh=True)


class Later:
    """Stands for `datetime`, at a later time."""

    def __init__(self, moment) -> None:
        self.moment = moment

    def now(self, _):
        return self.moment


def test_a_certificate_of_another_site_is_no_renewal(wards):
    """Oracle: the message."""
    own = wards.consortium("ward_a")
    with pytest.raises(ConfigError, match="a certificate of ward_b is none for ward_a"):
        own.renew(wards.identity("ward_b"))


def test_the_others_are_shown_a_renewed_certificate_with_the_next_turn(wards, tmp_path):
    """Oracle: the request on the board, by whose certificate the server looks whether a site was revoked."""
    play = play_of(wards, tmp_path)
    play.until(trains("ward_b"))
    old = wards.certificate("ward_b")
    renewed = wards.authority.sign("ward_b", Role.CLIENT, old.public_key())
    own = dataclasses.replace(wards.credentials["ward_b"], certificate=renewed)
    play.membership[1].client.consortium.renew(Identity.of(own))
    take(play)
    board = play.coordinator.run_state.board
    request = board._certified["ward_b"]
    assert request.certificate.encode() == renewed
    wards.revoked.serials.add(old.serial_number)  # which no authority of ours does: it takes back a key
    assert board.newly_revoked() == []
    play.until()
    assert not play.errors and sorted(play.ended) == [*NAMES]


def test_a_site_whose_roster_lists_its_next_key_already_goes_on_with_the_one_it_has(wards, tmp_path):
    """Oracle: the run ends for all three: what it has signed itself it believes."""
    play = play_of(wards, tmp_path)
    play.until(trains("ward_b"))
    Roster(wards.folder / "ward_b.toml").add("ward_b", "0" * 64, replace=True)
    take(play)
    play.until()
    assert not play.errors and sorted(play.ended) == [*NAMES]
