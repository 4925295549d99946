"""Sealed hand-offs open for whom they are meant and for nobody else; key files are private and shared.

Oracle: AES-GCM's guarantees, field by field; digests against SHA-256 written out by hand.
"""

import copy
import dataclasses
import hashlib
import json
import pickle
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from suture.runtime.errors import ConfigError, HandoffError, WireError
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.state.handoff import (
    HandoffSeal,
    handoff_digest,
    parse_key,
    part_digest,
    read_key,
    shared_key,
    weights_digest,
    write_key,
)

KEY, OTHER = bytes(range(32)), bytes(32)
STATE = {
    "parts": {"bottom": {"weight": torch.arange(6.0).view(2, 3)}},
    "optimizer": {"lr": 0.1},
    "defence": {},
}


def _sealed(turn: int = 3):
    first = HandoffSeal(KEY, "run").seal(STATE, 1, None)
    return first, HandoffSeal(KEY, "run").seal(STATE, turn, first)


def test_a_sealed_state_opens_equal():
    """Oracle: the state that was sealed."""
    _, sealed = _sealed()
    opened = HandoffSeal(KEY, "run").open(sealed)
    assert torch.equal(opened["parts"]["bottom"].pop("weight"), STATE["parts"]["bottom"]["weight"])
    assert opened == {"parts": {"bottom": {}}, "optimizer": {"lr": 0.1}, "defence": {}}


def test_the_ciphertext_shows_nothing_of_the_state():
    """Oracle: the tensor's bytes are in the plain state and not in the sealed one; no two seals are alike."""
    plain = STATE["parts"]["bottom"]["weight"].numpy().tobytes()
    (_, one), (_, two) = _sealed(), _sealed()
    assert plain not in one.ciphertext.numpy().tobytes()
    assert one.nonce != two.nonce and not torch.equal(one.ciphertext, two.ciphertext)


def _flipped(handoff, position):
    ciphertext = handoff.ciphertext.clone()
    ciphertext[position] ^= 1
    return dataclasses.replace(handoff, ciphertext=ciphertext)


ALTERED = {
    "first byte": lambda h: _flipped(h, 0),
    "middle byte": lambda h: _flipped(h, len(h.ciphertext) // 2),
    "tag": lambda h: _flipped(h, -1),
    "truncated": lambda h: dataclasses.replace(h, ciphertext=h.ciphertext[:-1].clone()),
    "nonce": lambda h: dataclasses.replace(h, nonce=bytes([h.nonce[0] ^ 1]) + h.nonce[1:]),
    "later turn": lambda h: dataclasses.replace(h, turn=h.turn + 1),
    "earlier turn": lambda h: dataclasses.replace(h, turn=h.turn - 1),
    "previous": lambda h: dataclasses.replace(h, previous=bytes(32)),
    "no previous": lambda h: dataclasses.replace(h, previous=b""),
}


@pytest.mark.parametrize("what", ALTERED)
def test_what_was_altered_does_not_open(what):
    """Oracle: authenticated encryption; the state that was sealed is a control that it opens unaltered."""
    _, sealed = _sealed()
    seal = HandoffSeal(KEY, "run")
    with pytest.raises(
        HandoffError, match="does not open: another hand-off key, another run, or it was altered"
    ):
        seal.open(ALTERED[what](sealed))
    assert seal.newest == 0, "a forgery must not count as seen"
    assert seal.open(sealed)["optimizer"] == {"lr": 0.1}


@pytest.mark.parametrize(("key", "run"), [(OTHER, "run"), (KEY, "another"), (KEY, "run/3")])
def test_another_key_or_run_does_not_open(key, run):
    """Oracle: the run is bound to what was sealed."""
    _, sealed = _sealed()
    with pytest.raises(HandoffError, match="hand-off of turn 3 does not open.*same --handoff-key"):
        HandoffSeal(key, run).open(sealed)


@pytest.mark.parametrize(
    "malformed", [{"nonce": b"short"}, {"ciphertext": torch.zeros(64)}, {"turn": "3"}, {"previous": None}]
)
def test_a_malformed_handoff_is_refused_in_words(malformed):
    """Oracle: a hostile server gets no exception of another kind out of a client."""
    _, sealed = _sealed()
    with pytest.raises(WireError, match=f"server: handoff.{next(iter(malformed))}: expected"):
        HandoffSeal(KEY, "run").open(dataclasses.replace(sealed, **malformed))


def test_older_than_the_newest_is_refused_and_the_remedy_named():
    """Oracle: the message names both turns and the option."""
    first, third = _sealed()
    seal = HandoffSeal(KEY, "run")
    seal.open(third)
    with pytest.raises(HandoffError, match="hand-off of turn 1, but .* turn 3; .*--accept-rollback 1$"):
        seal.open(first)
    seal.open(third)


def test_a_seal_refuses_to_be_pickled():
    """Oracle: TypeError, so that no key is written or sent by accident."""
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds the clients' key and refuses to be pickled"):
            copying(HandoffSeal(KEY, "run"))


def _client(memory: Path, accept_rollback: int | None = None):
    from suture.launch import build
    from suture.launch.options.options import AskedOptions

    options = AskedOptions(
        data="chest-phantom", width=1, image_size=32, train_images=2, validation_images=0, test_images=1,
        batch_size=2, clients=1, accept_rollback=accept_rollback,
    ).resolved()  # fmt: skip
    images = build.build_images(options, 1)
    data = build.build_data(options, images, 0)
    return build.build_client(options, data, "client0", KEY, torch.device("cpu"), memory)


def _turn(number):
    return Turn(TurnKind.TRAIN, client="client0", round=1, number=number)


def _client_of(run):
    client = _client(None)
    client.join(run)
    return client


def test_a_client_remembers_the_newest_turn_until_its_site_accepts_a_rollback(tmp_path):
    """Oracle: the protocol's ruling 3, over restarts of the client's process (a new object each time)."""
    memory = tmp_path / "state"
    client = _client(memory)
    client.join("run")
    first = client.seal(_turn(1))
    client.committed(first)
    second = client.seal(_turn(4))
    client.committed(second)
    (remembered,) = memory.iterdir()
    assert json.loads(remembered.read_text()) == {"turn": 4, "digest": handoff_digest(second).hex()}

    forked = _client(memory)
    forked.join("run")
    with pytest.raises(HandoffError, match="another hand-off of turn 4 than the one this client has seen"):
        forked.open(_client_of("run").seal(_turn(4)))

    restarted = _client(memory)
    restarted.join("run")
    with pytest.raises(HandoffError, match="--accept-rollback 1"):
        restarted.open(first)

    not_enough = _client(memory, accept_rollback=2)
    not_enough.join("run")
    with pytest.raises(HandoffError, match="turn 1, but this client has seen turn 2"):
        not_enough.open(first)

    agreed = _client(memory, accept_rollback=1)
    agreed.join("run")
    agreed.open(first)
    assert agreed.holds(1) and json.loads(remembered.read_text())["turn"] == 1

    elsewhere = _client(memory)
    elsewhere.join("another run")
    assert elsewhere.seal(_turn(1)).turn == 1, "the memory of another run binds nobody"


def test_a_promised_handoff_that_does_not_come_is_an_error():
    """Oracle: the message names the client."""
    client = _client(None)
    client.join("run")
    with pytest.raises(HandoffError, match="client0: the server promised a hand-off and sent none"):
        client.open(None)


def test_a_key_file_is_private_and_never_overwritten(tmp_path):
    """Oracle: mode 0600, 64 hex digits, and the file's bytes after a second attempt."""
    path = tmp_path / "key"
    write_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_text()
    assert len(bytes.fromhex(before)) == 32 == len(read_key(path))
    with pytest.raises(ConfigError, match="exists and a key is never overwritten"):
        write_key(path)
    assert path.read_text() == before
    with pytest.raises(ConfigError, match="cannot write a key to .*No such file"):
        write_key(tmp_path / "no" / "key")


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "00" * 31, "00" * 33, "key"])
def test_a_malformed_key_is_refused(text, tmp_path):
    """Oracle: the message says what a key is and how to get one; it does not repeat the key."""
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(
        ConfigError, match="must hold 64 hex digits; make one with 'suture keygen FILE'"
    ) as error:
        read_key(tmp_path / "key")
    assert len(text) < 60 or text not in str(error.value)
    with pytest.raises(ConfigError, match="^SUTURE_HANDOFF_KEY must hold 64 hex digits"):
        parse_key(text, "SUTURE_HANDOFF_KEY")


def test_a_key_file_that_cannot_be_read_is_named(tmp_path):
    """Oracle: the message."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(ConfigError, match=r"cannot read hand-off key file .*suture keygen"):
            read_key(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_may_reach_is_refused(mode, tmp_path):
    """Oracle: the message, whose remedy is then taken; it does not repeat the key."""
    path = tmp_path / "key"
    write_key(path)
    path.chmod(mode)
    with pytest.raises(
        ConfigError, match=f"key has mode {mode:o}: others may read it; chmod 600 "
    ) as refused:
        read_key(path)
    assert path.read_text().strip() not in str(refused.value)
    path.chmod(0o600)
    assert read_key(path).hex() == path.read_text().strip()


def test_threads_that_race_for_a_key_get_one_and_the_same(tmp_path, monkeypatch):
    """Oracle: all answers are equal, and nothing but the key is left, although every thread drafts a key."""
    path, keys, drafted = tmp_path / "clients" / "handoff.key", [], threading.Barrier(8)

    def write_and_wait(draft):
        write_key(draft)
        drafted.wait(30)

    monkeypatch.setattr("suture.runtime.state.handoff.write_key", write_and_wait)

    def ask():
        keys.append(shared_key(path))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(keys) == 8 and set(keys) == {read_key(path)}
    assert [left.name for left in path.parent.iterdir()] == ["handoff.key"]
    assert path.stat().st_mode & 0o777 == 0o600


_RACER = r"""
import os, sys, time
from pathlib import Path
import torch
from suture.runtime.state.handoff import shared_key
pids = []
for _ in range(4):
    if not (pid := os.fork()):
        while not Path(sys.argv[2]).exists():
            pass
        os.write(1, shared_key(Path(sys.argv[1])).hex().encode() + b"\n")
        os._exit(0)
    pids.append(pid)
Path(sys.argv[2]).touch()
for pid in pids:
    os.waitpid(pid, 0)
"""


def test_processes_that_race_for_a_key_get_one_and_the_same(tmp_path):
    """Oracle: all answers are equal; four processes wait for one signal."""
    path = tmp_path / "keys" / "key"
    raced = subprocess.run(
        [sys.executable, "-c", _RACER, str(path), str(tmp_path / "go")],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert raced.returncode == 0, raced.stderr
    assert len(raced.stdout.split()) == 4 and set(raced.stdout.split()) == {read_key(path).hex()}


PART = {"a.weight": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(7)}
# SHA-256 of 'a.weight/torch.float32/(1, 2)/', two little-endian floats, 'b/torch.int64/()/' and eight bytes.
PART_SHA256 = hashlib.sha256(
    b"a.weight/torch.float32/(1, 2)/" + struct.pack("<2f", 1, 2) + b"b/torch.int64/()/" + struct.pack("<q", 7)
).hexdigest()


def test_a_parts_digest_is_the_known_value():
    """Oracle: the digest written out; a change of this format would orphan every published digest."""
    assert part_digest(PART) == PART_SHA256
    assert part_digest(PART) == "d74be924b9bcf9a8218834f61c1cbbcde03fcfae85ea7175c1c416d24f6d6cc9"
    assert part_digest(dict(reversed(PART.items()))) == PART_SHA256, "the order of names must not matter"


@pytest.mark.parametrize(
    "other",
    [
        {"a.bias": PART["a.weight"], "b": PART["b"]},
        {"a.weight": PART["a.weight"].double(), "b": PART["b"]},
        {"a.weight": PART["a.weight"].view(2, 1), "b": PART["b"]},
        {"a.weight": torch.tensor([[1.0, 2.0000002]]), "b": PART["b"]},
        {"a.weight": torch.tensor([[2.0, 1.0]]), "b": PART["b"]},
        {"a.weight": PART["a.weight"].view(torch.int32), "b": PART["b"]},
        {"a.weight": PART["a.weight"]},
    ],
    ids=["name", "dtype", "shape", "a bit", "order of values", "same bytes, other dtype", "one fewer"],
)
def test_a_parts_digest_depends_on(other):
    """Oracle: the digest of the part unchanged."""
    assert part_digest(other) != PART_SHA256


def test_a_parts_digest_reads_values_and_not_memory():
    """Oracle: the same values laid out otherwise; signed zeros differ in their bytes."""
    values = torch.arange(6.0).view(2, 3)
    assert part_digest({"w": values.t().contiguous().t()}) == part_digest({"w": values})
    assert part_digest({"w": torch.tensor(0.0)}) != part_digest({"w": torch.tensor(-0.0)})
    assert part_digest({"w": torch.zeros(0, 3)}) != part_digest({"w": torch.zeros(3, 0)})
    assert part_digest({"w": torch.ones(2, dtype=torch.bfloat16)}) != part_digest({"w": torch.ones(2).half()})


def test_the_whole_models_digest_is_the_known_value():
    """Oracle: SHA-256 over 'name:digest' in the order of names, written out."""
    expected = hashlib.sha256(b"bottom:aa/head:cc/top:bb").hexdigest()
    assert weights_digest({"top": "bb", "bottom": "aa", "head": "cc"}) == expected
    assert expected == "b176ee75be8460c04865ade80b91a589a5163cd87f7b372b3a3d55ab7b7ca96a"
    assert weights_digest({"top": "aa", "bottom": "bb", "head": "cc"}) != expected
    assert weights_digest({"top": "bb", "bottom": "aa"}) != expected


def test_a_handoffs_digest_depends_on_every_field():
    """Oracle: it is what the next hand-off binds as its history; bytes that the tag stands for do not open (above)."""
    _, sealed = _sealed()
    changed = [
        change(sealed) for what, change in ALTERED.items() if what not in ("first byte", "middle byte")
    ]
    assert handoff_digest(None) == b"" and len(handoff_digest(sealed)) == 32
    assert len({handoff_digest(handoff) for handoff in [sealed, *changed]}) == len(changed) + 1
