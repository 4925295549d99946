"""Small data sets of two kinds of picture, striped across and down, as hospitals keep them: folders, a table, DICOM files."""

from pathlib import Path

import numpy as np
from PIL import Image


def pictures(seed: int, number: int, size: int = 32) -> list[tuple[bool, np.ndarray]]:
    """Stripes and noise, (size, size) bytes, in turn across and down: whether they go across, and the picture.

    Not bright and dark: deep greys are stretched over each picture's own range.
    """
    rng = np.random.default_rng(seed)
    stripes = np.where(np.arange(size) // 4 % 2, 200, 20)
    made = []
    for place in range(number):
        clean = np.tile(stripes, (size, 1))
        noise = rng.integers(0, 50, (size, size))
        made.append((place % 2 == 0, ((clean.T if place % 2 == 0 else clean) + noise).astype(np.uint8)))
    return made


def goes_across(pixels: np.ndarray) -> bool:
    """Whether a picture's stripes go across: rows differ more than columns."""
    return bool(pixels.mean(axis=1).std() > pixels.mean(axis=0).std())


def write_folders(path: Path, names: dict[bool, list[str]], seed: int, number: int) -> Path:
    """PATH/CLASS/IMAGE; ``names`` are the folders of those across and of those down, which take them in turn."""
    for place, (across, pixels) in enumerate(pictures(seed, number)):
        folder = path / names[across][place // 2 % len(names[across])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"patient{place}.png")
    return path


def write_table(path: Path, seed: int, number: int) -> Path:
    """The layout of kaggle-dr: those across are of level 2."""
    (path / "images").mkdir(parents=True)
    rows = ["image,level"]
    for place, (across, pixels) in enumerate(pictures(seed, number)):
        Image.fromarray(np.dstack([pixels] * 3)).save(path / "images" / f"{place}_left.png")
        rows.append(f"{place}_left,{2 * across}")
    (path / "trainLabels.csv").write_text("\n".join(rows) + "\n")
    return path


def write_dicom_folder(path: Path, seed: int, number: int) -> Path:
    """DICOM files and their CSV: those across are of level 1."""
    rows = ["image,level"]
    for place, (across, pixels) in enumerate(pictures(seed, number)):
        write_dicom(path / f"x{place}.dcm", pixels.astype(np.uint16), PatientID=f"p{place}")
        rows.append(f"x{place},{int(across)}")
    (path / "labels.csv").write_text("\n".join(rows) + "\n")
    return path


def write_dicom(path, pixels, *, photometric="MONOCHROME2", **elements):
    """A computed radiograph of 16-bit pixels, written by pydicom."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.Modality, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = "CR", 1, photometric
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
