"""``suture check``: what it says of a site's data, and its exit code. Oracle: data made by hand, with each fault in it."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from small_files import write_dicom_folder, write_folders, write_table

from suture import check
from suture.cli import suture
from suture.launch.kits.provision import Project, provision
from suture.launch.options.outcome import outcome
from suture.runtime.errors import ConfigError, DataError


@pytest.fixture
def run(capsys):
    """Runs the command as a person does: its code, what it printed, and the last line of all."""

    def run(*typed: object) -> tuple[int, str, str]:
        code = outcome(lambda: suture.main(["check", *map(str, typed)], standalone_mode=False))
        told = capsys.readouterr()
        assert "Traceback" not in told.out + told.err
        return code, told.out, (told.out + told.err).strip().splitlines()[-1].strip()

    return run


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path / "folders", {True: ["ill"], False: ["well"]}, 1, 60)


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return provision(Project(address="hub:1", sites=("ward_a",)), tmp_path_factory.mktemp("kits"))["ward_a"]


def test_sound_data_are_shown_with_the_division_that_join_makes(folders, run):
    """Oracle: the numbers by hand; 80 columns; code 0."""
    code, page, last = run(f"image-folder:{folders}")
    assert code == 0 and last == "A site can join with this data."
    assert max(map(len, page.splitlines())) <= 80 or str(folders) in max(page.splitlines(), key=len)
    for line in (
        r"task +classification",
        r"images +60 of 60 patients",
        r"sizes +32 x 32 px, all of them",
        r"unreadable +none: every picture was decoded",
        r"copies +none: no two pictures are the same",
        r"class +images +patients +train +validation +test",
        r"ill +30 +30 +21 +3 +6",
        r"well +30 +30 +21 +3 +6",
        r"all images +60 +60 +42 +6 +12",
        r"patients +42 +6 +12",
        r"balanced +--train-images 42 --validation-images 6 --test-images 12",
        r"memory +0.7 MB for the images at 64 px",
    ):
        assert re.search(f"^{line}", page, re.MULTILINE), line


def test_pictures_that_cannot_be_read_are_named_and_end_it_with_a_code(folders, run):
    """Oracle: the two files that were spoilt, and no third; the last line says what to do."""
    (folders / "ill" / "patient0.png").write_bytes(b"no picture")
    spoilt = folders / "well" / "patient1.png"
    spoilt.write_bytes(spoilt.read_bytes()[:90])
    code, page, last = run(f"image-folder:{folders}")
    assert code == DataError.exit_code
    assert re.search(r"unreadable +2 of 60", page)
    assert re.findall(r"cannot read image\s+\S+/(\w+/patient\d+\.png)", page) == [
        "ill/patient0.png",
        "well/patient1.png",
    ]
    assert last.endswith("remove or replace the 2 images that cannot be read, named above")


def test_copies_are_named_and_are_one_patients(folders, run):
    """Oracle: the file that was copied; a copy is no reason not to join."""
    shutil.copy(folders / "ill" / "patient0.png", folders / "ill" / "other.png")
    code, page, _ = run(f"image-folder:{folders}")
    assert code == 0
    assert "61 of 60 patients" in page and "1 of 2 pictures in 1 groups are exact copies" in page
    assert "ill/other.png = ill/patient0.png" in page


def test_a_picture_in_two_classes_is_the_last_line(folders, run):
    """Oracle: the two files."""
    shutil.copy(folders / "ill" / "patient2.png", folders / "well" / "torn.png")
    code, _, last = run(f"image-folder:{folders}")
    assert code == DataError.exit_code
    assert f"{folders}/ill/patient2.png = {folders}/well/torn.png; remove the wrong ones" in last


@pytest.mark.parametrize(("write", "kind"), [(write_table, "kaggle-dr"), (write_dicom_folder, "dicom")])
def test_tables_and_dicom_files_are_looked_at_alike(tmp_path, run, write, kind):
    """Oracle: the numbers by hand."""
    write(tmp_path / "data", 2, 40)
    code, page, _ = run(f"{kind}:{tmp_path / 'data'}")
    assert code == 0 and re.search(r"all images +40 +40 +28 +4 +8", page)
    assert "32 x 32 px, all of them" in page and "no two pictures are the same" in page


def test_sizes_are_those_of_the_files(folders, run):
    """Oracle: two pictures of other sizes."""
    for name, size in (("a", (8, 20)), ("b", (90, 60))):
        pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(folders / "ill" / f"{name}.png")
    assert "smallest 20 x 8, median 32 x 32, largest 60 x 90 px" in run(f"image-folder:{folders}")[1]


def test_what_a_source_skips_is_said(tmp_path, run):
    """Oracle: the table has two rows more than there are files."""
    write_table(tmp_path / "data", 2, 40)
    with (tmp_path / "data" / "trainLabels.csv").open("a") as table:
        table.write("gone_left,0\ngone_right,1\n")
    assert "skipped 2 of 42 rows without an image file" in run(f"kaggle-dr:{tmp_path / 'data'}")[1]


def test_classes_of_the_run_are_compared_and_the_remedy_works(folders, run):
    """Oracle: the code and last line; the same command with the option that the message names."""
    asked = (f"image-folder:{folders}", "--classes", "healthy,diseased")
    code, _, last = run(*asked)
    assert code == DataError.exit_code and "this site has: ill, well; the run has: healthy, diseased" in last
    code, page, _ = run(*asked, "--class-map", "ill=diseased,well=healthy")
    assert code == 0 and re.search(r"^diseased +30 +30 +21 +3 +6", page, re.MULTILINE)


def test_too_few_patients_are_said_with_the_remedy(tmp_path, run):
    """Oracle: the last line; no other client is spoken of."""
    code, page, last = run(
        f"image-folder:{write_folders(tmp_path / 'few', {True: ['a'], False: ['b']}, 1, 2)}"
    )
    assert code == DataError.exit_code and "add patients, or use --validation 0" in last
    assert re.search(r"all images +2 +2 +- +- +-", page) and "clients" not in page


def test_a_source_that_cannot_be_opened_is_the_last_line(tmp_path, run):
    """Oracle: the source's own message and code."""
    code, _, last = run(f"image-folder:{tmp_path / 'nowhere'}")
    assert code == DataError.exit_code and "does not exist; give the path" in last
    assert run("nowhere")[0] == ConfigError.exit_code


def test_the_kits_policy_is_asked(folders, kit, run):
    """Oracle: the default policy; a stricter one, whose rule the last line names."""
    data = f"image-folder:{folders}"
    code, page, last = run(data, kit.folder)
    said = " ".join(page.split())
    assert code == 0 and last == "A site can join with this data."
    assert "allows 42 training patients (least_patients 10) and 42 training images (least_images 20)" in said
    assert "resnet18 cut at 3 or later" in said and "unet" not in said
    kit.policy.write_text("least_patients = 43\nimage_size = [100, 200]\n")
    code, page, last = run(data, kit.folder)
    assert code == DataError.exit_code and "(and 1 more, see above)" in last
    said = " ".join(page.split())
    assert (
        "policy least_patients: the training set must have at least 43, got 42; add images, or change" in said
    )
    assert "policy image_size: must lie in 100..200, got 64; try another --image-size" in said
    kit.policy.write_text('nets = ["unet"]\n')
    assert "policy nets: none is for classification; add one to" in run(data, kit.folder)[2]


def test_images_that_do_not_fit_into_memory_are_said(folders, run, monkeypatch):
    """Oracle: 60 images of 64 px and three channels are 737280 bytes."""
    monkeypatch.setattr("suture.launch.site.own_images.free_memory", lambda: 700_000)
    code, _, last = run(f"image-folder:{folders}")
    assert (
        code == DataError.exit_code
        and "60 images at 64 px take 0.7 MB of memory, and 0.7 MB are free here; use" in last
    )


def test_a_bar_is_shown_for_many_pictures_at_a_terminal_only(folders, run, monkeypatch, capsys):
    """Oracle: whether there is one."""
    monkeypatch.setattr(check, "_MANY", 60)
    bars: list[int] = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *failure):
            return None

        def update(self, number):
            bars.append(number)

    monkeypatch.setattr("click.progressbar", lambda length, label, file: Bar())
    run(f"image-folder:{folders}")
    assert bars == []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run(f"image-folder:{folders}")
    assert bars == [1] * 60


def test_file_names_cannot_command_a_terminal(folders, run):
    """Oracle: no escape sign in what is printed."""
    (folders / "ill" / "a\x1b[2Jb.png").write_bytes(b"no picture")
    code, page, last = run(f"image-folder:{folders}")
    assert code == DataError.exit_code and "\x1b" not in page + last and "a?[2Jb.png" in page
