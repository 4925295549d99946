"""Kaggle "Chest Xray Masks and Labels": chest X-rays of two hospitals with lung masks.

    PATH/[data/]Lung Segmentation/CXR_png/MCUCXR_0001_0.png       masks/MCUCXR_0001_0.png       Montgomery
    PATH/[data/]Lung Segmentation/CXR_png/CHNCXR_0001_0.png       masks/CHNCXR_0001_0_mask.png  Shenzhen

Pairs are made from the masks' side: images without a mask (and the folder test/) are left out. The site is
the name's prefix. An index.csv in PATH may name patients (columns image, patient and perhaps site).
"""

from pathlib import Path

from torch import Tensor

from suture.runtime.data.patients import patient_of
from suture.runtime.data.pictures import file_digest, is_picture, picture_size, read_mask, read_picture
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.data.tables import Columns, read_columns
from suture.runtime.errors import DataError


class KaggleCxr(Source):
    """A segmentation source of image and mask files."""

    def __init__(self, examples: list[Example], pairs: list[tuple[Path, Path]], notes: list[str]) -> None:
        """Take the examples and, in the same order, (image, mask)."""
        self.pairs = pairs
        super().__init__("kaggle-cxr", Task.SEGMENTATION, ("background", "lung"), examples, notes=notes)

    def read(self, index: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
        """Decode a pair; see ``Source.read``.

        Raises:
            DataError: A file cannot be read, or the two differ in size.
        """
        image, mask = self.pairs[index]
        sizes = picture_size(image), picture_size(mask)
        if sizes[0] != sizes[1]:
            raise DataError(
                f"mask {mask} is {sizes[1][0]}x{sizes[1][1]} but its image {image.name} is "
                f"{sizes[0][0]}x{sizes[0][1]}; replace the mask by one of the image's size"
            )
        return read_picture(image, size, channels), read_mask(mask, size)

    def dimensions(self, index: int) -> tuple[int, int]:
        """See ``Source.dimensions``."""
        return picture_size(self.pairs[index][0])

    def content_digest(self, index: int) -> bytes:
        """See ``Source.content_digest``."""
        return file_digest(self.pairs[index][0])


def open_kaggle_cxr(path: Path, *, columns: Columns | None = None, structure: tuple[int, ...] = ()) -> Source:
    """Index the folder.

    Raises:
        DataError: No folders CXR_png and masks, or no pair in them.
    """
    root = _find_root(path)
    images = {file.stem: file for file in sorted((root / "CXR_png").iterdir()) if is_picture(file)}
    table = _find_table(path, root)
    rows = read_columns(table, ("image",), ("patient", "site"), columns) if table else []
    known = {Path(row["image"]).stem: row for row in rows}
    examples, pairs, lonely = [], [], 0
    for mask in sorted((root / "masks").iterdir()):
        if not is_picture(mask):
            continue
        stem = mask.stem if mask.stem in images else mask.stem.removesuffix("_mask")
        if stem not in images:
            lonely += 1
            continue
        row = known.get(stem, {"patient": "", "site": ""})
        examples.append(
            Example(
                key=stem,
                patient=row["patient"] or patient_of(stem),
                label=None,
                site=row["site"] or stem.partition("_")[0],
            )
        )
        pairs.append((images[stem], mask))
    if not pairs:
        raise DataError(f"{root}: no mask in masks/ has its image in CXR_png/; unpack the download again")
    notes = []
    if lonely:
        notes.append(f"skipped {lonely} masks without an image")
    if len(images) > len(pairs):
        notes.append(f"left out {len(images) - len(pairs)} images without a mask")
    return KaggleCxr(examples, pairs, notes)


def _find_root(path: Path) -> Path:
    for root in (path, path / "Lung Segmentation", path / "data" / "Lung Segmentation"):
        if (root / "CXR_png").is_dir() and (root / "masks").is_dir():
            return root
    raise DataError(
        f"{path} has no folders CXR_png and masks, nor 'Lung Segmentation' or 'data/Lung Segmentation' with "
        "them; give the folder of the unpacked download"
    )


def _find_table(path: Path, root: Path) -> Path | None:
    """The index.csv in PATH or, where PATH is deeper, beside the data."""
    candidates = (path / "index.csv", root / "index.csv", root.parent / "index.csv")
    return next((table for table in candidates if table.is_file()), None)
