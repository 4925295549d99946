"""A client's side of the hand-off chain: what it seals, opens and remembers, and how it takes a turn back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from suture.runtime.client.model import ClientModel
from suture.runtime.client.own_norms import NORMS
from suture.runtime.client.pass_count import count_pass
from suture.runtime.consortium.site import SiteConsortium
from suture.runtime.errors import ConfigError, HandoffError, WireError
from suture.runtime.scheduler import Turn
from suture.runtime.state.averaging import Mean
from suture.runtime.state.handoff import SHARE, HandoffSeal, model_digest, part_digest
from suture.runtime.state.rollback_guard import RollbackGuard
from suture.runtime.training.optim import moments, moments_like
from suture.runtime.wire.checks import check_release, check_weights, tensors_of
from suture.runtime.wire.messages import Hello, Release, SealedHandoff, Share


class Client:
    """One hospital. Built in its own process; refuses to be pickled.

    Args:
        model: what it trains and hands on.
        key: the clients' hand-off key; empty where a consortium has one for every epoch.
        consortium: whom it signs for and believes, between hospitals.
    """

    def __init__(self, model: ClientModel, key: bytes, consortium: SiteConsortium | None = None) -> None:
        self.model = model
        self.consortium = consortium
        self._key = key
        self.round = 0
        self._newest: SealedHandoff | None = None
        self._before: dict[str, Any] | None = None
        self._changed = False
        self._norms: dict[str, str] = {}
        self._run = ""

    @property
    def name(self) -> str:
        """The member's name."""
        return self.model.name

    # Joining and hand-off ------------------------------------------------------------------------

    def hello(self, agreement: Mapping[str, str]) -> Hello:
        """The first message: who this is and which options it was started with."""
        config, data = self.model.config, self.model.data
        weights = config.class_weights if config.labels_shared else None
        return Hello(
            client=self.name,
            agreement=dict(agreement),
            num_images=len(data.share.train),
            num_batches=data.num_train_batches(config.batch_size),
            class_weights=None if weights is None else torch.tensor(weights),
        )

    def join(self, run: str) -> None:
        """Binds this client to a run: only that run's hand-offs open. Joining it again changes nothing.

        Raises:
            ConfigError: it has joined another run before.
        """
        if self._run not in ("", run):
            raise ConfigError(
                f"{self.name}: the server has begun another run in the meantime; start this client again to join it"
            )
        self._run = run
        self._memory = RollbackGuard(self.model.config.memory, self.name, run)
        if self.consortium is not None:
            self.consortium.join(run, self._memory)
        newest, digest = self._memory.recall()
        accepted = self.model.config.accept_rollback
        if accepted is not None and accepted <= newest:
            newest, digest = accepted, b""
        self._seal = HandoffSeal(self._key, run, newest, digest, self.consortium)

    def holds(self, turn: int) -> bool:
        """Whether this client's parts are those that ``turn`` left (turn 0: the initial ones)."""
        return not self._changed and self.knows(turn)

    @property
    def newest(self) -> SealedHandoff | None:
        """The newest hand-off that this client has sealed or opened."""
        return self._newest

    def knows(self, turn: int) -> bool:
        """Whether the newest hand-off that this client has seen is ``turn``'s, of the epoch that now is."""
        if self.consortium is None:
            return turn == (0 if self._newest is None else self._newest.turn)
        newest = self._newest
        return newest is not None and (newest.turn, newest.epoch) == (turn, self.consortium.epoch)

    def begin(self, turn: Turn) -> None:
        """A training turn begins, which `undo` may take back.

        What the turn starts from is remembered where it cannot be fetched from the server (the initial parts), or where
        the turn is likelier to be undone, for others train in it, too.

        Raises:
            PolicyError: see `count_pass`.
            WireError: this client has no training images.
        """
        self._check_trains("train")
        self._passes(turn)
        remembers = turn.together or self._newest is None
        self._before = copy.deepcopy(self.state()) if remembers else None
        self._changed = True

    def _check_trains(self, what: str) -> None:
        """
        Raises:
            WireError: this client has no training images.
        """
        if not self.model.data.share.train:
            raise WireError(f"server: it asks {self.name}, which only evaluates, to {what}; refused")

    def begin_evaluation(self, turn: Turn) -> None:
        """An evaluation begins; raises as `begin`."""
        self._passes(turn)

    def _passes(self, turn: Turn) -> None:
        self.round = turn.round
        count_pass(turn, self.model.config, self._memory)

    def undo(self) -> None:
        """The turn never happened, even if this client had sealed its share. Parts that are not remembered are fetched
        with the next turn: `holds` says so.
        """
        if self.consortium is not None:
            self.consortium.forget_share()
        if self._before is not None:
            self._take_up(self._before)
            self._changed = False
        self._before = None

    def seal(self, turn: Turn) -> SealedHandoff:
        """Seals the parts and their optimizer after ``turn``; as a share of a mean where others train in it too.

        Raises:
            DivergedError: a weight is not finite; names client and round.
        """
        parts = [part.state_dict() for part in self.model.parts.values()]
        check_weights(tensors_of([parts, self.state()]), self.name, f"round {turn.round}")
        own = self.model.own_norms
        if own.is_local:
            self._norms = self._norms | {self.name: own.keep()}
        if not turn.together:
            return self._seal.seal(self.state(), turn.number, self._newest)
        share = {"state": self.state(), "num_images": self.model.num_trained}
        return self._seal.seal(share, turn.number, self._newest, sharer=self.name)

    def average(self, turn: Turn, shares: Iterable[Share]) -> SealedHandoff:
        """Takes up the mean of what the clients of the last turn sealed, weighted by images, and seals it.

        Raises:
            HandoffError: a share does not open, comes twice, or there is none.
        """
        self._check_trains("average what others trained")
        mean, sharers, sealed, norms = Mean(), set[str](), list[SealedHandoff](), dict(self._norms)
        for share in shares:
            if share.client in sharers:
                raise HandoffError(f"the server offered the share of {share.client} twice")
            sharers.add(share.client)
            expected = {"state": self.state_like(), "num_images": 1}
            opened = self._seal.open_share(share, turn.number - 1, self._newest, expected)
            norms |= _named(opened["state"].pop(NORMS, {}), share.client)
            mean.add(opened["state"], opened["num_images"])
            sealed.append(share.sealed)
        if not sharers:
            raise HandoffError(f"{self.name}: the server promised clients' shares and sent none")
        self._changed = True
        self._take_up(mean.value() | {NORMS: norms})
        return self._seal.seal(self.state(), turn.number, self._newest, shares=sealed)

    def committed(self, handoff: SealedHandoff, together: bool = False) -> None:
        """The server has taken it: from now on nothing older is accepted; a share is on nobody's way yet."""
        if together:
            return
        self._seal.saw(handoff)
        self._has(handoff)

    def open(self, handoff: SealedHandoff | None) -> None:
        """Takes up the parts that another client left.

        Raises:
            HandoffError: there is none although one was promised, it does not open, or it is too old.
        """
        if handoff is None:
            raise HandoffError(f"{self.name}: the server promised a hand-off and sent none")
        self._take_up(self._seal.open(handoff, self.state_like()))
        self._has(handoff)

    def begin_epoch(self, handoff: SealedHandoff | None) -> SealedHandoff:
        """Seals the newest parts under the key of the consortium's new epoch: those in ``handoff``, or where there is
        none yet the initial ones, which are then everybody's.

        Raises:
            HandoffError: see `open`.
        """
        if handoff is None:
            if self._seal.newest:
                raise HandoffError(
                    f"the server says that there is no hand-off yet, but this client has seen that of turn "
                    f"{self._seal.newest}; ask its operator"
                )
            check_weights(tensors_of(self.state()), self.name, "the initial parts")
            return self._seal.seal(self.state(), 0, None)
        state = self._seal.open(handoff, self.state_like())
        self._take_up(state)
        return self._seal.seal(state, handoff.turn, None, replaces=handoff)

    def began_epoch(self, handoff: SealedHandoff) -> None:
        """The server has taken what `begin_epoch` sealed."""
        self._seal.saw(handoff)
        self._has(handoff)

    def examine(self, accused: Share) -> str:
        """Why a hand-off or share that another site accuses is bad, empty where not; see `HandoffSeal.examine`."""
        shared = accused.sealed.statement is not None and accused.sealed.statement.kind == SHARE
        like = self.state_like()
        return self._seal.examine(accused, {"state": like, "num_images": 1} if shared else like)

    def _has(self, handoff: SealedHandoff) -> None:
        self._newest, self._before, self._changed = handoff, None, False
        self._memory.keep(self._seal.newest, self._seal.digest)

    def _take_up(self, state: Mapping[str, Any]) -> None:
        norms = dict(state.get(NORMS, {}))
        self.model.own_norms.take_up(state["parts"], state["optimizer"], norms.get(self.name))
        self._norms = norms
        self.model.defence.load_state_dict(state["defence"])

    def peek(self, handoff: SealedHandoff) -> dict[str, dict[str, Tensor]]:
        """The parts' state dicts in ``handoff``, without taking them up (the best round's, at the end)."""
        seal = HandoffSeal(self._key, self._run, signer=self.consortium)
        state = seal.open(handoff, self.state_like())
        return self.model.own_norms.whole(state["parts"], state.get(NORMS, {}).get(self.name))

    def state(self) -> dict[str, Any]:
        """What a hand-off holds: the parts, their optimizer's moments, the defence; of norms that are each client's own
        only their names.
        """
        own = self.model.own_norms
        return {
            "parts": self._shared_parts(),
            "optimizer": own.shared_moments(moments(self.model.optimizer)),
            "defence": self.model.defence.state_dict(),
        } | ({NORMS: self._norms} if own.is_local else {})

    def state_like(self) -> dict[str, Any]:
        """What another client's `state` looks like."""
        own = self.model.own_norms
        return {
            "parts": self._shared_parts(),
            "optimizer": own.shared_moments(moments_like(self.model.optimizer)),
            "defence": self.model.defence.state_like(),
        } | own.like()

    def _shared_parts(self) -> dict[str, dict[str, Tensor]]:
        return self.model.own_norms.shared(
            {name: part.state_dict() for name, part in self.model.parts.items()}
        )

    def digests(self) -> dict[str, str]:
        """SHA-256 (hex) of what clients share of each part."""
        return {name: part_digest(state) for name, state in self._shared_parts().items()}

    # The end -------------------------------------------------------------------------------------

    def check_release(self, release: Release) -> Release:
        """Returns what the server hands out at the end, if it is a top of this run's; see `checks.check_release`."""
        return check_release(release, self.model.top_like, "server")

    def model_digest(self, parts: Mapping[str, Mapping[str, Tensor]]) -> str:
        """``weights_sha256`` of a whole model: of what clients share of it."""
        return model_digest(self.model.own_norms.shared(parts))

    def whole_model(self, release: Release, best: bool) -> dict[str, dict[str, Tensor]]:
        """State dicts by part of the released model, of the last round or of the best one."""
        if best and release.best_top is not None and release.best_handoff is not None:
            return self.peek(release.best_handoff) | {"top": release.best_top}
        parts = {name: dict(part.state_dict()) for name, part in self.model.parts.items()}
        return parts | {"top": release.top}

    def __reduce__(self) -> str:
        raise TypeError("a Client holds images and refuses to be pickled")


def _named(norms: Mapping[str, str], client: str) -> dict[str, str]:
    """What a client says of its own norms; of others' it says nothing that counts."""
    return {client: norms[client]} if client in norms else {}
