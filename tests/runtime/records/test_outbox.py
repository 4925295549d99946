"""Each message that leaves a site is one line of left.jsonl before it is sent; nothing leaves that cannot be written.

Oracle: SHA-256 of the frame's bytes, computed here; repetitions marked by hand; a file that the kernel keeps small.
"""

import hashlib
import json
import os
import resource
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from suture.runtime.errors import CheckpointError, ConfigError
from suture.runtime.records import outbox
from suture.runtime.records.outbox import Outbox
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.wire import frames
from suture.runtime.wire.messages import Hello, OutputGradient, Refusal, Report, SealedHandoff, Upload

HELLO = Hello("ward_a", {"lr": "0.1"}, 6, 3)
TRAIN = Turn(TurnKind.TRAIN, client="ward_a", round=2, number=7)
AVERAGE = Turn(TurnKind.AVERAGE, client="ward_a", round=2, number=8)
EVALUATE = Turn(TurnKind.EVALUATE, client="ward_a", round=2, number=9)


def upload(batch: int, phase: str = "train", labels: bool = False, turn: int = 7) -> Upload:
    return Upload(turn, batch, phase, torch.rand(2, 3), torch.tensor([0, 1]) if labels else None)


def handoff(turn: int) -> SealedHandoff:
    return SealedHandoff(turn, b"", bytes(12), torch.zeros(40, dtype=torch.uint8))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "left.jsonl"


def send(box: Outbox, kind: str, *messages) -> bytes:
    """Tells the outbox of a message; returns the bytes of its frame."""
    pieces = frames.pack(list(messages))
    box.left(kind, messages, pieces)
    return b"".join(pieces)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def marks(path: Path) -> list[bool]:
    return [line.get("again", False) for line in lines(path)]


def test_a_message_is_one_line_with_size_and_digest_of_its_bytes(path):
    """Oracle: the frame's bytes, put together and hashed here; the clock."""
    box = Outbox(path, "layer2")
    sent = [send(box, "hello", HELLO), send(box, "next_turn")]
    box.answered(TRAIN)
    sent += [send(box, "train", upload(0, labels=True)), send(box, "commit", handoff(7))]
    written = lines(path)
    assert [line["sha256"] for line in written] == [hashlib.sha256(frame).hexdigest() for frame in sent]
    assert [line["bytes"] for line in written] == [len(frame) for frame in sent]
    assert [line["kind"] for line in written] == ["hello", "next_turn", "train", "commit"]
    assert [line["round"] for line in written] == [0, 0, 2, 2]
    assert {line["cut"] for line in written} == {"layer2"}
    for line in written:
        written_at = datetime.fromisoformat(line["time"])
        assert written_at.utcoffset() == timedelta(0) and datetime.now(UTC) - written_at < timedelta(
            minutes=1
        )


def test_a_line_says_where_a_message_belongs_and_none_of_its_values(path):
    """Oracle: all keys and values of a line, written out; whether labels went up, not which."""
    box = Outbox(path, "3")
    box.answered(TRAIN)
    send(box, "train", upload(4, labels=True))
    send(box, "backward", OutputGradient(7, 4, 0.6931, torch.rand(2, 3)))
    send(box, "report", Report(7, {"test": {"auroc": 0.875}}))
    send(box, "abort", Refusal("DataError", "/data/smith_left.png is damaged"))
    beside = {"time", "bytes", "sha256"}
    assert [{name: value for name, value in line.items() if name not in beside} for line in lines(path)] == [
        {"kind": "train", "round": 2, "cut": "3", "turn_kind": "train", "turn": 7, "phase": "train", "batch": 4, "labels": True},
        {"kind": "backward", "round": 2, "cut": "3", "turn_kind": "train", "turn": 7, "batch": 4},
        {"kind": "report", "round": 2, "cut": "3", "turn_kind": "train", "turn": 7},
        {"kind": "abort", "round": 2, "cut": "3"},
    ]  # fmt: skip
    assert not [word for word in ("smith", "0.6931", "0.875") if word in path.read_text()]


def test_what_was_sent_before_is_marked(path):
    """Oracle: by hand. Another batch, phase or kind of turn is another message; the turn's number does not matter."""
    box = Outbox(path, "3")
    box.answered(TRAIN)
    for one in (upload(0), upload(1), upload(2)):
        send(box, "train", one)
    send(box, "commit", handoff(7))
    box.answered(AVERAGE)
    send(box, "commit", handoff(8))
    box.answered(EVALUATE)
    for phase in ("validation", "test"):
        send(box, "predict", upload(0, phase=phase, turn=9))
    assert not any(marks(path))
    box.answered(Turn(TurnKind.TRAIN, client="ward_a", round=2, number=10))
    send(box, "train", upload(1, turn=10))
    send(box, "next_turn")
    box.answered(EVALUATE)
    send(box, "predict", upload(0, phase="test", turn=9))
    box.answered(Turn(TurnKind.TRAIN, client="ward_a", round=3, number=11))
    send(box, "train", upload(1, turn=11))
    assert marks(path)[7:] == [True, False, True, False]


def test_after_a_restart_the_log_goes_on_and_knows_what_was_sent(path):
    """Oracle: the lines of before, unchanged; the first batch of the round begins its third pass."""
    for number in range(3):
        box = Outbox(path, "3")
        assert box.passes(2) == number
        before = path.read_bytes()
        send(box, "hello", HELLO)
        box.answered(TRAIN)
        send(box, "train", upload(0))
        send(box, "train", upload(1))
        box.close()
        assert path.read_bytes().startswith(before)
    assert marks(path) == [False, False, False, False, True, True, False, True, True]
    again = Outbox(path, "3")
    assert (again.passes(1), again.passes(2)) == (0, 3)
    again.close()


def test_half_a_line_at_the_end_is_cut_off_its_message_never_left(path):
    """Oracle: the whole lines of before, and the next one behind them."""
    box = Outbox(path, "3")
    send(box, "hello", HELLO)
    box.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"time": "2026')
    box = Outbox(path, "3")
    assert path.read_bytes() == whole
    send(box, "next_turn")
    assert [line["kind"] for line in lines(path)] == ["hello", "next_turn"]
    box.close()


@pytest.mark.parametrize("damage", [b"not json\n", b"[]\n", b'{"round": []}\n', b"\xff\n"])
def test_a_damaged_log_is_refused(damage, path):
    """Oracle: the message names file and line; the file is left as it is."""
    box = Outbox(path, "3")
    send(box, "hello", HELLO)
    box.close()
    path.write_bytes(path.read_bytes() + damage + b"{}\n")
    before = path.read_bytes()
    with pytest.raises(
        ConfigError, match="left.jsonl is damaged: line 2 of what left .*keep that file elsewhere"
    ):
        Outbox(path, "3")
    assert path.read_bytes() == before


def test_nobody_else_may_read_it(path):
    """Oracle: the file's mode, of a new one and of one that others could read."""
    mask = os.umask(0)
    try:
        Outbox(path, "3").close()
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o644)
        Outbox(path, "3").close()
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_is_on_the_disk_when_a_turn_is_over_and_at_the_end(path, monkeypatch):
    """Oracle: the calls of fsync; a line is in the file at once."""
    synced, usual = [], os.fsync
    monkeypatch.setattr(outbox.os, "fsync", lambda file: (synced.append(file), usual(file)))
    box = Outbox(path, "3")
    send(box, "hello", HELLO)
    box.answered(TRAIN)
    for batch in range(5):
        send(box, "train", upload(batch))
        assert len(lines(path)) == batch + 2
    assert len(synced) == 0
    send(box, "next_turn")
    assert len(synced) == 1
    box.close()
    box.close()
    assert len(synced) == 2


@contextmanager
def files_of_at_most(size: int):
    """The kernel lets this process write no file beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1, 100])
def test_where_there_is_no_room_for_a_line_nothing_is_half_written_and_nothing_may_leave(room, path):
    """Oracle: the words; the lines before it stay whole, and with room again the log goes on."""
    box = Outbox(path, "3")
    send(box, "hello", HELLO)
    whole = path.read_bytes()
    words = (
        "cannot write .*left.jsonl: File too large; nothing leaves this site that is not written down there"
    )
    with files_of_at_most(len(whole) + room), pytest.raises(CheckpointError, match=words):
        send(box, "next_turn")
    assert path.read_bytes() == whole
    box.answered(TRAIN)
    send(box, "train", upload(0))
    assert [line["kind"] for line in lines(path)] == ["hello", "train"] and box.passes(2) == 1
    box.close()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    """Oracle: the message names the file and the remedy."""
    with pytest.raises(
        ConfigError, match=r"cannot write to .*left.jsonl: No such file .*give this site a --run-dir"
    ):
        Outbox(tmp_path / "nowhere" / "left.jsonl", "3")
