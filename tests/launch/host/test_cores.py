"""Ranks that compute at once share the cores; one that computes alone has them all."""

import os

import pytest
import torch

from suture.launch.host import cores
from suture.launch.host.cores import ranks_at_once, ready_torch
from suture.launch.options.options import RunOptions
from suture.runtime.scheduler import SCHEDULES


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("clients", [1, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ranks_share_the_cores_where_they_compute_at_once(schedule, clients, tmp_path):
    """Oracle: who waits for whom, by hand; a replay is as what it replays."""
    if schedule == "replay:FILE":
        turns = tmp_path / "turns.jsonl"
        turns.write_text(
            '{"round": 1, "client": "client0+client1", "kind": "train", "together": "splitfed"}\n'
        )
        schedule = f"replay:{turns}"
    options = RunOptions(schedule=schedule, clients=clients)
    in_turns = clients == 1 or schedule in ("round-robin", "shuffled")
    waits_for_all = in_turns or schedule == "concat"
    assert ranks_at_once(options, serves=False, here=5) == (1 if in_turns else 5)
    assert ranks_at_once(options, serves=True, here=5) == (1 if waits_for_all else 5)


@pytest.mark.parametrize(("sharing", "expected"), [(1, 8), (3, 2), (8, 1), (9, 1)])
def test_a_rank_has_its_share_of_the_cores_and_at_least_one(sharing, expected, monkeypatch):
    """Oracle: whole cores, by hand; --threads wins."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    ready_torch(RunOptions(), sharing)
    assert torch.get_num_threads() == expected
    ready_torch(RunOptions(threads=3), sharing)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("rank", "schedule", "expected"),
    [(0, "parallel", 3), (2, "parallel", 3), (0, "concat", 1), (2, "concat", 3), (2, "round-robin", 1)],
)
def test_a_rank_counts_those_of_its_own_machine(rank, schedule, expected, monkeypatch):
    """Oracle: torchrun's variables, by hand: three of the six ranks are here."""
    for name, value in {"RANK": rank, "WORLD_SIZE": 6, "LOCAL_WORLD_SIZE": 3, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    heard = []

    class NoLine:
        def __init__(self, config):
            self.config = config

        def leave(self):
            pass

    monkeypatch.setattr(rank, "Transport", NoLine)
    for name in ("serve", "join"):
        monkeypatch.setattr(
            rank, name, lambda options, line, sharing, name=name: heard.append((name, sharing))
        )
    rank.run_rank(RunOptions(schedule=schedule))
    assert heard == [("join" if rank else "serve", expected)]
    assert torch.get_num_threads() == 1  # until its sandbox is closed


def test_cores_are_counted_somewhere():
    """Oracle: this machine has at least one, and a rank alone takes them all."""
    cores.ready_torch(RunOptions())
    assert torch.get_num_threads() == (os.cpu_count() or 1)
