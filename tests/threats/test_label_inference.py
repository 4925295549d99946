"""Label inference: what labels at home do not hide, live, on a recording, and judged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import nn
from torch.nn import functional as F

from suture.launch.lab.attack_recording import attack_recording
from suture.launch.lab.judging import judge_run
from suture.launch.roles.one_process import run_in_one_process
from suture.runtime.errors import ConfigError, DataError
from suture.runtime.hooks import SmashedBatch
from suture.threats.attacks.label_inference.attack import LabelInferenceAttack, LabelInferenceConfig, infer
from suture.threats.attacks.live import KNOWN_FILE, NOT_JUDGED
from suture.threats.attacks.server_view import ServerView
from suture.threats.registry import ATTACKS


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gradients(num: int, num_classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels, and the gradients of a cross entropy by the input of a drawn last layer: g_NF."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = nn.Linear(16, num_classes)
    labels = torch.randint(num_classes, (num,), generator=generator)
    inputs = torch.randn(num, 16, generator=generator).relu().requires_grad_()
    F.cross_entropy(head(inputs), labels).backward()
    assert inputs.grad is not None
    return labels, F.normalize(inputs.grad, dim=1)


def test_the_class_of_every_image_is_read_from_one_known_image_a_class() -> None:
    """Oracle: the labels by which the gradients were made; the known ones are not guessed."""
    labels, g = gradients(200, 10, 3)
    first = {int(k): int((labels == k).nonzero()[0]) for k in range(10)}
    known = {("a", 0, row): label for label, row in first.items()}
    guessed = infer({("a", 0): g}, known)["a", 0]
    others = torch.ones(200, dtype=torch.bool)
    others[list(first.values())] = False
    assert torch.equal(guessed[others], labels[others])
    assert (guessed[~others] == NOT_JUDGED).all()


def test_gradients_that_say_nothing_give_nothing_away() -> None:
    """Oracle: noise in place of gradients: the share of hits is that of guessing, 10 %."""
    labels, _ = gradients(2000, 10, 3)
    noise = F.normalize(torch.randn(2000, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    first = {int(k): int((labels == k).nonzero()[0]) for k in range(10)}
    guessed = infer({("a", 0): noise}, {("a", 0, row): label for label, row in first.items()})["a", 0]
    assert 0.06 < float((guessed == labels).float().mean()) < 0.14


def test_without_a_known_image_nothing_is_guessed(tmp_path: Path) -> None:
    """Oracle: the sentences."""
    with pytest.raises(DataError, match="no gradient of a known image came"):
        infer({("a", 0): torch.ones(2, 3)}, {("b", 0, 0): 1})
    view = ServerView(smashed_shape=(2,), image_shape=(1, 4, 4), num_rounds=3, folder=tmp_path)
    attack = LabelInferenceAttack(LabelInferenceConfig(), view)
    with pytest.raises(DataError, match="known.json; a lab's client writes it when it joins"):
        attack.finish()
    (tmp_path / KNOWN_FILE).write_text("[]")
    with pytest.raises(DataError, match="no gradient of round 1 came; on a recording use round=N"):
        attack.finish()
    with pytest.raises(ConfigError, match=r"round must lie in 1..3, the run's rounds, got 4"):
        LabelInferenceAttack(LabelInferenceConfig(round=4), view)


def test_the_attack_reads_only_its_door(tmp_path: Path) -> None:
    """Oracle: smashed data that would spoil any sum; the doors that change training hand back what they got."""
    view = ServerView(smashed_shape=(2,), image_shape=(1, 4, 4), folder=tmp_path)
    attack = LabelInferenceAttack(LabelInferenceConfig(), view)
    batch = SmashedBatch(torch.full((2, 2), float("nan")), None, ("client0",), 1, 0)
    grad = torch.ones(2, 2)
    attack.observe(batch)
    assert attack.gradient(batch, grad) is grad and attack.directions() == {}
    attack.received(batch, torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    ((place, found),) = attack.directions().items()
    assert place == ("client0", 0) and found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": "shared"}, "reads the gradient of the top's output, .*use --labels home"),
        (
            {"model": "unet", "cut": "2", "data": "chest-phantom"},
            "infers an image's class, and masks have none",
        ),
    ],
)
def test_a_run_that_cannot_carry_it_is_refused(changed: dict[str, Any], message: str) -> None:
    """Oracle: the sentence with the remedy."""
    given = {"labels": "home", "model": "resnet18", "cut": "4"} | changed
    needs = ATTACKS.parse("label-inference").needs
    with pytest.raises(ConfigError, match=message):
        needs.check(
            "label-inference", labels_shared=given["labels"] == "shared", classes=given["model"] != "unet"
        )
    for bad in ({"known": 0}, {"round": 0}, {"draw": -1}):
        with pytest.raises(ConfigError, match="must be at least"):
            LabelInferenceConfig(**bad)


@pytest.mark.parametrize("schedule", ["round-robin", "concat"])
def test_live_and_on_a_recording_it_reads_the_labels_and_is_judged(schedule: str, tmp_path: Path) -> None:
    """Oracle: the judge, who has the labels: all of them, both times; what was known does not count."""
    run = tmp_path / "run"
    options = dataclasses.replace(
        TINY, labels="home", clients=2, train_images=12, batch_size=4, epochs=2, schedule=schedule,
        attack="label-inference", recording="all", judge="off", run_dir=str(run),
    )  # fmt: skip
    run_in_one_process(options)
    live = judge_run(run)
    (rows,) = live["scores"].values()
    assert rows["attack"]["guessed"] > 0.9 > rows["shuffled"]["guessed"]
    assert rows["attack"]["num_images"] == 24 - 2 == rows["shuffled"]["num_images"]
    low, high = rows["attack"]["guessed_interval"]
    assert 0 <= low < rows["attack"]["guessed"] <= high <= 1
    known = json.loads((run / "attack" / KNOWN_FILE).read_text())
    assert sorted(label for *_, label in known) == [0, 1] and {name for name, *_ in known} == {"client0"}
    again = attack_recording(run, "label-inference")
    assert again["scores"] == live["scores"]
    later = attack_recording(run, "label-inference:round=2,draw=3")
    assert later["chosen_round"] == 2 and later["scores"]["train"]["attack"]["num_images"] == 22
