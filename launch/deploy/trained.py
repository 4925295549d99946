"""A trained model as a client kept it (`ClientFolder`), joined again and ready for images in [0, 1].

Shape legend: N batch; C, H, W image; K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import suture.models.registry as nets
from suture.launch.options.model import as_config_error, parse_cut
from suture.launch.output.client_folder import MODEL_FORMAT, digests
from suture.models.split import SplitModel
from suture.models.weights_file import why_unreadable
from suture.runtime.data.normalise import Normalisation, normalise
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError
from suture.runtime.training.objectives import objective


class Deployed(nn.Module):
    """The joined net between its normalisation and its probabilities, in evaluation mode.

    x_NCHW in [0, 1] to p_NK, of classes and grades with sum 1, or p_N1HW, the probability of the mask.
    """

    def __init__(self, split: SplitModel, task: Task, normalisation: Normalisation) -> None:
        super().__init__()
        self.joined = split.joined()
        self.objective = objective(task)
        self._normalisation = normalisation
        self.requires_grad_(False).eval()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.joined(normalise(x_NCHW, self._normalisation))
        return self.objective.probabilities(logits)


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What a model.pt holds, made usable."""

    path: Path
    """The file."""
    net: Deployed
    """From images in [0, 1] to probabilities."""
    model: str
    """Name in the registry."""
    task: Task
    """What was learnt."""
    classes: tuple[str, ...]
    """Names by class number; for segmentation of mask values 0 and 1."""
    channels: int
    """Of an image: 1 (grey) or 3 (RGB)."""
    image_size: int
    """Pixels a side that the net was trained at."""
    normalisation: str
    """What ``net`` does first."""
    weights_sha256: str
    """Digest of the weights, as in the run's summary.json when ``which`` is last."""
    which: str
    """best (by the mean validation metric) or last round."""


def load_trained(run_or_model: Path, which: str) -> TrainedModel:
    """Loads a run's trained model; all clients of a run hold the same one, but for batch norms that are their own.

    Args:
        run_or_model: a run folder, or a model.pt.
        which: "best" or "last".

    Raises:
        ConfigError: there is no model, it is damaged, or another version wrote it.
    """
    path = find_model(run_or_model)
    content = _read(path)
    if any(content.get("own_norms", {}).values()):
        _check_named(run_or_model, path)
    try:
        return _build(path, content, which)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        # What a damaged file makes torch and Python raise; its first line says what did not fit.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _damaged(path, reason) from None


def find_model(run_or_model: Path) -> Path:
    """The file that RUN_OR_MODEL means.

    Raises:
        ConfigError: no such path, or a folder without a model.
    """
    if run_or_model.is_file():
        return run_or_model
    if not run_or_model.exists():
        raise ConfigError(f"{run_or_model} does not exist; name a run folder or a model.pt")
    # A client across hosts has only its own folder.
    found = sorted(run_or_model.glob("clients/*/model.pt")) or sorted(run_or_model.glob("model.pt"))
    if not found:
        raise ConfigError(
            f"{run_or_model} holds no clients/*/model.pt; clients write it when a run ends, unless it ran with "
            "--no-release-top or --unsplit"
        )
    return found[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what the file makes it raise: pickle, zip and OS errors
        raise _damaged(path, why_unreadable(path, error)) from None
    if not isinstance(content, dict) or "format" not in content:
        raise _damaged(path, "it is not a model that suture wrote")
    if content["format"] != MODEL_FORMAT:
        raise ConfigError(
            f"{path} has format {content['format']!r:.40}, this version reads {MODEL_FORMAT}; "
            "use the version of suture that wrote it"
        )
    return content


def _build(path: Path, content: dict[str, Any], which: str) -> TrainedModel:
    task, classes = Task(content["task"]), tuple(map(str, content["classes"]))
    with as_config_error():
        entry = nets.model_entry(content["model"])
        # Not on meta: a net of others may have constants that no file holds.
        split = nets.build(
            entry.name,
            cut=parse_cut(content["cut"]),
            num_outputs=objective(task).num_outputs(len(classes)),
            labels=content["labels"],
            width=content["width"],
        )
    states, digest = content[which]["parts"], content[which]["weights_sha256"]
    found = digests(states, content.get("own_norms", {}))
    if found != {name: content[which][name] for name in found}:
        raise _damaged(path, "its weights are not those of its digest")
    for name, part in split.parts().items():
        part.load_state_dict(states[name], assign=True)
    return TrainedModel(
        path=path,
        net=Deployed(split, task, content["normalisation"]),
        model=entry.name,
        task=task,
        classes=classes,
        channels=entry.in_channels,
        image_size=int(content["image_size"]),
        normalisation=content["normalisation"],
        weights_sha256=digest,
        which=which,
    )


def _check_named(run_or_model: Path, path: Path) -> None:
    """
    Raises:
        ConfigError: a run is named whose clients have different models.
    """
    models = [one.parent for one in sorted(path.parent.parent.glob("*/model.pt"))]
    if run_or_model.is_dir() and path.parent != run_or_model and len(models) > 1:
        raise ConfigError(
            f"the clients of {run_or_model} have batch norms of their own (norms local), so each has another model; "
            f"name one: {', '.join(map(str, models))}"
        )


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"cannot load a model from {path} ({reason:.200}); copy it again from its run")
