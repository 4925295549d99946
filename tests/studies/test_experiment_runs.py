"""Runs of experiments: repeated from a saved setting, taken up after a stop, side by side; and the study's U-Net.

Oracle: the same bytes in the table; a U-Net whose skips are detached by hand.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import psutil
import pytest
import torch

import suture.models.registry as nets
from suture.studies.experiments.engine.plan import Request, plan
from suture.studies.experiments.engine.results import load, write_results
from suture.studies.experiments.engine.skips import registered
from suture.studies.experiments.engine.worker import work
from suture.studies.experiments.registry import EXPERIMENTS
from suture.studies.experiments.runs.job import read_result, result_path, runs_folder
from suture.studies.experiments.runs.setting import CONFIG, to_toml

ROOT = Path(__file__).resolve().parents[2]


def _begun(folder: Path, name: str) -> Path:
    """An experiment's folder at scale smoke before its first run."""
    folder.mkdir()
    (folder / CONFIG).write_text(to_toml(plan(EXPERIMENTS[name], Request(name=name, scale="smoke"))))
    return folder


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """Runs in this process leave nothing in anybody's home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_a_second_run_from_the_saved_setting_gives_the_same_table(tmp_path, quiet):
    """Oracle: equal bytes of table.csv, digests of the weights among them; another key gives others."""
    first = _begun(tmp_path / "first", "unet-cut")
    second = tmp_path / "second"
    second.mkdir()
    (second / CONFIG).write_bytes((first / CONFIG).read_bytes())
    other = _begun(tmp_path / "other", "unet-cut")
    for folder in (first, second, other):
        for job in ("cut1-0", "cut1-no-skip-gradients-0"):
            work(folder, job)
        write_results(folder)
    tables = [(folder / "table.csv").read_bytes() for folder in (first, second, other)]
    assert tables[0] == tables[1] != tables[2]
    assert len({line.split(b",")[-1] for line in tables[0].splitlines()}) == 3, "the skips' gradients matter"
    assert (first / "figures" / "curves.png").exists()
    assert not list(first.rglob("model.pt")) and not list(first.rglob("checkpoints"))


def test_a_run_that_was_killed_before_its_first_checkpoint_is_begun_anew(tmp_path, quiet):
    """Oracle: the digest of an undisturbed run; what the killed one left is gone."""
    folder, whole = _begun(tmp_path / "killed", "unet-cut"), tmp_path / "whole"
    whole.mkdir()
    (whole / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    left = runs_folder(folder) / "cut1-0"
    left.mkdir(parents=True)
    (left / "half.txt").write_text("half")
    work(folder, "cut1-0")
    work(whole, "cut1-0")
    digests = [read_result(one, "cut1-0")["summary"]["weights_sha256"] for one in (folder, whole)]
    assert digests[0] == digests[1] and not (left / "half.txt").exists()


def test_every_cut_ends_with_the_same_net_from_the_same_weights(tmp_path, quiet):
    """Oracle: digest of the whole net after two clients' rounds at two cuts, and at a third of another seed's draw."""
    folder = _begun(tmp_path / "cuts", "cut-layer")
    for job in ("cut1-same-start-0", "cut7-same-start-0", "cut1-0"):
        work(folder, job)
    one, seven, drawn = (read_result(folder, f"{name}-0")["net_sha256"]
                         for name in ("cut1-same-start", "cut7-same-start", "cut1"))  # fmt: skip
    assert one == seven != drawn


def test_a_client_alone_trains_and_is_tested_on_everybodys_images(tmp_path, quiet):
    """Oracle: turns of one client in metrics.jsonl, scores of both."""
    folder = _begun(tmp_path / "alone", "split-vs-central")
    work(folder, "alone1-0")
    lines = (runs_folder(folder) / "alone1-0" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {r["client"] for r in records if r["phase"] == "train"} == {"client1"}
    result = read_result(folder, "alone1-0")
    assert "--schedule replay:inputs/turns-client1-2.jsonl" in result["command"][0]
    assert (
        "--handoff-key inputs/handoff-0.key" in result["command"][0]
        and str(tmp_path) not in result["command"][0]
    )
    clients = result["summary"]["clients"]
    assert all("accuracy" in clients[name]["test"] for name in ("client0", "client1"))


def test_an_attacked_run_is_attacked_again_on_its_tape_and_leaves_samples(tmp_path, quiet):
    """Oracle: two verdicts, pictures of both attackers, and no recording left."""
    folder = _begun(tmp_path / "adra", "adra")
    work(folder, "digits-cut7-none-0")
    experiment, _, results = load(folder)
    facts = experiment.facts(results.jobs[0], results.result(results.jobs[0]))
    assert facts["static_mse"] > 0 and facts["fresh_mse"] > 0
    run = runs_folder(folder) / "digits-cut7-none-0"
    assert (run / "samples_live.npz").exists() and (run / "samples_fresh.npz").exists()
    assert not (run / "recording").exists()
    write_results(folder)
    assert (folder / "figures" / "reconstructions_digits_cut7.png").exists()


SIDE_BY_SIDE = """
import sys
from dataclasses import replace
from pathlib import Path
from suture.studies.experiments.engine.pool import Task, run_all
from suture.studies.experiments.engine.results import load
from suture.runtime.errors import SutureError
folder = Path(sys.argv[1])
good = load(folder)[0].jobs(load(folder)[1])[0]
tasks = [Task(folder, replace(good, arm="no-such")), Task(folder, good)]
for attempt in (tasks, tasks[1:]):
    try:
        run_all(attempt, 2, lambda task: print("ended", task.job.name))
    except SutureError as error:
        print(error)
"""


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path):
    """Oracle: a job that the plan does not have fails in its process; the one beside it is done, and only once."""
    folder = _begun(tmp_path / "e", "unet-cut")
    ran = subprocess.run(
        [sys.executable, "-c", SIDE_BY_SIDE, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    ended, failed, again = ran.stdout.splitlines()
    assert ended == again == "ended cut1-0" and result_path(folder, "cut1-0").exists()
    assert "1 of 2 runs failed" in failed and "no-such-0 failed: unet-cut has no run no-such-0" in failed
    assert ran.stderr.count("cut1-0 done in") == 1, "what is done is not run again"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stop_ends_every_run_and_the_same_command_goes_on(number, code, tmp_path):
    """Oracle: no process is left, however the command ended; then what was done is kept and the rest is run."""
    out = tmp_path / "e"
    command = [sys.executable, "-m", "suture", "experiment", "unet-cut", "--scale", "smoke", "--jobs", "2"]
    started = forked.Popen(
        [*command, "--out", str(out)], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        _wait(lambda: list(out.glob("runs/*/result.json")))
        family = psutil.Process(started.pid).children(recursive=True)
        started.send_signal(number)
        assert started.wait(60) == code
    finally:
        started.kill()
    _wait(lambda: not any(one.is_running() and one.status() != "zombie" for one in family))
    done = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    assert done
    ran = forked.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and (out / "table.csv").exists(), ran.stderr[-500:]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items()), (
        "what was done is not run again"
    )


def _wait(true, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.1)


# The study's U-Net ----------------------------------------------------------------------------------


def test_without_skip_gradients_the_net_computes_the_same_and_learns_less():
    """Oracle: the plain net with skips detached by hand: equal values, equal gradients; the registry is put back."""

    def built():
        torch.manual_seed(0)
        return nets.build("unet", cut=2, num_outputs=1, width=4)

    plain, entry = built(), nets.MODELS["unet"]
    with registered("unet"):
        without = built()
    assert nets.MODELS["unet"] is entry
    assert list(without.bottom.state_dict()) == list(plain.bottom.state_dict())
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))

    def gradients(split, detach):
        smashed, skips = split.bottom(x)
        skips = tuple(skip.detach() for skip in skips) if detach else skips
        out = split.head(split.top(smashed), skips)
        return out, torch.autograd.grad(out.square().mean(), list(split.bottom.parameters()))

    (value, ours), (expected, by_hand), (_, exact) = (
        gradients(without, False), gradients(plain, True), gradients(plain, False)
    )  # fmt: skip
    assert torch.equal(value, expected)
    assert all(torch.equal(a, b) for a, b in zip(ours, by_hand, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ours, exact, strict=True))
