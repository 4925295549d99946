"""``suture bench train``: that it runs on real processes, and that it says plainly what it found."""

import json
import subprocess
import sys

import pytest

from suture.runtime.errors import ConfigError
from suture.studies.bench.page import train
from suture.studies.bench.train import measure
from suture.studies.statistics import ratio_interval


def run_python(*arguments):
    # In a process of its own: the helpers that multiprocessing starts live as long as their parent.
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_the_quick_benchmark_times_both_sides_and_writes_the_page(tmp_path):
    done = run_python("-m", "suture", "bench", "train", "--quick", "--only", "unet", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "benchmarks.json").read_text())["train"]
    assert content["command"] == "suture bench train --quick --only unet"
    (row,) = content["rows"]
    assert row["name"] == "unet-32px-cut1"
    for who in ("fused", "autograd", "unsplit"):
        assert len(row[f"{who}_seconds"]) == 4 and row[f"{who}_cpu_seconds"] > 0
    for exchange in ("fused", "autograd"):
        assert row[f"{exchange}_ratio"] == pytest.approx(row[f"{exchange}_median"] / row["unsplit_median"])
    # By hand: float32, batch 2; the bottom gives 4 x 16 x 16, the top 8 x 16 x 16; each crosses both ways.
    assert row["bytes_up"] == row["bytes_down"] == 4 * 2 * (4 + 8) * 16 * 16
    assert row["peak_memory_bytes"].keys() == {"server", "client0", "unsplit"}
    assert all(100e6 < count < 10e9 for count in row["peak_memory_bytes"].values())
    assert len(content["idle"]) == 3 and all(0 <= share < 2 for share in content["idle"].values())
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| unet, width 4 | 32 | 2 | 1 |" in page and "- idle rank below 2% of a core: " in page
    assert (tmp_path / "benchmarks-train.png").stat().st_size > 1000


DIES = """
import psutil
from suture.studies.bench.plan import read_plan
from suture.studies.bench.rigs.stage import Stage

if __name__ == "__main__":
    with Stage(read_plan("quick").rows[1].options(), unsplit=False) as stage:
        stage.block("client0", 1)
        stage._processes["server"].kill()
        stage.finish()
"""


def test_a_process_that_dies_ends_the_benchmark_with_its_name(tmp_path):
    (tmp_path / "dies.py").write_text(DIES)
    done = run_python(str(tmp_path / "dies.py"))
    assert done.returncode == 1
    # Whichever is noticed first: the server's end, or the client's error about it.
    assert (
        "SutureError: benchmark: server ended with code -9" in done.stderr or "PeerLostError" in done.stderr
    )


def test_options_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="full and quick are opposites"):
        measure(full=True, quick=True)
    with pytest.raises(
        ConfigError, match="only must be part of a row's name, got 'vgg'; known: resnet34-64px"
    ):
        measure(quick=False, only="vgg")


def test_the_ratios_interval_holds_the_ratio_and_is_narrow_where_times_are_steady():
    low, high = ratio_interval([1.04, 1.05, 1.06] * 4, [1.0, 1.0, 1.01] * 4)
    assert 1.03 < low <= 1.05 <= high < 1.07


@pytest.mark.parametrize(
    ("ratio", "interval", "share", "expected"),
    [
        (1.02, [1.0, 1.04], 0.0, ["fused: met; the largest is 1.020 at cut 3.", "of a core: met; "]),
        (1.06, [1.04, 1.1], 0.5, ["**not met** at cut 3 (1.060).", "**not met**; the largest is 50.00%."]),
        (1.06, [0.9, 1.1], 0.0, ["(1.060); each interval holds the aim, which", "of a core: met; "]),
    ],
)
def test_the_page_says_whether_the_aims_are_met(ratio, interval, share, expected):
    """Oracle: the issue's aims: at most 1.02 at 128 px and above, 1.10 at 64."""
    row = {"model": "resnet34", "image_size": 128, "cut": 3, "fused_ratio": ratio}
    said = train.verdicts([row | {"fused_ratio_interval": interval}], {"a waiting client": share})
    assert len(said) == 2 and "at most 1.02, resnet34 at 128 px" in said[0]
    assert train.aim(64) == 1.10 and train.aim(224) == 1.02
    for sentence, part in zip(said, expected, strict=True):
        assert part in sentence
