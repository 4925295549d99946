"""The sealed hand-off: a client's parts go to the next client through a server that cannot read them.

With the bottom's weights an honest-but-curious server would invert the smashed data at once, so they travel
under AES-256-GCM. The key is derived from the hand-off key that the clients share. Run, turn and the digest of
the hand-off before are bound as associated data: a hand-off of another run, another turn or another history
does not open.

References: NIST SP 800-38D (AES-GCM); RFC 5869 (HKDF).
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from runtime.checks import check_handoff
from runtime.errors import ConfigError, HandoffError
from runtime.wire import SealedHandoff, Share

KEY_BYTES = 32
_TAG_BYTES = 16
MAX_BYTES = 2**31 - 17  # AES-GCM's limit for one message in OpenSSL


def write_key(path: Path) -> None:
    """Makes a new hand-off key file (64 hex digits, mode 0600).

    Raises:
        ConfigError: the file exists; a key is never overwritten.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists and a key is never overwritten; name another file") from None
    except OSError as error:
        raise ConfigError(f"cannot write a key to {path}: {error.strerror}; name another file") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(KEY_BYTES) + "\n")


def shared_key(path: Path) -> bytes:
    """The key at ``path``, made by whichever process of this machine comes first."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        write_key(draft)
        try:
            # Unlike rename, link fails where the file exists, so all processes read one and the same key.
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return read_key(path)


def read_key(path: Path) -> bytes:
    """The hand-off key in a file.

    Raises:
        ConfigError: the file is missing or is not 64 hex digits.
    """
    try:
        return parse_key(path.read_text(), f"hand-off key file {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read hand-off key file {path}: {error}; make one with 'suture keygen'"
        ) from None


def parse_key(text: str, origin: str) -> bytes:
    """The key written as 64 hex digits in ``text``; ``origin`` names where it came from in errors."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{origin} must hold {2 * KEY_BYTES} hex digits; make one with 'suture keygen FILE'"
        )
    return key


def handoff_digest(handoff: SealedHandoff | None) -> bytes:
    """SHA-256 of what names a hand-off, empty for none: what the next one binds as its history.

    Turn, history, nonce, length and AES-GCM's tag. The tag stands for the ciphertext: without the key nobody makes
    another one that opens under it, and to hash hundreds of megabytes at three places would cost half of a hand-off.
    """
    if handoff is None:
        return b""
    sealed = handoff.ciphertext
    tag = bytes(sealed[-_TAG_BYTES:].tolist())
    named = f"{handoff.turn}/{sealed.numel()}/".encode() + handoff.previous + handoff.nonce + tag
    return hashlib.sha256(named).digest()


class HandoffSeal:
    """Seals and opens hand-offs of one run, and refuses to go back in time.

    Args:
        key: the clients' hand-off key.
        run: the run's id, bound to every hand-off.
        newest: number of the newest turn that this client is known to have sealed or opened.
        digest: that turn's `handoff_digest`; empty where it is not known.
    """

    def __init__(self, key: bytes, run: str, newest: int = 0, digest: bytes = b"") -> None:
        derived = HKDF(SHA256(), length=32, salt=run.encode(), info=b"suture/handoff").derive(key)
        self._cipher = AESGCM(derived)
        self._run = run
        self.newest = newest
        self.digest = digest

    def saw(self, handoff: SealedHandoff) -> None:
        """From now on nothing older than ``handoff`` opens, and no other of the same turn."""
        self.newest, self.digest = handoff.turn, handoff_digest(handoff)

    def seal(
        self, state: Mapping[str, Any], turn: int, previous: SealedHandoff | None, sharer: str = ""
    ) -> SealedHandoff:
        """Seals ``state`` (plain types and tensors) as what ``turn`` produced, after ``previous``.

        Args:
            state: of the parts.
            turn: its number.
            previous: the hand-off that the turn started from, None for the initial parts.
            sharer: the client, where it is its share of a mean; else empty.

        Raises:
            HandoffError: the state is larger than one AES-GCM message can hold.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        if buffer.tell() > MAX_BYTES:
            raise HandoffError(
                f"the hand-off has {buffer.tell()} bytes, the limit is {MAX_BYTES}; cut earlier"
            )
        # A random 96-bit nonce under a key of this run alone: 2**32 hand-offs before reuse is a concern.
        nonce, before = secrets.token_bytes(12), handoff_digest(previous)
        sealed = torch.empty(buffer.tell() + _TAG_BYTES, dtype=torch.uint8)
        self._cipher.encrypt_into(
            nonce, buffer.getbuffer(), self._bound(turn, before, sharer), sealed.numpy().data
        )
        return SealedHandoff(turn, before, nonce, sealed)

    def open(self, handoff: SealedHandoff) -> dict[str, Any]:
        """The state in ``handoff``.

        Raises:
            HandoffError: it is older than one already seen, or it does not open under this key and run.
            WireError: it is malformed.
        """
        check_handoff(handoff, "server", MAX_BYTES)
        if handoff.turn < self.newest:
            raise HandoffError(
                f"the server offered the hand-off of turn {handoff.turn}, but this client has seen turn "
                f"{self.newest}; if the consortium agreed to go back, use --accept-rollback {handoff.turn}"
            )
        if handoff.turn == self.newest and self.digest not in (b"", handoff_digest(handoff)):
            raise HandoffError(
                f"the server offered another hand-off of turn {handoff.turn} than the one this client has seen; "
                f"if the consortium agreed to that, use --accept-rollback {handoff.turn}"
            )
        state = self._opened(handoff)
        self.saw(handoff)
        return state

    def open_share(self, share: Share, turn: int, previous: SealedHandoff | None) -> dict[str, Any]:
        """What a client sealed as its share of a mean.

        Args:
            share: as the server offers it.
            turn: number of the turn in which the clients trained.
            previous: the hand-off that they all started from.

        Raises:
            HandoffError: it is of another turn, start or client, or does not open under this key and run.
            WireError: it is malformed.
        """
        sealed = check_handoff(share.sealed, "server", MAX_BYTES)
        if (sealed.turn, sealed.previous) != (turn, handoff_digest(previous)):
            raise HandoffError(
                f"the server offered a share of turn {sealed.turn} of {share.client} for the mean of turn {turn}"
            )
        return self._opened(sealed, share.client)

    def _opened(self, handoff: SealedHandoff, sharer: str = "") -> dict[str, Any]:
        try:
            plain = self._cipher.decrypt(
                handoff.nonce,
                handoff.ciphertext.numpy().data,
                self._bound(handoff.turn, handoff.previous, sharer),
            )
        except InvalidTag:
            raise HandoffError(
                f"the hand-off of turn {handoff.turn} does not open: another hand-off key, another run, or it "
                "was altered; give every client the same --handoff-key"
            ) from None
        state: dict[str, Any] = torch.load(io.BytesIO(plain), weights_only=True, map_location="cpu")
        return state

    def _bound(self, turn: int, previous: bytes, sharer: str) -> bytes:
        kind = f"share/{sharer}" if sharer else "handoff"
        return f"suture/{kind}/{self._run}/{turn}/".encode() + previous

    def __reduce__(self) -> str:
        raise TypeError("HandoffSeal holds the clients' key and refuses to be pickled")


def part_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of one part's state dict, over sorted (name, dtype, shape, bytes)."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(parts: Mapping[str, str]) -> str:
    """``weights_sha256``: SHA-256 (hex) over the parts' digests, in the order of their names."""
    return hashlib.sha256("/".join(f"{name}:{parts[name]}" for name in sorted(parts)).encode()).hexdigest()
