"""Masks as people have them: what is the structure, and what is said or refused. Oracle: the mask that was drawn."""

import warnings

import numpy as np
import pytest
from PIL import Image

from suture.runtime.data.kaggle_cxr import open_kaggle_cxr
from suture.runtime.data.library_warnings import PictureWarning
from suture.runtime.data.masks import structure_of
from suture.runtime.data.pictures import read_mask
from suture.runtime.data.registry import DataConfig, parse_structure
from suture.runtime.errors import ConfigError, DataError

LEFT, RIGHT = np.zeros((2, 48, 48), dtype=bool)
LEFT[8:40, 6:20] = RIGHT[8:40, 28:42] = True
BOTH = LEFT | RIGHT
WHITE = BOTH * np.uint8(255)
LABELS = LEFT * np.uint8(1) + RIGHT * np.uint8(2)


def read(path, image, structure=(), **how):
    Image.fromarray(image).save(path, **how) if isinstance(image, np.ndarray) else image.save(path, **how)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = read_mask(path, structure)
    return found, [str(one.message) for one in said if one.category is PictureWarning]


def palette(indices, colours):
    image = Image.fromarray(indices, mode="P")
    image.putpalette([part for colour in colours for part in colour])
    return image


def seen(rgb, alpha):
    return np.dstack([*np.broadcast_arrays(*rgb), alpha]).astype(np.uint8)


TWO_VALUES = {
    "0 and 1": BOTH.astype(np.uint8),
    "0 and 7": BOTH * np.uint8(7),
    "16 bits": BOTH * np.uint16(1),
    "white palette first": palette((~BOTH).astype(np.uint8), [(255,) * 3, (0,) * 3]),
    "red on black": np.dstack([WHITE, WHITE * 0, WHITE * 0]),
    "white, told by transparency": seen((255 + 0 * WHITE,) * 3, WHITE),
    "black, told by transparency": seen((0 * WHITE,) * 3, WHITE),
    "red on transparent white": seen((255 + 0 * WHITE, 255 - WHITE, 255 - WHITE), WHITE),
    "grey with transparency": np.dstack([WHITE, WHITE]),
}


@pytest.mark.parametrize("kind", TWO_VALUES)
def test_two_values_are_background_and_structure(tmp_path, kind):
    found, said = read(tmp_path / "m.png", TWO_VALUES[kind])
    assert np.array_equal(found, BOTH) and not said


@pytest.mark.parametrize(
    ("image", "values"),
    [
        (LABELS, "0, 1, 2"),
        (LABELS.astype(np.uint16), "0, 1, 2"),
        (LEFT * np.uint8(127) + RIGHT * np.uint8(255), "0, 127, 255"),
        (LEFT * np.uint8(85) + RIGHT * np.uint8(170), "0, 85, 170"),
        (palette(LABELS, [(0, 0, 0), (128, 0, 0), (0, 128, 0)]), "0, 1, 2"),
        (LEFT * np.float32(1) + RIGHT * np.float32(3), "0, 1, 3"),
    ],
    ids=["1 and 2", "16 bits", "127 and 255", "85 and 170", "palette", "float"],
)
def test_every_label_is_the_structure_and_is_said(tmp_path, image, values):
    found, said = read(tmp_path / "m.tif", image)
    assert np.array_equal(found, BOTH)
    assert said == [
        f"the mask holds the labels {values}; all above 0 are the structure (--structure chooses)"
    ]


@pytest.mark.parametrize(
    ("structure", "expected"), [((1,), LEFT), ((2,), RIGHT), ((1, 2), BOTH), ((2, 9), RIGHT)]
)
def test_structure_chooses_labels(tmp_path, structure, expected):
    found, said = read(tmp_path / "m.png", LABELS, structure)
    assert np.array_equal(found, expected) and not said


def test_a_mask_without_the_chosen_label_is_empty_where_it_has_background(tmp_path):
    assert not read(tmp_path / "m.png", LEFT.astype(np.uint8), (2,))[0].any()


@pytest.mark.parametrize("quality", [40, 75, 95])
def test_grey_edges_of_jpeg_are_cut_at_half(tmp_path, quality):
    found, said = read(tmp_path / "m.jpg", WHITE, quality=quality)
    assert np.array_equal(found, BOTH) and not said


def test_smoothed_edges_are_cut_at_half(tmp_path):
    large = Image.fromarray(WHITE).resize((144, 144), Image.Resampling.BILINEAR)
    found, said = read(tmp_path / "m.png", large)
    assert (found != np.kron(BOTH, np.ones((3, 3), bool))).mean() < 0.02 and not said


def test_labels_in_a_jpeg_are_refused(tmp_path):
    with pytest.raises(DataError, match="several labels, which JPEG does not keep apart; save masks as PNG"):
        read(tmp_path / "m.jpg", LEFT * np.uint8(127) + RIGHT * np.uint8(255), quality=90)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(DataError, match="some of its pixels are not finite numbers"):
        read(tmp_path / "m.tif", np.where(BOTH, np.nan, 0).astype(np.float32))


def test_shades_are_no_labels_to_choose_from(tmp_path):
    shades = np.tile(np.arange(48, dtype=np.uint8) * 5, (48, 1))
    with pytest.raises(
        DataError, match="it holds 48 values, which are shades and not labels; leave --structure out"
    ):
        read(tmp_path / "m.png", shades, (1,))
    assert np.array_equal(structure_of(shades.astype(float), lossy=False), shades > 117)


XRAY = np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8)


def test_montgomerys_two_folders_are_joined(tmp_path, png):
    """Oracle: both lungs; a lung that is alone is half a mask and is not used."""
    root = tmp_path / "MontgomerySet"
    for name in ("MCUCXR_0001_0", "MCUCXR_0002_0"):
        png(root / "CXR_png" / f"{name}.png", XRAY)
        png(root / "ManualMask" / "leftMask" / f"{name}.png", LEFT * np.uint8(255))
    png(root / "ManualMask" / "rightMask" / "MCUCXR_0001_0.png", RIGHT * np.uint8(255))
    source = open_kaggle_cxr(tmp_path)
    assert [one.key for one in source.examples] == ["MCUCXR_0001_0"]
    assert np.array_equal(source.read(0, 48, 1)[1][0].numpy() > 0, BOTH)
    assert "skipped 1 masks of one lung whose other lung has none" in source.notes


@pytest.mark.parametrize(
    ("shape", "taken"), [((96, 96), True), ((145, 144), True), ((24, 24), False), ((96, 144), False)]
)
def test_a_larger_mask_of_the_same_sides_is_taken(tmp_path, png, shape, taken):
    png(tmp_path / "CXR_png" / "MCUCXR_0001_0.png", XRAY)
    mask = np.asarray(Image.fromarray(WHITE).resize(shape[::-1], Image.Resampling.NEAREST))
    png(tmp_path / "masks" / "MCUCXR_0001_0.png", mask)
    source = open_kaggle_cxr(tmp_path)
    if taken:
        assert (source.read(0, 48, 1)[1][0].numpy() != BOTH).mean() < 0.06
    else:
        with pytest.raises(
            DataError, match=r"mask .* is \d+x\d+ but its image .* is 48x48; replace the mask"
        ):
            source.read(0, 48, 1)


def test_copies_of_an_xray_are_one_patients(tmp_path, png):
    for name in ("MCUCXR_0001_0", "MCUCXR_0002_0"):
        png(tmp_path / "CXR_png" / f"{name}.png", XRAY)
        png(tmp_path / "masks" / f"{name}.png", WHITE)
    assert len({one.patient for one in open_kaggle_cxr(tmp_path).examples}) == 1


@pytest.mark.parametrize("text", ["", "0", "1,x", "-1", "1,,2"])
def test_structures_that_are_no_labels_are_refused(text):
    with pytest.raises(ConfigError, match="--structure must be whole numbers from 1"):
        parse_structure(text)
    with pytest.raises(ConfigError, match="--structure is for data that have any to name: kaggle-cxr"):
        DataConfig(spec="fundus-phantom", structure="1")


COLOURS = np.dstack([LEFT * np.uint8(255), RIGHT * np.uint8(255), WHITE * 0])


@pytest.mark.parametrize(
    "image",
    [
        COLOURS,
        np.dstack([COLOURS, WHITE * 0 + 255]),
        palette((LABELS + np.uint8(2)) % np.uint8(3), [(255, 0, 0), (0, 255, 0), (0, 0, 0)]),
    ],
    ids=["RGB", "RGBA", "palette"],
)
def test_several_colours_are_one_structure_and_that_is_said(tmp_path, image):
    """Oracle: both areas; no number tells them apart, so that --structure is refused."""
    found, said = read(tmp_path / "m.png", image)
    assert np.array_equal(found, BOTH)
    assert said == ["the mask holds 2 colours; all but black are the structure"]
    with pytest.raises(DataError, match="it holds 2 colours and no numbers, which --structure chooses from"):
        read(tmp_path / "m.png", image, (1,))


@pytest.mark.parametrize(
    ("structure", "only"), [((85,), None), ((170,), None), ((1,), "0, 85, 170"), ((7, 9), "0, 85, 170")]
)
def test_a_mask_that_holds_labels_and_none_of_the_chosen_is_said(tmp_path, structure, only):
    """Oracle: what the file holds; a PNG of two bits is read as 0, 85, 170 and 255."""
    image = LEFT * np.uint8(85) + RIGHT * np.uint8(170)
    found, said = read(tmp_path / "m.png", image, structure)
    assert np.array_equal(found, {85: LEFT, 170: RIGHT}.get(structure[0], BOTH & False))
    assert said == ([f"the mask holds none of the values of --structure, only {only}"] if only else [])


def test_an_empty_mask_holds_nothing_to_choose_from_and_nothing_is_said(tmp_path):
    assert read(tmp_path / "m.png", WHITE * 0, (1,))[1] == []


@pytest.mark.parametrize("end", ["_mask", "-mask", "_MASK", "_seg", "_segmentation", ".label", " mask"])
@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "gif", "tif"])
def test_a_mask_is_its_images_by_what_its_name_has_behind(tmp_path, png, end, ending):
    png(tmp_path / "CXR_png" / "x1.png", XRAY)
    (tmp_path / "masks").mkdir()
    Image.fromarray(WHITE).save(tmp_path / "masks" / f"x1{end}.{ending}")
    source = open_kaggle_cxr(tmp_path)
    assert np.array_equal(source.read(0, 48, 1)[1][0].numpy() > 0, BOTH)
