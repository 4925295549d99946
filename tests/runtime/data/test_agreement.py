"""Training, ``suture check`` and ``suture predict`` say the same of the same folder."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small_files import write_dicom_folder, write_folders, write_table

from suture.cli import suture
from suture.launch.build import Images, build_data, build_images
from suture.launch.deploy.predict import find_images, read_image
from suture.launch.options.options import AskedOptions
from suture.launch.options.outcome import outcome
from suture.runtime.data.client_data import ClientData
from suture.runtime.data.partition import Share
from suture.runtime.errors import DataError

NAMES = {True: ["ill"], False: ["well"]}


def options(data, **more):
    counts = {"train_images": 4, "validation_images": 2, "test_images": 2}
    return AskedOptions(data=data, model="resnet18", image_size=32, **counts, **more).resolved()


@pytest.fixture
def checked(capsys):
    def checked(*typed):
        code = outcome(lambda: suture.main(["check", *typed, "--image-size", "32"], standalone_mode=False))
        told = capsys.readouterr()
        return code, " ".join((told.out + told.err).split())

    return checked


def spoil(file):
    file.write_bytes(b"no picture")


def sets(root):
    for name in ("train", "test"):
        for file in sorted(write_folders(root / name, NAMES, len(name), 16).rglob("*.png")):
            file.rename(file.with_name(f"{name}_{file.name}"))  # the same name would be the same patient


def wrapped_twice(root):
    sets(root / "set" / "inner")
    shutil.copytree(root / "set" / "inner", root / "set", dirs_exist_ok=True)


def semicolons(root):
    table = write_table(root, 1, 16) / "trainLabels.csv"
    table.write_text(table.read_text().replace(",", ";"), encoding="utf-16")


def headed_by_others(root):
    table = write_table(root, 1, 16) / "trainLabels.csv"
    table.write_text(table.read_text().replace("image,level", "Image name,Retinopathy grade"))


def own_columns(root):
    table = write_table(root, 1, 16) / "trainLabels.csv"
    table.write_text(table.read_text().replace("image,level", "scan,stage"))


def masks(root, structures=2):
    rng = np.random.default_rng(0)
    for number in range(16):
        for folder, pixels in (
            ("CXR_png", rng.integers(0, 255, (32, 32), dtype=np.uint8)),
            ("masks", np.kron(rng.integers(0, structures + 1, (4, 4)), np.ones((8, 8))).astype(np.uint8)),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"MCUCXR_{number:04d}_0.png")


def strewn(root):
    """A class tree with what lies in folders of pictures: two more pictures, three files of system, one of text, a loop."""
    write_folders(root, NAMES, 1, 16)
    (root / "ill" / "deep.png").mkdir()
    (root / "ill" / "deep.png" / "one.GIF").write_bytes((root / "ill" / "patient0.png").read_bytes() + b" ")
    Image.fromarray(np.full((9, 9), 7, dtype=np.uint8)).save(root / "well" / "other.jfif", format="JPEG")
    for name in ("__MACOSX/._a.png", "ill/@eaDir/a.png", "well/._a.png", "well/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "well" / "round").symlink_to("..")


def linked(root):
    """Classes as links into a store elsewhere."""
    write_folders(root.with_name("store"), NAMES, 1, 16)
    root.mkdir()
    for name in ("ill", "well"):
        (root / name).symlink_to(root.with_name("store") / name)


def turned_and_transparent(root):
    for number, file in enumerate(sorted(write_folders(root, NAMES, 1, 16).rglob("*.png"))):
        exif = Image.Exif()
        exif[0x0112] = number % 8 + 1
        image = Image.open(file).convert("LA" if number % 2 else "RGBA")
        image.putalpha(number * 10)
        image.save(file, exif=exif)


def not_utf_8(root):
    """Names as an archive from Windows leaves them, of a class and of files."""
    write_folders(root, NAMES, 1, 16)
    (root / "ill").rename(root / os.fsdecode(b"sch\xf6n"))
    for file in list((root / "well").iterdir()):
        file.rename(file.with_name(os.fsdecode(b"m\xfcller_") + file.name))


def dicom_table(root):
    write_dicom_folder(root, 1, 16)
    (root / "x0.dcm").rename(root / "x0.DCM")
    (root / "unlisted.txt").write_text("x")


def dicom_series(root):
    write_dicom_folder(root, 1, 16)
    rows = []
    for number in range(16):
        (root / f"P{number}").mkdir()
        (root / f"x{number}.dcm").rename(root / f"P{number}" / "IM1")
        rows.append(f"P{number}/IM1,{number % 2}")
    (root / "labels.csv").write_text("\n".join(["image,level", *rows]) + "\n")


def dicom_tree(root):
    write_dicom_folder(root, 1, 16)
    for number in range(16):
        folder = root / ("ill", "well")[number % 2]
        folder.mkdir(exist_ok=True)
        (root / f"x{number}.dcm").rename(folder / f"IM{number}")
    (root / "labels.csv").unlink()


KINDS = {
    "strewn with other files": ("image-folder", strewn, {}, 18, 18),
    "classes that are links": ("image-folder", linked, {}, 16, 16),
    "turned and transparent": ("image-folder", turned_and_transparent, {}, 16, 16),
    "names that are not UTF-8": ("image-folder", not_utf_8, {}, 16, 16),
    "DICOM with a table": ("dicom", dicom_table, {}, 16, 16),
    "DICOM in series": ("dicom", dicom_series, {}, 16, 16),
    "DICOM in folders of classes": ("dicom", dicom_tree, {}, 16, 16),
    "sets": ("image-folder", sets, {}, 32, 32),
    "a tree inside itself": ("image-folder", wrapped_twice, {}, 32, 64),
    "a table with semicolons in UTF-16": ("kaggle-dr", semicolons, {}, 16, 16),
    "a table with IDRiD's heading": ("kaggle-dr", headed_by_others, {}, 16, 16),
    "a table with columns of its own": ("kaggle-dr", own_columns, {"columns": "image=scan,label=stage"}, 16, 16),
    "masks of labels": ("kaggle-cxr", masks, {}, 16, 32),
    "masks of chosen labels": ("kaggle-cxr", masks, {"structure": "2"}, 16, 32),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_check_and_training_see_the_same_images_and_patients_and_predict_every_file(tmp_path, checked, kind):
    """Oracle: numbers by hand; predict has no index and reads each file, those of masks and copies, too."""
    source, write, more, number, files = KINDS[kind]
    write(tmp_path / "data")
    data = f"{source}:{tmp_path / 'data'}"
    run = AskedOptions(
        data=data, image_size=32, train_images=4, validation_images=2, test_images=2, **more
    ).resolved()
    images = build_images(run, 1)
    patients = len({one.patient for one in images.source.examples})
    kept = build_data(run, images, 0)
    assert set(images.source.notes) <= set(kept.notes)
    code, page = checked(data, *(part for name, value in more.items() for part in (f"--{name}", value)))
    assert code == 0, page
    assert len(images.source.examples) == number and f"images {number} of {patients} patients" in page
    assert all(" ".join(note.split()) in page for note in images.source.notes)
    found = find_images(tmp_path / "data")
    assert len(found.pictures) == files
    if source == "image-folder":
        assert all(note in images.source.notes for note in found.notes())
    for file in found.pictures:
        read_image(file, 32, 3)


def test_all_broken_files_are_named_at_once_and_alike(tmp_path, checked):
    """Oracle: the three files that were spoilt, of any set, each with one reason in all three."""
    write_folders(tmp_path, NAMES, 1, 40)
    broken = [
        tmp_path / "ill" / "patient0.png",
        tmp_path / "ill" / "patient6.png",
        tmp_path / "well" / "patient9.png",
    ]
    for file in broken:
        spoil(file)
    run = options(f"image-folder:{tmp_path}")
    source = build_images(run, 1).source
    with pytest.raises(DataError, match="^3 images cannot be used: ") as refused:
        build_data(run, Images(source, (Share(tuple(range(40)), (), ()),)), 0)
    code, page = checked(f"image-folder:{tmp_path}")
    assert code == DataError.exit_code and "unreadable 3 of 40" in page
    for file in broken:
        with pytest.raises(DataError) as alone:
            read_image(file, 32, 3)
        assert str(alone.value) in str(refused.value)
        assert str(alone.value).removesuffix("; remove or replace it") in page


def test_a_client_names_the_broken_files_of_others_too(tmp_path):
    """Oracle: a share with one of the two."""
    write_folders(tmp_path, NAMES, 1, 8)
    spoil(tmp_path / "ill" / "patient0.png")
    spoil(tmp_path / "well" / "patient7.png")
    source = build_images(
        AskedOptions(
            data=f"image-folder:{tmp_path}", image_size=32, train_images=2, validation_images=0, test_images=2
        ).resolved(),
        1,
    ).source
    place = [one.key for one in source.examples].index("ill/patient0.png")
    how = {"image_size": 32, "channels": 3, "normalisation": "imagenet", "augment": "none"}
    with pytest.raises(DataError, match=r"2 images cannot be used: .*patient0\.png.*patient7\.png"):
        ClientData(source, Share((place,), (), ()), **how)
    other = [index for index in range(8) if "patient0" not in source.examples[index].key][:1]
    assert torch.is_tensor(ClientData(source, Share(tuple(other), (), ()), **how).pixels("train"))
