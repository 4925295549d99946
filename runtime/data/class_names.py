"""A source's classes under the names of a run, in the run's order: images keep their class, labels are renumbered.

Several hospitals name the classes of one task in any order, and perhaps by other names. They are matched by name.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from torch import Tensor

from suture.runtime.data.source import Example, Source, Task
from suture.runtime.errors import ConfigError, DataError

MOST_CLASSES, LONGEST_NAME = 1000, 200


class RenamedClasses(Source):
    """Another source with other class names or another order of them; reads its pictures.

    Args:
        source: the other one.
        classes: the new names.
        numbers: by the other's label the new one; that of a class without images is not looked at.
    """

    def __init__(self, source: Source, classes: Sequence[str], numbers: Sequence[int]) -> None:
        self.source = source
        examples = [_renumbered(one, numbers) for one in source.examples]
        super().__init__(
            source.name, source.task, classes, examples, mirror=source.mirror, notes=source.notes
        )

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """The other source's picture, with the new label; see ``Source.read``."""
        image, target = self.source.read(index, size, channels)
        if self.task is Task.SEGMENTATION:
            return image, target
        return image, self.target(index)

    def dimensions(self, index: int) -> tuple[int, int] | None:
        """The other source's; see ``Source.dimensions``."""
        return self.source.dimensions(index)

    def content_digest(self, index: int) -> bytes:
        """The other source's; see ``Source.content_digest``."""
        return self.source.content_digest(index)

    def look_closely(self, index: int) -> None:
        """The other source's; see ``Source.look_closely``."""
        self.source.look_closely(index)


def _renumbered(example: Example, numbers: Sequence[int]) -> Example:
    if example.label is not None:
        return replace(example, label=numbers[example.label])
    return replace(example, findings=tuple(sorted({numbers[number] for number in example.findings})))


def parse_names(text: str) -> tuple[str, ...]:
    """Class names from ``--classes``, with commas between them; a name with a comma in it stands in double quotes.

    Raises:
        ConfigError: fewer than two names, one twice, an empty one, or one that is too long or cannot be printed.
    """
    names = _fields(text)
    if problem := problem_of(names, least=2):
        raise ConfigError(f"--classes {text!r:.200}: {problem}; write them as --classes healthy,diseased")
    return names


def parse_map(text: str) -> dict[str, str]:
    """``--class-map``: by this site's class name the run's.

    Raises:
        ConfigError: a pair has no "=", a name is empty, or one of this site's is there twice.
    """
    pairs: list[tuple[str, str]] = []
    for field in _fields(text):
        theirs, _, ours = field.partition("=")
        pairs.append((theirs.strip(), ours.strip()))
    for theirs, ours in pairs:
        if not theirs or not ours:
            raise ConfigError(
                f"--class-map {text!r:.200}: expected pairs of this site's name and the run's; write them as "
                "--class-map ill=diseased,well=healthy"
            )
    given = [theirs for theirs, _ in pairs]
    if twice := [name for name in given if given.count(name) > 1]:
        raise ConfigError(f"--class-map gives {twice[0]!r} two names; name each class of this site once")
    return dict(pairs)


def problem_of(names: Sequence[str], least: int = 1) -> str:
    """Why these cannot be the classes of a run; empty where they can."""
    if not least <= len(names) <= MOST_CLASSES:
        return f"expected {least} to {MOST_CLASSES} names of classes, got {len(names)}"
    for name in names:
        if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
            return f"a class's name must have 1 to {LONGEST_NAME} printable characters, got {name!r:.60}"
    twice = [name for name in names if names.count(name) > 1]
    return f"{twice[0]!r} is there twice" if twice else ""


def mapped(source: Source, class_map: Mapping[str, str]) -> Source:
    """A site's source under the names that ``--class-map`` gives; several of its classes may become one.

    Raises:
        ConfigError: the map names a class that the source does not have; or it joins a mask's two classes.
    """
    unknown = [name for name in class_map if name not in source.classes]
    if unknown:
        raise ConfigError(
            f"--class-map names the class {unknown[0]!r}, which {source.name} does not have here; it has: "
            f"{_list(source.classes)}"
        )
    if not class_map:
        return source
    names = [class_map.get(name, name) for name in source.classes]
    classes = tuple(dict.fromkeys(names))
    if source.task is Task.SEGMENTATION and len(classes) < len(names):
        raise ConfigError(
            f"--class-map makes one class of {_list(source.classes)}, and a mask needs two; map the second one only"
        )
    return RenamedClasses(source, classes, [classes.index(name) for name in names])


def with_images(source: Source) -> Source:
    """The source without the classes that no image of it has: what a division is balanced over."""
    present = {one.label for one in source.examples}
    if not source.task.has_one_class or len(present) == len(source.classes):
        return source
    classes = tuple(name for label, name in enumerate(source.classes) if label in present)
    numbers = [classes.index(name) if name in classes else -1 for name in source.classes]
    return RenamedClasses(source, classes, numbers)


def matched(source: Source, classes: Sequence[str]) -> Source:
    """A site's source with the run's classes, in the run's order.

    Args:
        source: the site's, as `mapped` left it.
        classes: the run's.

    Raises:
        DataError: images are of a class that is not the run's; both lists are named, and what mends it.
    """
    if tuple(classes) == source.classes:
        return source
    if source.task is Task.SEGMENTATION:  # the background's name says nothing
        foreign = [] if tuple(classes[1:]) == source.classes[1:] else [*source.classes[1:]]
    elif source.task is Task.MULTI_LABEL:
        foreign = [name for name in source.classes if name not in classes]
        _check_all_are_labelled(source, classes)
    else:
        held = {one.label for one in source.examples}
        foreign = [name for label, name in enumerate(source.classes) if label in held and name not in classes]
    if foreign:
        raise DataError(
            f"{source.name} has images of {_list(foreign)}, which is no class of the run; this site has: "
            f"{_list(source.classes)}; the run has: {_list(classes)}; {_remedy(foreign, source.classes, classes)}"
        )
    if source.task is Task.SEGMENTATION:
        return RenamedClasses(source, classes, range(len(classes)))
    numbers = [classes.index(name) if name in classes else -1 for name in source.classes]
    return RenamedClasses(source, classes, numbers)


def _check_all_are_labelled(source: Source, classes: Sequence[str]) -> None:
    """
    Raises:
        DataError: the run looks for a finding that this site's labels say nothing of: it would be learnt as absent.
    """
    if lacking := [name for name in classes if name not in source.classes]:
        raise DataError(
            f"{source.name} says nothing of {_list(lacking)}, which the run looks for, and what is not said is not "
            f"absent; this site has: {_list(source.classes)}; add the columns, or say which of these they are: "
            '--class-map "theirs=ours"'
        )


def without_images(source: Source) -> tuple[str, ...]:
    """The classes that no image of the source has."""
    if source.task is Task.SEGMENTATION:
        return ()
    present = {number for one in source.examples for number in (one.label, *one.findings)}
    return tuple(name for label, name in enumerate(source.classes) if label not in present)


def _remedy(foreign: Sequence[str], own: Sequence[str], classes: Sequence[str]) -> str:
    """The option that mends it, as it can be typed where a name is only written differently."""
    plain = {name.casefold().strip(): name for name in classes}
    pairs = []
    for name in foreign:
        near = get_close_matches(name.casefold(), plain, n=1, cutoff=0.75)
        pairs.append(f"{name}={plain[near[0]] if near else 'CLASS'}")
    said = f'--class-map "{",".join(pairs)}"' if pairs else '--class-map "theirs=ours"'
    if "CLASS" in {pair.rpartition("=")[2] for pair in pairs}:
        return f"say which class of the run each is: {said}, with one of the run's names for CLASS"
    return f"say which class of the run each is: {said}"


def _fields(text: str) -> tuple[str, ...]:
    rows = list(csv.reader([text], skipinitialspace=True))
    return tuple(name.strip() for name in rows[0]) if rows else ()


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"
