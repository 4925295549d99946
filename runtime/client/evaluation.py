"""A client scores the model that it holds, its own parts with the server's top, on its own images.

Shape legend: N batch; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suture.runtime.client.model import ClientModel
from suture.runtime.data.client_data import Batch, Split
from suture.runtime.randomness import BatchAddress
from suture.runtime.training.objectives import build_criterion, build_scores
from suture.runtime.wire.messages import QUERY

# Splits that are passed through the whole net after a round, and the phase that the server is told. Held-out images
# look to it like any other test image. Where split and phase differ nothing is scored.
_EVALUATED: tuple[tuple[Split, str], ...] = (
    ("validation", "validation"),
    ("test", "test"),
    ("held_out", "test"),
    ("offered", QUERY),
)

Predict = Callable[[str, int, Tensor], Any]  # (phase, batch, smashed) -> the top's output
Seen = Callable[[str, Batch, Tensor, Tensor], None]  # (phase, batch, smashed, logits)


def unseen(phase: str, batch: Batch, smashed: Tensor, logits: Tensor) -> None:
    """Shows nobody anything."""


@torch.no_grad()
def evaluate(
    client: ClientModel, predict: Predict, round: int, seen: Seen = unseen
) -> dict[str, dict[str, float]]:
    """Scores the model that ``client`` holds on its own validation and test images.

    Args:
        client: whose.
        predict: the top in evaluation mode.
        round: for the noise of a defence that acts in evaluation too.
        seen: is shown every batch, for pictures on the client's own disk.

    Returns:
        Scores by phase and metric, with ``loss`` beside them; of test images only where the run is to end with this
        round, or every round's are wanted.
    """
    client.eval_mode()
    data, criterion = client.data, build_criterion(client.data.task, None)
    scores, numbers = {}, {"validation": 0, "test": 0, QUERY: 0}
    for split, phase in _EVALUATED:
        collected, losses, num_images = build_scores(data.task, data.classes), 0.0, 0
        if split == "offered" and round < client.config.offered_from:
            continue
        if split == "test" and round < client.config.tested_from:
            continue
        for batch in data.test_batches(client.config.batch_size, split):
            address = BatchAddress.evaluation(round, client.name, batch.number)
            client.randomness.reseed(f"bottom/{split}", *address)
            smashed, skips = client.bottom(batch.inputs.to(client.device))
            sent = client.defence.transform(smashed) if client.defence.acts_in_evaluation else smashed
            logits = predict(phase, numbers[phase], sent.cpu())
            numbers[phase] += 1
            client.output.check(logits, "server", "output")
            if split != phase:
                continue
            if client.head is not None:
                logits = client.head(logits.to(client.device), skips).cpu()
            loss = criterion(logits, batch.targets)
            collected.update(logits, batch.targets)
            losses, num_images = losses + float(loss) * len(logits), num_images + len(logits)
            seen(phase, batch, sent.cpu(), logits)
        if num_images:
            scores[phase] = {"loss": losses / num_images, **collected.compute()}
    return scores
