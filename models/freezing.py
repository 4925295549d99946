"""Weights that training leaves alone: which they are (``--freeze``), and the batch norms that go with them.

A batch norm whose weights are frozen stays in evaluation mode, so that its running statistics do not move either.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from suture.models.registry import build, model_entry
from suture.models.split import SplitModel
from suture.models.weights import final_layer, whole_state_dict

BOTTOM, ALL_BUT_HEAD = "bottom", "all-but-head"
FORMS = (BOTTOM, ALL_BUT_HEAD, "N")
"""What ``--freeze`` takes; N counts as a cut does, and freezes what a client would keep that is cut there."""
_FROZEN = "is_frozen_norm"


def frozen_names(split: SplitModel, what: str, model: str, width: int | None = None) -> set[str]:
    """The parameters and buffers, named as in the whole net, that ``what`` freezes.

    Args:
        split: the parts, of the net ``model``.
        what: see ``FORMS``.
        model: the net's name.
        width: as in ``registry.build``.

    Raises:
        ValueError: there is no such cut, or nothing is left to train.
    """
    whole = whole_state_dict(split)
    if what == BOTTOM:
        names = set(split.bottom.state_dict())
    elif what == ALL_BUT_HEAD:
        names = {name for name in whole if not name.startswith(final_layer(split) + ".")}
    elif what.isdecimal():
        with torch.device("meta"):
            kept = build(
                model, cut=int(what), num_outputs=2, labels=model_entry(model).labels[0], width=width
            )
        names = set(kept.bottom.state_dict())
    else:
        raise ValueError(f"freeze must be one of {', '.join(FORMS)}, got {what!r}; N is a cut's number")
    if not names:
        raise ValueError(f"freeze {what} freezes nothing of {model}: no weights lie there; freeze more")
    return names


def freeze(split: SplitModel, names: Collection[str]) -> None:
    """Excludes the parameters ``names`` from training, and marks the batch norms among them for `train_mode`."""
    for part in split.parts().values():
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in names)
        for name, module in part.named_modules():
            if f"{name}.running_mean" in names:
                setattr(module, _FROZEN, True)


def train_mode(part: nn.Module) -> None:
    """Puts a part in training mode, but its frozen batch norms in evaluation mode."""
    part.train()
    for module in part.modules():
        if is_frozen(module):
            module.eval()


def is_frozen(module: nn.Module) -> bool:
    """Whether a module is a batch norm that stays in evaluation mode."""
    return bool(getattr(module, _FROZEN, False))


def trained(part: nn.Module) -> list[nn.Parameter]:
    """The parameters of a part that training moves."""
    return [parameter for parameter in part.parameters() if parameter.requires_grad]
