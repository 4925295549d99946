"""A walk of a data folder: what it takes, and that everything else is counted with its kind."""

import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from small_files import write_dicom

from suture.runtime.data.folder import Found, unused_notes, walk
from suture.runtime.data.formats import PICTURE_ENDINGS, is_dicom, plain_stem


def touch(path, content=b"something"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found.pictures]


def test_every_file_is_taken_or_counted(tmp_path):
    """Oracle: the files written here; what is taken and what is counted add up to them."""
    pictures = ["a.png", "b.JPG", "c.jfif", "deep/d.TIFF", "deep/e.gif", "deep/er/f.pgm", "g.jp2", "h.avif"]
    others = {
        "notes.txt": ".txt", "more.TXT": ".txt", "README": "no ending", "scan.eps": ".eps", "x.heic": ".heic",
        "._a.png": "macOS companion ._*", ".hidden.png": "hidden", "__MACOSX/._b.png": "in __MACOSX",
        "@eaDir/b.JPG/SYNOPHOTO_THUMB_XL.jpg": "in @eaDir", "deep/.ipynb_checkpoints/a.png": "in .ipynb_checkpoints",
        ".cache/one.png": "in hidden folders", "of mr.smith born 1950": "other endings", "volume.001": "other endings",
    }  # fmt: skip
    for name in [*pictures, *others]:
        touch(tmp_path / name)
    found = walk(tmp_path)
    assert names(found, tmp_path) == sorted(pictures, key=lambda name: name.split("/"))
    assert found.unused == Counter(others.values())
    assert "smith" not in str(found.notes())
    (note,) = found.notes()
    assert note.startswith("not used: 13 in this folder: ") and ".txt (2)" in note


def test_the_table_that_is_used_and_the_folder_of_results_are_not_counted(tmp_path):
    """Oracle: what is left, a second table."""
    for name in ("a.png", "labels.csv", "old.csv", "out/masks/a_mask.png"):
        touch(tmp_path / name)
    (tmp_path / "alias.csv").symlink_to("labels.csv")
    found = walk(tmp_path, known=[tmp_path / "alias.csv"], without=tmp_path / "out")
    assert names(found, tmp_path) == ["a.png"]
    assert found.unused == {".csv": 1, "link to what is here already": 1}


def test_a_folder_named_as_a_picture_is_a_folder_and_said(tmp_path):
    touch(tmp_path / "study.png" / "one.png")
    (tmp_path / "empty.jpg").mkdir()
    found = walk(tmp_path)
    assert names(found, tmp_path) == ["study.png/one.png"] and found.unused == {
        "folder named as a picture": 2
    }


def test_links_are_followed_once_and_never_round(tmp_path):
    """Oracle: the pictures behind them, under the names that lead there."""
    store, data = tmp_path / "store", tmp_path / "data"
    touch(store / "x.png"), touch(store / "deep" / "y.png"), touch(data / "own" / "z.png")
    (data / "batch").symlink_to(store)
    (data / "single.png").symlink_to(store / "deep" / "y.png")
    (data / "latest").symlink_to("own")
    (data / "own" / "up").symlink_to("..")
    (data / "gone.png").symlink_to("nowhere.png")
    (data / "round").symlink_to("round")
    (store / "home").symlink_to(data)
    found = walk(data)
    assert names(found, data) == ["batch/deep/y.png", "batch/x.png", "own/z.png"]
    assert found.unused == {
        "link to what is here already": 2,  # latest, single.png
        "link to nothing": 2,  # gone.png, round
        "link back to a folder above": 2,  # own/up, batch/home
    }


def test_a_link_is_taken_where_what_it_leads_to_is_elsewhere(tmp_path):
    """Oracle: its own name and place, as a data manager lays classes out of one store."""
    touch(tmp_path / "store" / "0001.bin.png")
    (tmp_path / "data" / "ill").mkdir(parents=True)
    (tmp_path / "data" / "ill" / "anna.png").symlink_to(tmp_path / "store" / "0001.bin.png")
    assert names(walk(tmp_path / "data"), tmp_path / "data") == ["ill/anna.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser opens everything")
def test_a_folder_that_may_not_be_opened_is_said(tmp_path):
    touch(tmp_path / "closed" / "a.png").parent.chmod(0)
    assert walk(tmp_path).unused == {"folder that may not be opened": 1}


def test_pipes_are_counted_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert walk(tmp_path) == Found(unused=Counter({"device or pipe": 1}))


def test_dicom_is_told_by_its_content(tmp_path):
    """Oracle: pydicom wrote them; a report, a DICOMDIR and a text are no pictures, a broken .dcm is one to complain of."""
    pydicom = pytest.importorskip("pydicom")
    pixels = np.zeros((4, 4), dtype=np.uint16)
    for name in ("a.dcm", "b.DCM", "IM000001", "1.2.840.113619.2.55", "scan.jpg", "series/e.ima"):
        write_dicom(tmp_path / name, pixels)
    plain = pydicom.dcmread(tmp_path / "a.dcm")
    for number, implicit in enumerate((True, False)):
        bare = pydicom.Dataset(plain)
        pydicom.dcmwrite(tmp_path / f"bare{number}", bare, implicit_vr=implicit, little_endian=True)
    write_dicom(tmp_path / "old.img", pixels)
    whole = (tmp_path / "old.img").read_bytes()
    (tmp_path / "old.img").write_bytes(whole[132:])  # the meta group without preamble
    for name, kind in (("DICOMDIR", "1.2.840.10008.1.3.10"), ("SR001", "1.2.840.10008.5.1.4.1.1.88.33")):
        written = pydicom.dcmread(tmp_path / "a.dcm")
        written.file_meta.MediaStorageSOPClassUID = kind
        written.save_as(tmp_path / name)
    touch(tmp_path / "broken.dcm"), touch(tmp_path / "viewer.exe", b"\x08\x00\x05\x00 nothing of the kind")
    found = walk(tmp_path)
    assert {path.name for path in found.dicom} == {
        "a.dcm", "b.DCM", "IM000001", "1.2.840.113619.2.55", "scan.jpg", "e.ima", "bare0", "bare1", "old.img",
        "broken.dcm",
    }  # fmt: skip
    assert set(found.pictures) == found.dicom
    assert found.unused == {"DICOM without a picture": 2, ".exe": 1}


def test_pictures_are_no_dicom(tmp_path):
    """Oracle: pictures of every ending that Pillow writes."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    written = [ending for ending in sorted(PICTURE_ENDINGS) if ending in Image.registered_extensions()]
    assert len(written) > 12
    for ending in written:
        pixels.save(tmp_path / f"a{ending}")
    found = walk(tmp_path)
    assert len(found.pictures) == len(written) and not found.dicom
    assert not is_dicom(b"") and not is_dicom(b"\x08\x00\x05\x00")


def test_a_stem_loses_a_known_ending_only():
    assert plain_stem("a.b.PNG") == "a.b" and plain_stem("1.2.840.55") == "1.2.840.55"
    assert plain_stem("x.dcm") == "x" and plain_stem(".png") == ".png"
    assert plain_stem("jose\u0301.png") == "jos\u00e9", "composed, as tables have it"


def test_nothing_unused_says_nothing():
    assert unused_notes(Counter()) == []
