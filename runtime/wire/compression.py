"""How smashed data, the top's output and their gradients look while they cross the wire: ``--wire``.

Both sides compute in float32: what a defence has let through is encoded, and what arrives is decoded before the wire's
other checks, an attack's doors and the top see it. A payload is checked as strictly as a tensor is.

- int8: Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD: Communication-efficient SGD via gradient quantization and
  encoding, NeurIPS 2017, arXiv:1610.02132 (rounding at random, so that the mean is the value itself).
- topk: Zheng, Chen, Lyu, Yao: Reducing communication for split learning by randomized top-k sparsification, IJCAI
  2023, arXiv:2305.18469 (the gradient comes back for the values that were sent, and for no others).

Note:
    What topk leaves out of one batch is not added to the next, as gradient compression does (error feedback): two
    batches are of different images. docs/decisions.md says what was measured.

Shape legend: N batch; D dimensions at the cut (h_ND); C channels; K values kept of an image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from suture.runtime.errors import ConfigError, WireError
from suture.runtime.training.randomness import Randomness
from suture.runtime.wire.checks import TensorSpec, check_finite
from suture.runtime.wire.messages import Packed

Payload = Tensor | Packed
Draws = Callable[[], torch.Generator]


class Format(ABC):
    """One way to write a tensor; without state.

    Attributes:
        differentiable: whether autograd knows the way through, so that a graph can cross the wire.
    """

    differentiable: ClassVar[bool] = False

    @abstractmethod
    def encode(self, tensor: Tensor, draws: Draws, of: Payload | None = None) -> Payload:
        """``tensor`` (float32, one row an image) as it crosses.

        Args:
            tensor: values that are not finite come out so, or make the payload one that `decode` refuses.
            draws: makes the generator that this tensor's rounding draws from.
            of: where ``tensor`` is a gradient: the payload that it is the gradient of.
        """

    @abstractmethod
    def decode(self, payload: Any, spec: TensorSpec, peer: str, field: str, of: Payload | None = None) -> Any:
        """The float32 tensor that a peer encoded; whether it is finite is the caller's next question.

        Args:
            payload: as it came.
            spec: what the tensor must look like.
            peer: who sent it.
            field: what it is.
            of: as in `encode`; was sent or checked here before.

        Raises:
            WireError: it is no payload of this format and ``spec``; names peer and field.
        """


class Plain(Format):
    """float32 as it is: no copy, no draw, and nothing to check but the tensor itself."""

    differentiable: ClassVar[bool] = True

    def encode(self, tensor: Tensor, draws: Draws, of: Payload | None = None) -> Payload:
        return tensor

    def decode(self, payload: Any, spec: TensorSpec, peer: str, field: str, of: Payload | None = None) -> Any:
        return payload


class Cast(Format):
    """Half precision, rounded to the nearest. Autograd casts a cast's gradient alike.

    Args:
        dtype: bfloat16 keeps float32's range and 8 bits, float16 11 bits between 6e-8 and 65504: small gradients
            become 0 and a large value is refused.
    """

    differentiable: ClassVar[bool] = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def encode(self, tensor: Tensor, draws: Draws, of: Payload | None = None) -> Payload:
        return tensor.to(self.dtype)

    def decode(self, payload: Any, spec: TensorSpec, peer: str, field: str, of: Payload | None = None) -> Any:
        half = replace(spec, dtype=self.dtype).check_form(payload, peer, field)
        if self.dtype is torch.float16:
            check_finite(half, peer, f"{field} (fp16 ends at 65504, --wire bf16 does not)")
        return half.float()


class Int8(Format):
    """Whole numbers from -127 to 127 times a scale, rounded up or down at random so that the mean is the value.

    A scale a channel where there are channels with several values each: channels differ in size by orders (batch norm
    learns to weigh them), and under one scale the quiet ones would be all noise. Else a scale a tensor: one for each
    single feature would cost more than it saves.
    """

    def encode(self, tensor: Tensor, draws: Draws, of: Payload | None = None) -> Payload:
        alone = [dim for dim in range(tensor.dim()) if dim != 1 or tensor.dim() == 2]
        scale = tensor.abs().amax(alone, keepdim=True) / 127
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # not of NaN: that is to be seen
        # Noise and all, 127 can come out as 128 in float32.
        drawn = torch.rand(tensor.shape, generator=draws())
        values = (tensor / scale + drawn).floor_().clamp_(-127, 127).to(torch.int8)
        return Packed(values.contiguous(), scale.flatten())

    def decode(self, payload: Any, spec: TensorSpec, peer: str, field: str, of: Payload | None = None) -> Any:
        packed = _packed(payload, peer, field)
        values = replace(spec, dtype=torch.int8).check_form(packed.values, peer, field)
        if int(values.min()) < -127:
            raise WireError(f"{peer}: {field}: expected values in -127..127, got -128; refused")
        channels = spec.shape[0] if len(spec.shape) > 1 else 1
        scale = TensorSpec((), torch.float32, channels).check(packed.beside, peer, f"{field}.scale")
        if len(scale) != channels or not float(scale.min()) > 0:
            raise WireError(
                f"{peer}: {field}.scale: expected {channels} numbers above 0, got {len(scale)} from "
                f"{float(scale.min()):g}; refused"
            )
        return values.float() * (scale.view(1, -1, *[1] * (len(spec.shape) - 1)) if channels > 1 else scale)


class Topk(Format):
    """The largest values of each image and their places; all others are 0.

    The gradient comes back for those places alone and in full: it is the exact gradient of what was computed.

    Args:
        share: of an image's values, above 0 and at most 1; rounded up to whole values.
    """

    def __init__(self, share: Fraction) -> None:
        self.share = share

    def _num_kept(self, shape: tuple[int, ...]) -> int:
        return math.ceil(self.share * math.prod(shape))

    def encode(self, tensor: Tensor, draws: Draws, of: Payload | None = None) -> Payload:
        flat = tensor.flatten(1)
        if of is not None:
            return flat.gather(1, _places(of))
        found = flat.abs().topk(self._num_kept(tuple(tensor.shape[1:])), dim=1, sorted=False).indices
        places = found.sort(dim=1).values
        return Packed(flat.gather(1, places), places.int())

    def decode(self, payload: Any, spec: TensorSpec, peer: str, field: str, of: Payload | None = None) -> Any:
        numel, kept = math.prod(spec.shape), self._num_kept(spec.shape)
        kept_of = TensorSpec((kept,), torch.float32, spec.max_batch)
        if of is None:
            packed = _packed(payload, peer, field)
            values = kept_of.check_form(packed.values, peer, field)
            places = replace(kept_of, dtype=torch.int32, below=numel).check(
                packed.beside, peer, f"{field}.places"
            )
            # In ascending order none can come twice.
            if len(places) != len(values) or not bool((places[:, 1:] > places[:, :-1]).all()):
                raise WireError(f"{peer}: {field}.places: expected {kept} an image, ascending; refused")
            places = places.long()
        else:
            values, places = kept_of.check_form(payload, peer, field), _places(of)
            if len(values) != len(places):
                raise WireError(f"{peer}: {field}: expected {len(places)} images, got {len(values)}; refused")
        return torch.zeros(len(values), numel).scatter_(1, places, values).view(len(values), *spec.shape)


def _packed(payload: Any, peer: str, field: str) -> Packed:
    if not isinstance(payload, Packed):
        raise WireError(f"{peer}: {field}: expected a Packed tensor, got {type(payload).__name__}; refused")
    return payload


def _places(of: Payload) -> Tensor:
    assert isinstance(of, Packed)
    return of.beside.long()


def _topk(argument: str) -> Format:
    try:
        share = Fraction(argument)
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share <= 1:
        raise ConfigError(
            f"wire topk:R keeps a share R above 0 and at most 1, got {argument!r}; try topk:0.1"
        )
    return Topk(share)


@dataclass(frozen=True, kw_only=True)
class FormatEntry:
    """A format by name: what ``--help`` says of it, and how it is made of what stands behind the colon."""

    name: str
    summary: str
    build: Callable[[str], Format]
    argument: str = ""


FORMATS: dict[str, FormatEntry] = {
    entry.name: entry
    for entry in (
        FormatEntry(name="fp32", summary="as computed", build=lambda _: Plain()),
        FormatEntry(
            name="bf16", summary="half the bytes, 8 bits of precision", build=lambda _: Cast(torch.bfloat16)
        ),
        FormatEntry(
            name="fp16", summary="half the bytes, 11 bits, up to 65504", build=lambda _: Cast(torch.float16)
        ),
        FormatEntry(
            name="int8", summary="a quarter; a scale a channel, rounded at random", build=lambda _: Int8()
        ),
        FormatEntry(
            name="topk", argument="R", summary="the share R (0 to 1) of largest values an image", build=_topk
        ),
    )
}
"""What ``--wire`` can say."""


def names() -> list[str]:
    """The formats as they are written on the command line."""
    return [entry.name + (f":{entry.argument}" if entry.argument else "") for entry in FORMATS.values()]


def parse_format(text: str) -> Format:
    """The format that ``--wire`` names.

    Raises:
        ConfigError: there is none of that name, or its argument is missing, out of range or one too many.
    """
    name, colon, argument = text.partition(":")
    if text in FORMATS and not FORMATS[text].argument:
        return FORMATS[text].build("")
    entry = FORMATS.get(name)
    if entry is None or not colon or not entry.argument:
        raise ConfigError(f"wire must be one of {', '.join(names())}, got {text!r}")
    return entry.build(argument)


class Packer:
    """One end of the wire.

    Args:
        wire: as `parse_format` takes it.
        randomness: this end's; each draw names its place, so that a repeated or resumed run rounds the same.
    """

    def __init__(self, wire: str, randomness: Randomness) -> None:
        self.wire = wire
        self._format = parse_format(wire)
        self._randomness = randomness

    @property
    def differentiable(self) -> bool:
        """Whether a graph can cross in this format."""
        return self._format.differentiable

    def pack(self, tensor: Tensor, what: str, *place: int | str, of: Payload | None = None) -> Payload:
        """``tensor`` as it crosses; ``what`` it is and its ``place`` (round, client, batch) settle its draws."""
        draws = self._randomness.generator
        return self._format.encode(tensor, lambda: draws(f"wire/{what}", *place), of)

    def unpack(self, payload: Any, spec: TensorSpec, peer: str, field: str, of: Payload | None = None) -> Any:
        """What a peer packed; see `Format.decode`."""
        return self._format.decode(payload, spec, peer, field, of)
