"""CSV files read by the names of their columns; columns that nobody asked for are ignored."""

import csv
from pathlib import Path

from suture.runtime.errors import DataError


def read_columns(
    path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    """Read some columns of a CSV.

    Args:
        path: The file, with a header line.
        required: Columns that must be there.
        optional: Columns that come as "" where they are not.

    Returns:
        One dict a row with exactly the asked columns, stripped of blanks.

    Raises:
        DataError: The file is not readable text, or a required column is missing.
    """
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            present = [name.strip() for name in reader.fieldnames or []]
            missing = [name for name in required if name not in present]
            if missing:
                raise DataError(
                    f"{path} has no column {missing[0]!r}; its columns are: {', '.join(present) or 'none'}; "
                    "rename the column that holds it"
                )
            reader.fieldnames = present
            return [{name: (row.get(name) or "").strip() for name in required + optional} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read table {path}: {error}; save it as a UTF-8 CSV") from error


def parse_grade(text: str, path: Path) -> int:
    """A row's grade as a whole number; "2" and "2.0" are accepted.

    Raises:
        DataError: It is something else, or negative.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0.0 or not value.is_integer():
        raise DataError(
            f"{path}: level must be a whole number from 0, got {text!r}; correct or remove the row"
        )
    return int(value)


def grade_classes(
    levels: list[int], grades: str, names: tuple[str, ...]
) -> tuple[tuple[str, ...], list[int]]:
    """Class names and labels for disease grades.

    Args:
        levels: Grade of each image, from 0.
        grades: "binary": level above 0 is diseased; "all": each grade is a class.
        names: Names of the grades as far as they have any; further ones are called by number.
    """
    if grades == "binary":
        return ("healthy", "diseased"), [int(level > 0) for level in levels]
    count = max(len(names), max(levels, default=0) + 1)
    return tuple(names[i] if i < len(names) else f"grade {i}" for i in range(count)), levels
