"""What libraries say while they read files is counted by library, and shown to nobody."""

import logging
import warnings

import numpy as np
import pytest
from PIL import Image

from suture.runtime.data.library_warnings import counted_warnings
from suture.runtime.data.pictures import read_picture
from suture.runtime.errors import DataError


def test_warnings_of_both_kinds_are_counted_and_not_shown(capfd, caplog):
    """Oracle: how many were given; both streams are empty, and nothing reached the root logger."""
    with counted_warnings() as said:
        warnings.warn_explicit("Invalid value for VR", UserWarning, "/x/pydicom/valuerep.py", 1)
        warnings.warn_explicit("Invalid value for VR", UserWarning, "/x/pydicom/valuerep.py", 1)
        warnings.warn_explicit("too big", UserWarning, "/x/PIL/Image.py", 1)
        logging.getLogger("pydicom").warning("of anna's image")
        logging.getLogger("pydicom").info("not a warning")
    assert said.counts == {"pydicom": 3, "PIL": 1}
    assert said.note().startswith("4 warnings of the libraries that read the files (1 PIL, 3 pydicom), whose")
    told = capfd.readouterr()
    assert told.out == told.err == "" and not caplog.records


def test_everything_is_as_before_afterwards():
    """Oracle: the logger's own fields, also when reading has failed."""
    logger = logging.getLogger("pydicom")
    before = (logger.propagate, list(logger.handlers), list(warnings.filters))
    with pytest.raises(ValueError), counted_warnings() as said:
        raise ValueError
    assert (logger.propagate, list(logger.handlers), list(warnings.filters)) == before
    assert said.note() == ""


def test_a_picture_of_values_that_are_not_finite_is_named_and_numpy_says_nothing(tmp_path):
    """Oracle: the message; warnings are errors here."""
    pixels = np.ones((8, 8), dtype=np.float32)
    pixels[3, 3] = np.nan
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            DataError, match="cannot read image .*a.tif: ValueError: some of its pixels are not finite"
        ):
            read_picture(tmp_path / "a.tif", 8, 1)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp", "webp"])
@pytest.mark.parametrize("keep", [0, 7, 60, 0.5, 0.9])
def test_a_picture_that_was_cut_short_is_named_whatever_pillow_raises(tmp_path, kind, keep):
    """Oracle: it is a DataError with the file's name and one line, or the picture (BMP has no checksum)."""
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 or keep == 0 else keep * len(content))])
    with (
        counted_warnings(),
        pytest.raises(DataError, match=f"cannot read image .*a.{kind}: .*; remove or") as raised,
    ):
        read_picture(path, 16, 3)
    assert "\n" not in str(raised.value)
