"""A secret's file is refused where others may read it, and a secret's variable is gone once it was read.

Oracle: the message, and that its remedy works; what the system shows of a process's environment.
"""

import os
import subprocess
import sys

import pytest

from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import check_private, replace_private, take_variable, write_private


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_that_only_its_owner_may_read_is_taken(mode, secret):
    """Oracle: nothing is raised."""
    secret.chmod(mode)
    check_private(secret, "key file")


def test_every_right_of_others_is_refused(secret):
    """Oracle: each of the six bits alone; a person then does what the message says."""
    for bit in range(6):
        secret.chmod(0o600 | 1 << bit)
        with pytest.raises(ConfigError, match=f"^key file {secret} has mode .*; chmod 600 {secret}$"):
            check_private(secret, "key file")
    secret.chmod(0o600)
    check_private(secret, "key file")


def test_another_users_file_is_refused(secret, monkeypatch):
    """Oracle: the message names both users."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match=f"belongs to user {secret.stat().st_uid}, .* as user 4711: "):
        check_private(secret, "key file")


def test_a_link_is_judged_by_what_it_leads_to(secret, tmp_path):
    """Oracle: a link itself has mode 777."""
    link = tmp_path / "link"
    link.symlink_to(secret)
    check_private(link, "key file")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="has mode 644"):
        check_private(link, "key file")


def test_a_missing_file_is_its_readers_to_explain(tmp_path):
    """Oracle: the system's own error."""
    with pytest.raises(FileNotFoundError):
        check_private(tmp_path / "none", "key file")


_READER = """
import os, subprocess
from pathlib import Path
from suture.runtime.host.private_files import take_variable
before = Path("/proc/self/environ").read_bytes()
assert b"OTHER=kept" in before and b"SECRET=s3cret" in before
print(take_variable("SECRET"), take_variable("SECRET"))
after = Path("/proc/self/environ").read_bytes()
assert b"OTHER=kept" in after and b"s3cret" not in after, after
assert "SECRET" not in os.environ and "SECRET" not in subprocess.check_output("env", text=True)
"""


def test_a_variable_that_was_read_is_gone():
    """Oracle: os.environ, a child's environment and /proc/self/environ, with another variable as control."""
    ended = subprocess.run(
        [sys.executable, "-c", _READER],
        env=os.environ | {"SECRET": "s3cret", "OTHER": "kept"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, "s3cret None\n"), ended.stderr


def test_a_variable_that_was_set_here_is_taken_too(monkeypatch):
    """Oracle: the value as it was set, letters outside ASCII among it."""
    monkeypatch.setenv("SUTURE_TEST_SECRET", "geh\u00e4im")
    assert take_variable("SUTURE_TEST_SECRET") == "geh\u00e4im"
    assert "SUTURE_TEST_SECRET" not in os.environ


def test_a_private_file_is_new_and_nobody_else_s(tmp_path):
    """Oracle: mode and content under a umask that gives everything; what is there stays, a link too."""
    before = os.umask(0)
    try:
        write_private(tmp_path / "new", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for there in ("new", "link"):
        with pytest.raises(FileExistsError):
            write_private(tmp_path / there, b"2")
    assert (tmp_path / "new").read_bytes() == b"1" and not (tmp_path / "elsewhere").exists()


def test_a_private_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    """Oracle: the content, before and after a disk that is full; no draft stays."""
    path = tmp_path / "file"
    path.touch(mode=0o644)
    replace_private(path, b"1")
    assert path.read_bytes() == b"1" and path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        replace_private(path, b"2")
    assert path.read_bytes() == b"1" and list(tmp_path.iterdir()) == [path]
