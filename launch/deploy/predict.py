"""``suture predict``: classify or segment a folder of images with a trained model.

Images go through the same reading, padding, resizing and normalisation as in training (``suture.runtime.data``).
Nothing appears in the output folder before everything is ready.

Shape legend: N batch; C, H, W image.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from suture.launch.deploy.trained import TrainedModel
from suture.runtime.data.folder import Found, walk
from suture.runtime.data.library_warnings import counted_warnings
from suture.runtime.data.pictures import picture_size, read_picture
from suture.runtime.data.registry import check_frame_number
from suture.runtime.data.source import Task
from suture.runtime.data.text import csv_text, plain_name
from suture.runtime.errors import ConfigError, DataError

TABLE, MASKS, LEFT_OUT = "predictions.csv", "masks", "left_out.csv"
SOME_UNREADABLE = DataError.exit_code


@dataclass(frozen=True)
class Outcome:
    """What came of a folder.

    Attributes:
        predicted: images by predicted class name or finding (segmentation: all under "masks").
        problems: one line an image that was left out.
        notes: what else lies in the folder and is not used, and what was found in the pictures; names no file.
    """

    predicted: Counter[str]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


@torch.no_grad()
def predict_folder(
    model: TrainedModel,
    folder: Path,
    out: Path,
    *,
    batch_size: int = 16,
    overwrite: bool = False,
    frame: int | None = None,
) -> Outcome:
    """Writes OUT/predictions.csv and, for segmentation, OUT/masks; OUT/left_out.csv says what is in neither and why.

    An image that cannot be read is left out and named in the outcome; the others go on.

    Args:
        model: classifies or segments.
        folder: searched for images at any depth.
        out: made where missing.
        batch_size: images at a time.
        overwrite: replace the table and the masks in ``out``; other files there are left alone.
        frame: which one of DICOM files that hold several, from 1.

    Raises:
        ConfigError: ``out`` is not empty or cannot be written, or the batch size or ``frame`` is below 1.
        DataError: ``folder`` is missing or empty, or none of its images can be read.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size must be at least 1, got {batch_size}")
    check_frame_number(frame)
    found = find_images(folder, out)
    paths = found.pictures
    names = _mask_names(folder, paths)
    problems: list[str] = []
    predicted: Counter[str] = Counter()
    rows: list[list[str]] = []
    with _draft_of(out, overwrite) as draft, counted_warnings() as said:
        for read in _batches(model, paths, batch_size, problems, frame):
            probabilities = model.net(torch.stack([pixels for _, pixels, _ in read]).float().div_(255.0))
            decided = model.net.objective.decided(probabilities)
            for (path, _, size), p, found_here in zip(read, probabilities, decided, strict=True):
                image = plain_name(path.relative_to(folder).as_posix())
                if model.task is not Task.SEGMENTATION:
                    named = _named(model, found_here)
                    rows.append([image, "; ".join(named), *(f"{value:.8g}" for value in p.tolist())])
                    predicted.update(named)
                else:
                    mask = original_mask(p[0], size)
                    _save_mask(mask, draft / MASKS / names[path])
                    share = float(mask.float().mean())
                    rows.append([image, plain_name(f"{MASKS}/{names[path].as_posix()}"), f"{share:.6f}"])
                    predicted[MASKS] += 1
        if not rows:
            raise DataError(
                f"none of the {len(paths)} images in {folder} can be read; the first: {problems[0]}"
            )
        (draft / TABLE).write_text(csv_text([_heading(model), *rows]), encoding="utf-8")
        left_out = [["1", problem] for problem in problems] + _counted(found)
        if left_out:
            (draft / LEFT_OUT).write_text(csv_text([["files", "why"], *left_out]), encoding="utf-8")
    return Outcome(predicted, tuple(problems), (*found.notes(), *said.notes()))


def _named(model: TrainedModel, decided: torch.Tensor) -> list[str]:
    """The class that was decided on, or the findings."""
    numbers = decided.nonzero().flatten() if decided.dim() else decided[None]
    return [model.classes[number] for number in numbers.tolist()]


def find_images(folder: Path, out: Path | None = None) -> Found:
    """Every picture and DICOM file below ``folder``, and what else there is; what lies below ``out`` is our own.

    Raises:
        DataError: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder of images")
    found = walk(folder, without=out)
    if not found.pictures:
        here = "".join(f" ({note})" for note in found.notes())
        raise DataError(
            f"{folder} holds no images (JPEG, PNG, TIFF, BMP, GIF, PPM, JPEG 2000, WebP, AVIF or DICOM){here}; give a "
            "folder that does"
        )
    return found


def read_image(
    path: Path, size: int, channels: int, frame: int | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """An image as in training, and its own width and height.

    Returns:
        uint8 (channels, size, size), and (width, height) of the file.

    Raises:
        DataError: it cannot be read, or it is DICOM and pydicom is missing.
    """
    return read_picture(path, size, channels, frame), picture_size(path)


def original_mask(p_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities of a padded square as a mask of the image that was padded: bool (height, width).

    Undoes ``fit_square``; the probabilities are resized, not the mask, so that its border is smooth.
    """
    width, height = size
    edge = max(size)
    if edge != p_HW.shape[-1]:
        p_HW = functional.interpolate(p_HW[None, None], (edge, edge), mode="bilinear", align_corners=False)[
            0, 0
        ]
    top, left = (edge - height) // 2, (edge - width) // 2
    return p_HW[top : top + height, left : left + width] > 0.5


def _batches(
    model: TrainedModel, paths: Sequence[Path], batch_size: int, problems: list[str], frame: int | None
) -> Iterator[list[tuple[Path, Tensor, tuple[int, int]]]]:
    batch = []
    for path in paths:
        try:
            batch.append((path, *read_image(path, model.image_size, model.channels, frame)))
        except DataError as error:
            problems.append(str(error))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _mask_names(folder: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """STEM_mask.png by image; where two images share a stem, their suffixes stay in the names."""
    stems = Counter(path.with_suffix("") for path in paths)
    names = {}
    for path in paths:
        stem = path.stem if stems[path.with_suffix("")] == 1 else path.name
        names[path] = path.relative_to(folder).with_name(f"{stem}_mask.png")
    return names


def _save_mask(mask_HW: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask_HW.to(torch.uint8).mul(255).numpy()).save(path)


def _heading(model: TrainedModel) -> list[str]:
    if model.task is not Task.SEGMENTATION:
        return ["image", "predicted", *(f"probability_{name}" for name in model.classes)]
    return ["image", "mask", "mask_fraction"]


def _counted(found: Found) -> list[list[str]]:
    return [[str(number), f"not used: {kind}"] for kind, number in sorted(found.unused.items())]


@contextmanager
def _draft_of(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside what is in ``out``, whose contents take their place there if nothing was raised."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not overwrite and any(out.iterdir()):
            raise ConfigError(
                f"{out} is not empty; give another --out, or replace what is in it with --overwrite"
            )
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=out))
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; give another --out") from None
    try:
        yield draft
        # The masks first: a table that is there has its masks.
        (out / TABLE).unlink(missing_ok=True)
        (out / LEFT_OUT).unlink(missing_ok=True)
        shutil.rmtree(out / MASKS, ignore_errors=True)
        for name in (MASKS, LEFT_OUT, TABLE):
            if (draft / name).exists():
                (draft / name).replace(out / name)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {out}: {error.strerror}; make room or give another --out"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
