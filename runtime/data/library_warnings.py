"""What the libraries that read files say on their own: counted, and kept from a site's terminal.

pydicom warns of every element that is not quite as the standard wants it, through ``warnings`` and through ``logging``,
and with the file's contents in the text; Pillow and numpy warn as well.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

_LIBRARIES = ("pydicom", "PIL", "numpy")


class PictureWarning(UserWarning):
    """What our own reader found in a picture; the text names no file and goes on after "3 pictures: "."""


class LibraryWarnings(logging.Handler):
    """Counts warnings by the library that gave them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[str] = Counter()
        self.found: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Counts one that came through ``logging``; its text goes nowhere."""
        self.counts[record.name.partition(".")[0]] += 1

    def add(self, read: LibraryWarnings, again: LibraryWarnings) -> None:
        """Counts one picture, which was read and then looked at ``again``: what both times say counts once."""
        self.counts += read.counts
        self.found.update(read.found.keys() | again.found.keys())

    def notes(self) -> list[str]:
        """Sentences for a person: what our own reader found, by number of pictures, then `note`."""
        own = [f"{number} pictures: {text}" for text, number in sorted(self.found.items())]
        return own + list(filter(None, [self.note()]))

    def note(self) -> str:
        """What the libraries said, in a sentence; empty where there was nothing."""
        if not self.counts:
            return ""
        total, kinds = (
            sum(self.counts.values()),
            ", ".join(f"{n} {name}" for name, n in sorted(self.counts.items())),
        )
        return (
            f"{total} warning{'' if total == 1 else 's'} of the libraries that read the files ({kinds}), whose texts "
            "may quote a file and are not shown; the files were read"
        )


@contextmanager
def counted_warnings() -> Iterator[LibraryWarnings]:
    """Counts what the libraries say meanwhile, and shows none of it. Not for two threads at a time."""
    counter = LibraryWarnings()
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    before = [(logger.propagate, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.propagate, logger.handlers = False, [counter]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield counter
    finally:
        for logger, (propagates, handlers) in zip(loggers, before, strict=True):
            logger.propagate, logger.handlers = propagates, handlers
        for warning in caught:
            if issubclass(warning.category, PictureWarning):
                counter.found[str(warning.message)] += 1
                continue
            parts = PurePath(warning.filename).parts
            counter.counts[next((name for name in _LIBRARIES if name in parts), "Python")] += 1
