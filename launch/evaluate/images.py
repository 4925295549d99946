"""Which images a model is evaluated on, and what it makes of each.

Of a run's own data those that the run did not train on: its clients' test images, or those of the client that is named,
and their validation images for the threshold. Of other data the official test images, or all of them where there is no
official test set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from suture.launch import build
from suture.launch.deploy.trained import TrainedModel
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.options.toml import read_toml
from suture.runtime.data.registry import open_source, split_spec
from suture.runtime.data.source import Source, Task
from suture.runtime.errors import ConfigError, DataError

_NEED = 64  # images that a drawn source, which has no end, makes


@dataclass(frozen=True)
class Reading:
    """How data that are not the run's own are read: ``--columns``, ``--structure`` and ``--frame``, as for training."""

    columns: str | None = None
    structure: str | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Chosen:
    """The images to evaluate on, as indices into ``source.examples``, and a sentence on how they were chosen."""

    source: Source
    test: tuple[int, ...]
    validation: tuple[int, ...]
    said: str


@dataclass(frozen=True)
class Predictions:
    """What the model made of some images.

    Attributes:
        indices: into ``source.examples``.
        probabilities: p_NK, or the probability of the mask p_N1HW.
        targets: y_N, findings y_NK, or mask_N1HW.
    """

    indices: tuple[int, ...]
    probabilities: Tensor
    targets: Tensor


def choose(run_or_model: Path, data: str, model: TrainedModel, reading: Reading) -> Chosen:
    """The images of ``data`` that ``model`` may be evaluated on; a run's own are read as the run did.

    Raises:
        ConfigError: the data are for another task, or have other classes.
        DataError: they cannot be read.
    """
    entry, _ = split_spec(data)
    if entry.task.of_net != model.task.of_net:
        raise ConfigError(f"{model.path} is for {model.task}, data {entry.name} is for {entry.task}")
    run, client = _run_of(run_or_model)
    config = run / "config.toml"
    if config.is_file() and _is_of_run(asked := AskedOptions(**read_toml(config)), data):
        return _checked(_of_run(asked.with_defaults(), client), model)
    grades = "binary" if len(model.classes) == 2 else "all"
    source = open_source(
        data,
        grades=grades,  # type: ignore[arg-type]
        need=_NEED,
        seed=0,
        task=model.task,
        columns=reading.columns,
        structure=reading.structure,
        frame=reading.frame,
    )
    official = tuple(i for i, example in enumerate(source.examples) if example.official_test)
    said = (
        "The official test images."
        if official
        else "All images: none of them may have been trained on, which nobody checks here."
    )
    return _checked(Chosen(source, official or tuple(range(len(source.examples))), (), said), model)


def _run_of(run_or_model: Path) -> tuple[Path, str]:
    """The folder of a run and "", or that folder and a client where the client's folder in it is named."""
    if run_or_model.is_dir() and run_or_model.parent.name == "clients":
        return run_or_model.parent.parent, run_or_model.name
    return run_or_model, ""


def _of_run(options: RunOptions, client: str) -> Chosen:
    """The images that a run, or one client of it, has kept for testing."""
    images = build.build_images(options, options.clients)
    shares = {build.client_name(index): share for index, share in enumerate(images.shares)}
    among = [shares[client]] if client in shares else [*shares.values()]
    test, validation = (
        tuple(sorted({index for share in among for index in getattr(share, part)}))
        for part in ("test", "validation")
    )
    whose = f"{client}'s" if client in shares else "The run's"
    return Chosen(
        images.source, test, validation, f"{whose} own test images: the run trained on none of them."
    )


def _is_of_run(asked: AskedOptions, data: str) -> bool:
    (own, where), (other, there) = split_spec(asked.data), split_spec(data)
    return own.name == other.name and Path(where).resolve() == Path(there).resolve()


def _checked(chosen: Chosen, model: TrainedModel) -> Chosen:
    if chosen.source.classes != model.classes:
        raise ConfigError(
            f"{model.path} knows the classes {', '.join(model.classes)}, {chosen.source.name} has "
            f"{', '.join(chosen.source.classes)}; give data with the same classes"
        )
    if not chosen.test:
        raise DataError(f"{chosen.source.name} has no test images; give data that has some")
    return chosen


def read_batches(
    source: Source, indices: Sequence[int], model: TrainedModel, batch_size: int = 16
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in [0, 1], x_NCHW, and their targets, in order."""
    for start in range(0, len(indices), batch_size):
        read = [
            source.read(index, model.image_size, model.channels)
            for index in indices[start : start + batch_size]
        ]
        yield (
            torch.stack([image for image, _ in read]).float() / 255,
            torch.stack([target for _, target in read]),
        )


@torch.no_grad()
def predict(source: Source, indices: Sequence[int], model: TrainedModel) -> Predictions:
    """What the model makes of images; masks take as much memory as images do."""
    pairs = [(model.net(images), targets) for images, targets in read_batches(source, indices, model)]
    of_classes, of_mask = (0, len(model.classes)), (0, 1, model.image_size, model.image_size)
    shapes = {
        Task.CLASSIFICATION: (of_classes, (0,)),
        Task.ORDINAL: (of_classes, (0,)),
        Task.MULTI_LABEL: (of_classes, of_classes),
        Task.SEGMENTATION: (of_mask, of_mask),
    }
    empty = [torch.zeros(shape) for shape in shapes[model.task]]
    probabilities, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True)) if pairs else empty
    return Predictions(tuple(indices), probabilities, targets)
