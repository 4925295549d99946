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
from suture.runtime.data.names import FilesByName, ambiguous
from suture.runtime.data.patients import copies_joined, patient_of
from suture.runtime.data.source import Example, Source
from suture.runtime.data.tables import LINE, Columns, Row, grade_classes, parse_grade, read_columns
from suture.runtime.data.text import plain_name
from suture.runtime.errors import ConfigError, DataError

UIDS = ("SOPInstanceUID", "StudyInstanceUID")
_UID = re.compile(r"[0-9]+(\.[0-9]+){3,}")


def open_dicom(path: Path, *, grades: str, columns: Columns | None = None) -> Source:
    """Index the folder.

    Args:
        path: A folder with one CSV and the files, at any depth; or folders of classes with the files, and no CSV.
        grades: "binary" (level > 0) or "all"; for a CSV.
        columns: What the table calls its columns, where somebody said.

    Raises:
        ConfigError: pydicom is not installed.
        DataError: No CSV or several, a column missing, a row that may mean several files, or no file for any row.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise ConfigError("data source dicom needs pydicom: pip install suture[dicom]")
    tables = _tables(path)
    found = walk(path, known=tables)
    if not tables and any(len(file.relative_to(path).parts) > 1 for file in found.dicom):
        return open_image_folder(path, name="dicom", columns=columns)
    if len(tables) != 1:
        raise DataError(
            f"{path} must hold one CSV with the columns image and level, found {len(tables)}; "
            "move the others away"
        )
    return _open_table(path, tables[0], found, grades, columns)


def _tables(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"dicom: {path} is not a folder; give the folder of the .dcm files and their CSV")
    return sorted(file for file in path.glob("*.csv") if not file.name.startswith("."))


def _open_table(path: Path, table: Path, found: Found, grades: str, columns: Columns | None) -> Source:
    rows = _rows(table, columns)
    files = [file for file in found.pictures if file in found.dicom]
    matching = _Matching(path, files)
    pairs = [(row, file) for row in rows if (file := matching.find(row)) is not None]
    if not pairs:
        raise DataError(
            f"{path}: none of the {len(rows)} images of {table.name} is there as IMAGE.dcm; the column image "
            "must hold the files' names"
        )
    classes, labels = grade_classes(
        [parse_grade(row["level"], table, row[LINE]) for row, _ in pairs], grades, ()
    )
    chosen = [file for _, file in pairs]
    named = [row["patient"] for row, _ in pairs]
    ids, notes = (named, []) if all(named) else patient_ids(chosen)
    stems = Counter(plain_stem(file.name) for file in chosen)
    examples = []
    for (row, file), label, known, own in zip(pairs, labels, named, ids, strict=True):
        stem = plain_stem(file.name)
        # Series folders hold files of one name, which then says nothing of whose they are: the folder does.
        key = plain_name(stem if stems[stem] == 1 else (file.relative_to(path).parent / stem).as_posix())
        examples.append(
            Example(
                key=key,
                patient=known or own or patient_of(key),
                label=label,
                site=row["site"],
                official_test=stem.endswith("_test"),
            )
        )
    examples, copies = copies_joined(examples, chosen)
    notes = [*_missing(rows, pairs), *notes, *copies, *unused_notes(_unused(found, files, chosen))]
    return PictureFiles("dicom", classes, examples, chosen, mirror=False, notes=notes)


def _rows(table: Path, columns: Columns | None) -> list[Row]:
    optional = ("patient", "site", *UIDS)
    rows = read_columns(table, ("level",), ("image", *optional), columns)
    if any(row[name] for row in rows for name in ("image", *UIDS)):
        return rows
    return read_columns(table, ("image", "level"), optional, columns)


def _missing(rows: Sequence[object], pairs: Sequence[object]) -> list[str]:
    missing = len(rows) - len(pairs)
    return [f"skipped {missing} of {len(rows)} rows without an image file"] if missing else []


def _unused(found: Found, files: Sequence[Path], chosen: Sequence[Path]) -> Counter[str]:
    """What the walk counted, and the files that no row names or that are pictures of another kind."""
    more = Counter({
        "DICOM file that no row names": len(set(files) - set(chosen)),
        "picture beside the DICOM files": len(found.pictures) - len(files),
    })  # fmt: skip
    return found.unused + more


class _Matching:
    """Which file a row means: by name and folder, then by its UIDs. Headers are read only where names do not do."""

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self._path, self._files = path, files
        self._by_name = FilesByName(path, files)
        self._by_uid: dict[str, dict[str, list[Path]]] = {}

    def find(self, row: dict[str, str]) -> Path | None:
        """The file, or None.

        Raises:
            DataError: the row could mean several.
        """
        named = row["image"]
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
