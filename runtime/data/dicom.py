"""Monochrome DICOM files and a CSV with the columns image and level, or sorted into folders of classes.

The CSV may also have patient (or PatientID), site, SOPInstanceUID and StudyInstanceUID; the last two find a file by its
header, where names of files do not or are missing. Without a patient the file's own PatientID counts. Where all files
have the same one, as after a careless anonymisation, or a file has none, the rule for names holds: the stem without a
final _left or _right.
"""

import importlib.util
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from suture.runtime.data.dicom_headers import patient_ids, text_of_file
from suture.runtime.data.folder import Found, unused_notes, walk
from suture.runtime.data.formats import plain_stem
from suture.runtime.data.image_folder import open_image_folder
from suture.runtime.data.kaggle_dr import PictureFiles
from suture.runtime.data.listed import listed_files, unnamed
from suture.runtime.data.names import FilesByName, ambiguous
from suture.runtime.data.patients import copies_joined, patient_of
from suture.runtime.data.source import Example, Source
from suture.runtime.data.tables import (
    IMAGE,
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
    tables_in,
)
from suture.runtime.errors import ConfigError

UIDS = ("SOPInstanceUID", "StudyInstanceUID")
_UID = re.compile(r"[0-9]+(\.[0-9]+){3,}")


def open_dicom(
    path: Path, *, grades: str, columns: Columns | None = None, frame: int | None = None
) -> Source:
    """Index the folder.

    Args:
        path: A folder with one CSV and the files, at any depth; or folders of classes with the files, and no CSV.
        grades: "binary" (level > 0) or "all"; for a CSV.
        columns: What the table calls its columns, where somebody said.
        frame: Which one of files with several frames, from 1, where somebody said.

    Raises:
        ConfigError: pydicom is not installed.
        DataError: No CSV or several, a column missing, a row that may mean several files, or no file for any row.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise ConfigError("data source dicom needs pydicom: pip install suture[dicom]")
    tables = tables_in(path)
    found = walk(path, known=tables)
    if not tables and any(len(file.relative_to(path).parts) > 1 for file in found.dicom):
        return open_image_folder(path, name="dicom", columns=columns, frame=frame)
    table = find_table(path, (), (LEVEL,) if tables else (IMAGE, LEVEL), columns)
    return _open_table(path, table, found, grades, columns, frame)


def _open_table(
    path: Path, table: Path, found: Found, grades: str, columns: Columns | None, frame: int | None
) -> Source:
    files = [file for file in found.pictures if file in found.dicom]
    listed = listed_files(path, table, _rows(table, columns), files, _Matching(path, table, files).find)
    levels = [parse_grade(row[LEVEL], table, row[LINE]) for row in listed.rows]
    classes, labels = grade_classes(levels, grades, ())
    named = [row[PATIENT] for row in listed.rows]
    ids, notes = (named, []) if all(named) else patient_ids(listed.files)
    examples = [
        Example(
            key=key,
            patient=row[PATIENT] or own or patient_of(key),
            label=label,
            site=row[SITE],
            official_test=plain_stem(file.name).endswith("_test"),
        )
        for row, file, key, own, label in zip(
            listed.rows, listed.files, listed.keys, ids, labels, strict=True
        )
    ]
    examples, copies = copies_joined(examples, listed.files)
    others = Counter({"picture beside the DICOM files": len(found.pictures) - len(files)})
    notes = [*listed.notes, *notes, *copies, *unused_notes(found.unused + others)]
    return PictureFiles("dicom", classes, examples, listed.files, mirror=False, notes=notes, frame=frame)


def _rows(table: Path, columns: Columns | None) -> list[Row]:
    optional = (PATIENT, SITE, *UIDS)
    rows = read_columns(table, (LEVEL,), (IMAGE, *optional), columns)
    if any(row[name] for row in rows for name in (IMAGE, *UIDS)):
        return rows
    return read_columns(table, (IMAGE, LEVEL), optional, columns)


class _Matching:
    """Which file a row means: by name and folder, then by its UIDs. Headers are read only where names do not do."""

    def __init__(self, path: Path, table: Path, files: Sequence[Path]) -> None:
        self._path, self._table, self._files = path, table, files
        self._by_name = FilesByName(path, files)
        self._by_uid: dict[str, dict[str, list[Path]]] = {}

    def find(self, row: Row) -> Path | None:
        """The file, or None.

        Raises:
            DataError: the row could mean several, or says nothing.
        """
        named = row[IMAGE]
        if not any(row[name] for name in (IMAGE, *UIDS)):
            raise unnamed(self._table, row)
        fitting = self._by_name.candidates(named) if named else list(self._files)
        if not fitting and _UID.fullmatch(named):
            fitting = self._with_uid("SOPInstanceUID", named)
        for element in UIDS:
            if row[element] and (len(fitting) > 1 or not named):
                wanted = self._with_uid(element, row[element])
                fitting = [file for file in fitting if file in wanted]
        if len(fitting) > 1:
            raise ambiguous(self._path, fitting)
        return fitting[0] if fitting else None

    def _with_uid(self, element: str, uid: str) -> list[Path]:
        if element not in self._by_uid:
            by_uid = self._by_uid[element] = defaultdict(list)
            for file in self._files:
                by_uid[text_of_file(file, element)].append(file)
        return self._by_uid[element].get(uid, [])
