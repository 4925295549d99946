"""How clients that train in one turn share the server: queues, by which their batches reach the top.

- ``parallel`` (SplitFed v2): one top takes the batches one by one, in waves of one a client, each in the order that is
  drawn from the seed for the round; or, with ``--async``, in that of arrival.
- ``splitfed`` (SplitFed v1): each client's batches train a copy of the top; the copies are averaged at the end.
- ``concat``: the clients' batches of one number make one batch and one step of the top.

Reference: Thapa et al., AAAI 2022 (arXiv 2004.12088).

The clients' own parts are averaged by a client, sealed; see `TurnKind.AVERAGE`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import Tensor

from suture.runtime.errors import SutureError
from suture.runtime.server.client_turn import ClientTurn, StepQueue
from suture.runtime.server.model import ForwardPass
from suture.runtime.wire.compression import Payload
from suture.runtime.wire.messages import LossReply, Refusal, StepReply


class OrderedQueue(StepQueue):
    """Parallel clients, one top: it takes one batch at a time, and no other before its step is done.

    Args:
        order: whose batch comes next, and so on; None for the order of arrival.
        ended: gets the names of those who have no more batches.
    """

    def __init__(self, order: Iterable[str] | None, ended: set[str] | None = None) -> None:
        self._order = None if order is None else iter(order)
        self._next = ""
        self._waiting: dict[str, ClientTurn] = {}
        self._ended: set[str] = set() if ended is None else ended
        self._is_open = False
        self._taken: list[str] = []

    @property
    def order(self) -> str:
        return " ".join(self._taken)

    def train(self, turn: ClientTurn) -> None:
        self._waiting[turn.name] = turn
        self._go_on()

    def backward(self, turn: ClientTurn) -> None:
        super().backward(turn)
        self._is_open = False
        self._go_on()

    def ended(self, client: str) -> None:
        self._ended.add(client)
        self._go_on()

    def _go_on(self) -> None:
        while not self._is_open and (turn := self._take()) is not None:
            super().train(turn)
            # Its output may be out, and the top must not change before its step.
            self._is_open = turn.batch is not None and turn.batch.forward_pass is not None

    def _take(self) -> ClientTurn | None:
        if self._order is None:
            first = next(iter(self._waiting), "")
            if first:
                self._taken.append(first)
            return self._waiting.pop(first, None)
        while not self._next or self._next in self._ended:
            self._next = next(self._order, "")
            if not self._next:
                return None
        turn = self._waiting.pop(self._next, None)
        if turn is not None:
            self._next = ""
        return turn


class JoinedQueue(StepQueue):
    """Concatenated batches: a step waits for the batch of every client that has one of that number.

    Args:
        num_batches: of each client, in the order in which their batches are joined.
    """

    def __init__(self, num_batches: Mapping[str, int]) -> None:
        self._num_batches = dict(num_batches)
        self._names = list(num_batches)
        self._number = 0
        self._arrived: dict[str, ClientTurn] = {}
        self._forward_pass: ForwardPass | None = None
        self._answered: list[str] = []

    def train(self, turn: ClientTurn) -> None:
        self._arrived[turn.name] = turn
        self._go_on()

    def backward(self, turn: ClientTurn) -> None:
        self._arrived[turn.name] = turn
        self._go_on()

    def ended(self, client: str) -> None:
        self._num_batches[client] = 0
        self._go_on()

    def _go_on(self) -> None:
        left = [name for name in self._names if self._num_batches[name] > self._number]
        expected = self._answered or left
        if not expected or any(name not in self._arrived for name in expected):
            return
        turns, self._arrived = [self._arrived[name] for name in expected], {}
        try:
            answers = self._backward(turns) if self._answered else self._train(turns)
        except SutureError as error:
            answers = [Refusal.of(error)] * len(turns)
        for turn, answer in zip(turns, answers, strict=True):
            turn.settle(answer)

    def _train(self, turns: list[ClientTurn]) -> list[object]:
        batches = [turn.under_way.batch for turn in turns]
        found, self._forward_pass = turns[0].server.forward_joined(
            batches, [turn.hello.class_weights for turn in turns]
        )
        losses = [answer for answer in found if isinstance(answer, LossReply)]
        if losses:
            for turn, loss in zip(turns, losses, strict=True):
                turn.check_loss(loss.task_loss)
            at_cuts = self._step(turns, [len(batch.smashed) for batch in batches], None)
            pairs = zip(losses, at_cuts, strict=True)
            return [StepReply(loss.loss, loss.task_loss, at_cut) for loss, at_cut in pairs]
        self._answered = [turn.name for turn in turns]
        outputs = [answer for answer in found if isinstance(answer, Tensor)]
        for turn, output in zip(turns, outputs, strict=True):
            turn.under_way.forward_pass = ForwardPass(turn.under_way.batch.smashed, output)
        return [turn.output(output) for turn, output in zip(turns, outputs, strict=True)]

    def _backward(self, turns: list[ClientTurn]) -> list[object]:
        self._answered = []
        for turn in turns:
            turn.under_way.forward_pass = None
        of_outputs = [turn.under_way.gradient for turn in turns if turn.under_way.gradient is not None]
        return list(self._step(turns, [len(grad) for grad in of_outputs], of_outputs))

    def _step(
        self, turns: list[ClientTurn], sizes: list[int], of_outputs: list[Tensor] | None
    ) -> list[Payload]:
        server = turns[0].server
        forward_pass, self._forward_pass = self._forward_pass, None
        assert forward_pass is not None
        at_cuts, gradients = server.backward_joined(forward_pass, sizes, of_outputs)
        server.step(gradients)
        self._number += 1
        return [turn.at_cut(at_cut) for turn, at_cut in zip(turns, at_cuts, strict=True)]


def waves(
    seed: int, round: int, num_batches: Mapping[str, int], ended: Collection[str] = ()
) -> Iterator[str]:
    """Whose batch comes when: wave by wave one of every client that has one left, in an order drawn once a round.

    Not once a wave: whoever came last in one could then be the first of the next, and the server would wait for its
    backward and forward while the others' batches lie there.

    Args:
        seed: the run's public seed.
        round: see `Turn`.
        num_batches: as each client has announced them; it may send fewer.
        ended: those that send no more, as it is when the next one is asked for.
    """
    names = list(num_batches)
    # The order of the server's steps is its own choice, so the public seed may decide it.
    random.Random(f"suture/steps/{seed}/{round}").shuffle(names)
    for number in itertools.count():
        wave = [name for name in names if num_batches[name] > number and name not in ended]
        if not wave:
            return
        yield from wave
