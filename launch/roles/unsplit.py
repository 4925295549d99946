"""The oracle and the baseline: the joined net in one process, with the split run's seeds, images and order.

It shares with a split run what must be shared to compare (models, data, schedule, seeds, losses) and nothing of
the protocol: no server, no client, no exchange. Batch for batch it does what ordinary training does, and the
weights of a split run must come out equal to its own, bit for bit.

With ``--pooled`` all clients' images are shuffled together: the central training that splitting replaces.
"""

from __future__ import annotations

import copy
import logging
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from suture.launch import build, keys
from suture.launch.host.cores import ready_torch
from suture.launch.host.logs import set_up
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.output import run_folder
from suture.launch.output.final_table import print_final_table
from suture.launch.output.progress import Progress
from suture.launch.output.report import ReportWriter
from suture.launch.output.summary import final_metrics, header, write_summary
from suture.models.freezing import train_mode
from suture.models.norms import LOCAL, norm_names
from suture.models.split import JoinedModel
from suture.runtime.data.client_data import Batch, ClientData
from suture.runtime.data.partition import Share
from suture.runtime.randomness import PUBLIC, Randomness
from suture.runtime.records.tracking import Tracker
from suture.runtime.scheduler import Scheduler, parse_schedule
from suture.runtime.state.handoff import model_digest, shared_key
from suture.runtime.training.objectives import build_criterion, build_scores, main_score

log = logging.getLogger(__name__)
POOL = "pooled"


@dataclass
class Place:
    """Where in the run the next forward is: what seeds the generators."""

    round: int = 0
    client: str = ""
    batch: int = 0


class Unsplit:
    """Ordinary training of the joined net.

    Args:
        options: resolved.
        data: each client's images, by name.
        key: the hand-off key, from which a split run with this key draws what the server must not know.
        num_classes: classes of the data.
    """

    def __init__(
        self, options: RunOptions, data: dict[str, ClientData], key: bytes, num_classes: int
    ) -> None:
        self.options = options
        self.data = data
        self.place = Place()
        self._hidden, self._public = Randomness(key, options.seed), Randomness(PUBLIC, options.seed)
        split = build.build_split(options, num_classes, key)
        self._parts = split.parts()
        self.device = build.device_of(options, 0)
        self.model = JoinedModel(split, self._reseed).to(self.device)
        self.config = options.optimizer_config()
        self.optimizer = self.config.build_by_part(self._parts)
        self.losses: dict[str, float] = {}
        self._begun: dict[torch.Tensor, torch.Tensor] = {}
        self._own = _OwnNorms(self.model, self.optimizer, self._parts) if options.norms == LOCAL else None

    # Not `BatchAddress`, which the split run uses: the oracle spells out on its own where draws are, as a proof.
    def _reseed(self, part: str) -> None:
        source = self._public if part == "top" else self._hidden
        source.reseed(part, self.place.round, self.place.client, self.place.batch)

    def train_batches(self, round: int, client: str) -> Iterator[Batch]:
        """The batches of one client's turn, in the order that its split run would take."""
        if self._own is not None:
            self._own.change_to(client)
        generator = self._hidden.generator
        own = [part for name, part in self._parts.items() if name != "top"]
        self._begun = {p: p.detach().clone() for part in own for p in part.parameters()}
        return self.data[client].train_batches(
            self.options.batch_size,
            generator("order", round, client),
            lambda batch: generator("augment", round, client, batch),
        )

    def train_step(self, round: int, client: str, batch: Batch) -> float:
        """One ordinary step; returns the loss."""
        data = self.data[client]
        weights = build.class_weights(self.options, data)
        weights_K = None if weights is None else torch.tensor(weights)
        criterion = build_criterion(data.task, weights_K, self.options.label_smoothing).to(self.device)
        self.place = Place(round, client, batch.number)
        train_mode(self.model)
        self.config.rates.apply(self.optimizer, round)
        self.optimizer.zero_grad()
        loss = criterion(self.model(batch.inputs.to(self.device)), batch.targets.to(self.device))
        loss.backward()
        if self.options.prox:
            for parameter, begun in self._begun.items():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad + self.options.prox * (parameter.detach() - begun)
        if self.options.clip is not None:
            for part in self._parts.values():
                clip_grad_norm_(part.parameters(), self.options.clip)
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self, client: str, round: int) -> dict[str, dict[str, float]]:
        """Scores on one client's validation images, and on its test images where ``round`` is the last one."""
        data, scores = self.data[client], {}
        if self._own is not None:
            self._own.change_to(client)
        self.model.eval()
        for phase in ("validation", "test"):
            if phase == "test" and round < self.options.first_test_round():
                continue
            collected, losses, num_images = build_scores(data.task, data.classes), 0.0, 0
            criterion = build_criterion(data.task, None)
            for batch in data.test_batches(self.options.batch_size, phase):
                logits = self.model(batch.inputs.to(self.device)).cpu()
                collected.update(logits, batch.targets)
                losses += float(criterion(logits, batch.targets)) * len(logits)
                num_images += len(logits)
            if num_images:
                scores[phase] = {"loss": losses / num_images, **collected.compute()}
        return scores

    def weights_sha256(self) -> str:
        """The digest that the split run of the same options ends with."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        return model_digest(states if self._own is None else self._own.without(states))


class _OwnNorms:
    """Each client's batch norms of bottom and head, with their moments, which change places as the clients do."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, parts: dict[str, torch.nn.Module]
    ) -> None:
        self._optimizer = optimizer
        self._names = {name: norm_names(part) for name, part in parts.items() if name != "top"}
        self._tensors = [
            tensor
            for name, names in self._names.items()
            for key, tensor in parts[name].state_dict(keep_vars=True).items()
            if key in names
        ]
        self._initial = self._taken()
        self._client, self._of = "", dict[str, Any]()

    def change_to(self, client: str) -> None:
        """Puts ``client``'s norms in the place of those that are there."""
        self._of[self._client] = self._taken()
        self._client = client
        values, moments = self._of.get(client, self._initial)
        for tensor, value in zip(self._tensors, values, strict=True):
            tensor.data.copy_(value)
            self._optimizer.state.pop(tensor, None)
        self._optimizer.state.update({t: copy.deepcopy(own) for t, own in moments.items()})

    def without(self, states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """State dicts without these norms."""
        return {
            name: {key: t for key, t in state.items() if key not in self._names.get(name, ())}
            for name, state in states.items()
        }

    def _taken(self) -> tuple[list[torch.Tensor], dict[torch.Tensor, Any]]:
        moments = {t: self._optimizer.state[t] for t in self._tensors if t in self._optimizer.state}
        return [t.detach().clone() for t in self._tensors], moments


def run_unsplit(asked: AskedOptions) -> None:
    """``suture train --unsplit``.

    Raises:
        SutureError: the options or the data cannot work.
    """
    progress = Progress()
    set_up("unsplit", progress.console)
    options = asked.resolved()
    ready_torch(options)
    images = build.build_images(options, options.clients)
    if options.pooled:
        images = build.Images(images.source, (_pool(images.shares), *images.shares))
    data = {name: build.build_data(options, images, index) for index, name in _names(options)}
    given = keys.given_key(options)
    place = run_folder.open_folder(options, build.new_run_id())
    key = given or shared_key(keys.generated_key(place.path))
    trainer = Unsplit(options, data, key, len(images.source.classes))
    run_folder.keep_num_classes(place, len(images.source.classes))
    with ReportWriter(place.path, seconds_left=progress.seconds_left), Tracker(place.path) as tracker:
        with progress:
            summary = _train(trainer, options, progress, tracker)
        write_summary(place.path, summary)
        tracker.hparams({k: v for k, v in vars(options).items() if v is not None}, final_metrics(summary))
    print_final_table(summary)
    print(f"weights_sha256 {summary['weights_sha256']}")
    print(f"Everything is in {place.path}; for the curves: tensorboard --logdir {place.path}")


def _names(options: RunOptions) -> list[tuple[int, str]]:
    """Which share each member has: with ``--pooled`` the pool is the first."""
    names = [build.client_name(index) for index in range(options.clients)]
    return list(enumerate([POOL, *names] if options.pooled else names))


def _pool(shares: tuple[Share, ...]) -> Share:
    """Everyone's training images as one share; each client keeps its own test images."""
    return Share(tuple(index for share in shares for index in share.train), (), shares[0].test[:1])


def _validated(scores: dict[str, dict[str, dict[str, float]]], task: str) -> float:
    """The mean main validation score over the clients; nan where there is none."""
    found = [main_score(task, own.get("validation", {})) for own in scores.values()]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else float("nan")


def _train(trainer: Unsplit, options: RunOptions, progress: Progress, tracker: Tracker) -> dict[str, Any]:
    scheduler: Scheduler = parse_schedule(options.schedule, options.seed)
    clients = [name for name in trainer.data if name != POOL]
    trained = [POOL] if options.pooled else clients
    progress.start(options.epochs, trained)
    step, turn, num_images, begun = 0, 0, 0, time.monotonic()
    seconds = 0.0
    scores: dict[str, dict[str, dict[str, float]]] = {}
    best_round, best_value = 0, float("-inf")
    for round in range(1, options.epochs + 1):
        for (client,) in scheduler.order(round, trained):
            turn, started, losses = turn + 1, time.monotonic(), []
            num_batches = trainer.data[client].num_train_batches(options.batch_size)
            progress.turn_started(round, turn, (client,), "train", num_batches)
            for batch in trainer.train_batches(round, client):
                step, loss = step + 1, trainer.train_step(round, client, batch)
                losses.append(loss)
                num_images += len(batch.inputs)
                tracker.train_step(step, round, turn, client, loss, len(batch.inputs))
                progress.batch_done(client, loss, len(batch.inputs))
            seconds += time.monotonic() - started
            trainer.losses[client] = sum(losses) / len(losses)
            progress.turn_done()
        for client in clients:
            turn += 1
            scores[client] = trainer.evaluate(client, round)
            for phase, values in scores[client].items():
                tracker.scores(step, round, turn, client, phase, values)
                progress.scores(client, phase, values)
        if (value := _validated(scores, options.task)) > best_value:
            best_round, best_value = round, value
        if options.early_stop is not None and best_round and round - best_round >= options.early_stop:
            break
    return {
        **header(options),
        "clients": {
            client: scores[client]
            | {"train": {"loss": trainer.losses.get(client, trainer.losses.get(POOL, 0.0))}}
            for client in clients
        },
        "wall_seconds": time.monotonic() - begun,
        "images_per_second": num_images / max(seconds, 1e-9),
        "wire_bytes_per_step": {"up": 0, "down": 0},
        "peak_memory_bytes": {"unsplit": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024},
        "turns": turn,
        "rolled_back_turns": 0,
        "lost_clients": [],
        "rounds": round,
        "best_round": best_round,
        "attack": {},
        "weights_sha256": trainer.weights_sha256(),
    }
