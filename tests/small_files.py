"""Small data sets of two kinds of picture, bright and dark, as hospitals keep them: folders, a table, DICOM files."""

from pathlib import Path

import numpy as np
from PIL import Image


def pictures(seed: int, number: int, size: int = 32) -> list[tuple[bool, np.ndarray]]:
    """Noise of (size, size) bytes, in turn bright and dark: whether it is bright, and the picture."""
    rng = np.random.default_rng(seed)
    return [
        (bright, (rng.integers(0, 96, (size, size)) + (150 if bright else 0)).astype(np.uint8))
        for bright in (number % 2 == 0 for number in range(number))
    ]


def write_folders(path: Path, names: dict[bool, list[str]], seed: int, number: int) -> Path:
    """PATH/CLASS/IMAGE; ``names`` are the folders of bright and of dark ones, which take them in turn."""
    for place, (bright, pixels) in enumerate(pictures(seed, number)):
        folder = path / names[bright][place // 2 % len(names[bright])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"patient{place}.png")
    return path


def write_table(path: Path, seed: int, number: int) -> Path:
    """The layout of kaggle-dr: bright ones are of level 2."""
    (path / "images").mkdir(parents=True)
    rows = ["image,level"]
    for place, (bright, pixels) in enumerate(pictures(seed, number)):
        Image.fromarray(np.dstack([pixels] * 3)).save(path / "images" / f"{place}_left.png")
        rows.append(f"{place}_left,{2 * bright}")
    (path / "trainLabels.csv").write_text("\n".join(rows) + "\n")
    return path


def write_dicom_folder(path: Path, seed: int, number: int) -> Path:
    """DICOM files and their CSV: bright ones are of level 1."""
    rows = ["image,level"]
    for place, (bright, pixels) in enumerate(pictures(seed, number)):
        # A window, so that a file is not stretched over its own range.
        window = {"WindowCenter": "128", "WindowWidth": "256"}
        write_dicom(path / f"x{place}.dcm", pixels.astype(np.uint16), PatientID=f"p{place}", **window)
        rows.append(f"x{place},{int(bright)}")
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
