"""metrics.jsonl read on while it grows: the same lines count as for whoever reads it whole."""

import json
import math
import random

from suture.launch.output.report.lines import MetricsReader
from suture.runtime.records.tracking import read_metrics


def _lines(seed: int) -> list[str]:
    """A run with everything that changes what counts."""
    chance, lines, step, turn = random.Random(seed), [], 0, 0

    def write(**record: object) -> None:
        lines.append(json.dumps(record))

    write(event="begun", clients=["a", "b", "c"])
    for round in range(1, 9):
        for client in ("a", "b", "c"):
            turn += 1
            for _ in range(chance.randrange(1, 4)):
                step += 1
                loss = None if chance.random() < 0.1 else chance.random()
                write(step=step, round=round, turn=turn, client=client, phase="train", loss=loss)
            if chance.random() < 0.2:
                write(event="rolled_back", turn=turn, client=client, reason="lost")
        for client in ("a", "b", "c"):
            turn += 1
            write(step=step, round=round, turn=turn, client=client, phase="validation", auroc=chance.random())
        if chance.random() < 0.3:
            turn = max(0, turn - chance.randrange(5))
            write(event=chance.choice(["resumed", "went_back"]), after_turn=turn, step=step)
    return lines


def _counted(reader: MetricsReader) -> tuple[dict, list]:
    steps = {name: list(zip(c.steps, c.losses, strict=True)) for name, c in reader.curves().items()}
    return steps, reader.evaluations()


def test_whatever_the_pieces_it_is_read_in_the_same_lines_count(tmp_path):
    """Oracle: `read_metrics`, which reads the whole file; twenty runs, cut at any byte."""
    for seed in range(20):
        path, chance = tmp_path / f"{seed}.jsonl", random.Random(seed)
        content = ("\n".join(_lines(seed)) + "\n").encode()
        reader = MetricsReader(path)
        path.write_bytes(b"")
        cut = 0
        while cut < len(content):
            cut += chance.randrange(1, 700)
            path.write_bytes(content[:cut])
            reader.read()
        whole = read_metrics(path)
        train: dict[str, list] = {}
        for line in whole:
            if line["phase"] == "train":
                loss = math.nan if line["loss"] is None else line["loss"]
                train.setdefault(line["client"], []).append((line["step"], loss))
        steps, evaluations = _counted(reader)
        assert str(steps) == str({name: train[name] for name in steps}) and steps.keys() == train.keys()
        assert evaluations == [line for line in whole if line["phase"] != "train"]


def test_lines_that_are_torn_or_none_of_ours_cost_only_themselves(tmp_path):
    """Oracle: by hand; the one good line stands between them."""
    good = {"step": 1, "round": 1, "turn": 1, "client": "a", "phase": "train", "loss": 0.5}
    bad = [
        '{"step": 1, "rou',
        "[1, 2]",
        "null",
        '{"phase": "train"}',
        json.dumps(good | {"step": 10**30}),
        json.dumps(good | {"loss": "much"}),
        json.dumps({"event": "rolled_back"}),
        json.dumps({"event": "begun", "clients": 3}),
        json.dumps({"phase": "validation", "round": "x", "turn": 1, "client": "a"}),
        "\xff\x00",
        "[" * 100000,
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*bad, json.dumps(good), *bad]) + "\n", encoding="latin-1")
    reader = MetricsReader(path)
    reader.read()
    assert _counted(reader) == ({"a": [(1, 0.5)]}, [])


def test_a_file_that_was_replaced_is_read_anew_and_none_is_nothing(tmp_path):
    """Oracle: by hand."""
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path)
    reader.read()
    assert reader.clients == [] and reader.events == []
    line = {"step": 1, "round": 1, "turn": 1, "client": "a", "phase": "train", "loss": 0.5}
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | {"step": 2}) + "\n")
    reader.read()
    other = tmp_path / "other"
    other.write_text(json.dumps(line | {"client": "b", "loss": 0.25}) + "\n")
    other.replace(path)
    reader.read()
    assert _counted(reader) == ({"b": [(1, 0.25)]}, []) and reader.clients == ["b"]


def test_costs_add_up_by_client_and_who_is_away_is_known_until_it_is_back(tmp_path):
    """Oracle: by hand; a turn that was rolled back has cost its time, too."""
    path = tmp_path / "metrics.jsonl"
    turn = {"event": "turn", "round": 1, "turn": 1, "client": "a", "seconds": 2.0, "waited": 5.0, "images": 8}
    records = [
        {"event": "begun", "clients": ["a", "b", "c"]},
        turn | {"kind": "train", "bytes_up": 100, "bytes_down": 50},
        {"event": "rolled_back", "turn": 1, "client": "a", "reason": "lost"},
        {"event": "lost", "client": "a", "reason": "gone"},
        {"event": "lost", "client": "b", "reason": "gone"},
        {"event": "put_out", "client": "c", "reason": "revoked"},
        turn | {"kind": "evaluate", "seconds": 1.5, "waited": None, "bytes_up": float("1e400")},
        turn | {"kind": "train", "bytes_up": -3},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    reader = MetricsReader(path)
    reader.read()
    cost = reader.costs["a"]
    assert (cost.seconds, cost.waited, cost.images, cost.up, cost.down) == (
        {"train": 4.0, "evaluate": 1.5},
        10.0,
        16.0,
        100.0,
        50.0,
    )
    assert reader.states == {"b": "lost", "c": "put out"}
