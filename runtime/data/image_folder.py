"""Pictures sorted into folders: PATH/CLASS/IMAGE, or PATH/SITE/CLASS/IMAGE for several hospitals; see `trees`.

The patient is a DICOM file's PatientID, else the file's stem without a final _left or _right, and the same name at two
sites means two people. An index.csv in PATH with the columns image and patient says better. Stems that end in _test are
official test images.
"""

import unicodedata
from collections.abc import Sequence, Set
from pathlib import Path

from suture.runtime.data.dicom_headers import patient_ids
from suture.runtime.data.folder import is_left_alone, walk
from suture.runtime.data.formats import plain_stem
from suture.runtime.data.kaggle_dr import PictureFiles
from suture.runtime.data.listed import people_by_file
from suture.runtime.data.patients import copies_joined, patient_of
from suture.runtime.data.source import Example, Source
from suture.runtime.data.tables import INDEX, PATIENT, Columns
from suture.runtime.data.text import plain_name
from suture.runtime.data.trees import Tree, read_tree
from suture.runtime.errors import DataError


def open_image_folder(
    path: Path,
    *,
    columns: Columns | None = None,
    by_site: bool = False,
    frame: int | None = None,
    name: str = "image-folder",
) -> Source:
    """Index the folder; classes are numbered in alphabetical order.

    Args:
        path: the folder.
        columns: what index.csv calls its columns, where somebody said.
        by_site: whether the topmost folders are hospitals.
        frame: which one of DICOM files with several, where somebody said.
        name: of the source.

    Raises:
        DataError: No folders, or no pictures.
    """
    index = path / INDEX
    here = walk(path, known=[index] if index.is_file() else [])
    if not here.pictures and any(below.is_dir() for below in path.iterdir()):
        raise DataError(f"{path} holds no pictures; sort them into PATH/CLASS/ or PATH/SITE/CLASS/")
    tree = read_tree(path, here.pictures, by_site=by_site)
    by_path = {folder.path: folder for folder in tree.folders}
    within = [(file.parent, file) for file in here.pictures if file not in tree.copies]
    folder_of = {
        parent: next((by_path[p] for p in (parent, *parent.parents) if p in by_path), None)
        for parent in {parent for parent, _ in within}
    }
    found = [(folder, file) for parent, file in within if (folder := folder_of[parent]) is not None]
    if outside := len(within) - len(found) - tree.left_out:
        tree.notes.append(f"not used: {outside} pictures outside the folders of classes")
    held = {folder.path for folder, _ in found}
    classes = _classes(path, held)
    labels = {folder: classes.index(_class(folder)) for folder in held}
    files = [file for _, file in found]
    people, unknown = people_by_file(path, index, files, columns) if index.is_file() else ({}, [])
    ids, shared = _ids(files, here.dicom)
    examples = [
        Example(
            key=plain_name(file.relative_to(path).as_posix()),
            patient=people.get(file, {}).get(PATIENT) or ids.get(file) or _by_name(folder.site, file),
            label=labels[folder.path],
            site=plain_name(folder.site),
            official_test=folder.official_test or plain_stem(file.name).endswith("_test"),
        )
        for folder, file in found
    ]
    examples, copies = copies_joined(examples, files, refuse_two_classes=True)
    notes = [*tree.notes, *_without_pictures(here.pictures, tree), *unknown, *shared, *copies]
    notes += [*_tested(examples), *here.notes()]
    return PictureFiles(name, classes, examples, files, mirror=False, notes=notes, frame=frame)


def _class(folder: Path) -> str:
    """A class's name: one, whether its accents are composed or not."""
    return plain_name(unicodedata.normalize("NFC", folder.name))


def _classes(path: Path, folders: Set[Path]) -> tuple[str, ...]:
    """Names in alphabetical order.

    Raises:
        DataError: there are none, or two of them are one that is written in two ways.
    """
    classes = sorted({_class(folder) for folder in folders})
    if not classes:
        raise DataError(f"{path} holds pictures in no folder of a class; sort them into PATH/CLASS/")
    first: dict[str, str] = {}
    for name in classes:
        other = first.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            raise DataError(
                f"{path}: the classes {other!r} and {name!r} differ only in capitals or blanks; rename a folder"
            )
    return tuple(classes)


def _without_pictures(pictures: Sequence[Path], tree: Tree) -> list[str]:
    """Folders beside those of classes that would be some, too, if pictures were in them."""
    holding = {above for parent in {file.parent for file in pictures} for above in (parent, *parent.parents)}
    beside = {
        child for parent in {folder.path.parent for folder in tree.folders} for child in parent.iterdir()
    }
    empty = {
        _class(child)
        for child in beside
        if child not in holding
        and child.is_dir()
        and not child.is_symlink()
        and not is_left_alone(child.name)
    }
    return [f"no class, since no pictures are in it: {', '.join(sorted(empty))}"] if empty else []


def _by_name(site: str, file: Path) -> str:
    return plain_name("/".join(filter(None, (site, patient_of(plain_stem(file.name))))))


def _ids(files: Sequence[Path], dicom: Set[Path]) -> tuple[dict[Path, str], list[str]]:
    """The PatientIDs of the DICOM files."""
    headed = [file for file in files if file in dicom]
    ids, notes = patient_ids(headed)
    return dict(zip(headed, ids, strict=True)), notes


def _tested(examples: list[Example]) -> list[str]:
    """How many pictures are not trained on since their patients are in the test set, too."""
    tested = {one.patient for one in examples if one.official_test}
    number = sum(one.patient in tested and not one.official_test for one in examples)
    said = f"{number} pictures of patients who are in the test set, too, are not trained on (index.csv may name others)"
    return [said] if number else []
