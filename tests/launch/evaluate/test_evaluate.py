"""`suture evaluate`: a small run, its page, numbers and pictures.

Oracle: the run's own summary and its division of the images.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn import metrics
from tiny import TINY
from torch import nn

from suture.cli import suture
from suture.launch import build
from suture.launch.evaluate.evaluate import evaluate
from suture.launch.evaluate.grad_cam import heat_maps
from suture.launch.options.options import AskedOptions
from suture.launch.roles.one_process import run_in_one_process
from suture.runtime.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def classified(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    options = replace(TINY, clients=2, test_images=8, validation_images=6, threads=1, run_dir=str(run))
    run_in_one_process(options)
    return run


@pytest.fixture(scope="module")
def segmented(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    run_in_one_process(
        AskedOptions(
            data="chest-phantom", model="unet", width=4, cut="1", image_size=32, train_images=4,
            validation_images=2, test_images=5, batch_size=2, epochs=1, clients=2, exchange="local",
            threads=1, run_dir=str(run),
        )
    )  # fmt: skip
    return run


def read(out: Path) -> tuple[dict, list[dict[str, str]]]:
    with (out / "predictions.csv").open() as file:
        return json.loads((out / "evaluation.json").read_text()), list(csv.DictReader(file))


def test_a_classifier_is_scored_on_the_images_that_its_run_tested_on(classified, tmp_path):
    """Oracle: the run's division; its accuracy at .5; scikit-learn's scores of the written table."""
    page = evaluate(classified, "fundus-phantom", tmp_path / "out", which="last", sensitivity=None)
    found, rows = read(tmp_path / "out")
    options = replace(TINY, clients=2, test_images=8, validation_images=6).resolved()
    images = build.build_images(options, 2)
    tested = {images.source.examples[i].key for share in images.shares for i in share.test}
    assert {row["image"] for row in rows} == tested and len(rows) == found["num_images"] == 16
    name = images.source.classes[1]
    p = np.array([float(row[f"probability_{name}"]) for row in rows])
    y = np.array([row["true"] == name for row in rows])
    guess = np.array([row["predicted"] == name for row in rows])
    assert (guess == (p >= found["threshold"])).all() and "Youden" in found["threshold_chosen"]
    assert found["confusion"] == metrics.confusion_matrix(y, guess).tolist()
    assert found["accuracy"]["value"] == metrics.accuracy_score(y, guess)
    own = found["classes"][name]
    assert own["auroc"] == pytest.approx(metrics.roc_auc_score(y, p), abs=1e-6)
    low, high = own["auroc_interval"]
    assert low <= own["auroc"] <= high
    clients = json.loads((classified / "summary.json").read_text())["clients"]
    at_half = np.mean([one["test"]["accuracy"] for one in clients.values()])
    assert ((p > 0.5) == y).mean() == pytest.approx(at_half)
    text = page.read_text()
    assert text.count("data:image/png;base64,") == len(list((tmp_path / "out" / "figures").iterdir())) >= 4
    assert "http" not in text.replace("http-equiv", "")


def test_masks_are_scored_image_by_image_and_the_worst_are_shown(segmented, tmp_path):
    """Oracle: the run's own mean Dice over its clients, as many images each."""
    evaluate(segmented, "chest-phantom", tmp_path / "out", which="last", sensitivity=None)
    found, rows = read(tmp_path / "out")
    clients = json.loads((segmented / "summary.json").read_text())["clients"]
    expected = np.mean([one["test"]["dice"] for one in clients.values()])
    assert found["dice"]["value"] == pytest.approx(expected, abs=1e-6)
    assert np.mean([float(row["dice"]) for row in rows]) == pytest.approx(expected, abs=1e-6)
    low, high = found["dice"]["interval"]
    assert low <= found["dice"]["value"] <= high and len(rows) == 10
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {"dice.png", "worst.png"}


def test_a_client_of_a_run_is_evaluated_on_its_own_test_images(classified, tmp_path):
    """Oracle: the client's own scores at the end of the run."""
    own = classified / "clients" / "client1"
    evaluate(own, "fundus-phantom", tmp_path / "out", which="last", sensitivity=None)
    found, rows = read(tmp_path / "out")
    at_the_end = json.loads((classified / "summary.json").read_text())["clients"]["client1"]["test"]
    assert len(rows) == at_the_end["num_images"]
    (one,) = found["sites"].values()
    assert one["auroc"] == pytest.approx(at_the_end["auroc"], abs=1e-6)
    assert "client1&#x27;s own test images" in (tmp_path / "out" / "evaluation.html").read_text()


def test_a_model_alone_is_evaluated_on_all_images_of_other_data(classified, tmp_path):
    """Oracle: the sentence on the page; without validation images the threshold is the middle."""
    model = classified / "clients" / "client0" / "model.pt"
    result = CliRunner().invoke(
        suture, ["evaluate", str(model), "fundus-phantom", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert "none of them may have been trained on" in (tmp_path / "out" / "evaluation.html").read_text()
    assert read(tmp_path / "out")[0]["threshold"] == 0.5


@pytest.mark.parametrize(
    ("data", "sensitivity", "words"),
    [
        ("chest-phantom", None, "is for classification, data chest-phantom is for segmentation"),
        ("fundus-phantom", 1.5, "sensitivity must lie above 0 and at most at 1, got 1.5; use 0.9, say"),
    ],
)
def test_what_cannot_work_is_refused(data, sensitivity, words, classified, tmp_path):
    """Oracle: the message; nothing is written."""
    with pytest.raises(ConfigError, match=words):
        evaluate(classified, data, tmp_path / "out", which="last", sensitivity=sensitivity)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(classified, tmp_path):
    """Oracle: the message."""
    (tmp_path / "kept").write_text("")
    with pytest.raises(ConfigError, match="is not empty; give another --out"):
        evaluate(classified, "fundus-phantom", tmp_path, which="last", sensitivity=None)


def test_a_heat_map_lies_where_the_class_is_seen():
    """Oracle: a net whose first class is the brightness of the image: the bright corner is hot, the rest is not."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(conv.weight)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x):
            brightness = self.conv(x).mean((1, 2, 3))
            return torch.stack((brightness, torch.zeros_like(brightness)), 1).softmax(1)

    image = torch.zeros(1, 1, 8, 8)
    image[..., :2, :2] = 1
    heat = heat_maps(Net(), image, torch.tensor([0]))
    assert heat is not None and torch.equal(heat, image[:, 0])
    assert heat_maps(nn.Sequential(nn.Flatten(), nn.Softmax(1)), image, torch.tensor([0])) is None


def test_data_of_its_own_are_read_as_the_options_say(classified, tmp_path, monkeypatch):
    """Oracle: what the registry of data sources is asked for; the command passes its options on."""
    asked = {}

    def opened(spec, **how):
        asked.update(how)
        raise DataError("seen")

    monkeypatch.setattr("suture.launch.evaluate.images.open_source", opened)
    words = (
        f"{classified} kaggle-dr:{tmp_path} --out {tmp_path}/out --columns image=scan --structure 2 --frame 3"
    )
    done = CliRunner().invoke(suture, ["evaluate", *words.split()])
    assert isinstance(done.exception, DataError) and str(done.exception) == "seen"
    assert (asked["columns"], asked["structure"], asked["frame"]) == ("image=scan", "2", 3)
