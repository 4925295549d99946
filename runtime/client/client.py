"""The client's half of a step: bottom and head, their optimizer, the doors of a defence and a detector.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suture.models.split import SplitModel
from suture.runtime.client.evaluation import Predict, Seen, evaluate, unseen
from suture.runtime.client.rollback_guard import RollbackGuard
from suture.runtime.client.step import ClientStep, TopCall
from suture.runtime.consortium.site import SiteConsortium
from suture.runtime.data.client_data import Batch, ClientData
from suture.runtime.errors import ConfigError, HandoffError, PolicyError, WireError
from suture.runtime.hooks import Defence, Detector
from suture.runtime.records.step_timer import NoStepTimer, StepTimer
from suture.runtime.scheduler import Turn
from suture.runtime.state.averaging import Mean
from suture.runtime.state.handoff import SHARE, HandoffSeal, part_digest
from suture.runtime.training.metrics import build_criterion
from suture.runtime.training.optim import OptimizerConfig, moments, moments_like, step_with, take_moments
from suture.runtime.training.randomness import Randomness
from suture.runtime.wire.checks import TensorSpec, check_release, check_weights, tensors_of
from suture.runtime.wire.compression import Packer
from suture.runtime.wire.messages import Hello, Release, SealedHandoff, Share

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """How a client trains.

    Attributes:
        name: the member's name (letters, digits, underscore).
        labels_shared: labels go up and the loss is the server's; else both stay here, and so does the head.
        batch_size: images a step.
        optimizer: for bottom and head.
        class_weights: weights_K of the loss, None for equal ones.
        accept_rollback: a turn number older than the newest this client knows that it may go back to.
        memory: this client's own folder, which no server names, where it remembers the newest hand-off it has seen
            of each run; None to remember it for the length of the process only.
        on_alarm: what a detector's alarm leads to: "log", or "stop", leave before sending more.
        wire: the format in which tensors cross, see ``compression``.
        overlap: whether a batch goes down while the one before it is away, with weights one step old.
        offered_from: lab mode: the round from which an attacker's own images are passed through the bottom.
        tested_from: the round from which test images are scored; the last one, where only the end's scores are wanted.
        rounds: between hospitals, how many there are: a site trains in no later one; None where nobody counts.
        repeats: between hospitals, how often one round's pass may be asked for again, after a rollback or a crash;
            None where nobody counts.
    """

    name: str
    labels_shared: bool
    batch_size: int
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    class_weights: tuple[float, ...] | None = None
    accept_rollback: int | None = None
    memory: Path | None = None
    on_alarm: str = "log"
    wire: str = "fp32"
    overlap: bool = False
    offered_from: int = 1
    tested_from: int = 1
    rounds: int | None = None
    repeats: int | None = None


class Client:
    """One hospital. Built in its own process; refuses to be pickled.

    Args:
        split: the whole net's parts, of which the client keeps bottom and head.
        data: its images.
        config: how it trains.
        key: the clients' hand-off key; empty where a consortium has one for every epoch.
        randomness: derived from that key; between hospitals from the site's own secret.
        consortium: whom it signs for and believes, between hospitals.
        output: what the top's output must look like where labels are at home; its shape elsewhere.
        defence: what it does to what it sends.
        detector: what watches the gradient that comes home.
        device: where bottom and head compute; tensors cross the wire on the CPU.
    """

    def __init__(
        self,
        split: SplitModel,
        data: ClientData,
        config: ClientConfig,
        *,
        key: bytes,
        randomness: Randomness,
        output: TensorSpec,
        defence: Defence | None = None,
        detector: Detector | None = None,
        consortium: SiteConsortium | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.data = data
        self.device = torch.device(device)
        self.bottom = split.bottom.to(self.device)
        self.head = None if split.head is None else split.head.to(self.device)
        self.defence = Defence() if defence is None else defence
        self.detector = Detector() if detector is None else detector
        self.randomness = randomness
        self.consortium = consortium
        self.packer = Packer(config.wire, randomness)
        self.step_timer: StepTimer = NoStepTimer()
        self.output = output
        state = split.top.state_dict()
        self._top = {name: TensorSpec(tuple(t.shape), t.dtype, 0) for name, t in state.items()}
        self._key = key
        self._parts: dict[str, nn.Module] = {"bottom": self.bottom}
        if self.head is not None:
            self._parts["head"] = self.head
        self.optimizer = config.optimizer.build(p for part in self._parts.values() for p in part.parameters())
        weights = None if config.class_weights is None else torch.tensor(config.class_weights)
        self.criterion = build_criterion(data.task, weights).to(self.device)
        self.learns = True
        self.round = 0
        self._seal: HandoffSeal | None = None
        self._newest: SealedHandoff | None = None
        self._before: dict[str, Any] | None = None
        self._changed = False
        self._run = ""

    @property
    def name(self) -> str:
        """The member's name."""
        return self.config.name

    # Joining and hand-off ------------------------------------------------------------------------

    def hello(self, agreement: Mapping[str, str]) -> Hello:
        """The first message: who this is and which options it was started with."""
        weights = self.config.class_weights if self.config.labels_shared else None
        return Hello(
            client=self.name,
            agreement=dict(agreement),
            num_images=len(self.data.share.train),
            num_batches=self.data.num_train_batches(self.config.batch_size),
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
        self._memory = RollbackGuard(self.config.memory, self.name, run)
        if self.consortium is not None:
            self.consortium.join(run, self._memory)
        newest, digest = self._memory.recall()
        accepted = self.config.accept_rollback
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
        """
        self._check_trains("train")
        self._count_pass(turn)
        remembers = turn.together or self._newest is None
        self._before = copy.deepcopy(self.state()) if remembers else None
        self._changed = True

    def _check_trains(self, what: str) -> None:
        """
        Raises:
            WireError: this client has no training images.
        """
        if not self.data.share.train:
            raise WireError(f"server: it asks {self.name}, which only evaluates, to {what}; refused")

    def begin_evaluation(self, turn: Turn) -> None:
        """An evaluation begins; raises as `begin`."""
        self._count_pass(turn)

    def _count_pass(self, turn: Turn) -> None:
        """Counts a pass over this client's images before anything of it is sent.

        Raises:
            PolicyError: it has released this round's too often, or there is no such round.
        """
        config, self.round = self.config, turn.round
        if config.rounds is not None and not 1 <= turn.round <= config.rounds:
            raise PolicyError(
                f"policy epochs: the server asks for round {turn.round} of {config.rounds}; nothing of it was sent"
            )
        if config.repeats is None:
            return
        passes = dict(self._memory.recall_extra("passes", {}))
        place = f"{turn.kind} {turn.round}"
        passes[place] = passes.get(place, 0) + 1
        if passes[place] > 1 + config.repeats:
            raise PolicyError(
                f"policy repeats: the server asks for round {turn.round} ({turn.kind}) again, {passes[place]} times "
                f"in all, at most {1 + config.repeats} are allowed; nothing of it was sent: ask its operator why turns "
                "are rolled back"
            )
        if passes[place] > 1:
            log.warning(
                "round %d (%s) is passed again, %d times in all", turn.round, turn.kind, passes[place]
            )
        self._memory.keep_extra("passes", passes)

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
        assert self._seal is not None
        check_weights(tensors_of(self.state()), self.name, f"round {turn.round}")
        if not turn.together:
            return self._seal.seal(self.state(), turn.number, self._newest)
        share = {"state": self.state(), "num_images": self.num_trained}
        return self._seal.seal(share, turn.number, self._newest, sharer=self.name)

    def average(self, turn: Turn, shares: Iterable[Share]) -> SealedHandoff:
        """Takes up the mean of what the clients of the last turn sealed, weighted by images, and seals it.

        Raises:
            HandoffError: a share does not open, comes twice, or there is none.
        """
        assert self._seal is not None
        self._check_trains("average what others trained")
        mean, sharers, sealed = Mean(), set[str](), list[SealedHandoff]()
        for share in shares:
            if share.client in sharers:
                raise HandoffError(f"the server offered the share of {share.client} twice")
            sharers.add(share.client)
            expected = {"state": self.state_like(), "num_images": 1}
            opened = self._seal.open_share(share, turn.number - 1, self._newest, expected)
            mean.add(opened["state"], opened["num_images"])
            sealed.append(share.sealed)
        if not sharers:
            raise HandoffError(f"{self.name}: the server promised clients' shares and sent none")
        self._changed = True
        self._take_up(mean.value())
        return self._seal.seal(self.state(), turn.number, self._newest, shares=sealed)

    def committed(self, handoff: SealedHandoff, together: bool = False) -> None:
        """The server has taken it: from now on nothing older is accepted; a share is on nobody's way yet."""
        assert self._seal is not None
        if together:
            return
        self._seal.saw(handoff)
        self._has(handoff)

    def open(self, handoff: SealedHandoff | None) -> None:
        """Takes up the parts that another client left.

        Raises:
            HandoffError: there is none although one was promised, it does not open, or it is too old.
        """
        assert self._seal is not None
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
        assert self._seal is not None
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
        assert self._seal is not None
        self._seal.saw(handoff)
        self._has(handoff)

    def examine(self, accused: Share) -> str:
        """Why a hand-off or share that another site accuses is bad, empty where not; see `HandoffSeal.examine`."""
        assert self._seal is not None
        shared = accused.sealed.statement is not None and accused.sealed.statement.kind == SHARE
        like = self.state_like()
        return self._seal.examine(accused, {"state": like, "num_images": 1} if shared else like)

    def _has(self, handoff: SealedHandoff) -> None:
        assert self._seal is not None
        self._newest, self._before, self._changed = handoff, None, False
        self._memory.keep(self._seal.newest, self._seal.digest)

    def _take_up(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        take_moments(self.optimizer, state["optimizer"])
        self.defence.load_state_dict(state["defence"])

    def peek(self, handoff: SealedHandoff) -> dict[str, dict[str, Tensor]]:
        """The parts' state dicts in ``handoff``, without taking them up (the best round's, at the end)."""
        assert self._seal is not None
        seal = HandoffSeal(self._key, self._run, signer=self.consortium)
        parts: dict[str, dict[str, Tensor]] = seal.open(handoff, self.state_like())["parts"]
        return parts

    def state(self) -> dict[str, Any]:
        """What a hand-off holds: the parts, their optimizer's moments, the defence."""
        return {
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "optimizer": moments(self.optimizer),
            "defence": self.defence.state_dict(),
        }

    def state_like(self) -> dict[str, Any]:
        """What another client's `state` looks like."""
        return {
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "optimizer": moments_like(self.optimizer),
            "defence": self.defence.state_like(),
        }

    def digests(self) -> dict[str, str]:
        """SHA-256 (hex) of each part's state."""
        return {name: part_digest(part.state_dict()) for name, part in self._parts.items()}

    @property
    def num_trained(self) -> int:
        """Images of one turn, which its share of a mean counts for; a single last one sits out."""
        size = self.config.batch_size
        return min(len(self.data.share.train), size * self.data.num_train_batches(size))

    # One turn ------------------------------------------------------------------------------------

    def batches(self, turn: Turn) -> Iterator[Batch]:
        """The turn's training batches: order and augmentation follow from the key, round and client alone."""
        place = (turn.round, self.name)
        generator = self.randomness.generator
        batches = self.data.train_batches(
            self.config.batch_size,
            generator("order", *place),
            lambda batch: generator("augment", *place, batch),
        )
        return self.step_timer.loading(batches)

    def forward(self, turn: Turn, batch: Batch, top: TopCall) -> tuple[Tensor, float]:
        """One training batch in one graph with the top; see `ClientStep.whole`."""
        step = ClientStep(self, turn, batch)
        self.learns = step.learns
        return step.whole(top)

    def train_mode(self) -> None:
        """Bottom and head as they train."""
        for part in self._parts.values():
            part.train()

    def unpack_output(self, payload: Any) -> Any:
        """What the server answered with, decoded; a step and `evaluate` check the rest.

        Raises:
            WireError: it is not in the agreed format.
        """
        return self.packer.unpack(payload, self.output, "server", "output")

    @property
    def is_watching(self) -> bool:
        """Whether this client has a detector."""
        return type(self.detector) is not Detector

    def fake_labels(self, turn: Turn, batch: Batch) -> Tensor | None:
        """Wrong labels that the detector sends in place of the batch's own, None for an honest batch."""
        if not self.is_watching or not self.config.labels_shared:
            return None
        num_before = (turn.round - 1) * self.data.num_train_batches(self.config.batch_size) + batch.number
        generator = self.randomness.generator("fake batch", turn.round, self.name, batch.number)
        return self.detector.fake_labels(batch.targets, num_before, generator)

    def step(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Steps the optimizer of bottom and head with the gradients of one backward, then the defence's own.

        After a detector's fake batch the client throws the gradients away; its batch norms have seen true images.
        """
        if not self.learns:
            return
        with self.step_timer.part("optimizer"):
            step_with(self.optimizer, gradients)
            self.defence.step()

    def parameters(self) -> list[nn.Parameter]:
        """All parameters that this client steps."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def evaluate(self, predict: Predict, round: int, seen: Seen = unseen) -> dict[str, dict[str, float]]:
        """Scores the model that this client holds; see `evaluation.evaluate`."""
        return evaluate(self, predict, round, seen)

    def eval_mode(self) -> None:
        """Bottom and head as they are used."""
        for part in self._parts.values():
            part.eval()

    def check_release(self, release: Release) -> Release:
        """Returns what the server hands out at the end, if it is a top of this run's; see `checks.check_release`."""
        return check_release(release, self._top, "server")

    def whole_model(self, release: Release, best: bool) -> dict[str, dict[str, Tensor]]:
        """State dicts by part of the released model, of the last round or of the best one."""
        if best and release.best_top is not None and release.best_handoff is not None:
            return self.peek(release.best_handoff) | {"top": release.best_top}
        parts = {name: dict(part.state_dict()) for name, part in self._parts.items()}
        return parts | {"top": release.top}

    def __reduce__(self) -> str:
        raise TypeError("a Client holds images and refuses to be pickled")
