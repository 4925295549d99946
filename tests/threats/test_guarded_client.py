"""Defences and detectors at work in a client: in whole runs of one process, and step by step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import Watch
from torch import Tensor

from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.roles.one_process import play_locally, run_in_one_process
from suture.runtime.errors import AlarmError, ConfigError
from suture.studies.bench.attacks import variants
from suture.studies.bench.rigs.rig import Rig
from suture.threats.registry import DEFENCES

KEY = bytes(32)
# A proxy that has not learnt anything yet is worse than the mean image: without a threshold it acts at once.
EVERY_DEFENCE = "dcor+proxy:width=8,threshold=100+noise:scale=0.2+quantise:bits=6+dropout:p=0.2"


def _options(**changed: Any) -> RunOptions:
    values: dict[str, Any] = {
        "data": "fundus-phantom",
        "model": "resnet18",
        "cut": "4",
        "image_size": 16,
        "clients": 1,
        "train_images": 32,
        "validation_images": 0,
        "test_images": 4,
        "epochs": 2,
        "batch_size": 4,
        "threads": 1,
        "exchange": "local",
    }
    return AskedOptions(**values | changed).resolved()


def _weights(folder: Path, **changed: Any) -> str:
    torch.set_num_threads(1)
    folder.mkdir()
    return play_locally(_options(**changed), KEY, folder).weights_sha256()


SHORT: dict[str, Any] = {"clients": 2, "train_images": 12, "epochs": 1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of the undefended run."""
    return _weights(tmp_path_factory.mktemp("plain") / "run", **SHORT)


@pytest.mark.parametrize("defence", DEFENCES)
def test_a_defence_changes_the_training(tmp_path: Path, plain: str, defence: str) -> None:
    """Oracle: weights_sha256 of the undefended run with the same key."""
    spec = "proxy:threshold=100" if defence == "proxy" else defence
    assert _weights(tmp_path / "run", defence=spec, **SHORT) != plain


def test_a_run_with_all_defences_is_repeated_bit_for_bit(tmp_path: Path) -> None:
    """Oracle: weights_sha256 of two runs with one key; two clients, so their state has travelled."""
    one, other = (_weights(tmp_path / name, defence=EVERY_DEFENCE, **SHORT) for name in ("one", "other"))
    assert one == other


def test_a_detector_that_only_watches_changes_nothing(tmp_path: Path, plain: str) -> None:
    """Oracle: the weights of the run without it."""
    assert _weights(tmp_path / "watched", detector="gradient-scrutinizer", **SHORT) == plain


def test_the_detector_sees_the_servers_gradient_without_the_clients_own_penalty(tmp_path: Path) -> None:
    """Oracle: the gradient seen in a step with a heavy penalty equals that of the same step without one."""
    seen = []
    for name, defence in (("plain", None), ("dcor", "dcor:alpha=1000")):
        (tmp_path / name).mkdir()
        rig = Rig(_options(defence=defence), tmp_path / name)
        detector = rig.client.model.detector = Watch()
        rig.step()
        seen.append(detector.seen[0])
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


def test_a_fake_batch_goes_up_with_wrong_labels_and_teaches_the_client_nothing(tmp_path: Path) -> None:
    """Oracle: the bottom's weights and the proxy's stay as they were over the fake step, the top's do not."""
    rig = Rig(_options(defence="proxy:width=8"), tmp_path)
    detector = rig.client.model.detector = Watch(fake_steps=(2,))
    for step in range(4):
        before = _copies(rig)
        rig.step()
        bottom, top, proxy = (
            any(not torch.equal(was[name], now[name]) for name in was)
            for was, now in zip(before, _copies(rig), strict=True)
        )
        assert (bottom, top, proxy) == ((False, True, False) if step == 2 else (True, True, True))
    batches = list(rig.client.model.batches(rig.turn))
    for step in range(4):
        sent = 1 - batches[step].targets if step == 2 else batches[step].targets
        assert torch.equal(detector.seen[step][2], sent)
    assert detector.asked == [0, 1, 2, 3]


def _copies(rig: Rig) -> list[dict[str, Tensor]]:
    parts = (rig.client.model.bottom, rig.server.top, rig.client.model.defence.net)  # type: ignore[attr-defined]
    return [{name: p.detach().clone() for name, p in part.named_parameters()} for part in parts]


def test_an_alarm_stops_the_client_before_it_sends_more(tmp_path: Path) -> None:
    """Oracle: AlarmError, and a detector.jsonl that ends with the step of the alarm; with log it goes on."""
    attack = "fsha:aux_images=32,pretrain=0"
    detector = "gradient-scrutinizer:window=3,threshold=0"
    options = _options(attack=attack, detector=detector, on_alarm="stop", run_dir=str(tmp_path / "stop"))
    with pytest.raises(AlarmError, match=r"client0: round 1, turn 1: gradient-scrutinizer: over 3 batches"):
        run_in_one_process(options)
    told = _lines(tmp_path / "stop")
    assert [bool(line["alarm"]) for line in told].index(True) == len(told) - 1
    assert len(told) < 8
    run_in_one_process(replace(options, attack=None, on_alarm="log", run_dir=str(tmp_path / "log")))
    assert [line["step"] for line in _lines(tmp_path / "log")] == list(range(1, 17))
    assert list((tmp_path / "log" / "clients" / "client0" / "tensorboard").iterdir())


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / "clients" / "client0" / "detector.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"detector": "splitguard", "labels": "home"}, "labels stay at home"),
        ({"detector": "sonar"}, "unknown detector 'sonar'; known: splitguard, gradient-scrutinizer"),
        ({"defence": "fog"}, "unknown defence 'fog'; known: dcor, proxy"),
        ({"on_alarm": "panic"}, "on_alarm must be one of log, stop"),
        ({"defence": "noise", "unsplit": True}, "with --unsplit nothing does"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_starts(
    changed: dict[str, Any], message: str
) -> None:
    """Oracle: ConfigError when options are resolved."""
    with pytest.raises(ConfigError, match=message):
        _options(**changed)


@pytest.mark.parametrize("name", variants())
def test_every_row_of_the_benchmark_takes_steps(tmp_path: Path, name: str) -> None:
    """Oracle: three steps end and take some time."""
    changes: dict[str, Any] = dict(variants()[name])
    rig = Rig(_options(**changes), tmp_path)
    assert all(rig.step() > 0 for _ in range(3))
