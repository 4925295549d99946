"""The pictures that a table lists: which file each row means, which rows and which files are not used."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from suture.runtime.data.formats import plain_stem
from suture.runtime.data.names import FilesByName
from suture.runtime.data.tables import IMAGE, LINE, Row
from suture.runtime.errors import DataError


@dataclass(frozen=True)
class Listed:
    """Rows with their files, in the table's order.

    Attributes:
        rows: those that have one.
        files: one each.
        keys: a name for each: the file's stem, or where folders hold equal stems its path without the ending.
        notes: what a person should be told of the others.
    """

    rows: list[Row]
    files: list[Path]
    keys: list[str]
    notes: list[str]


def listed_files(path: Path, table: Path, rows: Sequence[Row], pictures: Sequence[Path]) -> Listed:
    """Finds the file of each row.

    Args:
        path: what a person has named.
        table: where the rows stand, for messages.
        rows: with `IMAGE`, `LEVEL` and `LINE`.
        pictures: those that may be meant, below ``path``.

    Raises:
        DataError: no row has a file, a row may mean several, two rows differ about one picture, or a spreadsheet has
            cut the zeros off the names.
    """
    by_name = FilesByName(path, pictures)
    row_of: dict[Path, Row] = {}
    missing, again = [], 0
    for row in rows:
        if not row[IMAGE]:
            raise DataError(f"{table} line {row[LINE]} names no image; name it, or remove the row")
        file = by_name.find(row[IMAGE])
        if file is None:
            missing.append(row[IMAGE])
        elif file not in row_of:
            row_of[file] = row
        else:
            _check_equal(table, row_of[file], row)
            again += 1
    _check_zeros(table, missing, pictures)
    if not row_of:
        raise DataError(
            f"{path}: none of the {len(rows)} images of {table.name} is there; unpack the images below {path}"
        )
    notes = [f"skipped {len(missing)} of {len(rows)} rows without an image file"] if missing else []
    notes += [f"{again} rows say again what another row says"] if again else []
    if unlisted := len(pictures) - len(row_of):
        notes.append(f"not used: {unlisted} pictures that no row of the table names")
    return Listed([*row_of.values()], [*row_of], _keys(path, [*row_of]), notes)


def _keys(path: Path, files: Sequence[Path]) -> list[str]:
    stems = [plain_stem(file.name) for file in files]
    if len(set(stems)) == len(stems):
        return stems
    return [
        (file.relative_to(path).parent / stem).as_posix() for file, stem in zip(files, stems, strict=True)
    ]


def _check_equal(table: Path, first: Row, second: Row) -> None:
    """Refuses two rows of one picture that differ."""
    for name in first:
        if name not in (IMAGE, LINE) and first[name] != second[name]:
            raise DataError(
                f"{table} lists {first[IMAGE]!r} more than once, in line {first[LINE]} with {name} {first[name]!r} and "
                f"in line {second[LINE]} with {second[name]!r}; keep one row an image"
            )


def _check_zeros(table: Path, missing: Sequence[str], pictures: Sequence[Path]) -> None:
    """Refuses a table whose names have lost the zeros that files begin with: the others would be skipped in silence."""
    short = {name for name in (plain_stem(name) for name in missing) if name.isdigit()}
    for file in pictures if short else ():
        number = re.match(r"0\d+", plain_stem(file.name))
        if number and str(int(number[0])) in short:
            raise DataError(
                f"{table} names {str(int(number[0]))!r} and {file.name!r} is there: a spreadsheet has cut zeros off "
                "the names; save the column as text, or write the whole names"
            )
