"""Whose image is this? What names say where no table does, and what equal files say against them."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from suture.runtime.data.source import Example


def patient_of(stem: str) -> str:
    """The stem without a final _left or _right (two eyes of one person); else the whole stem."""
    for side in ("_left", "_right"):
        if stem.endswith(side):
            return stem.removesuffix(side)
    return stem


def copies_joined(examples: Sequence[Example], files: Sequence[Path]) -> tuple[list[Example], list[str]]:
    """`join_copies`, with the number as a note for a person, none where there are no copies."""
    joined, num_copies = join_copies(examples, files)
    said = [f"{num_copies} images are copies of others; copies count as one patient's"]
    return joined, said if num_copies else []


def join_copies(examples: Sequence[Example], files: Sequence[Path]) -> tuple[list[Example], int]:
    """Gives files of equal content one patient, so that no copy is trained on here and tested on there.

    IDRiD holds six photographs twice, one of them in both its training and its test part. Only files of equal size
    are read.

    Args:
        examples: the index.
        files: one each, in the same order.

    Returns:
        The examples with the patients joined, and the number of files that are copies of another.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for row, file in enumerate(files):
        by_size[file.stat().st_size].append(row)
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for rows in by_size.values():
        for row in rows if len(rows) > 1 else ():
            by_content[hashlib.sha256(files[row].read_bytes()).digest()].append(row)
    # Copies may chain patients together: each patient is led back to the first it was joined with.
    first: dict[str, str] = {}

    def root(patient: str) -> str:
        while patient in first:
            patient = first[patient]
        return patient

    num_copies = 0
    for rows in by_content.values():
        num_copies += len(rows) - 1
        roots = [root(examples[row].patient) for row in rows]
        for other in roots[1:]:
            if other != roots[0]:
                first[other] = roots[0]
    return [replace(example, patient=root(example.patient)) for example in examples], num_copies
