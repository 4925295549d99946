"""One server and one client in this process, attacked and defended as asked, to be stepped one batch at a time."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch

from suture.launch import build
from suture.launch.lab import lab
from suture.launch.options.options import AskedOptions, RunOptions
from suture.runtime.client.client import Client
from suture.runtime.data.client_data import Batch
from suture.runtime.errors import ConfigError
from suture.runtime.exchange import LocalExchange
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.records.observers import NoRecorder
from suture.runtime.scheduler import Turn
from suture.runtime.session import join
from suture.runtime.wire.messages import unwrap

LEAST_STEPS, WARM_UP = 10, 2
_KEY = bytes(range(32))  # a rig's images are nobody's


def over(defaults: AskedOptions, given: AskedOptions) -> AskedOptions:
    """``defaults`` with everything that ``given`` sets to something else than a plain run has."""
    plain = AskedOptions()
    names = [option.name for option in fields(AskedOptions)]
    return replace(
        defaults,
        **{name: getattr(given, name) for name in names if getattr(given, name) != getattr(plain, name)},
    )


def check_steps(num_steps: int) -> None:
    """Refuses fewer steps than a median needs.

    Raises:
        ConfigError: names the bound.
    """
    if num_steps < LEAST_STEPS:
        raise ConfigError(f"steps must be at least {LEAST_STEPS}, got {num_steps}")


def times_in_turn(rigs: Mapping[str, Rig], num_steps: int) -> dict[str, list[float]]:
    """Seconds of each step by name, after `WARM_UP`: single steps in turn, in a new order each time."""
    times: dict[str, list[float]] = {name: [] for name in rigs}
    order, shuffle = list(rigs), random.Random(0).shuffle
    for number in range(num_steps + WARM_UP):
        shuffle(order)
        for name in order:
            seconds = rigs[name].step()
            if number >= WARM_UP:
                times[name].append(seconds)
    return times


class Rig:
    """A run in its first training turn.

    Args:
        options: resolved, one client.
        run_dir: for checkpoints and what an attack writes; exists.
    """

    def __init__(self, options: RunOptions, run_dir: Path) -> None:
        images = build.build_images(options, 1)
        data = build.build_data(options, images, 0)
        num_classes, device = len(images.source.classes), torch.device("cpu")
        lab.prepare_client(options, data, 0, run_dir, _KEY)
        self.server = build.build_server(options, num_classes, device)
        lab.arm(self.server, options, "rig", run_dir, num_classes)
        self.server.attack.prepare()
        coordinator = build.build_coordinator(
            options, self.server, run="rig", run_dir=run_dir, num_classes=num_classes
        )
        coordinator.begin(False, lambda step: NoRecorder())
        self.client: Client = build.build_client(options, data, build.client_name(0), _KEY, device, None)
        self._exchange = LocalExchange(coordinator)
        member = Participant(self.client, self._exchange, NoClientObserver())
        join(member, options.agreement(num_classes))
        self.turn: Turn = unwrap(self._exchange.ask_turn().wait())
        self._batches = self._endless()

    def _endless(self) -> Iterator[Batch]:
        """The turn's batches again and again, numbered as if the turn went on."""
        numbers = itertools.count()
        while True:
            for batch in self.client.model.batches(self.turn):
                yield replace(batch, number=next(numbers))

    def step(self) -> float:
        """One training step; returns its seconds, the image's way into the batch left out."""
        batch = next(self._batches)
        begun = time.perf_counter()
        self._exchange.train_step(self.client.model, self.turn, batch)
        return time.perf_counter() - begun
