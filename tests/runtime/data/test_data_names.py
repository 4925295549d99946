"""Names in tables to files: with folders, endings, and accents written in two ways."""

import unicodedata
from pathlib import Path

import pytest

from suture.runtime.data.names import FilesByName
from suture.runtime.errors import DataError

DATA = Path("/data/set")


def by_name(*files):
    return FilesByName(DATA, [DATA / file for file in files])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("x1", "img/x1.png"),
        ("x1.png", "img/x1.png"),
        ("x1.PNG", "img/x1.png"),
        ("x1.jpg", "img/x1.png"),
        ("img/x1.png", "img/x1.png"),
        ("C:\\study\\img\\x1.png", "img/x1.png"),
        ("/mnt/old/set/img/x1", "img/x1.png"),
        ("./img/x1", "img/x1.png"),
        ("X2.DCM", "X2.dcm"),
        ("1.2.840.55", "1.2.840.55"),
    ],
)
def test_a_row_finds_its_file(name, file):
    assert by_name("img/x1.png", "X2.dcm", "1.2.840.55").find(name) == DATA / file


@pytest.mark.parametrize("name", ["x", "x1.txt", "other/x1.png", "img", ""])
def test_a_row_finds_no_other_file(name):
    assert by_name("img/x1.png").find(name) is None


def test_folders_tell_files_of_one_name_apart():
    files = by_name("P00/1-1.dcm", "P01/1-1.dcm", "deep/P02/1-1.dcm")
    assert files.find("P01/1-1.dcm") == DATA / "P01/1-1.dcm"
    assert files.find("P02/1-1") == DATA / "deep/P02/1-1.dcm"
    assert files.find("P03/1-1.dcm") is None, "never another patient's"
    with pytest.raises(
        DataError, match=r"holds '1-1.dcm' twice, in different folders; .*'P00/1-1.dcm' or 'P01/1-1"
    ):
        files.find("1-1")


def test_endings_tell_files_of_one_name_apart():
    files = by_name("a.png", "a.jpg")
    assert files.find("a.JPG") == DATA / "a.jpg"
    with pytest.raises(DataError, match="'a.png' twice"):
        files.find("a")


def test_accents_may_be_composed_or_not():
    """Oracle: macOS's form on disk, a spreadsheet's in the table, and the other way round."""
    composed, apart = "jos\u00e9/r\u00e9nal", unicodedata.normalize("NFD", "jos\u00e9/r\u00e9nal")
    for on_disk, in_table in ((apart, composed), (composed, apart)):
        assert by_name(f"{on_disk}.png").find(in_table) == DATA / f"{on_disk}.png"
