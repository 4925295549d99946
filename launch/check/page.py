"""What ``suture check`` prints: aligned text of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median_low

from suture.launch.build import Images
from suture.launch.host.memory_check import free_memory
from suture.launch.options.options import RunOptions
from suture.launch.site.own_images import num_bytes, shown_bytes, too_large
from suture.runtime.data.partition import PartitionConfig
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.data.survey import Survey

_WIDTH, _LABEL, _NAME = 80, 12, 30
_SHOWN = 10
"""So many names of a list are printed, and the number of the others."""


@dataclass
class Findings:
    """What was found about a site's data.

    Attributes:
        options: resolved; task, image size.
        source: the site's, with the run's classes where they are known.
        survey: of every picture.
        images: the division that join would make; None where there is none.
        balanced: the largest balanced sets; None where none work.
        policy: lines about the kit's policy.
        problems: what keeps the site from joining, each with its remedy.
        memory: what the images take in training, in words.
    """

    options: RunOptions
    source: Source
    survey: Survey
    images: Images | None = None
    balanced: PartitionConfig | None = None
    policy: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    memory: str = ""

    def check_memory(self, num_images: int) -> None:
        """Notes what so many images take, and a problem where that is more than there is."""
        need, free = shown_bytes(num_bytes(self.options, num_images)), shown_bytes(free_memory())
        size = self.options.image_size
        self.memory = f"{need} for the images at {size} px, beside the net; {free} are free here"
        if problem := too_large(self.options, num_images):
            self.problems.append(problem)


def page(found: Findings) -> str:
    """The whole page."""
    lines = [*_head(found), "", *_table(found), ""]
    if found.balanced is not None:
        sets = found.balanced
        said = (
            f"--train-images {sets.train_images} --validation-images {sets.validation_images} --test-images "
            f"{sets.test_images} are about the largest sets with balanced classes"
        )
        lines += _row("balanced", said)
    if found.memory:
        lines += _row("memory", found.memory)
    for number, line in enumerate(found.policy):
        lines += _row("" if number else "policy", line)
    for number, problem in enumerate(found.problems):
        lines += _row("" if number else "to mend", problem)
    if not found.problems:
        lines += _row("", "A site can join with this data.")
    return "\n".join(lines)


def _head(found: Findings) -> Iterator[str]:
    source, seen = found.source, found.survey
    number, patients = len(source.examples), len({one.patient for one in source.examples})
    yield from _row("data", found.options.data)
    yield from _row("task", str(source.task))
    yield from _row("images", f"{number} of {patients} patients")
    if tested := sum(one.official_test for one in source.examples):
        yield from _row("", f"{tested} of them are official test images, used for testing only")
    if seen.sizes:
        yield from _row("sizes", _sizes(seen.sizes))
    for place, note in enumerate([*source.notes, *seen.notes]):
        yield from _row("" if place else "notes", note)
    if not seen.unreadable:
        yield from _row("unreadable", "none: every picture was decoded")
    else:
        yield from _row("unreadable", f"{len(seen.unreadable)} of {number}")
        for message in seen.unreadable:  # all of them: whoever mends one wants to mend the others at once
            yield from _row("", f"- {message.removesuffix('; remove or replace it')}")
    yield from _copies(found)


def _copies(found: Findings) -> Iterator[str]:
    source, groups = found.source, found.survey.copies
    if not groups:
        yield from _row(
            "copies", "none: no two pictures are the same" if found.survey.sizes else "none: drawn"
        )
        return
    more = sum(len(group) - 1 for group in groups)
    torn = found.survey.in_two_classes(source)
    keys = [source.examples[index].key for group in groups for index in group]
    patients = sum(len({source.examples[index].patient for index in group}) > 1 for group in groups)
    apart = f"; {patients} of the groups are of different patients" if patients else ""
    yield from _row(
        "copies", f"{more} of {len(keys)} pictures in {len(groups)} groups are exact copies{apart}"
    )
    yield from _listed(" = ".join(source.examples[index].key for index in group) for group in groups)
    if torn:
        yield from _row("", "the same picture in two classes, so that one of the labels is wrong:")
        yield from _listed(
            " = ".join(
                f"{one.key} ({_classes_of(one, source.classes)})"
                for one in map(source.examples.__getitem__, group)
            )
            for group in torn
        )


def _table(found: Findings) -> Iterator[str]:
    """A line a class: images, patients, and images of each set."""
    source, share = found.source, None if found.images is None else found.images.shares[0]
    yield _cells("class", "images", "patients", "train", "validation", "test")
    everything: Sequence[int] = range(len(source.examples))
    sets = (everything, *((share.train, share.validation, share.test) if share is not None else ((), (), ())))
    for label, name in enumerate(source.classes if source.task is not Task.SEGMENTATION else ()):
        counts = [sum(_has(source.examples[index], label) for index in part) for part in sets]
        owners = len({one.patient for one in source.examples if _has(one, label)})
        yield _cells(name, counts[0], owners, *_of(share, counts[1:]))
    owners_of = [len({source.examples[index].patient for index in part}) for part in sets]
    yield _cells("all images", len(everything), owners_of[0], *_of(share, list(map(len, sets[1:]))))
    yield _cells("patients", "", "", *_of(share, owners_of[1:]))


def _classes_of(example: Example, classes: Sequence[str]) -> str:
    if example.label is not None:
        return classes[example.label]
    return ", ".join(classes[number] for number in example.findings) or "no finding"


def _has(example: Example, label: int) -> bool:
    return example.label == label or label in example.findings


def _of(share: object, counts: Sequence[int]) -> list[object]:
    return list(counts) if share is not None else ["-"] * len(counts)


def _cells(name: str, images: object, patients: object, *sets: object) -> str:
    shown = name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
    widths = (8, 10, 8, 12, 8)
    return (
        f"{shown:{_NAME}}"
        + "".join(f"{cell!s:>{w}}" for cell, w in zip((images, patients, *sets), widths, strict=True))
    ).rstrip()


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """Smallest, median and largest by area."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    if ordered[0] == ordered[-1] and len(set(sizes)) == 1:
        return f"{ordered[0][0]} x {ordered[0][1]} px, all of them"
    middle = median_low(range(len(ordered)))
    named = zip(("smallest", "median", "largest"), (ordered[0], ordered[middle], ordered[-1]), strict=True)
    return ", ".join(f"{name} {width} x {height}" for name, (width, height) in named) + " px"


def _listed(entries: Iterable[str]) -> Iterator[str]:
    shown = list(entries)
    for entry in shown[:_SHOWN]:
        yield from _row("", f"- {entry}")
    if len(shown) > _SHOWN:
        yield from _row("", f"- and {len(shown) - _SHOWN} more")


def _row(label: str, text: str) -> list[str]:
    """A label and its text, wrapped; nothing in it that a terminal obeys, since files may be named anyhow."""
    plain = "".join(sign if sign.isprintable() else "?" for sign in text)
    return textwrap.wrap(
        plain,
        _WIDTH,
        initial_indent=f"{label:{_LABEL}}",
        subsequent_indent=" " * (_LABEL + (2 if plain.startswith("- ") else 0)),
        break_long_words=False,
        break_on_hyphens=False,
    )
