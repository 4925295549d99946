"""``suture evaluate``: runs a model over images and writes what came of it.

OUT/evaluation.html   one page with all tables and pictures
OUT/evaluation.json   all numbers
OUT/predictions.csv   a line an image
OUT/figures/*.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suture.launch.deploy.trained import TrainedModel, load_trained
from suture.launch.evaluate import classification, findings, pictures, segmentation
from suture.launch.evaluate.classification import Arrays
from suture.launch.evaluate.grad_cam import heat_maps
from suture.launch.evaluate.images import Chosen, Predictions, Reading, choose, predict, read_batches
from suture.launch.evaluate.page import SUMMED_UP, to_html
from suture.runtime.data.source import Task
from suture.runtime.data.text import csv_text
from suture.runtime.errors import ConfigError
from suture.runtime.host.disk import writing
from suture.runtime.state.checkpoint import write_atomically

PAGE, NUMBERS, TABLE = "evaluation.html", "evaluation.json", "predictions.csv"
_MOST_SHOWN = 4  # of the right cases, and of the wrong ones; of the worst masks twice as many
Figures = list[tuple[Path, str]]


def evaluate(
    run_or_model: Path,
    data: str,
    out: Path,
    *,
    which: str,
    sensitivity: float | None,
    reading: Reading | None = None,
) -> Path:
    """Writes OUT and returns its page.

    Raises:
        ConfigError, DataError: the model or the data cannot be used, or OUT is not empty.
    """
    if sensitivity is not None and not 0 < sensitivity <= 1:
        raise ConfigError(f"sensitivity must lie above 0 and at most at 1, got {sensitivity:g}; use 0.9, say")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; give another --out")
    model = load_trained(run_or_model, which)
    if sensitivity is not None and model.task is not Task.MULTI_LABEL and len(model.classes) != 2:
        raise ConfigError(
            "sensitivity chooses the threshold of one of two classes, or of findings; leave it out"
        )
    chosen = choose(run_or_model, data, model, reading or Reading())
    test = predict(chosen.source, chosen.test, model)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        found, rows, figures = _EVALUATED[model.task](model, chosen, test, out, sensitivity)
        found = {
            "model": model.model,
            "weights_sha256": model.weights_sha256,
            "data": chosen.source.name,
        } | found
        write_atomically(out / NUMBERS, (json.dumps(found, indent=1) + "\n").encode())
        write_atomically(out / TABLE, csv_text(rows).encode())
        write_atomically(out / PAGE, _page(model, chosen, found, figures).encode())
    return out / PAGE


def _classified(
    model: TrainedModel, chosen: Chosen, test: Predictions, out: Path, sensitivity: float | None
) -> tuple[dict[str, Any], list[list[str]], Figures]:
    names, arrays = model.classes, Arrays.of(test)
    validation = Arrays.of(predict(chosen.source, chosen.validation, model))
    found = classification.scores(arrays, validation, chosen, test.indices, sensitivity)
    guess = classification.predicted(arrays.p, found["threshold"], model.task)
    rows = [["image", "site", "true", "predicted", *(f"probability_{name}" for name in names)]]
    for row, index in enumerate(test.indices):
        example, p = chosen.source.examples[index], arrays.p[row]
        rows.append(
            [example.key, example.site, names[int(arrays.y[row])], names[int(guess[row])]]
            + [f"{value:.8g}" for value in p]
        )
    figures = out / "figures"
    pictures.curves(arrays, names, figures / "curves.png")
    pictures.calibration(arrays, names, figures / "calibration.png")
    pictures.confusion(found["confusion"], names, figures / "confusion.png")
    made = [
        (figures / "curves.png", "ROC and precision-recall curves; dotted: chance."),
        (
            figures / "calibration.png",
            "Calibration in tenths, with the number of images in each; on the dotted line probabilities are right.",
        ),
        (figures / "confusion.png", "Images by true and predicted class, decided as said above."),
    ]
    predicted = torch.as_tensor(guess)
    return found, rows, made + _looks(model, chosen, test, predicted, predicted == test.targets, figures)


def _found(
    model: TrainedModel, chosen: Chosen, test: Predictions, out: Path, sensitivity: float | None
) -> tuple[dict[str, Any], list[list[str]], Figures]:
    names, arrays = model.classes, Arrays.of(test)
    validation = Arrays.of(predict(chosen.source, chosen.validation, model))
    found = findings.scores(arrays, validation, chosen, test.indices, sensitivity)
    rows = [
        ["image", "site", *(f"true_{name}" for name in names), *(f"probability_{name}" for name in names)]
    ]
    for index, y, p in zip(test.indices, arrays.y, arrays.p, strict=True):
        example = chosen.source.examples[index]
        rows.append([example.key, example.site, *map(str, y), *(f"{value:.8g}" for value in p)])
    figures = out / "figures"
    pictures.curves(arrays, names, figures / "curves.png")
    pictures.calibration(arrays, names, figures / "calibration.png")
    made = [
        (figures / "curves.png", "ROC and precision-recall curves of each finding; dotted: chance."),
        (
            figures / "calibration.png",
            "Calibration in tenths, with the number of images in each; on the dotted line probabilities are right.",
        ),
    ]
    likeliest = test.probabilities.argmax(dim=1)
    right = test.targets.gather(1, likeliest[:, None])[:, 0] == 1
    return found, rows, made + _looks(model, chosen, test, likeliest, right, figures)


def _looks(
    model: TrainedModel, chosen: Chosen, test: Predictions, predicted: Tensor, right: Tensor, figures: Path
) -> Figures:
    """Grad-CAM of the surest right and wrong cases; of findings, of each image's likeliest one."""
    made = list[tuple[Path, str]]()
    for kind, among in (("right", right), ("wrong", ~right)):
        sure = test.probabilities.gather(1, predicted[:, None])[:, 0]
        rows = (
            torch.where(among, sure, -1.0)
            .argsort(descending=True)[: min(_MOST_SHOWN, int(among.sum()))]
            .tolist()
        )
        if not rows:
            continue
        indices = [test.indices[row] for row in rows]
        (images, targets), *_ = read_batches(chosen.source, indices, model)
        heat = heat_maps(model.net, images, predicted[rows])
        if heat is None:
            return []
        titles = [
            f"{_true(model, target)}\npredicted {model.classes[int(predicted[row])]} ({sure[row]:.2f})"
            for row, target in zip(rows, targets, strict=True)
        ]
        path = figures / f"grad_cam_{kind}.png"
        pictures.heat_grid(list(zip(titles, images, heat, strict=True)), path)
        made.append((path, f"Grad-CAM of the surest {kind} cases: what speaks for the predicted class."))
    return made


def _true(model: TrainedModel, target: Tensor) -> str:
    """The class that an image is of, or its findings."""
    numbers = target.nonzero().flatten().tolist() if target.dim() else [int(target)]
    names = [model.classes[number] for number in numbers]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "") or "no finding"


def _segmented(
    model: TrainedModel, chosen: Chosen, test: Predictions, out: Path, sensitivity: float | None
) -> tuple[dict[str, Any], list[list[str]], Figures]:
    dice = segmentation.dice_by_image(test)
    keys = [chosen.source.examples[index] for index in test.indices]
    rows = [["image", "site", "dice"]]
    rows += [[one.key, one.site, f"{value:.6f}"] for one, value in zip(keys, dice, strict=True)]
    worst = sorted(range(len(dice)), key=dice.__getitem__)[: 2 * _MOST_SHOWN]
    (images, _), *_ = read_batches(chosen.source, [test.indices[row] for row in worst], model)
    grid = [
        (f"Dice {dice[row]:.3f}", image, test.targets[row][0], test.probabilities[row][0])
        for row, image in zip(worst, images, strict=True)
    ]
    pictures.dice_histogram(dice, out / "figures" / "dice.png")
    pictures.outline_grid(grid, out / "figures" / "worst.png")
    made = [
        (out / "figures" / "dice.png", "Images by Dice."),
        (
            out / "figures" / "worst.png",
            "The worst images: green the true outline, orange the predicted one.",
        ),
    ]
    return segmentation.scores(dice, chosen, test.indices), rows, made


_EVALUATED = {
    Task.CLASSIFICATION: _classified,
    Task.ORDINAL: _classified,
    Task.MULTI_LABEL: _found,
    Task.SEGMENTATION: _segmented,
}
"""By task: numbers, a table of images, and pictures."""


def _page(model: TrainedModel, chosen: Chosen, found: dict[str, Any], figures: Figures) -> str:
    title = f"{model.model} on {chosen.source.name}: {found['num_images']} test images"
    facts = [chosen.said, f"Model of the {model.which} round, weights {model.weights_sha256[:16]}."]
    said, tables = SUMMED_UP[model.task](found)
    facts += said
    facts.append(
        "In brackets 95 % intervals over images; several images of one patient make them wider in truth."
    )
    return to_html(title, facts, tables, figures)
