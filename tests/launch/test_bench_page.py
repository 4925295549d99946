"""The page of benchmarks: each section is written by itself, and none loses the others."""

import json

import pytest

from launch.bench import page
from launch.bench.line_section import interval, kind, verdicts
from launch.bench.machine import machine
from runtime.errors import ConfigError

STARTS = {
    "torchrun launch/run.py": [{"images read": 3.0, "all joined": 4.0, "first step": 8.0, "processor": 9.0}]
    * 3,
    "suture train": [{"images read": 1.0, "all joined": 2.0, "first step": 4.0, "processor": 5.0}] * 3,
}
STARTUP = {"ranks": 5, "starts": STARTS, "imports": {"torch": 1.5}}
PROFILE = {
    "options": "--clients 1",
    "parts": ["bottom", "server"],
    "steps": 3,
    "medians": {"client0": {"bottom": 0.25, "server": 0.5}},
    "stopwatch_seconds": 5e-6,
}


def test_a_section_is_replaced_and_the_others_stay(tmp_path):
    """Oracle: the files; the numbers, by hand."""
    where = machine()
    page.write(tmp_path, "profile", page.content("suture bench profile", where, PROFILE))
    page.write(tmp_path, "startup", page.content("suture bench startup", where, STARTUP))
    page.write(tmp_path, "line", page.content("suture bench line", where, {"skipped": "needs root"}))
    faster = PROFILE | {"medians": {"client0": {"bottom": 0.125, "server": 0.5}}}
    page.write(tmp_path, "profile", page.content("suture bench profile", where, faster))
    text = (tmp_path / page.PAGE).read_text()
    assert "| client0 | 125.0 | 500.0 | 625.0 |" in text and "| client0 | 250.0" not in text
    assert (
        "| `suture train` | 1.0 (1.0 to 1.0) | 2.0 (2.0 to 2.0) | 4.0 (4.0 to 4.0) | 5.0 (5.0 to 5.0) |"
        in text
    )
    assert "forking takes 0.50 times as long" in text
    assert "Not measured: needs root." in text and "benchmarks-line.png" not in text
    # In the page's order, whatever the order of writing.
    places = [text.index(title) for title in ("## Over a line", "## Starting a run", "## Where the time")]
    assert places == sorted(places)
    assert list(json.loads((tmp_path / page.DATA).read_text())) == ["line", "startup", "profile"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "benchmarks-profile.png",
        "benchmarks-startup.png",
    }


def test_what_an_earlier_version_wrote_is_left_out(tmp_path):
    """Oracle: the page holds the new section alone; what is no JSON is refused in words."""
    (tmp_path / page.DATA).write_text('{"command": "suture bench train", "rows": []}')
    page.write(tmp_path, "startup", page.content("suture bench startup", machine(), STARTUP))
    assert list(json.loads((tmp_path / page.DATA).read_text())) == ["startup"]
    # A section whose numbers this version does not know keeps its place and its numbers, and stops no other.
    old = page.content("suture bench profile", machine(), {"rows": []})
    (tmp_path / page.DATA).write_text(json.dumps({"profile": old}))
    page.write(tmp_path, "startup", page.content("suture bench startup", machine(), STARTUP))
    assert (
        "by another version of Suture: run `suture bench profile` again" in (tmp_path / page.PAGE).read_text()
    )
    assert json.loads((tmp_path / page.DATA).read_text())["profile"] == old
    with pytest.raises(KeyError):
        page.write(tmp_path, "profile", page.content("suture bench profile", machine(), {"rows": []}))
    (tmp_path / page.DATA).write_text("{")
    with pytest.raises(ConfigError, match=r"benchmarks\.json is no JSON; move it away"):
        page.write(tmp_path, "startup", page.content("suture bench startup", machine(), STARTUP))


def line_found(seconds, values):
    rows = [
        {"way": "autograd fp32", "seconds": {"100": [1.0] * 10}},
        {"way": "fused int8", "seconds": {"100": [seconds] * 10}},
    ]
    return {"rows": rows, "metric": {"values": {"fp32": [0.70, 0.72, 0.74], "int8": values}}}


@pytest.mark.parametrize(
    ("seconds", "values", "said"),
    [
        (0.2, [0.71, 0.71, 0.745], "met by fused int8 (5.0 times)"),
        (0.2, [0.60, 0.62, 0.64], "**not met**: the fastest is fused int8 (5.0 times); the metric differs"),
        (0.2, [0.70], "**not met**"),
        (0.4, [0.71, 0.71, 0.745], "(2.5 times); none is fast enough"),
    ],
)
def test_the_aim_over_a_line_needs_both_speed_and_the_metric(seconds, values, said):
    """Oracle: the differences, by hand; one seed shows nothing."""
    assert said in verdicts(line_found(seconds, values))[0]


def test_the_interval_is_students():
    """Oracle: the tables: t is 4.30 for three values; the standard error of 1, 2, 3 is 1 / sqrt(3)."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.30 / 3**0.5)
    assert kind("autograd bf16") == "bf16" and kind("fused int8, overlap") == "int8, overlap"
