"""One client's images: decoded once into memory, shuffled, augmented and normalised batch by batch.

Shape legend: N batch · C,H,W image.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from suture.runtime.data.augmentation import AUGMENTATIONS
from suture.runtime.data.library_warnings import counted_warnings
from suture.runtime.data.normalise import Normalisation, check_normalisation, normalise
from suture.runtime.data.partition import Share
from suture.runtime.data.source import Source, Task
from suture.runtime.data.survey import survey
from suture.runtime.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_SHOWN = 200

Split = Literal["train", "validation", "test", "held_out", "offered"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes through the network in one step.

    Attributes:
        inputs: x_NCHW float32, normalised.
        targets: y_N int64, findings_NK int64, or mask_N1HW float32 of zeros and ones.
        number: 0-based within the turn.
        keys: Indices of the examples in ``source.examples``; they stay with the client.
    """

    inputs: Tensor
    targets: Tensor
    number: int
    keys: tuple[int, ...]


class ClientData:
    """The images of one share.

    Pictures stay uint8 in memory (12 KB each at 64 px) and become float only in a batch. No file is opened
    after construction, so that the process may lose its right to read images. ``notes`` say what of the source is not
    used and what was found in its pictures; they name no image and no patient. ``num_patients`` is by set.

    Args:
        source: Where to read.
        share: What to read.
        image_size: Edge length in pixels.
        channels: 1 or 3.
        normalisation: "imagenet" (3 channels) or "symmetric" ([-1, 1]).
        augment: How training batches are augmented, one of ``AUGMENTATIONS``.

    Raises:
        ConfigError: A normalisation that does not fit the channels.
        DataError: A file cannot be read; all of the source that cannot are named, so that one start tells them.
    """

    def __init__(
        self,
        source: Source,
        share: Share,
        *,
        image_size: int,
        channels: int,
        normalisation: Normalisation,
        augment: str,
    ) -> None:
        check_normalisation(normalisation, channels)
        self.task = source.task
        self.classes = source.classes
        self.share = share
        self._normalisation = normalisation
        self._augment = AUGMENTATIONS[augment]
        self._mirror = source.mirror
        parts: dict[str, tuple[int, ...]] = {
            "train": share.train,
            "validation": share.validation,
            "test": share.test,
            "held_out": share.held_out,
            "offered": (),
        }
        self.num_patients = {
            name: len({source.examples[index].patient for index in parts[name]})
            for name in ("train", "validation", "test")
        }
        try:
            with counted_warnings() as said:
                self._splits: dict[str, _Decoded] = {
                    name: _decode(source, part, image_size, channels) for name, part in parts.items()
                }
        except DataError:
            raise _all_unreadable(source, image_size, channels) from None
        for note in said.notes():
            log.info("%s: %s", source.name, note)
        self.notes = (*source.notes, *said.notes())

    def num_train_batches(self, batch_size: int) -> int:
        """Batches in a turn."""
        return len(_cuts(len(self.share.train), batch_size, drop_single=True))

    def train_batches(
        self, batch_size: int, order: torch.Generator, augmentation: Callable[[int], torch.Generator]
    ) -> Iterator[Batch]:
        """One turn's batches, a pure function of the generators: a resumed run repeats them bit for bit.

        A last batch that is short is kept, unless it would hold a single image: batch normalisation cannot
        train on one, so that image sits out this turn (another one in the next). With a batch size of 1
        nothing is dropped.

        Args:
            batch_size: At least 1.
            order: Draws the order of the images.
            augmentation: From a batch's number to the generator that draws its augmentation.

        Raises:
            ConfigError: ``batch_size`` below 1.
        """
        decoded = self._splits["train"]
        permutation = torch.randperm(len(decoded.keys), generator=order)
        for number, cut in enumerate(_cuts(len(permutation), batch_size, drop_single=True)):
            rows = permutation[cut]
            images, masks = decoded.floats(rows)
            images, masks = self._augment(images, masks, self._mirror, augmentation(number))
            yield self._batch(decoded, rows, images, masks, number)

    def test_batches(self, batch_size: int, split: Split = "test") -> Iterator[Batch]:
        """A split in its fixed order, unaugmented and whole; "train" serves to measure the fit.

        Held-out images are those that a judge scores attacks on; the targets of offered ones are all zero.
        """
        decoded = self._splits[split]
        order = torch.arange(len(decoded.keys))
        for number, cut in enumerate(_cuts(len(order), batch_size, drop_single=False)):
            rows = order[cut]
            images, masks = decoded.floats(rows)
            yield self._batch(decoded, rows, images, masks, number)

    def num_images(self) -> int:
        """Images of all splits together."""
        return sum(len(decoded.keys) for decoded in self._splits.values())

    def num_bytes(self) -> int:
        """Memory that they and their targets take."""
        return sum(d.images.nbytes + d.targets.nbytes for d in self._splits.values())

    def class_counts(self, split: Split = "train") -> tuple[int, ...]:
        """Images by class, or by finding; for segmentation, pixels outside and inside the masks."""
        targets = self._splits[split].targets
        if self.task is Task.MULTI_LABEL:
            return tuple(targets.sum(0).tolist())
        targets = targets.flatten().long()
        return tuple(int(n) for n in torch.bincount(targets, minlength=len(self.classes)))

    def offer(self, images: Tensor) -> None:
        """Lab mode only: has this client pass ``images`` (x_NCHW uint8) through its bottom, for ADRA."""
        targets = torch.zeros(len(images), dtype=torch.int64)
        self._splits["offered"] = _Decoded(tuple(range(len(images))), images, targets)

    def pixels(self, split: Split) -> Tensor:
        """A split's images, x_NCHW uint8, in the order of ``test_batches``; for the lab's checks and judge."""
        return self._splits[split].images

    def majority_share(self, split: Split = "test") -> float:
        """The accuracy of always naming the commonest class (segmentation: pixel accuracy); nan if empty."""
        if self.task is Task.MULTI_LABEL and self._splits[split].keys:
            share = self._splits[split].targets.double().mean(0)
            return float(torch.maximum(share, 1 - share).mean())
        counts = self.class_counts(split)
        return max(counts) / sum(counts) if sum(counts) else float("nan")

    def _batch(
        self, decoded: "_Decoded", rows: Tensor, images: Tensor, masks: Tensor | None, number: int
    ) -> Batch:
        targets = decoded.targets[rows] if masks is None else masks
        keys = tuple(decoded.keys[row] for row in rows.tolist())
        return Batch(normalise(images, self._normalisation), targets, number, keys)

    def __reduce__(self) -> str | tuple[object, ...]:
        """Refuse to be pickled: images do not leave the client's process."""
        raise TypeError("ClientData is not picklable: images stay in the client's process")


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A split in memory: images uint8 NCHW; targets int64 N or NK, or uint8 N1HW masks."""

    keys: tuple[int, ...]
    images: Tensor
    targets: Tensor

    def floats(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images in [0, 1] and, for segmentation, float masks."""
        images = self.images[rows].float().div_(255.0)
        return images, self.targets[rows].float() if self.targets.ndim == 4 else None


def _decode(source: Source, indices: Sequence[int], size: int, channels: int) -> _Decoded:
    images = torch.empty((len(indices), channels, size, size), dtype=torch.uint8)
    if source.task is Task.SEGMENTATION:
        targets = torch.empty((len(indices), 1, size, size), dtype=torch.uint8)
    elif source.task is Task.MULTI_LABEL:
        targets = torch.empty((len(indices), len(source.classes)), dtype=torch.int64)
    else:
        targets = torch.empty(len(indices), dtype=torch.int64)
    for row, index in enumerate(indices):
        image, target = source.read(index, size, channels)
        images[row] = image
        targets[row] = target.to(targets.dtype)
    return _Decoded(tuple(indices), images, targets)


def _all_unreadable(source: Source, size: int, channels: int) -> DataError:
    """Names every picture of the source that cannot be used, those of others' shares, too."""
    log.info("%s: a picture cannot be read; looking at all of them, so that all such are named", source.name)
    found = survey(source, size, channels, closely=False).unreadable
    if len(found) == 1:
        return DataError(found[0])
    more = f"; and {len(found) - _SHOWN} more, see 'suture check'" if len(found) > _SHOWN else ""
    return DataError(f"{len(found)} images cannot be used: {'; '.join(found[:_SHOWN])}{more}")


def _cuts(count: int, batch_size: int, *, drop_single: bool) -> list[slice]:
    if batch_size < 1:
        raise ConfigError(f"batch size must be at least 1, got {batch_size}")
    cuts = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    if drop_single and batch_size > 1 and count % batch_size == 1:
        cuts.pop()
    return cuts
