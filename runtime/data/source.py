"""What a data source is: an index of examples, known at once, whose pictures are read one at a time."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from suture.runtime.errors import DataError


class Task(StrEnum):
    """What is learnt from a source: one of several classes an image, one of several grades in their order, any of
    several findings, or a mask.
    """

    CLASSIFICATION = "classification"
    ORDINAL = "ordinal"
    MULTI_LABEL = "multi-label"
    SEGMENTATION = "segmentation"

    @property
    def of_net(self) -> str:
        """The task of the nets that can do it: a net gives a number of outputs an image, or a map of them."""
        return str(Task.SEGMENTATION if self is Task.SEGMENTATION else Task.CLASSIFICATION)

    @property
    def has_one_class(self) -> bool:
        """Whether each image is of one class, so that images can be counted and shared out by class."""
        return self in (Task.CLASSIFICATION, Task.ORDINAL)


@dataclass(frozen=True, slots=True)
class Example:
    """One image of a source, by name only.

    Attributes:
        key: Unique name within the source, usually the file's stem.
        patient: Whose image it is; a patient is never in two sets, whatever the number of images.
        label: Class number, or None where the target is a mask or findings.
        site: Hospital, or "" where the source does not say.
        official_test: The source's authors keep this image for testing.
        findings: Numbers of the findings that the image has, where there may be several.
    """

    key: str
    patient: str
    label: int | None
    site: str = ""
    official_test: bool = False
    findings: tuple[int, ...] = ()


class Source(ABC):
    """One data source.

    Attributes:
        name: As on the command line, without the path.
        task: What is learnt.
        classes: Class names by label, or names of findings; for segmentation the names of mask values 0 and 1.
        examples: The index.
        mirror: Whether augmentation may flip images left to right. Not for digits (a mirrored digit is
            none) nor for chests (the heart lies on the left).
        notes: What a person should be told, such as "skipped 3 rows without an image file"; launch logs
            them. They name no image and no patient.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        classes: Sequence[str],
        examples: Iterable[Example],
        *,
        mirror: bool = False,
        notes: Iterable[str] = (),
    ) -> None:
        """Take over the index.

        Raises:
            DataError: The index is empty, a key occurs twice, or a label is not a class.
        """
        self.name = name
        self.task = task
        self.classes = tuple(classes)
        self.examples: Sequence[Example] = tuple(examples)
        self.mirror = mirror
        self.notes = list(notes)
        self._check()

    def target(self, index: int) -> Tensor:
        """An example's label, or its findings, as `read` returns it; not for masks."""
        example = self.examples[index]
        if self.task is not Task.MULTI_LABEL:
            return torch.tensor(example.label, dtype=torch.int64)
        found = torch.zeros(len(self.classes), dtype=torch.int64)
        found[list(example.findings)] = 1
        return found

    @abstractmethod
    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """Read or draw one example.

        Args:
            index: Position in ``examples``.
            size: Edge length in pixels. A picture that is not square is padded with black first.
            channels: 1 (grey) or 3 (RGB).

        Returns:
            The image, uint8 (channels, size, size), and its target: an int64 scalar, int64 (classes) of zeros and
            ones where an image may have several findings, or for segmentation a float32 mask (1, size, size).

        Raises:
            DataError: The file cannot be read; the message names it.
        """

    def dimensions(self, index: int) -> tuple[int, int] | None:
        """Width and height of a picture as it is kept, from its header; None where it is drawn.

        Raises:
            DataError: The header cannot be read.
        """
        return None

    def content_digest(self, index: int) -> bytes:
        """SHA-256 of a picture as it is kept, the same for exact copies; empty where it is drawn."""
        return b""

    def look_closely(self, index: int) -> None:
        """Warns of what only a look at the whole picture finds; ``suture check`` takes the time for it.

        Raises:
            DataError: The file cannot be read.
        """
        return

    def _check(self) -> None:
        if not self.examples:
            raise DataError(f"{self.name} holds no images; check the path and what lies below it")
        twice = [key for key, count in Counter(e.key for e in self.examples).items() if count > 1]
        if twice:
            raise DataError(
                f"{self.name}: {len(twice)} image names occur more than once, such as {twice[0]!r}; "
                "remove the copies or point at the folder of one copy"
            )
        for example in self.examples:
            if self.task.has_one_class and not (
                example.label is not None and 0 <= example.label < len(self.classes)
            ):
                raise DataError(
                    f"{self.name}: image {example.key!r} has label {example.label}; "
                    f"labels must lie in 0..{len(self.classes) - 1} ({', '.join(self.classes)})"
                )
