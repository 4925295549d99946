"""How large an experiment is: its scales, its sizes as its TOML file has them, and the largest that fit a budget.

The plan is a function of the budget and not of the machine: it rests on the cost of a run as measured once, below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from suture.runtime.data.whole import is_whole
from suture.runtime.errors import ConfigError
from suture.studies.experiments.runs.job import Job

Scale = Literal["smoke", "laptop", "full"]
SCALES: dict[str, str] = {
    "laptop": "fits --budget on two cores; the default",
    "full": "the study's own sizes, for a GPU",
    "smoke": "seconds a run on drawn images: shows that all works and measures nothing",
}
MOST_EFFORT = 24
DEFAULT_BUDGET = 90.0

# CPU seconds of one thread, measured once on a 2-core x86-64 virtual machine (torch 2.14) and rounded.
_START = 4.5
_PROCESSES = 25.0
_IMAGE = {"resnet18": 0.007, "resnet34": 0.0125, "unet": 0.013, "torchvision:mobilenet_v2": 0.008}
"""Trained at 64 px; the U-Net at width 16."""
_STEP = {"resnet18": 0.035, "resnet34": 0.066, "unet": 0.02}  # the optimizer's, whatever the batch
_OTHER = "resnet34"  # nets that were not measured are taken for it
_ALL, _TESTED = 413, 103  # IDRiD's photographs, where all are used
_EVALUATED = 0.3  # of what training on an image costs
_TURN, _CHECKPOINT = 0.2, 1.0
_CORES = 0.8  # what the budget counts on: other things run on a laptop, too


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the runs on one data set.

    Attributes:
        model: as ``--model``.
        image_size: pixels a side.
        train_images: a client.
        test_images: a client, or of all clients together where an experiment says so.
        rounds: as ``--epochs``.
        batch_size: images a step.
        width: the U-Net's; 0 for nets that have none.
        held_out_images: a client, for judging attacks.
        aux_images: that an attacker owns.
        decoder_epochs: of a passive attacker's decoder.
    """

    model: str
    image_size: int
    train_images: int
    test_images: int
    rounds: int
    batch_size: int
    width: int = 0
    held_out_images: int = 0
    aux_images: int = 0
    decoder_epochs: int = 0


def sizes_of(told: Mapping[str, Any], scale: Scale, effort: int) -> dict[str, Sizes]:
    """Sizes by role, from an experiment's file; at scale laptop its rounds are those of effort 1."""
    times = effort if scale == "laptop" else 1
    return {role: Sizes(**{**own, "rounds": own["rounds"] * times}) for role, own in told[scale].items()}


def cpu_seconds(job: Job) -> float:
    """What a run costs on one thread, roughly; for planning only."""
    options = job.options.with_defaults()
    pixels, rounds = (options.image_size / 64) ** 2, options.epochs
    turns = rounds * (1 if job.only_client else options.clients)
    an_image = _IMAGE.get(options.model, _IMAGE[_OTHER]) * pixels * (options.width or 16) / 16
    each, tested = options.train_images, rounds * (options.test_images + options.held_out_images)
    if is_whole(options.partition):
        each, tested = -(-_ALL // options.clients), _TESTED
    images = turns * each
    steps = turns * -(-each // options.batch_size)
    tests = options.clients * tested
    total = (
        _START
        + steps * _STEP.get(options.model, _STEP[_OTHER])
        + (images + _EVALUATED * tests) * an_image
        + turns * _TURN
    )
    total += 0 if options.exchange == "local" or options.unsplit else _PROCESSES
    total += turns * _CHECKPOINT if options.checkpoints == "turn" and not options.unsplit else 0
    attacks = [replace(options, attack=text) for text in job.afterwards.values()]
    asked = [*options.defence_specs(), *(attacked.attack_spec() for attacked in (options, *attacks))]
    for cost in (spec.cost for spec in asked if spec is not None):
        total += cost.end + steps * cost.step + pixels * (images * cost.image + cost.end_at_64_px)
    return total


def minutes(jobs: Sequence[Job]) -> float:
    """What ``jobs`` take on two cores that other things share."""
    return sum(map(cpu_seconds, jobs)) / 60 / _CORES


def largest_effort(what: str, jobs: Callable[[int], Sequence[Job]], budget: float, share: float = 1.0) -> int:
    """The largest effort, in 1..MOST_EFFORT, whose jobs fit into ``share`` of ``budget`` minutes.

    Raises:
        ConfigError: not even the smallest does; the message names the smallest budget that works.
    """
    least = math.ceil(minutes(jobs(1)) / share)
    if least > budget:
        raise ConfigError(
            f"budget {budget:g} minutes is too small for {what} at scale laptop; the smallest that works is {least}"
        )
    budget *= share
    fitting = [effort for effort in range(1, MOST_EFFORT + 1) if minutes(jobs(effort)) <= budget]
    return fitting[-1]
