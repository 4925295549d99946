"""Chest X-rays and masks in the layouts and depths that the two hospitals' files have."""

import numpy as np
import pytest
from PIL import Image

from suture.runtime.data.kaggle_cxr import open_kaggle_cxr
from suture.runtime.errors import DataError

XRAY = np.tile(np.linspace(40, 200, 24).astype(np.uint8), (24, 1))
MASK = np.zeros((24, 24), dtype=np.uint8)
MASK[6:18, 3:12] = 1


@pytest.fixture(params=["", "Lung Segmentation", "data/Lung Segmentation"])
def folder(request, tmp_path, png):
    base = tmp_path / request.param
    png(base / "CXR_png" / "MCUCXR_0001_0.png", XRAY)
    png(base / "masks" / "MCUCXR_0001_0.png", MASK * 255)
    png(base / "CXR_png" / "CHNCXR_0002_1.png", XRAY + 1)  # equal files would be one patient's
    png(base / "masks" / "CHNCXR_0002_1_mask.png", MASK)
    png(base / "CXR_png" / "CHNCXR_0003_1.png", XRAY)
    png(base / "masks" / "CHNCXR_0099_1_mask.png", MASK)
    png(base / "test" / "CHNCXR_0500_0.png", XRAY)
    return tmp_path


def base_of(folder):
    return next(folder.rglob("CXR_png")).parent


def test_pairs_are_made_from_the_masks_side(folder):
    source = open_kaggle_cxr(folder)
    assert {e.key: e.site for e in source.examples} == {"CHNCXR_0002_1": "CHNCXR", "MCUCXR_0001_0": "MCUCXR"}
    assert all(e.patient == e.key and e.label is None for e in source.examples)
    assert source.notes == [
        "skipped 1 masks without an image",
        "left out 1 images without a mask",
        "not used: 1 in this folder: picture outside CXR_png and masks (1)",
    ]
    assert not source.mirror, "the heart lies on the left"


def test_patients_come_from_an_index_beside_the_data(folder):
    (folder / "index.csv").write_text(
        "image,original,patient\nMCUCXR_0001_0,a.jpg,7\nCHNCXR_0002_1,b.jpg,7\n"
    )
    assert {e.patient for e in open_kaggle_cxr(folder).examples} == {"7"}


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK * 255,
        MASK.astype(np.uint16) * 65535,
        np.dstack([MASK * 255] * 3),
        np.dstack([MASK * 255] * 3 + [np.full_like(MASK, 255)]),
        MASK.astype(bool),
    ],
    ids=["0/1", "0/255", "16 bit", "RGB", "RGBA", "1 bit"],
)
def test_masks_of_every_kind_mean_the_same(folder, png, mask):
    png(base_of(folder) / "masks" / "MCUCXR_0001_0.png", mask)
    source = open_kaggle_cxr(folder)
    index = [e.key for e in source.examples].index("MCUCXR_0001_0")
    _, target = source.read(index, 24, 1)
    assert np.array_equal(target[0].numpy(), MASK)


def test_an_empty_mask_stays_empty(folder, png):
    png(base_of(folder) / "masks" / "MCUCXR_0001_0.png", MASK * 0)
    assert not open_kaggle_cxr(folder).read(1, 24, 1)[1].any()


@pytest.mark.parametrize(
    "image",
    [(XRAY.astype(np.uint16) - 40) * 17, np.dstack([XRAY] * 3)],
    ids=["12 bit in 16", "RGB"],
)
def test_deep_and_rgb_images_are_scaled_by_their_range(folder, png, image):
    png(base_of(folder) / "CXR_png" / "MCUCXR_0001_0.png", image)
    grey = open_kaggle_cxr(folder).read(1, 24, 1)[0][0]
    if image.ndim == 2:
        assert int(grey.min()) == 0 and int(grey.max()) == 255
    else:
        assert np.abs(grey.numpy().astype(int) - XRAY).max() <= 1


def test_image_and_mask_are_padded_alike(folder, png):
    """A tall picture whose bright part is its mask: they still coincide."""
    tall = np.zeros((40, 20), dtype=np.uint8)
    tall[4:20, 2:16] = 255
    png(base_of(folder) / "CXR_png" / "MCUCXR_0001_0.png", tall)
    png(base_of(folder) / "masks" / "MCUCXR_0001_0.png", tall)
    image, mask = open_kaggle_cxr(folder).read(1, 40, 1)
    assert np.array_equal(image[0].numpy() > 127, mask[0].numpy() > 0)
    image, mask = open_kaggle_cxr(folder).read(1, 20, 1)
    assert np.array_equal(image[0].numpy() > 127, mask[0].numpy() > 0)


def test_a_mask_of_another_size_is_refused(folder, png):
    png(base_of(folder) / "masks" / "MCUCXR_0001_0.png", np.zeros((24, 30), dtype=np.uint8))
    with pytest.raises(
        DataError, match=r"mask .*MCUCXR_0001_0\.png is 30x24 but its image .* is 24x24; replace"
    ):
        open_kaggle_cxr(folder).read(1, 16, 1)


@pytest.mark.parametrize("which", ["CXR_png", "masks"])
def test_a_damaged_file_is_named(folder, which):
    path = base_of(folder) / which / "MCUCXR_0001_0.png"
    source = open_kaggle_cxr(folder)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24), dtype=np.uint8)).save(path)
    for content in (b"no", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"cannot read image .*{which}.*: .+; remove or replace it"):
            source.read(1, 16, 1)


def test_other_folders_are_refused(tmp_path, png):
    with pytest.raises(DataError, match="has no folders CXR_png and masks"):
        open_kaggle_cxr(tmp_path)
    png(tmp_path / "CXR_png" / "a.png", XRAY)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="no mask in masks/ has its image in CXR_png/"):
        open_kaggle_cxr(tmp_path)


def test_the_lungs_are_read(real_data):
    source = open_kaggle_cxr(real_data / "lungs")
    assert len(source.examples) == 83
    assert len({e.patient for e in source.examples}) == 48
    image, mask = source.read(0, 64, 1)
    assert 0.3 < float(mask.mean()) < 0.5, "mask_fraction 0.41 in its index"
    assert image.float().std() > 20
