"""Grades in their order and several findings an image, from the npz to the page, with labels shared and at home.

No ChestMNIST is here: a small npz of its form is made of noise.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn import metrics
from tiny import TINY

from suture.cli import suture
from suture.launch import build
from suture.launch.evaluate.evaluate import evaluate
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.roles.one_process import play_locally, run_in_one_process
from suture.launch.roles.unsplit import Unsplit
from suture.runtime.errors import ConfigError, DataError
from suture.runtime.server.run_state import RunState

KEY = bytes(range(32))
FINDINGS, GRADES = 14, 5


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Images whose brightness by region tells findings and grades; 60 to train, 20 to test."""
    torch.set_num_threads(1)
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("npz")
    found, graded = {}, {}
    for split, number in (("train", 120), ("val", 20), ("test", 60)):
        images = rng.integers(0, 60, (number, 16, 16), dtype=np.uint8)
        there = rng.integers(0, 2, (number, FINDINGS), dtype=np.uint8)
        grade = rng.integers(0, GRADES, number)
        for k in range(FINDINGS):
            images[:, k] += 120 * there[:, k, None]
        graded |= {f"{split}_images": images + (20 * grade[:, None, None]).astype(np.uint8)}
        graded |= {f"{split}_labels": grade[:, None].astype(np.uint8)}
        found |= {f"{split}_images": images, f"{split}_labels": there}
    np.savez(folder / "chestmnist.npz", **found)
    np.savez(folder / "grades.npz", **graded)
    return {"multi-label": folder / "chestmnist.npz", "ordinal": folder / "grades.npz"}


def asked(files, kind: str, **changes) -> AskedOptions:
    given = {"data": f"medmnist:{files[kind]}", "task": kind, "validation_images": 8, "test_images": 10}
    return replace(TINY, **given | {"train_images": 16, "clients": 2} | changes)


def unsplit(options: RunOptions) -> Unsplit:
    images = build.build_images(options, options.clients)
    names = [build.client_name(index) for index in range(options.clients)]
    data = {name: build.build_data(options, images, index) for index, name in enumerate(names)}
    trainer = Unsplit(options, data, KEY, len(images.source.classes))
    for round in range(1, options.epochs + 1):
        for name in names:
            for batch in trainer.train_batches(round, name):
                trainer.train_step(round, name, batch)
    return trainer


class Killed(BaseException):
    """The process died here."""


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("labels", ["shared", "home"])
@pytest.mark.parametrize("task", ["ordinal", "multi-label"])
def test_a_split_run_ends_as_unsplit_training_killed_or_not(
    task, labels, weights, files, tmp_path, monkeypatch
):
    """Oracle: unsplit training: weights and scores; the same run killed after its second checkpoint."""
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    options = asked(files, task, labels=labels, class_weights=weights).resolved()
    trainer = unsplit(options)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = play_locally(options, KEY, tmp_path / "whole")
    assert whole.weights_sha256() == trainer.weights_sha256()
    for client, scores in whole.run_state.scores.items():
        assert scores["test"] == pytest.approx(trainer.evaluate(client, options.epochs)["test"], abs=1e-6)
    save, saved = RunState.save, []

    def dying(run_state):
        save(run_state)
        saved.append(1)
        if len(saved) == 2:
            raise Killed

    with pytest.raises(Killed), monkeypatch.context() as patch:
        patch.setattr(RunState, "save", dying)
        play_locally(options, KEY, tmp_path / "killed")
    assert (
        play_locally(options, KEY, tmp_path / "killed", resume=True).weights_sha256()
        == whole.weights_sha256()
    )


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory) -> dict[str, Path]:
    """A run of each task that has learnt something."""
    made = {}
    for task, labels in (("ordinal", "home"), ("multi-label", "shared")):
        made[task] = tmp_path_factory.mktemp(task) / "run"
        run_in_one_process(
            asked(
                files, task, labels=labels, epochs=8, run_dir=str(made[task]), sandbox="off", test_images=12
            )
        )
    return made


def evaluated(runs, files, task, tmp_path) -> tuple[dict, list[dict[str, str]]]:
    evaluate(runs[task], f"medmnist:{files[task]}", tmp_path / "out", which="last", sensitivity=None)
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as table:
        return json.loads((tmp_path / "out" / "evaluation.json").read_text()), list(csv.DictReader(table))


def test_grades_are_evaluated_with_kappa(runs, files, tmp_path):
    """Oracle: sklearn on the table of predictions; the interval holds the value."""
    found, rows = evaluated(runs, files, "ordinal", tmp_path)
    true, guess = ([int(row[name]) for row in rows] for name in ("true", "predicted"))
    kappa = found["quadratic_kappa"]
    assert kappa["value"] == pytest.approx(
        metrics.cohen_kappa_score(true, guess, weights="quadratic"), abs=1e-9
    )
    assert kappa["interval"][0] <= kappa["value"] <= kappa["interval"][1]
    for row, grade in zip(rows, guess, strict=True):
        above = np.cumsum([float(row[f"probability_{k}"]) for k in range(GRADES)])
        assert grade == int((1 - above[:-1] > 0.5).sum())
    assert "Quadratic weighted kappa" in (tmp_path / "out" / "evaluation.html").read_text()


def test_findings_are_evaluated_one_by_one(runs, files, tmp_path):
    """Oracle: sklearn on the table of predictions, finding by finding; thresholds and what they give, by hand."""
    found, rows = evaluated(runs, files, "multi-label", tmp_path)
    assert len(found["findings"]) == FINDINGS and "atelectasis" in found["findings"]
    areas = []
    for name, own in found["findings"].items():
        y = np.array([int(row[f"true_{name}"]) for row in rows])
        p = np.array([float(row[f"probability_{name}"]) for row in rows])
        areas.append(metrics.roc_auc_score(y, p))
        assert own["auroc"] == pytest.approx(areas[-1], abs=1e-6)
        assert own["average_precision"] == pytest.approx(metrics.average_precision_score(y, p), abs=1e-6)
        assert own["sensitivity"]["value"] == pytest.approx((p[y == 1] >= own["threshold"]).mean(), abs=0.1)
        assert own["specificity"]["num_images"] == int((y == 0).sum())
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"curves.png", "calibration.png"} <= figures


@pytest.mark.parametrize("task", ["ordinal", "multi-label"])
def test_scores_reach_summary_metrics_and_tensorboard(task, runs):
    """Oracle: the names of the task's scores in each file."""
    main = {"ordinal": "quadratic_kappa", "multi-label": "auroc"}[task]
    summary = json.loads((runs[task] / "summary.json").read_text())
    assert summary["task"] == task and all(main in one["test"] for one in summary["clients"].values())
    lines = [json.loads(line) for line in (runs[task] / "metrics.jsonl").read_text().splitlines()]
    assert any(main in line for line in lines)
    if task == "multi-label":
        assert "auroc_atelectasis" in summary["clients"]["client0"]["test"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = []
    for folder in {path.parent for path in (runs[task] / "tensorboard").rglob("events*")}:
        events = EventAccumulator(str(folder))
        events.Reload()
        tags += events.Tags()["scalars"]
    assert any(main in tag for tag in tags)
    page = (runs[task] / "report.html").read_text()
    assert {"ordinal": "quadratic kappa", "multi-label": "accuracy of labels"}[task] in page


@pytest.mark.parametrize("task", ["ordinal", "multi-label"])
def test_a_trained_model_predicts_and_is_exported(task, runs, tmp_path):
    """Oracle: probabilities by the exported file; the findings above one half, the grade in the middle."""
    (tmp_path / "in").mkdir()
    for k in range(3):
        Image.fromarray(np.full((16, 16), 80 * k, np.uint8)).save(tmp_path / "in" / f"{k}.png")
    done = CliRunner().invoke(
        suture, ["predict", str(runs[task]), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        p = np.array([float(value) for name, value in row.items() if name.startswith("probability_")])
        names = [name.removeprefix("probability_") for name in row if name.startswith("probability_")]
        if task == "multi-label":
            expected = "; ".join(name for name, one in zip(names, p, strict=True) if one > 0.5)
        else:
            assert p.sum() == pytest.approx(1, abs=1e-5)
            expected = names[int((1 - p.cumsum()[:-1] > 0.5).sum())]
        assert row["predicted"] == expected
    exported = CliRunner().invoke(
        suture, ["export", str(runs[task]), "--format", "torchscript", "--out", str(tmp_path / "m.pt")]
    )
    assert exported.exit_code == 0 and "verified" in exported.output, exported.output


def test_a_site_checks_its_findings(files):
    """Oracle: the table of the command, a line a finding."""
    spec = f"medmnist:{files['multi-label']}"
    done = CliRunner().invoke(suture, ["check", spec, "--task", "multi-label", "--image-size", "16"])
    assert "task        multi-label" in done.output and "hernia" in done.output, done.output
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (
            {"task": None},
            DataError,
            "these labels are for multi-label, and the run is for classification; use --task",
        ),
        ({"task": "segmentation"}, ConfigError, "task segmentation does not fit data medmnist"),
        ({"label_smoothing": 0.1}, ConfigError, "label-smoothing is for classification"),
        (
            {"recording": "all"},
            ConfigError,
            "attack and recording know classes and masks, and the task is multi-label",
        ),
        ({"partition": "dirichlet:1"}, ConfigError, "an image may have several findings; use quantity:ALPHA"),
    ],
)
def test_what_cannot_work_is_refused(given, error, words, files):
    """Oracle: the message."""
    with pytest.raises(error, match=words):
        options = asked(files, "multi-label", **given).resolved()
        build.build_images(options, options.clients)


def test_grades_of_photographs_are_all_grades_whatever_grades_says(real_images):
    """Oracle: IDRiD's five grades."""
    options = AskedOptions(data=f"kaggle-dr:{real_images}/idrid", task="ordinal", train_images=20).resolved()
    source = options.open_own(40, 0)
    assert str(source.task) == "ordinal" and len(source.classes) == 5
