"""Pictures of images: what a bottom makes of one, and masks. Their owner draws them; they stay with it.

Shape legend: N batch; C, H, W image or feature map; D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from suture.launch.output.figures.canvas import COLOURS, GREY, drawn
from suture.runtime.training.metrics import SegmentationScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRUTH, _PREDICTION = COLOURS[5], COLOURS[1]
_MAX_STAGES = 10
_NUM_CHANNELS = 4
_MAX_IMAGES = 8
_NOTE = "right: channels that vary\nmost over the picture,\neach scaled for itself"


def bottom_stages(bottom: nn.Module, x: Tensor) -> list[tuple[str, Tensor]]:
    """What a bottom makes of one image, stage by stage, for ``activations``.

    The forward pass is in evaluation mode, without gradients; each module's mode is put back afterwards.

    Args:
        bottom: any client part; its stages are its direct children, in the order in which they run.
        x: x_1CHW on the bottom's device, or a batch of which the first image is taken.

    Returns:
        (name, tensor of one image on the CPU): "input", then each child's output; then "smashed data" where
        the bottom does something more after its last child (the U-Net's pooling).
    """
    x = x[:1]
    stages = [("input", _kept(x))]
    modes = [(module, module.training) for module in bottom.modules()]
    hooks = [_keep_output(child, name, stages) for name, child in bottom.named_children()]
    try:
        bottom.eval()
        with torch.no_grad():
            smashed = _kept(_first_tensor(bottom(x)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    if not torch.equal(stages[-1][1], smashed):
        stages.append(("smashed data", smashed))
    return stages


def activations(stages: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """An image on its way through the bottom: one column a stage, from the input to the smashed data.

    Shown are channels that vary much over the picture, the same from stage to stage as long as the number
    of channels stays the same, each scaled for itself.

    Args:
        stages: from ``bottom_stages``: (name, tensor (1, C, H, W) or (1, D)); of more than ten stages ten
            are shown, the first and the last among them.
        path: PNG to write, replaced whole.
    """
    num_shown = min(len(stages), _MAX_STAGES)
    chosen = [stages[round(i * (len(stages) - 1) / max(1, num_shown - 1))] for i in range(num_shown)]
    with drawn(path, 0.3 + 1.5 * num_shown, 0.8 + 1.5 * _NUM_CHANNELS) as figure:
        charts = figure.subplots(_NUM_CHANNELS, num_shown, squeeze=False)
        for column, (name, values) in enumerate(chosen):
            is_last = column == num_shown - 1 and column > 0 and name != "smashed data"
            shape = " × ".join(str(size) for size in values.shape[1:])
            heading = f"smashed data:\n{name}\n{shape}" if is_last else f"{name}\n{shape}"
            charts[0][column].set_title(heading, loc="center", fontsize=9)
            for axes in charts[:, column]:
                axes.set_axis_off()
        _show_image(charts[0][0], chosen[0][1][0])
        charts[1][0].text(0.02, 0.95, _NOTE, va="top", fontsize=8, color=GREY)
        for column, channels in enumerate(
            _channels_to_show([values[0] for _, values in chosen[1:]]), start=1
        ):
            for axes, channel in zip(charts[:, column], channels, strict=False):
                low, high = (channel.nanquantile(q).item() for q in (0.01, 0.99))
                axes.imshow(channel.numpy(), cmap="viridis", vmin=low, vmax=max(high, low + 1e-6))


def segmentation(
    images: Tensor, truth: Tensor, prediction: Tensor, path: Path, *, title: str = "", caption: str = ""
) -> None:
    """Up to eight images: one column each, with the true mask below it and the predicted one below that.

    Args:
        images: x_NCHW, C 1 or 3, any scale.
        truth: (N, 1, H, W), 0 or 1.
        prediction: (N, 1, H, W), probabilities or 0 and 1; foreground above one half.
        path: PNG to write, replaced whole.
        title: written above.
        caption: written below, for instance an attribution.
    """
    num_images = min(len(images), _MAX_IMAGES)
    rows = ("image", "truth", "prediction\n(blue: truth)")
    with drawn(path, 0.7 + 1.7 * num_images, 5.5 + 0.3 * (bool(title) + bool(caption))) as figure:
        charts = figure.subplots(len(rows), num_images, squeeze=False)
        for column in range(num_images):
            true, predicted = truth[column, 0].cpu() > 0.5, prediction[column, 0].cpu() > 0.5
            for axes in charts[:, column]:
                _show_image(axes, images[column])
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            _fill(charts[1][column], true, _TRUTH)
            _fill(charts[2][column], predicted, _PREDICTION)
            _outline(charts[2][column], true, _TRUTH)
            charts[0][column].set_title(f"Dice {_dice(true, predicted):.3f}", loc="center")
        for axes, name in zip(charts[:, 0], rows, strict=True):
            axes.set_ylabel(name, fontsize=10, weight="bold")
        if title:
            figure.suptitle(title, weight="bold")
        if caption:
            figure.supxlabel(caption, fontsize=8)


def _keep_output(child: nn.Module, name: str, stages: list[tuple[str, Tensor]]) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        stages.append((name, _kept(_first_tensor(output))))

    return child.register_forward_hook(keep)


def _first_tensor(output: Any) -> Tensor:
    """The output itself, or the first of a tuple: the smashed data of a ``BottomOutput``."""
    while isinstance(output, tuple):
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(
            f"a stage must give a tensor or a tuple that starts with one, got {type(output).__name__}"
        )
    return output


def _kept(values: Tensor) -> Tensor:
    """A copy: a later module might write in place into what this one returned."""
    return values.detach().float().cpu().clone()


def _channels_to_show(stages: Sequence[Tensor]) -> list[list[Tensor]]:
    """Of each stage (C, H, W) a few channels (H, W); of features without a picture all, in one square.

    Chosen by variance at the last of successive stages with equally many channels, backwards from there: a
    channel can be followed along its row, and is not one that the ReLU between them has silenced.
    """
    shown: list[list[Tensor]] = []
    best, num_channels = torch.empty(0), -1
    for values in reversed(stages):
        if values.ndim != 3 or values[0].numel() == 1:
            features = values.flatten()
            side = math.ceil(math.sqrt(len(features)))
            padded = nn.functional.pad(features, (0, side * side - len(features)), value=math.nan)
            shown.append([padded.reshape(side, side)])
            continue
        if len(values) != num_channels:
            num_channels = len(values)
            variances = values.flatten(1).var(dim=1, correction=0)
            best = variances.topk(min(_NUM_CHANNELS, num_channels)).indices.sort().values
        shown.append(list(values[best]))
    return shown[::-1]


def _show_image(axes: Axes, image: Tensor) -> None:
    """An image (C, H, W) of any scale, stretched to black and white, without grid."""
    pixels = image.detach().float().cpu()
    low, high = pixels.min(), pixels.max()
    pixels = ((pixels - low) / (high - low).clamp_min(1e-6)).permute(1, 2, 0)
    axes.imshow((pixels.expand(-1, -1, 3) if pixels.shape[2] == 1 else pixels[..., :3]).numpy())
    axes.grid(False)


def _fill(axes: Axes, mask: Tensor, colour: str) -> None:
    """A mask (H, W) as a translucent sheet with an outline."""
    from matplotlib.colors import to_rgba

    sheet = mask[..., None] * torch.tensor(to_rgba(colour, 0.35))
    axes.imshow(sheet.numpy())
    _outline(axes, mask, colour)


def _outline(axes: Axes, mask: Tensor, colour: str) -> None:
    # Matplotlib warns where there is nothing to draw.
    if mask.any() and not mask.all():
        axes.contour(mask.float().numpy(), levels=[0.5], colors=[colour], linewidths=1.4)


def _dice(true: Tensor, predicted: Tensor) -> float:
    scores = SegmentationScores()
    scores.update(predicted[None, None].float() - 0.5, true[None, None].float())
    return scores.compute()["dice"]
