"""Whole runs whose tensors cross in another format than they were computed in.

Oracle: the loss that falls, the run that was not stopped, and the bytes counted by hand. That a run over RPC ends with
the weights of one process shows tests/integration/test_oracle.py.
"""

import dataclasses
import math

import pytest
import torch
from fakes import Tap
from tiny import TINY

from suture.launch import build
from suture.launch.roles.one_process import play_locally
from suture.runtime.errors import WireError
from suture.runtime.server.client_turn import ClientTurn

KEY = bytes(range(32))


def played(run_dir, *, resume=False, **changes):
    torch.set_num_threads(1)
    run_dir.mkdir(exist_ok=True)
    tap = Tap()

    def arm(server, num_classes):
        server.attack = tap

    options = dataclasses.replace(TINY, **changes).resolved()
    return play_locally(options, KEY, run_dir, resume=resume, arm=arm), tap


@pytest.mark.parametrize("labels", ["shared", "home"])
@pytest.mark.parametrize("wire", ["bf16", "fp16", "int8", "topk:0.3"])
def test_a_small_run_learns_in_every_format(tmp_path, wire, labels):
    """Oracle: the loss of the first round against that of the last."""
    first = played(tmp_path / "one", wire=wire, labels=labels, epochs=1)[0].run_state.train_loss["client0"]
    last = played(tmp_path / "many", wire=wire, labels=labels, epochs=12)[0].run_state.train_loss["client0"]
    assert last < 0.6 * first


@pytest.mark.parametrize("wire", ["bf16", "fp16", "int8", "topk:0.3"])
def test_the_server_and_its_attack_see_what_crossed_decoded(tmp_path, wire):
    """Oracle: each format's grid, in training and in evaluation."""
    _, tap = played(tmp_path, wire=wire, epochs=1)
    assert {batch.phase for batch in tap.seen} == {"train", "test"}
    for seen in (batch.smashed for batch in tap.seen):
        assert seen.dtype is torch.float32 and seen.shape[1:] == (8, 8, 8)
        if wire in ("bf16", "fp16"):
            half = torch.bfloat16 if wire == "bf16" else torch.float16
            assert torch.equal(seen, seen.to(half).float())
        elif wire == "int8":
            assert all(len(channel.unique()) <= 255 for channel in seen.transpose(0, 1))
            assert len(seen[:, 0].unique()) < seen[:, 0].numel() / 2
        else:
            assert ((seen != 0).flatten(1).sum(1) <= math.ceil(0.3 * 512)).all()


@pytest.mark.parametrize("labels", ["shared", "home"])
@pytest.mark.parametrize("wire", ["int8", "topk:0.3", "bf16"])
def test_a_run_repeats_and_resumes_bit_for_bit(tmp_path, monkeypatch, wire, labels):
    """Oracle: the run that was not stopped; fp32 ends elsewhere."""
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    case = {"wire": wire, "labels": labels}
    expected = played(tmp_path / "whole", **case)[0].weights_sha256()
    assert expected != played(tmp_path / "plain", **case | {"wire": "fp32"})[0].weights_sha256()
    played(tmp_path / "halves", **case, epochs=1)
    assert played(tmp_path / "halves", resume=True, **case)[0].weights_sha256() == expected


def test_topk_of_everything_trains_as_fp32(tmp_path):
    """Oracle: the same weights, bit for bit."""
    for labels in ("shared", "home"):
        whole = played(tmp_path / f"{labels}1", wire="topk:1", labels=labels)[0].weights_sha256()
        assert whole == played(tmp_path / f"{labels}32", labels=labels)[0].weights_sha256()


@pytest.mark.parametrize("home", [False, True])
def test_the_bytes_of_a_step_are_those_that_crossed(tmp_path, home):
    """Oracle: by hand. Batch 4, 8 x 8 x 8 at the cut, 16 features at home; labels are int64, 1 scale an output."""
    cut, out, labels = 4 * 512, 4 * 16 * home, 0 if home else 4 * 8
    expected = {
        "fp32": (4 * (cut + out), 4 * (cut + out)),
        "fp16": (2 * (cut + out), 2 * (cut + out)),
        "int8": (cut + out + 4 * (8 + home), cut + out + 4 * (8 + home)),
        # What is kept goes with its places, its gradient without.
        "topk:0.25": (8 * cut // 4 + 4 * out // 4, 4 * cut // 4 + 8 * out // 4),
    }
    for wire, (up, down) in expected.items():
        options = {"wire": wire, "labels": "home" if home else "shared", "epochs": 1}
        totals = played(tmp_path / wire, **options)[0].run_state.totals
        assert (wire, totals.bytes_up, totals.bytes_down) == (wire, up + labels, down)


def test_a_graph_does_not_cross_in_a_format_that_has_none(tmp_path, monkeypatch):
    """Oracle: the refusal of the reference exchange's endpoint."""
    monkeypatch.setattr(ClientTurn, "train", lambda turn, upload, _: turn.forward(upload))
    with pytest.raises(WireError, match="client0: forward: no graph crosses in int8; refused"):
        played(tmp_path, wire="int8")
