"""Drawn fundus photographs with and without signs of diabetic retinopathy; no files, no patients.

Disease shows as dark red blots (haemorrhages, microaneurysms) and clusters of yellowish exudates. Both
classes have what might be mistaken for them: dust on the lens, large soft spots, crossings of vessels. The
colour of the retina says nothing about the class: after drawing, each channel's mean and spread inside the
disc are set to targets drawn without looking at the label.

Coordinates: the picture spans [-1, 1] in x (right) and y (down).
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

_CLASSES = ("no retinopathy", "retinopathy")
_BLOCK = 4  # examples, that is two patients, among which the classes are balanced
_OVERSAMPLING = 4  # vessels and lesions are drawn this much larger, for smooth edges

_RETINA = np.array([0.78, 0.38, 0.15], dtype=np.float32)
_VESSEL = np.array([0.62, 0.42, 0.55], dtype=np.float32)  # factors: blood swallows green most
_BLOOD = np.array([0.36, 0.07, 0.05], dtype=np.float32)
_EXUDATE = np.array([0.98, 0.84, 0.42], dtype=np.float32)
_OPTIC_DISC = np.array([1.00, 0.84, 0.56], dtype=np.float32)


class FundusPhantom(Source):
    """A classification source of any length: two eyes a patient, the classes exactly half and half."""

    def __init__(self, num_examples: int, seed: int) -> None:
        """List the examples, rounded up to whole blocks of four.

        Args:
            num_examples: How many are wanted at least.
            seed: With the index, all that a picture depends on.
        """
        self.seed = seed
        num_blocks = max(1, -(-num_examples // _BLOCK))
        examples = [
            Example(key=f"p{index // 2:04d}_{_side(index)}", patient=f"p{index // 2:04d}", label=label)
            for block in range(num_blocks)
            for index, label in enumerate(_block_labels(seed, block), start=block * _BLOCK)
        ]
        super().__init__("fundus-phantom", Task.CLASSIFICATION, _CLASSES, examples, mirror=True)

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """Draw one eye; see ``Source.read``."""
        label = self.examples[index].label or 0
        picture = draw_fundus(
            phantom_rng(self.seed, index), size, diseased=label == 1, left_eye=_side(index) == "left"
        )
        return to_image_tensor(picture, channels), torch.tensor(label, dtype=torch.int64)


def _side(index: int) -> str:
    return "left" if index % 2 == 0 else "right"


def _block_labels(seed: int, block: int) -> list[int]:
    rng = np.random.default_rng([seed, block, 1])
    return [int(label) for label in rng.permutation([0, 0, 1, 1])]


def draw_fundus(rng: Generator, size: int, *, diseased: bool, left_eye: bool) -> Field:
    """Draw one eye.

    Args:
        rng: The only source of chance.
        size: Edge length in pixels.
        diseased: Whether lesions are drawn.
        left_eye: In a left eye the optic disc lies left of the centre.

    Returns:
        (size, size, 3) RGB in [0, 1].
    """
    x, y = coordinates(size)
    radius = rng.uniform(0.86, 0.97)
    shift = rng.uniform(-0.03, 0.03, size=2)
    distance = np.hypot(x - shift[0], y - shift[1])
    edge = np.clip((radius - distance) * size / 2.0 + 0.5, 0.0, 1.0)[..., None]
    nasal = -1.0 if left_eye else 1.0
    disc = np.array([nasal * rng.uniform(0.42, 0.54), rng.uniform(-0.10, 0.10)])
    macula = np.array([disc[0] - nasal * rng.uniform(0.50, 0.58), disc[1] + rng.uniform(0.0, 0.10)])

    picture = _retina(rng, x, y, macula)
    vessels = _vessels(rng, size, disc, nasal)
    picture *= 1.0 - vessels[..., None] * (1.0 - _VESSEL)
    _paint_optic_disc(rng, picture, x, y, disc, vessels)
    _paint_distractors(rng, picture, x, y)
    if diseased:
        _paint_lesions(rng, picture, size, disc, radius)
    mean, spread = _colours(rng)
    # Noise comes last, for it takes more draws the larger the picture: at every size the same eye.
    picture += rng.normal(0.0, rng.uniform(0.006, 0.016), picture.shape).astype(np.float32)
    inside = distance < radius - 4.0 / size
    shown: Field = (_recolour(picture, inside, mean, spread) * edge).astype(np.float32)
    return shown


def _retina(rng: Generator, x: Field, y: Field, macula: NDArray[np.float64]) -> Field:
    direction = rng.uniform(0.0, 2.0 * np.pi)
    light = 1.0 + rng.uniform(0.05, 0.22) * (x * np.cos(direction) + y * np.sin(direction))
    light -= rng.uniform(0.10, 0.28) * (x * x + y * y)
    light -= rng.uniform(0.18, 0.32) * soft_blob(x, y, macula, rng.uniform(0.12, 0.18))
    light += 0.035 * smooth_noise(rng, x.shape[0], 5) + 0.025 * smooth_noise(rng, x.shape[0], 14)
    retina: Field = (light[..., None] * _RETINA).astype(np.float32)
    return retina


def _paint_optic_disc(
    rng: Generator, picture: Field, x: Field, y: Field, disc: NDArray[np.float64], vessels: Field
) -> None:
    width, height = rng.uniform(0.105, 0.135), rng.uniform(0.125, 0.155)
    distance = np.hypot((x - disc[0]) / width, (y - disc[1]) / height)
    alpha = np.clip((1.2 - distance) / 0.45, 0.0, 1.0) * rng.uniform(0.80, 0.95) * (1.0 - 0.6 * vessels)
    cup = np.clip((0.55 - distance) / 0.3, 0.0, 1.0) * rng.uniform(0.3, 0.9)
    colour = _OPTIC_DISC + cup[..., None] * np.array([0.0, 0.10, 0.22], dtype=np.float32)
    picture += alpha[..., None] * (colour - picture)


def _vessels(rng: Generator, size: int, disc: NDArray[np.float64], nasal: float) -> Field:
    """Darkness of the vessel tree, (size, size) in [0, 1]: arcades above and below, vein beside artery."""
    canvas = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING), 0)
    pen = ImageDraw.Draw(canvas)
    for vertical in (-1.0, 1.0):
        for temporal, width in ((True, 0.046), (True, 0.032), (False, 0.036), (False, 0.026)):
            # Angles are measured from the vertical towards the temporal side; the arcades then bend
            # around the macula, the nasal vessels run straight on.
            start = rng.uniform(-0.1, 0.5) if temporal else rng.uniform(-1.0, -0.4)
            bend = rng.uniform(0.9, 1.4) if temporal else rng.uniform(-0.4, 0.3)
            angle = math.atan2(vertical * math.cos(start), -nasal * math.sin(start))
            at = (float(disc[0]), float(disc[1]))
            _grow(rng, pen, size * _OVERSAMPLING / 2.0, at, angle, width, bend * nasal * vertical, 0)
    reduced = canvas.reduce(_OVERSAMPLING)
    return np.asarray(reduced, dtype=np.float32) / 255.0


def _grow(
    rng: Generator,
    pen: ImageDraw.ImageDraw,
    scale: float,
    at: tuple[float, float],
    angle: float,
    width: float,
    bend: float,
    depth: int,
) -> None:
    """Draw one vessel as a wandering line and let branches grow from it."""
    step, points = 0.075, [at]
    num_steps = int(rng.integers(13, 19) if depth == 0 else rng.integers(6, 11))
    wander = rng.normal(bend * step, 0.10, num_steps).tolist()
    forks = rng.random(num_steps).tolist()
    branches = []
    for number in range(num_steps):
        angle += wander[number]
        at = (at[0] + step * math.cos(angle), at[1] + step * math.sin(angle))
        points.append(at)
        if depth < 2 and number > 1 and forks[number] < (0.34 if depth == 0 else 0.2):
            branches.append((at, angle + math.copysign(rng.uniform(0.45, 0.85), rng.random() - 0.5)))
        if math.hypot(*at) > 1.05:
            break
    pixels = [((px + 1.0) * scale, (py + 1.0) * scale) for px, py in points]
    for number in range(len(points) - 1):
        taper = width * (1.0 - 0.55 * number / num_steps)
        pen.line(pixels[number : number + 2], fill=195 - 25 * depth, width=max(1, round(taper * scale)))
    for start, towards in branches:
        _grow(rng, pen, scale, start, towards, width * 0.55, rng.uniform(-0.8, 0.8), depth + 1)


def _paint_distractors(rng: Generator, picture: Field, x: Field, y: Field) -> None:
    """Soft large spots, dark or bright, and pale rings of dust: in both classes alike."""
    for _ in range(int(rng.integers(1, 4))):
        centre, spread = rng.uniform(-0.7, 0.7, size=2), rng.uniform(0.14, 0.30)
        strength = rng.choice([-1.0, 1.0]) * rng.uniform(0.08, 0.20)
        picture *= (1.0 + strength * soft_blob(x, y, centre, spread))[..., None]
    for _ in range(int(rng.integers(0, 4))):
        centre, ring = rng.uniform(-0.8, 0.8, size=2), rng.uniform(0.05, 0.09)
        distance = np.hypot(x - centre[0], y - centre[1])
        halo = np.exp(-(((distance - ring) / 0.022) ** 2)) * rng.uniform(0.05, 0.12)
        picture += halo[..., None].astype(np.float32)


def _paint_lesions(
    rng: Generator, picture: Field, size: int, disc: NDArray[np.float64], radius: float
) -> None:
    """Haemorrhages, microaneurysms and clusters of exudates, several of each in every diseased eye."""
    blood = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING), 0)
    exudates = Image.new("L", blood.size, 0)
    pen = ImageDraw.Draw(blood)
    for _ in range(int(rng.integers(5, 11))):
        _blot(rng, pen, size, _place(rng, disc, radius), rng.uniform(0.034, 0.066))
    for _ in range(int(rng.integers(4, 12))):
        _blot(rng, pen, size, _place(rng, disc, radius), rng.uniform(0.016, 0.026))
    pen = ImageDraw.Draw(exudates)
    for _ in range(int(rng.integers(1, 4))):
        middle = _place(rng, disc, radius)
        for _ in range(int(rng.integers(6, 15))):
            _blot(rng, pen, size, middle + rng.normal(0.0, 0.07, size=2), rng.uniform(0.011, 0.028))
    for layer, colour in ((blood, _BLOOD), (exudates, _EXUDATE)):
        soft = layer.filter(ImageFilter.BoxBlur(size * _OVERSAMPLING / 300.0)).reduce(_OVERSAMPLING)
        alpha = np.asarray(soft, dtype=np.float32)[..., None] / 255.0
        picture += alpha * (colour - picture)


def _place(rng: Generator, disc: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """A place inside the retina and off the optic disc."""
    while True:
        angle, far = rng.uniform(0.0, 2.0 * np.pi), radius * 0.88 * np.sqrt(rng.random())
        place = np.array([far * np.cos(angle), far * np.sin(angle)])
        if np.hypot(*(place - disc)) > 0.22:
            return place


def _blot(
    rng: Generator, pen: ImageDraw.ImageDraw, size: int, centre: NDArray[np.float64], radius: float
) -> None:
    """An irregular spot: an ellipse whose radius wavers."""
    phase, tilt, wave, opacity = rng.random(4).tolist()
    stretch = 0.8 + 0.4 * wave
    scale = size * _OVERSAMPLING / 2.0
    outline = []
    for corner in range(12):
        angle = corner * (math.tau / 12.0)
        r = radius * (
            1.0 + 0.14 * math.sin(2.0 * angle + tilt * 6.3) + 0.10 * math.sin(3.0 * angle + phase * 6.3)
        )
        across, down = r * stretch * math.cos(angle), r / stretch * math.sin(angle)
        outline.append(((centre[0] + across + 1.0) * scale, (centre[1] + down + 1.0) * scale))
    pen.polygon(outline, fill=int(190 + 55 * opacity))


def _colours(rng: Generator) -> tuple[Field, Field]:
    """Each channel's mean and spread inside the disc, drawn without the label.

    The channels vary by themselves too: were their ratios fixed, the little that clipping leaves of the
    lesions would show in them.
    """
    warmth, light = rng.normal(0.0, 0.03), rng.normal(0.0, 0.05)
    mean = np.array([0.62 + light + warmth, 0.33 + 0.8 * light, 0.155 + 0.5 * light - warmth])
    spread = np.array([0.105, 0.090, 0.055]) * rng.uniform(0.8, 1.2)
    mean = mean + rng.normal(0.0, 0.01, 3)
    spread = spread * rng.uniform(0.85, 1.15, 3)
    return mean.clip(0.1, 0.8).astype(np.float32), spread.astype(np.float32)


def _recolour(picture: Field, inside: NDArray[np.bool_], mean: Field, spread: Field) -> Field:
    """Give each channel inside the disc its mean and spread.

    Clipping moves them again, differently with and without lesions, so the correction is repeated.
    """
    for _ in range(4):
        values = picture[inside]
        gain = spread / values.std(axis=0)
        picture = ((picture - values.mean(axis=0)) * gain + mean).clip(0.0, 1.0)
    return picture
