"""A client as the judge rebuilds it from data and key, after the run: which image every batch held."""

from __future__ import annotations

from dataclasses import dataclass

from suture.runtime.data.client_data import Batch, ClientData
from suture.runtime.randomness import Randomness


@dataclass(frozen=True)
class ReplayedClient:
    """One client as the judge rebuilds it.

    Attributes:
        name: the member's name.
        data: its images.
        randomness: derived from the clients' key.
        batch_size: images a step.
    """

    name: str
    data: ClientData
    randomness: Randomness
    batch_size: int

    def train_batches(self, round: int) -> list[Batch]:
        """The round's batches as they went through the bottom, augmentation included."""
        return list(self.data.train_batches(self.batch_size, *self.randomness.turn_draws(round, self.name)))

    def evaluated(self, kind: str) -> list[tuple[int, Batch]]:
        """Test or held-out batches, with the number under which they were sent."""
        test = list(self.data.test_batches(self.batch_size, "test"))
        if kind == "test":
            return list(enumerate(test))
        return list(enumerate(self.data.test_batches(self.batch_size, "held_out"), start=len(test)))
