"""A turn that a client takes back: its parts are those from before, or are fetched again before the next one.

Oracle: the state before the turn, bit for bit, and the weights of a run that nothing disturbed.
"""

import copy
import dataclasses

import pytest
import torch
from tiny import NUM_BATCHES, build_client, build_coordinator, build_server

from suture.runtime.client.client import Client
from suture.runtime.errors import PolicyError
from suture.runtime.exchange import LocalExchange
from suture.runtime.hooks import Defence
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.membership import OpenMembership
from suture.runtime.session import end, join, take_turn
from suture.runtime.training.optim import OptimizerConfig
from suture.runtime.wire.messages import unwrap

ADAM = OptimizerConfig(name="adam", lr=0.1)  # has state of its own


class Counting(Defence):
    """Has a state: its steps."""

    def __init__(self) -> None:
        self.steps = torch.zeros(1)

    def step(self) -> None:
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state) -> None:
        self.steps = state["steps"].clone()


def bits(state) -> object:
    """A state as plain values: tensors as their types, shapes and bytes."""
    if isinstance(state, torch.Tensor):
        return state.dtype, tuple(state.shape), state.contiguous().numpy().tobytes()
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    return [bits(value) for value in state] if isinstance(state, (list, tuple)) else state


class Play:
    """A client and the server of its run, in one process."""

    def __init__(self, folder, rounds: int = 2) -> None:
        torch.set_num_threads(1)
        door = OpenMembership(least=1, grace=0.0)
        self.coordinator = build_coordinator(folder, build_server(), 1, rounds=rounds, door=door)
        self.client: Client = build_client(0, defence=Counting(), optimizer=ADAM)
        self.exchange = LocalExchange(self.coordinator)
        self.member = Participant(self.client, self.exchange, NoClientObserver())
        join(self.member, {})

    def next_turn(self, kind: TurnKind) -> Turn:
        """The next turn of that kind; evaluations before it are played."""
        while (turn := unwrap(self.exchange.ask_turn().value())).kind is not kind:
            assert turn.kind is TurnKind.EVALUATE
            take_turn(self.member, turn)
        return turn

    def train_a_little(self, turn: Turn) -> None:
        """Begins a training turn and leaves it in the middle, as one whose line breaks."""
        self.client.begin(turn)
        trained = self.exchange.train(self.client.model, turn, self.client.model.batches(turn))
        next(trained)
        trained.close()

    def play_to_the_end(self) -> str:
        while (turn := unwrap(self.exchange.ask_turn().value())).kind is not TurnKind.END:
            take_turn(self.member, turn)
        end(self.member, turn)
        return self.coordinator.weights_sha256()

    def state(self) -> object:
        return bits(self.client.state())


@pytest.fixture
def play(tmp_path) -> Play:
    return Play(tmp_path / "run")


def test_the_first_turn_taken_back_leaves_the_initial_parts_bit_for_bit(play):
    """Oracle: weights, the optimizer's moments and the defence's state before the turn; in the turn they are others."""
    turn, before = play.next_turn(TurnKind.TRAIN), play.state()
    assert play.client.holds(0) and play.client.knows(0)
    play.train_a_little(turn)
    assert not play.client.holds(0) and play.client.knows(0) and play.state() != before
    play.client.undo()
    assert play.client.holds(0) and play.state() == before
    play.client.undo()
    assert play.client.holds(0) and play.state() == before


def test_a_turn_taken_back_before_its_first_step_changes_nothing(play):
    """Oracle: the state before; a turn that has begun is not held, whatever it has done."""
    turn, before = play.next_turn(TurnKind.TRAIN), play.state()
    play.client.begin(turn)
    assert not play.client.holds(0)
    play.client.undo()
    assert play.client.holds(0) and play.state() == before


def test_the_first_turn_is_taken_back_again_and_again(play, tmp_path):
    """Oracle: the weights of a run that nothing disturbed: the turn that counts begins as the first one did."""
    turn, before = play.next_turn(TurnKind.TRAIN), play.state()
    for _ in range(3):
        play.train_a_little(turn)
        play.client.undo()
        assert play.state() == before
        play.coordinator.transaction.roll_back("again")
        turn = unwrap(play.exchange.ask_turn().value())
        assert (turn.number, turn.kind) == (1, TurnKind.TRAIN)
    take_turn(play.member, turn)
    assert play.client.holds(1) and play.client.model.defence.steps == NUM_BATCHES
    assert play.play_to_the_end() == Play(tmp_path / "undisturbed").play_to_the_end()


def test_a_later_turn_taken_back_is_held_again_when_the_hand_off_is_fetched(play, tmp_path):
    """Oracle: `holds` is False until then; then the state that the last turn left, bit for bit, and the same weights as
    in a run that nothing disturbed."""
    take_turn(play.member, play.next_turn(TurnKind.TRAIN))
    before = play.state()
    assert play.client.holds(1) and not play.client.holds(0)
    turn = play.next_turn(TurnKind.TRAIN)
    assert turn.handoff == 1 and play.state() == before
    play.train_a_little(turn)
    play.client.undo()
    assert play.client.knows(1) and not play.client.holds(1) and play.state() != before
    play.client.undo()
    assert not play.client.holds(1)
    play.client.open(play.exchange.fetch())
    assert play.client.holds(1) and play.state() == before
    play.coordinator.transaction.roll_back("again")
    assert play.play_to_the_end() == Play(tmp_path / "undisturbed").play_to_the_end()


def test_the_next_turn_fetches_what_was_not_remembered(play, tmp_path):
    """Oracle: the weights of a run that nothing disturbed, where nobody but the loop fetches."""
    take_turn(play.member, play.next_turn(TurnKind.TRAIN))
    play.train_a_little(play.next_turn(TurnKind.TRAIN))
    play.client.undo()
    play.coordinator.transaction.roll_back("again")
    assert play.play_to_the_end() == Play(tmp_path / "undisturbed").play_to_the_end()


def test_a_turn_of_several_is_remembered_even_when_its_share_was_sealed(play):
    """Oracle: the state that the last turn left, without a hand-off to fetch: it is likelier that one of several fails."""
    take_turn(play.member, play.next_turn(TurnKind.TRAIN))
    before, turn = play.state(), play.next_turn(TurnKind.TRAIN)
    together = dataclasses.replace(turn, together=True)
    play.train_a_little(together)
    share = play.client.seal(together)
    play.client.committed(share, together=True)
    assert not play.client.holds(1) and play.state() != before
    play.client.undo()
    assert play.client.holds(1) and play.state() == before


def test_a_turn_that_counted_is_not_taken_back(play):
    """Oracle: the state that it left; the hand-off before it is known no more."""
    take_turn(play.member, play.next_turn(TurnKind.TRAIN))
    after = copy.deepcopy(play.state())
    play.client.undo()
    assert play.state() == after and play.client.holds(1)
    assert not play.client.holds(0) and not play.client.knows(0)


def test_an_evaluation_is_nothing_to_take_back(play):
    """Oracle: the state, which the client holds all the time."""
    take_turn(play.member, play.next_turn(TurnKind.TRAIN))
    before = play.state()
    take_turn(play.member, play.next_turn(TurnKind.EVALUATE))
    assert play.client.holds(1)
    play.client.undo()
    assert play.client.holds(1) and play.state() == before


# Passes that a site counts ----------------------------------------------------------------------


def counting(folder, repeats: int = 1, rounds: int = 2) -> Client:
    """A client that allows each round's pass so often again, and remembers in ``folder`` what it has passed."""
    client = build_client(0, repeats=repeats, rounds=rounds, memory=folder)
    client.join("run")
    return client


@pytest.mark.parametrize("kind", [TurnKind.TRAIN, TurnKind.EVALUATE])
def test_a_rounds_pass_is_released_again_as_often_as_allowed_over_restarts_too(kind, tmp_path, caplog):
    """Oracle: counting; a client built anew, as after a crash, goes on counting; other rounds and kinds count for themselves."""
    begin = Client.begin if kind is TurnKind.TRAIN else Client.begin_evaluation
    turn = Turn(kind, "client0", 1, 1)
    begin(counting(tmp_path), turn)
    assert not caplog.records
    begin(counting(tmp_path), turn)
    assert f"round 1 ({kind}) is passed again, 2 times in all" in caplog.text
    with pytest.raises(
        PolicyError, match=rf"policy repeats: .* round 1 \({kind}\) again, 3 times in all, at most 2"
    ):
        begin(counting(tmp_path), turn)
    begin(counting(tmp_path), dataclasses.replace(turn, round=2))
    other = TurnKind.EVALUATE if kind is TurnKind.TRAIN else TurnKind.TRAIN
    (Client.begin if other is TurnKind.TRAIN else Client.begin_evaluation)(
        counting(tmp_path), dataclasses.replace(turn, kind=other)
    )


@pytest.mark.parametrize("round", [0, -1, 3])
def test_a_round_that_there_is_none_of_is_refused_before_anything_is_sent(round, tmp_path):
    """Oracle: the rounds that were agreed on; a client that nobody counts for is asked for any."""
    turn = Turn(TurnKind.TRAIN, "client0", round, 1)
    with pytest.raises(PolicyError, match=f"policy epochs: the server asks for round {round} of 2"):
        counting(tmp_path).begin(turn)
    free = build_client(0)
    free.join("run")
    free.begin(turn)
