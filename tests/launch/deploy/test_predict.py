"""``suture predict``: the trained halves, joined, on a folder of images.

Oracle: the same parts loaded by hand from the client's model.pt, on images read by the training's own loader.
"""

import csv

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from small_files import write_dicom

import suture.models.registry as nets
from suture.cli import suture
from suture.launch.deploy.predict import original_mask, predict_folder
from suture.launch.deploy.trained import load_trained
from suture.launch.options.options import AskedOptions
from suture.launch.roles.one_process import run_in_one_process
from suture.runtime.data.normalise import normalise
from suture.runtime.data.pictures import fit_mask, read_mask, read_picture
from suture.runtime.errors import ConfigError, DataError


def tiny_run(path, data, **options):
    options = {"train_images": 4, "validation_images": 2, "test_images": 2, "batch_size": 2} | options
    run_in_one_process(
        AskedOptions(
            data=data, clients=1, epochs=1, image_size=32, exchange="local", run_dir=str(path), **options
        )
    )
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A run folder of a ResNet-18."""
    return tiny_run(tmp_path_factory.mktemp("classifier") / "run", "fundus-phantom", model="resnet18")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A run folder of a narrow U-Net."""
    return tiny_run(tmp_path_factory.mktemp("segmenter") / "run", "chest-phantom", width=4)


@pytest.fixture
def folder(tmp_path):
    """Three images of noise in the formats and shapes that people have, one of them in a subfolder."""
    chance = np.random.default_rng(0)
    place = tmp_path / "images"
    (place / "ward").mkdir(parents=True)
    for name, shape in (("a.png", (40, 40, 3)), ("wide.jpg", (30, 70, 3)), ("ward/tall.tif", (90, 50))):
        Image.fromarray(chance.integers(0, 256, shape, dtype=np.uint8)).save(place / name)
    return place


def by_hand(run, which="last"):
    """The oracle: logits of the parts in model.pt, for one image file."""
    content = torch.load(run / "clients/client0/model.pt", weights_only=True)
    classification = content["task"] == "classification"
    split = nets.build(
        content["model"],
        cut=int(content["cut"]),
        num_outputs=2 if classification else 1,
        labels=content["labels"],
        width=content["width"],
    )
    for name, part in split.parts().items():
        part.load_state_dict(content[which]["parts"][name])
        part.eval()

    @torch.no_grad()
    def logits(path):
        pixels = read_picture(path, content["image_size"], 3 if classification else 1)
        x = normalise(pixels[None].float() / 255, content["normalisation"])
        smashed, skips = split.bottom(x)
        out = split.top(smashed)
        return out if split.head is None else split.head(out, skips)

    return logits


def table(out):
    with (out / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def predict(*arguments):
    return CliRunner().invoke(suture, ["predict", *map(str, arguments)], standalone_mode=False)


@pytest.mark.parametrize("which", ["best", "last"])
def test_probabilities_are_those_of_the_joined_net(classifier, folder, tmp_path, which):
    result = predict(classifier, folder, "--out", tmp_path / "out", "--which", which)
    assert result.exception is None and result.return_value == 0, result.output
    rows = table(tmp_path / "out")
    assert [row["image"] for row in rows] == ["a.png", "ward/tall.tif", "wide.jpg"]
    logits = by_hand(classifier, which)
    for row in rows:
        expected = logits(folder / row["image"]).softmax(1)[0]
        got = torch.tensor([float(v) for k, v in row.items() if k.startswith("probability_")])
        # The batch is another, and with it the order of sums in a convolution.
        assert torch.allclose(got, expected, atol=1e-5)
        assert row["predicted"] == ["no retinopathy", "retinopathy"][int(expected.argmax())]


def test_masks_have_the_images_own_size_and_name(segmenter, folder, tmp_path):
    result = predict(segmenter, folder, "--out", tmp_path / "out", "--which", "last")
    assert result.exception is None and result.return_value == 0, result.output
    logits = by_hand(segmenter)
    names = {"a.png": "a_mask.png", "wide.jpg": "wide_mask.png", "ward/tall.tif": "ward/tall_mask.png"}
    for row in table(tmp_path / "out"):
        assert row["mask"] == f"masks/{names[row['image']]}"
        mask = Image.open(tmp_path / "out" / row["mask"])
        size = Image.open(folder / row["image"]).size
        assert mask.size == size and mask.mode == "L"
        pixels = np.asarray(mask)
        assert set(np.unique(pixels)) <= {0, 255}
        assert float(row["mask_fraction"]) == pytest.approx((pixels > 0).mean(), abs=1e-6)
        expected = original_mask(logits(folder / row["image"]).sigmoid()[0, 0], size)
        assert ((pixels > 0) != expected.numpy()).mean() < 0.01


@pytest.mark.parametrize("shape", [(30, 70), (70, 30), (50, 50), (31, 64)])
def test_undoing_the_padding_gives_a_mask_back(tmp_path, shape):
    """Oracle: a mask read as in training (padded, shrunk) comes back at its place and size."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    disc = ((y - height * 0.4) / (height * 0.3)) ** 2 + ((x - width * 0.6) / (width * 0.3)) ** 2 < 1
    Image.fromarray(disc.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    back = original_mask(fit_mask(read_mask(tmp_path / "mask.png"), 64)[0], (width, height)).numpy()
    assert back.shape == shape
    assert (back & disc).sum() / (back | disc).sum() > 0.95


def test_images_that_share_a_stem_get_masks_of_their_own(segmenter, tmp_path):
    for name in ("a.png", "a.bmp"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("L", (20, 20), 90).save(tmp_path / "in" / name)
    predict_folder(load_trained(segmenter, "last"), tmp_path / "in", tmp_path / "out")
    assert sorted(row["mask"] for row in table(tmp_path / "out")) == [
        "masks/a.bmp_mask.png",
        "masks/a.png_mask.png",
    ]


def test_dicom_is_read_as_in_training(classifier, tmp_path):
    pytest.importorskip("pydicom")
    write_dicom(tmp_path / "in" / "x.dcm", np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16))
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "in" / "y.png")
    predict_folder(load_trained(classifier, "last"), tmp_path / "in", tmp_path / "out")
    dicom, png = table(tmp_path / "out")
    assert (dicom["image"], png["image"]) == ("x.dcm", "y.png")
    assert {**dicom, "image": ""} == {**png, "image": ""}


def test_an_unreadable_image_is_named_and_left_out(classifier, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"no picture")
    result = predict(classifier, folder, "--out", tmp_path / "out")
    assert result.return_value == 3
    assert "left out: cannot read image" in result.output and "broken.png" in result.output
    assert "1 left out" in result.output
    (folder / "notes.txt").write_text("no picture")
    predict(classifier, folder, "--out", tmp_path / "again")
    with (tmp_path / "again" / "left_out.csv").open(encoding="utf-8") as file:
        broken, other = csv.DictReader(file)
    assert broken["files"] == "1" and "cannot read image" in broken["why"] and "broken.png" in broken["why"]
    assert other == {"files": "1", "why": "not used: .txt"}
    assert len(table(tmp_path / "out")) == 3


def test_dicom_without_pydicom_is_left_out(classifier, folder, tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pydicom" else found(name, *more)
    )
    (folder / "x.dcm").write_bytes(bytes(128) + b"DICM" + bytes(200))
    outcome = predict_folder(load_trained(classifier, "last"), folder, tmp_path / "out")
    assert [p for p in outcome.problems if "x.dcm: DICOM needs pydicom: pip install suture[dicom]" in p]


def test_a_folder_of_nothing_readable_leaves_nothing(classifier, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=r"none of the 1 images in .*in can be read; the first: cannot read image"
    ):
        predict_folder(load_trained(classifier, "last"), tmp_path / "in", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_is_empty_or_missing_is_refused(classifier, tmp_path):
    model = load_trained(classifier, "last")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        predict_folder(model, tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="is not a folder"):
        predict_folder(model, tmp_path / "elsewhere", tmp_path / "out")
    with pytest.raises(ConfigError, match="batch size must be at least 1, got 0"):
        predict_folder(model, tmp_path / "in", tmp_path / "out", batch_size=0)


def test_a_full_output_folder_is_refused_or_replaced(segmenter, folder, tmp_path):
    model, out = load_trained(segmenter, "last"), folder / "out"
    predict_folder(model, folder, out)
    with pytest.raises(ConfigError, match=r"out is not empty; give another --out, or .* with --overwrite"):
        predict_folder(model, folder, out)
    (out / "notes.txt").write_text("mine")
    (folder / "a.png").unlink()
    predict_folder(model, folder, out, overwrite=True)
    # Our own masks below the folder of images are no images.
    assert [row["image"] for row in table(out)] == ["ward/tall.tif", "wide.jpg"]
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == [
        "notes.txt",
        "predictions.csv",
        "tall_mask.png",
        "wide_mask.png",
    ]


def test_a_model_that_is_missing_or_damaged_is_refused(classifier, tmp_path):
    with pytest.raises(ConfigError, match=r"does not exist; name a run folder or a model.pt"):
        load_trained(tmp_path / "elsewhere", "best")
    with pytest.raises(ConfigError, match=r"holds no clients/\*/model.pt"):
        load_trained(tmp_path, "best")
    whole = (classifier / "clients/client0/model.pt").read_bytes()
    damaged = tmp_path / "model.pt"
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"cannot load a model from .*model.pt \("):
        load_trained(damaged, "best")
    torch.save({"weights": torch.zeros(1)}, damaged)
    with pytest.raises(ConfigError, match="not a model that suture wrote"):
        load_trained(damaged, "best")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=99), "has format 99, this version reads 1"),
        (lambda c: c.update(model="vgg"), "model must be one of .*, got 'vgg'"),
        (lambda c: c.pop("classes"), "cannot load a model .*KeyError"),
        (lambda c: c.update(classes=["a", "b", "c"]), "cannot load a model .*RuntimeError"),
        (lambda c: c["last"]["parts"]["top"].popitem(), "weights are not those of its digest"),
    ],
)
def test_a_model_whose_contents_do_not_fit_is_refused(classifier, tmp_path, change, message):
    content = torch.load(classifier / "clients/client0/model.pt", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=message):
        load_trained(tmp_path / "model.pt", "last")
