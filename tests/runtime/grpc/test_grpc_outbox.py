"""A site's log of what left it, over a real connection: the server received exactly what is written there.

Oracle: SHA-256 of every frame that the server read off its side of the line.
"""

import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from house import LONG
from test_grpc_runs import joins
from tiny import NUM_BATCHES, build_client

from suture.launch.site import join
from suture.runtime.errors import CheckpointError
from suture.runtime.grpc import chunks
from suture.runtime.grpc import server as server_module
from suture.runtime.records.outbox import Outbox
from suture.runtime.session import NoClientObserver, take_part
from suture.studies.bench.rigs.breakable import BreakableLine


@pytest.fixture
def received(monkeypatch) -> list[str]:
    """The digests of all frames that came whole to a server."""
    digests: list[str] = []

    async def gather(read, most):
        frame = await chunks.gather(read, most)
        if frame is not None:
            digests.append(hashlib.sha256(frame.numpy().tobytes()).hexdigest())
        return frame

    monkeypatch.setattr(server_module, "chunks", SimpleNamespace(**vars(chunks) | {"gather": gather}))
    return digests


@pytest.fixture
def box(tmp_path):
    made = Outbox(tmp_path / "left.jsonl", "1")
    yield made
    made.close()


def lines(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "left.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("home", [False, True])
def test_the_log_holds_what_the_server_received_and_no_more(home, house, received, box, tmp_path):
    """Oracle: as above; the messages of two rounds, by the protocol; labels went up where they are shared."""
    made = house(1, rounds=2, home=home)
    member = made.member(0, home)
    member.exchange._line = made.line("client0", outbox=box)
    take_part(member, {})
    assert made.ended.wait(LONG) and made.error is None
    written = lines(tmp_path)
    assert [line["sha256"] for line in written] == received
    kinds = Counter(line["kind"] for line in written)
    assert kinds["hello"] == kinds["finish"] == kinds["leave"] == 1
    assert kinds["train"] == 2 * NUM_BATCHES and kinds["commit"] == kinds["report"] == 2
    assert kinds["backward"] == (2 * NUM_BATCHES if home else 0)
    trained = [(line["round"], line["batch"]) for line in written if line["kind"] == "train"]
    assert trained == [(round, batch) for round in (1, 2) for batch in range(NUM_BATCHES)]
    assert all(line.get("labels", False) is not home for line in written if line["kind"] == "train")
    assert not any("again" in line for line in written)
    assert box.passes(1) == box.passes(2) == 1


def test_what_is_sent_again_after_a_broken_line_is_marked(house, received, box, tmp_path):
    """Oracle: the first turn is broken in its second batch and begun anew; all that arrived is written there."""
    made = house(1, rounds=2)
    client = build_client(0)
    with BreakableLine(f"127.0.0.1:{made.port}") as line:
        broken = []

        def break_once(step: int, name: str) -> None:
            if step == 2 and not broken:
                broken.append(step)
                line.break_lines()

        made.events.at_step = break_once
        port = int(line.address.rpartition(":")[2])
        config = joins("client0", line.address, LONG)
        join.take_part(client, NoClientObserver(), made.config(port=port, outbox=box), {}, config)
    assert made.ended.wait(LONG) and made.error is None and broken
    written = lines(tmp_path)
    assert not Counter(received) - Counter(line["sha256"] for line in written)
    trained = [
        (line["round"], line["batch"], line.get("again", False))
        for line in written
        if line["kind"] == "train"
    ]
    assert trained[:2] == [(1, 0, False), (1, 1, False)]
    assert [one for one in trained if one[2]][:2] == [(1, 0, True), (1, 1, True)]
    assert (2, 0, False) in trained
    assert (box.passes(1), box.passes(2)) == (2, 1)
    text = (tmp_path / "left.jsonl").read_text().splitlines()  # as docs/security.md counts them with grep
    assert (
        sum('"kind": "train"' in one and re.search(r'"batch": 0[,}]', one) is not None for one in text) == 3
    )
    assert sum(line["kind"] == "hello" for line in written) == 2


def test_a_site_whose_disk_is_full_sends_nothing_more(house, received, box, tmp_path):
    """Oracle: the server received what is written there, and the site ended by an error; its turn did not count."""
    made = house(1)
    member = made.member(0)
    member.exchange._line = made.line("client0", outbox=box)

    def fill(step: int, name: str) -> None:
        if step == 2:
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, box._file)
            os.close(full)

    made.events.at_step = fill
    with pytest.raises(
        CheckpointError, match="No space left on device; nothing leaves this site that is not"
    ):
        take_part(member, {})
    member.exchange.close()
    made.events.wait("lost")
    written = lines(tmp_path)
    assert [line["sha256"] for line in written] == received
    assert [line["kind"] for line in written] == ["hello", "next_turn", "train", "train"]
    assert made.coordinator.run_state.turn_log.entries == []
    os.close(box._file)
    box._file = -1
