"""Parts that compute in bfloat16 and give float32: torch's autocast around each part's forward.

Weights, gradients, optimizers and all that crosses a cut stay float32, so a net that is cut computes what it computes
when its parts are joined again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suture.models.split import SplitModel

PRECISIONS = ("fp32", "bf16")
_DEVICES = ("cpu", "cuda")


def has_bf16(device: str) -> bool:
    """Whether a kind of device computes convolutions in bfloat16: a GPU, or a processor with AVX-512 or better."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _InBf16:
    """Comes before a part's own class."""

    def forward(self, x: Tensor, *further: Any) -> Any:
        kind = x.device.type
        if kind not in _DEVICES:  # shapes alone
            return super().forward(x, *further)  # type: ignore[misc]
        with torch.autocast(kind, torch.bfloat16):
            output = super().forward(x, *further)  # type: ignore[misc]
        return _in_fp32(output)


def to_bf16(split: SplitModel) -> None:
    """From now on the parts compute in bfloat16. Names of parameters and state dicts do not change."""
    for part in split.parts().values():
        kind = type(part)
        part.__class__ = type(f"{kind.__name__}InBf16", (_InBf16, kind), {})


def _in_fp32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.dtype is torch.bfloat16 else output
    items = map(_in_fp32, output)
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
