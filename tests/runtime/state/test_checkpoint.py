"""Checkpoints are whole or not there: a crash leaves the old file, a changed bit is noticed, code is not run.

Oracle: the bytes on the disk before, and the state that was saved.
"""

import hashlib
import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from suture.runtime.errors import CheckpointError
from suture.runtime.state.checkpoint import Checkpoints, NoCheckpoints, read_checkpoint, write_atomically

STATE = {"turn": 1, "weights": torch.arange(32.0), "name": "client0"}


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    """Oracle: the state that was saved."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.load_newest() is None
    checkpoints.save(1, STATE)
    turn, state = checkpoints.load_newest()
    assert turn == 1 and torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {"turn": 1, "name": "client0"}
    assert _names(checkpoints.folder) == ["turn_000001.pt"]


def test_without_checkpoints_only_the_best_round_is_written(tmp_path):
    """Oracle: the folder's list of files; the best round is needed for what the clients are handed at the end."""
    checkpoints = NoCheckpoints(tmp_path / "checkpoints")
    checkpoints.save(1, STATE)
    checkpoints.save_farewells({"client0": {}})  # nobody will start this run again and ask who has gone home
    assert checkpoints.load_newest() is None and not checkpoints.folder.exists()
    checkpoints.save_best(STATE)
    assert _names(checkpoints.folder) == ["best.pt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_no_draft(error, where, tmp_path, monkeypatch):
    """Oracle: the old bytes and the folder's list of files."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise error

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif where == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        real_open = Path.open

        def opened(self, *args):
            file = real_open(self, *args)
            first, file_write = [], file.write

            class Failing:
                def __enter__(self):
                    return self

                def __exit__(self, *args):
                    file.close()

                def write(self, chunk):
                    if first:
                        fail()
                    first.append(file_write(chunk))

            return Failing()

        monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(type(error)):
        write_atomically(path, b"new ", b"content")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and _names(tmp_path) == ["file"]
    write_atomically(path, b"new ", memoryview(b"content"))
    assert path.read_bytes() == b"new content" and _names(tmp_path) == ["file"]


def test_a_full_disk_is_said_in_words_and_the_last_checkpoint_kept(tmp_path, monkeypatch):
    """Oracle: the message, and the checkpoint before it loads."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE)

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"turn_000002.pt: No space left on device; .*kept: .*--resume"):
        checkpoints.save(2, STATE)
    monkeypatch.undo()
    assert checkpoints.load_newest()[0] == 1 and _names(tmp_path) == ["turn_000001.pt"]


def test_a_folder_that_is_a_file_is_said_in_words(tmp_path):
    """Oracle: the message."""
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="cannot write checkpoint .*turn_000000.pt"):
        Checkpoints(tmp_path / "checkpoints").save(0, STATE)


def test_a_run_folder_that_was_removed_is_not_made_again(tmp_path):
    """Oracle: the message, whose remedy is not to make room; no folder appears."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    with pytest.raises(
        CheckpointError, match="turn_000001.pt: No such file .* moved or removed .* start a new run"
    ):
        checkpoints.save(1, STATE)
    assert not (tmp_path / "run").exists()


# In the digest, at its end, in the zip's header, in the pickle, in the tensor's bytes, in the last byte.
@pytest.mark.parametrize("place", [0, 31, 32, 0.2, 0.5, 0.8, -1])
def test_a_flipped_bit_anywhere_is_noticed(place, tmp_path):
    """Oracle: the untouched file loads, the touched one does not."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE)
    path = tmp_path / "turn_000001.pt"
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"turn_000001.pt is damaged .* {len(content)} bytes"):
        read_checkpoint(path)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 500])
def test_a_truncated_file_is_noticed(length, tmp_path):
    """Oracle: as for a flipped bit; 32 bytes are a digest of nothing."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE)
    path = tmp_path / "turn_000001.pt"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(path)


def test_the_newest_two_are_kept_and_a_damaged_one_is_passed_over(tmp_path, caplog):
    """Oracle: the state of the turn before; the log names the damaged file; the best round's file stays."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save_best({"top": 0})
    for turn in (1, 2, 3, 10):
        checkpoints.save(turn, {"turn": turn})
    assert checkpoints.turns() == [3, 10]
    assert _names(tmp_path) == ["best.pt", "turn_000003.pt", "turn_000010.pt"]
    assert checkpoints.load_newest() == (10, {"turn": 10})
    (tmp_path / "turn_000010.pt").write_bytes(b"not a checkpoint")
    assert checkpoints.load_newest() == (3, {"turn": 3})
    assert "turn_000010.pt is damaged" in caplog.text and "falling back" in caplog.text
    (tmp_path / "turn_000003.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged; start a new run"):
        checkpoints.load_newest()
    assert read_checkpoint(checkpoints.best) == {"top": 0}


class _Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def _pickled(thing) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


FOREIGN = {
    "a pickle that calls": pickle.dumps(_Evil()),
    "a torch file that calls": _pickled({"format": 1, "top": _Evil()}),
    "a torch file of a class": _pickled({"path": Path("x")}),
    "nothing": b"",
    "text": b"hello, world",
    "half a zip": _pickled(STATE)[:200],
    "a torch file of a list": _pickled([1, 2]),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_with_a_right_digest_is_refused_and_not_run(what, tmp_path, monkeypatch):
    """Oracle: the error, and no trace of the code that the pickle would have run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "turn_000001.pt"
    path.write_bytes(hashlib.sha256(FOREIGN[what]).digest() + FOREIGN[what])
    with pytest.raises(
        CheckpointError, match=r"turn_000001.pt holds what no checkpoint may hold; it is not ours"
    ):
        read_checkpoint(path)
    assert _names(tmp_path) == ["turn_000001.pt"]


def test_a_missing_file_is_said_in_words(tmp_path):
    """Oracle: the message."""
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*none.pt: No such file"):
        read_checkpoint(tmp_path / "none.pt")
