"""What a client remembers of each run on its own disk: the newest turn it has seen, so that going back is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from suture.runtime.errors import HandoffError
from suture.runtime.state.checkpoint import write_atomically


class RollbackGuard:
    """One client's memory of one run; without a folder it lasts as long as the process.

    Args:
        folder: this client's own, which no server names; None to keep nothing on the disk.
        client: the member's name.
        run: the run's id, from the server.
    """

    def __init__(self, folder: Path | None, client: str, run: str) -> None:
        # The run's id comes from the server: it must not lead out of the folder.
        name = f"{client}-{hashlib.sha256(run.encode()).hexdigest()[:32]}"
        self._path = None if folder is None else folder / name
        self._client = client
        self._known: dict[str, Any] | None = None

    def recall_extra(self, name: str, missing: Any) -> Any:
        """What `keep_extra` kept under ``name``, else ``missing``.

        Raises:
            HandoffError: what was kept is damaged.
        """
        return self._kept().get(name, missing)

    def keep_extra(self, name: str, value: Any) -> None:
        """Remembers a value that JSON can hold, beside the newest turn; atomically."""
        self._write(self._kept() | {name: value})

    def recall(self) -> tuple[int, bytes]:
        """The newest turn and its hand-off's SHA-256; (0, b"") where nothing is known.

        Raises:
            HandoffError: what was kept is damaged.
        """
        kept = self._kept()
        return int(kept.get("turn", 0)), bytes.fromhex(kept.get("digest", ""))

    def keep(self, turn: int, digest: bytes) -> None:
        """Remembers ``turn``, atomically."""
        self._write(self._kept() | {"turn": turn, "digest": digest.hex()})

    def _kept(self) -> dict[str, Any]:
        if self._known is None:
            self._known = self._read()
        return self._known

    def _read(self) -> dict[str, Any]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            kept = dict(json.loads(self._path.read_text(encoding="utf-8")))
            int(kept.get("turn", 0)), bytes.fromhex(kept.get("digest", ""))
            return kept
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HandoffError(
                f"{self._path} is damaged: it held the newest turn that {self._client} has seen; if the server was not "
                "set back, remove it"
            ) from None

    def _write(self, kept: dict[str, Any]) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(kept).encode())
        self._known = kept
