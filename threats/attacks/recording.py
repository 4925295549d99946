"""The wire recording: what crossed the wire, batch by batch on the server's disk, to be attacked afterwards.

A recording holds smashed data, shared labels, and where labels stay at home the gradients that clients sent back; it is
as sensitive as the images that can be rebuilt from it. It is bound to its run and cut.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suture.runtime.errors import DataError
from suture.runtime.hooks import Attack, SmashedBatch
from suture.runtime.state.checkpoint import write_atomically

_PHASES = ("train", "validation", "test", "query")
_RECEIVED = ".received"  # beside the batch's .pt, which it comes later than
_FILE = re.compile(r"(?P<client>\w+)-(?P<phase>\w+)-(?P<batch>\d+)\.pt")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run a batch was; recordings are sorted by it."""

    round: int
    phase: int
    client: str
    batch: int


class Recording:
    """A recording on disk.

    Args:
        folder: RUN/recording; made where missing.
        origin: what the recording belongs to (run, model, cut, shape), compared when it is opened again.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any]) -> None:
        self.folder = folder
        self.origin = dict(origin)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "origin.json", json.dumps(self.origin, indent=2).encode())

    @classmethod
    def open(cls, folder: Path, origin: Mapping[str, Any]) -> Recording:
        """An existing recording, checked to be of ``origin``.

        Raises:
            DataError: there is none, or it was recorded in another run or at another cut; both are named.
        """
        try:
            found = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"no wire recording in {folder} ({error.__class__.__name__}); record one with --recording last-round"
            ) from None
        for name, wanted in json.loads(json.dumps(dict(origin))).items():
            if found.get(name) != wanted:
                raise DataError(
                    f"the recording in {folder} was recorded with {name} = {found.get(name)}, the run has "
                    f"{wanted}; an attack needs the recording of its own run and cut"
                )
        return cls(folder, found)

    def record(self, batch: SmashedBatch) -> None:
        """Writes one batch, over what a rolled-back turn left in its place.

        Raises:
            DataError: the disk does not take it.
        """
        labels = None if batch.labels is None else batch.labels.cpu()
        content = {"smashed": batch.smashed.detach().cpu().contiguous(), "labels": labels}
        self._write(self._path(batch.round, batch.client, batch.phase, batch.batch), content)

    def record_received(self, batch: SmashedBatch, gradient: Tensor) -> None:
        """Writes what a client sent back for a batch, see `Attack.received`.

        Raises:
            DataError: the disk does not take it.
        """
        path = self._path(batch.round, batch.client, batch.phase, batch.batch).with_suffix(_RECEIVED)
        self._write(path, {"gradient": gradient.detach().cpu().contiguous()})

    def received(self, batch: SmashedBatch) -> Tensor | None:
        """What was sent back for a batch; None where nothing was."""
        path = self._path(batch.round, batch.client, batch.phase, batch.batch).with_suffix(_RECEIVED)
        if not path.exists():
            return None
        gradient: Tensor = torch.load(path, weights_only=True)["gradient"]
        return gradient

    def _write(self, path: Path, value: dict[str, Any]) -> None:
        content = io.BytesIO()
        torch.save(value, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content.getbuffer())
        except OSError as error:
            raise DataError(
                f"cannot write the recording {path}: {error.strerror}; use --recording off"
            ) from error

    def keep_rounds(self, newest: int, count: int) -> None:
        """Erases all rounds but the last ``count`` up to ``newest``."""
        for folder in self.folder.glob("round_*"):
            if int(folder.name.removeprefix("round_")) <= newest - count:
                shutil.rmtree(folder)

    def places(self) -> list[Place]:
        """What is on the recording, in the order of the run."""
        found = []
        for path in self.folder.glob("round_*/*.pt"):
            name = _FILE.fullmatch(path.name)
            if name is not None and name["phase"] in _PHASES:
                number = int(path.parent.name.removeprefix("round_"))
                found.append(Place(number, _PHASES.index(name["phase"]), name["client"], int(name["batch"])))
        return sorted(found, key=lambda p: (p.round, p.phase, p.client, p.batch))

    def play(self, *phases: str, round: int | None = None) -> Iterator[SmashedBatch]:
        """Batches in the order of the run, of some phases or of all, of one round or of all."""
        for place in self.places():
            phase = _PHASES[place.phase]
            if (not phases or phase in phases) and round in (None, place.round):
                yield self._load(place)

    def erase(self) -> None:
        """Removes the recording."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self, place: Place) -> SmashedBatch:
        phase = _PHASES[place.phase]
        path = self._path(place.round, place.client, phase, place.batch)
        content: dict[str, Tensor | None] = torch.load(path, weights_only=True)
        smashed = content["smashed"]
        assert smashed is not None
        return SmashedBatch(
            smashed, content["labels"], tuple(place.client.split("+")), place.round, place.batch, phase
        )

    def _path(self, round: int, client: str, phase: str, batch: int) -> Path:
        return self.folder / f"round_{round:04d}" / f"{client}-{phase}-{batch:05d}.pt"


class RecordedAttack(Attack):
    """Any attack, with a recording running beside it; all doors pass through unchanged.

    Args:
        attack: the attack, or the honest base.
        recording: where to record.
        keep: "last-round" or "all".
    """

    def __init__(self, attack: Attack, recording: Recording, keep: str) -> None:
        self.attack = attack
        self.recording = recording
        self._keep = keep

    def prepare(self) -> None:
        self.attack.prepare()

    def observe(self, batch: SmashedBatch) -> None:
        self.recording.record(batch)
        if self._keep == "last-round" and batch.phase == "train" and batch.batch == 0:
            self.recording.keep_rounds(batch.round, 1)
        self.attack.observe(batch)

    def loss(self, batch: SmashedBatch, task_loss: Tensor) -> Tensor:
        return self.attack.loss(batch, task_loss)

    def gradient(self, batch: SmashedBatch, grad: Tensor) -> Tensor:
        return self.attack.gradient(batch, grad)

    def received(self, batch: SmashedBatch, gradient: Tensor) -> None:
        self.recording.record_received(batch, gradient)
        self.attack.received(batch, gradient)

    def step(self) -> None:
        self.attack.step()

    def finish(self) -> None:
        self.attack.finish()

    def state_dict(self) -> dict[str, Any]:
        return self.attack.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.attack.load_state_dict(state)

    def __repr__(self) -> str:
        return repr(self.attack)
