"""Fixtures of the data tests: real images where the machine has them, and small pictures to draw."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with idrid, lungs and mnist10k."""
    folder = os.environ.get("SUTURE_DATA")
    if not folder:
        pytest.skip("SUTURE_DATA is unset: it names the folder of the real images")
    return Path(folder)


def save_png(path: Path, pixels: np.ndarray) -> Path:
    """Write an array as a picture, making the folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def png():
    """A function that writes an array as a picture."""
    return save_png
