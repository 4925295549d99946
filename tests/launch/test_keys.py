"""The clients' key from the environment: read once, kept from the server.

Oracle: os.environ before and after.
"""

import os

import pytest

from suture.launch import keys
from suture.launch.options.options import AskedOptions

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def variable(monkeypatch):
    monkeypatch.setenv("SUTURE_HANDOFF_KEY", KEY.hex())


def test_the_key_leaves_the_environment_when_it_is_read():
    """Oracle: the key, and no key when it is asked for again."""
    assert keys.given_key(AskedOptions()) == KEY
    assert "SUTURE_HANDOFF_KEY" not in os.environ
    assert keys.given_key(AskedOptions()) is None


def test_a_key_that_a_file_overrules_leaves_it_too(tmp_path):
    """Oracle: the file's key."""
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text("ab" * 32)
    assert keys.given_key(AskedOptions(handoff_key=str(tmp_path / "key"))) == b"\xab" * 32
    assert "SUTURE_HANDOFF_KEY" not in os.environ


def test_the_server_drops_it():
    """Oracle: the environment that whatever it starts would inherit."""
    keys.forget_key(AskedOptions())
    assert "SUTURE_HANDOFF_KEY" not in os.environ


def test_in_a_lab_it_stays_for_the_judge():
    """Oracle: the server starts the judge at the end, which takes the key from its environment."""
    lab = AskedOptions(attack="adra")
    keys.forget_key(lab)
    assert keys.given_key(lab) == KEY
    assert os.environ["SUTURE_HANDOFF_KEY"] == KEY.hex()
