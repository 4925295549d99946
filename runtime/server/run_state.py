"""Everything of a run that outlives a process: what counted, the weights it led to, and their checkpoints.

The snapshot is what held when the last turn counted. It is what a checkpoint writes, what a rollback goes back
to and what ``--resume`` starts from, so all three agree by construction.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from suture.runtime.consortium.board import ServerBoard
from suture.runtime.errors import CheckpointError
from suture.runtime.host.disk import writing
from suture.runtime.scheduler import TurnKind
from suture.runtime.server.model import ServerModel
from suture.runtime.server.turn_log import TurnLog
from suture.runtime.state.checkpoint import Checkpoints, read_checkpoint, write_atomically
from suture.runtime.state.handoff import handoff_digest
from suture.runtime.wire.messages import Farewell, Release, SealedHandoff, Statement

log = logging.getLogger(__name__)
FORMAT = 4


@dataclass
class Totals:
    """Sums over the whole run, kept across resume."""

    train_images: int = 0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    rolled_back: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class RunState:
    """The state of a run.

    Args:
        run: the run's id.
        run_dir: RUN; turns.jsonl goes there.
        server: whose weights are kept.
        turn_log: which turns counted.
        checkpoints: where the state goes.
        best_by: names of the metrics that select the best round, in order of preference.
        board: what sites that sign have stated to each other; None where nobody signs.
        early_stop: after so many rounds without a better one the run ends; None for never.
    """

    def __init__(
        self,
        run: str,
        run_dir: Path,
        server: ServerModel,
        turn_log: TurnLog,
        checkpoints: Checkpoints,
        best_by: tuple[str, ...],
        board: ServerBoard | None = None,
        early_stop: int | None = None,
    ) -> None:
        self.server = server
        self.turn_log = turn_log
        self.board = board
        self._author, self._other_author_at, self._saved_at = "", -1, -1
        self.handoff: SealedHandoff | None = None
        self.shares: dict[str, SealedHandoff] = {}
        self.totals = Totals()
        self.train_loss: dict[str, float] = {}
        self.scores: dict[str, dict[str, dict[str, float]]] = {}
        self.farewells: dict[str, Farewell] = {}
        self.best_round = 0
        self.best_scores: dict[str, dict[str, dict[str, float]]] = {}
        self._best_value = float("-inf")
        self._early_stop, self._rounds = early_stop, turn_log.rounds
        self._closed_round = 0
        self._run = run
        self._run_dir = run_dir
        self._checkpoints = checkpoints
        self._best_by = best_by
        self._earlier_seconds = 0.0
        self._begun = time.monotonic()
        self._snapshot = self._state()

    def begin(self, resume: bool) -> int | None:
        """Writes turn 0, or with ``resume`` goes on from the newest whole checkpoint.

        Returns:
            The turn that the run goes on after, None for a run that starts.

        Raises:
            CheckpointError: nothing can be read (resume) or written.
        """
        found = self._checkpoints.load_newest() if resume else None
        if found is None:
            turns = self._run_dir / "turns.jsonl"
            if turns.exists() and turns.read_bytes():
                raise CheckpointError(
                    f"{turns} lists turns, but their checkpoints are gone from {self._checkpoints.folder}; "
                    "bring one back or start a new run"
                )
            self._checkpoints.save(0, self._snapshot)
            self._saved_at = 0
            return 0 if resume else None
        turn, state = found
        if state.get("format") != FORMAT or state["run"] != self._run:
            raise CheckpointError(
                f"the checkpoint is of run {state.get('run')}, format {state.get('format')}; "
                f"expected run {self._run}, format {FORMAT}"
            )
        self._restore(state)
        self._saved_at = turn
        if self.turn_log.finished:
            said = self._checkpoints.load_farewells()
            self.farewells = {client: _farewell(farewell) for client, farewell in said.items()}
        self._write_turns()
        log.info("resumed after turn %d: round %d, step %d", turn, self.turn_log.round, self.turn_log.step)
        return turn

    def save(self) -> None:
        """Makes what now holds the state to go back to, and returns when it is on the disk.

        Raises:
            CheckpointError: it cannot be written; the last checkpoint stays whole.
        """
        signed = None if self.handoff is None else self.handoff.statement
        author = "" if signed is None else signed.author
        if author != self._author:
            # What holds now may be undone with its author: what was before it is kept until another one follows.
            self._author, self._other_author_at = author, self._saved_at
        self._snapshot, self._saved_at = self._state(), len(self.turn_log.entries)
        self._checkpoints.save(self._saved_at, self._snapshot, self._other_author_at)
        self._write_turns()

    def keep_board(self) -> None:
        """Writes down what the sites have stated, beside the state that is to go back to; that stays as it is.

        Raises:
            CheckpointError: as `save`.
        """
        if self.board is not None:
            self._snapshot = self._snapshot | {"board": self.board.state_dict()}
            self._checkpoints.save(max(self._saved_at, 0), self._snapshot, self._other_author_at)

    def go_back(self, handoff: str) -> int:
        """Undoes the turn that sealed a hand-off which is bad, and what followed from it.

        Args:
            handoff: its digest (hex); the newest hand-off's, or a share's.

        Returns:
            The turn that now is the last one which counts.

        Raises:
            CheckpointError: there is nothing to go back to, or it cannot be written.
        """
        bad = [one for one in (self.handoff, *self.shares.values()) if handoff_digest(one).hex() == handoff]
        if not bad or bad[0] is None:
            raise CheckpointError("the hand-off that is bad is not the newest one; start a new run")
        if bad[0].turn == 0:
            self.handoff, turn = None, 0
        else:
            totals, board = self.totals, None if self.board is None else self.board.state_dict()
            seconds, (turn, state) = self._earlier_seconds, self._checkpoints.load_before(bad[0].turn)
            self._restore(state)
            self.totals, self._earlier_seconds = replace(totals, rolled_back=totals.rolled_back + 1), seconds
            if self.board is not None and board is not None:
                self.board.load_state_dict(board)
        self._author, self._saved_at = "", turn
        self.save()
        self._checkpoints.drop_after(turn)
        return turn

    def has_gone_home(self, client: str, farewell: Farewell) -> None:
        """A client has the model and will not come again: a server that is started again must not wait for it.

        Raises:
            CheckpointError: it cannot be written.
        """
        self.farewells[client] = farewell
        self._checkpoints.save_farewells({name: asdict(said) for name, said in self.farewells.items()})

    def roll_back(self) -> None:
        """Undoes what the server learnt since the last turn counted."""
        self.server.load_state_dict(self._snapshot["server"])
        self.totals.rolled_back += 1

    def closes_round(self) -> bool:
        """Whether a round has just ended; if so it is kept as the best where it is."""
        if not self.turn_log.round_done or self.turn_log.round == self._closed_round:
            return False
        self._closed_round = self.turn_log.round
        self._keep_best()
        if self._stop_early():
            log.info(
                "ends after round %d: no round was better than %d (early-stop)",
                self.turn_log.round,
                self.best_round,
            )
        return True

    def _stop_early(self) -> bool:
        """Makes this round the last one where too many have passed since the best one, and says whether it did."""
        waited = self._closed_round - self.best_round
        ends = self._early_stop is not None and self.best_round > 0 and waited >= self._early_stop
        ends = ends and self._closed_round < self._rounds
        self.turn_log.rounds = self._closed_round if ends else self._rounds
        return ends

    def _keep_best(self) -> None:
        """Keeps this round if the mean validation metric over the clients is the highest so far.

        Only clients that evaluated in this round count: a mean over old scores would favour whoever was lost.
        """
        evaluated = {
            entry.client
            for entry in self.turn_log.entries
            if entry.round == self.turn_log.round and entry.kind == TurnKind.EVALUATE
        }
        values = []
        for client in sorted(evaluated):
            validation = self.scores.get(client, {}).get("validation", {})
            values += [validation[name] for name in self._best_by if name in validation][:1]
        if not values or sum(values) / len(values) <= self._best_value:
            return
        self.best_round, self._best_value = self.turn_log.round, sum(values) / len(values)
        self.best_scores = {client: dict(self.scores[client]) for client in sorted(evaluated)}
        top = self.server.state_dict()["top"]
        kept = {"round": self.best_round, "top": top, "handoff": _plain(self.handoff)}
        self._checkpoints.save_best(kept)

    def release(self) -> Release:
        """The trained top, of the last round and of the best one where that is another."""
        top = {name: tensor.detach().cpu() for name, tensor in self.server.top.state_dict().items()}
        if self.best_round in (0, self.turn_log.round):
            return Release(top, self.best_round)
        try:
            best = read_checkpoint(self._checkpoints.best)
        except CheckpointError as error:
            log.warning("%s; the clients get the last round's model only", error)
            return Release(top, 0)
        if best["round"] != self.best_round:  # that round was undone since
            return Release(top, 0)
        return Release(top, self.best_round, best["top"], _handoff(best["handoff"]))

    def wall_seconds(self) -> float:
        """Seconds of this run, those before a resume included."""
        return self._earlier_seconds + time.monotonic() - self._begun

    def _state(self) -> dict[str, Any]:
        """Everything that resuming needs; a copy, so that training does not change it."""
        return {
            "format": FORMAT,
            "run": self._run,
            "ledger": self.turn_log.state_dict(),
            "server": self.server.state_dict(),
            "handoff": _plain(self.handoff),
            "shares": {client: _plain(share) for client, share in self.shares.items()},
            "scores": dict(self.scores),
            "train_loss": dict(self.train_loss),
            "best": [self.best_round, self._best_value],
            "best_scores": dict(self.best_scores),
            "closed_round": self._closed_round,
            "board": None if self.board is None else self.board.state_dict(),
            "totals": asdict(self.totals),
            "wall_seconds": self.wall_seconds(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._snapshot = state
        self.turn_log.load_state_dict(state["ledger"])
        self.server.load_state_dict(state["server"])
        self.handoff = _handoff(state["handoff"])
        self.shares = {client: _sealed(share) for client, share in state["shares"].items()}
        self.scores, self.train_loss = dict(state["scores"]), dict(state["train_loss"])
        self.best_round, self._best_value = state["best"]
        self.best_scores = dict(state.get("best_scores", {}))
        self._closed_round = state["closed_round"]
        self._stop_early()
        if self.board is not None and state["board"] is not None:
            self.board.load_state_dict(state["board"])
        self.totals = Totals(**state["totals"])
        self._earlier_seconds = state["wall_seconds"]

    def _write_turns(self) -> None:
        path = self._run_dir / "turns.jsonl"
        with writing(path):
            write_atomically(path, self.turn_log.lines())


def _plain(handoff: SealedHandoff | None) -> dict[str, Any] | None:
    """``handoff`` in types that ``weights_only`` loading takes; it refuses empty bytes, so they go as hex."""
    if handoff is None:
        return None
    return {
        "turn": handoff.turn,
        "previous": handoff.previous.hex(),
        "nonce": handoff.nonce.hex(),
        "ciphertext": handoff.ciphertext,
        "epoch": handoff.epoch,
        "statement": None if handoff.statement is None else list(astuple(handoff.statement)),
    }


def _handoff(state: dict[str, Any] | None) -> SealedHandoff | None:
    return None if state is None else _sealed(state)


def _sealed(state: dict[str, Any]) -> SealedHandoff:
    previous, nonce = bytes.fromhex(state["previous"]), bytes.fromhex(state["nonce"])
    statement = None if state["statement"] is None else Statement(*state["statement"])
    return SealedHandoff(state["turn"], previous, nonce, state["ciphertext"], state["epoch"], statement)


def _farewell(state: dict[str, Any]) -> Farewell:
    head = None if state["head"] is None else Statement(**state["head"])
    return Farewell(**(state | {"head": head}))
