"""The training batch that is under way at the server, whole or in parts: which part is due, what came of the others.

The client cuts a batch; the server believes it in nothing. Parts come in order, each once and all of one batch; nothing
is stepped before the last.

Shape legend: N batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from suture.runtime.errors import WireError
from suture.runtime.server.model import Pending
from suture.runtime.wire.messages import OutputGradient, Packed, Upload


@dataclass
class Parts:
    """Which part of the batch is due and what came of those before it; computing them is left to `ServerModel`.

    Attributes:
        number: how many parts the batch has; 0 where none is under way.
        came: parts that have been through the top.
        done: parts whose gradient has been answered.
        num_images: in those that came.
        labels: y_N of the whole batch where labels are shared.
        loss: the batch's task loss, as far as it is known.
        gradients: of the top's parameters, summed over what is done.
        pending: what waits for its gradient from the client, in order.
        uploaded: what came, by part, where it crossed packed.
        answered: what was answered, likewise.
    """

    number: int = 0
    came: int = 0
    done: int = 0
    num_images: int = 0
    labels: Tensor | None = None
    loss: float = 0.0
    gradients: dict[Tensor, Tensor] = field(default_factory=dict)
    pending: deque[Pending] = field(default_factory=deque)
    uploaded: list[Packed | None] = field(default_factory=list)
    answered: list[Packed | None] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether all parts have come."""
        return 0 < self.number == self.came

    def take(self, upload: Upload, num_images: int, most: int, max_images: int, peer: str) -> Tensor | None:
        """Takes the next part in.

        Args:
            upload: with this part, its fields checked.
            num_images: in it.
            most: parts that a batch may have.
            max_images: that a batch may have.
            peer: who sent it.

        Returns:
            The labels of its images, None where labels stay at home.

        Raises:
            WireError: another part is due, there are too many, or they do not make up the batch.
        """
        due = (self.came, self.number) if self.came else (0, upload.parts)
        if self.complete or (upload.part, upload.parts) != due or upload.parts > most:
            expected = "its gradient" if self.complete else f"part {due[0]} of {min(due[1], most)}"
            raise WireError(
                f"{peer}: part: expected {expected}, got part {upload.part} of {upload.parts}; refused"
            )
        if not self.came:
            self.number, self.labels = upload.parts, upload.labels
        begin, end, is_last = self.num_images, self.num_images + num_images, self.came + 1 == self.number
        total = max_images if self.labels is None else len(self.labels)
        fits = end <= total if self.labels is None or not is_last else end == total
        if not fits or (self.labels is not None and not is_last and end == total):
            raise WireError(
                f"{peer}: part {upload.part} of {upload.parts}: with its {num_images} images the batch has {end} "
                f"of {total}; refused"
            )
        self.came, self.num_images = self.came + 1, end
        return self.labels if self.labels is None or self.number == 1 else self.labels[begin:end]

    def add(self, gradients: Mapping[Tensor, Tensor]) -> bool:
        """Adds the gradients of a part's backward; returns whether it was the batch's last."""
        for parameter, grad in gradients.items():
            before = self.gradients.get(parameter)
            self.gradients[parameter] = grad if before is None else before + grad
        self.done += 1
        return self.done == self.number

    def is_early(self, message: Upload | OutputGradient, num_stepped: int) -> bool:
        """Whether ``message`` belongs behind another one that is still to be computed."""
        if type(message.batch) is not int or type(message.part) is not int:
            return False
        due = (num_stepped, self.done if isinstance(message, OutputGradient) else self.came)
        return due < (message.batch, message.part) and message.batch <= num_stepped + 1
