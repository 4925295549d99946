"""Pictures sorted into folders: PATH/CLASS/IMAGE, or PATH/SITE/CLASS/IMAGE for several hospitals.

Sites are recognised by folders, not pictures, on the second level. The patient is the file's stem without a
final _left or _right, and the same name at two sites means two people. An index.csv in PATH with the columns
image and patient says better. Stems that end in _test are official test images.
"""

from pathlib import Path

from suture.runtime.data.kaggle_dr import PictureFiles
from suture.runtime.data.names import FilesByName
from suture.runtime.data.patients import copies_joined, patient_of
from suture.runtime.data.pictures import is_picture
from suture.runtime.data.source import Example, Source
from suture.runtime.data.tables import Columns, read_columns
from suture.runtime.errors import DataError


def open_image_folder(path: Path, *, columns: Columns | None = None) -> Source:
    """Index the folder; classes are numbered in alphabetical order.

    Raises:
        DataError: No folders, or no pictures.
    """
    sites = _sites(path)
    found = [
        (site, folder.name, file)
        for site, parent in sites
        for folder in _folders(parent)
        for file in sorted(folder.rglob("*"))
        if is_picture(file)
    ]
    classes = tuple(sorted({name for _, name, _ in found}))
    if not classes:
        raise DataError(f"{path} holds no pictures; sort them into PATH/CLASS/ or PATH/SITE/CLASS/")
    index = path / "index.csv"
    patients, unknown = _patients(path, index, [file for _, _, file in found], columns)
    examples = [
        Example(
            key=file.relative_to(path).as_posix(),
            patient=patients.get(file) or "/".join(filter(None, (site, patient_of(file.stem)))),
            label=classes.index(name),
            site=site,
            official_test=file.stem.endswith("_test"),
        )
        for site, name, file in found
    ]
    files = [file for _, _, file in found]
    examples, notes = copies_joined(examples, files)
    return PictureFiles("image-folder", classes, examples, files, mirror=False, notes=unknown + notes)


def _patients(
    path: Path, index: Path, files: list[Path], columns: Columns | None
) -> tuple[dict[Path, str], list[str]]:
    """Whose each file is, where an index.csv says so, and how many of its rows name no file."""
    if not index.is_file():
        return {}, []
    by_name = FilesByName(path, files)
    rows = [
        (by_name.find(row["image"]), row["patient"])
        for row in read_columns(index, ("image", "patient"), columns=columns)
    ]
    lost = sum(file is None for file, _ in rows)
    notes = [f"{lost} of {len(rows)} rows of index.csv name no image that is used"] if lost else []
    return {file: patient for file, patient in rows if file is not None and patient}, notes


def _sites(path: Path) -> list[tuple[str, Path]]:
    """(site, folder of its classes); one nameless site where PATH holds the classes themselves."""
    tops = _folders(path)
    if not tops:
        raise DataError(f"{path} has no folders; sort the pictures into PATH/CLASS/ or PATH/SITE/CLASS/")
    deep = [top for top in tops if _folders(top) and not any(is_picture(f) for f in top.iterdir())]
    if len(deep) == len(tops):
        return [(top.name, top) for top in tops]
    if deep:
        shallow = next(top.name for top in tops if top not in deep)
        raise DataError(
            f"{path}: {deep[0].name!r} holds folders but {shallow!r} does not; use PATH/CLASS/ throughout or "
            "PATH/SITE/CLASS/ throughout"
        )
    return [("", path)]


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
