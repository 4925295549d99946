"""The batch norms that a client keeps to itself, with their optimizer's moments, and how they follow the hand-off.

What is handed on names each client's norms by the SHA-256 of the file in which that client keeps them. So whatever
turn a run goes on from, after an undone turn, a crash, or at the best round, each client finds the norms that it had
then.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suture.models.norms import norm_names
from suture.runtime.errors import CheckpointError, HandoffError
from suture.runtime.state.checkpoint import write_atomically
from suture.runtime.training.optim import moments, take_moments
from suture.runtime.wire.checks import Digests

States = Mapping[str, Mapping[str, Tensor]]
NORMS = "norms"
"""Under which a hand-off names the clients' norms."""


class OwnNorms:
    """One client's; where norms are shared there are none, and all of this does nothing.

    Args:
        parts: bottom and head by name.
        optimizer: over them.
        local: whether their batch norms are the client's own.
        folder: where they are kept; None to keep them for the length of the process only.
    """

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        *,
        local: bool,
        folder: Path | None = None,
    ) -> None:
        self._parts, self._optimizer, self._folder = parts, optimizer, folder
        self.names = {name: norm_names(part) if local else frozenset[str]() for name, part in parts.items()}
        self.is_local = any(self.names.values())
        self._stepped = self._numbers() if self.is_local else frozenset[int]()
        self._kept: dict[str, bytes] = {}
        self._initial = self._packed() if self.is_local else b""

    def _numbers(self) -> frozenset[int]:
        """The optimizer's numbers of the norms' parameters."""
        own = {
            id(parameter)
            for name, part in self._parts.items()
            for key, parameter in part.named_parameters()
            if key in self.names[name]
        }
        stepped = [p for group in self._optimizer.param_groups for p in group["params"]]
        return frozenset(number for number, parameter in enumerate(stepped) if id(parameter) in own)

    # What is handed on ----------------------------------------------------------------------------

    def shared(self, parts: States) -> dict[str, dict[str, Tensor]]:
        """State dicts without these norms."""
        return {
            name: {key: tensor for key, tensor in state.items() if key not in self.names.get(name, ())}
            for name, state in parts.items()
        }

    def shared_moments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Moments without these norms'; of `moments` or `moments_like`."""
        state = given["state"]
        return {"state": type(state)((n, m) for n, m in state.items() if n not in self._stepped)}

    def like(self) -> dict[str, Any]:
        """How a hand-off names norms."""
        return {NORMS: Digests()} if self.is_local else {}

    # What stays -----------------------------------------------------------------------------------

    def keep(self) -> str:
        """Keeps the norms as they are now.

        Returns:
            Their name.

        Raises:
            CheckpointError: they cannot be written.
        """
        packed = self._packed()
        name = hashlib.sha256(packed).hexdigest()
        if self._folder is None:
            self._kept[name] = packed
            return name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(name), packed)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self._path(name)}: {error.strerror}; make room there"
            ) from None
        return name

    def whole(self, shared: States, name: str | None) -> dict[str, dict[str, Tensor]]:
        """State dicts of parts that were handed on, with the norms of that name; None for the initial ones.

        Raises:
            HandoffError: they are not here.
        """
        own = self._unpacked(name)["parts"] if self.is_local else {}
        return {part: {**state, **own.get(part, {})} for part, state in shared.items()}

    def take_up(self, shared: States, shared_moments: Mapping[str, Any], name: str | None) -> None:
        """Takes up parts and moments that were handed on, and the norms of that name; raises as `whole`."""
        for part, state in self.whole(shared, name).items():
            self._parts[part].load_state_dict(state)
        own = self._unpacked(name)["moments"] if self.is_local else {}
        take_moments(self._optimizer, {"state": {**shared_moments["state"], **own}})

    def _packed(self) -> bytes:
        gathered = moments(self._optimizer)["state"]
        content = {
            "parts": {
                name: {
                    key: t.detach().cpu() for key, t in part.state_dict().items() if key in self.names[name]
                }
                for name, part in self._parts.items()
            },
            "moments": {number: gathered[number] for number in self._stepped if number in gathered},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def _unpacked(self, name: str | None) -> dict[str, Any]:
        packed = self._initial if name is None else self._read(name)
        content: dict[str, Any] = torch.load(io.BytesIO(packed), weights_only=True)
        return content

    def _read(self, name: str) -> bytes:
        if self._folder is None:
            found, where = self._kept.get(name, b""), "this process"
        else:
            path = self._path(name)
            found, where = path.read_bytes() if path.exists() else b"", str(path)
        if hashlib.sha256(found).hexdigest() != name:
            raise HandoffError(
                f"the batch norms that this client had in the turn to go on from are not in {where}, or damaged; they "
                "are nowhere else: put its folder back as it was, or start a new run"
            )
        return found

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.pt"
