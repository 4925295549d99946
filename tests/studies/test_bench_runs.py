"""The benchmarks of real processes, in their quick form: that each measures what it says; no time is asserted."""

import json
import subprocess
import sys

import forked
import pytest

from suture.studies.bench import clients, line
from suture.studies.bench.page import clients as clients_section
from suture.studies.bench.rigs import shaped


def section(name, out):
    # In a process of its own: the helpers that multiprocessing starts live as long as their parent.
    command = [sys.executable, "-m", "suture", "bench", name, "--quick", "--out", str(out)]
    done = forked.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (out / f"benchmarks-{name}.png").stat().st_size > 1000
    return json.loads((out / "benchmarks.json").read_text())[name]


def namespaces():
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
    return {name for name in listed if name.startswith("suture_")}


def test_every_schedule_is_timed_with_each_number_of_clients(tmp_path):
    """Oracle: counting; a client's images a second are what its rounds say."""
    found = section("clients", tmp_path)
    assert [(row["clients"], row["schedule"]) for row in found["rows"]] == [
        (count, schedule) for count in (1, 2) for schedule in clients.SCHEDULES
    ]
    for row in found["rows"]:
        assert len(row["round_seconds"]) == len(row["unsplit_seconds"]) == clients.QUICK.blocks
        assert row["turn_steps"] == dict(clients.QUICK.turns)[row["clients"]]
        images = row["clients"] * row["turn_steps"] * clients.QUICK.batch_size
        slow, fast = max(row["round_seconds"]), min(row["round_seconds"])
        assert images / slow <= row["images_per_second"] <= images / fast
        assert 0 < row["client_own_memory_bytes"] < row["client_memory_bytes"] < 10e9


def test_the_verdict_on_clients_follows_the_aim():
    """Oracle: by hand."""
    row = {"clients": 8, "schedule": "parallel", "over_unsplit": 0.96}
    row |= {"turn_steps": 6, "server_cpu_seconds_a_step": 0.1}
    said = clients_section.verdicts([row])
    assert "met; the smallest is 0.960 with 8." in said[0] and "parallel: flat" in said[1]
    slow = row | {"over_unsplit": 0.94}
    more = row | {"clients": 16, "server_cpu_seconds_a_step": 0.2}
    said = clients_section.verdicts([slow, more])
    assert "**not met**; the smallest is 0.940 with 8." in said[0] and "**not flat**" in said[1]


@pytest.mark.skipif(bool(shaped.why_not()), reason="needs root and network namespaces")
def test_a_shaped_line_carries_real_steps_and_leaves_no_namespace(tmp_path):
    """Oracle: bytes by hand (batch 8, 64 x 16 x 16 at the cut, labels int64); the metric's seeds; ``ip netns``."""
    before = namespaces()
    found = section("line", tmp_path)
    ways = {row["way"]: row for row in found["rows"]}
    plain, packed, over_grpc = ways[line.PLAIN], ways["fused int8"], ways["gRPC fp32"]
    assert plain["bytes_up"] == over_grpc["bytes_up"] == 4 * 8 * 64 * 16 * 16 + 8 * 8
    assert packed["bytes_up"] < plain["bytes_up"] / 3.9
    for row in found["rows"]:
        assert len(row["seconds"]["100"]) == 2  # three steps of a turn are two intervals
    assert (
        min(plain["seconds"]["100"]) >= 0.010 + 2 * 0.52e6 * 8 / 100e6
    )  # the line's own: no machine is faster
    assert [len(values) for values in found["metric"]["values"].values()] == [1, 1]
    assert namespaces() <= before


@pytest.mark.skipif(bool(shaped.why_not()), reason="needs root and network namespaces")
def test_both_carriers_real_sites_and_a_broken_line_are_measured(tmp_path):
    """Oracle: the line's rate and latency, which nothing can beat; bytes by hand; counting."""
    before = namespaces()
    found = section("sites", tmp_path)
    (steps,), (handed,) = found["steps"], found["handed"]
    for carrier in ("rpc", "grpc"):
        # Three steps of a turn are two intervals; 4 * 8 * 64 * 24 * 24 bytes each way, and two ways of 5 ms.
        assert len(steps[carrier]) == 2 and min(steps[carrier]) > 0.010 + 2 * 1.18e6 * 8 / 100e6
        # One timed round of two clients, who each take a hand-off up and bring one down.
        assert sorted(way for way, _, _ in handed[carrier]) == ["down", "down", "up", "up"]
        assert all(size * 8 / seconds < 100e6 for _, size, seconds in handed[carrier])
    (joins,), (handshakes,) = found["joins"], found["handshakes"]
    assert len(joins) == 2 and min(joins) > min(handshakes) > 2 * 0.010  # two round trips
    real = found["consortium"]
    assert len(real["crowd"]["memory"]) == real["crowd"]["sites"] == 2 and len(real["alone"]["memory"]) == 1
    assert all(0 < seen["own"] <= seen["peak"] for seen in real["crowd"]["memory"])
    (seated,), (stepped,) = real["reconnects"]["seated"], real["reconnects"]["stepped"]
    assert 0 < seated < stepped
    assert namespaces() <= before


@pytest.mark.skipif(bool(shaped.why_not()), reason="needs root and network namespaces")
def test_a_line_has_its_rate_at_both_ends_and_its_relay_passes_frames_on():
    """Oracle: ``tc``; bytes sent through the namespaces and back."""
    with shaped.ShapedLine() as shaped_line:
        shaped_line.shape(20, 1.0)
        server, client = shaped_line.end(True), shaped_line.end(False)
        for end in (server, client):
            show = f"ip netns exec {end.namespace} tc qdisc show dev line0".split()
            shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
            assert "tbf" in shown and "rate 20Mbit" in shown
        serve = f"import socket; s = socket.create_server(('{server.server_address}', 29999)); print(flush=True); s.accept()[0].sendall(b'x' * 500_000)"
        fetch = f"import socket; s = socket.create_connection(('{server.server_address}', 29999), 30); print(sum(map(len, iter(lambda: s.recv(65536), b''))))"
        inside = ["ip", "netns", "exec"]
        sender = subprocess.Popen(
            [*inside, server.namespace, sys.executable, "-c", serve], stdout=subprocess.PIPE
        )
        assert sender.stdout is not None and sender.stdout.readline()
        command = [*inside, client.namespace, sys.executable, "-c", fetch]
        got = subprocess.run(command, capture_output=True, text=True, timeout=60)
        sender.communicate(timeout=30)
        assert got.stdout.strip() == "500000", got.stderr
