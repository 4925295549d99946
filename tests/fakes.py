"""Stand-ins that note what they are given, and check it: an attack, a detector, and what a run tells its recorder."""

import threading
from collections.abc import Callable, Container

import torch
from torch import Tensor

from suture.runtime.hooks import Attack, Detector, SmashedBatch
from suture.runtime.records.observers import NoRecorder

LONG = 60.0  # seconds that no test waits


class Tap(Attack):
    """An attack that changes nothing.

    Attributes:
        seen: every batch that it observed.
        gradients: what came back, with the batch that it came for.
        calls: its doors in the order in which they were opened; a batch of an evaluation by its phase.
    """

    def __init__(self) -> None:
        self.seen: list[SmashedBatch] = []
        self.gradients: list[tuple[SmashedBatch, Tensor]] = []
        self.calls: list[str] = []

    def observe(self, batch: SmashedBatch) -> None:
        assert type(batch) is SmashedBatch
        assert not batch.smashed.requires_grad and batch.smashed.grad_fn is None
        self.seen.append(batch)
        self.calls.append("observe" if batch.phase == "train" else batch.phase)

    def loss(self, batch: SmashedBatch, task_loss: Tensor) -> Tensor:
        assert type(batch) is SmashedBatch and type(task_loss) is Tensor
        assert batch.smashed.grad_fn is not None
        self.calls.append("loss")
        return super().loss(batch, task_loss)

    def gradient(self, batch: SmashedBatch, grad: Tensor) -> Tensor:
        assert torch.is_grad_enabled() and grad.shape == batch.smashed.shape
        self.calls.append("gradient")
        return super().gradient(batch, grad)

    def received(self, batch: SmashedBatch, gradient: Tensor) -> None:
        assert type(batch) is SmashedBatch and torch.is_grad_enabled()
        assert not batch.smashed.requires_grad and not gradient.requires_grad
        assert len(gradient) == len(batch.smashed) and batch.labels is None
        self.gradients.append((batch, gradient.clone()))
        self.calls.append("received")

    def step(self) -> None:
        self.calls.append("step")


class Watch(Detector):
    """A detector that suspects nothing; of two classes it sends wrong labels in the steps that it is told.

    Attributes:
        seen: smashed data, gradient and labels of each batch.
        asked: how many batches had been before, each time that it was asked for labels.
    """

    def __init__(self, fake_steps: Container[int] = ()) -> None:
        self.fake_steps = fake_steps
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.asked: list[int] = []

    def observe(self, smashed: Tensor, grad: Tensor, labels: Tensor) -> None:
        assert not smashed.requires_grad and not grad.requires_grad
        assert smashed.shape == grad.shape and len(labels) == len(smashed)
        self.seen.append((smashed, grad.clone(), labels))

    def fake_labels(self, labels: Tensor, num_before: int, generator: torch.Generator) -> Tensor | None:
        self.asked.append(num_before)
        return 1 - labels if num_before in self.fake_steps else None


class Events(NoRecorder):
    """Notes what a run tells its recorder; a test waits for an event, or does something at a step."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, object]]] = []
        self.losses: list[float] = []
        self.at_step: Callable[[int, str], None] = lambda step, client: None
        self._changed = threading.Condition()

    def train_step(self, step: int, round: int, turn: int, client: str, loss: float, num_images: int) -> None:
        self.losses.append(loss)
        self.at_step(step, client)

    def event(self, name: str, **fields: object) -> None:
        with self._changed:
            self.told.append((name, fields))
            self._changed.notify_all()

    def wait(self, name: str, number: int = 1) -> dict[str, object]:
        """What was told with the ``number``th event of that name, once it is there."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.named(name)) >= number, LONG), self.told
            return self.named(name)[number - 1]

    def named(self, name: str) -> list[dict[str, object]]:
        return [fields for told, fields in self.told if told == name]
