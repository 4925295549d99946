"""The pictures that a table lists: which file each row means, which rows and which files are not used."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from suture.runtime.data.formats import plain_stem
from suture.runtime.data.names import FilesByName
from suture.runtime.data.tables import IMAGE, LINE, PATIENT, SITE, Columns, Row, number_in, read_columns
from suture.runtime.data.text import plain_name
from suture.runtime.errors import DataError


@dataclass(frozen=True)
class Listed:
    """Rows with their files, in the table's order.

    Attributes:
        rows: those that have one.
        files: one each.
        keys: a name for each: the file's stem, or where another folder holds the same stem its path without the ending.
        notes: what a person should be told of the others.
    """

    rows: list[Row]
    files: list[Path]
    keys: list[str]
    notes: list[str]


def listed_files(
    path: Path,
    table: Path,
    rows: Sequence[Row],
    pictures: Sequence[Path],
    find: Callable[[Row], Path | None] | None = None,
) -> Listed:
    """Finds the file of each row.

    Args:
        path: what a person has named.
        table: where the rows stand, for messages.
        rows: with `IMAGE`, `LEVEL` and `LINE`.
        pictures: those that may be meant, below ``path``.
        find: the file of a row, where more than the name in `IMAGE` says which.

    Raises:
        DataError: no row has a file, a row may mean several, two rows differ about one picture, or a spreadsheet has
            cut the zeros off the names.
    """
    find = find or _by_name(path, table, pictures)
    row_of, missing = _rows_by_file(table, rows, find)
    _check_zeros(table, [row[IMAGE] for row in missing], pictures)
    if not row_of:
        raise DataError(
            f"{path}: none of the {len(rows)} images of {table.name} is there; unpack the images below {path}, or "
            "write the files' names into the table"
        )
    notes = [f"skipped {len(missing)} of {len(rows)} rows without an image file"] if missing else []
    if again := len(rows) - len(missing) - len(row_of):
        notes.append(f"{again} rows say again what another row says")
    if unlisted := len(pictures) - len(row_of):
        notes.append(f"not used: {unlisted} pictures that no row of the table names")
    return Listed([*row_of.values()], [*row_of], _keys(path, [*row_of]), notes)


def people_by_file(
    path: Path, index: Path, files: Sequence[Path], columns: Columns | None = None
) -> tuple[dict[Path, Row], list[str]]:
    """What an index.csv says of patients and sites, by file, and how many of its rows name none of the files.

    Raises:
        DataError: it cannot be read, a row may mean several files, or two rows differ about one.
    """
    rows = read_columns(index, (IMAGE,), (PATIENT, SITE), columns)
    row_of, missing = _rows_by_file(index, rows, _by_name(path, index, files))
    notes = [f"{len(missing)} of {len(rows)} rows of index.csv name no image that is used"] if missing else []
    if not any(row[PATIENT] or row[SITE] for row in rows):
        notes.append("index.csv names neither patients nor sites")
    return row_of, notes


def unnamed(table: Path, row: Row) -> DataError:
    """The error of a row that says of no file that it is meant."""
    return DataError(f"{table} line {row[LINE]} names no image; name it, or remove the row")


def _by_name(path: Path, table: Path, pictures: Sequence[Path]) -> Callable[[Row], Path | None]:
    by_name = FilesByName(path, pictures)

    def find(row: Row) -> Path | None:
        if not row[IMAGE]:
            raise unnamed(table, row)
        return by_name.find(row[IMAGE])

    return find


def _rows_by_file(
    table: Path, rows: Sequence[Row], find: Callable[[Row], Path | None]
) -> tuple[dict[Path, Row], list[Row]]:
    """The first row of each file, and the rows without one; further rows of a file say the same."""
    row_of: dict[Path, Row] = {}
    missing = []
    for row in rows:
        file = find(row)
        if file is None:
            missing.append(row)
        else:
            _check_equal(table, row_of.setdefault(file, row), row)
    return row_of, missing


def _keys(path: Path, files: Sequence[Path]) -> list[str]:
    """Series folders hold files of one name, which then says nothing of whose they are: the folder does."""
    stems = [plain_stem(file.name) for file in files]
    number = Counter(stems)
    return [
        plain_name(stem if number[stem] == 1 else (file.relative_to(path).parent / stem).as_posix())
        for file, stem in zip(files, stems, strict=True)
    ]


def _check_equal(table: Path, first: Row, second: Row) -> None:
    """Refuses two rows of one picture that differ."""
    for name in first:
        if name not in (IMAGE, LINE) and not _same(first[name], second[name]):
            raise DataError(
                f"{table} lists {first[IMAGE]!r} more than once, in line {first[LINE]} with {name} {first[name]!r} and "
                f"in line {second[LINE]} with {second[name]!r}; keep one row an image"
            )


def _same(first: str, second: str) -> bool:
    number = number_in(first)
    return first == second or (number is not None and number == number_in(second))


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
