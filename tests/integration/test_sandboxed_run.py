"""A run under torchrun with every rank in its sandbox: the images are out of reach, the weights are the same.

Oracle: the same run with --sandbox off, in which the same attempts open the images.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, TINY
from PIL import Image

from suture.runtime.host import sandbox
from suture.runtime.state.handoff import write_key

pytestmark = pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing()))


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    folder: Path
    printed: str
    attempts: dict[str, str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """One server and one client over RPC, with the sandbox on and off."""
    place = tmp_path_factory.mktemp("sandboxed")
    images = make_images(place / "images")
    write_key(place / "key")
    return {mode: train(place, mode, images) for mode in ("on", "off")}


def make_images(folder: Path) -> Path:
    noise = np.random.default_rng(0)
    for kind in ("healthy", "ill"):
        (folder / kind).mkdir(parents=True)
        for number in range(12):
            pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number:02}.png")
    return folder


def train(place: Path, mode: str, images: Path) -> Run:
    folder, temporary = place / f"run-{mode}", place / f"temporary-{mode}"
    temporary.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    ended = subprocess.run(
        [*launch, str(Path(__file__).with_name("enclosed_rank.py")), *TINY]
        + f"--data image-folder:{images} --handoff-key {place / 'key'} --run-dir {folder} --sandbox {mode}".split(),
        env=os.environ
        | {"CI": "true", "TMPDIR": str(temporary), "TRY_TO_OPEN": str(images / "ill" / "00.png")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    tried = {path.name: path.read_text() for path in place.glob(f"*-{mode}/**/attempt-*")}
    return Run(folder, ended.stdout + ended.stderr, tried)


def test_inside_neither_rank_opens_an_image_and_outside_both_do(runs):
    assert runs["on"].attempts == {
        f"attempt-{role}": "refused: Permission denied" for role in ("client", "server")
    }
    assert runs["off"].attempts == {f"attempt-{role}": "opened" for role in ("client", "server")}


def test_the_weights_are_the_same_to_the_last_bit(runs):
    digests = {
        mode: json.loads((run.folder / "summary.json").read_text())["weights_sha256"]
        for mode, run in runs.items()
    }
    assert digests["on"] == digests["off"]


def test_both_runs_write_the_same_files(runs):
    """Late imports, figures, TensorBoard, model.pt: nothing of it needs what the sandbox takes away."""
    written = {
        mode: sorted(
            str(path.relative_to(run.folder)).split(".tfevents.")[0]
            for path in run.folder.rglob("*")
            if path.is_file() and not path.name.startswith("attempt-")
        )
        for mode, run in runs.items()
    }
    assert written["on"] == written["off"]
    assert "clients/client0/model.pt" in written["on"]
    assert "figures/client0-activations.png" in written["on"]


def test_each_rank_says_in_one_line_what_it_did_and_has_no_older_thread(runs):
    lines = [line for line in runs["on"].printed.splitlines() if "sandbox " in line]
    assert sorted(line.split()[1] for line in lines) == ["client0:", "server:"], runs["on"].printed
    assert all("sandbox closed (Landlock" in line and "older threads" not in line for line in lines)
    assert "sandbox " not in runs["off"].printed
