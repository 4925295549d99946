"""DICOM: rescale, window, MONOCHROME1, patients, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
from small_files import write_dicom

from suture.runtime.data.dicom import open_dicom
from suture.runtime.data.dicom_pixels import read_dicom
from suture.runtime.data.image_folder import open_image_folder
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
        (
            {"a.csv": "image,level\n", "b.csv": "image,level\n"},
            "found 2: 'a.csv', 'b.csv'; move the others away",
        ),
        ({"a.csv": "file,level\n"}, r"a\.csv has no column 'image'; its columns are: file, level"),
        ({"a.csv": "image,level\nx,1\n"}, "none of the 1 images of a.csv is there; unpack the images"),
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


# How the values are shown ------------------------------------------------------------------------------


FULL = {"WindowCenter": "2048", "WindowWidth": "4096"}


def test_after_a_window_nothing_is_stretched(tmp_path):
    """Oracle: 8 bits under a window of 0..255 are shown as they are."""
    dim = (RAMP // 64 + 40).astype(np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm", dim, BitsStored=8, HighBit=7, WindowCenter="128", WindowWidth="256"
    )
    assert np.array_equal(read_dicom(path), dim)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_window_of_all_stored_bits_shows_their_upper_eight(tmp_path, bits, photometric):
    """Oracle: a shift of bits. Both polarities give the same picture, though the values do not end at the window's ends."""
    shift = bits - 8
    stored = (np.arange(256).reshape(16, 16) << shift).astype(np.uint16)
    if photometric == "MONOCHROME1":
        stored = (255 << shift) - stored
    window = {"WindowCenter": str(2 ** (bits - 1)), "WindowWidth": str(2**bits)}
    path = write_dicom(
        tmp_path / "a.dcm", stored, photometric=photometric, BitsStored=bits, HighBit=bits - 1, **window
    )
    assert np.array_equal(read_dicom(path).ravel(), np.arange(256))


@pytest.mark.parametrize(
    ("photometric", "elements"),
    [
        ("MONOCHROME1", {}),
        ("MONOCHROME1", {"PresentationLUTShape": "INVERSE"}),
        ("MONOCHROME2", {"PresentationLUTShape": "INVERSE"}),
        ("MONOCHROME2", {"RescaleSlope": "-1", "RescaleIntercept": "4080"}),
        ("MONOCHROME1", FULL),
        ("MONOCHROME2", {"RescaleSlope": "-1", "RescaleIntercept": "4095"} | FULL),
    ],
)
def test_polarity_is_turned_once_however_it_is_written(tmp_path, photometric, elements):
    """Oracle: the ramp, of which the negative is stored; a window that is a little wider moves it by one step."""
    path = write_dicom(
        tmp_path / "a.dcm", 4080 - RAMP, photometric=photometric, BitsStored=12, HighBit=11, **elements
    )
    assert np.abs(read_dicom(path).ravel().astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    "elements",
    [{"PixelPaddingValue": 65535}, {"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 65535}],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_sets_no_range(tmp_path, elements, photometric):
    pixels = RAMP.copy()
    pixels[0] = 65535
    grey = read_dicom(write_dicom(tmp_path / "a.dcm", pixels, photometric=photometric, **elements))
    assert not grey[0].any() and set(grey[1:].ravel()) >= {0, 255}


def test_bits_that_are_not_stored_are_no_picture(tmp_path):
    """Oracle: an old overlay in the upper bits, which must not show."""
    path = write_dicom(tmp_path / "a.dcm", RAMP | 0x4000, BitsStored=12, HighBit=11)
    assert np.array_equal(read_dicom(path).ravel(), np.arange(256))


def test_jpeg_2000_keeps_its_stored_bits(tmp_path):
    """Oracle: pydicom's own pair of one picture, native and compressed."""
    pytest.importorskip("openjpeg")
    from pydicom.data import get_testdata_file

    native, squeezed = (
        str(get_testdata_file(name)) for name in ("MR_small.dcm", "MR_small_jp2klossless.dcm")
    )
    assert np.array_equal(read_dicom(Path(native)), read_dicom(Path(squeezed)))


@pytest.mark.parametrize(("depth", "entries"), [(8, 4096), (12, 4096), (16, 4096)])
def test_a_voi_lut_is_applied_at_its_own_depth(tmp_path, depth, entries):
    """Oracle: the table by hand, here the square root."""
    from pydicom.dataset import Dataset

    lut, top = Dataset(), 2**depth - 1
    table = np.round(np.sqrt(np.arange(entries) / (entries - 1)) * top).astype(int)
    lut.LUTDescriptor, lut.LUTData = [entries, 0, depth], table.tolist()
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    grey = read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[lut]))
    assert np.abs(grey.ravel() - table[RAMP.ravel()] * 255.0 / top).max() <= 1


@pytest.mark.parametrize("depth", [8, 12, 16])
@pytest.mark.parametrize("narrow", [False, True], ids=["all greys", "some greys"])
def test_a_presentation_lut_is_applied_to_what_the_window_gives(tmp_path, depth, narrow):
    """Oracle: the table by hand, a falling square; also where the picture holds neither black nor white."""
    from pydicom.dataset import Dataset

    lut, top = Dataset(), 2**depth - 1
    table = np.round((1 - np.arange(256) / 255) ** 2 * top).astype(int)
    lut.LUTDescriptor, lut.LUTData = [256, 0, depth], table.tolist()
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    greys = RAMP // 16 if not narrow else RAMP // 64 + 40
    window = {"WindowCenter": "128", "WindowWidth": "256", "BitsStored": 8, "HighBit": 7}
    path = write_dicom(tmp_path / "a.dcm", greys.astype(np.uint16), PresentationLUTSequence=[lut], **window)
    assert np.abs(read_dicom(path).ravel() - table[greys.ravel()] * 255.0 / top).max() <= 3


def test_of_several_frames_the_representative_one_is_read_and_said(tmp_path):
    from suture.runtime.data.library_warnings import counted_warnings

    frames = np.stack([RAMP, 4080 - RAMP])
    for number, expected in ((1, np.arange(256)), (2, 255 - np.arange(256))):
        path = write_dicom(tmp_path / "a.dcm", RAMP, NumberOfFrames="2", RepresentativeFrameNumber=number,
                           PixelData=frames.astype("<u2").tobytes())  # fmt: skip
        with counted_warnings() as said:
            assert np.array_equal(read_dicom(path).ravel(), expected)
        assert said.notes() == ["1 pictures: hold several frames; the representative or first one is used"]


def test_burned_in_text_is_warned_of(tmp_path):
    from suture.runtime.data.library_warnings import counted_warnings

    path = write_dicom(tmp_path / "a.dcm", RAMP, BurnedInAnnotation="YES")
    with counted_warnings() as said:
        read_dicom(path)
    assert said.notes() == [
        "1 pictures: say that text is burned into them; a name in the pixels is in the smashed data"
    ]


# Which file a row means --------------------------------------------------------------------------------


def series(path, num=6):
    """Folders of series that hold equal file names, without ending; the SOPInstanceUIDs by folder."""
    uids = {}
    for number in range(num):
        file = write_dicom(path / f"P{number}" / "IM1", RAMP + number, StudyInstanceUID=f"1.2.3.4.{number}")
        uids[f"P{number}"] = str(pydicom.dcmread(file).SOPInstanceUID)
    return uids


def table(path, heading, rows):
    (path / "labels.csv").write_text("\n".join([heading, *rows]) + "\n")
    return open_dicom(path, grades="binary")


@pytest.mark.parametrize(
    "how", ["path", "SOPInstanceUID", "StudyInstanceUID", "a UID for a name", "name and study"]
)
def test_files_of_one_name_are_told_apart(tmp_path, how):
    """Oracle: the folder in which each was written."""
    uids = series(tmp_path)
    heading, row = {
        "path": ("image,level", "P{0}/IM1,{1}"),
        "SOPInstanceUID": ("SOPInstanceUID,level", "{2},{1}"),
        "StudyInstanceUID": ("StudyInstanceUID,level", "1.2.3.4.{0},{1}"),
        "a UID for a name": ("image,level", "{2},{1}"),
        "name and study": ("image,StudyInstanceUID,level", "IM1,1.2.3.4.{0},{1}"),
    }[how]
    source = table(tmp_path, heading, [row.format(n, n % 2, uids[f"P{n}"]) for n in reversed(range(6))])
    assert [file.parent.name for file in source.files] == [f"P{n}" for n in reversed(range(6))]
    assert [one.label for one in source.examples] == [n % 2 for n in reversed(range(6))]
    assert len({one.patient for one in source.examples}) == 6


def test_one_name_in_several_series_is_ambiguous(tmp_path):
    series(tmp_path)
    with pytest.raises(DataError, match="holds 'IM1' twice, in different folders"):
        table(tmp_path, "image,level", ["IM1,1"])


def test_patients_of_the_table_win(tmp_path):
    for number in range(4):
        write_dicom(tmp_path / f"x{number}.DCM", RAMP + number, PatientID="header")
    source = table(tmp_path, "image,level,PatientID", [f"x{n}.dcm,{n % 2},p{n // 2}" for n in range(4)])
    assert [one.patient for one in source.examples] == ["p0", "p0", "p1", "p1"]


def test_folders_of_classes_of_dicom_files_need_no_table(tmp_path):
    """Oracle: folders and headers; the report among them is no picture."""
    for number in range(4):
        write_dicom(
            tmp_path / ("ill", "well")[number % 2] / f"IM{number}", RAMP + number, PatientID=f"p{number // 2}"
        )
    for opened in (open_dicom(tmp_path, grades="binary"), open_image_folder(tmp_path)):
        assert opened.classes == ("ill", "well")
        assert sorted((one.patient, one.label) for one in opened.examples) == [
            ("p0", 0),
            ("p0", 1),
            ("p1", 0),
            ("p1", 1),
        ]
    assert open_dicom(tmp_path, grades="binary").name == "dicom"
