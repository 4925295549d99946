"""Checkpoints that a crash cannot damage: written beside, synced, renamed; digest first, ``weights_only`` always.

A file is 32 bytes of SHA-256 followed by what ``torch.save`` wrote, so that a flipped bit is noticed and not
trained on.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from suture.runtime.errors import CheckpointError, ConfigError, SutureError
from suture.runtime.host.disk import writing

log = logging.getLogger(__name__)


def write_atomically(path: Path, *chunks: bytes | memoryview) -> None:
    """Writes ``chunks`` to ``path`` so that a crash leaves the old file or the new one, never half of one."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def cannot_write(place: Path, error: OSError, remedy: str) -> SutureError:
    """Why a command cannot begin to write at ``place``, as an error of ours.

    A full disk is mended outside, and the same command then works: as `CheckpointError` it is tried again by systemd.
    Everything else is a `ConfigError`, which is not, with what to do.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"cannot write to {place}: {error.strerror}; make room, then start the same again"
        )
    return ConfigError(f"cannot write to {place}: {error.strerror}; {remedy}")


class Checkpoints:
    """The checkpoints of one run: one a turn, the newest ``keep`` of them.

    Args:
        folder: RUN/checkpoints, made where missing; RUN is there.
        keep: how many turns to keep; at least 2, so that a damaged one has one before it.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = max(keep, 2)

    def save(self, turn: int, state: Mapping[str, Any], pinned: int = -1) -> None:
        """Writes ``state`` as what holds after ``turn``; returns when it is on the disk. That of ``pinned`` is kept.

        Raises:
            CheckpointError: the disk is full, the folder read-only or gone; older checkpoints are untouched.
        """
        self._write(self._path(turn), state)
        with writing():
            for old in self.turns()[: -self._keep]:
                if old != pinned:
                    self._path(old).unlink(missing_ok=True)

    def load_before(self, turn: int) -> tuple[int, dict[str, Any]]:
        """The newest whole checkpoint of a turn before ``turn``, and that turn.

        Raises:
            CheckpointError: there is none.
        """
        for old in reversed([one for one in self.turns() if one < turn]):
            with suppress(CheckpointError):
                return old, read_checkpoint(self._path(old))
        raise CheckpointError(
            f"{self.folder} has no whole checkpoint from before turn {turn}, to which this run must go back; start a "
            "new run"
        )

    def drop_after(self, turn: int) -> None:
        """Forgets what was kept of later turns.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        with writing():
            for later in self.turns():
                if later > turn:
                    self._path(later).unlink(missing_ok=True)

    def save_best(self, state: Mapping[str, Any]) -> None:
        """Writes ``state`` as the best round's, in place of the one before.

        Raises:
            CheckpointError: as `save`.
        """
        self._write(self.best, state)

    @property
    def best(self) -> Path:
        """The best round's file; it exists once a round was validated."""
        return self.folder / "best.pt"

    def save_farewells(self, farewells: Mapping[str, Any]) -> None:
        """Writes down who has taken the finished model home, and what each said at the end, as JSON can hold it.

        Raises:
            CheckpointError: it cannot be written.
        """
        try:
            write_atomically(self._farewells, json.dumps(dict(farewells)).encode())
        except OSError as error:
            raise CheckpointError(f"cannot write {self._farewells}: {error.strerror}; make room") from error

    def load_farewells(self) -> dict[str, Any]:
        """What `save_farewells` wrote, empty where there is nothing that can be read."""
        try:
            return dict(json.loads(self._farewells.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    @property
    def _farewells(self) -> Path:
        return self.folder / "farewells.json"

    def _write(self, path: Path, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        payload = buffer.getbuffer()
        with writing(f"checkpoint {path}"):
            self.folder.mkdir(
                exist_ok=True
            )  # RUN itself is there, or was removed: then there is nothing to go on in
            write_atomically(path, hashlib.sha256(payload).digest(), payload)

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint and its turn; damaged ones are skipped and named; None where none is.

        Raises:
            CheckpointError: there are checkpoints and all are damaged.
        """
        turns = self.turns()
        for turn in reversed(turns):
            path = self._path(turn)
            try:
                return turn, read_checkpoint(path)
            except CheckpointError as error:
                log.warning("%s; falling back to the checkpoint before it", error)
                # Out of the count of those that are kept, so that there are two whole ones again soon.
                with writing():
                    path.rename(path.with_suffix(".damaged"))
        if turns:
            raise CheckpointError(f"every checkpoint in {self.folder} is damaged; start a new run")
        return None

    def turns(self) -> list[int]:
        """The turns that have a checkpoint, oldest first."""
        return sorted(int(path.stem.removeprefix("turn_")) for path in self.folder.glob("turn_*.pt"))

    def _path(self, turn: int) -> Path:
        return self.folder / f"turn_{turn:06d}.pt"


class NoCheckpoints(Checkpoints):
    """Keeps no turn, only the best round, which the clients are handed at the end: for runs that can start anew."""

    def save(self, turn: int, state: Mapping[str, Any], pinned: int = -1) -> None:
        """Writes nothing."""

    def save_farewells(self, farewells: Mapping[str, Any]) -> None:
        """Writes nothing."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in one checkpoint file.

    Raises:
        CheckpointError: it cannot be read, or its bytes are not those that were written.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from error
    if hashlib.sha256(data[32:]).digest() != bytes(data[:32]):
        raise CheckpointError(
            f"checkpoint {path} is damaged (its digest does not match its {len(data)} bytes)"
        )
    not_ours = f"checkpoint {path} holds what no checkpoint may hold; it is not ours"
    try:
        state: Any = torch.load(io.BytesIO(data[32:]), weights_only=True)
    except (
        Exception
    ) as error:  # torch.load raises what the file makes it raise: pickle, zip, key and OS errors
        raise CheckpointError(not_ours) from error
    if not isinstance(state, dict):
        raise CheckpointError(not_ours)
    return state
