"""Trees of pictures as people unpack them: what is a class, a hospital, a set, and what is left out and said."""

import shutil
import unicodedata

import numpy as np
import pytest

from suture.runtime.data.image_folder import open_image_folder
from suture.runtime.data.partition import PartitionConfig, partition
from suture.runtime.data.registry import open_source
from suture.runtime.errors import DataError


def fill(root, png, *folders, each=3):
    for place, folder in enumerate(folders):
        for number in range(each):
            shade = np.full((6, 6), 10 * place + number, dtype=np.uint8)
            png(root / folder / f"{folder.replace('/', '_')}{number}.png", shade)
    return root


SETS = ("train/ill", "train/well", "val/ill", "val/well", "test/ill", "test/well")


def test_train_val_and_test_are_sets_and_the_test_set_is_tested_on(tmp_path, png):
    """Oracle: the folders; what is dealt to train on."""
    source = open_image_folder(fill(tmp_path, png, *SETS))
    assert source.classes == ("ill", "well") and {one.site for one in source.examples} == {""}
    assert [one.official_test for one in source.examples] == [
        one.key.startswith("test/") for one in source.examples
    ]
    wanted = PartitionConfig(train_images=8, validation_images=2, test_images=4)
    (share,) = partition(source, wanted, num_clients=1, seed=0)
    assert not any(source.examples[i].key.startswith("test/") for i in (*share.train, *share.validation))
    assert all(source.examples[i].key.startswith("test/") for i in share.test)


@pytest.mark.parametrize(
    "names",
    [
        ("a. Training Set", "b. Testing Set"),
        ("TRAIN", "Test"),
        ("seg_train", "seg_test"),
        ("Validation", "testing"),
    ],
)
def test_sets_are_told_by_a_word_of_their_names(tmp_path, png, names):
    source = open_image_folder(
        fill(tmp_path, png, *(f"{name}/{k}" for name in names for k in ("ill", "well")))
    )
    assert source.classes == ("ill", "well")
    assert sum(one.official_test for one in source.examples) == 6


@pytest.mark.parametrize("order", ["north/train", "train/north"])
def test_sets_of_hospitals_and_hospitals_of_sets_are_both(tmp_path, png, order):
    """Oracle: sites and the test set by the folders' names, in either order."""
    first = [
        order.replace("north", site).replace("train", kind)
        for site in ("north", "south")
        for kind in ("train", "test")
    ]
    source = open_image_folder(
        fill(tmp_path, png, *(f"{name}/{k}" for name in first for k in ("ill", "well")))
    )
    assert source.classes == ("ill", "well") and {one.site for one in source.examples} == {"north", "south"}
    assert all(one.site in one.key and one.official_test == ("test/" in one.key) for one in source.examples)


def test_a_wrapper_and_a_tree_inside_itself_are_seen_through(tmp_path, png):
    """Oracle: the tree alone."""
    plain = open_image_folder(fill(tmp_path / "plain", png, *SETS))
    twice = tmp_path / "twice" / "chest" / "deeper"
    shutil.copytree(tmp_path / "plain", twice / "chest_xray")
    shutil.copytree(tmp_path / "plain", twice, dirs_exist_ok=True)
    (twice / "__MACOSX" / "train" / "ill").mkdir(parents=True)
    (twice / "__MACOSX" / "train" / "ill" / "._a.png").write_bytes(b"\0")
    source = open_image_folder(tmp_path / "twice")
    cut = [(one.key.removeprefix("chest/deeper/"), one.label, one.official_test) for one in source.examples]
    assert cut == [(one.key, one.label, one.official_test) for one in plain.examples]
    assert any(
        "left out 18 pictures of chest/deeper/chest_xray/: a second copy" in note for note in source.notes
    )
    assert any("in __MACOSX (1)" in note for note in source.notes)


def test_a_tree_inside_itself_that_is_no_copy_is_refused(tmp_path, png):
    fill(tmp_path, png, *SETS)
    fill(tmp_path / "more", png, *SETS)
    png(tmp_path / "more" / "train" / "ill" / "another.png", np.zeros((6, 6), np.uint8))
    with pytest.raises(
        DataError, match=r"holds a tree like itself in 'more', and .*another\.png has no copy outside"
    ):
        open_image_folder(tmp_path)


def test_a_test_folder_without_classes_is_left_out_and_counted(tmp_path, png):
    source = open_image_folder(fill(tmp_path, png, "train/ill", "train/well", "test"))
    assert source.classes == ("ill", "well") and len(source.examples) == 6
    assert "left out 3 pictures of test/: no folders of classes" in source.notes
    assert not any("outside" in note for note in source.notes), "counted once"


def test_pictures_beside_the_folders_of_classes_are_counted(tmp_path, png):
    png(fill(tmp_path, png, "ill", "well") / "overview.png", np.zeros((4, 4), np.uint8))
    source = open_image_folder(tmp_path)
    assert len(source.examples) == 6
    assert "not used: 1 pictures outside the folders of classes" in source.notes


def test_sets_alone_are_no_classes(tmp_path, png):
    with pytest.raises(DataError, match=r"test, train are sets, and hold pictures but no folders of classes"):
        open_image_folder(fill(tmp_path, png, "train", "test"))


def test_a_class_may_be_called_test(tmp_path, png):
    assert open_image_folder(fill(tmp_path, png, "control", "test")).classes == ("control", "test")


def test_folders_below_classes_are_no_classes(tmp_path, png):
    """Oracle: the topmost folders; only --partition by-site makes hospitals of them."""
    fill(tmp_path, png, "ill/patient1", "ill/patient2", "well/patient3")
    source = open_source(f"image-folder:{tmp_path}", grades="binary", need=0, seed=0)
    assert source.classes == ("ill", "well") and {one.site for one in source.examples} == {""}
    assert any(
        "ill, well are classes; if they are hospitals, say --partition by-site" in note
        for note in source.notes
    )
    by_site = open_source(f"image-folder:{tmp_path}", grades="binary", need=0, seed=0, by_site=True)
    assert {one.site for one in by_site.examples} == {"ill", "well"}


def test_the_same_picture_in_two_classes_is_refused_and_both_files_are_named(tmp_path, png):
    """Oracle: the two pairs that were copied, in one error."""
    fill(tmp_path, png, "ill", "well")
    for number in (0, 2):
        shutil.copy(tmp_path / "ill" / f"ill{number}.png", tmp_path / "well" / f"again{number}.png")
    with pytest.raises(DataError) as refused:
        open_image_folder(tmp_path)
    for number in (0, 2):
        assert f"/ill/ill{number}.png = {tmp_path}/well/again{number}.png" in str(refused.value)


def test_a_copy_in_train_and_test_is_tested_on_only(tmp_path, png):
    """Oracle: the copy's patient is the test picture's; it is said that the other is not trained on."""
    fill(tmp_path, png, *SETS)
    shutil.copy(tmp_path / "test" / "ill" / "test_ill0.png", tmp_path / "train" / "ill" / "same.png")
    source = open_image_folder(tmp_path)
    owners = {one.key: one.patient for one in source.examples}
    assert owners["train/ill/same.png"] == owners["test/ill/test_ill0.png"]
    assert any(
        "1 pictures of patients who are in the test set, too, are not trained on" in note
        for note in source.notes
    )


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("trainset", "testset"),
        ("TrainData", "TestData"),
        ("train1", "test1"),
        ("trainImages", "testImages"),
        ("train_val", "test_images"),
        ("training-data", "testing-data"),
    ],
)
def test_sets_are_told_in_one_word_with_what_they_hold(tmp_path, png, train, test):
    """Oracle: never two hospitals."""
    source = open_image_folder(
        fill(tmp_path, png, *(f"{name}/{k}" for name in (train, test) for k in ("ill", "well")))
    )
    assert source.classes == ("ill", "well") and {one.site for one in source.examples} == {""}
    assert sum(one.official_test for one in source.examples) == 6


@pytest.mark.parametrize("other", ["Ill", "ILL ", "i_ll"])
def test_one_class_written_in_two_ways_is_refused(tmp_path, png, other):
    """Oracle: both names in the message, as a set's folders and another's often differ."""
    fill(tmp_path, png, "train/ill", "train/well", f"test/{other}", "test/well")
    if other == "i_ll":
        assert open_image_folder(tmp_path).classes == ("i_ll", "ill", "well")
        return
    with pytest.raises(
        DataError, match=rf"the classes '{other}' and 'ill' differ only in capitals or blanks"
    ):
        open_image_folder(tmp_path)


def test_a_class_with_an_accent_is_one_class_however_each_set_writes_it(tmp_path, png):
    for name, form in (("train", "NFC"), ("test", "NFD")):
        fill(tmp_path, png, f"{name}/{unicodedata.normalize(form, 'drusen é')}", f"{name}/well")
    assert open_image_folder(tmp_path).classes == (unicodedata.normalize("NFC", "drusen é"), "well")


def test_folders_of_classes_without_pictures_are_said(tmp_path, png):
    """Oracle: the folders; a class whose pictures are of a format that is not read would be gone unseen."""
    fill(tmp_path, png, "ill", "well")
    (tmp_path / "empty").mkdir()
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.heic").write_bytes(b"x")
    (tmp_path / "@eaDir").mkdir()
    assert "no class, since no pictures are in it: empty, scans" in open_image_folder(tmp_path).notes


def test_masks_beside_images_are_left_out_and_said(tmp_path, png):
    """Oracle: the layout of the COVID-19 Radiography Database, whose folders are classes; each mask lies beside its image."""
    fill(tmp_path, png, *(f"{name}/{kind}" for name in ("covid", "normal") for kind in ("images", "masks")))
    source = open_image_folder(tmp_path)
    assert source.classes == ("covid", "normal") and {one.site for one in source.examples} == {""}
    assert len(source.examples) == 6 and all("/images/" in one.key for one in source.examples)
    assert "left out 6 pictures of masks, beside images" in source.notes
    fill(
        tmp_path / "other",
        png,
        *(f"{kind}/{name}" for name in ("covid", "normal") for kind in ("images", "masks")),
    )
    other = open_image_folder(tmp_path / "other")
    assert other.classes == ("covid", "normal") and len(other.examples) == 6


def test_a_class_may_be_called_masks(tmp_path, png):
    assert open_image_folder(fill(tmp_path, png, "faces", "masks")).classes == ("faces", "masks")


@pytest.mark.parametrize(
    "folders",
    [
        ("ill/001", "ill/002", "well/001", "well/003"),
        (*(f"ill/{n:03}" for n in range(12)), *(f"well/{n:03}" for n in range(12))),
    ],
)
def test_patients_numbered_within_each_class_are_no_classes(tmp_path, png, folders):
    """Oracle: the topmost folders; and it is said that folders below name no patient."""
    source = open_image_folder(fill(tmp_path, png, *folders))
    assert source.classes == ("ill", "well") and {one.site for one in source.examples} == {""}
    assert any("patients are told by the files' names and not by folders" in note for note in source.notes)
