"""Text in a picture's corners. Oracle: what was drawn; and pictures in which a person finds none."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from small_files import write_dicom

from suture.runtime.data.burned_text import FOUND, shows_text
from suture.runtime.data.chest_phantom import ChestPhantom
from suture.runtime.data.library_warnings import counted_warnings
from suture.runtime.data.pictures import read_picture
from suture.runtime.data.registry import open_source
from suture.runtime.data.survey import survey

CORNERS = {"top left": (12, 10), "top right": (430, 10), "bottom left": (12, 730), "bottom right": (430, 730)}


def plate(ground=40, side=(800, 700)):
    """A bright noisy field on a darker noisy ground, as a collimated plate."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(ground, 8, side)
    pixels[200:600, 150:550] = rng.normal(180, 30, (400, 400))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def written(text, size=24, at="top left", ground=40):
    image = Image.fromarray(plate(ground))
    ImageDraw.Draw(image).text(CORNERS[at], text, fill=255, font=ImageFont.load_default(size))
    return np.asarray(image)


@pytest.mark.parametrize("text", ["MUELLER ANNA", "Smith^John", "12/03/1961 F"])
@pytest.mark.parametrize("size", [16, 24, 40, 60])
@pytest.mark.parametrize("ground", [0, 90])
def test_a_line_of_text_is_found_bright_or_dark(text, size, ground):
    pixels = written(text, size, ground=ground)
    assert shows_text(pixels) and shows_text(255 - pixels)


@pytest.mark.parametrize("at", CORNERS)
def test_it_is_found_in_each_corner(at):
    assert shows_text(written("ANNA 1961", at=at))


@pytest.mark.parametrize("text", ["R", "L", "PA", "R PA"])
def test_markers_of_lead_are_no_text(text):
    assert not shows_text(written(text, 40))


@pytest.mark.parametrize("ground", [0, 40, 90, 200])
def test_a_plate_without_text_holds_none(ground):
    assert not shows_text(plate(ground)) and not shows_text(255 - plate(ground))


def test_edges_grids_and_points_are_no_text():
    """A frame, a ruler's ticks, noise of single points, and nothing at all."""
    frame, ticks, points = (plate() for _ in range(3))
    frame[5:9, 5:-5] = frame[5:-5, 5:9] = 255
    ticks[10:200:12, 4:14] = ticks[10:30, 100:300:20] = 255
    points[np.random.default_rng(1).random(points.shape) > 0.999] = 255
    for pixels in (frame, ticks, points, np.zeros_like(frame), np.full_like(frame, 255)):
        assert not shows_text(pixels)


def test_phantoms_show_none():
    source = ChestPhantom(64, 0)
    assert not any(shows_text(source.read(index, 512, 1)[0][0].numpy()) for index in range(8))


def test_the_real_sets_are_not_called_so(real_data):
    """Oracle: none of the photographs and X-rays, enlarged where they are small, is among those with text; docs/data.md."""
    pictures = [*(real_data / "idrid").rglob("*.jp*g"), *(real_data / "lungs").rglob("CXR_png/*.png")]
    found = [shows_text(np.asarray(Image.open(file).convert("L"))) for file in pictures]
    assert len(found) == 516 + 83 and not any(found)
    digits = np.load(real_data / "mnist10k" / "mnist10k.npz")
    images = [image for part in ("train", "val", "test") for image in digits[f"{part}_images"]]
    large = (np.asarray(Image.fromarray(image).resize((300, 300))) for image in images[::10])
    assert not any(map(shows_text, large))


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(("text", "said"), [("MUELLER ANNA", True), ("R", False)])
def test_dicom_files_are_looked_at_where_they_are_read(tmp_path, kind, text, said):
    """One without BurnedInAnnotation, too, and one that says NO; what says YES is told once."""
    pytest.importorskip("pydicom")
    pixels = written(text)
    stored = (255 - pixels if kind == "MONOCHROME1" else pixels).astype(np.uint16)
    for annotation in ("NO", ""):
        write_dicom(tmp_path / "a.dcm", stored, BurnedInAnnotation=annotation, photometric=kind)
        with counted_warnings() as counted:
            read_picture(tmp_path / "a.dcm", 64, 1)
        assert counted.notes() == ([f"1 pictures: {FOUND}"] if said else [])


@pytest.mark.parametrize("source", ["image-folder", "kaggle-dr", "kaggle-cxr"])
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_a_check_looks_at_whole_pictures_of_other_formats(tmp_path, source, ending):
    """Oracle: two of the three pictures with a line; at 32 pixels nobody could read it."""
    folder = tmp_path / {"kaggle-cxr": "CXR_png"}.get(source, "class")
    folder.mkdir()
    for name, text in (("a", "MUELLER ANNA"), ("b", "R"), ("c", "Smith^John")):
        Image.fromarray(written(text)).save(folder / f"{name}.{ending}")
        (tmp_path / "masks").mkdir(exist_ok=True)
        if source == "kaggle-cxr":
            Image.fromarray(np.zeros((800, 700), np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "train.csv").write_text("image,level\na,0\nb,1\nc,0\n")
    opened = open_source(f"{source}:{tmp_path}", grades="binary", need=0, seed=0)
    assert f"2 pictures: {FOUND}" in survey(opened, 32, 1).notes
    assert survey(opened, 32, 1, closely=False).notes == ()
