"""Label inference by similarity: an honest server reads the labels that stay at home from the gradients it receives.

Liu, Lyu, Wang, Wu: Clustering Label Inference Attack against Practical Split Learning, arXiv:2203.05222: gradients of
images of one class point the same way. With one known image a class, each other gradient is given the class of the
known one at the smallest angle.

Shape legend: N images; K classes; F values of one image's gradient (g_NF).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from suture.runtime.errors import ConfigError, DataError
from suture.runtime.hooks import SmashedBatch
from suture.threats.attacks.auxiliary import Auxiliary
from suture.threats.attacks.learning import Learning
from suture.threats.attacks.live import KNOWN_FILE, NOT_JUDGED, LiveAttack
from suture.threats.attacks.server_view import ServerView
from suture.threats.needs import Cost, Known, Needs


@dataclass(frozen=True, kw_only=True)
class LabelInferenceConfig:
    """Parameters of the attack.

    Attributes:
        known: images of each class, the first client's, whose class and whose gradient the server knows.
        round: whose gradients it reads, from 1; on a recording one that was recorded.
        draw: which images are known: another number, other images.
    """

    known: int = 1
    round: int = 1
    draw: int = 0

    cost: ClassVar[Cost] = Cost(end=1.0)

    def __post_init__(self) -> None:
        for name, least in (("known", 1), ("round", 1), ("draw", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"label-inference: {name} must be at least {least}, got {getattr(self, name)}"
                )

    @property
    def needs(self) -> Needs:
        """Where labels stay at home, and known images."""
        known = Known(images=self.known, round=self.round, draw=self.draw)
        return Needs(images=0, live=False, output_gradient=True, known=known)


class LabelInferenceAttack(LiveAttack):
    """Keeps one round's gradients of the top's output; after the last turn it names the class of each image.

    It reads what comes through `received` and nothing else: no smashed data, no net.

    Args:
        config: its parameters.
        server_view: where it stands.
        auxiliary: none.
    """

    threat_model: ClassVar[str] = "passive server: honest but curious, labels at home"
    knows: ClassVar[frozenset[str]] = frozenset({"the class of some training images"})

    def __init__(
        self, config: LabelInferenceConfig, server_view: ServerView, auxiliary: Auxiliary | None = None
    ) -> None:
        super().__init__(server_view, auxiliary)
        self.config = config
        self.learning = Learning("nothing to learn")
        if config.round > server_view.num_rounds:
            raise ConfigError(
                f"label-inference: round must lie in 1..{server_view.num_rounds}, the run's rounds, got {config.round}"
            )
        self._memory: dict[tuple[str, int], Tensor] = {}

    def _received(self, batch: SmashedBatch, gradient: Tensor) -> None:
        if batch.round != self.config.round:
            return
        directions = F.normalize(gradient.detach().flatten(1).cpu(), dim=1)
        folder = self.server_view.folder
        if folder is None:
            self._memory[batch.client, batch.batch] = directions
        else:  # a turn that is repeated writes over what it left
            path = folder / _RECEIVED / batch.client / f"{batch.batch:05d}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, directions.numpy())

    def directions(self) -> dict[tuple[str, int], Tensor]:
        """The gradients of the round, each brought to length 1: g_NF by client and batch."""
        folder = self.server_view.folder
        if folder is None:
            return self._memory
        paths = sorted((folder / _RECEIVED).glob("*/*.npy"))
        return {(path.parent.name, int(path.stem)): torch.from_numpy(np.load(path)) for path in paths}

    def _finish(self) -> None:
        received, known = self.directions(), self._known()
        if not received:
            raise DataError(
                f"label-inference: no gradient of round {self.config.round} came; on a recording use round=N with a "
                "round that was recorded"
            )
        guesses = infer(received, known)
        for (client, number), guessed in guesses.items():
            path = self.guesses_path(self.config.round, client, number)
            if path is not None:
                np.save(path, guessed.numpy())

    def _known(self) -> dict[tuple[str, int, int], int]:
        """The class of each known image, by client, batch and row.

        Raises:
            DataError: nobody said which they are.
        """
        folder = self.server_view.folder
        path = None if folder is None else folder / KNOWN_FILE
        if path is None or not path.exists():
            raise DataError(f"label-inference found no {path}; a lab's client writes it when it joins")
        told = json.loads(path.read_text(encoding="utf-8"))
        return {(client, number, row): label for client, number, row, label in told}

    def chosen_round(self) -> int:
        return self.config.round

    def report(self) -> dict[str, Any]:
        return super().report() | {"target": "label"}


_RECEIVED = "received"


def infer(
    received: dict[tuple[str, int], Tensor], known: dict[tuple[str, int, int], int]
) -> dict[tuple[str, int], Tensor]:
    """The class of each image by the smallest angle to a class's known gradients.

    Args:
        received: g_NF of length 1, by client and batch.
        known: classes by client, batch and row.

    Returns:
        labels_N by client and batch, `NOT_JUDGED` for what was known.

    Raises:
        DataError: no gradient of a known image came.
    """
    of_class: dict[int, list[Tensor]] = {}
    for (client, number, row), label in known.items():
        if (client, number) in received:
            of_class.setdefault(label, []).append(received[client, number][row])
    if not of_class:
        raise DataError("label-inference: no gradient of a known image came; was its client in the run?")
    labels = torch.tensor(sorted(of_class))
    centres_KF = F.normalize(torch.stack([torch.stack(of_class[int(k)]).mean(0) for k in labels]), dim=1)
    guesses = {place: labels[(g_NF @ centres_KF.T).argmax(1)] for place, g_NF in received.items()}
    for client, number, row in known:
        if (client, number) in guesses:
            guesses[client, number][row] = NOT_JUDGED
    return guesses
