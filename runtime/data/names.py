"""Which file does a table's row mean? Names with and without endings, with folders, composed or not."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from suture.runtime.data.formats import composed, plain_stem
from suture.runtime.errors import DataError


class FilesByName:
    """Finds files by the names that tables give them.

    Args:
        source: what a person has named, for messages.
        files: those that may be meant, below ``source``.
    """

    def __init__(self, source: Path, files: Iterable[Path]) -> None:
        self._source = source
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            self._by_stem[plain_stem(file.name).casefold()].append(file)

    def candidates(self, name: str) -> list[Path]:
        """The files that a name may mean: its stem is theirs, and so are its folders and ending as far as they matter.

        Folders are compared from the file upwards as far as both sides have them: a table may have been written
        elsewhere. Capitals matter only where they tell files apart, since they do not on Windows.
        """
        named = PurePosixPath(composed(name.replace("\\", "/")))
        close = {
            file: self._closeness(named, file)
            for file in self._by_stem.get(plain_stem(named.name).casefold(), ())
        }
        fitting = {file: how for file, how in close.items() if how is not None}
        return [file for file, how in fitting.items() if how == max(fitting.values())]

    def find(self, name: str) -> Path | None:
        """The one file that a name means; None where there is none.

        Raises:
            DataError: there are several, so that the row could mean either.
        """
        fitting = self.candidates(name)
        if len(fitting) > 1:
            raise ambiguous(self._source, fitting)
        return fitting[0] if fitting else None

    def _closeness(self, named: PurePosixPath, file: Path) -> tuple[bool, ...] | None:
        """What agrees in capitals, too: folders, stem; and whether the ending does at all. None: other folders."""
        own = [composed(part) for part in file.relative_to(self._source).parent.parts]
        theirs = [part for part in named.parent.parts if part not in ("/", ".", "..")]
        pairs = list(zip(reversed(own), reversed(theirs), strict=False))
        if not all(a.casefold() == b.casefold() for a, b in pairs):
            return None
        same_folders, same_stem = (
            all(a == b for a, b in pairs),
            plain_stem(file.name) == plain_stem(named.name),
        )
        return same_folders, same_stem, composed(file.name).casefold() == named.name.casefold()


def ambiguous(source: Path, files: list[Path]) -> DataError:
    """The error of a name that several files have."""
    first, second = (os.fspath(file.relative_to(source)) for file in files[:2])
    return DataError(
        f"{source} holds {files[0].name!r} twice, in different folders; remove one of the copies, or write the folder "
        f"into the table's name: {first!r} or {second!r}"
    )
