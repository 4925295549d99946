"""The program's one reader of tables: CSV as spreadsheets, hospitals and challenges write it, columns found by name.

What a file is, is not guessed from statistics, as csv.Sniffer does, but decided by its first bytes and its heading:

- text: a byte order mark says which; two-byte text without one has a zero in every other byte; then UTF-8; what is none
  of these is Windows-1252, in which Excel saves "CSV" in western Europe.
- delimiter: of comma, semicolon, tab and bar the one under which most of the wanted columns stand in the heading. A
  line ``sep=;`` before it, which Excel writes for itself, is passed over.
"""

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from suture.runtime.data.formats import windows_1252
from suture.runtime.errors import ConfigError, DataError

ENDINGS = (".csv", ".tsv")
IMAGE, LEVEL, PATIENT, SITE = "image", "level", "patient", "site"
INDEX = "index.csv"
"""A table beside the data that says whose each image is, where the data's own does not."""
LINE = "line"
"""In a row: the number of its line in the file."""

_DELIMITERS = (",", ";", "\t", "|")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_EXCELS_OWN = re.compile(r"\A\"?sep=[^\r\n]\"?(\r\n|\r|\n)", re.IGNORECASE)
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    IMAGE: ("idcode", "imagename", "imageid", "imageindex", "imagefile", "imagepath", "filename"),
    LEVEL: ("diagnosis", "retinopathygrade", "adjudicateddrgrade", "drgrade", "label"),
    PATIENT: ("patientid", "subject", "subjectid"),
    SITE: ("hospital", "ophthalmologicdepartment"),
}
"""What else a column is called, without blanks, signs and capitals: APTOS, IDRiD, Messidor and its second edition."""
FINDING = "finding:"
"""Before the file's own name of a column that says whether an image has a finding; there may be many."""
_UNKNOWN = frozenset({"nan", "null", "none", "n/a", "<na>"})
"""What other programs write in place of an empty cell; a patient or a site of that name there is none."""
_LARGEST_LEVEL = 999
_ROLES = {"image": IMAGE, "label": LEVEL, "patient": PATIENT, "site": SITE}

Columns = Mapping[str, str]
"""By our name of a column the file's own, as ``--columns`` says it; empty where nobody said."""
Row = dict[str, str]


def parse_columns(text: str | None) -> Columns:
    """``--columns``: what the file calls its columns.

    Raises:
        ConfigError: no pairs, an unknown name, or one twice.
    """
    if text is None:
        return {}
    fields = next(csv.reader([text], skipinitialspace=True), []) or [""]
    pairs = [field.partition("=") for field in fields]
    for role, equals, name in pairs:
        if role.strip() not in (*_ROLES, FINDING[:-1]) or not equals or not name.strip():
            raise ConfigError(
                f"--columns {text!r:.200}: expected {', '.join(f'{role}=NAME' for role in _ROLES)}, or some of them, "
                "and finding=NAME for each finding; write it as --columns image=file,label=grade"
            )
    said = {_ROLES.get(role.strip(), FINDING + name.strip()): name.strip() for role, _, name in pairs}
    if len(said) < len(pairs):
        raise ConfigError(f"--columns {text!r:.200} names a column twice; name each once")
    return said


def read_columns(
    path: Path, required: tuple[str, ...], optional: tuple[str, ...] = (), columns: Columns | None = None
) -> list[Row]:
    """Read some columns of a table.

    Args:
        path: The file, with a heading.
        required: Columns that must be there, by our names.
        optional: Columns that come as "" where they are not.
        columns: What the file calls them, where somebody said.

    Returns:
        One dict a row with exactly the asked columns, stripped of blanks, and `LINE`. Rows without any of them are
        left out.

    Raises:
        DataError: The file is not readable text, a required column is missing, or a row does not fit the heading.
    """
    text = _text(path)
    delimiter, places = _heading(path, text, required, optional, columns or {})
    rows = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        width = len(next(cells for cells in reader if _is_filled(cells)))
        for cells in reader:
            if _is_filled(cells[width:]):
                raise DataError(
                    f"{path} line {reader.line_num} has {len(cells)} cells and the heading {width}; put a name with "
                    f"{_shown(delimiter)} in it in double quotes"
                )
            row = {
                name: _cell(name, cells[place]) if place < len(cells) else ""
                for name, place in places.items()
            }
            if any(row.values()):
                rows.append(
                    {name: row.get(name, "") for name in required + optional} | {LINE: str(reader.line_num)}
                )
    except csv.Error as error:
        raise _unreadable(path, f"line {reader.line_num}: {error}") from error
    return rows


def tables_in(path: Path) -> list[Path]:
    """What ends as a table in a folder; no hidden file does, nor the locks of spreadsheets."""
    hidden = (".", "~$")
    return [
        file
        for file in sorted(path.iterdir())
        if file.suffix.lower() in ENDINGS and not file.name.startswith(hidden) and file.is_file()
    ]


def find_table(
    path: Path, names: Sequence[str], required: tuple[str, ...], columns: Columns | None = None
) -> Path:
    """The table in a folder: one of these names, or else the only one that has the required columns.

    Raises:
        DataError: there is none, or several may be meant.
    """
    there = tables_in(path)
    if named := [path / name for name in names if path / name in there]:
        return named[0]
    fitting = [file for file in there if len(there) == 1 or _has(file, required, columns)]
    fitting = [
        file for file in fitting if file.name != INDEX
    ] or fitting  # which may repeat what another says
    if len(fitting) == 1:
        return fitting[0]
    wanted = " and ".join((columns or {}).get(name, name) for name in required)
    if fitting:
        raise DataError(
            f"{path} must hold one CSV with the columns {wanted}, found {len(fitting)}: "
            f"{', '.join(repr(file.name) for file in fitting[:5])}; move the others away"
        )
    workbooks = [
        file.name for file in sorted(path.iterdir()) if file.suffix.lower() in (".xls", ".xlsx", ".ods")
    ]
    if workbooks and not there:
        raise DataError(
            f"{path} has its table as {workbooks[0]!r}, which is not read; save it there as a UTF-8 CSV"
        )
    called = f" (such as {' or '.join(names[:2])})" if names else ""
    raise DataError(
        f"{path} has no labels: it must hold one CSV{called} with the columns {wanted}, found {len(there)} without "
        "them; give the folder that holds the CSV, or say what its columns are called: --columns image=...,label=..."
    )


def parse_grade(text: str, path: Path, line: str = "") -> int:
    """A row's grade as a whole number; "2", "2.0" and "2,0" are accepted.

    Raises:
        DataError: It is something else, negative, or above 999.
    """
    value = number_in(text)
    if value is None or not 0.0 <= value <= _LARGEST_LEVEL or not value.is_integer():
        where = f"{path} line {line}" if line else f"{path}"
        remedy, large = "correct or remove the row", ""
        if value is not None and value > _LARGEST_LEVEL:
            large = f", which is above {_LARGEST_LEVEL}"
        if text and value is None:
            remedy += (
                ", write classes as numbers, or sort the pictures into folders of classes (image-folder)"
            )
        raise DataError(f"{where}: level must be a whole number from 0, got {text!r:.100}{large}; {remedy}")
    return int(value)


def number_in(text: str) -> float | None:
    """The number that a cell holds, with a point or a comma; None where it holds something else."""
    try:
        return None if "_" in text else float(text.replace(",", ".", 1))
    except ValueError:
        return None


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


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if raw.startswith(_WORKBOOKS):
            raise _unreadable(path, "it is a spreadsheet's own file, whatever its ending")
        text = _decoded(raw)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    return _EXCELS_OWN.sub("\n", text)  # the line stays, for the numbers of the others


def _decoded(raw: bytes) -> str:
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return raw.decode(encoding)
    head = raw[:256]
    if b"\0" in head:
        return raw.decode("utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return windows_1252(raw)


@dataclass(frozen=True)
class _Heading:
    """A heading under one delimiter."""

    delimiter: str
    cells: list[str]
    places: dict[str, int]
    """By our name of a column its place."""


def _heading(
    path: Path, text: str, required: tuple[str, ...], optional: tuple[str, ...], columns: Columns
) -> tuple[str, dict[str, int]]:
    """The delimiter, and by our name of a column its place."""
    candidates = [_under(path, text, delimiter, required + optional, columns) for delimiter in _DELIMITERS]
    best = max(candidates, key=lambda one: (sum(name in one.places for name in required), len(one.cells)))
    foreign = [name for name in columns if name not in required + optional]
    if foreign:
        said = {role for role, name in _ROLES.items() if name in required + optional}
        raise DataError(
            f"{path} is read for {', '.join(sorted(said))} only; leave the others out of --columns"
        )
    for name in [*required, *columns]:
        if name in best.places:
            continue
        if name in columns:
            asked, remedy = columns[name], "name one of these in --columns"
        else:
            role = next((role for role, own in _ROLES.items() if own == name), name)
            asked, remedy = name, f"rename the column that holds it, or say which it is: --columns {role}=..."
        shown = ", ".join(best.cells) or "none"
        raise DataError(f"{path} has no column {asked!r}; its columns are: {shown:.500}; {remedy}")
    return best.delimiter, best.places


def _under(path: Path, text: str, delimiter: str, wanted: tuple[str, ...], columns: Columns) -> _Heading:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        cells = [cell.strip() for cell in next((row for row in reader if _is_filled(row)), [])]
    except csv.Error as error:
        raise _unreadable(path, str(error)) from error
    plain = [_plain(cell) for cell in cells]
    places: dict[str, int] = {}
    for name in wanted:
        called = [_plain(columns[name])] if name in columns else [_plain(name), *_OTHER_NAMES.get(name, ())]
        found = next((other for other in called if other and other in plain), None)
        if found is None:
            continue
        if plain.count(found) > 1:
            raise DataError(
                f"{path} has {plain.count(found)} columns {cells[plain.index(found)]!r}; remove one of them"
            )
        places[name] = plain.index(found)
    return _Heading(delimiter, cells, places)


def _has(file: Path, required: tuple[str, ...], columns: Columns | None) -> bool:
    try:
        read_columns(file, required, columns=columns)
    except DataError:
        return False
    return True


def _cell(name: str, text: str) -> str:
    text = text.strip()
    return "" if name in (PATIENT, SITE) and text.casefold() in _UNKNOWN else text


def _is_filled(cells: Sequence[str]) -> bool:
    return any(cell.strip() for cell in cells)


def _plain(name: str) -> str:
    """A column's name without blanks, signs and capitals."""
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _shown(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else repr(delimiter)


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(f"cannot read table {path}: {reason}; save it as a UTF-8 CSV")
