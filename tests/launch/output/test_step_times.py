"""--profile: the parts of a step add up, stay with whom they are of, and change nothing."""

import json

import pytest

from suture.launch.options.options import AskedOptions
from suture.launch.output.step_times import (
    EVENT,
    draw_own_profile,
    draw_profile,
    median_parts,
    own_median_parts,
    split_up,
)
from suture.launch.roles.one_process import run_in_one_process

OURS = {
    "seconds": {"bottom": 1.0, "sending": 1.0, "waiting": 6.0, "backward": 2.0},
    "spans": [["sending", 9.0, 10.0], ["waiting", 10.0, 13.0], ["waiting", 16.0, 19.0]],
    "window": [8.0, 19.0],
}


def test_what_a_client_waits_for_is_split_by_the_servers_own_times():
    """Oracle: by hand: each wait took 3, of which the server computed 1 in the middle."""
    theirs = {
        "seconds": 2.0,
        "spans": [["server", 10.5, 11.5], ["server", 17.0, 17.5], ["server", 17.5, 18.0]],
    }
    parts = split_up(OURS, theirs)
    assert parts == {
        "bottom": 1.0,
        "backward": 2.0,
        "other": 1.0,
        "wire up": 2.5,
        "server": 2.0,
        "wire down": 2.5,
    }
    assert sum(parts.values()) == 11.0


def test_a_server_that_had_ended_before_the_client_began_to_wait_leaves_only_the_way_down():
    """Oracle: by hand: it computed while the client loaded the next batch."""
    parts = split_up(OURS, {"seconds": 1.5, "spans": [["server", 13.5, 15.0]]})
    assert (parts["wire up"], parts["server"], parts["wire down"]) == (1.0, 0.0, 6.0)


def test_another_machines_clock_tells_the_servers_share_and_no_direction():
    """Oracle: by hand; without a server's event all of it is the wire and waiting."""
    parts = split_up(OURS, {"seconds": 2.0, "spans": [["server", 510.0, 511.0], ["server", 520.0, 521.0]]})
    assert (parts["server"], parts["wire and waiting"]) == (2.0, 5.0) and "wire up" not in parts
    assert split_up(OURS, None)["wire and waiting"] == 7.0


@pytest.mark.parametrize("data", ["fundus-phantom", "chest-phantom"])
def test_a_profiled_run_ends_with_the_same_weights_and_keeps_times_apart(tmp_path, monkeypatch, data):
    """Oracle: the run without --profile; the files: no client's time in the server's, none of the server's in theirs."""
    net = (
        {"model": "resnet18", "cut": "3"}
        if data == "fundus-phantom"
        else {"model": "unet", "cut": "1", "width": 4}
    )
    key = tmp_path / "key"
    key.write_text("00" * 32 + "\n")
    key.chmod(0o600)
    digests = {}
    for profile in (False, True):
        run = tmp_path / f"profiled{profile}"
        run_in_one_process(
            AskedOptions(
                **net,
                data=data,
                image_size=32,
                train_images=4,
                validation_images=0,
                test_images=2,
                batch_size=2,
                clients=2,
                epochs=1,
                exchange="local",
                threads=1,
                profile=profile,
                handoff_key=str(key),
                run_dir=str(run),
            )
        )
        digests[profile] = json.loads((run / "summary.json").read_text())["weights_sha256"]
        assert bool(list(run.glob("clients/*/profile.jsonl"))) is profile
        assert (run / "figures" / "profile.png").exists() is profile
    assert digests[True] == digests[False]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = [line for line in lines if line.get("event") == EVENT]
    assert len(events) == 4 and all(event["seconds"] > 0 for event in events)
    theirs = (run / "clients" / "client0" / "profile.jsonl").read_text()
    steps = [json.loads(line) for line in theirs.splitlines()]
    assert [step["batch"] for step in steps] == [0, 1] and "server" not in theirs
    parts = {"loader", "bottom", "sending", "waiting", "backward", "optimizer"}
    assert steps[0]["seconds"].keys() == (parts if data == "fundus-phantom" else parts | {"head"})
    for medians in median_parts(run).values():
        assert medians["wire up"] > 0 and medians["server"] > 0 and medians["wire and waiting"] == 0


def _lap(batch: int) -> dict[str, object]:
    seconds = {"bottom": 0.2, "sending": 0.1, "waiting": 0.4, "backward": 0.3}
    return {"round": 1, "turn": 1, "batch": batch, "seconds": seconds, "spans": [], "window": [0.0, 1.0]}


def test_a_site_draws_its_own_picture_without_the_server(tmp_path):
    """Oracle: by hand: what it sent and waited is one part; a site that measured nothing draws nothing."""
    site = tmp_path / "clients" / "ward_a"
    (site / "figures").mkdir(parents=True)
    draw_own_profile(site)
    assert not (site / "figures" / "profile.png").exists()
    (site / "profile.jsonl").write_text("".join(json.dumps(_lap(batch)) + "\n" for batch in range(3)))
    draw_own_profile(site)
    assert (site / "figures" / "profile.png").stat().st_size > 1000
    found = own_median_parts(site)["ward_a"]
    assert found["wire and waiting"] == pytest.approx(0.5) and found["server"] == 0.0


def test_a_server_whose_sites_are_elsewhere_draws_its_own_share(tmp_path):
    """Oracle: the events' seconds; the first step is left out."""
    (tmp_path / "figures").mkdir()
    events = [
        {"event": EVENT, "client": "ward_a", "turn": 1, "seconds": s, "spans": []} for s in (9.0, 0.2, 0.4)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert median_parts(tmp_path)["ward_a"]["server"] == pytest.approx(0.3)
    draw_profile(tmp_path)
    assert (tmp_path / "figures" / "profile.png").stat().st_size > 1000
