"""Kaggle "Diabetic Retinopathy Resized" as downloaded, and IDRiD in its layout.

    PATH/trainLabels_cropped.csv                                  ,Unnamed: 0,image,level
    PATH/resized_train_cropped/resized_train_cropped/10_left.jpeg

Images are found at any depth; PATH may also be the inner folder's parent. Grades: 0 no retinopathy, 1 mild,
2 moderate, 3 severe, 4 proliferative. An index.csv beside the data may add the columns patient and site. The headings
of APTOS, IDRiD and Messidor are known, and any CSV that is the only one with the two columns is taken.
"""

from pathlib import Path

from torch import Tensor

from suture.runtime.data.folder import walk
from suture.runtime.data.formats import plain_stem
from suture.runtime.data.listed import listed_files, people_by_file
from suture.runtime.data.patients import copies_joined, patient_of
from suture.runtime.data.pictures import file_digest, look_for_text, picture_size, read_picture
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.data.tables import (
    IMAGE,
    INDEX,
    LEVEL,
    LINE,
    PATIENT,
    SITE,
    Columns,
    Row,
    find_table,
    grade_classes,
    parse_grade,
    read_columns,
)
from suture.runtime.errors import DataError

_GRADES = ("no retinopathy", "mild", "moderate", "severe", "proliferative")
_TABLES = ("trainLabels_cropped.csv", "trainLabels.csv", "train.csv")
_GRADABLE = "adjudicated_gradable"


class PictureFiles(Source):
    """A source of classes, or of findings, whose examples are one picture file each."""

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        examples: list[Example],
        files: list[Path],
        *,
        mirror: bool,
        notes: list[str],
        task: Task = Task.CLASSIFICATION,
        frame: int | None = None,
    ) -> None:
        """Take the examples and, in the same order, their files; see `read_picture` for the frame."""
        self.files, self._frame = files, frame
        super().__init__(name, task, classes, examples, mirror=mirror, notes=notes)

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """Decode one file; see ``Source.read``."""
        image = read_picture(self.files[index], size, channels, self._frame)
        return image, self.target(index)

    def dimensions(self, index: int) -> tuple[int, int]:
        """See ``Source.dimensions``."""
        return picture_size(self.files[index])

    def content_digest(self, index: int) -> bytes:
        """See ``Source.content_digest``."""
        return file_digest(self.files[index])

    def look_closely(self, index: int) -> None:
        """Looks for text; see ``Source.look_closely``."""
        look_for_text(self.files[index])


def open_kaggle_dr(path: Path, *, grades: str, columns: Columns | None = None) -> Source:
    """Index the folder.

    Args:
        path: The folder of the download.
        grades: "binary" (level > 0) or "all" five.
        columns: What the table calls its columns, where somebody said.

    Raises:
        DataError: No table, a column missing, a level that is no grade, or no image for any row.
    """
    table, index = find_table(path, _TABLES, (IMAGE, LEVEL), columns), path / INDEX
    rows, notes = _gradable(read_columns(table, (IMAGE, LEVEL), (PATIENT, SITE, _GRADABLE), columns))
    known = [table, index] if index.is_file() else [table]
    cropped = path / "resized_train_cropped"  # the download has every image cropped and uncropped
    found = walk(cropped if cropped.is_dir() else path, known=known)
    listed = listed_files(path, table, rows, found.pictures)
    levels = [parse_grade(row[LEVEL], table, row[LINE]) for row in listed.rows]
    if max(levels) >= len(_GRADES):
        raise DataError(f"{table}: level must lie in 0..4, got {max(levels)}; correct the row")
    classes, labels = grade_classes(levels, grades, _GRADES)
    if grades == "binary":
        classes = ("no retinopathy", "retinopathy")
    extra, unknown = (
        people_by_file(path, index, listed.files) if index in known[1:] and index != table else ({}, [])
    )
    examples = []
    for row, file, key, label in zip(listed.rows, listed.files, listed.keys, labels, strict=True):
        said = extra.get(file, {})
        more = row | {name: said[name] for name in (PATIENT, SITE) if said.get(name)}
        official_test = plain_stem(file.name).endswith("_test")
        patient = more[PATIENT] or patient_of(key)
        examples.append(
            Example(key=key, patient=patient, label=label, site=more[SITE], official_test=official_test)
        )
    examples, copies = copies_joined(examples, listed.files)
    notes = [*notes, *listed.notes, *unknown, *copies, *found.notes()]
    return PictureFiles("kaggle-dr", classes, examples, listed.files, mirror=True, notes=notes)


def _gradable(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows without those of Messidor-2 that its graders could not judge, which have no level."""
    kept = [row for row in rows if row[LEVEL] or row[_GRADABLE] not in ("0", "0.0")]
    left = len(rows) - len(kept)
    return kept, [f"skipped {left} of {len(rows)} rows that the table calls not gradable"] if left else []
