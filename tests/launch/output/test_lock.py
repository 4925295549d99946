"""A folder has one process at a time, and is free again as soon as that one has died.

Oracle: real processes that hold a lock, end, and are killed.
"""

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from suture.launch.output.lock import LOCK_FILE, lock_folder
from suture.runtime.errors import ConfigError

_HOLDER = """
import subprocess, sys
from pathlib import Path
from suture.launch.output.lock import lock_folder
lock = lock_folder(Path(sys.argv[1]))
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder):
    """Another process that has the lock, and a child of its own that does not end with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        os.kill(child, 9)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    """Oracle: the message names folder, process and remedy; SIGKILL is enough, whatever children are left."""
    with holder(tmp_path) as process:
        for _ in range(2):
            with pytest.raises(
                ConfigError,
                match=f"^{tmp_path} is in use by process {process.pid} on .*: .* or name another --run-dir$",
            ):
                lock_folder(tmp_path)
        process.kill()
        process.wait()
        lock = lock_folder(tmp_path)
    assert (tmp_path / LOCK_FILE).read_text().startswith(f"{os.getpid()} on ")
    lock.close()


def test_a_lock_is_let_go_when_it_is_closed(tmp_path):
    """Oracle: the same process takes it again, as a run that is resumed in a notebook does."""
    lock = lock_folder(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} "):
        lock_folder(tmp_path)
    lock.close()
    lock_folder(tmp_path).close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """Oracle: the message."""
    with pytest.raises(ConfigError, match="cannot write to .*none: No such file or directory; name another"):
        lock_folder(tmp_path / "none")


def test_a_lock_file_that_cannot_be_written_is_said_in_words(tmp_path):
    """Oracle: the message; /dev/full takes nothing."""
    (tmp_path / LOCK_FILE).symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=f"cannot write to {tmp_path}: .*; name another --run-dir"):
        lock_folder(tmp_path)


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    """Oracle: the warning; some file systems of clusters have none."""

    def without(file, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", without)
    lock_folder(tmp_path).close()
    assert "cannot be locked (Function not implemented: " in caplog.text
