"""Pictures sorted into folders: PATH/CLASS/IMAGE, or PATH/SITE/CLASS/IMAGE for several hospitals.

Sites are recognised by folders, not pictures, on the second level. The patient is a DICOM file's PatientID, else the
file's stem without a final _left or _right, and the same name at two sites means two people. An index.csv in PATH with
the columns image and patient says better. Stems that end in _test are official test images.
"""

from collections import Counter
from collections.abc import Set
from pathlib import Path

from suture.runtime.data.dicom_headers import patient_ids
from suture.runtime.data.folder import is_left_alone, unused_notes, walk
from suture.runtime.data.formats import plain_stem
from suture.runtime.data.kaggle_dr import PictureFiles
from suture.runtime.data.patients import copies_joined, patient_of
from suture.runtime.data.source import Example, Source
from suture.runtime.data.tables import read_columns
from suture.runtime.data.text import plain_name
from suture.runtime.errors import DataError


def open_image_folder(path: Path, *, name: str = "image-folder", wanted: Set[Path] | None = None) -> Source:
    """Index the folder; classes are numbered in alphabetical order.

    Args:
        path: the folder.
        name: of the source.
        wanted: only these files; None for all pictures.

    Raises:
        DataError: No folders, or no pictures.
    """
    index = path / "index.csv"
    here = walk(path, known=[index] if index.is_file() else [])
    by_class = [(site, folder) for site, parent in _sites(path, here.pictures) for folder in _folders(parent)]
    found = [
        (plain_name(site), plain_name(folder.name), file)
        for site, folder in by_class
        for file in here.pictures
        if folder in file.parents and (wanted is None or file in wanted)
    ]
    classes = tuple(sorted({name for _, name, _ in found}))
    if not classes:
        raise DataError(f"{path} holds no pictures; sort them into PATH/CLASS/ or PATH/SITE/CLASS/")
    rows = read_columns(index, ("image", "patient")) if index.is_file() else []
    patients = {plain_stem(row["image"].rpartition("/")[2]): row["patient"] for row in rows if row["patient"]}
    files = [file for _, _, file in found]
    ids, notes = _ids(files, here.dicom)
    examples = [
        Example(
            key=plain_name(file.relative_to(path).as_posix()),
            patient=patients.get(plain_stem(file.name))
            or ids.get(file)
            or "/".join(filter(None, (site, patient_of(plain_name(plain_stem(file.name)))))),
            label=classes.index(name),
            site=site,
            official_test=plain_stem(file.name).endswith("_test"),
        )
        for site, name, file in found
    ]
    examples, copies = copies_joined(examples, files)
    outside = Counter({"picture outside the folders of classes": len(here.pictures) - len(files)})
    notes += [*copies, *unused_notes(here.unused + outside)]
    return PictureFiles(name, classes, examples, files, mirror=False, notes=notes)


def _ids(files: list[Path], dicom: Set[Path]) -> tuple[dict[Path, str], list[str]]:
    """The PatientIDs of the DICOM files."""
    headed = [file for file in files if file in dicom]
    ids, notes = patient_ids(headed)
    return dict(zip(headed, ids, strict=True)), notes


def _sites(path: Path, pictures: tuple[Path, ...]) -> list[tuple[str, Path]]:
    """(site, folder of its classes); one nameless site where PATH holds the classes themselves."""
    tops = _folders(path)
    if not tops:
        raise DataError(f"{path} has no folders; sort the pictures into PATH/CLASS/ or PATH/SITE/CLASS/")
    holding = {file.parent for file in pictures}
    deep = [top for top in tops if _folders(top) and top not in holding]
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
    return sorted(p for p in path.iterdir() if p.is_dir() and not is_left_alone(p.name))
