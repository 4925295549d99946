"""What lies in a folder of pictures: each file is either a picture to read or counted, with why it is not used.

Training, ``suture predict``, ``suture check`` and ``suture join`` all walk a folder here, so that they agree.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from suture.runtime.data.formats import Kind, ends_as_picture, kind_of

SYSTEM_FOLDERS = frozenset(
    {"__MACOSX", "__pycache__", "@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "lost+found"}
    | {
        "System Volume Information",
        ".ipynb_checkpoints",
        ".git",
        ".Trashes",
        ".Spotlight-V100",
        ".AppleDouble",
    }
)
"""Folders that operating systems, network drives and tools keep for themselves."""
HIDDEN, MAC_COMPANION, NO_ENDING, OTHER_ENDING = "hidden", "macOS companion ._*", "no ending", "other endings"
DEAD_LINK, BACK_LINK, SAME_LINK = (
    "link to nothing",
    "link back to a folder above",
    "link to what is here already",
)
FOLDER_AS_PICTURE, CLOSED, SPECIAL = (
    "folder named as a picture",
    "folder that may not be opened",
    "device or pipe",
)

_LONGEST_ENDING = 8


@dataclass(frozen=True)
class Found:
    """What a walk found.

    Attributes:
        pictures: every picture and DICOM file, in the order of their paths; those behind links too.
        dicom: those of them that are DICOM.
        unused: what else lies there, counted by kind. The kinds are words of ours and endings, never a name.
    """

    pictures: tuple[Path, ...] = ()
    dicom: frozenset[Path] = frozenset()
    unused: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """A sentence for a person, or none."""
        return unused_notes(self.unused)


def unused_notes(unused: Counter[str]) -> list[str]:
    """What was counted as not used, in one sentence, the commonest kind first; none where nothing was."""
    kinds = sorted((kind for kind in unused if unused[kind]), key=lambda kind: (-unused[kind], kind))
    if not kinds:
        return []
    counted = ", ".join(f"{kind} ({unused[kind]})" for kind in kinds)
    return [f"not used: {sum(unused.values())} in this folder: {counted}"]


def walk(folder: Path, *, known: Iterable[Path] = (), without: Path | None = None) -> Found:
    """Looks at everything at and below a folder. Links are followed: to files, and to folders that are not above.

    Args:
        folder: where to begin.
        known: files that are used although they are no pictures, such as a table.
        without: a folder that is left alone and not counted, such as the one for the results.
    """
    walker = _Walker([os.path.realpath(path) for path in known], without)
    walker.walk(folder)
    return walker.found()


def is_left_alone(name: str) -> bool:
    """Whether a folder of that name is hidden or a system's."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def companion_kind(name: str) -> str:
    """Why a hidden file is not used."""
    return MAC_COMPANION if name.startswith("._") else HIDDEN


def other_kind(name: str) -> str:
    """The kind of a file that is no picture: its ending where that is a plain one, so that no name is told."""
    ending = Path(name).suffix.lower()
    if len(ending) < 2:
        return NO_ENDING
    plain = ending[1:].isascii() and ending[1:].isalnum() and len(ending) <= _LONGEST_ENDING
    return ending if plain and not ending[1:].isdigit() else OTHER_ENDING


class _Walker:
    """One walk. Folders and files that lie there themselves come before links, which may lead to the same."""

    def __init__(self, known: Collection[str], without: Path | None) -> None:
        self._known = frozenset(known)
        self._without = None if without is None else os.path.realpath(without)
        self._pictures: list[Path] = []
        self._dicom: set[Path] = set()
        self._unused: Counter[str] = Counter()
        self._links: list[tuple[Path, frozenset[tuple[int, int]]]] = []
        self._folders: set[tuple[int, int]] = set()
        self._files: set[tuple[int, int]] = set()

    def found(self) -> Found:
        return Found(
            tuple(sorted(self._pictures, key=lambda path: path.parts)), frozenset(self._dicom), self._unused
        )

    def walk(self, folder: Path) -> None:
        self._walk(folder, frozenset())
        while self._links:
            links, self._links = sorted(self._links, key=lambda link: link[0].parts), []
            for link, above in links:
                self._follow(link, above)

    def _walk(self, folder: Path, above: frozenset[tuple[int, int]]) -> None:
        try:
            status = folder.stat()
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError:
            self._unused[CLOSED] += 1
            return
        own = (status.st_dev, status.st_ino)
        self._folders.add(own)
        for entry in listed:
            self._look_at(entry, folder / entry.name, above | {own}, status.st_dev)

    def _look_at(
        self, entry: os.DirEntry[str], path: Path, above: frozenset[tuple[int, int]], device: int
    ) -> None:
        if entry.is_symlink():
            if is_left_alone(entry.name):
                self._unused[companion_kind(entry.name)] += 1
            else:
                self._links.append((path, above))
        elif entry.is_dir(follow_symlinks=False):
            self._enter(path, above)
        elif entry.is_file():
            self._files.add((device, entry.inode()))
            self._take(path)
        else:
            self._unused[SPECIAL] += 1

    def _enter(self, path: Path, above: frozenset[tuple[int, int]]) -> None:
        name = path.name
        if self._without is not None and os.path.realpath(path) == self._without:
            return
        if is_left_alone(name):
            kind = f"in {name}" if name in SYSTEM_FOLDERS else "in hidden folders"
            self._unused[kind] += sum(len(files) for _, _, files in os.walk(path))
            return
        if ends_as_picture(name):
            self._unused[FOLDER_AS_PICTURE] += 1
        self._walk(path, above)

    def _follow(self, link: Path, above: frozenset[tuple[int, int]]) -> None:
        try:
            status = link.stat()
        except OSError:  # nothing is there, or the links go round
            self._unused[DEAD_LINK] += 1
            return
        target = (status.st_dev, status.st_ino)
        if link.is_dir():
            if target in above:
                self._unused[BACK_LINK] += 1
            elif target in self._folders:
                self._unused[SAME_LINK] += 1
            else:
                self._enter(link, above)
        elif not link.is_file():
            self._unused[SPECIAL] += 1
        elif target in self._files:
            self._unused[SAME_LINK] += 1
        else:
            self._files.add(target)
            self._take(link)

    def _take(self, path: Path) -> None:
        name = path.name
        if self._known and os.path.realpath(path) in self._known:
            return
        if name.startswith("."):
            self._unused[companion_kind(name)] += 1
            return
        kind = kind_of(path)
        if kind is Kind.DICOM:
            self._dicom.add(path)
        if kind in (Kind.PICTURE, Kind.DICOM):
            self._pictures.append(path)
        else:
            self._unused[str(kind) if kind is Kind.DICOM_WITHOUT_PIXELS else other_kind(name)] += 1
