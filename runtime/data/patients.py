"""Whose image is this? What names say where no table does, and what equal files say against them."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from suture.runtime.data.pictures import picture_size
from suture.runtime.data.source import Example
from suture.runtime.errors import DataError

_SHOWN = 20


def patient_of(stem: str) -> str:
    """The stem without a final _left or _right (two eyes of one person); else the whole stem."""
    for side in ("_left", "_right"):
        if stem.endswith(side):
            return stem.removesuffix(side)
    return stem


def copies_joined(
    examples: Sequence[Example], files: Sequence[Path], *, refuse_two_classes: bool = False
) -> tuple[list[Example], list[str]]:
    """`join_copies`, with the number as a note for a person, none where there are no copies.

    Args:
        examples: the index.
        files: one each, in the same order.
        refuse_two_classes: whether one picture may not be of two classes; else it is noted how often it is.

    Raises:
        DataError: one is; names the files.
    """
    made, groups = join_copies(examples, files)
    torn = [group for group in _torn(examples, groups) if _is_readable(files[group[0]])]
    if torn and refuse_two_classes:
        raise DataError(_in_two_classes(torn, files))
    return made, copy_notes(examples, groups)


def copy_notes(examples: Sequence[Example], groups: Sequence[Sequence[int]]) -> list[str]:
    """How many images are copies, and how many pictures with copies are of two classes; for a person."""
    num_copies = sum(len(group) - 1 for group in groups)
    said = [f"{num_copies} images are copies of others; copies count as one patient's"] if num_copies else []
    if torn := _torn(examples, groups):
        said.append(
            f"{len(torn)} of the pictures with copies are of two classes, so that one of the labels is wrong"
        )
    return said


def _torn(examples: Sequence[Example], groups: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    def labels(row: int) -> tuple[object, object]:
        return examples[row].label, examples[row].findings

    return [group for group in groups if len({labels(row) for row in group}) > 1]


def _is_readable(file: Path) -> bool:
    """Whether a file begins as a picture: equal files that are empty or broken are no picture of two classes."""
    try:
        picture_size(file)
    except DataError:
        return False
    return True


def _in_two_classes(groups: Sequence[Sequence[int]], files: Sequence[Path]) -> str:
    shown = "; ".join(" = ".join(str(files[row]) for row in group) for group in groups[:_SHOWN])
    more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    return f"the same picture is in two classes: {shown}{more}; remove the wrong ones"


def join_copies(examples: Sequence[Example], files: Sequence[Path]) -> tuple[list[Example], list[list[int]]]:
    """Gives files of equal content one patient, so that no copy is trained on here and tested on there.

    IDRiD holds six photographs twice, one of them in both its training and its test part. Only files of equal size
    are read.

    Args:
        examples: the index.
        files: one each, in the same order.

    Returns:
        The examples with the patients joined, and the rows of equal files, two or more each.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for row, file in enumerate(files):
        by_size[file.stat().st_size].append(row)
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for rows in by_size.values():
        for row in rows if len(rows) > 1 else ():
            by_content[hashlib.sha256(files[row].read_bytes()).digest()].append(row)
    groups = [rows for rows in by_content.values() if len(rows) > 1]
    return joined(examples, groups), groups


def joined(examples: Sequence[Example], groups: Sequence[Sequence[int]]) -> list[Example]:
    """The examples with one patient for all rows of a group."""
    # Copies may chain patients together: each patient is led back to the first it was joined with.
    first: dict[str, str] = {}

    def root(patient: str) -> str:
        while patient in first:
            patient = first[patient]
        return patient

    for rows in groups:
        roots = [root(examples[row].patient) for row in rows]
        for other in roots[1:]:
            if other != roots[0]:
                first[other] = roots[0]
    return [replace(example, patient=root(example.patient)) for example in examples]
