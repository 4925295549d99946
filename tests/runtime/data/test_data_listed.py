"""Whose rows: both sources that list pictures in a table, and what an index.csv says beside pictures."""

import numpy as np
import pytest
from small_files import write_dicom

from suture.runtime.data.registry import open_source
from suture.runtime.errors import DataError


@pytest.fixture(params=["kaggle-dr", "dicom"])
def listed(request, tmp_path, png):
    """A function that opens a folder of 1_left, 2_left and IMG_4 with a table, in each source of tables."""
    for shade, name in enumerate(("1_left", "2_left", "IMG_4")):
        pixels = np.arange(81, dtype=np.uint8).reshape(9, 9) + shade
        if request.param == "dicom":
            pytest.importorskip("pydicom")
            write_dicom(tmp_path / f"{name}.dcm", pixels.astype(np.uint16))
        else:
            png(tmp_path / f"{name}.png", pixels)

    def listed(text, *, name="labels.csv", **how):
        (tmp_path / name).write_text(text)
        return open_source(f"{request.param}:{tmp_path}", grades="all", need=0, seed=0, **how)

    return listed


TWICE = "image,level\n1_left,0\n2_left,1\n"


@pytest.mark.parametrize(
    ("text", "how"),
    [
        (TWICE + "1_left,0\n", {}),
        (TWICE + "1_left,0.0\n", {}),
        (
            "patientId,x,y,Target\n1_left,3,4,0\n1_left,5,6,0\n2_left,,,1\n",
            {"columns": "image=patientId,label=Target"},
        ),
        (TWICE.replace("1_left", "1_LEFT"), {}),
        (TWICE, {"name": "LABELS.CSV"}),
        (TWICE.replace(",", "\t"), {"name": "labels.tsv"}),
    ],
)
def test_rows_that_repeat_and_names_in_capitals_mean_the_same_files(listed, text, how):
    """Oracle: the plain table; one with the boxes of several findings lists a picture once a box."""
    source = listed(text, **how)
    assert [(one.key, one.label) for one in source.examples] == [("1_left", 0), ("2_left", 1)]


def test_rows_that_contradict_are_refused(listed):
    with pytest.raises(
        DataError, match="lists '1_left' more than once, in line 2 with level '0' and in line 4"
    ):
        listed(TWICE + "1_left,3\n")


def test_a_table_among_others_is_found_by_its_columns(listed, tmp_path):
    (tmp_path / "clinical.csv").write_text("subject,age\n1,60\n")
    (tmp_path / "~$labels.csv").write_text("a spreadsheet's lock")
    assert [one.label for one in listed(TWICE).examples] == [0, 1]


@pytest.mark.parametrize("unknown", ["nan", "NaN", "NULL", "None", "n/a", "<NA>"])
def test_a_patient_whom_the_table_does_not_know_is_nobody(listed, unknown):
    """Oracle: as where the cell is empty; all pictures of "nan" would be one person's."""
    text = "image,level,patient\n1_left,0,{0}\n2_left,1,{0}\nIMG_4,1,{0}\n"
    known, plain = listed(text.format(unknown)), listed(text.format(""))
    assert len({one.patient for one in plain.examples}) == 3
    assert [one.patient for one in known.examples] == [one.patient for one in plain.examples]


@pytest.mark.parametrize("level", ["1_0", "20240101", "1000", "1e300"])
def test_a_number_that_is_no_level_is_refused(listed, level):
    with pytest.raises(DataError, match=f"line 3: level must be a whole number from 0, got '{level}'"):
        listed(f"image,level\n1_left,0\n2_left,{level}\n")


def test_classes_in_words_are_told_where_they_belong(listed):
    with pytest.raises(DataError, match="got 'Normal'; .* or sort the pictures into folders of classes"):
        listed("image,level\n1_left,Normal\n2_left,COVID\n")


def test_zeros_that_a_spreadsheet_cut_off_are_named(listed, tmp_path):
    for file in tmp_path.glob("?_left.*"):
        file.rename(file.with_name(f"0{file.name[0]}{file.suffix}"))
    with pytest.raises(DataError, match="a spreadsheet has cut zeros off"):
        listed("image,level\n1,0\n2,1\n")


def test_a_row_without_a_name_is_refused(listed):
    with pytest.raises(DataError, match="line 3 names no image"):
        listed("image,level\n1_left,0\n,1\n")


@pytest.fixture(params=["kaggle-dr", "image-folder", "kaggle-cxr"])
def indexed(request, tmp_path, png):
    """A function that opens six pictures beside an index.csv, in each source that looks at one; patients by stem."""
    folders = {"kaggle-dr": "img", "kaggle-cxr": "CXR_png"}
    for shade in range(6):
        pixels = np.arange(81, dtype=np.uint8).reshape(9, 9) + shade
        folder = folders.get(request.param, f"class{shade % 2}")
        png(tmp_path / folder / f"x{shade}.png", pixels)
        if request.param == "kaggle-cxr":
            png(tmp_path / "masks" / f"x{shade}.png", (pixels > 40).astype(np.uint8))
    if request.param == "kaggle-dr":
        rows = "".join(f"x{n},{n % 2}\n" for n in range(6))
        (tmp_path / "trainLabels.csv").write_text("image,level\n" + rows)

    def indexed(*rows):
        text = "\n".join(["image,patient", *rows]) + "\n"
        text = text.replace("FOLDER", folders.get(request.param, "class0"))
        (tmp_path / "index.csv").write_text(text)
        source = open_source(f"{request.param}:{tmp_path}", grades="all", need=0, seed=0)
        return {
            one.key.rpartition("/")[2].removesuffix(".png"): one.patient for one in source.examples
        }, source

    return indexed


def test_an_index_finds_files_as_a_table_does_and_says_which_it_does_not(indexed):
    """Oracle: rows by hand: a path of Windows, an ending, capitals, one said twice, one of nobody, one of no file."""
    rows = (r"D:\FOLDER\x0.png,anna", "x1.PNG,anna", "X2,otto", "x2.png,otto", "x3,nan", "x9,eva")
    patients, source = indexed(*rows)
    assert patients == {"x0": "anna", "x1": "anna", "x2": "otto", "x3": "x3", "x4": "x4", "x5": "x5"}
    assert "1 of 6 rows of index.csv name no image that is used" in source.notes


def test_an_index_that_contradicts_itself_is_refused(indexed):
    with pytest.raises(
        DataError, match=r"index\.csv lists 'x0' more than once, in line 2 with patient 'anna'"
    ):
        indexed("x0,anna", "x0.png,otto")


@pytest.mark.parametrize("source", ["kaggle-dr", "image-folder", "kaggle-cxr", "dicom", "mnist", "medmnist"])
def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file_are_told(tmp_path, source):
    (tmp_path / "set.csv").write_text("image,level\n")
    path = tmp_path if source == "medmnist" else tmp_path / "set.csv"
    with pytest.raises(DataError, match="give"):
        open_source(f"{source}:{path}", grades="all", need=0, seed=0)
