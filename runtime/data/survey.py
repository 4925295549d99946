"""Looks at every picture of a source: its size, whether it can be decoded, and which others are its exact copies."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from suture.runtime.data.library_warnings import LibraryWarnings, counted_warnings
from suture.runtime.data.source import Source
from suture.runtime.errors import DataError


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        sizes: (width, height) of each picture whose header could be read, as it is kept.
        unreadable: what is wrong with each picture that cannot be used; each names its file.
        copies: indices of pictures with the same content, two or more each.
        notes: what was found in the pictures, and how many warnings the libraries gave.
    """

    sizes: tuple[tuple[int, int], ...]
    unreadable: tuple[str, ...]
    copies: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]

    def in_two_classes(self, source: Source) -> tuple[tuple[int, ...], ...]:
        """Those of `copies` whose pictures are said to be of different classes."""
        return tuple(
            group
            for group in self.copies
            if len({(source.examples[index].label, source.examples[index].findings) for index in group}) > 1
        )


def survey(
    source: Source,
    size: int,
    channels: int,
    looked: Callable[[], object] = lambda: None,
    *,
    closely: bool = True,
) -> Survey:
    """Decodes every picture once and keeps none.

    Args:
        source: what is looked at.
        size: pixels a side to which pictures are brought, as in training.
        channels: 1 or 3.
        looked: called after each picture.
        closely: whether each picture is looked at at its whole size, too.
    """
    sizes, unreadable = [], []
    by_content: dict[bytes, list[int]] = defaultdict(list)
    said = LibraryWarnings()
    for index in range(len(source.examples)):
        try:
            with counted_warnings() as reading:
                if (dimensions := source.dimensions(index)) is not None:
                    sizes.append(dimensions)
                    by_content[source.content_digest(index)].append(index)
                source.read(index, size, channels)
            with counted_warnings() as looking:
                if closely:
                    source.look_closely(index)
            said.add(reading, looking)
        except DataError as error:
            unreadable.append(str(error))
        looked()
    copies = tuple(tuple(indices) for indices in by_content.values() if len(indices) > 1)
    return Survey(tuple(sizes), tuple(unreadable), copies, tuple(said.notes()))
