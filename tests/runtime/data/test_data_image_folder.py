"""Pictures sorted into folders, with and without sites."""

import numpy as np
import pytest

from suture.runtime.data.image_folder import open_image_folder
from suture.runtime.errors import DataError

GREY = np.full((10, 10), 90, dtype=np.uint8)


def fill(root, png, *names):
    for number, name in enumerate(names):
        png(root / name, GREY + number)  # copies would be one patient's
    return root


def test_folders_are_classes_in_alphabetical_order(tmp_path, png):
    fill(
        tmp_path,
        png,
        "well/1_left.png",
        "well/1_right.png",
        "ill/2.jpg",
        "ill/deep/3_test.png",
        "ill/._2.png",
    )
    (tmp_path / "ill" / "notes.txt").write_text("no picture")
    source = open_image_folder(tmp_path)
    assert source.classes == ("ill", "well")
    assert [(e.key, e.patient, e.label) for e in source.examples] == [
        ("ill/2.jpg", "2", 0),
        ("ill/deep/3_test.png", "3_test", 0),
        ("well/1_left.png", "1", 1),
        ("well/1_right.png", "1", 1),
    ]
    assert [e.official_test for e in source.examples] == [False, True, False, False]
    assert {e.site for e in source.examples} == {""}


def test_folders_of_folders_are_sites_whose_patients_differ(tmp_path, png):
    fill(tmp_path, png, "north/ill/1.png", "north/well/2.png", "south/ill/1.png", "south/well/3.png")
    source = open_image_folder(tmp_path)
    assert [(e.site, e.patient) for e in source.examples] == [
        ("north", "north/1"),
        ("north", "north/2"),
        ("south", "south/1"),
        ("south", "south/3"),
    ]


def test_an_index_csv_names_patients(tmp_path, png):
    fill(tmp_path, png, "ill/a.png", "well/b.png")
    (tmp_path / "index.csv").write_text("image,patient\na.png,anna\nb,anna\n")
    assert {e.patient for e in open_image_folder(tmp_path).examples} == {"anna"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png"], "has no folders; sort the pictures into"),
        (["ill/._1.png"], "holds no pictures; sort them into"),
        (["ill/1.txt.d/x/1.png", "well/2.png"], "holds folders but 'well' does not"),
    ],
)
def test_other_layouts_are_refused(tmp_path, png, names, message):
    fill(tmp_path, png, *names)
    with pytest.raises(DataError, match=message):
        open_image_folder(tmp_path)


def test_a_copy_of_a_picture_is_the_same_patients(tmp_path, png):
    """Oracle: the patient of the first; the note counts them."""
    for name, seed in (("ill/a.png", 1), ("ill/b.png", 2), ("ill/c.png", 1)):
        png(tmp_path / name, np.full((4, 4), seed, dtype=np.uint8))
    source = open_image_folder(tmp_path)
    assert [one.patient for one in source.examples] == ["a", "b", "a"]
    assert source.notes == ["1 images are copies of others; copies count as one patient's"]


def test_a_hospital_may_have_one_class_of_several(tmp_path, png):
    """Oracle: the folder's name; whether a run can do with it is for others to say."""
    png(tmp_path / "ill" / "a.png", np.zeros((4, 4), dtype=np.uint8))
    assert open_image_folder(tmp_path).classes == ("ill",)
