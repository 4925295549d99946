"""DICOM: rescale, window, MONOCHROME1, patients, and what is refused."""

import sys

import numpy as np
import pytest
from small_files import write_dicom

from suture.runtime.data.dicom import open_dicom
from suture.runtime.data.dicom_pixels import read_dicom
from suture.runtime.errors import ConfigError, DataError

pydicom = pytest.importorskip("pydicom")


RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def test_without_a_window_the_whole_range_is_shown(tmp_path):
    grey = read_dicom(write_dicom(tmp_path / "a.dcm", RAMP))
    assert grey.dtype == np.uint8
    assert np.array_equal(grey.ravel(), np.arange(256))


def test_monochrome1_is_turned_round(tmp_path):
    grey = read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, photometric="MONOCHROME1"))
    assert np.array_equal(grey.ravel(), 255 - np.arange(256))


def test_slope_intercept_and_window_are_applied(tmp_path):
    """Oracle: DICOM PS3.3 C.11.2.1.2, the linear window, by hand: below it black, above it white."""
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, RescaleSlope="2", RescaleIntercept="-1000", WindowCenter="1000",
        WindowWidth="1001",
    )  # fmt: skip
    grey = read_dicom(path).ravel().astype(float)
    values = RAMP.ravel() * 2.0 - 1000.0
    expected = np.clip((values - 999.5) / 1000.0 + 0.5, 0, 1) * 255
    assert np.abs(grey - expected).max() <= 1.0


def test_a_folder_with_a_table_is_a_source(tmp_path):
    for name in ("1_left", "1_right", "2_left", "x_test"):
        write_dicom(tmp_path / "deep" / "er" / f"{name}.dcm", RAMP)
    (tmp_path / "labels.csv").write_text(
        "row,image,level,site,patient\n0,1_left,2,north,\n1,1_right.dcm,0,north,\n2,2_left,0,south,anna\n"
        "3,x_test,1,south,\n4,gone,1,south,\n"
    )
    source = open_dicom(tmp_path, grades="binary")
    assert [e.patient for e in source.examples] == ["1", "1", "anna", "x_test"]
    assert [e.label for e in source.examples] == [1, 0, 0, 1]
    assert [e.site for e in source.examples] == ["north", "north", "south", "south"]
    assert [e.official_test for e in source.examples] == [False, False, False, True]
    assert source.notes == ["skipped 1 of 5 rows without an image file"]
    assert open_dicom(tmp_path, grades="all").classes == ("grade 0", "grade 1", "grade 2")


def test_a_colour_image_and_a_damaged_file_are_named(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, photometric="RGB")
    with pytest.raises(
        DataError, match=r"cannot read image .*a\.dcm: .*is RGB, only MONOCHROME1 and 2.*remove"
    ):
        read_dicom(path)
    path.write_bytes(b"not a dicom file")
    with pytest.raises(DataError, match=r"cannot read image .*a\.dcm: .*; remove or replace it"):
        read_dicom(path)
    short = write_dicom(tmp_path / "b.dcm", RAMP, PixelData=b"\0\0")
    with pytest.raises(DataError, match=r"cannot read image .*b\.dcm"):
        read_dicom(short)


def test_pydicoms_own_test_file_is_read():
    """A real CT of 128 x 128 pixels with a negative intercept, shipped with pydicom."""
    from pydicom.data import get_testdata_file

    grey = read_dicom(pydicom.misc.Path(str(get_testdata_file("CT_small.dcm"))))
    assert grey.shape == (128, 128) and grey.min() == 0 and grey.max() == 255


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "must hold one CSV with the columns image and level, found 0"),
        ({"a.csv": "image,level\n", "b.csv": "image,level\n"}, "found 2; move the others away"),
        ({"a.csv": "file,level\n"}, r"a\.csv has no column 'image'; its columns are: file, level"),
        ({"a.csv": "image,level\nx,1\n"}, "none of the 1 images of a.csv is there as IMAGE.dcm"),
    ],
)
def test_a_folder_that_is_not_one_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        open_dicom(tmp_path, grades="binary")


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ConfigError, match=r"needs pydicom: pip install suture\[dicom\]"):
        open_dicom(tmp_path, grades="binary")


# Patients, and what pydicom says -----------------------------------------------------------------------


def folder_of(path, ids, rows=None):
    """A folder of one file for each PatientID (None: without one), and its CSV."""
    for number, patient in enumerate(ids):
        write_dicom(
            path / f"x{number}.dcm", RAMP + number, **({} if patient is None else {"PatientID": patient})
        )
    rows = rows or [f"x{number},{number % 2}" for number in range(len(ids))]
    (path / "labels.csv").write_text("\n".join(["image,level", *rows]) + "\n")
    return path


def test_without_a_column_patients_are_those_of_the_files_headers(tmp_path):
    """Oracle: the PatientIDs that were written; a file without one is its own patient's, by name."""
    source = open_dicom(folder_of(tmp_path, ["anna", "bert", "anna", None]), grades="binary")
    assert [one.patient for one in source.examples] == ["anna", "bert", "anna", "x3"]
    assert source.notes == []


def test_a_patient_id_that_all_files_share_says_nothing(tmp_path):
    """Oracle: the files' names, and the note."""
    source = open_dicom(folder_of(tmp_path, ["ANONYMOUS"] * 4), grades="binary")
    assert [one.patient for one in source.examples] == ["x0", "x1", "x2", "x3"]
    assert source.notes == [
        "all 4 files have the same PatientID, which says nothing; patients are told by file names"
    ]


def test_a_file_name_that_is_there_twice_is_refused(tmp_path):
    """Oracle: the message; which of the two a row means nobody can tell."""
    folder_of(tmp_path, ["anna", "bert"])
    write_dicom(tmp_path / "more" / "x1.dcm", RAMP)
    with pytest.raises(
        DataError, match="holds 'x1.dcm' twice, in different folders; remove one of the copies"
    ):
        open_dicom(tmp_path, grades="binary")


def test_what_pydicom_warns_of_is_counted_and_not_shown(tmp_path, capfd, caplog):
    """Oracle: both streams and the log hold nothing of pydicom's; without the counting it warns and quotes the value."""
    from suture.runtime.data.registry import open_source

    folder_of(tmp_path, [f"{'anna' * 15}{number:04}" for number in range(4)])
    for file in tmp_path.glob("*.dcm"):  # longer than a value of this kind may be
        content = file.read_bytes()
        assert content.count(b"LO\x40\x00anna") == 1
        file.write_bytes(content.replace(b"LO\x40\x00anna", b"LO\x44\x00annaanna"))
    with pytest.warns(UserWarning, match="exceeds the maximum length of 64"):
        open_dicom(tmp_path, grades="binary")
    capfd.readouterr(), caplog.clear()
    with caplog.at_level("INFO"):
        source = open_source(f"dicom:{tmp_path}", grades="binary", need=0, seed=0)
    told = capfd.readouterr()
    assert told.out == told.err == "" and not caplog.records
    (note,) = source.notes
    assert (
        " warnings of the libraries that read the files (" in note
        and "pydicom)" in note
        and "anna" not in note
    )
    assert len({one.patient for one in source.examples}) == 4
