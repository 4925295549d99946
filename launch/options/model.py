"""Options: the net and where it is cut."""

from __future__ import annotations

from dataclasses import dataclass

import suture.models.registry as nets
from suture.launch.options.group import Group, option
from suture.models.freezing import FORMS
from suture.models.pretrained import IMAGENET
from suture.runtime.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Group):
    """The net, its cut, and on which side the labels are."""

    model: str | None = option(
        None, f"network to train: {', '.join([*nets.MODELS, *nets.FORMS])}", agree=True
    )
    width: int | None = option(None, "channels of the U-Net's first block", least=1, agree=True)
    cut: str | None = option(
        None, "cut layer, a number or a block's name; see 'suture cuts MODEL'", agree=True
    )
    labels: str | None = option(
        None,
        "shared (loss at the server) or home (loss at the client)",
        choices=("shared", "home"),
        agree=True,
    )
    weights: str | None = option(
        None,
        f"what the whole net starts from: FILE (state dict, torch or safetensors), or {IMAGENET} (torchvision's)",
    )
    freeze: str | None = option(
        None,
        f"weights that stay as they are: {', '.join(FORMS)} (all before cut N); needs --weights",
        agree=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None:
            with as_config_error():
                nets.model_entry(self.model)
        if self.freeze is not None and self.weights is None:
            raise ConfigError(
                f"freeze {self.freeze} keeps weights as they are, and without --weights they are random; give --weights"
            )


class as_config_error:
    """Turns the ValueErrors of models/, which knows no errors of ours, into ConfigErrors."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if type(error) is ValueError:
            raise ConfigError(str(error)) from None


def parse_cut(cut: str) -> int | str:
    """``--cut`` as a number where it is one, else as a block's name."""
    return int(cut) if cut.lstrip("-").isdigit() else cut
