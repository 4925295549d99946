"""The sealed hand-off: a client's parts go to the next client through a server that cannot read them.

With the bottom's weights an honest-but-curious server would invert the smashed data at once, so they travel
under AES-256-GCM. The key is derived from the hand-off key that the clients share. Run, turn and the digest of
the hand-off before are bound as associated data: a hand-off of another run, another turn or another history
does not open. Between hospitals the author signs all of it, so that it is known who sealed what is bad.

References: NIST SP 800-38D (AES-GCM); RFC 5869 (HKDF).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from suture.runtime.errors import BadHandoffError, ConfigError, HandoffError, WireError
from suture.runtime.host.private_files import check_private
from suture.runtime.wire import frames
from suture.runtime.wire.checks import check_handoff, check_state
from suture.runtime.wire.messages import SealedHandoff, Share, Statement
from suture.runtime.wire.statements import digest

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
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
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
        ConfigError: the file is missing, others may read it, it is another user's, or it is not 64 hex digits.
    """
    try:
        text = path.read_text(encoding="utf-8")
        check_private(path, "hand-off key file")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read hand-off key file {path}: {error}; make one with 'suture keygen'"
        ) from None
    return parse_key(text, f"hand-off key file {path}")


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

    Of a signed one that is what its author signed, the ciphertext's SHA-256 among it. Of others turn, history, nonce,
    length and AES-GCM's tag: without the key nobody makes another ciphertext that opens under it.
    """
    if handoff is None:
        return b""
    if handoff.statement is not None:
        return bytes.fromhex(digest(handoff.statement))
    sealed = handoff.ciphertext
    tag = bytes(sealed[-_TAG_BYTES:].tolist())
    named = f"{handoff.turn}/{sealed.numel()}/".encode() + handoff.previous + handoff.nonce + tag
    return hashlib.sha256(named).digest()


class Signer(Protocol):
    """A site that signs what it seals and checks what others signed; see ``consortium.site``."""

    @property
    def epoch(self) -> int: ...
    def key(self, epoch: int) -> bytes: ...
    def sign(self, kind: str, **content: Any) -> Statement: ...
    def check(self, handoff: SealedHandoff, kind: str) -> dict[str, Any]: ...
    def takes_in_place(self, statement: dict[str, Any], seen: bytes) -> bool: ...


class HandoffSeal:
    """Seals and opens hand-offs of one run, and refuses to go back in time.

    Args:
        key: the clients' hand-off key; not used where there is a ``signer``, which has one for every epoch.
        run: the run's id, bound to every hand-off.
        newest: number of the newest turn that this client is known to have sealed or opened.
        digest: that turn's `handoff_digest`; empty where it is not known.
        signer: signs and checks, between hospitals; None where one person runs all clients.
    """

    def __init__(
        self, key: bytes, run: str, newest: int = 0, digest: bytes = b"", signer: Signer | None = None
    ) -> None:
        self._key = key
        self._run = run
        self._signer = signer
        self.newest = newest
        self.digest = digest

    def saw(self, handoff: SealedHandoff) -> None:
        """From now on nothing older than ``handoff`` opens, and no other of the same turn."""
        self.newest, self.digest = handoff.turn, handoff_digest(handoff)

    def seal(
        self,
        state: Mapping[str, Any],
        turn: int,
        previous: SealedHandoff | None,
        sharer: str = "",
        *,
        shares: Sequence[SealedHandoff] = (),
        replaces: SealedHandoff | None = None,
    ) -> SealedHandoff:
        """Seals ``state`` (plain types and tensors) as what ``turn`` produced, after ``previous``.

        Args:
            state: of the parts.
            turn: its number, 0 for the initial parts.
            previous: the hand-off that the turn started from, None for the initial parts.
            sharer: the client, where it is its share of a mean; else empty.
            shares: of which it is the mean.
            replaces: the hand-off that is sealed again, under a new epoch's key.

        Raises:
            HandoffError: the state is larger than one AES-GCM message can hold.
        """
        pieces = frames.pack(_with_text_keys(dict(state)))
        length = sum(len(piece) for piece in pieces)
        if length > MAX_BYTES:
            raise HandoffError(f"the hand-off has {length} bytes, the limit is {MAX_BYTES}; cut earlier")
        # A random 96-bit nonce under a key of this run alone: 2**32 hand-offs before reuse is a concern.
        nonce, before = secrets.token_bytes(12), handoff_digest(previous)
        epoch = 0 if self._signer is None else self._signer.epoch
        sealed = torch.empty(length + _TAG_BYTES, dtype=torch.uint8)
        room, filled = sealed.numpy().data, 0
        encryptor = Cipher(AES(self._derived(epoch)), GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(self._bound(turn, before, sharer))
        for piece in pieces:
            filled += encryptor.update_into(piece, room[filled:])
        encryptor.finalize()
        room[filled:] = encryptor.tag
        handoff = SealedHandoff(turn, before, nonce, sealed, epoch)
        if self._signer is None:
            return handoff
        more: dict[str, Any] = {"shares": [handoff_digest(share).hex() for share in shares]} if shares else {}
        if replaces is not None:
            more["replaces"] = handoff_digest(replaces).hex()
        kind = SHARE if sharer else HANDOFF
        return replace(handoff, statement=self._signer.sign(kind, **named(handoff, self._run), **more))

    def open(self, handoff: SealedHandoff, expected: Any = None) -> dict[str, Any]:
        """The state in ``handoff``.

        Args:
            handoff: as the server offers it.
            expected: a state that it must be built like; None to take it as it is.

        Raises:
            HandoffError: it is older than one already seen, it does not open under this key and run, or the server has
                altered it.
            BadHandoffError: its author signed it, and it holds what no honest client seals.
            WireError: it is malformed.
        """
        check_handoff(handoff, "server", MAX_BYTES)
        stated = self._stated(handoff, HANDOFF)
        own = handoff_digest(handoff)
        if handoff.turn < self.newest:
            raise HandoffError(
                f"the server offered the hand-off of turn {handoff.turn}, but this client has seen turn "
                f"{self.newest}; if the consortium agreed to go back, use --accept-rollback {handoff.turn}"
            )
        seen = self.digest not in (b"", own) and handoff.turn == self.newest
        # Before anybody has trained another site may have had to begin.
        seen = seen and not (self._signer is not None and handoff.turn == 0)
        if seen and not (self._signer is not None and self._signer.takes_in_place(stated, self.digest)):
            raise HandoffError(
                f"the server offered another hand-off of turn {handoff.turn} than the one this client has seen; "
                f"if the consortium agreed to that, use --accept-rollback {handoff.turn}"
            )
        state = self._opened(handoff, expected=expected)
        self.saw(handoff)
        return state

    def open_share(
        self, share: Share, turn: int, previous: SealedHandoff | None, expected: Any = None
    ) -> dict[str, Any]:
        """What a client sealed as its share of a mean.

        Args:
            share: as the server offers it.
            turn: number of the turn in which the clients trained.
            previous: the hand-off that they all started from.
            expected: as in `open`.

        Raises:
            HandoffError: it is of another turn, start or client, or does not open under this key and run.
            BadHandoffError, WireError: as `open`.
        """
        sealed = check_handoff(share.sealed, "server", MAX_BYTES)
        self._stated(sealed, SHARE)
        by = share.client if sealed.statement is None else sealed.statement.author
        if (sealed.turn, sealed.previous, by) != (turn, handoff_digest(previous), share.client):
            raise HandoffError(
                f"the server offered a share of turn {sealed.turn} of {share.client} for the mean of turn {turn}"
            )
        return self._opened(sealed, share.client, expected)

    def examine(self, share: Share, expected: Any) -> str:
        """Why a hand-off, or a share, that is accused is bad; empty where it is not.

        Args:
            share: the author, and what it signed.
            expected: as in `open`.

        Raises:
            HandoffError: the server has altered it.
            UntrustedError: nobody whom this client knows has signed it.
        """
        sealed = check_handoff(share.sealed, "server", MAX_BYTES)
        kind = sealed.statement.kind if sealed.statement is not None else HANDOFF
        self._stated(sealed, SHARE if kind == SHARE else HANDOFF)
        try:
            self._opened(sealed, share.client if kind == SHARE else "", expected)
        except BadHandoffError as bad:
            return str(bad)
        return ""

    def _stated(self, handoff: SealedHandoff, kind: str) -> dict[str, Any]:
        """What the author of a hand-off signed of it; empty where nobody signs.

        Raises:
            HandoffError: the server offers other bytes under that signature.
        """
        if self._signer is None:
            return {}
        content = self._signer.check(handoff, kind)
        if not says_of(content, handoff, self._run):
            raise HandoffError(
                f"the server offered a hand-off of turn {handoff.turn} that is not what its author signed: the "
                "server, or who passes its bytes on, has altered it; ask its operator"
            )
        return content

    def _opened(self, handoff: SealedHandoff, sharer: str = "", expected: Any = None) -> dict[str, Any]:
        sealed, bound = handoff.ciphertext.numpy().data, self._bound(handoff.turn, handoff.previous, sharer)
        plain = torch.empty(len(sealed) - _TAG_BYTES, dtype=torch.uint8)
        decryptor = Cipher(AES(self._derived(handoff.epoch)), GCM(handoff.nonce)).decryptor()
        decryptor.authenticate_additional_data(bound)
        decryptor.update_into(sealed[:-_TAG_BYTES], plain.numpy().data)
        try:
            decryptor.finalize_with_tag(bytes(sealed[-_TAG_BYTES:]))
        except InvalidTag:
            if handoff.statement is not None:
                raise _bad(handoff, "it does not open: it was sealed with another key") from None
            raise HandoffError(
                f"the hand-off of turn {handoff.turn} does not open: another hand-off key, another run, or it "
                "was altered; give every client the same --handoff-key"
            ) from None
        try:
            state = _with_number_keys(frames.unpack(plain))
            if expected is not None:
                check_state(state, expected, "state")
        except WireError as error:
            if handoff.statement is not None:
                raise _bad(handoff, str(error)) from None
            raise HandoffError(f"the hand-off of turn {handoff.turn}: {error}") from None
        return dict(state)

    def _derived(self, epoch: int) -> bytes:
        key = self._key if self._signer is None else self._signer.key(epoch)
        return HKDF(SHA256(), length=32, salt=self._run.encode(), info=b"suture/handoff").derive(key)

    def _bound(self, turn: int, previous: bytes, sharer: str) -> bytes:
        kind = f"share/{sharer}" if sharer else "handoff"
        return f"suture/{kind}/{self._run}/{turn}/".encode() + previous

    def __reduce__(self) -> str:
        raise TypeError("HandoffSeal holds the clients' key and refuses to be pickled")


def _bad(handoff: SealedHandoff, what: str) -> BadHandoffError:
    assert handoff.statement is not None
    author = handoff.statement.author
    error = BadHandoffError(f"the hand-off of turn {handoff.turn} of {author}: {what}")
    error.exhibit = Share(author, handoff)
    return error


HANDOFF, SHARE = "handoff", "share"
"""Kinds of statement."""


def named(handoff: SealedHandoff, run: str) -> dict[str, Any]:
    """What its author signs of a hand-off of ``run``: everything, the ciphertext by its SHA-256."""
    return {
        "run": run,
        "epoch": handoff.epoch,
        "turn": handoff.turn,
        "previous": handoff.previous.hex(),
        "nonce": handoff.nonce.hex(),
        "sha256": hashlib.sha256(handoff.ciphertext.numpy().data).hexdigest(),
    }


def says_of(content: Mapping[str, Any], handoff: SealedHandoff, run: str) -> bool:
    """Whether the content of a statement names exactly this hand-off."""
    named_here = named(handoff, run)
    return {name: content.get(name) for name in named_here} == named_here


def commitment(key: bytes) -> str:
    """What may be said of a key so that two who have one see whether it is the same; tells nothing else of it."""
    return HKDF(SHA256(), length=16, salt=None, info=b"suture/commitment").derive(key).hex()


def _with_text_keys(value: Any) -> Any:
    """``value`` with its dicts' whole numbers (an optimizer's parameters) as text: messages know no others."""
    if isinstance(value, Mapping):
        return {
            f"#{key}" if type(key) is int else str(key): _with_text_keys(item) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(item) for item in value]
    return value


def _with_number_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            int(key[1:])
            if key[:1] == "#" and key[1:].isdecimal() and len(key) < 10
            else key: _with_number_keys(item)
            for key, item in value.items()
        }
    return [_with_number_keys(item) for item in value] if isinstance(value, list) else value


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


def model_digest(states: Mapping[str, Mapping[str, Tensor]]) -> str:
    """``weights_sha256`` of a whole model, from its parts' state dicts."""
    return weights_digest({name: part_digest(state) for name, state in states.items()})
