"""Drawn chest X-rays with exact lung masks; no files, no patients.

Coordinates: the picture spans [-1, 1] in x (right) and y (down). The heart lies right of the picture's
centre, on the patient's left.
"""

import math

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from suture.runtime.data.phantom_field import (
    coordinates,
    phantom_rng,
    smooth_noise,
    soft_blob,
    to_image_tensor,
)
from suture.runtime.data.source import Example, Source, Task

Field = NDArray[np.float32]
Curve = list[tuple[float, float]]

_OVERSAMPLING = 4
_CORNERS = 72


class ChestPhantom(Source):
    """A segmentation source of any length, one picture a patient."""

    def __init__(self, num_examples: int, seed: int) -> None:
        """List the examples.

        Args:
            num_examples: How many.
            seed: With the index, all that a picture depends on.
        """
        self.seed = seed
        keys = [f"c{index:04d}" for index in range(num_examples)]
        examples = [Example(key=key, patient=key, label=None) for key in keys]
        super().__init__("chest-phantom", Task.SEGMENTATION, ("background", "lung"), examples)

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """Draw one chest and its mask; see ``Source.read``."""
        picture, mask = draw_chest(phantom_rng(self.seed, index), size)
        return to_image_tensor(picture, channels), torch.from_numpy(mask.astype(np.float32))[None]


def draw_chest(rng: Generator, size: int) -> tuple[Field, NDArray[np.bool_]]:
    """Draw one chest.

    Args:
        rng: The only source of chance.
        size: Edge length in pixels.

    Returns:
        (size, size) grey in [0, 1], and the mask of the lungs from the very curves that were drawn.
    """
    x, y = coordinates(size)
    lungs = _lungs(rng)
    reach = max(abs(px) for lung in lungs for px, _ in lung)
    body = _filled([_body(rng, reach)], size)
    heart = _heart(rng, x, y)
    # Heart and great vessels hide the lung; the mask ends where they begin, as most annotators draw it.
    air = _filled(lungs, size) * (1.0 - heart) * body
    spine = np.exp(-((x / rng.uniform(0.06, 0.09)) ** 4))

    picture = body * (0.60 + 0.04 * smooth_noise(rng, size, 4) + 0.16 * soft_blob(x, y, (0.0, 1.0), 0.7))
    picture *= 1.0 - rng.uniform(0.15, 0.35) * np.clip(np.abs(x) / (reach + 0.2), 0.0, 1.0) ** 4
    picture -= air * rng.uniform(0.26, 0.40)
    picture += air * 0.03 * smooth_noise(rng, size, 9)
    picture += _bones(rng, size, reach) * body * rng.uniform(0.07, 0.14)
    picture += spine * body * rng.uniform(0.06, 0.14)
    picture += heart * body * rng.uniform(0.02, 0.10)
    for side in (-1.0, 1.0):
        picture += rng.uniform(0.06, 0.16) * soft_blob(x, y, (side * 0.20, 0.0), 0.09)
    picture = (picture - 0.45) * rng.uniform(0.75, 1.15) + rng.uniform(0.36, 0.48)
    # Noise comes last, for it takes more draws the larger the picture: at every size the same chest.
    picture += rng.normal(0.0, rng.uniform(0.012, 0.035), picture.shape)
    return picture.clip(0.0, 1.0).astype(np.float32), air > 0.5


def _heart(rng: Generator, x: Field, y: Field) -> Field:
    """The shadow of the heart, (size, size) in [0, 1]: an ellipse whose tip points down and outwards."""
    tilt, centre = rng.uniform(0.4, 0.8), (rng.uniform(0.10, 0.18), rng.uniform(0.22, 0.34))
    along = (x - centre[0]) * math.cos(tilt) + (y - centre[1]) * math.sin(tilt)
    across = (y - centre[1]) * math.cos(tilt) - (x - centre[0]) * math.sin(tilt)
    distance = np.hypot(along / rng.uniform(0.34, 0.44), across / rng.uniform(0.22, 0.30))
    shadow: Field = np.clip((1.10 - distance) / 0.2, 0.0, 1.0).astype(np.float32)
    return shadow


def _lungs(rng: Generator) -> list[Curve]:
    """The outlines of both lungs, tilted and shifted together."""
    tilt, shift = rng.normal(0.0, 0.06), rng.normal(0.0, 0.04, size=2)
    height, width = rng.uniform(0.54, 0.72), rng.uniform(0.27, 0.36)
    lungs = []
    for side in (-1.0, 1.0):
        tall = height * rng.uniform(0.92, 1.08)
        broad = width * rng.uniform(0.88, 1.12)
        centre = (side * (0.08 + broad), rng.normal(0.0, 0.03))
        curve = _lung(rng, side, tall, broad)
        lungs.append(
            [
                (
                    (cx + centre[0]) * math.cos(tilt) - (cy + centre[1]) * math.sin(tilt) + shift[0],
                    (cx + centre[0]) * math.sin(tilt) + (cy + centre[1]) * math.cos(tilt) + shift[1],
                )
                for cx, cy in curve
            ]
        )
    return lungs


def _lung(rng: Generator, side: float, tall: float, broad: float) -> Curve:
    """A smooth closed curve: narrow apex, broad base with a domed diaphragm, wavering edge."""
    phases, lean = rng.uniform(0.0, math.tau, 3).tolist(), rng.uniform(0.10, 0.24)
    waves = (rng.normal(0.0, [0.035, 0.025, 0.018])).tolist()
    dome = rng.uniform(0.10, 0.22)
    curve = []
    for corner in range(_CORNERS):
        angle = corner * math.tau / _CORNERS
        radius = 1.0 + sum(
            w * math.sin((k + 2) * angle + p) for k, (w, p) in enumerate(zip(waves, phases, strict=True))
        )
        across, down = math.cos(angle) * radius, math.sin(angle) * radius
        # Squarer than an ellipse below, pointed above; the outer edge leans outwards towards the base.
        across = math.copysign(abs(across) ** 0.8, across) * (0.82 + 0.18 * down)
        down = math.copysign(abs(down) ** 0.85, down)
        if down > 0.4:
            down -= dome * (1.0 - across * across) * (down - 0.4)
        curve.append((broad * across + side * lean * broad * down, tall * down))
    return curve


def _body(rng: Generator, reach: float) -> Curve:
    """Neck, shoulders and trunk, wider than the lungs, running out of the picture below."""
    broad, top, neck = reach + rng.uniform(0.05, 0.20), rng.uniform(-1.05, -0.9), rng.uniform(0.20, 0.28)
    half = [(neck, -1.5), (neck, top), (broad * 0.6, top + 0.16), (broad * 1.05, top + 0.30)]
    half += [(broad * 1.1, top + 0.6), (broad, 0.2), (broad * 1.02, 1.5)]
    curve = half + [(-px, py) for px, py in reversed(half)]
    for _ in range(3):  # Chaikin's corner cutting
        curve = [
            (0.75 * here[0] + 0.25 * there[0], 0.75 * here[1] + 0.25 * there[1])
            for pair in zip(curve, curve[1:] + curve[:1], strict=True)
            for here, there in (pair, pair[::-1])
        ]
    return curve


def _bones(rng: Generator, size: int, reach: float) -> Field:
    """Arched ribs and collarbones on both sides, in [0, 1]."""
    canvas = Image.new("L", (size * 2, size * 2), 0)
    pen = ImageDraw.Draw(canvas)
    num_ribs, slope, thick = int(rng.integers(8, 11)), rng.uniform(0.16, 0.34), rng.uniform(0.055, 0.085)
    along = [t / 14.0 for t in range(15)]
    for side in (-1.0, 1.0):
        for rib in range(num_ribs):
            start = -0.80 + 1.5 * rib / num_ribs
            points = [
                (
                    (side * (0.05 + reach * math.sin(t * 1.6)) + 1.0) * size,
                    (start + slope * t * t * 1.7 - 0.08 * math.sin(t * math.pi) + 1.0) * size,
                )
                for t in along
            ]
            pen.line(points, fill=170, width=max(1, round(thick * size)), joint="curve")
        collarbone = [
            ((side * (0.08 + 0.85 * reach * t) + 1.0) * size, (-0.60 - 0.16 * math.sin(t * 2.2) + 1.0) * size)
            for t in along
        ]
        pen.line(collarbone, fill=230, width=max(1, round(0.06 * size)), joint="curve")
    soft = canvas.filter(ImageFilter.GaussianBlur(size / 80.0)).reduce(2)
    return np.asarray(soft, dtype=np.float32) / 255.0


def _filled(curves: list[Curve], size: int) -> Field:
    """The inside of closed curves, (size, size) in [0, 1] with soft edges."""
    canvas = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING), 0)
    pen = ImageDraw.Draw(canvas)
    scale = size * _OVERSAMPLING / 2.0
    for curve in curves:
        pen.polygon([((px + 1.0) * scale, (py + 1.0) * scale) for px, py in curve], fill=255)
    return np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.float32) / 255.0
