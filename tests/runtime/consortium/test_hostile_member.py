"""What one hostile site of several may try against the others' run itself: to end it, to stall it, to turn it on them.

Oracle: the honest ones finish. Each was found by real processes first (tests/integration/hostile/test_traitors.py).
"""

import json
import logging
import time
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
from signing_sites import BAD, NAMES, Play, Wards, replay, sealing

from suture.runtime.client.client import Client
from suture.runtime.consortium import evidence
from suture.runtime.consortium.site import REFUSAL
from suture.runtime.errors import BadHandoffError, EvictedError, MemberLostError, WireError
from suture.runtime.participant import errands
from suture.runtime.scheduler import AtOnce, Together, Turn, TurnKind
from suture.runtime.state.handoff import handoff_digest
from suture.runtime.wire.messages import Heads, Share, unwrap
from suture.runtime.wire.statements import digest


@pytest.fixture
def wards(tmp_path) -> Wards:
    return Wards(tmp_path, NAMES)


def play_of(wards: Wards, folder: Any, **more: Any) -> Play:
    return Play(wards.coordinator(folder / "run", 3, **more), [wards.client(name) for name in NAMES])


def test_two_honest_sites_may_accuse_the_same_hand_off_at_once(wards, tmp_path):
    """Oracle: both open bad initial parts at the same time; the second one is not at fault, and both finish."""
    play = play_of(wards, tmp_path, scheduler=AtOnce(Together.PARALLEL))
    founder = play.membership[0].client
    state, sent = founder.state, []

    def bad_once() -> dict[str, Any]:
        taken = state()
        if not sent:
            sent.append(True)
            taken = {
                **taken,
                "parts": {
                    "bottom": {
                        k: t * float("nan") if t.is_floating_point() else t
                        for k, t in taken["parts"]["bottom"].items()
                    }
                },
            }
        return taken

    seal = founder._seal.seal
    founder._seal.seal = lambda given, *rest, **more: seal(bad_once() if not sent else given, *rest, **more)
    turn = play.until(lambda turn: turn.kind is TurnKind.TRAIN)
    assert turn is not None and sent
    opened = []
    for member in play.membership[1:]:
        with pytest.raises(BadHandoffError) as bad:
            member.client.open(member.exchange.fetch())
        opened.append((member, bad.value))
    for member, bad in opened:
        assert errands.accuse(member, bad)
        member.client.undo()
    play._waiting.clear()
    play.until()
    assert isinstance(play.errors.pop("ward_a"), EvictedError)
    assert not play.errors and sorted(play.ended) == ["ward_b", "ward_c"]


@pytest.mark.parametrize("when", ["while it is accused", "before anybody looks"])
def test_who_leaves_for_good_is_convicted_all_the_same(wards, tmp_path, when):
    """Oracle: the weights of the run without it: what it sealed never happened."""
    play = play_of(wards, tmp_path)
    sealing(play.membership[1].client, BAD["a name too few"])
    wanted = TurnKind.WITNESS if when == "while it is accused" else TurnKind.TRAIN
    stopped = play.until(lambda turn: turn.kind is wanted and turn.client != "ward_b" and len(play.turns) > 5)
    assert stopped is not None
    leaving = play.membership[1]
    leaving.exchange.post(leaving.client.consortium.withdraw())
    member = next(one for one in play.membership if one.client.name == stopped.client)
    play._take(member, stopped)
    play.until()
    assert isinstance(play.errors.pop("ward_b"), EvictedError)
    assert not play.errors and sorted(play.ended) == ["ward_a", "ward_c"]
    assert play.coordinator.weights_sha256() == replay(wards, tmp_path / "replay", ("ward_a", "ward_c"))


def refusal(play: Play, index: int) -> Any:
    client = play.membership[index].client
    first = play.coordinator.run_state.board.epochs[0]
    content = {"run": "run", "to": first.author, "epoch": digest(first), "why": "no"}
    return client.consortium.identity.state(REFUSAL, **content)


def test_who_has_the_key_does_not_refuse_it_any_more(wards, tmp_path):
    """Oracle: a refusal of the server's; nothing is rolled back."""
    play = play_of(wards, tmp_path)
    assert play.until(lambda turn: turn.kind is TurnKind.TRAIN and turn.client == "ward_b") is not None
    with pytest.raises(WireError, match="ward_b: post: it has taken that key, and refuses it now"):
        play.membership[1].exchange.post(refusal(play, 1))
    assert "ward_b" in play.coordinator.transaction.turns


def test_who_refuses_the_key_in_its_turn_does_not_keep_the_others_waiting(wards, tmp_path, caplog):
    """Oracle: one that never asks for the key, and refuses it in each turn, is lost; the others finish."""
    play = play_of(wards, tmp_path)
    board = play.coordinator.run_state.board
    board._requests.pop("ward_b")
    assert play.until(lambda turn: turn.kind is TurnKind.TRAIN and turn.client == "ward_b") is not None
    board.holders.discard("ward_b")
    play.membership[1].exchange.post(refusal(play, 1))
    with pytest.raises(MemberLostError, match="ward_b was lost"):
        unwrap(play.membership[1].exchange.ask_turn().value())
    assert "ward_b is lost: it does not take the hand-off key that ward_a made" in caplog.text
    play.errors["ward_b"] = MemberLostError("")
    play.until()
    assert sorted(play.ended) == ["ward_a", "ward_c"]


def test_when_somebody_has_trained_nobody_refuses_the_first_key_for_all(wards, tmp_path):
    """Oracle: two of three refuse it then: what was trained stays, and the one that made it stays in."""
    play = play_of(wards, tmp_path)
    assert play.until(lambda turn: turn.kind is TurnKind.TRAIN and turn.client == "ward_c") is not None
    board, handoff = play.coordinator.run_state.board, play.coordinator.run_state.handoff
    for index in (1, 2):
        board.holders.discard(NAMES[index])
        play.membership[index].exchange.post(refusal(play, index))
    assert play.coordinator.run_state.handoff == handoff and board.founder == "ward_a"
    assert "ward_a" not in play.coordinator.membership.gone_for_good


def test_who_never_says_goodbye_does_not_keep_the_model_from_the_others(wards, tmp_path):
    """Oracle: it is lost when the lease is over although it pings; the others then compare their heads and end."""
    play = play_of(wards, tmp_path, lease=0.5)
    last = play.until(lambda turn: turn.kind is TurnKind.END)
    assert last is not None
    honest = play.membership[:2]
    endings = [Thread(target=play._end, args=(member, last), daemon=True) for member in honest]
    for ending in endings:
        ending.start()
    began = time.monotonic()
    while any(ending.is_alive() for ending in endings) and time.monotonic() - began < 10:
        for name in NAMES:  # all of them ping
            play.coordinator.heard(play.coordinator.membership.get(name))
        play.coordinator.watch()  # as `Coordinator.wait` does
        time.sleep(0.02)
    assert not any(ending.is_alive() for ending in endings) and not play.errors
    assert "ward_c" in play.coordinator.membership.lost


@pytest.mark.parametrize("is_bad", [None, "yes", 1, []])
def test_a_verdict_that_says_neither_is_refused(wards, tmp_path, is_bad):
    """Oracle: the witness is asked again, and another one after it; nobody is convicted of anything else meanwhile."""
    play = play_of(wards, tmp_path)
    sealing(play.membership[1].client, BAD["a name too few"])
    turn = play.until(lambda turn: turn.kind is TurnKind.WITNESS)
    witness = play.membership[NAMES.index(turn.client)]
    accusation = play.coordinator.run_state.board.evidence[-1]
    own = witness.client.consortium.identity
    verdict = own.state(evidence.VERDICT, run="run", accusation=digest(accusation), is_bad=is_bad, why="")
    with pytest.raises(WireError, match="a verdict that says neither"):
        witness.exchange.post(verdict)
    assert play.coordinator.run_state.board.accused is not None


def test_a_share_that_counts_more_images_than_there_are_is_bad(wards, tmp_path):
    """Oracle: the honest site that averages does not seal infinity in its place, and is not put out for it."""
    play = play_of(wards, tmp_path, scheduler=AtOnce(Together.PARALLEL))
    hostile = play.membership[2].client

    def seal(turn: Turn) -> Any:
        state = hostile.state()
        for tensor in state["parts"]["bottom"].values():
            if tensor.is_floating_point():
                tensor.fill_(100.0)
        share = {"state": state, "num_images": 10**308}
        return hostile._seal.seal(share, turn.number, hostile._newest, sharer=hostile.name)

    hostile.seal = seal
    play.until()
    assert isinstance(play.errors.pop("ward_c"), EvictedError)
    assert not play.errors and sorted(play.ended) == ["ward_a", "ward_b"]


def test_what_a_site_says_forges_no_line_of_the_log(wards, tmp_path, capsys):
    """Oracle: the log as suture.launch.host.logs writes it: one line an event, nothing that a terminal obeys."""
    from suture.launch.host.logs import set_up

    before = logging.getLogger().handlers[:]
    set_up("server")
    try:
        play = play_of(wards, tmp_path)
        assert play.until(lambda turn: turn.kind is TurnKind.TRAIN and turn.client == "ward_b") is not None
        liar = play.membership[1]
        handoff = liar.exchange.fetch()
        why = "bad\n12:00:00 server: ward_a was put out of this run\x1b[2J"
        liar.exchange.post(liar.client.consortium.accuse(Share("ward_a", handoff), why))
        said = capsys.readouterr().err
    finally:
        logging.getLogger().handlers[:] = before
    assert "ward_b accuses ward_a: bad" in said and "\x1b" not in said
    assert not [line for line in said.splitlines() if line.startswith("12:00:00 server: ward_a")]


def test_a_site_that_took_part_and_whose_farewell_is_not_shown_is_named(wards, tmp_path, caplog):
    """Oracle: a server that shows each site the farewells of its own history only; what is to be compared by telephone."""
    play = play_of(wards, tmp_path)
    heads = type(play.membership[2].exchange).heads
    own = play.membership[2].exchange
    own.heads = lambda: Heads([one for one in heads(own).statements if one.author == "ward_c"])
    play.until()
    assert not play.errors
    (said,) = [record for record in caplog.records if "nothing says what it ends with" in record.message]
    newest = handoff_digest(play.coordinator.run_state.handoff).hex()[:16]
    assert said.message.startswith("ward_a, ward_b took part") and said.message.endswith(newest)


def other_head(client: Client) -> Any:
    """Signs that the run ends a turn later than it does."""
    sign = client.consortium.head
    return lambda handoff: sign(replace(handoff, turn=handoff.turn + 1))


def test_one_of_three_that_signs_a_false_head_takes_the_model_from_nobody_but_itself(wards, tmp_path, caplog):
    """Oracle: the two others end well, are told who ends with another hand-off, and that it was not kept back."""
    play = play_of(wards, tmp_path)
    lying = play.membership[1].client
    lying.consortium.head = other_head(lying)
    play.until()
    assert play.errors.keys() == {"ward_b"} and {"ward_a", "ward_c"} <= set(play.ended)
    said = [record.message for record in caplog.records if "as 2 of 3 do" in record.message]
    assert len(said) >= 2 and all(one.startswith("ward_b ends with the hand-off of turn") for one in said)
    assert "nothing says what it ends with" not in caplog.text


def test_the_one_of_three_that_was_shown_another_history_keeps_no_model(wards, tmp_path):
    """Oracle: both others end with another hand-off than it does."""
    play = play_of(wards, tmp_path)
    for name in (0, 2):
        client = play.membership[name].client
        client.consortium.head = other_head(client)
    play.until()
    assert "the server has shown them different histories, or they lie" in str(play.errors["ward_b"])


def test_a_site_that_was_put_out_is_not_missed_at_the_end(wards, tmp_path, caplog):
    """Oracle: no warning in the run from which two have put a third out."""
    play = play_of(wards, tmp_path)
    sealing(play.membership[1].client, BAD["a name too few"])
    play.until()
    assert sorted(play.ended) == ["ward_a", "ward_c"]
    assert "nothing says what it ends with" not in caplog.text


def test_a_revoked_site_of_which_the_server_does_not_know_gets_no_key_and_stops_nobody(
    wards, tmp_path, caplog
):
    """Oracle: the server's list is old, or kept back: the sites that have a newer one agree on a key without it."""
    coordinator = wards.coordinator(tmp_path / "run", 3)
    coordinator.run_state.board._trust.revocations = None
    wards.revoked.serials.add(wards.certificate("ward_c").serial_number)
    play = Play(coordinator, [wards.client(name) for name in NAMES])
    play.until()
    assert isinstance(play.errors.pop("ward_c"), EvictedError)
    assert not play.errors and sorted(play.ended) == ["ward_a", "ward_b"]
    assert "the certificate of ward_c was revoked; refused" in caplog.text


def test_who_releases_the_key_to_one_that_has_gone_meanwhile_is_not_lost_for_it(wards, tmp_path, caplog):
    """Oracle: one that asks and joins again all the time: the honest maker of the key goes on, and the others finish."""
    play = play_of(wards, tmp_path)
    making = play.until(lambda turn: turn.kind is TurnKind.KEY)
    assert making is not None and making.client == "ward_a"
    maker, board, looked = play.membership[0].exchange, play.coordinator.run_state.board, []
    look = maker.board

    def board_and_gone() -> Any:
        shown = look()
        if shown.epochs and not looked:  # it looks who asks
            looked.append(True)
            board.joined("ward_b")
        return shown

    maker.board = board_and_gone
    play._take(play.membership[0], making)
    assert looked and not play.errors
    assert "a key grant that nobody waits for" in caplog.text
    assert play.coordinator.membership.get("ward_a").left is False


def test_a_founder_that_releases_what_does_not_open_site_by_site_has_nobody_put_out_but_itself(
    wards, tmp_path
):
    """Oracle: the first that says so is not taken for one whom the founder does not know: the next one has yet to say."""
    play = play_of(wards, tmp_path)
    founder = play.membership[0].client.consortium
    release, served = founder.answer_requests, set[str]()

    def garbled(board):
        for one in release(board):
            content = json.loads(one.content)
            if content["to"] not in served:
                served.add(content["to"])
                return [founder.identity.state(one.kind, **content | {"sealed": "00" * 48})]
        return []

    founder.answer_requests = garbled
    play.until()
    assert sorted(play.ended) == ["ward_b", "ward_c"]
    assert isinstance(play.errors.pop("ward_a"), EvictedError) and not play.errors
