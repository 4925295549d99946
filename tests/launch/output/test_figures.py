"""Figures are written whole, for all shapes of input; what they show is checked on the arrays behind them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from suture.launch.output.figures import (
    activations,
    bottom_stages,
    metrics_by_round,
    segmentation,
    training_loss,
)
from suture.launch.output.figures.canvas import client_looks
from suture.launch.output.figures.curves import _clients, _with_gaps, smoothed
from suture.launch.output.figures.pictures import _channels_to_show
from suture.models.split import BottomOutput

CLASSIFICATION = {"accuracy": 0.8, "balanced_accuracy": 0.7, "auroc": 0.9, "majority_accuracy": 0.5}
SEGMENTATION = {"dice": 0.8, "jaccard": 0.7, "pixel_accuracy": 0.99}


def _records(
    scores: dict[str, float], num_clients: int = 2, num_rounds: int = 2, num_batches: int = 3
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    step = 0
    for round in range(1, num_rounds + 1):
        for client in range(num_clients):
            for _ in range(num_batches):
                step += 1
                place = {"step": step, "round": round, "turn": round, "client": f"client{client}"}
                records.append(place | {"phase": "train", "loss": 1 / step})
        for client in range(num_clients):
            place = {"step": step, "round": round, "turn": round, "client": f"client{client}"}
            records.append(place | {"phase": "test", "loss": 0.3} | scores)
    return records


class _Saved(list[matplotlib.figure.Figure]):
    """The figures that were drawn, to look at their lines and titles."""


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> _Saved:
    figures = _Saved()
    save = matplotlib.figure.Figure.savefig

    def keep(figure: matplotlib.figure.Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


class _Bottom(nn.Module):
    """Two children and something after them, as in a U-Net's bottom; the second writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_NCHW: torch.Tensor) -> BottomOutput:
        h = self.relu(self.conv(x_NCHW))
        return BottomOutput(nn.functional.max_pool2d(h, 2), (h,))


@pytest.mark.parametrize(
    "records",
    [
        _records(CLASSIFICATION),
        _records(CLASSIFICATION, num_clients=9, num_rounds=30, num_batches=1),
        _records(CLASSIFICATION, 1, 1, 1),
        [*_records(CLASSIFICATION), _records(CLASSIFICATION)[0] | {"loss": None}],
        [],
    ],
    ids=["two clients", "many", "one batch", "a diverged loss", "nothing"],
)
def test_the_loss_figure_is_drawn_for_every_length_of_run(
    tmp_path: Path, saved: _Saved, records: list[dict[str, Any]]
) -> None:
    """Oracle: a PNG of the promised size, and a named line a client."""
    training_loss(records, tmp_path / "figures" / "loss.png")
    assert Image.open(tmp_path / "figures" / "loss.png").size == (1080, 585)
    labels = [line.get_label() for line in saved[0].axes[0].lines]
    assert [label for label in labels if not str(label).startswith("_")] == _clients(records)


@pytest.mark.parametrize("num_rounds", [0, 1, 3, 30])
@pytest.mark.parametrize(
    ("task", "scores"), [("classification", CLASSIFICATION), ("segmentation", SEGMENTATION)]
)
def test_scores_by_round_are_the_recorded_ones(
    tmp_path: Path, saved: _Saved, task: str, scores: dict[str, float], num_rounds: int
) -> None:
    """Oracle: the y values of each chart's lines."""
    metrics_by_round(_records(scores, num_rounds=num_rounds), task, tmp_path / "scores.png")
    charts = saved[0].axes
    titles = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
    titles |= {"dice": "Dice", "jaccard": "Jaccard", "pixel_accuracy": "pixel accuracy"}
    keys = [key for key in scores if key != "majority_accuracy"]
    assert [chart.get_title(loc="left") for chart in charts] == [titles[key] for key in keys]
    for chart, key in zip(charts, keys, strict=True):
        lines = [line for line in chart.lines if str(line.get_label()).startswith("client")]
        assert len(lines) == (2 if num_rounds else 0)
        for line in lines:
            assert list(np.asarray(line.get_ydata())) == [scores[key]] * num_rounds


def test_a_score_that_is_missing_leaves_a_hole_and_guessing_is_drawn_a_client(
    tmp_path: Path, saved: _Saved
) -> None:
    """Oracle: AUROC is undefined in one record of two; majority classes differ: two dashed lines."""
    records = _records(CLASSIFICATION, num_clients=2, num_rounds=1)
    tests = [record for record in records if record["phase"] == "test"]
    del tests[0]["auroc"]
    tests[1]["majority_accuracy"] = 0.75
    metrics_by_round(records, "classification", tmp_path / "scores.png")
    accuracy, _, auroc = saved[0].axes
    assert [len(np.asarray(line.get_xdata())) for line in auroc.lines if line.get_linestyle() == "-"] == [
        0,
        1,
    ]
    dashed = [list(np.asarray(line.get_ydata())) for line in accuracy.lines if line.get_linestyle() == "--"]
    assert [0.5, 0.5] in dashed
    assert [0.75, 0.75] in dashed


def test_smoothing_keeps_a_constant_and_follows_the_mean() -> None:
    """Oracle: a weighted mean of equal values is that value; of noise it lies near the noise's mean."""
    steps = np.concatenate([np.arange(1, 51), np.arange(151, 201)]).astype(float)
    constant = smoothed(np.stack([steps, np.full(100, 0.7)], axis=1))
    assert np.allclose(constant[:, 1], 0.7)
    noise = np.random.default_rng(0).normal(2.0, 0.5, 100)
    assert np.abs(smoothed(np.stack([steps, noise], axis=1))[:, 1] - 2.0).max() < 0.3
    assert smoothed(np.array([[5.0, 0.25]])).tolist() == [[5.0, 0.25]]


def test_the_raw_line_breaks_where_a_client_rests() -> None:
    """Oracle: by hand; steps 1, 2 and 5, 6 are two turns."""
    rows = _with_gaps(np.array([[1.0, 9], [2, 8], [5, 7], [6, 6]]))
    assert np.isnan(rows).all(axis=1).tolist() == [False, False, True, False, False]


def test_clients_are_counted_as_people_count_and_have_lines_of_their_own() -> None:
    """Oracle: client2 comes before client10; 28 looks are all different."""
    names = [f"client{i}" for i in range(12)]
    assert _clients([{"client": name} for name in reversed(names)]) == names
    looks = [tuple(look.items()) for look in client_looks(28)]
    assert len(set(looks)) == 28


def test_stages_are_the_outputs_of_the_children_in_order() -> None:
    """Oracle: the same computation written out; the in-place ReLU must not overwrite conv's output."""
    torch.manual_seed(0)
    bottom = _Bottom().train()
    bottom.relu.eval()
    x = torch.randn(3, 1, 8, 8)
    stages = bottom_stages(bottom, x)
    with torch.no_grad():
        conv = bottom.conv(x[:1])
    relu = conv.relu()
    expected = [("input", x[:1]), ("conv", conv), ("relu", relu), ("smashed data", nn.MaxPool2d(2)(relu))]
    assert [name for name, _ in stages] == [name for name, _ in expected]
    for (_, found), (_, wanted) in zip(stages, expected, strict=True):
        assert torch.equal(found, wanted)
        assert not found.requires_grad


def test_collecting_stages_leaves_the_bottom_as_it_was() -> None:
    """Oracle: modes, hooks and buffers before, also when the forward pass fails."""
    bottom = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train()
    bottom[1].eval()
    modes = [module.training for module in bottom.modules()]
    state = {name: value.clone() for name, value in bottom.state_dict().items()}
    bottom_stages(bottom, torch.randn(1, 1, 8, 8))
    with pytest.raises(RuntimeError):
        bottom_stages(bottom, torch.randn(1, 5, 8, 8))
    assert [module.training for module in bottom.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in bottom.state_dict().items())
    assert not any(module._forward_hooks for module in bottom.modules())


def test_the_same_channels_are_followed_from_stage_to_stage() -> None:
    """Oracle: by hand; of six channels the last stage silences all but 1 and 4."""
    before = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0))
    after = torch.zeros_like(before)
    after[[1, 4]] = before[[1, 4]]
    after[[0, 2]] = 0.01 * before[[0, 2]]
    first, second = _channels_to_show([before, after])
    assert all(torch.equal(a, before[i]) for a, i in zip(first, (0, 1, 2, 4), strict=True))
    assert all(torch.equal(a, after[i]) for a, i in zip(second, (0, 1, 2, 4), strict=True))


@pytest.mark.parametrize("last", [(1, 8, 2, 2), (1, 2, 4, 4), (1, 10), (1, 10, 1, 1)])
@pytest.mark.parametrize("num_stages", [1, 3, 25])
def test_activations_are_drawn_for_all_kinds_of_smashed_data(
    tmp_path: Path, saved: _Saved, last: tuple[int, ...], num_stages: int
) -> None:
    """Oracle: at most ten columns, the first and the last stage among them."""
    stages = [(f"block{i}", torch.rand(1, 3, 16, 16)) for i in range(num_stages)]
    activations([*stages, ("last", torch.rand(last))], tmp_path / "activations.png")
    assert Image.open(tmp_path / "activations.png").format == "PNG"
    titles = [axes.get_title(loc="center") for axes in saved[0].axes if axes.get_title(loc="center")]
    assert len(titles) == min(num_stages + 1, 10)
    assert titles[0] == "block0\n3 × 16 × 16"
    assert titles[-1].startswith("smashed data:\nlast\n")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_channels", [1, 3])
def test_masks_of_every_kind_are_drawn_with_their_dice(
    tmp_path: Path, saved: _Saved, num_channels: int
) -> None:
    """Oracle: Dice by hand; empty, full and partial masks raise no warning; at most eight are shown."""
    half = torch.zeros(8, 8)
    half[:4] = 1
    truth = torch.stack([torch.zeros(8, 8), torch.ones(8, 8), half, half] + [half] * 6).unsqueeze(1)
    prediction = torch.stack([torch.zeros(8, 8), half, half * 0.6, 1 - half] + [half] * 6).unsqueeze(1)
    images = torch.randn(10, num_channels, 8, 8)
    segmentation(images, truth, prediction, tmp_path / "masks.png", title="a title", caption="a caption")
    titles = [axes.get_title(loc="center") for axes in saved[0].axes if axes.get_title(loc="center")]
    assert titles == ["Dice 1.000", "Dice 0.667", "Dice 1.000", "Dice 0.000"] + ["Dice 1.000"] * 4
    assert (saved[0].get_suptitle(), saved[0].get_supxlabel()) == ("a title", "a caption")


def _draw_loss(path: Path) -> None:
    training_loss(_records(CLASSIFICATION), path)


def _draw_activations(path: Path) -> None:
    activations(bottom_stages(_Bottom(), torch.rand(1, 1, 8, 8)), path)


@pytest.mark.parametrize("draw", [_draw_loss, _draw_activations])
def test_a_figure_replaces_the_old_one_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Callable[[Path], None]
) -> None:
    """Oracle: after a failed save the old bytes stand and no temporary file is left."""
    path = tmp_path / "figure.png"
    draw(path)
    before = path.read_bytes()

    def fail(figure: Any, file: Path, **options: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_importing_the_figures_does_not_import_matplotlib() -> None:
    """Oracle: sys.modules of a fresh process."""
    code = "import suture.launch.output.figures, sys; sys.exit('matplotlib' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=False).returncode == 0
