"""What sites that sign agree on through the server: errands between turns, keys and their epochs, who is put out.

A run whose sites do not sign has none of it. Every method runs under the coordinator's lock.
"""

from __future__ import annotations

import logging
import time

from torch.futures import Future

from suture.runtime.consortium.board import KEY_REFUSAL, ServerBoard
from suture.runtime.consortium.evidence import ACCUSATION, VERDICT, WITHDRAWAL, Conviction
from suture.runtime.errors import StoppedError, TurnUndoneError, WireError
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.membership import Member
from suture.runtime.server.run import Run
from suture.runtime.state.handoff import MAX_BYTES, handoff_digest
from suture.runtime.wire.checks import check_handoff
from suture.runtime.wire.messages import Board, Heads, Refusal, SealedHandoff, Share, Statement

log = logging.getLogger(__name__)

_TRIES = 3
"""How often a site may be asked for the same and not do it."""


class ConsortiumTurns:
    """The server's part in what sites state to each other; it believes and forges nothing, see `ServerBoard`.

    Args:
        run: whose sites.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._board, self._run_state, self._membership = run.board, run.run_state, run.membership
        self._keyless_since: float | None = None

    # What a site asks -----------------------------------------------------------------------------

    def board(self, member: Member) -> Board:
        """What the sites have stated to each other."""
        return self._signed(member).shown()

    def post(self, member: Member, statement: Statement) -> None:
        """Takes what a site states. Who accuses gives up the turn that it holds; who leaves for good is put out."""
        board, run_state, run = self._signed(member), self._run_state, self._run
        busy = member.open_turn is not None or board.is_asked(member.name)
        if statement.kind == ACCUSATION and not busy:
            if member.undone:  # another site has opened the same one, and was faster
                raise TurnUndoneError(member.undone)
            raise WireError(
                f"{member.name}: post: it holds no turn in which it could have opened one; refused"
            )
        newest = [] if run_state.handoff is None else [run_state.handoff]
        board.post(member.name, statement, [*newest, *run_state.shares.values()])
        if not run_state.turn_log.handoff and board.is_founder_distrusted(self._membership.present()):
            run.transaction.roll_back(f"most sites do not know {board.founder}")
            others = [name for name in self._membership.present() if name != board.founder]
            self._begin_anew(board, f"most of {', '.join(others)} take no key from it; see their rosters")
        elif statement.kind == KEY_REFUSAL and member.open_turn is not None:
            # It would be given the same turn again and again.
            run.lose(member, f"it does not take the hand-off key that {board.founder} made")
        if statement.kind == ACCUSATION:
            run.transaction.roll_back(f"{member.name} accuses the author of the hand-off that it began with")
        elif statement.kind == VERDICT and (conviction := board.convict()) is not None:
            self._convict(board, conviction)
        elif statement.kind == WITHDRAWAL:
            self._put_out(board, member.name, "it left for good")
        run.go_on()

    def begin_epoch(self, member: Member, epoch: Statement, handoff: SealedHandoff) -> None:
        """Begins an epoch of the hand-off key: when this returns it is on the disk."""
        check_handoff(handoff, member.name, MAX_BYTES)
        board = self._signed(member)
        board.begin_epoch(member.name, epoch, handoff, self._run_state.handoff)
        self._run_state.handoff = handoff
        self._run.recorder.event(
            "epoch", number=board.epoch, client=member.name, without=sorted(board.removed)
        )
        self._run.save()

    def exhibit(self, member: Member) -> Share:
        """The hand-off, or share, that waits for a verdict."""
        accused = self._signed(member).accused
        if accused is None:
            raise WireError(f"{member.name}: exhibit: nobody is accused; refused")
        return accused

    def heads(self, member: Member, answer: Future[Heads | Refusal]) -> None:
        """``answer`` takes what every site signed at its farewell, once all that are there have said it."""
        self._signed(member)
        if member.farewell is None:
            raise WireError(f"{member.name}: heads: it has not said goodbye; refused")
        member.heads = answer
        self.answer_heads()

    def answer_heads(self) -> None:
        """Tells those that have said goodbye what the others signed, once all that are there have said it."""
        here = [member for member in self._membership if not member.left]
        if any(member.farewell is None for member in here):
            return
        said = [farewell.head for farewell in self._run.farewells().values()]
        for member in here:
            if member.heads is not None:
                heads, member.heads = member.heads, None
                heads.set_result(Heads([head for head in said if head is not None]))

    def _signed(self, member: Member) -> ServerBoard:
        if self._board is None:
            raise WireError(f"{member.name}: no site signs in this run; refused")
        return self._board

    # Between turns --------------------------------------------------------------------------------

    def has_errand(self) -> bool:
        """Asks a site for what must be done before the next turn; False where nothing must."""
        board = self._board
        if board is None:
            return False
        self._put_out_revoked(board)
        present = self._membership.present()
        if board.errand is not None:
            return True
        for name, by in board.unknown_to_all(present).items():
            why = f"it is not in the roster of {', '.join(sorted(by))}; if it belongs to you: suture roster add there"
            self.shut_out(name, why)
            return True
        if board.no_witness(present):
            accuser, author = board.pair
            self._run.stop(
                StoppedError(
                    f"{accuser} accuses {author} of a bad hand-off, and no third site is here to look: one of the "
                    f"two is at fault, and this run cannot tell which; look at both logs, and begin anew without it"
                )
            )
            return True
        waiting = [one.name for one in self._membership if one.waiting is not None and not one.left]
        found = board.next_errand(waiting, present)
        if found is None:
            return False
        kind, willing = found
        member = self._membership.get(willing[0]) if willing else None
        if member is not None:
            self._send(board, kind, member)
        return True

    def _send(self, board: ServerBoard, kind: TurnKind, member: Member) -> None:
        """Sends a site on an errand, or gives it up where it was asked too often."""
        if board.tries(kind, member.name) >= _TRIES:
            self._run.lose(member, f"it was asked {_TRIES} times ({kind}) and did not do it")
            return
        if kind is TurnKind.KEY and self._run_state.shares:
            self._drop_shares()
        board.sent(kind, member.name)
        member.last_seen = time.monotonic()
        turn_log = self._run_state.turn_log
        member.answer(Turn(kind, member.name, turn_log.round, handoff=turn_log.handoff, epoch=board.epoch))

    def _drop_shares(self) -> None:
        """Undoes a turn in which clients trained at once and whose mean was not made: their shares follow from the
        hand-off that a new epoch replaces. It begins again without whoever was put out.

        Raises:
            CheckpointError: there is nothing to go back to; the run has stopped.
        """
        turn = self._go_back(handoff_digest(next(iter(self._run_state.shares.values()))).hex())
        log.warning("went back to what held after turn %d: one was put out before the mean was made", turn)

    def _go_back(self, handoff: str) -> int:
        with self._run.stopping():
            turn = self._run_state.go_back(handoff)
        self._run.recorder.event("went_back", after_turn=turn, step=self._run_state.turn_log.step)
        return turn

    def watch(self) -> None:
        """Puts out who was revoked, and has another site make the key where whoever has it is gone.

        Raises:
            CheckpointError: that cannot be written; the run has stopped.
        """
        board = self._board
        if board is not None:
            self._put_out_revoked(board)
            if self._is_keyless_for_too_long(board):
                self._begin_anew(board)

    def _is_keyless_for_too_long(self, board: ServerBoard) -> bool:
        """Whether nobody has trained yet, and whoever has the first key has been away for the grace."""
        door, now = self._membership.door, time.monotonic()
        present = self._membership.present()
        if (
            door is None
            or not board.epochs
            or self._run_state.turn_log.handoff
            or not present
            or self._run.transaction.turns
            or any(name in board.holders for name in present)
        ):
            self._keyless_since = None
            return False
        self._keyless_since = self._keyless_since or now
        return now - self._keyless_since >= door.grace

    def _begin_anew(self, board: ServerBoard, why: str = "") -> None:
        """Nobody has trained yet, and the first key is of no use: another site makes one. With ``why`` whoever made it
        is shut out.
        """
        founder = board.founder
        board.start_over()
        self._run_state.handoff = None
        with self._run.stopping():
            self._run_state.save()
        if why:
            self.shut_out(founder, why)
        else:
            log.warning(
                "%s, which made the hand-off key, is gone before anybody else had it: another one makes one",
                founder,
            )
            self._run.go_on()

    # Who is put out -------------------------------------------------------------------------------

    def _put_out_revoked(self, board: ServerBoard) -> None:
        """Must come before another turn is granted: nothing more is sealed with a key that one who was revoked knows.

        Raises:
            CheckpointError: as `_put_out`.
        """
        for name in board.newly_revoked():
            self._put_out(board, name, "its certificate was revoked")

    def _put_out(self, board: ServerBoard, name: str, why: str) -> None:
        """A site has no part in the run any more: the others make a new hand-off key.

        Raises:
            CheckpointError: that cannot be written; the run has stopped.
        """
        if name not in board.removed:
            board.put_out(name, why)
            # Also where it has done its part of a turn in which others still train.
            if name in self._run.transaction.turns:
                self._run.transaction.roll_back(why)
            with self._run.stopping():
                self._run_state.keep_board()
            self.shut_out(name, why)

    def shut_out(self, name: str, why: str) -> None:
        """Ends a membership, and gives that name none again."""
        error = self._membership.shut_out(name, why)
        self._run.recorder.event("put_out", client=name, reason=why)
        log.warning("%s", error)
        member = self._membership.get(name)
        if member is not None and not member.left:
            self._run.lose(member, why, error)

    def _convict(self, board: ServerBoard, conviction: Conviction) -> None:
        """Two sites have put a third one out: what it sealed never happened.

        Raises:
            CheckpointError: there is nothing to go back to; the run has stopped.
        """
        self._run.transaction.roll_back("what it began with is accused")
        board.put_out(conviction.guilty, conviction.why)
        if conviction.handoff:
            turn = self._go_back(conviction.handoff)
            log.warning("went back to what held after turn %d", turn)
        else:
            with self._run.stopping():
                self._run_state.keep_board()
        self.shut_out(conviction.guilty, conviction.why)
