"""RUN/clients/NAME/left.jsonl: one line for each message that leaves a site, for the site's own people.

A line says what kind of message it was, when, how large, in which round, and the SHA-256 of its bytes; it holds none of
their values and names no file. It is written before the message is sent: where it cannot be written, nothing is sent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suture.runtime.errors import CheckpointError, ConfigError
from suture.runtime.scheduler import Turn
from suture.runtime.state.checkpoint import cannot_write
from suture.runtime.wire.messages import Upload

LEFT_FILE = "left.jsonl"
_PRIVATE = 0o600
_PLACE = ("round", "kind", "turn_kind", "phase", "batch")
"""The fields that say which part of a run a message was; two messages with the same ones are a repetition."""


class Outbox:
    """The log of what left one site, over all its connections and restarts.

    Used by one thread at a time: that of the connection. A line is in the kernel's hands before its message is sent, so
    that it outlives this process, and on the disk when the turn ends.

    Args:
        path: the file; appended to, made with mode 0600 where missing. One process a file: its folder is locked.
        cut: where the net is cut; stands in every line.

    Raises:
        ConfigError: the file cannot be opened, or what it holds is damaged.
        CheckpointError: the disk is full.
    """

    def __init__(self, path: Path, cut: str) -> None:
        self._path, self._cut = path, cut
        self._turn: Turn | None = None
        self._sent: Counter[tuple[Any, ...]] = Counter()
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _PRIVATE)
            os.fchmod(self._file, _PRIVATE)
            self._size = self._read_again()
        except OSError as error:
            self._close()
            raise cannot_write(path, error, "give this site a --run-dir of its own") from None
        except (ValueError, TypeError, RecursionError):
            self._close()
            raise ConfigError(
                f"{path} is damaged: line {self._sent.total() + 1} of what left this site cannot be read; "
                "keep that file elsewhere, then start again"
            ) from None

    def answered(self, answer: Any) -> None:
        """The server has answered: where it granted a turn, what leaves from now on is part of that."""
        if isinstance(answer, Turn):
            self._turn = answer

    def left(self, kind: str, messages: Sequence[Any], pieces: Sequence[memoryview]) -> None:
        """Writes down that a message is about to leave.

        Args:
            kind: the endpoint that it goes to.
            messages: what it says; of these, numbers and kinds are taken.
            pieces: its bytes, as `frames.pack` gives them.

        Raises:
            CheckpointError: the line cannot be written: the message must not be sent.
        """
        if kind in ("hello", "next_turn"):  # whatever turn there was is over
            self._turn = None
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "bytes": sum(len(piece) for piece in pieces),
            "round": 0 if self._turn is None else self._turn.round,
            "cut": self._cut,
            "sha256": digest.hexdigest(),
        }
        line |= self._within_turn(messages)
        place = _place_of(line)
        if "turn" in line and self._sent[place]:
            line["again"] = True
        self._write(json.dumps(line).encode() + b"\n")
        self._sent[place] += 1
        if kind == "next_turn":
            self._sync()

    def passes(self, round: int) -> int:
        """How often a training pass over this site's images was begun in ``round``, restarts of this site included."""
        first = {
            "round": round,
            "kind": "train",
            "turn_kind": "train",
            "phase": "train",
            "batch": 0,
        }
        return self._sent[_place_of(first)]

    def close(self) -> None:
        """Ends the log. May be called again.

        Raises:
            CheckpointError: its last lines may not be on the disk.
        """
        if self._file >= 0:
            try:
                self._sync()
            finally:
                self._close()

    def _within_turn(self, messages: Sequence[Any]) -> dict[str, Any]:
        """Where a message stands within its turn; nothing for one that names no turn."""
        message = next(iter(messages), None)
        if self._turn is None or not hasattr(message, "turn"):
            return {}
        where = {
            name: getattr(message, name) for name in ("turn", "phase", "batch") if hasattr(message, name)
        }
        if isinstance(message, Upload) and message.labels is not None:
            where["labels"] = True
        return {"turn_kind": str(self._turn.kind)} | where

    def _read_again(self) -> int:
        """Counts what is in the file, and cuts off a last line that is not whole: its message was not sent.

        Returns:
            The file's length in bytes.
        """
        size = 0
        with open(self._file, "rb", closefd=False) as lines:
            for text in lines:
                if not text.endswith(b"\n"):
                    break
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise ValueError("a line is an object")
                self._sent[_place_of(line)] += 1
                size += len(text)
        os.ftruncate(self._file, size)
        return size

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._file, line)
            while written < len(line):  # raises once there is no room at all
                written += os.write(self._file, line[written:])
        except OSError as error:
            with suppress(OSError):  # else the next start cuts half a line off
                os.ftruncate(self._file, self._size)
            raise self._failed(error) from None
        self._size += len(line)

    def _sync(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"cannot write {self._path}: {error.strerror}; nothing leaves this site that is not written down there, so "
            "it has stopped: make room or mend the disk, then start the same again"
        )

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _place_of(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(name) for name in _PLACE)
