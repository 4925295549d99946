"""What every attack on a live run shares: it writes under RUN/attack, counts its cost, and stops on NaN.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from suture.runtime.errors import DataError
from suture.runtime.hooks import Attack, SmashedBatch
from suture.runtime.host.disk import writing
from suture.runtime.state.checkpoint import write_atomically
from suture.threats.attacks.auxiliary import Auxiliary
from suture.threats.attacks.learning import Learning
from suture.threats.attacks.server_view import ServerView

log = logging.getLogger(__name__)
T = TypeVar("T")

LOSSES_FILE, REPORT_FILE, STATE_FILE = "losses.jsonl", "report.json", "attack.pt"
KNOWN_FILE = "known.json"  # training images whose class is handed over: client, batch, row and class of each
NOT_JUDGED = -1  # in place of a guessed class: the attacker knew it
LEAKED_FILE = "leaked.npy"  # the private images that a threat model hands over, x_NCHW uint8
KEPT_TRAIN_BATCHES = 4  # reconstructed training batches a turn: enough to judge in-training leakage


class NotFiniteError(Exception):
    """A net of the attack left the finite numbers; never leaves this package."""


class LiveAttack(Attack):
    """Base of all attacks on a run.

    A subclass overrides the doors with a leading underscore. It never relies on ``.grad`` from the protocol's
    backward, and draws from generators of its own, so that training's draws are those of an honest run.

    Args:
        server_view: where it stands.
        auxiliary: the images it owns; None where it comes to own them only during the run.
    """

    def __init__(self, server_view: ServerView, auxiliary: Auxiliary | None) -> None:
        if auxiliary is not None:
            auxiliary.check_shape(server_view.image_shape)
        self.server_view = server_view
        self._auxiliary = auxiliary
        self.stopped = ""  # why it stopped, empty while it runs
        self.learning = Learning()
        self.steps = 0
        self.cpu_seconds = 0.0
        digest = hashlib.sha256(f"{type(self).__name__}/{server_view.seed}".encode()).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        self.evidence: dict[int, dict[str, float]] = {}
        self._net_seed = int.from_bytes(digest[8:16], "big") >> 1
        if server_view.folder is not None:
            server_view.folder.mkdir(parents=True, exist_ok=True)

    # Doors ---------------------------------------------------------------------------------------

    def observe(self, batch: SmashedBatch) -> None:
        self._guarded(lambda: self._observe(batch), None)

    def loss(self, batch: SmashedBatch, task_loss: Tensor) -> Tensor:
        return self._guarded(lambda: self._loss(batch, task_loss), task_loss)

    def gradient(self, batch: SmashedBatch, grad: Tensor) -> Tensor:
        return self._guarded(lambda: self._gradient(batch, grad), grad)

    def received(self, batch: SmashedBatch, gradient: Tensor) -> None:
        self._guarded(lambda: self._received(batch, gradient), None)

    def finish(self) -> None:
        """After the last turn: what a passive attack trains now; then nets and report are written."""
        self._guarded(self._finish, None)
        if self.learning.ended == "still learning":
            log.warning(
                "%s was still learning when its budget ended (%s): its figures are no bound; give it more",
                type(self).__name__,
                self.learning.budget,
            )
        self.write()

    def _observe(self, batch: SmashedBatch) -> None:
        """See `Attack.observe`."""

    def _loss(self, batch: SmashedBatch, task_loss: Tensor) -> Tensor:
        """See `Attack.loss`."""
        return task_loss

    def _gradient(self, batch: SmashedBatch, grad: Tensor) -> Tensor:
        """See `Attack.gradient`."""
        return grad

    def _received(self, batch: SmashedBatch, gradient: Tensor) -> None:
        """See `Attack.received`."""

    def _finish(self) -> None:
        """See `finish`."""

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "stopped": self.stopped,
            "steps": self.steps,
            "cpu_seconds": self.cpu_seconds,
            "generator": self.generator.get_state(),
            "evidence": {round: dict(values) for round, values in self.evidence.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stopped, self.steps = state["stopped"], state["steps"]
        # What a rolled-back turn cost was spent all the same.
        self.cpu_seconds = max(self.cpu_seconds, state["cpu_seconds"])
        self.generator.set_state(state["generator"])
        self.evidence = {round: dict(values) for round, values in state["evidence"].items()}

    @property
    def auxiliary(self) -> Auxiliary:
        """The images it owns.

        Raises:
            DataError: it has none yet.
        """
        if self._auxiliary is None:
            raise DataError(f"{type(self).__name__} has no auxiliary images yet")
        return self._auxiliary

    def chosen_round(self) -> int:
        """The round that the attacker holds for its best, by evidence of its own; 0 without evidence."""
        means = {round: sum(v.values()) / len(v) for round, v in self.evidence.items() if v}
        return min(means, key=lambda round: means[round]) if means else 0

    def report(self) -> dict[str, Any]:
        """What the attacker itself knows of its attack, as plain values."""
        owned = self._auxiliary
        return {
            "spec": self.server_view.spec,
            "threat_model": self.threat_model,
            "knows": sorted(self.knows),
            "auxiliary": {} if owned is None else {"images": len(owned), "origin": owned.origin},
            "stopped": self.stopped,
            "steps": self.steps,
            "learning": self.learning.summary(),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "chosen_round": self.chosen_round(),
        }

    def write(self) -> None:
        """Leaves nets and report under RUN/attack, where the judge finds them."""
        folder = self.server_view.folder
        if folder is not None:
            state = io.BytesIO()
            torch.save(self.state_dict(), state)
            with writing():
                write_atomically(folder / STATE_FILE, state.getbuffer())
                write_atomically(folder / REPORT_FILE, (json.dumps(self.report(), indent=2) + "\n").encode())

    # For subclasses ------------------------------------------------------------------------------

    def build_nets(self, build: Callable[[], T]) -> T:
        """Runs ``build`` with the attack's own seed; torch's default generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._net_seed)
            return build()

    def auxiliary_batch(self, size: int) -> tuple[Tensor, Tensor | None]:
        """``size`` auxiliary images in [-1, 1] and their labels, drawn with the attack's generator."""
        rows = torch.randint(len(self.auxiliary), (size,), generator=self.generator)
        labels = self.auxiliary.labels
        images = self.auxiliary.unit(rows).mul_(2).sub_(1).to(self.server_view.device)
        return images, None if labels is None else labels[rows].to(self.server_view.device)

    def guesses_path(self, round: int, client: str, batch: int) -> Path | None:
        """Where the guessed classes of a training batch go, in a folder that is there; None to write nothing."""
        if self.server_view.folder is None:
            return None
        path = reconstruction_path(self.server_view.folder, round, client, "train", batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def keep(self, batch: SmashedBatch, guesses: Tensor) -> None:
        """Writes guesses (N, ...) for ``batch`` under RUN/attack."""
        if self.server_view.folder is None or (batch.phase == "train" and batch.batch >= KEPT_TRAIN_BATCHES):
            return
        path = reconstruction_path(
            self.server_view.folder, batch.round, batch.client, batch.phase, batch.batch
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, guesses.cpu().numpy())

    def record(self, **losses: float) -> None:
        """One line of RUN/attack/losses.jsonl.

        Raises:
            NotFiniteError: a loss is NaN or infinite.
        """
        bad = [name for name, value in losses.items() if value != value or abs(value) == float("inf")]
        if bad:
            raise NotFiniteError(f"{', '.join(bad)} is not finite at its step {self.steps}")
        if self.server_view.folder is not None:
            with (self.server_view.folder / LOSSES_FILE).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"step": self.steps} | losses) + "\n")

    def _guarded(self, act: Callable[[], T], honest: T) -> T:
        if self.stopped:
            return honest
        started = time.process_time()
        try:
            with writing():
                return act()
        except NotFiniteError as error:
            self.stopped = str(error)
            log.error("%s stopped: %s; training goes on with an honest server", type(self).__name__, error)
            return honest
        finally:
            self.cpu_seconds += time.process_time() - started


class ReconstructionAttack(LiveAttack):
    """Base of the attacks that turn smashed data into images (or a property)."""

    @abstractmethod
    def reconstruct(self, smashed: Tensor) -> Tensor:
        """The attack's guess: h_ND to x_NCHW in [0, 1]; no gradients."""

    def keep_reconstruction(self, batch: SmashedBatch) -> None:
        """Writes the guess for ``batch``, named by its place: a repeated turn writes over what it left."""
        if self.server_view.folder is not None and (
            batch.phase != "train" or batch.batch < KEPT_TRAIN_BATCHES
        ):
            self.keep(batch, self.reconstruct(batch.smashed).mul(255).round().clamp(0, 255).to(torch.uint8))


def reconstruction_path(folder: Path, round: int, client: str, phase: str, batch: int) -> Path:
    """Where the guess for one batch lies: uint8 (N, C, H, W), numpy's format."""
    return folder / f"round_{round:04d}" / f"{client}-{phase}-{batch:05d}.npy"
