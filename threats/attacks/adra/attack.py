"""ADRA, adversarial reconstruction: a passive server trains a decoder from smashed data to images on pairs.

SLDML (2021). Honest but curious: the training is untouched. What differs between attackers is where the pairs
come from; that is the threat model:

- ``leaked``: the attacker holds some of the client's private training images and learns their smashed data.
- ``query``: it may pass auxiliary images of its own through a client's bottom.
- ``shadow``: no access at all; it trains a bottom of its own in front of the live top on auxiliary images,
    and a
  decoder for that (as in model completion; Fu et al., USENIX Security 2022, and PCAT, Gao and Zhang, USENIX
  Security 2023).

The study trained and scored on the same private images; here images that were paired are never judged.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from suture.runtime.errors import ConfigError, DataError
from suture.runtime.hooks import SmashedBatch
from suture.threats.attacks.adra.nets import AdraDecoder
from suture.threats.attacks.adra.shadow import ShadowTraining, train_shadow
from suture.threats.attacks.adra.training import DecoderTraining, fit_decoder
from suture.threats.attacks.auxiliary import Auxiliary
from suture.threats.attacks.learning import Learning
from suture.threats.attacks.live import KEPT_TRAIN_BATCHES, LEAKED_FILE, NotFiniteError, ReconstructionAttack
from suture.threats.attacks.recording import Recording
from suture.threats.attacks.server_view import ServerView
from suture.threats.needs import SAME_SOURCE, Cost, Needs

_QUERIES: dict[str, Literal["none", "auxiliary", "private"]] = {
    "leaked": "private",
    "query": "auxiliary",
    "shadow": "none",
}
_PAIR, _WIDE_PAIR, _JUDGE = (
    0.0012,
    0.0022,
    4.0,
)  # CPU seconds: a decoder's pass over a pair at 64 px; the judge


@dataclass(frozen=True, kw_only=True)
class AdraConfig:
    """Parameters of ADRA.

    Attributes:
        origin: where the pairs come from: "leaked", "query" or "shadow".
        aux: the attacker's images: "run" for images of the run's source that no client has, or NAME[:PATH].
        aux_images: how many (leaked: how many private training images).
        loss: "l1", "mse" or "ssim" (one minus it).
        optimizer: "adam", or "sgd" with momentum 0.9 (the study's, with lr=0.01).
        lr: learning rate of the decoder.
        epochs: hard budget of passes over the pairs; training ends before it when it no longer gains.
        patience: passes without gain on validation pairs after which the learning rate falls, twice, and then training
            ends.
        shuffled: a control, no attack: the decoder is trained on pairs that do not belong together, and must come to
            no more than the mean image.
        batch: pairs a step.
        width: factor on the decoder's 32 channels; above 1 for the adaptive attacker.
        blocks: residual blocks in the decoder.
        average: rounds of evaluation whose smashed data are averaged image by image: the adaptive attacker's
            answer to noise, which differs from round to round where the image does not.
        shadow_epochs: hard budget of passes of the shadow's training.
        align: weight of matching the shadow's statistics to those of the smashed data that crossed the wire.
    """

    origin: Literal["leaked", "query", "shadow"] = "query"
    aux: str = SAME_SOURCE
    aux_images: int = 1000
    loss: Literal["l1", "mse", "ssim"] = "mse"
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 2e-3
    epochs: int = 300
    patience: int = 8
    shuffled: bool = False
    batch: int = 32
    width: float = 1.0
    blocks: int = 0
    average: int = 1
    shadow_epochs: int = 100
    align: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (
            ("aux_images", 2),
            ("epochs", 1),
            ("patience", 1),
            ("batch", 2),
            ("average", 1),
            ("blocks", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"adra: {name} must be at least {least}, got {getattr(self, name)}")
        for name in ("lr", "width"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"adra: {name} must be above 0, got {getattr(self, name)}")

    @property
    def needs(self) -> Needs:
        """By ``origin``."""
        return Needs(
            live=False,
            images=self.aux_images,
            source=self.aux,
            queries=_QUERIES[self.origin],
            query_rounds=self.average,
            labels=self.origin == "shadow",
        )

    @property
    def cost(self) -> Cost:
        """The decoder's training and the judge."""
        pair = _WIDE_PAIR if self.width > 1 else _PAIR
        return Cost(end=_JUDGE, end_at_64_px=self.epochs * self.aux_images * pair)

    def training(self) -> DecoderTraining:
        """The part that concerns the decoder's training."""
        return DecoderTraining(
            loss=self.loss,
            optimizer=self.optimizer,
            lr=self.lr,
            epochs=self.epochs,
            patience=self.patience,
            batch=self.batch,
        )


class AdraAttack(ReconstructionAttack):
    """Collects pairs while the run goes on, trains the decoder after the last turn, and decodes what it recorded.

    Args:
        config: its parameters.
        server_view: where it stands.
        auxiliary: its images; None for ``leaked``, whose images come to it under RUN/attack.
    """

    threat_model: ClassVar[str] = "passive server: honest but curious"
    knows: ClassVar[frozenset[str]] = frozenset({"shape of the smashed data"})

    def __init__(self, config: AdraConfig, server_view: ServerView, auxiliary: Auxiliary | None) -> None:
        super().__init__(server_view, auxiliary)
        self.config = config
        self.threat_model = f"passive server, pairs by {config.origin}"  # type: ignore[misc]
        self.knows = type(self).knows | _KNOWN[config.origin]  # type: ignore[misc]
        if config.origin == "shadow":
            config.needs.check("adra:origin=shadow", labels_shared=server_view.labels_shared)
            if (
                server_view.top is None
                or server_view.fresh_bottom is None
                or auxiliary is None
                or auxiliary.labels is None
            ):
                raise ConfigError("adra: origin=shadow needs the server's top and labelled auxiliary images")
        self.decoder = self.build_nets(
            lambda: AdraDecoder(
                server_view.smashed_shape, server_view.image_shape, config.width, config.blocks
            )
        ).to(server_view.device)
        self._shadow: Learning | None = None
        self._memory: dict[tuple[int, str, str, int], SmashedBatch] = {}
        self._recording = (
            None if server_view.folder is None else Recording(server_view.folder / "observed", {})
        )

    # While training goes on: only record ---------------------------------------------------------

    def _observe(self, batch: SmashedBatch) -> None:
        """Records the last rounds; smashed data go to the disk where there is one, for they are large."""
        config, last = self.config, self.server_view.num_rounds
        if batch.phase == "train" and (batch.round < last or batch.batch >= KEPT_TRAIN_BATCHES):
            return
        if batch.phase == "validation" or batch.round <= last - config.average:
            return
        if self._recording is not None:
            self._recording.record(batch)
        else:
            self._memory[batch.round, batch.phase, batch.client, batch.batch] = batch

    def _recorded(self, phase: str) -> list[SmashedBatch]:
        if self._recording is not None:
            return list(self._recording.play(phase))
        return [self._memory[key] for key in sorted(self._memory) if key[1] == phase]

    # After the last turn -------------------------------------------------------------------------

    def _finish(self) -> None:
        self.fit(*self.pairs())
        evaluated = self._averaged(self._recorded("test"))
        for batch in (*self._in_evaluations_units(self._recorded("train"), evaluated), *evaluated):
            self.keep_reconstruction(batch)
        if self._recording is not None:
            self._recording.erase()

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Smashed data h_ND and the images x_NCHW (uint8) they came from, by the threat model's means.

        Raises:
            DataError: nothing was recorded that could be paired.
        """
        origin = self.config.origin
        if origin == "shadow":
            return self._shadowed(), self.auxiliary.images
        if origin == "leaked" and self._auxiliary is None:
            self._auxiliary = self._leaked()
        queries = self._averaged(self._recorded("query"))
        if not queries:
            raise DataError(
                f"adra: origin={origin} needs a client that passed the attacker's images through its bottom; "
                "none did in this run"
            )
        smashed = torch.cat([batch.smashed for batch in queries])
        if len(smashed) != len(self.auxiliary):
            raise DataError(
                f"adra: {len(self.auxiliary)} images were passed through a bottom, {len(smashed)} came back"
            )
        return smashed, self.auxiliary.images

    def fit(self, smashed: Tensor, images: Tensor) -> None:
        """Trains the decoder on pairs (h_ND; x_NCHW uint8)."""
        if self.config.shuffled:
            order = torch.randperm(len(images), generator=self.generator)
            images = images[order.roll(1)[order.argsort()]]  # one cycle through all: nobody keeps its own

        def record(loss: float) -> None:
            if loss != loss or abs(loss) == float("inf"):
                raise NotFiniteError("the decoder's loss is not finite; lower lr")
            self.steps += 1
            self.record(decoder=loss)

        learnt = fit_decoder(self.decoder, smashed, images, self.config.training(), self.generator, record)
        if self._shadow is not None and self._shadow.ended != "plateau":
            learnt = Learning(self._shadow.ended, self._shadow.budget, learnt.curve)
        self.learning = learnt

    @torch.no_grad()
    def reconstruct(self, smashed: Tensor) -> Tensor:
        self.decoder.eval()
        parts = smashed.to(self.server_view.device).split(64)
        return torch.cat([self.decoder(part) for part in parts])

    def _shadowed(self) -> Tensor:
        server_view = self.server_view
        assert (
            server_view.top is not None
            and server_view.fresh_bottom is not None
            and self.auxiliary.labels is not None
        )
        seen = [batch.smashed for batch in self._recorded("test")]
        if not seen:
            raise DataError("adra: origin=shadow saw no smashed data in this run")
        smashed, self._shadow = train_shadow(
            self.build_nets(server_view.fresh_bottom),
            server_view.top,
            self.auxiliary.images,
            self.auxiliary.labels,
            torch.cat(seen),
            ShadowTraining(
                epochs=self.config.shadow_epochs,
                patience=self.config.patience,
                batch=self.config.batch,
                align=self.config.align,
            ),
            self.generator,
            lambda **losses: self.record(**losses),
        )
        return smashed

    def _leaked(self) -> Auxiliary:
        assert self.server_view.folder is not None
        path = self.server_view.folder / LEAKED_FILE
        if not path.exists():
            raise DataError(f"adra: origin=leaked found no {path}; a lab's client writes it when it joins")
        return Auxiliary(torch.from_numpy(np.load(path)), origin="leaked from client0's training images")

    def _in_evaluations_units(
        self, train: list[SmashedBatch], evaluated: list[SmashedBatch]
    ) -> list[SmashedBatch]:
        """Training's smashed data with the channel means and deviations of evaluation's.

        In training batch norm scales by the batch, in evaluation by running statistics; early in a run the
        two lie far apart, and a decoder that learnt from the one reads nothing in the other.
        """
        if not train or not evaluated:
            return train
        mean, deviation = _channel_moments([batch.smashed for batch in evaluated])
        here, spread = _channel_moments([batch.smashed for batch in train])
        scale = deviation / spread.clamp_min(1e-6)
        return [replace(batch, smashed=(batch.smashed - here) * scale + mean) for batch in train]

    def _averaged(self, batches: list[SmashedBatch]) -> list[SmashedBatch]:
        """One batch a place: the mean over the recorded rounds, under the newest round's number."""
        by_place: dict[tuple[str, int], list[SmashedBatch]] = defaultdict(list)
        for batch in batches:
            by_place[batch.client, batch.batch].append(batch)
        averaged = []
        for same in by_place.values():
            newest, wanted = same[-1], same[-self.config.average :]
            mean = torch.stack([batch.smashed for batch in wanted]).mean(0)
            averaged.append(
                SmashedBatch(mean, newest.labels, newest.clients, newest.round, newest.batch, newest.phase)
            )
        return averaged

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"decoder": self.decoder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.decoder.load_state_dict(state["decoder"])


def _channel_moments(smashed: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation a channel, shaped to broadcast over h_ND."""
    h = torch.cat(smashed)
    others = [dim for dim in range(h.ndim) if dim != 1]
    return h.mean(others, keepdim=True), h.std(others, keepdim=True)


_KNOWN = {
    "leaked": frozenset({"some private training images"}),
    "query": frozenset({"auxiliary images", "their smashed data"}),
    "shadow": frozenset({"labelled auxiliary images", "the top", "architecture of the bottom"}),
}
