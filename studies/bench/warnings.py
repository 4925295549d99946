"""``suture bench warnings``: how often `suture.launch.output.round_warnings` names a site, with cause and without."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from suture.launch import build
from suture.launch.host.cores import ready_torch
from suture.launch.options.options import AskedOptions
from suture.launch.output.report.intervals import wilson
from suture.launch.output.round_warnings import RoundWarnings, WarningRecorder
from suture.launch.output.table import Table
from suture.launch.roles.one_process import play_locally
from suture.runtime.data.source import Source
from suture.runtime.errors import ConfigError
from suture.runtime.randomness import Randomness
from suture.runtime.records.observers import NoRecorder
from suture.studies.bench.rigs.rig import over

_FEWEST_SITES = 3


class FlippedLabels(Source):
    """A source of two classes in which some images' labels are wrong.

    Args:
        source: the true one.
        wrong: the images, as indices into its examples.
    """

    def __init__(self, source: Source, wrong: frozenset[int]) -> None:
        self._source, self._wrong = source, wrong
        super().__init__(source.name, source.task, source.classes, source.examples, mirror=source.mirror)

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """See `Source.read`."""
        image, label = self._source.read(index, size, channels)
        return image, 1 - label if index in self._wrong else label


def default_options() -> AskedOptions:
    """A small run without files: drawn fundus photographs, ResNet-18, three sites."""
    return AskedOptions(
        data="fundus-phantom",
        model="resnet18",
        image_size=32,
        train_images=256,
        validation_images=32,
        test_images=8,
        clients=3,
        epochs=8,
        exchange="local",
        checkpoints="off",
    )


def named(options: AskedOptions, seed: int, flipped: float) -> list[str]:
    """The sites that one run named, the last site's labels being wrong by the share ``flipped``."""
    run = replace(options, seed=seed).resolved()
    images = build.build_images(run, run.clients)
    images = replace(images, source=FlippedLabels(images.source, _wrong(images, seed, flipped)))
    found: list[str] = []
    recorder = WarningRecorder(
        NoRecorder(),
        RoundWarnings(len(images.source.classes)),
        lambda warned: found.append(warned.client) if warned.kind == "unlike" else None,
    )
    key = hashlib.sha256(f"suture/bench/warnings/{seed}".encode()).digest()
    with tempfile.TemporaryDirectory(prefix="suture-warnings-") as folder:
        play_locally(run, key, Path(folder), images=images, recorder=recorder)
    return sorted(set(found))


def _wrong(images: build.Images, seed: int, flipped: float) -> frozenset[int]:
    share = images.shares[-1]
    generator = Randomness(b"", seed).generator("flipped labels")
    wrong: list[int] = []
    for part in (share.train, share.validation, share.test):
        drawn = torch.randperm(len(part), generator=generator)[: round(flipped * len(part))]
        wrong += [part[row] for row in drawn.tolist()]
    return frozenset(wrong)


def run_command(given: AskedOptions, num_runs: int, flipped: float) -> None:
    """``suture bench warnings``."""
    if num_runs < 2:
        raise ConfigError(f"--runs must be at least 2, got {num_runs}")
    if not 0 < flipped <= 1:
        raise ConfigError(f"--flipped must lie in (0, 1], got {flipped}")
    options = over(default_options(), given).resolved()
    num_sites = options.clients
    if num_sites < _FEWEST_SITES:
        raise ConfigError(
            f"--clients must be at least {_FEWEST_SITES}: fewer are not compared, got {num_sites}"
        )
    ready_torch(options)
    bad, counts = build.client_name(num_sites - 1), {"even": [0, 0], "flipped": [0, 0]}
    for number in range(num_runs):
        seed = options.seed + number
        for kind, share in (("even", 0.0), ("flipped", flipped)):
            found = named(options, seed, share)
            counts[kind][0] += bad in found if kind == "flipped" else bool(found)
            counts[kind][1] += bool(set(found) - {bad}) if kind == "flipped" else 0
            print(
                f"[{number + 1}/{num_runs}] {kind}, seed {seed}: {', '.join(found) or 'nobody named'}",
                flush=True,
            )
    told = (
        ("even", "somebody was named", counts["even"][0]),
        (f"{flipped:.0%} of one site's labels wrong", "that site was named", counts["flipped"][0]),
        (f"{flipped:.0%} of one site's labels wrong", "another site was named", counts["flipped"][1]),
    )
    rows = []
    for data, what, count in told:
        low, high = wilson(count, num_runs)
        runs, interval = f"{count} of {num_runs}", f"{low:.3f} to {high:.3f}"
        rows.append({"data": data, "what happened": what, "runs": runs, "95 % interval": interval})
    Table(rows, f"{num_sites} sites, {options.resolved().epochs} rounds").print()
