"""What the folders above pictures mean: classes, hospitals, or the sets in which a collection is handed out.

    PATH/CLASS/...    PATH/SITE/CLASS/...    PATH/{train,val,test}/CLASS/...    and one in another, or in a wrapper

Sets are no hospitals: what lies in the test set is for testing only. Sites are those of ``--partition by-site``;
without it folders of folders are only taken for sites where they hold classes of the same names.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from suture.runtime.errors import DataError

_VALIDATION = frozenset({"val", "valid", "validation", "dev"})
_TRAIN = frozenset({"train", "training", "trainval"}) | _VALIDATION
_TEST = frozenset({"test", "testing"})
_IMAGES = frozenset({"images", "image", "imgs", "img"})
_MASKS = frozenset({"masks", "mask", "segmentations", "segmentation"})
_MOST_GRADES = 10
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WHAT_IT_HOLDS = re.compile(r"(?<=.)(set|data|dataset|images|imgs|split|folder)$")


@dataclass(frozen=True)
class ClassFolder:
    """A folder of pictures of one class.

    Attributes:
        path: its own.
        site: the hospital, or "".
        official_test: whether it is in a test set.
    """

    path: Path
    site: str
    official_test: bool


@dataclass
class Tree:
    """What a tree means.

    Attributes:
        folders: those of classes.
        copies: pictures of a tree that lies inside itself once more, and masks beside images; they are not used.
        left_out: pictures in folders that `notes` say are left out.
        notes: how the folders were read, where it could be otherwise.
    """

    folders: list[ClassFolder] = field(default_factory=list)
    copies: set[Path] = field(default_factory=set)
    left_out: int = 0
    notes: list[str] = field(default_factory=list)


def read_tree(path: Path, pictures: Iterable[Path], *, by_site: bool = False) -> Tree:
    """Reads the folders between ``path`` and its pictures.

    Args:
        path: the topmost folder.
        pictures: all below it, as a walk found them.
        by_site: whether the topmost folders, sets apart, are hospitals whatever they hold.

    Raises:
        DataError: there are no folders, or they can be read in two ways; says how to sort them.
    """
    reader = _Reader(path, list(pictures), by_site)
    reader.read(path, "", official_test=False)
    return reader.tree


class _Reader:
    def __init__(self, path: Path, pictures: list[Path], by_site: bool) -> None:
        self.tree = Tree()
        self._path, self._by_site = path, by_site
        self._pictures = self._without_masks(pictures)
        self._holding = {file.parent for file in self._pictures}
        self._children = _children(path, self._holding)
        for parent in [folder.parent for folder in self._holding if folder.name.casefold() in _IMAGES]:
            if parent != path and len(self._children[parent]) == 1:  # CLASS/images is the class's
                self._children[parent].clear()
                self._holding.add(parent)

    def read(self, folder: Path, site: str, *, official_test: bool) -> None:
        tops = self._without_copy(folder, sorted(self._children[folder]))
        if not tops:
            raise DataError(
                f"{folder} has no folders; sort the pictures into PATH/CLASS/ or PATH/SITE/CLASS/"
            )
        deep = [top for top in tops if self._is_deep(top)]
        if len(tops) == 1 and deep and any(map(self._is_deep, self._children[tops[0]])):
            self.read(tops[0], site, official_test=official_test)  # a wrapper, as archives have it
        elif all(map(_is_set, tops)) and not deep:
            raise DataError(
                f"{folder}: {_names(tops)} are sets, and hold pictures but no folders of classes; sort them into "
                f"{tops[0].name}/CLASS/"
            )
        elif any(map(_is_set, deep)):
            self._sets(tops, site)
        elif deep and len(deep) < len(tops):
            shallow = next(top.name for top in tops if top not in deep)
            raise DataError(
                f"{folder}: {deep[0].name!r} holds folders but {shallow!r} does not; use PATH/CLASS/ throughout or "
                "PATH/SITE/CLASS/ throughout"
            )
        elif deep and not site and self._are_sites(tops):
            for top in tops:
                self.read(top, top.name, official_test=official_test)
        else:
            self.tree.folders += [ClassFolder(top, site, official_test) for top in tops]

    def _without_masks(self, pictures: list[Path]) -> list[Path]:
        """The pictures but for those of a folder of masks that lies beside one of images."""
        children = _children(self._path, {file.parent for file in pictures})
        masks = {
            folder
            for below in children.values()
            if any(other.name.casefold() in _IMAGES for other in below)
            for folder in below
            if folder.name.casefold() in _MASKS
        }
        if not masks:
            return pictures
        self.tree.copies |= {file for file in pictures if masks & set(file.parents)}
        self.tree.notes.append(f"left out {len(self.tree.copies)} pictures of masks, beside images")
        return [file for file in pictures if file not in self.tree.copies]

    def _sets(self, tops: list[Path], site: str) -> None:
        """Folders of train, val and test; what is none of them, or holds no classes, is left out and said."""
        for top in tops:
            if _is_set(top) and self._children[top]:
                self.read(top, site, official_test=_is_set(top, _TEST))
                continue
            number = sum(top in file.parents for file in self._pictures)
            self.tree.left_out += number
            where = top.relative_to(self._path).as_posix()
            why = "no folders of classes" if _is_set(top) else "a folder beside train and test"
            self.tree.notes.append(f"left out {number} pictures of {where}/: {why}")
        said = "pictures of val go with train: validation images are held out by patient"
        validating = any(_is_set(top, _VALIDATION) for top in tops)
        if validating and said not in self.tree.notes:
            self.tree.notes.append(said)

    def _are_sites(self, tops: list[Path]) -> bool:
        number = Counter(child.name for top in tops for child in self._children[top])
        shared = sum(times > 1 for times in number.values())
        numbered = len(number) > _MOST_GRADES and all(map(str.isdigit, number))  # patients within each class
        sites = self._by_site or (0 < len(number) <= 2 * shared and not numbered) or len(tops) == 1
        # Sets below each are told by their names, whether or not anybody asked for sites.
        if not sites:
            self.tree.notes.append(
                f"read as PATH/CLASS/...: {_names(tops)} are classes; if they are hospitals, say --partition by-site; "
                "patients are told by the files' names and not by folders (index.csv may name them)"
            )
        elif not self._by_site and len(tops) > 1:
            self.tree.notes.append(
                f"read as PATH/SITE/CLASS: {_names(tops)} hold folders of the same names, which are the classes"
            )
        return sites

    def _is_deep(self, top: Path) -> bool:
        return bool(self._children[top]) and top not in self._holding

    def _without_copy(self, folder: Path, tops: list[Path]) -> list[Path]:
        """The folders without one that holds all the others once more, as some archives do.

        Raises:
            DataError: it is no copy: which of the two is meant, nobody said.
        """
        for top in tops:
            others = {other.name for other in tops if other != top}
            if len(others) < 2 or not others <= {child.name for child in self._children[top]}:
                continue
            inner = [file for file in self._pictures if top in file.parents]
            for file in inner:
                twin = folder / file.relative_to(top)
                if not (twin.is_file() and twin.stat().st_size == file.stat().st_size):
                    raise DataError(
                        f"{folder} holds a tree like itself in {top.name!r}, and {file} has no copy outside it; give "
                        "one of the two folders alone"
                    )
            self.tree.copies |= set(inner)
            where = top.relative_to(self._path).as_posix()
            self.tree.notes.append(f"left out {len(inner)} pictures of {where}/: a second copy of the tree")
            return [other for other in tops if other != top]
        return tops


def _children(path: Path, holding: Iterable[Path]) -> dict[Path, set[Path]]:
    """By folder those right below it that hold pictures, at any depth."""
    children: dict[Path, set[Path]] = defaultdict(set)
    for folder in holding:
        while folder != path:
            children[folder.parent].add(folder)
            folder = folder.parent
    return children


def _is_set(folder: Path, which: frozenset[str] = _TRAIN | _TEST) -> bool:
    """Whether a folder's name says train, val or test, with other words or not: "a. Training Set", "testData"."""
    words = re.split(r"[\W\d_]+", _CAPITAL.sub("_", folder.name).casefold())
    return bool(which & {_WHAT_IT_HOLDS.sub("", word) for word in words})


def _names(folders: list[Path]) -> str:
    shown = ", ".join(folder.name for folder in folders[:5])
    return shown + (f" and {len(folders) - 5} more" if len(folders) > 5 else "")
