"""Whole attacked runs over torch RPC: trained, attacked while they train, judged when they end.

Oracle: the same run in one process, to the byte.
"""

import json
from pathlib import Path

import pytest
from commands import suture

# Minutes of training attackers: `make sites` runs them.
pytestmark = pytest.mark.slow

OPTIONS = (
    "--model resnet18 --image-size 32 --train-images 8 --held-out-images 4 --validation-images 2 --test-images 2 "
    "--batch-size 4 --epochs 2 --threads 1 --clients 1"
).split()


def digest(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["weights_sha256"]


def rebuilt(run: Path) -> dict[str, bytes]:
    """The images that the attack made of smashed data, by file."""
    folder = run / "attack"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}


@pytest.mark.parametrize(
    ("attack", "exchange", "labels"),
    [
        ("fsha:aux_images=8", "fused", "shared"),
        ("adra:aux_images=8,epochs=1", "autograd", "shared"),
        ("label-inference", "fused", "home"),
        ("label-inference", "autograd", "home"),
    ],
)
def test_an_attacked_run_over_rpc_ends_as_it_does_in_one_process(attack, exchange, labels, tmp_path):
    """Oracle: digest and guesses of the run in one process; the verdict sets them beside what needs no attack."""
    assert suture("keygen", str(tmp_path / "key")).code == 0
    options = [*OPTIONS, "--labels", labels, "--attack", attack, "--handoff-key", str(tmp_path / "key")]
    over_rpc, local = tmp_path / "rpc", tmp_path / "local"
    for run, more in (
        (over_rpc, ["--exchange", exchange]),
        (local, ["--exchange", "local", "--judge", "off"]),
    ):
        ended = suture("train", *options, *more, "--run-dir", str(run), timeout=400)
        assert ended.code == 0, ended.err
    assert digest(over_rpc) == digest(local)
    assert rebuilt(over_rpc) == rebuilt(local) and len(rebuilt(local)) >= 2
    verdict = json.loads((over_rpc / "attack" / "verdict.json").read_text())
    assert verdict["spec"] == attack
    for scores in verdict["scores"].values():
        if labels == "home":
            assert scores["attack"]["guessed"] > scores["shuffled"]["guessed"]
            continue
        assert scores["attack"]["mse"] > 0 and scores["mean image"]["mse"] > 0
