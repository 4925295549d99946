"""What a client keeps on its own disk, under RUN/clients/NAME: pictures, figures and the trained model.

Pictures stay with their owner. On one host the run's figures folder gets links to them, so that they are found
beside the server's own; across hosts nothing is copied.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from suture.launch.options.options import RunOptions
from suture.launch.output.figures import activations, bottom_stages, segmentation
from suture.launch.output.lock import lock_folder
from suture.launch.output.step_times import PROFILE_FILE, draw_own_profile
from suture.runtime.client.client import Client
from suture.runtime.data.client_data import Batch, Split
from suture.runtime.data.normalise import denormalise
from suture.runtime.data.source import Task
from suture.runtime.errors import CheckpointError, ConfigError, DataError
from suture.runtime.participant.participant import ClientObserver, NoClientObserver
from suture.runtime.records.step_timer import Lap, RunningStepTimer
from suture.runtime.records.tracking import ClientPictures
from suture.runtime.scheduler import Turn
from suture.runtime.state.checkpoint import write_atomically
from suture.runtime.state.handoff import model_digest
from suture.runtime.wire.messages import Release, Welcome

log = logging.getLogger(__name__)
MODEL_FORMAT = 1
DETECTOR_FILE = "detector.jsonl"


class ClientFolder(NoClientObserver):
    """Keeps a client's pictures, figures and model; numbers are left to `ClientRecord`.

    Args:
        options: the run's, resolved.
        normalisation: of the images, undone for pictures.
        task: whose pictures are drawn.
        folder: where to write, None for RUN/clients/NAME in the folder that the server names.
    """

    def __init__(
        self, options: RunOptions, normalisation: str, task: Task, folder: Path | None = None
    ) -> None:
        self._options = options
        self._normalisation = normalisation
        self._task = task
        self._folder = folder
        self._lock: IO[str] | None = None
        self._pictures: ClientPictures | None = None
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self._validates = False
        self._alarmed = False
        self._complained = False

    @property
    def folder(self) -> Path:
        """RUN/clients/NAME on this client's own disk."""
        if self._folder is None:
            raise DataError("a client has no folder before it has joined")
        return self._folder

    def lock(self) -> None:
        """Makes the folder of a client that is a process of its own, and keeps others out until that one ends.

        Raises:
            ConfigError: another process has it, or it cannot be written.
        """
        self._make()
        self._lock = lock_folder(self.folder)

    def joined(self, client: Client, welcome: Welcome) -> None:
        """The server has named the run's folder."""
        if self._options.profile:
            client.model.step_timer = RunningStepTimer(self.profiled)
        if self._folder is None:
            self._folder = client_folder(Path(welcome.run_dir), client.name)
        self._make()
        self._validates = bool(client.model.data.share.validation)

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.folder}: {error.strerror}; give this client a --run-dir of its own"
            ) from None

    def evaluated(self, turn: Turn, phase: str, batch: Batch, smashed: Tensor, logits: Tensor) -> None:
        """Draws the first validation batch of a round, or test batch where nothing is validated."""
        shown = "validation" if self._validates else "test"
        if phase not in (shown, "test") or batch.number != 0:
            return
        if self._task is Task.SEGMENTATION:
            images = denormalise(batch.inputs, self._normalisation)  # type: ignore[arg-type]
            self._last = images, batch.targets, (logits > 0).float()
        if phase != shown:
            return
        with self._can_do_without(turn.client):
            if self._pictures is None:
                self._pictures = ClientPictures(self.folder / "tensorboard")
            self._pictures.activations(turn.step, smashed)
            if self._last is not None:
                self._pictures.segmentation(turn.step, *self._last)

    def watched(self, turn: Turn, batch: Batch, score: float, alarm: str) -> None:
        """Writes a detector's score after each batch; tells a person when it first gives alarm."""
        step = turn.step + batch.number + 1
        line = {"step": step, "round": turn.round, "turn": turn.number, "score": score, "alarm": alarm}
        with self._can_do_without(turn.client):
            if self._pictures is None:
                self._pictures = ClientPictures(self.folder / "tensorboard")
            self._pictures.detector(step, score, bool(alarm))
            with (self.folder / DETECTOR_FILE).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
        if alarm and not self._alarmed:
            self._alarmed = True
            log.warning("%s: step %d: alarm: %s", turn.client, step, alarm)

    def profiled(self, turn: Turn, batch: int, lap: Lap) -> None:
        """Writes down where the time of a step went."""
        line = {"round": turn.round, "turn": turn.number, "batch": batch, "seconds": lap.seconds}
        with self._can_do_without(turn.client):
            if self._pictures is None:
                self._pictures = ClientPictures(self.folder / "tensorboard")
            self._pictures.profile(turn.step + batch + 1, lap.seconds)
            with (self.folder / PROFILE_FILE).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line | {"spans": lap.spans, "window": lap.window}) + "\n")

    def finished(self, client: Client, release: Release) -> None:
        """Draws the figures and writes the model.

        Raises:
            CheckpointError: the model cannot be written.
        """
        if release.top:
            self._write_model(client, release)
        elif self._options.release_top:
            log.warning(
                "%s: the server did not hand out the trained top, although the run's options say so: there is no "
                "model.pt here; ask its operator",
                client.name,
            )
        with self._can_do_without(client.name):
            self._draw(client)

    def _draw(self, client: Client) -> None:
        figures = self.folder / "figures"
        figures.mkdir(exist_ok=True)
        share = client.model.data.share
        split: Split = "test" if share.test else "validation" if share.validation else "train"
        first = next(iter(client.model.data.test_batches(1, split)))
        stages = bottom_stages(client.model.bottom, first.inputs.to(client.model.device))
        shown = denormalise(first.inputs, self._normalisation)  # type: ignore[arg-type]
        activations([("input", shown), *stages[1:]], figures / "activations.png")
        if self._last is not None:
            segmentation(*self._last, figures / "segmentation.png", title=f"{client.name}: test images")
        if self._options.profile:
            draw_own_profile(self.folder)
        if self._pictures is not None:
            self._pictures.close()

    @contextmanager
    def _can_do_without(self, name: str) -> Iterator[None]:
        """A picture that cannot be written costs the picture, not the turn; a person is told once."""
        try:
            yield
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning(
                    "%s: cannot write to %s (%s): training goes on without pictures; make room there",
                    name,
                    self.folder,
                    error.strerror or error,
                )

    def _write_model(self, client: Client, release: Release) -> None:
        models = {}
        for which in ("last", "best"):
            parts = client.whole_model(release, best=which == "best")
            models[which] = {"parts": parts} | digests(parts, client.model.own_norms.names)
        content = {
            "format": MODEL_FORMAT,
            "model": self._options.model,
            "cut": self._options.cut,
            "labels": self._options.labels,
            "width": self._options.width,
            "image_size": self._options.image_size,
            "task": str(self._task),
            "classes": list(client.model.data.classes),
            "normalisation": self._normalisation,
            "client": client.name,
            "own_norms": {name: sorted(keys) for name, keys in client.model.own_norms.names.items()},
            "best_round": release.best_round,
            "epochs": self._options.epochs,
            **models,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        try:
            write_atomically(self.folder / "model.pt", buffer.getbuffer())
        except OSError as error:
            raise CheckpointError(
                f"{client.name}: cannot write {self.folder / 'model.pt'} ({error.strerror or error}); make room and "
                "start again with --resume: the trained parts are in the newest checkpoint"
            ) from None
        log.info("%s: wrote %s", client.name, self.folder / "model.pt")


def digests(
    parts: Mapping[str, Mapping[str, Tensor]], own_norms: Mapping[str, Collection[str]]
) -> dict[str, str]:
    """``weights_sha256`` of what clients share of a whole model, ``own_norms_sha256`` of a client's norms where they
    are its own.
    """
    shared, own = (
        {
            name: {key: t for key, t in state.items() if (key in own_norms.get(name, ())) is is_own}
            for name, state in parts.items()
        }
        for is_own in (False, True)
    )
    found = {"weights_sha256": model_digest(shared)}
    return found | ({"own_norms_sha256": model_digest(own)} if any(own.values()) else {})


class AllOf:
    """Passes everything on to several observers, in their order; see `session.ClientObserver`."""

    def __init__(self, *told: ClientObserver) -> None:
        self._told = told

    def joined(self, client: Client, welcome: Welcome) -> None:
        for one in self._told:
            one.joined(client, welcome)

    def waits(self, turn: Turn) -> None:
        for one in self._told:
            one.waits(turn)

    def began(self, turn: Turn) -> None:
        for one in self._told:
            one.began(turn)

    def trained(self, turn: Turn, batch: Batch, loss: float) -> None:
        for one in self._told:
            one.trained(turn, batch, loss)

    def evaluated(self, turn: Turn, phase: str, batch: Batch, smashed: Tensor, logits: Tensor) -> None:
        for one in self._told:
            one.evaluated(turn, phase, batch, smashed, logits)

    def watched(self, turn: Turn, batch: Batch, score: float, alarm: str) -> None:
        for one in self._told:
            one.watched(turn, batch, score, alarm)

    def scored(self, turn: Turn, scores: Mapping[str, Mapping[str, float]]) -> None:
        for one in self._told:
            one.scored(turn, scores)

    def counted(self, turn: Turn) -> None:
        for one in self._told:
            one.counted(turn)

    def undone(self, turn: Turn, why: str) -> None:
        for one in self._told:
            one.undone(turn, why)

    def finished(self, client: Client, release: Release) -> None:
        for one in self._told:
            one.finished(client, release)


def client_folder(run_dir: Path, name: str) -> Path:
    """RUN/clients/NAME."""
    return run_dir / "clients" / name


def link_figures(run_dir: Path) -> None:
    """Links the clients' figures, where they are on this disk, into RUN/figures; the server's task at the end."""
    shared = run_dir / "figures"
    for figure in sorted(run_dir.glob("clients/*/figures/*.png")):
        link = shared / f"{figure.parent.parent.name}-{figure.name}"
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(figure, shared))
