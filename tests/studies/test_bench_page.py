"""The page of benchmarks: each section is written by itself, and none loses the others."""

import json

import pytest

from suture.runtime.errors import ConfigError
from suture.studies.bench.page import page, sites
from suture.studies.bench.page.line import kind, verdicts
from suture.studies.bench.rigs.stage import seconds_by_line
from suture.studies.machine import machine


def clients_found(rate):
    row = {
        "clients": 1,
        "turn_steps": 2,
        "schedule": "parallel",
        "images_per_second": rate,
        "over_unsplit": 0.5,
    }
    row |= {"server_cpu_seconds_a_step": 0.1, "server_memory_bytes": 1e8, "client_memory_bytes": 2e8}
    row["client_own_memory_bytes"] = 5e7
    return {
        "plan": {"blocks": 1, "rounds": 1, "model": "m", "image_size": 32, "cut": "1", "batch_size": 2}
    } | {
        "rows": [row],
        "left_out": [],
    }


def sites_found():
    handed = [("up", 1_000_000, 0.1), ("down", 1_000_000, 0.2)]
    memory = {"peak": 400_000_000, "own": 300_000_000}
    run = {"sites": 2, "joined": 9.0, "done": 12.0, "memory": [memory], "server": memory}
    return {
        "plan": {"lines": [[1000, 0.0], [100, 5.0]]},
        "steps": [{"rpc": [0.1] * 10, "grpc": [0.2] * 10}, {"rpc": [1.0] * 10, "grpc": [1.04] * 10}],
        "handed": [{"grpc": handed, "rpc": handed}] * 2,
        "handshakes": [[0.01], [0.01]],
        "joins": [[0.02], [0.02]],
        "consortium": {"crowd": run, "alone": run, "reconnects": {"seated": [0.5], "stepped": [0.75]}},
    }


def test_a_section_is_replaced_and_the_others_stay(tmp_path):
    """Oracle: the files; the numbers, by hand."""
    where = machine()
    page.write(tmp_path, "sites", page.content("suture bench sites", where, sites_found()))
    page.write(tmp_path, "clients", page.content("suture bench clients", where, clients_found(7.0)))
    page.write(tmp_path, "line", page.content("suture bench line", where, {"skipped": "needs root"}))
    page.write(tmp_path, "clients", page.content("suture bench clients", where, clients_found(9.0)))
    text = (tmp_path / page.PAGE).read_text()
    assert "| 1 | 2 | parallel | 9.0 | 0.500 |" in text and "| 7.0 |" not in text
    assert "| joining, ms | 20.0 | 20.0 |" in text
    assert "Not measured: needs root." in text and "benchmarks-line.png" not in text
    # In the page's order, whatever the order of writing.
    places = [text.index(title) for title in ("## Many clients", "## Over a line", "## Between sites")]
    assert places == sorted(places)
    assert list(json.loads((tmp_path / page.DATA).read_text())) == ["clients", "line", "sites"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "benchmarks-clients.png",
        "benchmarks-sites.png",
    }


def test_what_an_earlier_version_wrote_is_left_out(tmp_path):
    """Oracle: the page holds the new section alone; what is no JSON is refused in words."""
    (tmp_path / page.DATA).write_text('{"command": "suture bench train", "rows": []}')
    page.write(tmp_path, "sites", page.content("suture bench sites", machine(), sites_found()))
    assert list(json.loads((tmp_path / page.DATA).read_text())) == ["sites"]
    # A section whose numbers this version does not know keeps its place and its numbers, and stops no other.
    old = page.content("suture bench clients", machine(), {})
    (tmp_path / page.DATA).write_text(json.dumps({"clients": old}))
    page.write(tmp_path, "sites", page.content("suture bench sites", machine(), sites_found()))
    assert (
        "by another version of Suture: run `suture bench clients` again" in (tmp_path / page.PAGE).read_text()
    )
    assert json.loads((tmp_path / page.DATA).read_text())["clients"] == old
    with pytest.raises(KeyError):
        page.write(tmp_path, "clients", page.content("suture bench clients", machine(), {}))
    (tmp_path / page.DATA).write_text("{")
    with pytest.raises(ConfigError, match=r"benchmarks\.json is no JSON; move it away"):
        page.write(tmp_path, "sites", page.content("suture bench sites", machine(), sites_found()))


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


def test_ways_that_end_with_the_same_weights_share_their_metric():
    """Oracle: by hand."""
    assert kind("autograd bf16") == "bf16" and kind("fused int8, overlap") == "int8, overlap"


def test_the_aims_between_sites_are_compared_with_what_was_measured():
    """Oracle: by hand: a hand-off of 1 MB in 100 ms is 80 Mbit/s; an aim is for 100 Mbit/s and below only."""
    found = sites_found()
    step, handoff, site = sites.verdicts(found)
    assert ": met; the largest is 1.040, at 100 Mbit/s. Means instead of medians: 1.040 at 100." in step
    assert "**not met**; the least is 40%, down at 100 Mbit/s" in handoff
    assert ": met; 300.00 MB" in site
    text = page.section("sites", page.content("suture bench sites", machine(), found))
    assert "| over the same by torch RPC | 2.000 (2.00 to 2.00) | 1.040 (1.04 to 1.04) |" in text
    assert "| hand-off up, gRPC, of the line | 8% | 80% |" in text and "| joining, ms | 20.0 | 20.0 |" in text
    assert "| one of 2 sites, median | 400.00 MB | 300.00 MB |" in text
    unsure = found | {"steps": [found["steps"][0], {"rpc": [0.5, 1.0, 2.0] * 4, "grpc": [0.5, 1.2, 2.0] * 4}]}
    assert (
        "**not met**; the largest is 1.200, at 100 Mbit/s; its interval holds the aim"
        in (sites.verdicts(unsure)[0])
    )


def test_steps_are_told_apart_by_turn_and_line():
    """Oracle: by hand: turn 1 warms up, two turns at each of two lines; no interval spans two turns."""
    steps = [
        (1, 0.0),
        (1, 9.0),
        (3, 10.0),
        (3, 11.0),
        (4, 20.0),
        (4, 22.0),
        (4, 25.0),
        (6, 30.0),
        (6, 34.0),
        (8, 50.0),
    ]
    assert seconds_by_line(steps, turns_each=2) == [[1.0, 2.0, 3.0], [4.0]]


@pytest.mark.parametrize("folder", [page.DOCS, page.FULL])
def test_the_pages_in_docs_are_what_their_numbers_give(folder):
    """Oracle: the page in the repository, made anew from the JSON beside it."""
    kept = json.loads((folder / page.DATA).read_text())
    text = (folder / page.PAGE).read_text()
    for name, found in kept.items():
        assert page.section(name, found) in text
