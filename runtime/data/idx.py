"""MNIST and Fashion-MNIST: four IDX files, raw or compressed, nested as torchvision lays them out or flat.

    PATH/MNIST/raw/train-images-idx3-ubyte      PATH/FashionMNIST/raw/...      PATH/train-images-idx3-ubyte.gz
    PATH/train-images.idx3-ubyte                PATH/train-images-idx3-ubyte/train-images-idx3-ubyte

The last line is Kaggle's. Whether a file is compressed is told by its content: browsers unpack a .gz and keep its name.
The second form is Debian's dataset-fashion-mnist (/usr/share/datasets/fashion-mnist). The t10k files are the
official test set.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from suture.runtime.data.arrays import ArraySource
from suture.runtime.data.source import Source
from suture.runtime.errors import DataError
from suture.runtime.host.unpacking import bomb, most_bytes

_DIGITS = tuple(str(digit) for digit in range(10))
_CLOTHES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_UNSIGNED_BYTE = 8
_GZIP = b"\x1f\x8b"


def open_mnist(path: Path) -> Source:
    """Read MNIST; a mirrored digit is none, so no flips.

    Raises:
        DataError: A file is missing or damaged.
    """
    return _open(path, "mnist", "MNIST", _DIGITS, mirror=False)


def open_fashion_mnist(path: Path) -> Source:
    """Read Fashion-MNIST.

    Raises:
        DataError: A file is missing or damaged.
    """
    return _open(path, "fashion-mnist", "FashionMNIST", _CLOTHES, mirror=True)


def _open(path: Path, name: str, folder: str, classes: tuple[str, ...], *, mirror: bool) -> Source:
    parts = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images_file = _find(path, folder, f"{prefix}-images-idx3-ubyte", name)
        labels_file = _find(path, folder, f"{prefix}-labels-idx1-ubyte", name)
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        if len(images) != len(labels):
            raise DataError(
                f"{images_file} holds {len(images)} images but {labels_file.name} {len(labels)} labels; "
                "fetch both again"
            )
        parts.append((split, images, labels.astype(np.int64)))
    return ArraySource(name, classes, parts, mirror=mirror)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes.

    Args:
        path: Raw or gzip, whatever it is called.
        dimensions: 3 for images, 1 for labels.

    Raises:
        DataError: Not such a file, or cut short.
    """
    header = 4 + 4 * dimensions
    try:
        most = most_bytes(path)
        with path.open("rb") as raw:
            start = raw.read(2)
        zipped = start == _GZIP or (path.suffix == ".gz" and start != b"\0\0")
        with gzip.open(path) if zipped else path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; fetch it again") from error
    if len(content) > most:
        raise DataError(f"cannot read {path}: {bomb(path, len(content))}; fetch it again")
    if len(content) < header or content[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise DataError(f"{path} is not an IDX file of bytes with {dimensions} dimensions; fetch it again")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"{path} holds {len(content) - header} bytes but its header says {'x'.join(map(str, shape))}; "
            "fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _find(path: Path, folder: str, file: str, name: str) -> Path:
    for parent in (path, path / folder / "raw", path / "raw", path / folder):
        spelt = (file, file.replace("-idx", ".idx"))
        for inner in (parent, *(parent / f"{name}{end}" for name in spelt for end in ("", ".gz"))):
            for candidate in (inner / f"{name}{end}" for name in spelt for end in ("", ".gz")):
                if candidate.is_file():
                    return candidate
    raise DataError(
        f"{name}: neither {file} nor {file}.gz lies in {path} or {path / folder / 'raw'}, with a dot before idx "
        "neither; give the folder of the four IDX files"
    )
