"""A MedMNIST-style npz file: {train,val,test}_{images,labels}, grey or RGB, 28 to 224 pixels.

A label is a whole number, written as one or as a float; those that occur are the classes, whatever the first of them
is. Labels (n, K) of 0 and 1 are findings, of which an image may have several. The test part is used for testing only;
val goes with train, for the partition holds out validation images itself.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from suture.runtime.data.arrays import ArraySource
from suture.runtime.data.source import Source
from suture.runtime.errors import DataError
from suture.runtime.host.unpacking import zip_bomb

_SPLITS = ("train", "val", "test")
_CHEST = (
    "atelectasis cardiomegaly effusion infiltration mass nodule pneumonia pneumothorax consolidation edema emphysema "
    "fibrosis pleural hernia"
).split()
"""The findings of ChestMNIST in their order (Yang et al., Scientific Data 2023), which no npz names."""


def open_medmnist(path: Path) -> Source:
    """Read the file.

    Raises:
        DataError: Not an npz, or an array missing or of the wrong shape.
    """
    try:
        if reason := zip_bomb(path):
            raise DataError(f"cannot read {path}: {reason}; give MedMNIST's .npz file")
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array, not an npz; give MedMNIST's .npz file")
        with archive:
            parts = [_read_part(archive, split, path) for split in _SPLITS if _present(archive, split)]
            names = archive.files
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for a file that is none of theirs
        raise DataError(
            f"cannot read {path}: it is no npz of plain arrays ({_reason(error)}); give MedMNIST's .npz file"
        ) from error
    if "train" not in [split for split, _, _ in parts]:
        raise DataError(
            f"{path} has no arrays train_images and train_labels; it holds: {', '.join(names) or 'nothing'}"
        )
    widths = {labels.shape[1:] for _, _, labels in parts}
    if len(widths) > 1:
        raise DataError(f"{path}: its parts have labels of different widths; fetch the file again")
    if widths != {()}:
        number = parts[0][2].shape[1]
        is_known = path.name.startswith("chestmnist") and number == len(_CHEST)
        findings = _CHEST if is_known else [f"finding {k}" for k in range(number)]
        return ArraySource("medmnist", findings, parts, mirror=False)
    classes = np.unique(np.concatenate([labels for _, _, labels in parts]))
    if classes.size and classes[0] < 0:
        raise DataError(f"{path}: an image has label {classes[0]}; labels must be whole numbers from 0")
    parts = [(split, images, np.searchsorted(classes, labels)) for split, images, labels in parts]
    return ArraySource("medmnist", [str(label) for label in classes], parts, mirror=False)


def _reason(error: Exception) -> str:
    """What numpy and zipfile say of the file, without their advice."""
    said = "".join(str(error).splitlines()[:1])
    if "allow_pickle" in said or "pickled" in said:
        return "it holds Python objects, which are never unpickled; save numbers"
    return f"{type(error).__name__}: {said:.100}" if said else type(error).__name__


def _present(archive: np.lib.npyio.NpzFile, split: str) -> bool:
    return f"{split}_images" in archive.files and f"{split}_labels" in archive.files


def _read_part(
    archive: np.lib.npyio.NpzFile, split: str, path: Path
) -> tuple[str, NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = archive[f"{split}_images"], archive[f"{split}_labels"]
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    colour = images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (images.ndim == 3 or colour) or (len(images) and not images.size):
        raise DataError(
            f"{path}: {split}_images must be uint8 (n, H, W), (n, H, W, 1) or (n, H, W, 3), got {images.dtype} "
            f"{images.shape}; 3D and float sets are not supported: save 0 to 255 as uint8, colours last"
        )
    if len(labels) != len(images):
        raise DataError(
            f"{path}: {len(images)} {split} images but {len(labels)} labels; fetch the file again"
        )
    if labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels)):
        labels = labels.astype(np.int64)
    several = labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iub"
    if several and np.isin(labels, (0, 1)).all():
        return split, images, labels.astype(np.int64)
    if labels.size != len(images) or labels.dtype.kind not in "iub":
        raise DataError(
            f"{path}: {split}_labels must be one whole number an image, got {labels.dtype} {labels.shape}; where an "
            "image may have several findings, a 0 or a 1 for each"
        )
    return split, images, labels.reshape(-1).astype(np.int64)
