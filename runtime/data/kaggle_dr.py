"""Kaggle "Diabetic Retinopathy Resized" as downloaded, and IDRiD in its layout.

    PATH/trainLabels_cropped.csv                                  ,Unnamed: 0,image,level
    PATH/resized_train_cropped/resized_train_cropped/10_left.jpeg

Images are found at any depth; PATH may also be the inner folder's parent. Grades: 0 no retinopathy, 1 mild,
2 moderate, 3 severe, 4 proliferative. An index.csv beside the data may add the columns patient and site.
"""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from suture.runtime.data.patients import copies_joined, patient_of
from suture.runtime.data.pictures import file_digest, files_by_stem, is_picture, picture_size, read_picture
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.data.tables import grade_classes, parse_grade, read_columns
from suture.runtime.errors import DataError

_GRADES = ("no retinopathy", "mild", "moderate", "severe", "proliferative")
_TABLES = ("trainLabels_cropped.csv", "trainLabels.csv", "index.csv")


class PictureFiles(Source):
    """A classification source whose examples are one picture file each."""

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        examples: list[Example],
        files: list[Path],
        *,
        mirror: bool,
        notes: list[str],
    ) -> None:
        """Take the examples and, in the same order, their files."""
        self.files = files
        super().__init__(name, Task.CLASSIFICATION, classes, examples, mirror=mirror, notes=notes)

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """Decode one file; see ``Source.read``."""
        image = read_picture(self.files[index], size, channels)
        return image, torch.tensor(self.examples[index].label, dtype=torch.int64)

    def dimensions(self, index: int) -> tuple[int, int]:
        """See ``Source.dimensions``."""
        return picture_size(self.files[index])

    def content_digest(self, index: int) -> bytes:
        """See ``Source.content_digest``."""
        return file_digest(self.files[index])


def open_kaggle_dr(path: Path, *, grades: str) -> Source:
    """Index the folder.

    Args:
        path: The folder of the download.
        grades: "binary" (level > 0) or "all" five.

    Raises:
        DataError: No table, a column missing, a level that is no grade, or no image for any row.
    """
    table = _find_table(path)
    rows = read_columns(table, ("image", "level"), ("patient", "site"))
    index = path / "index.csv"
    if index.is_file() and index != table:
        extra = {r["image"]: r for r in read_columns(index, ("image",), ("patient", "site"))}
        rows = [row | {k: v for k, v in extra.get(row["image"], {}).items() if v} for row in rows]
    files = _find_pictures(path)
    stems = [_stem(row["image"]) for row in rows]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise DataError(f"{table} lists {twice[0]!r} more than once; keep one row an image")
    found = [(stem, row) for stem, row in zip(stems, rows, strict=True) if stem in files]
    if not found:
        raise DataError(
            f"{path}: none of the {len(rows)} images of {table.name} is there; unpack the images below {path}"
        )
    levels = [parse_grade(row["level"], table) for _, row in found]
    if max(levels) >= len(_GRADES):
        raise DataError(f"{table}: level must lie in 0..4, got {max(levels)}; correct the row")
    classes, labels = grade_classes(levels, grades, _GRADES)
    if grades == "binary":
        classes = ("no retinopathy", "retinopathy")
    examples = [
        Example(
            key=stem,
            patient=row["patient"] or patient_of(stem),
            label=label,
            site=row["site"],
            official_test=stem.endswith("_test"),
        )
        for (stem, row), label in zip(found, labels, strict=True)
    ]
    missing = len(rows) - len(found)
    notes = [f"skipped {missing} of {len(rows)} rows without an image file"] if missing else []
    pictures = [files[stem] for stem, _ in found]
    examples, copies = copies_joined(examples, pictures)
    return PictureFiles("kaggle-dr", classes, examples, pictures, mirror=True, notes=notes + copies)


def _find_table(path: Path) -> Path:
    for name in _TABLES:
        if (path / name).is_file():
            return path / name
    raise DataError(
        f"{path} has no labels ({' or '.join(_TABLES[:2])}); give the folder that holds the downloaded CSV"
    )


def _find_pictures(path: Path) -> dict[str, Path]:
    """Stem to file. The download has every image cropped and uncropped: the cropped ones are taken."""
    cropped = path / "resized_train_cropped"
    return files_by_stem(cropped if cropped.is_dir() else path, is_picture, path)


def _stem(image: str) -> str:
    """A row's image name with or without the ending."""
    return Path(image).stem if is_picture(Path(image)) else image
