"""Kaggle's fundus photographs as downloaded: nested folder, junk columns, rows without a file."""

import numpy as np
import pytest
import torch

from suture.runtime.data.kaggle_dr import open_kaggle_dr
from suture.runtime.errors import DataError

RED = np.dstack([np.full((30, 40), v, dtype=np.uint8) for v in (200, 80, 20)])


@pytest.fixture
def folder(tmp_path, png):
    inner = tmp_path / "resized_train_cropped" / "resized_train_cropped"
    for shade, name in enumerate(("10_left", "10_right", "13_left", "7_test")):
        png(inner / f"{name}.jpeg", RED - 2 * shade)  # equal files would count as one patient's
    png(inner / "._10_left.jpeg", RED)
    (tmp_path / "trainLabels_cropped.csv").write_text(
        ",Unnamed: 0,image,level\n0,0,10_left,0\n1,1,10_right,3\n2,2,13_left,4\n3,3,15_left,2\n4,4,7_test,1\n"
    )
    return tmp_path


def test_the_download_is_read_as_it_is(folder):
    source = open_kaggle_dr(folder, grades="binary")
    assert [e.key for e in source.examples] == ["10_left", "10_right", "13_left", "7_test"]
    assert [e.patient for e in source.examples] == ["10", "10", "13", "7_test"]
    assert [e.label for e in source.examples] == [0, 1, 1, 1]
    assert [e.official_test for e in source.examples] == [False, False, False, True]
    assert source.notes == [
        "skipped 1 of 5 rows without an image file",
        "not used: 1 in this folder: macOS companion ._* (1)",
    ]
    assert source.mirror and source.classes == ("no retinopathy", "retinopathy")


def test_copies_of_a_photograph_are_one_patients(folder):
    """Oracle: IDRiD holds one photograph in its training and its test part; it must not be used on both sides."""
    inner = folder / "resized_train_cropped" / "resized_train_cropped"
    (inner / "7_test.jpeg").write_bytes((inner / "13_left.jpeg").read_bytes())
    source = open_kaggle_dr(folder, grades="binary")
    assert [e.patient for e in source.examples] == ["10", "10", "13", "13"]
    assert "1 images are copies of others; copies count as one patient's" in source.notes


def test_five_grades_on_request(folder):
    source = open_kaggle_dr(folder, grades="all")
    assert [e.label for e in source.examples] == [0, 3, 4, 1]
    assert source.classes[3] == "severe" and len(source.classes) == 5


def test_an_index_csv_adds_patients_and_sites(folder):
    (folder / "index.csv").write_text("image,patient,site\n10_left,anna,north\n13_left,anna,\n")
    examples = open_kaggle_dr(folder, grades="binary").examples
    assert [e.patient for e in examples] == ["anna", "10", "anna", "7_test"]
    assert [e.site for e in examples] == ["north", "", "", ""]


def test_the_uncropped_copies_in_the_download_are_left_alone(folder, png):
    png(folder / "resized_train" / "resized_train" / "10_left.jpeg", RED)
    assert len(open_kaggle_dr(folder, grades="binary").examples) == 4


def test_a_photograph_is_padded_with_black_not_cropped(folder):
    """40 x 30 becomes 40 x 40: five black rows above and below, the colour between."""
    image, label = open_kaggle_dr(folder, grades="binary").read(0, 40, 3)
    assert image[:, :4].max() < 20 and image[:, -4:].max() < 20
    assert (image[:, 20, 20].float() - torch.tensor([200.0, 80.0, 20.0])).abs().max() < 6
    assert int(label) == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            ",image,grade\n0,10_left,1\n",
            r"trainLabels_cropped.csv has no column 'level'; its columns are: , image",
        ),
        ("image,level\n", "none of the 0 images"),
        ("image,level\nnone,1\n", "none of the 1 images of trainLabels_cropped.csv is there; unpack"),
        ("image,level\n10_left,x\n", "level must be a whole number from 0, got 'x'"),
        ("image,level\n10_left,-1\n", "level must be a whole number from 0, got '-1'"),
        ("image,level\n10_left,1.5\n", "level must be a whole number from 0, got '1.5'"),
        ("image,level\n10_left,nan\n", "level must be a whole number from 0, got 'nan'"),
        ("image,level\n10_left,inf\n", "level must be a whole number from 0, got 'inf'"),
        ("image,level\n10_left,5\n", r"level must lie in 0\.\.4, got 5"),
        ("image,level\n10_left,1\n10_left.jpeg,0\n", "lists '10_left' more than once"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(folder, table, message):
    (folder / "trainLabels_cropped.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        open_kaggle_dr(folder, grades="binary")


def test_a_table_that_is_not_text_is_refused(folder):
    (folder / "trainLabels_cropped.csv").write_bytes(b"\xff\xfe\x00images")
    with pytest.raises(DataError, match=r"cannot read table .*save it as a UTF-8 CSV"):
        open_kaggle_dr(folder, grades="binary")


def test_a_byte_order_mark_and_blanks_do_no_harm(folder):
    (folder / "trainLabels_cropped.csv").write_text("\ufeffimage , level\n10_left , 2.0\n", encoding="utf-8")
    assert [e.label for e in open_kaggle_dr(folder, grades="all").examples] == [2]


def test_the_same_image_in_two_folders_is_refused(folder, png):
    png(folder / "resized_train_cropped" / "copy" / "10_left.jpeg", RED)
    with pytest.raises(DataError, match=r"holds '10_left\.jpeg' twice, in different folders"):
        open_kaggle_dr(folder, grades="binary")


def test_a_damaged_file_is_named(folder):
    path = folder / "resized_train_cropped" / "resized_train_cropped" / "10_left.jpeg"
    source = open_kaggle_dr(folder, grades="binary")
    whole = path.read_bytes()
    for content in (b"", b"no picture", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read image .*10_left\.jpeg: .+; remove or replace it"):
            source.read(0, 16, 3)


def test_idrid_is_read(real_data):
    """Counts of its SOURCE.md."""
    source = open_kaggle_dr(real_data / "idrid", grades="all")
    counts = [[0] * 5, [0] * 5]
    for example in source.examples:
        counts[example.official_test][example.label] += 1
    assert counts == [[134, 20, 136, 74, 49], [34, 5, 32, 19, 13]]
    image, _ = source.read(0, 64, 3)
    assert image[0].float().mean() > image[2].float().mean(), "a retina is red, not blue"
