"""The checks that every message must pass.

A peer is believed in nothing: each field is checked for type, rank, shape, dtype, range and finiteness, and
refused with an error that names the client and the field.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suture.runtime.errors import DivergedError, WireError
from suture.runtime.wire.messages import (
    PHASES,
    QUERY,
    Farewell,
    Hello,
    LossReply,
    Release,
    SealedHandoff,
    StepReply,
    Upload,
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What one tensor on the wire must look like.

    Attributes:
        shape: without the batch dimension.
        dtype: exactly this one.
        max_batch: largest batch accepted; the smallest is 1.
        below: for integers, an exclusive upper bound; the lower bound is 0.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    max_batch: int
    below: int | None = None

    @property
    def num_classes(self) -> int | None:
        """Of labels: classes, or findings; None where there is no bound."""
        return self.shape[0] if self.shape else self.below

    @classmethod
    def like(cls, tensor: Tensor) -> TensorSpec:
        """What ``tensor`` looks like, and its gradient."""
        return cls(tuple(tensor.shape[1:]), tensor.dtype, len(tensor))

    def check(self, tensor: Any, peer: str, field: str) -> Tensor:
        """Returns ``tensor`` if it fits.

        Raises:
            WireError: it does not; the message names peer, field, what was expected and what came.
        """

        checked = self.check_form(tensor, peer, field)
        if self.below is not None and (int(checked.min()) < 0 or int(checked.max()) >= self.below):
            low, high = int(checked.min()), int(checked.max())
            raise WireError(
                f"{peer}: {field}: expected values in 0..{self.below - 1}, got {low}..{high}; refused"
            )
        check_finite(checked, peer, field)
        return checked

    def check_form(self, tensor: Any, peer: str, field: str) -> Tensor:
        """`check` without a look at the values."""

        def refuse(expected: str, got: object) -> WireError:
            return WireError(f"{peer}: {field}: expected {expected}, got {got}; refused")

        if not isinstance(tensor, Tensor):
            raise refuse("a tensor", type(tensor).__name__)
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            raise refuse("a dense tensor", tensor.layout)
        if tensor.dtype is not self.dtype:
            raise refuse(str(self.dtype), tensor.dtype)
        wanted = f"shape (1..{self.max_batch}, {', '.join(map(str, self.shape))})".replace(", )", ")")
        if tensor.dim() != 1 + len(self.shape) or tuple(tensor.shape[1:]) != self.shape:
            raise refuse(wanted, tuple(tensor.shape))
        if not 1 <= tensor.shape[0] <= self.max_batch:
            raise refuse(wanted, tuple(tensor.shape))
        return tensor


def check_finite(tensor: Tensor, peer: str, field: str) -> None:
    """Refuses NaN and infinities.

    Raises:
        WireError: with the number of values that are not finite.
    """
    if not tensor.is_floating_point():
        return
    values = tensor.detach()
    if not _all_finite(values):
        num_bad = int((~torch.isfinite(values)).sum())
        raise WireError(f"{peer}: {field}: {num_bad} of {values.numel()} values are NaN or infinite; refused")


def _all_finite(values: Tensor) -> bool:
    # One non-finite value makes the sum non-finite, and a sum is several times cheaper than isfinite; only a
    # sum that overflowed needs the second look.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def check_hello(hello: Any, num_classes: int | None) -> Hello:
    """Returns ``hello`` if it is sound.

    Args:
        hello: as it came.
        num_classes: K where labels are shared, so that the loss is the server's; else None.

    Raises:
        WireError: a field has another type, shape or range than the protocol's.
    """
    if not isinstance(hello, Hello):
        raise WireError(f"a newcomer: hello: expected a Hello, got {type(hello).__name__}; refused")
    name = hello.client
    if not isinstance(name, str) or not name.replace("_", "a").isalnum() or len(name) > 64:
        raise WireError(f"a client's name must be letters, digits and underscores, got {name!r:.70}")
    options = hello.agreement
    if not isinstance(options, dict) or not all(
        isinstance(text, str) for item in options.items() for text in item
    ):
        raise WireError(f"{name}: agreement: expected options as text, got {type(options).__name__}; refused")
    for field in ("num_images", "num_batches"):
        value = getattr(hello, field)
        if type(value) is not int or value < 0:
            raise WireError(f"{name}: {field}: expected a number from 0, got {value!r:.40}; refused")
    if (hello.num_images > 0) != (hello.num_batches > 0):
        raise WireError(
            f"{name}: num_batches: {hello.num_batches} of {hello.num_images} images; both or none; refused"
        )
    weights: Any = hello.class_weights
    if weights is not None:
        if num_classes is None:
            raise WireError(f"{name}: class_weights: they must stay at home here; refused")
        TensorSpec((), torch.float32, num_classes).check(weights, name, "class_weights")
        if len(weights) != num_classes:
            raise WireError(
                f"{name}: class_weights: expected shape ({num_classes}), got {tuple(weights.shape)}; refused"
            )
        if float(weights.min()) < 0:
            raise WireError(
                f"{name}: class_weights: expected values from 0, got {float(weights.min())}; refused"
            )
    return hello


def check_farewell(farewell: Any, peer: str) -> Farewell:
    """Returns ``farewell`` if it is sound.

    Raises:
        WireError: it has no digests, one that is not 64 hex digits, or a number of bytes that is none.
    """
    if not isinstance(farewell, Farewell):
        raise WireError(f"{peer}: farewell: expected a Farewell, got {type(farewell).__name__}; refused")
    digests = farewell.digests
    if not isinstance(digests, dict) or not digests or not digests.keys() <= {"bottom", "head"}:
        raise WireError(f"{peer}: farewell.digests: expected those of bottom and head; refused")
    for digest in digests.values():
        if not _is_digest(digest):
            raise WireError(f"{peer}: farewell.digests: expected 64 hex digits, got {digest!r:.70}; refused")
    if type(farewell.peak_memory) is not int or farewell.peak_memory < 0:
        raise WireError(
            f"{peer}: farewell.peak_memory: expected bytes, got {farewell.peak_memory!r:.40}; refused"
        )
    return farewell


def check_loss(reply: Any, peer: str) -> LossReply:
    """Returns ``reply`` if it is a loss; whether it is finite is another question, see `DivergedError`.

    Raises:
        WireError: the root of backward is not a float32 scalar, or no number stands beside it.
    """
    if not isinstance(reply, LossReply):
        raise WireError(f"{peer}: loss: expected a LossReply, got {type(reply).__name__}; refused")
    loss: Any = reply.loss
    if not isinstance(loss, Tensor) or loss.dtype is not torch.float32 or tuple(loss.shape) != ():
        raise WireError(f"{peer}: loss: expected a float32 scalar, got {type(loss).__name__}; refused")
    if not isinstance(reply.task_loss, float):
        raise WireError(f"{peer}: loss: expected a number beside it, got {reply.task_loss!r:.40}; refused")
    return reply


def check_gradient(gradient: Any, like: Tensor, peer: str) -> Tensor:
    """Returns ``gradient`` if it is shaped like ``like``; that it is finite shows when the turn is sealed.

    Raises:
        WireError: it is no dense float32 tensor of that shape.
    """
    dense = isinstance(gradient, Tensor) and gradient.layout is torch.strided and not gradient.is_nested
    if not dense or gradient.dtype is not torch.float32 or gradient.shape != like.shape:
        got = f"{gradient.dtype} {tuple(gradient.shape)}" if dense else type(gradient).__name__
        raise WireError(f"{peer}: gradient: expected float32 {tuple(like.shape)}, got {got}; refused")
    checked: Tensor = gradient
    return checked


def check_step_reply(reply: Any, peer: str) -> StepReply:
    """Returns ``reply`` if it holds a loss; its gradient is looked at when it has been decoded.

    Raises:
        WireError: it does not.
    """
    if not isinstance(reply, StepReply):
        raise WireError(f"{peer}: loss: expected a StepReply, got {type(reply).__name__}; refused")
    check_loss(LossReply(reply.loss, reply.task_loss), peer)
    return reply


def check_weights(tensors: Iterable[Tensor], peer: str, place: str) -> None:
    """Refuses weights that left the finite numbers, before they count.

    Raises:
        DivergedError: names the part's owner and the place.
    """
    for tensor in tensors:
        if tensor.is_floating_point() and not _all_finite(tensor):
            raise DivergedError(
                f"{peer}: {place}: a weight is NaN or infinite; start a new run with a lower --lr, or look at "
                "this client's images; the last good checkpoint is kept"
            )


def check_scores(scores: Any, peer: str) -> dict[str, dict[str, float]]:
    """Returns a report's scores as plain floats.

    Raises:
        WireError: a phase is unknown, a name is not a short word, or a value is not a finite number.
    """
    if not isinstance(scores, Mapping):
        raise WireError(f"{peer}: scores: expected a mapping, got {type(scores).__name__}; refused")
    checked: dict[str, dict[str, float]] = {}
    for phase, values in scores.items():
        if phase not in PHASES or not isinstance(values, Mapping) or len(values) > 64:
            raise WireError(
                f"{peer}: scores: expected phases {', '.join(PHASES)}, got {phase!r:.40}; refused"
            )
        for name, value in values.items():
            if not isinstance(name, str) or not name.isidentifier() or len(name) > 40:
                raise WireError(f"{peer}: scores: expected a metric's name, got {name!r:.40}; refused")
            # A whole number may be too large for a float; as one NaN it fails every comparison.
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not abs(value) <= sys.float_info.max:
                raise WireError(
                    f"{peer}: scores.{name}: expected a finite number, got {value!r:.40}; refused"
                )
        checked[phase] = {name: float(value) for name, value in values.items()}
    return checked


def check_release(release: Any, top: Mapping[str, TensorSpec], peer: str) -> Release:
    """Returns ``release`` if its tops are what this run's top looks like; or empty, where the server keeps it.

    Args:
        release: as it came.
        top: what each tensor of the top looks like, by name; ``max_batch`` does not count.
        peer: who sent it.

    Raises:
        WireError: a tensor is missing, is one too many, has another shape or type, or is not finite.
    """
    if not isinstance(release, Release):
        raise WireError(f"{peer}: release: expected a Release, got {type(release).__name__}; refused")
    for field, state in (("top", release.top), ("best_top", release.best_top)):
        if not state:
            continue
        if state.keys() != top.keys():
            raise WireError(f"{peer}: release.{field}: its tensors are not those of this run's top; refused")
        for name, tensor in state.items():
            spec = top[name]
            if tuple(tensor.shape) != spec.shape or tensor.dtype is not spec.dtype:
                raise WireError(
                    f"{peer}: release.{field}: {name}: expected {spec.dtype} {spec.shape}, got {tensor.dtype} "
                    f"{tuple(tensor.shape)}; refused"
                )
            check_finite(tensor, peer, f"release.{field}: {name}")
    return release


def tensors_of(state: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for item in state.values():
            yield from tensors_of(item)
    elif isinstance(state, (list, tuple)):
        for item in state:
            yield from tensors_of(item)


_MOST_CLIENTS = 4096
_MOST = 2**40
"""Of whole numbers in a state: images that a share counts for, steps of an optimizer. A mean multiplies with them."""


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


class Sometimes(dict[Any, Any]):
    """Entries that a state may have or not: an optimizer has moments of the parameters that it has stepped."""


class Digests(dict[str, str]):
    """SHA-256 in hex by the name of a client, of any clients."""


def check_state(state: Any, expected: Any, field: str) -> None:
    """Whether a state that a client sealed is built like one's own.

    Args:
        state: nested dicts and lists of tensors and plain values.
        expected: the same; of its tensors only shape and type count, of plain values the type, and a whole number is
            the least that there may be, and 2**40 the most.
        field: names it in errors.

    Raises:
        WireError: a name, shape or type is another, or a number is not finite.
    """

    def refuse(expects: object, got: object) -> WireError:
        return WireError(f"{field}: expected {expects!s:.80}, got {got!s:.80}; refused")

    if isinstance(expected, Tensor):
        dense = isinstance(state, Tensor) and state.layout is torch.strided
        if not dense or (state.dtype, state.shape) != (expected.dtype, expected.shape):
            got = f"{state.dtype} {tuple(state.shape)}" if dense else type(state).__name__
            raise refuse(f"{expected.dtype} {tuple(expected.shape)}", got)
        check_finite(state, "its author", field)
    elif isinstance(expected, Digests):
        named = isinstance(state, Mapping) and len(state) <= _MOST_CLIENTS
        if not named or not all(len(str(name)) <= 200 and _is_digest(text) for name, text in state.items()):
            raise refuse("a SHA-256 a client", state)
    elif isinstance(expected, Mapping):
        if not isinstance(state, Mapping):
            raise refuse("names", type(state).__name__)
        missing = set() if isinstance(expected, Sometimes) else expected.keys() - state.keys()
        if other := missing | (state.keys() - expected.keys()):
            raise refuse(
                f"{len(expected)} names",
                f"{len(state)}, of which {sorted(map(str, other))[0]} is one of those that differ",
            )
        for name, item in state.items():
            check_state(item, expected[name], f"{field}.{name}")
    elif isinstance(expected, (list, tuple)):
        if not isinstance(state, (list, tuple)) or len(state) != len(expected):
            raise refuse(f"a list of {len(expected)}", type(state).__name__)
        for index, item in enumerate(state):
            check_state(item, expected[index], f"{field}[{index}]")
    elif type(state) is not type(expected):
        raise refuse(type(expected).__name__, type(state).__name__)
    elif isinstance(state, float) and not math.isfinite(state):
        raise refuse("a finite number", state)
    elif type(state) is int and not expected <= state <= _MOST:
        raise refuse(f"{expected}..{_MOST}", state)


def check_handoff(handoff: Any, peer: str, max_bytes: int) -> SealedHandoff:
    """Returns ``handoff`` if its outside is sound; its inside can be checked by clients alone.

    Raises:
        WireError: a field has another type or size than the protocol's.
    """
    if not isinstance(handoff, SealedHandoff):
        raise WireError(f"{peer}: handoff: expected a sealed hand-off, got {type(handoff).__name__}; refused")
    if type(handoff.turn) is not int or handoff.turn < 0 or type(handoff.epoch) is not int:
        raise WireError(f"{peer}: handoff.turn: expected a number from 0, got {handoff.turn!r:.40}; refused")
    if not isinstance(handoff.previous, bytes) or len(handoff.previous) not in (0, 32):
        raise WireError(f"{peer}: handoff.previous: expected 0 or 32 bytes; refused")
    if not isinstance(handoff.nonce, bytes) or len(handoff.nonce) != 12:
        raise WireError(f"{peer}: handoff.nonce: expected 12 bytes; refused")
    sealed = handoff.ciphertext
    dense = isinstance(sealed, Tensor) and sealed.layout is torch.strided and sealed.is_contiguous()
    if not dense or sealed.dtype is not torch.uint8:
        raise WireError(f"{peer}: handoff.ciphertext: expected uint8 in one piece; refused")
    if handoff.ciphertext.dim() != 1 or not 16 <= handoff.ciphertext.numel() <= max_bytes:
        raise WireError(
            f"{peer}: handoff.ciphertext: expected one dimension of 16..{max_bytes} bytes, "
            f"got {tuple(handoff.ciphertext.shape)}; refused"
        )
    return handoff


def check_upload(
    upload: Upload, peer: str, smashed: TensorSpec, labels: TensorSpec | None, training: bool
) -> None:
    """Checks one batch on its way up.

    Args:
        upload: as it came, its smashed data decoded.
        peer: who sent it.
        smashed: what smashed data must look like.
        labels: what labels must look like; None where there must be none.
        training: whether it is a training turn.

    Raises:
        WireError: names the client and the field.
    """
    if upload.phase not in (*PHASES, QUERY) or (upload.phase == "train") is not training:
        raise WireError(f"{peer}: phase: {upload.phase!r:.40} does not fit the turn; refused")
    if type(upload.batch) is not int or upload.batch < 0:
        raise WireError(f"{peer}: batch: expected a number from 0, got {upload.batch!r:.40}; refused")
    sent = smashed.check(upload.smashed, peer, "smashed")
    if labels is None:
        if upload.labels is not None:
            raise WireError(f"{peer}: labels: they must stay at home here; refused")
        return
    labels.check(upload.labels, peer, "labels")
    if upload.labels is not None and len(upload.labels) != len(sent):
        raise WireError(
            f"{peer}: labels: expected {len(sent)}, one a smashed image, got {len(upload.labels)}; refused"
        )
