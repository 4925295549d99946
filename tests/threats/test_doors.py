"""What reaches an attack: smashed batches and its own images, nothing else; and an honest one changes nothing."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from fakes import Tap

from suture.launch import build
from suture.launch.lab import lab
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.roles.one_process import play_locally
from suture.runtime.client.client import Client
from suture.runtime.data.client_data import ClientData
from suture.runtime.data.source import Source
from suture.runtime.hooks import Attack, SmashedBatch
from suture.runtime.randomness import Randomness
from suture.runtime.server.model import ServerModel
from suture.threats.registry import ATTACKS

KEY = b"k" * 32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small lose more by two threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(run_dir: Path, **changed: Any) -> RunOptions:
    given = {
        "model": "resnet18", "image_size": 16, "cut": "4", "train_images": 12, "validation_images": 0,
        "test_images": 4, "held_out_images": 4, "epochs": 1, "batch_size": 4, "clients": 2, "threads": 1,
        "exchange": "local", "run_dir": str(run_dir),
    }  # fmt: skip
    return AskedOptions(**(given | changed)).resolved()


def attacked(name: str) -> dict[str, str]:
    """Options of a run with this attack, which is given eight images if it takes any."""
    needs = ATTACKS.parse(name).needs
    spec = f"{name}:aux-images=8" if needs.images else name
    return {"attack": spec, "labels": "home" if needs.output_gradient else "shared"}


def play(run_dir: Path, attack: Attack | None, monkeypatch: pytest.MonkeyPatch) -> str:
    chosen = options(run_dir)
    run_dir.mkdir()
    made = build.build_server

    def with_attack(*args: Any, **kwargs: Any) -> ServerModel:
        server = made(*args, **kwargs)
        if attack is not None:
            server.attack = attack
        return server

    monkeypatch.setattr(build, "build_server", with_attack)
    digest = play_locally(chosen, KEY, run_dir).weights_sha256()
    monkeypatch.setattr(build, "build_server", made)
    return digest


def test_an_honest_attack_and_a_spy_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the weights of the run without any attack, bit for bit. And all that a spy saw is a SmashedBatch."""
    spy = Tap()
    plain = play(tmp_path / "plain", None, monkeypatch)
    assert play(tmp_path / "base", Attack(), monkeypatch) == plain
    assert play(tmp_path / "spy", spy, monkeypatch) == plain
    assert {type(batch) for batch in spy.seen} == {SmashedBatch} and "loss" in spy.calls
    names = {field.name for field in dataclasses.fields(SmashedBatch)}
    assert names == {"smashed", "labels", "clients", "round", "batch", "phase"}
    assert {tuple(batch.smashed.shape[1:]) for batch in spy.seen} == {(64, 4, 4)}
    # Held-out images look like test images: two batches of four a client and round, without labels.
    tested = [b for b in spy.seen if b.phase == "test" and b.client == "client0" and b.round == 1]
    assert [b.batch for b in tested] == [0, 1] and all(b.labels is None for b in tested)


@pytest.mark.parametrize("name", list(ATTACKS))
def test_no_client_can_be_reached_from_an_attack(name: str, tmp_path: Path) -> None:
    """Oracle: Python's own object graph: from a built attack no client, image set, source or secret can be found."""
    chosen = options(tmp_path / "run", **attacked(name))
    server = build.build_server(chosen, 2, torch.device("cpu"))
    attack = lab.build_attack(chosen, server.top, 2, tmp_path / "attack")
    assert attack is not None
    found, todo = set(), [attack]
    while todo:
        thing = todo.pop()
        if id(thing) in found or isinstance(thing, type | ModuleType):
            continue
        found.add(id(thing))
        if isinstance(thing, FunctionType):  # what it closes over, not its module's globals
            todo += [cell.cell_contents for cell in thing.__closure__ or ()]
            continue
        assert not isinstance(thing, Client | ClientData | Source | Randomness), type(thing)
        todo += [other for other in gc.get_referents(thing) if not isinstance(other, str | int | float)]


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_attacks_state_is_plain(name: str, tmp_path: Path) -> None:
    """Oracle: torch.load with ``weights_only``, which a checkpoint is read with."""
    chosen = options(tmp_path / "run", **attacked(name))
    server = build.build_server(chosen, 2, torch.device("cpu"))
    attack = lab.build_attack(chosen, server.top, 2, None)
    assert attack is not None
    torch.save(attack.state_dict(), tmp_path / "state.pt")
    attack.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
