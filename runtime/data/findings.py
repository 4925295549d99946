"""Pictures and a CSV with a column a finding, 0 or 1: an image may have several.

    PATH/TABLE.csv                     image,edema,effusion,...
    PATH/.../IMAGE                     pictures, DICOM files too, at any depth

``--columns finding=edema,finding=effusion`` says which columns are findings; nothing is guessed from what they hold.
"""

from pathlib import Path

from suture.runtime.data.folder import walk
from suture.runtime.data.formats import plain_stem
from suture.runtime.data.kaggle_dr import PictureFiles
from suture.runtime.data.listed import listed_files
from suture.runtime.data.patients import copies_joined, patient_of
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.data.tables import (
    FINDING,
    IMAGE,
    LINE,
    PATIENT,
    SITE,
    Columns,
    Row,
    find_table,
    read_columns,
)
from suture.runtime.errors import ConfigError, DataError

_SAID = {"0": False, "1": True, "0.0": False, "1.0": True}


def open_findings(path: Path, *, columns: Columns | None = None) -> Source:
    """Index the folder.

    Args:
        path: the folder.
        columns: what the table calls its columns; the findings among them.

    Raises:
        ConfigError: no finding is named.
        DataError: no table, a column missing, a cell that is neither 0 nor 1, or no image for any row.
    """
    columns = columns or {}
    asked = tuple(name for name in columns if name.startswith(FINDING))
    required = (IMAGE, *asked)
    table = find_table(path, (), required, columns)
    if not asked:
        raise ConfigError(
            "data source findings must be told which columns are findings: --columns finding=edema,finding=effusion"
        )
    found = walk(path, known=[table])
    listed = listed_files(
        path, table, read_columns(table, required, (PATIENT, SITE), columns), found.pictures
    )
    examples = [
        Example(
            key=key,
            patient=row[PATIENT] or patient_of(key),
            label=None,
            site=row[SITE],
            official_test=plain_stem(file.name).endswith("_test"),
            findings=tuple(k for k, name in enumerate(asked) if _is_there(row, name, columns, table)),
        )
        for row, file, key in zip(listed.rows, listed.files, listed.keys, strict=True)
    ]
    examples, copies = copies_joined(examples, listed.files)
    notes, names = [*listed.notes, *copies, *found.notes()], tuple(columns[name] for name in asked)
    return PictureFiles(
        "findings", names, examples, listed.files, mirror=False, notes=notes, task=Task.MULTI_LABEL
    )


def _is_there(row: Row, name: str, columns: Columns, table: Path) -> bool:
    if row[name] not in _SAID:
        raise DataError(
            f"{table} line {row[LINE]}: {columns[name]} must be 0 or 1, got {row[name]!r:.40}; what is uncertain or "
            "was not looked for is neither: correct or remove the row"
        )
    return _SAID[row[name]]
