"""Experiments: intervals that are right, runs that are not run twice, and weights that are compared.

Oracle: Student's t by hand; a fake of `suture train` that writes what a run writes and notes how it was started.
"""

import csv
import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import experiment
from launch.config import RunOptions
from launch.experiment import EXPERIMENTS, mean_and_interval, run_experiment
from runtime.errors import SutureError

OPTIONS = RunOptions(epochs=2, seed=5)


def test_mean_and_interval_are_those_worked_out_by_hand():
    """Oracle: 1, 2, 3, 4: mean 2.5, variance 5/3, standard error sqrt(5/12), t(3) = 3.182."""
    mean, half = mean_and_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and half == pytest.approx(3.182 * math.sqrt(5 / 12)) == pytest.approx(2.054, abs=1e-3)
    assert mean_and_interval([0.25, 0.75]) == (0.5, pytest.approx(12.706 * 0.25))
    assert mean_and_interval([0.5] * 5) == (0.5, 0.0)


def test_one_value_has_no_interval():
    """Oracle: nan, which the table leaves out."""
    mean, half = mean_and_interval([0.5])
    assert mean == 0.5 and math.isnan(half)


@pytest.mark.parametrize(
    ("count", "t"), [(3, 4.303), (10, 2.262), (11, 2.228), (21, 2.086), (31, 2.042), (200, 1.96)]
)
def test_the_interval_uses_students_t(count, t):
    """Oracle: printed tables of the two-sided 95 % quantile at ``count - 1`` degrees of freedom."""
    values = [float(value) for value in range(count)]
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    assert mean_and_interval(values)[1] == pytest.approx(t * deviation / math.sqrt(count), rel=1e-3)


class FakeTrain:
    """Stands in for ``suture train``: refuses what it does not know and writes a summary."""

    def __init__(self):
        self.started, self.fail, self.digests = [], set(), {}

    def run(self, command, **options):
        assert command[1:4] == ["-m", "launch", "train"]
        arguments = command[4:]
        folder = Path(self.last(arguments, "--run-dir"))
        assert Path(self.last(arguments, "--handoff-key")).exists()
        assert "--resume" in arguments or not folder.exists()
        self.started.append((folder.name, arguments))
        folder.mkdir(parents=True, exist_ok=True)
        if folder.name in self.fail:
            return SimpleNamespace(returncode=3, stderr=b"loading\nsuture: no such data\n")
        seed = int(self.last(arguments, "--seed"))
        scores = {
            "accuracy": 0.5 + seed / 100,
            "balanced_accuracy": 0.5,
            "auroc": 0.7,
            "majority_accuracy": 0.5,
        }
        summary = {
            "task": "classification", "seed": seed, "weights_sha256": self.digests.get(folder.name, "d" * 64),
            "clients": {"client0": {"test": scores}, "client1": {"test": scores | {"auroc": 0.9}}},
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
        return SimpleNamespace(returncode=0, stderr=b"")

    @staticmethod
    def last(arguments, name):
        """click takes the last of an option that is given twice."""
        return arguments[len(arguments) - arguments[::-1].index(name)]

    @property
    def names(self):
        return [name for name, _ in self.started]


@pytest.fixture
def train(monkeypatch) -> FakeTrain:
    fake = FakeTrain()
    monkeypatch.setattr(experiment, "subprocess", SimpleNamespace(run=fake.run, PIPE=subprocess.PIPE))
    return fake


ALL = ["split-5", "split-6", "central-5", "central-6", "unsplit-5", "split-one-5", "unsplit-one-5"]


def test_every_arm_is_run_with_every_seed_and_put_into_the_table(train, tmp_path, capsys):
    """Oracle: the plan of arms; means over two clients and two seeds by hand."""
    run_experiment("split-vs-central", OPTIONS, 2, tmp_path / "e")
    assert train.names == ALL
    given = dict(train.started)
    assert given["split-5"][:2] == ["--epochs", "2"] and "--unsplit" not in given["split-5"]
    assert {"--unsplit", "--pooled"} <= set(given["central-6"]) and train.last(
        given["central-6"], "--seed"
    ) == "6"
    assert train.last(given["split-one-5"], "--clients") == "1"
    keys = {name: train.last(arguments, "--handoff-key") for name, arguments in given.items()}
    assert keys["split-5"] == keys["unsplit-5"] != keys["split-6"], "arms of one seed share the key"

    rows = list(csv.DictReader((tmp_path / "e" / "table.csv").open()))
    assert [(row["training"], row["seed"]) for row in rows] == [tuple(name.rsplit("-", 1)) for name in ALL]
    assert float(rows[0]["accuracy"]) == 0.55 and float(rows[0]["auroc"]) == 0.8
    table = (tmp_path / "e" / "table.md").read_text()
    assert "0.555 ± 0.064" in table and "0.800 ± 0.000" in table, "12.706 * 0.005 = 0.0635"
    assert "| unsplit: the split run's batches through the unsplit net | 1 | 0.550 | 0.500 | 0.800" in table
    assert table in capsys.readouterr().out


def test_a_finished_run_is_not_run_again(train, tmp_path):
    """Oracle: the fake is not called a second time, and both tables are equal."""
    run_experiment("split-vs-central", OPTIONS, 1, tmp_path)
    first, table = list(train.names), (tmp_path / "table.csv").read_bytes()
    run_experiment("split-vs-central", OPTIONS, 1, tmp_path)
    assert train.names == first and (tmp_path / "table.csv").read_bytes() == table
    run_experiment("split-vs-central", OPTIONS, 2, tmp_path)
    assert train.names[len(first) :] == ["split-6", "central-6"], "more seeds run what is missing"


def test_a_killed_run_goes_on_where_it_has_checkpoints_and_is_set_aside_where_not(train, tmp_path):
    """Oracle: --resume for split training; an unsplit run has no checkpoints, and what it left is kept."""
    (tmp_path / "runs" / "split-5" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "central-5").mkdir()
    (tmp_path / "runs" / "central-5" / "half.txt").write_text("half")
    run_experiment("split-vs-central", OPTIONS, 1, tmp_path)
    given = dict(train.started)
    assert [name for name in given if "--resume" in given[name]] == ["split-5"]
    assert (tmp_path / "runs" / "central-5.killed-0" / "half.txt").read_text() == "half"


def test_a_run_that_fails_is_named_and_the_others_are_kept(train, tmp_path):
    """Oracle: the last line that the run said; started again, only the rest is run."""
    train.fail = {"central-5"}
    with pytest.raises(SutureError, match="central, seed 5 failed: suture: no such data"):
        run_experiment("split-vs-central", OPTIONS, 1, tmp_path)
    assert train.names == ["split-5", "central-5"] and not (tmp_path / "table.csv").exists()
    train.fail = set()
    run_experiment("split-vs-central", OPTIONS, 1, tmp_path)
    assert train.names[2:] == ["central-5", "unsplit-5", "split-one-5", "unsplit-one-5"]


@pytest.mark.parametrize(
    ("wrong", "pair"), [("unsplit-5", "unsplit and split"), ("split-one-5", "unsplit-one and split-one")]
)
def test_arms_that_must_end_with_the_same_weights_are_compared(wrong, pair, train, tmp_path):
    """Oracle: one digest altered; no table is written. The central arm's may differ."""
    train.digests = {wrong: "e" * 64}
    with pytest.raises(SutureError, match=f"{pair} ended with different weights"):
        run_experiment("split-vs-central", OPTIONS, 1, tmp_path / "differ")
    assert not (tmp_path / "differ" / "table.md").exists()
    train.digests = {"central-5": "e" * 64}
    run_experiment("split-vs-central", OPTIONS, 1, tmp_path / "may")
    assert (tmp_path / "may" / "table.md").exists()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_arm_is_compared_with_one_that_exists(name):
    """Oracle: the names of the experiment's arms, each once."""
    names = [arm.name for arm in EXPERIMENTS[name]]
    assert len(set(names)) == len(names)
    assert {arm.same_weights_as for arm in EXPERIMENTS[name]} <= {*names, ""}
