"""Batch norms that a client keeps to itself (``--norms local``).

Li, Jiang, Zhang, Kamp, Dou: FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021,
arXiv:2102.07623.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from suture.models.freezing import is_frozen
from suture.models.split import SplitModel

SHARED, LOCAL = NORMS = ("shared", "local")
"""What ``--norms`` takes."""


def norm_names(part: nn.Module) -> frozenset[str]:
    """The names, in the part's state dict, of its batch norms' weights and statistics; frozen ones never differ and are
    left out.
    """
    return frozenset(
        f"{name}.{own}".removeprefix(".")
        for name, module in part.named_modules()
        if isinstance(module, _BatchNorm) and not is_frozen(module)
        for own in module.state_dict()
    )


def check_local(split: SplitModel, model: str, cut: int | str) -> None:
    """Whether a client has batch norms to keep.

    Raises:
        ValueError: it has none that train.
    """
    own = [part for name, part in split.parts().items() if name != "top"]
    if not any(map(norm_names, own)):
        raise ValueError(
            f"norms local keeps batch norms at each client, and a client's parts of {model}, cut at {cut}, have none "
            "that train; cut later, freeze less, or use --norms shared"
        )
