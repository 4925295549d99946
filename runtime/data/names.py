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
            self._by_stem[plain_stem(file.name)].append(file)

    def candidates(self, name: str) -> list[Path]:
        """The files that a name may mean: its stem is theirs, and so are its folders and ending as far as they matter.

        Folders are compared from the file upwards as far as both sides have them: a table may have been written
        elsewhere.
        """
        named = PurePosixPath(composed(name.replace("\\", "/")))
        fitting = [
            file for file in self._by_stem.get(plain_stem(named.name), ()) if self._folders_fit(named, file)
        ]
        if len(fitting) > 1:
            exact = [file for file in fitting if composed(file.name).casefold() == named.name.casefold()]
            fitting = exact or fitting
        return fitting

    def find(self, name: str) -> Path | None:
        """The one file that a name means; None where there is none.

        Raises:
            DataError: there are several, so that the row could mean either.
        """
        fitting = self.candidates(name)
        if len(fitting) > 1:
            raise ambiguous(self._source, fitting)
        return fitting[0] if fitting else None

    def _folders_fit(self, named: PurePosixPath, file: Path) -> bool:
        own = [composed(part) for part in file.relative_to(self._source).parent.parts]
        theirs = [part for part in named.parent.parts if part not in ("/", ".", "..")]
        return all(a == b for a, b in zip(reversed(own), reversed(theirs), strict=False))


def ambiguous(source: Path, files: list[Path]) -> DataError:
    """The error of a name that several files have."""
    first, second = (os.fspath(file.relative_to(source)) for file in files[:2])
    return DataError(
        f"{source} holds {files[0].name!r} twice, in different folders; remove one of the copies, or write the folder "
        f"into the table's name: {first!r} or {second!r}"
    )
