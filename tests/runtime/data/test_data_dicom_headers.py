"""DICOM headers as devices write them, what would fill the memory, and a frame that somebody chose."""

import numpy as np
import pytest
from small_files import write_dicom

from suture.runtime.data.dicom_pixels import read_dicom
from suture.runtime.errors import ConfigError, DataError

pydicom = pytest.importorskip("pydicom")

RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
FULL = {"WindowCenter": "2048", "WindowWidth": "4096"}


def said_of(path):
    """The pixels, and what is said of them."""
    from suture.runtime.data.library_warnings import counted_warnings

    with counted_warnings() as said:
        grey = read_dicom(path)
    return grey.ravel().astype(int), said.notes()


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": "0", "WindowWidth": "0"},
        {"WindowCenter": "100", "WindowWidth": "-5"},
        {"WindowCenter": "100", "WindowWidth": "0.5"},
        {"WindowCenter": "100", "WindowWidth": "0", "VOILUTFunction": "SIGMOID"},
    ],
)
def test_a_window_of_no_width_is_none_and_is_said(tmp_path, elements):
    """Oracle: the same file without a window."""
    grey, notes = said_of(write_dicom(tmp_path / "a.dcm", RAMP, **elements))
    assert np.array_equal(grey, np.arange(256))
    assert notes == ["1 pictures: have a window without a width; the range of their values is used"]


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleSlope": "", "RescaleIntercept": ""},
        {"WindowCenter": "", "WindowWidth": ""},
        {"VOILUTFunction": ""} | FULL | {"BitsStored": 12, "HighBit": 11},
        {"PresentationLUTShape": "", "BurnedInAnnotation": "", "NumberOfFrames": ""},
        {"WindowCenter": ["2048", "9"], "WindowWidth": ["4096", "7"], "BitsStored": 12, "HighBit": 11},
        {"photometric": "monochrome2"},
    ],
)
def test_elements_that_are_empty_or_several_do_no_harm(tmp_path, elements):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **elements)
    assert np.array_equal(said_of(path)[0], np.arange(256))


@pytest.mark.parametrize(
    "elements",
    [{"WindowCenter": "50000", "WindowWidth": "100"}, {"RescaleSlope": "0", "RescaleIntercept": "7"}],
)
def test_a_picture_that_its_header_makes_one_grey_is_said(tmp_path, elements):
    grey, notes = said_of(write_dicom(tmp_path / "a.dcm", RAMP, **elements))
    assert len(set(grey)) == 1
    assert notes == ["1 pictures: are of one grey only after the rescale and window of their headers"]


def groups(**macros):
    from pydicom.dataset import Dataset

    group = Dataset()
    for name, elements in macros.items():
        item = Dataset()
        for element, value in elements.items():
            setattr(item, element, value)
        setattr(group, name, [item])
    return group


def test_what_enhanced_files_say_in_functional_groups_counts(tmp_path):
    """Oracle: the same elements at the top; a frame's own go before those that frames share."""
    shared = groups(
        PixelValueTransformationSequence={"RescaleSlope": "-1", "RescaleIntercept": "4095"},
        FrameVOILUTSequence={"WindowCenter": "2048", "WindowWidth": "64"},
    )
    own = groups(FrameVOILUTSequence=FULL)
    path = write_dicom(
        tmp_path / "a.dcm", 4080 - RAMP, BitsStored=12, HighBit=11,
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=[own],
    )  # fmt: skip
    assert np.array_equal(said_of(path)[0], np.arange(256))


@pytest.mark.parametrize(
    "window", [{}, {"WindowCenter": "0.5", "WindowWidth": "1", "VOILUTFunction": "LINEAR_EXACT"}]
)
def test_float_pixels_are_shown_with_and_without_a_window(tmp_path, window):
    path = write_float(tmp_path / "a.dcm", np.arange(256) / 255, **window)
    assert np.array_equal(said_of(path)[0], np.arange(256))


@pytest.mark.parametrize(
    "window", [{}, {"WindowCenter": "0.5", "WindowWidth": "1", "VOILUTFunction": "LINEAR_EXACT"}]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_float_pixels_that_are_no_numbers_are_refused(tmp_path, window, value):
    pixels = np.arange(256) / 255
    pixels[3] = value
    with pytest.raises(DataError, match="some of its pixels are not finite numbers"):
        read_dicom(write_float(tmp_path / "a.dcm", pixels, **window))


def write_float(path, pixels, **elements):
    write_dicom(path, RAMP, **elements)
    dataset = pydicom.dcmread(path)
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, name)
    dataset.BitsAllocated, dataset.FloatPixelData = 32, pixels.astype("<f4").tobytes()
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.5.1.4.1.1.88.33",
        "1.2.840.10008.5.1.4.1.1.481.4",
        "1.2.840.10008.5.1.4.1.1.481.8",
        "1.2.840.10008.5.1.4.1.1.67",
        "1.2.840.10008.5.1.4.38.1",
    ],
)
@pytest.mark.parametrize("meta", [True, False])
def test_a_file_of_a_class_without_pixels_is_no_picture_with_or_without_its_meta_group(tmp_path, uid, meta):
    from suture.runtime.data.formats import Kind, kind_of

    file = write_dicom(tmp_path / "a", RAMP)
    dataset = pydicom.dcmread(file)
    del dataset.PixelData
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid
    if meta:
        dataset.save_as(file)
    else:
        del dataset.file_meta
        pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True)
    assert kind_of(file) is Kind.DICOM_WITHOUT_PIXELS


# What would fill the memory ---------------------------------------------------------------------------------


def test_a_deflated_file_that_would_fill_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    """Oracle: the same file below the limit, in pixels and in the header."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    from suture.runtime.data.dicom_headers import patient_ids
    from suture.runtime.host import unpacking

    path = write_dicom(tmp_path / "a.dcm", np.zeros((2000, 1000), np.uint16), PatientID="anna")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    assert path.stat().st_size < 20_000
    assert not read_dicom(path).any() and patient_ids([path])[0] == ["anna"]
    monkeypatch.setattr(unpacking, "ALWAYS_ALLOWED", 10**6)
    with pytest.raises(DataError, match=r"a\.dcm: .*would become .* GB or more, over 200 times as much"):
        read_dicom(path)
    assert patient_ids([path])[0] == [""]


@pytest.mark.parametrize("stream", ["RLE", "JPEG 2000"])
def test_pixels_whose_header_names_more_than_any_memory_are_refused(tmp_path, stream):
    """Oracle: the message; nothing is decoded."""
    from pydicom.uid import JPEG2000Lossless, RLELossless

    if stream == "JPEG 2000":
        pytest.importorskip("openjpeg")
    path = write_dicom(tmp_path / "a.dcm", np.kron(RAMP, np.ones((4, 4), np.uint16)))
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless if stream == "JPEG 2000" else RLELossless)
    dataset.Rows = dataset.Columns = 65000
    dataset.save_as(path)
    with pytest.raises(DataError, match=r"a\.dcm: .*would become 8\.4 GB"):
        read_dicom(path)


def test_a_jpeg_2000_stream_that_names_other_sides_than_its_header_is_refused(tmp_path):
    """Oracle: sides written into the stream; its decoder would take memory for them."""
    pytest.importorskip("openjpeg")
    from pydicom.uid import JPEG2000Lossless

    path = write_dicom(tmp_path / "a.dcm", np.kron(RAMP, np.ones((4, 4), np.uint16)))
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless)
    dataset.save_as(path)
    read_dicom(path)
    content = bytearray(path.read_bytes())
    sides = content.index(b"\xff\x4f\xff\x51") + 8
    content[sides : sides + 8] = (60000).to_bytes(4, "big") * 2
    path.write_bytes(content)
    with pytest.raises(
        DataError, match="its JPEG 2000 stream is of 60000x60000 pixels and its header says 64x64"
    ):
        read_dicom(path)


# A frame that somebody chose ----------------------------------------------------------------------------------


def write_frames(path, number=3, **elements):
    """A file of frames that are the ramp, shifted by the frame's number."""
    frames = np.stack([np.roll(RAMP, place) for place in range(number)])
    pixels = frames.astype("<u2").tobytes()
    return write_dicom(path, RAMP, NumberOfFrames=str(number), PixelData=pixels, **elements)


@pytest.mark.parametrize("frame", [1, 2, 3])
def test_a_chosen_frame_is_read_in_training_check_and_predict(tmp_path, frame):
    """Oracle: the frame that was written; a file with one frame has none to choose; nothing is said."""
    from suture.launch.deploy.predict import read_image
    from suture.runtime.data.library_warnings import counted_warnings
    from suture.runtime.data.registry import open_source

    for name in ("x", "y"):
        write_frames(tmp_path / "ill" / f"{name}.dcm", RepresentativeFrameNumber=2, PatientID=name)
    write_dicom(tmp_path / "well" / "z.dcm", RAMP)
    expected = np.roll(np.arange(256), frame - 1).reshape(16, 16)
    for name in ("image-folder", "dicom"):
        source = open_source(f"{name}:{tmp_path}", grades="binary", need=0, seed=0, frame=frame)
        with counted_warnings() as said:
            assert np.array_equal(source.read(0, 16, 1)[0][0].numpy(), expected)
            assert np.array_equal(source.read(2, 16, 1)[0][0].numpy().ravel(), np.arange(256))
            seen = read_image(tmp_path / "ill" / "x.dcm", 16, 1, frame)[0][0].numpy()
        assert np.array_equal(seen, expected) and said.notes() == []


def test_a_frame_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.dcm: ValueError: it has 3 frames and --frame says 4"):
        read_dicom(write_frames(tmp_path / "a.dcm"), 4)


def test_frames_are_counted_from_one_and_only_where_files_have_some():
    from suture.runtime.data.registry import DataConfig

    with pytest.raises(ConfigError, match="--frame must be at least 1, the first frame, got 0"):
        DataConfig(spec="dicom:x", frame=0)
    with pytest.raises(ConfigError, match="--frame is for data that have any to name: image-folder, dicom"):
        DataConfig(spec="mnist:x", frame=1)
