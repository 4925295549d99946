"""The client's part of the model and how it trains: bottom and head, their optimizer, the doors of a defence and a
detector.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suture.models.freezing import train_mode
from suture.models.norms import LOCAL, SHARED
from suture.models.split import SplitModel
from suture.runtime.client.own_norms import OwnNorms
from suture.runtime.data.client_data import Batch, ClientData
from suture.runtime.hooks import Defence, Detector
from suture.runtime.randomness import Randomness
from suture.runtime.records.step_timer import NoStepTimer, StepTimer
from suture.runtime.scheduler import Turn
from suture.runtime.training.objectives import build_criterion
from suture.runtime.training.optim import OptimizerConfig
from suture.runtime.wire.checks import TensorSpec
from suture.runtime.wire.compression import Packer


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """How a client trains.

    Attributes:
        name: the member's name (letters, digits, underscore).
        labels_shared: labels go up and the loss is the server's; else both stay here, and so does the head.
        batch_size: images a step.
        optimizer: for bottom and head.
        class_weights: weights_K of the loss, None for equal ones.
        label_smoothing: of the loss where it is computed here.
        prox: how strongly bottom and head are pulled to what they were when the turn began (mu of FedProx: Li et al.,
            MLSys 2020, arXiv:1812.06127); 0 for not at all.
        accept_rollback: a turn number older than the newest this client knows that it may go back to.
        memory: this client's own folder, which no server names, where it remembers the newest hand-off it has seen
            of each run; None to remember it for the length of the process only.
        on_alarm: what a detector's alarm leads to: "log", or "stop", leave before sending more.
        wire: the format in which tensors cross, see ``compression``.
        overlap: whether a batch goes down while the one before it is away, with weights one step old.
        offered_from: lab mode: the round from which an attacker's own images are passed through the bottom.
        tested_from: the round from which test images are scored; the last one, where only the end's scores are wanted.
        rounds: between hospitals, how many there are: a site trains in no later one; None where nobody counts.
        norms: "shared", or "local": each client keeps the batch norms of its parts to itself, see ``own_norms``.
        norms_folder: this client's own, where it keeps them; None to keep them for the length of the process only.
        repeats: between hospitals, how often one round's pass may be asked for again, after a rollback or a crash;
            None where nobody counts.
    """

    name: str
    labels_shared: bool
    batch_size: int
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    prox: float = 0.0
    accept_rollback: int | None = None
    memory: Path | None = None
    on_alarm: str = "log"
    wire: str = "fp32"
    overlap: bool = False
    offered_from: int = 1
    tested_from: int = 1
    norms: str = SHARED
    norms_folder: Path | None = None
    rounds: int | None = None
    repeats: int | None = None


class ClientModel:
    """What a training step and an evaluation need at a client. What is sent to other clients is `Client`'s.

    Args:
        split: the whole net's parts, of which the client keeps bottom and head.
        data: its images.
        config: how it trains.
        randomness: between hospitals from the site's own secret; else derived from the clients' key.
        output: what the top's output must look like where labels are at home; its shape elsewhere.
        defence: what it does to what it sends.
        detector: what watches the gradient that comes home.
        device: where bottom and head compute; tensors cross the wire on the CPU.

    Attributes:
        name: the member's.
        parts: bottom and head by name.
        own_norms: what of them is handed to nobody.
        top_like: what the top that the server hands out at the end must look like.
    """

    def __init__(
        self,
        split: SplitModel,
        data: ClientData,
        config: ClientConfig,
        *,
        randomness: Randomness,
        output: TensorSpec,
        defence: Defence | None = None,
        detector: Detector | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = config.name
        self.config = config
        self.data = data
        self.device = torch.device(device)
        self.bottom = split.bottom.to(self.device)
        self.head = None if split.head is None else split.head.to(self.device)
        self.defence = Defence() if defence is None else defence
        self.detector = Detector() if detector is None else detector
        self.randomness = randomness
        self.packer = Packer(config.wire, randomness)
        self.step_timer: StepTimer = NoStepTimer()
        self.output = output
        state = split.top.state_dict()
        self.top_like = {name: TensorSpec(tuple(t.shape), t.dtype, 0) for name, t in state.items()}
        self.parts: dict[str, nn.Module] = {"bottom": self.bottom}
        if self.head is not None:
            self.parts["head"] = self.head
        self.optimizer = config.optimizer.build_by_part(self.parts)
        self.turn_start: dict[Tensor, Tensor] = {}  # for `--prox`
        self.own_norms = OwnNorms(
            self.parts, self.optimizer, local=config.norms == LOCAL, folder=config.norms_folder
        )
        weights = None if config.class_weights is None else torch.tensor(config.class_weights)
        self.criterion = build_criterion(data.task, weights, config.label_smoothing).to(self.device)

    @property
    def num_trained(self) -> int:
        """Images of one turn, which its share of a mean counts for; a single last one sits out."""
        size = self.config.batch_size
        return min(len(self.data.share.train), size * self.data.num_train_batches(size))

    def batches(self, turn: Turn) -> Iterator[Batch]:
        """The turn's training batches, from now on bottom and head train, at the round's learning rates: order and
        augmentation follow from the key, round and client alone.
        """
        for part in self.parts.values():
            train_mode(part)
        self.config.optimizer.rates.apply(self.optimizer, turn.round)
        if self.config.prox:
            self.turn_start = {parameter: parameter.detach().clone() for parameter in self.parameters()}
        draws = self.randomness.turn_draws(turn.round, self.name)
        return self.step_timer.loading(self.data.train_batches(self.config.batch_size, *draws))

    def eval_mode(self) -> None:
        """Bottom and head as they are used."""
        for part in self.parts.values():
            part.eval()

    def unpack_output(self, payload: Any) -> Any:
        """What the server answered with, decoded; a step and `evaluate` check the rest.

        Raises:
            WireError: it is not in the agreed format.
        """
        return self.packer.unpack(payload, self.output, "server", "output")

    def parameters(self) -> list[nn.Parameter]:
        """All parameters that this client steps."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]
