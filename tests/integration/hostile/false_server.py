"""A hostile server: `suture serve` with one thing changed, in a process of its own.

    python false_server.py CHANGE serve KIT [OPTIONS]

Each change of `CHANGES` is one attack. That it was really sent is printed in a line that begins with HOSTILE; what came
of it the sites say.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[3])]

from traitor import _instead, tell

from suture.launch.kits.kit import Kit
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.consortium.identity import Identity
from suture.runtime.errors import TurnUndoneError
from suture.runtime.grpc import server as grpc_server
from suture.runtime.grpc.credentials import Role
from suture.runtime.grpc.server import GrpcServer
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.consortium_turns import ConsortiumTurns
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.server.dispatcher import Dispatcher
from suture.runtime.server.membership import Member
from suture.runtime.server.run_state import RunState
from suture.runtime.server.transaction import Transaction
from suture.runtime.wire.messages import Board, Heads, SealedHandoff, Terms
from suture.runtime.wire.statements import digest

VICTIM = "ward_b"
"""Whom a server lies to that lies to one."""
FORKED = "ward_c"
"""Who is told another history: the third, so that the second's turn may be missing in it."""


def _once(attack: str) -> Callable[..., None]:
    """Tells that something was sent, the first time."""
    said: list[bool] = []

    def say(**more: Any) -> None:
        if not said:
            said.append(True)
            tell(attack, "sent", **more)

    return say


def _nothing() -> None:
    tell("nothing changed", "sent")


# Hand-offs -----------------------------------------------------------------------------------------


def _altered() -> None:
    """One bit of the ciphertext that the victim fetches."""
    say = _once("one bit of a ciphertext altered")

    def newest(real: Callable[..., Any], run: Transaction, member: Member) -> SealedHandoff | None:
        handoff = real(run, member)
        if member.name != VICTIM or handoff is None:
            return handoff
        ciphertext = handoff.ciphertext.clone()
        ciphertext[len(ciphertext) // 2] ^= 1
        say(author=handoff.statement.author)
        return dataclasses.replace(handoff, ciphertext=ciphertext)

    _instead(Transaction, "newest_handoff", newest)


def _old() -> None:
    """What the victim fetches is the hand-off of the first turn, when it has seen later ones."""
    say, kept = _once("an old hand-off offered"), []

    def newest(real: Callable[..., Any], run: Transaction, member: Member) -> SealedHandoff | None:
        handoff = real(run, member)
        if handoff is not None and handoff.turn and not kept:
            kept.append(handoff)
        if member.name == VICTIM and handoff is not None and kept and handoff.turn > kept[0].turn + 1:
            say(offered=kept[0].turn, newest=handoff.turn)
            return kept[0]
        return handoff

    _instead(Transaction, "newest_handoff", newest)


def _drops_a_share() -> None:
    """Who averages is not given the victim's share."""
    say = _once("a share dropped")

    def share(real: Callable[..., Any], run: Transaction, member: Member, index: int) -> Any:
        given = run.run_state.shares
        dropped = given.pop(VICTIM, None)
        try:
            if dropped is not None:
                say()
            return real(run, member, index)
        finally:
            if dropped is not None:
                given[VICTIM] = dropped

    _instead(Transaction, "share", share)


def _forks(apart: bool) -> None:
    """`FORKED` goes on from another hand-off than the others: there are two histories, each signed at every step.

    Args:
        apart: whether each site is shown the farewells of its own history only.
    """
    say = _once("two histories" + (", and each is shown its own farewells" if apart else ""))
    first: list[SealedHandoff] = []
    fork: list[SealedHandoff] = []  # the newest one of the other history, once there is one

    def number(member: Member, run_state: RunState) -> int:
        """Of the newest hand-off in the history that this site is told."""
        newest = fork[0] if fork and member.name == FORKED else run_state.handoff
        return 0 if newest is None else newest.turn

    def grant(real: Callable[..., Any], transaction: Transaction, members: Any, given: Any) -> None:
        member, turn, newest = members[0], given[0], transaction.run_state.handoff
        if not first and newest is not None and newest.turn:
            first.append(newest)
        if member.name == FORKED and turn.kind is TurnKind.TRAIN and not fork:
            fork.append(first[0])  # as if ward_b, whose turn has just counted, had never trained
        real(transaction, members, [dataclasses.replace(turn, handoff=number(member, transaction.run_state))])

    def newest(real: Callable[..., Any], run: Transaction, member: Member) -> SealedHandoff | None:
        handoff = real(run, member)
        return fork[0] if fork and member.name == FORKED else handoff

    def commit(
        real: Callable[..., Any], transaction: Transaction, member: Member, handoff: SealedHandoff
    ) -> Any:
        if not fork or member.name != FORKED:
            return real(transaction, member, handoff)
        others, transaction.run_state.handoff = transaction.run_state.handoff, fork[0]
        counts = real(transaction, member, handoff)
        fork[0], transaction.run_state.handoff = transaction.run_state.handoff, others
        say(one=others.turn, other=fork[0].turn)
        return counts

    def answer_all(real: Callable[..., Any], dispatcher: Dispatcher, turn: Turn) -> None:
        for member in dispatcher.membership:
            member.answer(dataclasses.replace(turn, handoff=number(member, dispatcher.run_state)))

    _instead(Transaction, "grant", grant)
    _instead(Transaction, "newest_handoff", newest)
    _instead(Transaction, "commit", commit)
    _instead(Dispatcher, "_answer_all", answer_all)
    if apart:
        _shows_heads(lambda name, author: (name == FORKED) == (author == FORKED))


def _shows_heads(shown: Callable[[str, str], bool]) -> None:
    """A site of that name is passed on the farewells of the authors for which ``shown`` is true."""

    def heads(real: Callable[..., Any], run: ConsortiumTurns, member: Member, answer: Any) -> None:
        class Filtered:
            @staticmethod
            def set_result(value: Any) -> None:
                if isinstance(value, Heads):
                    value = Heads([one for one in value.statements if shown(member.name, one.author)])
                answer.set_result(value)

        real(run, member, Filtered)

    _instead(ConsortiumTurns, "heads", heads)


def _withholds(own: bool) -> None:
    """The victim is not shown the farewell of its own, or of anybody else."""
    say = _once("its own farewell withheld" if own else "the others' farewells withheld")

    def shown(name: str, author: str) -> bool:
        if name != VICTIM:
            return True
        say()
        return (author == VICTIM) != own

    _shows_heads(shown)


# Turns ---------------------------------------------------------------------------------------------


def _asks_instead(attack: str, kind: TurnKind) -> None:
    """Where the victim's second training turn is due it is asked for something else."""
    say = _once(attack)

    def answer(real: Callable[..., Any], member: Member, turn: Any) -> None:
        if (
            member.name == VICTIM
            and isinstance(turn, Turn)
            and turn.kind is TurnKind.TRAIN
            and turn.round == 2
        ):
            say()
            turn = dataclasses.replace(turn, kind=kind)
        real(member, turn)

    _instead(Member, "answer", answer)


def _beyond_the_rounds() -> None:
    """The victim's second training turn is of a round that the run does not have."""
    say = _once("a turn of round 99")

    def answer(real: Callable[..., Any], member: Member, turn: Any) -> None:
        if (
            member.name == VICTIM
            and isinstance(turn, Turn)
            and turn.kind is TurnKind.TRAIN
            and turn.round == 2
        ):
            say()
            turn = dataclasses.replace(turn, round=99)
        real(member, turn)

    _instead(Member, "answer", answer)


def _again_and_again() -> None:
    """Whenever the victim has trained, its turn is rolled back and asked for again."""
    times = [0]

    def commit(real: Callable[..., Any], run: Coordinator, member: Member, handoff: SealedHandoff) -> None:
        if member.name != VICTIM:
            real(run, member, handoff)
            return
        times[0] += 1
        tell("the same pass again and again", "sent", times=times[0])
        run.transaction.roll_back("again, please")
        raise TurnUndoneError("again, please")

    _instead(Coordinator, "commit", commit)


# Statements ----------------------------------------------------------------------------------------


def _takes_any_epoch() -> None:
    """It takes up whatever epoch a site makes, as a server that is in league with that one would."""

    def begin_epoch(
        real: Callable[..., Any], board: ServerBoard, client: str, epoch: Any, handoff: Any, newest: Any
    ) -> None:
        removed, board.removed = board.removed, json.loads(epoch.content)["removed"]
        if removed != board.removed:
            tell("an epoch that puts one out for nothing, passed on", "sent")
        try:
            real(board, client, epoch, handoff, newest)
        finally:
            board.removed = removed

    _instead(ServerBoard, "begin_epoch", begin_epoch)
    _instead(ServerBoard, "_removed_by_newest", lambda real, board: board.removed.keys())


def _ghosts_epoch() -> None:
    """An epoch that a ghost with a good certificate has made, without the victim, is shown to all."""
    say = _once("an epoch made by a ghost")
    ghost = Identity.of(Kit.read(Path(os.environ["HOSTILE_GHOST"]), Role.CLIENT).credentials())
    boards: list[ServerBoard] = []

    def shown(real: Callable[..., Any], board: ServerBoard) -> Board:
        boards[:] = [board]
        honest: Board = real(board)
        if not trained():
            return honest
        last = honest.epochs[-1]
        content = json.loads(last.content) | {"number": 2, "before": digest(last), "removed": {VICTIM: "so"}}
        say()
        return dataclasses.replace(honest, epochs=[*honest.epochs, ghost.state("epoch", **content)])

    def trained() -> bool:
        return bool(journals) and journals[0].handoff is not None and journals[0].handoff.turn > 0

    journals: list[Any] = []

    def grant(real: Callable[..., Any], transaction: Transaction, members: Any, given: Any) -> None:
        journals[:] = [transaction.run_state]
        real(transaction, members, [dataclasses.replace(one, epoch=2) if trained() else one for one in given])

    _instead(ServerBoard, "shown", shown)
    _instead(Transaction, "grant", grant)


def _gives_a_ghost_turns() -> None:
    """It gives a turn to a site that nobody has released the key to."""
    ghost = os.environ["HOSTILE_GHOST_NAME"]
    say = _once("a turn given to a ghost")

    def next_errand(real: Callable[..., Any], board: ServerBoard, waiting: Any, present: Any) -> Any:
        return real(board, [n for n in waiting if n != ghost], [n for n in present if n != ghost])

    def answer(real: Callable[..., Any], member: Member, turn: Any) -> None:
        if member.name == ghost and isinstance(turn, Turn) and turn.kind is TurnKind.TRAIN:
            say()
        real(member, turn)

    _instead(ServerBoard, "unknown_to_all", lambda *_: {})
    _instead(ServerBoard, "next_errand", next_errand)
    _instead(Member, "answer", answer)


# Terms ---------------------------------------------------------------------------------------------

TERMS: dict[str, dict[str, str]] = {
    "cut": {"cut": "1"},
    "net": {"model": "resnet18"},
    "code": {"model": "module:{code}:net"},
    "digest": {"model": "module:{code}:net"},
    "listed": {"model": "module:{code}:net"},
    "weaker": {"defence": "noise:scale=0.1"},
    "undefended": {"defence": "none"},
    "unknown": {"steal_images": "True"},
    "mine": {"sandbox": "off"},
    "elsewhere": {"data": "fundus-phantom"},
    "rounds": {"epochs": "1000000"},
    "huge": {"image_size": "1000000000"},
    "control": {},
}
"""By a site's name, what its terms say beside the run's own options."""


def _terms() -> None:
    """Each site is told terms of its own."""

    async def told(real: Callable[..., Any], server: GrpcServer, caller: Any, *arguments: Any) -> Terms:
        honest = await real(server, caller, *arguments)
        code = os.environ["HOSTILE_CODE"].replace("SITE", caller.site)
        own = {name: text.replace("{code}", code) for name, text in TERMS[caller.site].items()}
        tell(f"terms: {caller.site}", "sent", terms=own)
        return Terms(honest.run, honest.agreement | own)

    _instead(GrpcServer, "_terms", told)


# Recording -----------------------------------------------------------------------------------------


def _records() -> None:
    """Every message that it receives or sends goes into a file."""
    file = os.open(os.environ["HOSTILE_RECORDING"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    gather, pack = grpc_server.chunks.gather, grpc_server.frames.pack

    def write(message: bytes) -> None:
        os.write(file, len(message).to_bytes(8, "little") + message)

    async def gathers(*arguments: Any) -> Any:
        frame = await gather(*arguments)
        if frame is not None:
            write(frame.numpy().tobytes())
        return frame

    def packs(value: Any) -> Any:
        pieces = pack(value)
        write(b"".join(bytes(piece) for piece in pieces))
        return pieces

    grpc_server.chunks.gather, grpc_server.frames.pack = gathers, packs
    tell("every message recorded", "sent")


CHANGES: dict[str, Callable[[], None]] = {
    "nothing": _nothing,
    "alters a ciphertext": _altered,
    "offers an old hand-off": _old,
    "drops a share": _drops_a_share,
    "forks": lambda: _forks(apart=False),
    "forks and keeps apart": lambda: _forks(apart=True),
    "withholds the own head": lambda: _withholds(own=True),
    "withholds the others' heads": lambda: _withholds(own=False),
    "asks for a key": lambda: _asks_instead("a new key asked for without reason", TurnKind.KEY),
    "asks for a verdict": lambda: _asks_instead(
        "a verdict asked for, and nobody is accused", TurnKind.WITNESS
    ),
    "goes beyond the rounds": _beyond_the_rounds,
    "asks again and again": _again_and_again,
    "takes any epoch": _takes_any_epoch,
    "shows a ghost's epoch": _ghosts_epoch,
    "gives a ghost turns": _gives_a_ghost_turns,
    "tells false terms": _terms,
    "records": _records,
}


def change(name: str) -> None:
    """Makes this process's server hostile in one way."""
    CHANGES[name]()


if __name__ == "__main__":
    change(sys.argv.pop(1))
    from suture.cli import main

    main()
