"""The data sources by name: what ``--data NAME[:PATH]`` can say, and opening one.

One of one's own is a `SourceEntry`, named ``module:FILE_OR_PACKAGE:NAME[:PATH]`` or by an entry point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from suture.models.plugins import FORM, is_outside, nearest, split
from suture.runtime.data.chest_phantom import ChestPhantom
from suture.runtime.data.dicom import open_dicom
from suture.runtime.data.findings import open_findings
from suture.runtime.data.fundus_phantom import FundusPhantom
from suture.runtime.data.idx import open_fashion_mnist, open_mnist
from suture.runtime.data.image_folder import open_image_folder
from suture.runtime.data.kaggle_cxr import open_kaggle_cxr
from suture.runtime.data.kaggle_dr import open_kaggle_dr
from suture.runtime.data.library_warnings import counted_warnings
from suture.runtime.data.medmnist import open_medmnist
from suture.runtime.data.source import Source, Task
from suture.runtime.data.tables import Columns, parse_columns
from suture.runtime.errors import ConfigError, DataError
from suture.runtime.plugins import load

KIND = "data"
Grades = Literal["binary", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """What a source may look at when it is opened.

    Attributes:
        path: What follows the colon; exists. Path(".") for sources without an argument.
        grades: Whether disease grades become healthy and diseased, or stay apart.
        need: How many examples the run wants; phantoms list twice as many.
        seed: The run's public seed.
        columns: What the source's table calls its columns, as ``--columns`` says it; see `parse_columns`.
        structure: Which values of a mask are the structure; empty where nobody said.
        frame: Which frame of DICOM files with several, from 1; None where nobody said.
        by_site: Whether the run divides by sites, which the source is to tell apart.
    """

    path: Path
    grades: Grades
    need: int
    seed: int
    columns: Columns = field(default_factory=dict)
    structure: tuple[int, ...] = ()
    frame: int | None = None
    by_site: bool = False


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """A line of the registry.

    Attributes:
        name: As on the command line; of one's own what it is called there, whatever stands here.
        description: One line for ``--help``.
        argument: What follows the colon, such as "PATH"; empty where nothing does.
        open: Opens the source.
        task: What is learnt from it, known before it is opened.
        takes: Which of ``columns``, ``structure`` and ``frame`` it looks at; the others are refused.
    """

    name: str
    description: str
    argument: str
    open: Callable[[OpenRequest], Source]
    task: Task = Task.CLASSIFICATION
    takes: tuple[str, ...] = ()


# A phantom's list costs nothing until a picture is drawn. Twice what is wanted leaves room for patients who
# belong to one set only and for class proportions far from half and half.
_SLACK, _LEAST = 2, 64

_ENTRIES = (
    SourceEntry(
        "fundus-phantom",
        "drawn fundus photographs, healthy or with retinopathy (no files needed)",
        "",
        lambda request: FundusPhantom(max(_LEAST, _SLACK * request.need), request.seed),
    ),
    SourceEntry(
        "chest-phantom",
        "drawn chest X-rays with lung masks (no files needed)",
        "",
        lambda request: ChestPhantom(max(_LEAST, _SLACK * request.need), request.seed),
        Task.SEGMENTATION,
    ),
    SourceEntry(
        "kaggle-dr",
        "Kaggle 'Diabetic Retinopathy Resized', or IDRiD in its layout",
        "PATH",
        lambda request: open_kaggle_dr(request.path, grades=request.grades, columns=request.columns),
        takes=("columns",),
    ),
    SourceEntry(
        "kaggle-cxr",
        "Kaggle 'Chest Xray Masks and Labels': lung segmentation",
        "PATH",
        lambda request: open_kaggle_cxr(request.path, columns=request.columns, structure=request.structure),
        Task.SEGMENTATION,
        ("columns", "structure"),
    ),
    SourceEntry(
        "medmnist",
        "a MedMNIST-style npz file with images and labels of train, val and test",
        "FILE.npz",
        lambda request: open_medmnist(request.path),
    ),
    SourceEntry(
        "mnist", "MNIST's four IDX files, raw or .gz", "PATH", lambda request: open_mnist(request.path)
    ),
    SourceEntry(
        "fashion-mnist",
        "Fashion-MNIST's four IDX files, raw or .gz",
        "PATH",
        lambda request: open_fashion_mnist(request.path),
    ),
    SourceEntry(
        "findings",
        "pictures and a CSV with a column of 0 and 1 a finding: several an image",
        "PATH",
        lambda request: open_findings(request.path, columns=request.columns),
        Task.MULTI_LABEL,
        ("columns",),
    ),
    SourceEntry(
        "image-folder",
        "PATH/CLASS/IMAGE, or PATH/SITE/CLASS/IMAGE",
        "PATH",
        lambda request: open_image_folder(
            request.path, columns=request.columns, by_site=request.by_site, frame=request.frame
        ),
        takes=("columns", "frame"),
    ),
    SourceEntry(
        "dicom",
        "CR/DX DICOM files and a CSV with the columns image and level",
        "PATH",
        lambda request: open_dicom(
            request.path, grades=request.grades, columns=request.columns, frame=request.frame
        ),
        takes=("columns", "frame"),
    ),
)

SOURCES: dict[str, SourceEntry] = {entry.name: entry for entry in _ENTRIES}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are shown to the network.

    Attributes:
        spec: NAME or NAME:PATH; see ``SOURCES``.
        classes: "binary" (grade above 0 is diseased) or "all" grades; only graded sources look at it.
        image_size: Edge length in pixels, 8 to 4096.
        augment: How training images are varied, one of ``AUGMENTATIONS``.
        columns: What the source's table calls its columns; see ``parse_columns``.
        structure: Which values of a mask are the structure; see ``parse_structure``.
        frame: Which frame of DICOM files with several, from 1.
    """

    spec: str = "fundus-phantom"
    classes: Grades = "binary"
    image_size: int = 64
    augment: str = "light"
    columns: str | None = None
    structure: str | None = None
    frame: int | None = None

    def __post_init__(self) -> None:
        """Check every field; paths are looked at only when the source is opened.

        Raises:
            ConfigError: Unknown source, path missing or superfluous, unknown classes, size out of range.
        """
        entry = split_spec(self.spec)[0]
        parse_columns(self.columns), parse_structure(self.structure)
        check_frame_number(self.frame)
        for option in ("columns", "structure", "frame"):
            if getattr(self, option) is not None and option not in entry.takes:
                others = ", ".join(name for name, other in SOURCES.items() if option in other.takes)
                raise ConfigError(
                    f"--{option} is for data that have any to name: {others}; {entry.name} has none, leave it out"
                )
        if self.classes not in ("binary", "all"):
            raise ConfigError(f"classes must be binary or all, got {self.classes!r}")
        if not 8 <= self.image_size <= 4096:
            raise ConfigError(f"image size must lie in 8..4096 pixels, got {self.image_size}")


def split_spec(spec: str) -> tuple[SourceEntry, str]:
    """Find the entry of NAME[:PATH] and return it with the path as written.

    Raises:
        ConfigError: The name is unknown (the message lists the known), or a path is missing or superfluous.
    """
    name, argument = split(spec)
    entry = SOURCES.get(name) or _outside(name)
    if entry.argument and not argument:
        raise ConfigError(f"data source {name} needs a path: {name}:{entry.argument}")
    if argument and not entry.argument:
        raise ConfigError(f"data source {name} takes no path, got {spec!r}; write {name}")
    return entry, argument or ""


def _outside(name: str) -> SourceEntry:
    if not is_outside(KIND, name):
        known = ", ".join(e.name + (f":{e.argument}" if e.argument else "") for e in SOURCES.values())
        raise ConfigError(f"unknown data source {name!r}; known: {known}, {FORM}{nearest(name, SOURCES)}")
    entry = load(KIND, name)
    if not isinstance(entry, SourceEntry):
        raise ConfigError(f"data {name}: must be a SourceEntry, got {entry!r:.80}")
    return replace(entry, name=name)


def check_frame_number(frame: int | None) -> None:
    """``--frame``.

    Raises:
        ConfigError: it is below 1.
    """
    if frame is not None and frame < 1:
        raise ConfigError(f"--frame must be at least 1, the first frame, got {frame}")


def parse_structure(text: str | None) -> tuple[int, ...]:
    """``--structure``: values of a mask that are the structure, with commas between them.

    Raises:
        ConfigError: they are no whole numbers from 1.
    """
    if text is None:
        return ()
    values = tuple(int(part) for part in text.split(",") if part.strip().isdecimal())
    if not values or len(values) < len(text.split(",")) or min(values) < 1:
        raise ConfigError(f"--structure must be whole numbers from 1, such as 1,2, got {text!r:.100}")
    return values


def open_source(
    spec: str,
    *,
    grades: Grades,
    need: int,
    seed: int,
    columns: str | None = None,
    structure: str | None = None,
    frame: int | None = None,
    by_site: bool = False,
    task: str | None = None,
) -> Source:
    """Open a data source; reads its index, no picture.

    Args:
        spec: NAME or NAME:PATH.
        grades: "binary" or "all", see ``DataConfig.classes``.
        columns: ``--columns``, see ``DataConfig.columns``.
        structure: ``--structure``, likewise.
        frame: ``--frame``, likewise.
        by_site: see ``OpenRequest.by_site``.
        task: what is to be learnt; None for what the source is for.
        need: How many examples the run wants in all: phantoms list twice as many.
        seed: The run's public seed; phantoms are drawn from it.

    Raises:
        ConfigError: See ``split_spec``; or a package that the source needs is not installed.
        DataError: The path does not exist or does not hold what it should, or the task cannot be learnt from it.
    """
    entry, argument = split_spec(spec)
    wanted = entry.task if task is None else Task(task)
    path = Path(argument or ".").expanduser()
    if not path.exists():
        raise DataError(f"{entry.name}: {path} does not exist; give the path of the downloaded data")
    if entry.argument == "PATH" and entry.name in SOURCES and not path.is_dir():
        raise DataError(f"{entry.name}: {path} is a file; give the folder that holds the data")
    with counted_warnings() as said:
        request = OpenRequest(
            path=path,
            grades="all" if wanted is Task.ORDINAL else grades,
            need=need,
            seed=seed,
            columns=parse_columns(columns),
            structure=parse_structure(structure),
            frame=frame,
            by_site=by_site,
        )
        source = entry.open(request)
    if wanted is Task.ORDINAL and source.task is Task.CLASSIFICATION:
        source.task = wanted  # its classes are grades, in their order
    if source.task is not wanted:
        raise DataError(
            f"{spec}: these labels are for {source.task}, and the run is for {wanted}; use --task {source.task}, or "
            "other data"
        )
    source.notes.extend(said.notes())
    return source
