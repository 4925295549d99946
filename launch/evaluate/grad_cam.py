"""Where a classifier looks: Grad-CAM.

Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization, ICCV 2017, arXiv:1610.02391.

Shape legend: N batch; C, H, W image or feature map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def heat_maps(net: nn.Module, x_NCHW: Tensor, classes_N: Tensor) -> Tensor | None:
    """How much each place speaks for a class, h_NHW in [0, 1]; None for a net without feature maps.

    Args:
        net: from images in [0, 1] to probabilities; its last feature map of more than one pixel is looked at.
        x_NCHW: images.
        classes_N: of each image, the class that is asked about.
    """
    maps: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[-2:]) > 1:
            maps.append(output)

    hooks = [module.register_forward_hook(keep) for module in net.modules() if not any(module.children())]
    try:
        with torch.enable_grad():
            chosen = net(x_NCHW.clone().requires_grad_()).log().gather(1, classes_N[:, None])
            if not maps:
                return None
            (gradient,) = torch.autograd.grad(chosen.sum(), maps[-1])
    finally:
        for hook in hooks:
            hook.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    heat = (weights * maps[-1].detach()).sum(1, keepdim=True).relu()
    heat = functional.interpolate(heat, x_NCHW.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)
