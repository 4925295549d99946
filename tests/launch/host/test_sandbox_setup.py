"""When a rank closes its sandbox, when not, and what a person is told."""

import logging
import tempfile
from pathlib import Path

import pytest

from suture.launch.host import sandbox_setup
from suture.launch.host.sandbox_setup import enclose
from suture.launch.options.options import AskedOptions
from suture.runtime.errors import ConfigError
from suture.runtime.host import sandbox


@pytest.fixture
def closings(monkeypatch) -> list[dict]:
    """Landlock as it would be, but closing is only noted: it could not be undone."""
    noted: list[dict] = []
    monkeypatch.setattr(sandbox, "missing", lambda: None)
    monkeypatch.setattr(sandbox, "close", lambda **given: noted.append(given))
    monkeypatch.setattr(sandbox, "still_reaches", lambda path: None)
    monkeypatch.setattr(sandbox_setup, "load_the_lazy", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "")
    return noted


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_closing_leaves_the_own_folders_and_says_so(closings, tmp_path, caplog, mode):
    caplog.set_level(logging.INFO)
    own, memory = tmp_path / "clients" / "ward_a", tmp_path / "memory"
    enclose(AskedOptions(sandbox=mode), own, write=[memory], kept="3 images are in memory")
    assert [list(closing["write"]) for closing in closings] == [[own, memory]]
    assert own.is_dir() and memory.is_dir()
    assert tempfile.gettempdir() == str(own)
    (line,) = caplog.messages
    assert line.startswith("sandbox closed") and str(own) in line and str(memory) in line
    assert "3 images are in memory" in line


@pytest.mark.parametrize(
    ("ports", "version", "words"),
    [
        (None, 6, None),
        (sandbox.Ports(connect=(29500,)), 6, "connects to 29500 port, listens on no port"),
        (sandbox.Ports(connect=(29500, 3128)), 4, "connects to 29500 or 3128 port, listens on no port"),
        (sandbox.Ports(listen=(29500,)), 4, "connects to no port, listens on 29500 port"),
        (sandbox.Ports(listen=(29500,)), 3, "this kernel's Landlock knows no ports: all stay open"),
    ],
)
def test_the_ports_that_stay_are_handed_on_and_said(
    closings, monkeypatch, tmp_path, caplog, ports, version, words
):
    """Oracle: what is closed, and the line, also where the kernel cannot do it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sandbox, "version", lambda: version)
    enclose(AskedOptions(), tmp_path / "own", ports=ports)
    assert [closing["ports"] for closing in closings] == [ports]
    (line,) = caplog.messages
    assert words in line if words else "connects" not in line and "kernel" not in line


def test_off_does_nothing_and_says_nothing(closings, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    enclose(AskedOptions(sandbox="off"), tmp_path / "own")
    assert not closings and not caplog.messages and not (tmp_path / "own").exists()


def test_a_lab_stays_open_and_says_why(closings, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    enclose(AskedOptions(attack="fsha"), tmp_path / "own")
    assert not closings
    assert "left open" in caplog.text and "judge" in caplog.text


def test_on_is_refused_in_a_lab_before_anything_starts():
    with pytest.raises(ConfigError, match="sandbox on does not go with attack.*use --sandbox auto or off"):
        AskedOptions(sandbox="on", attack="fsha")


def test_without_landlock_auto_says_why_and_on_refuses(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(sandbox, "missing", lambda: "kernel 5.4 offers no Landlock")
    enclose(AskedOptions(), tmp_path)
    assert "sandbox left open: kernel 5.4 offers no Landlock" in caplog.messages
    with pytest.raises(
        ConfigError, match="sandbox is on, but kernel 5.4 offers no Landlock; use --sandbox auto"
    ):
        enclose(AskedOptions(sandbox="on"), tmp_path)


def test_data_that_would_stay_within_reach_is_refused(closings, monkeypatch, tmp_path):
    """Images below the run folder are as open as it is."""
    monkeypatch.setattr(sandbox, "still_reaches", lambda path: "it opens" if path == tmp_path else None)
    with pytest.raises(ConfigError, match=f"does not shut off {tmp_path}: it opens; keep the images apart"):
        enclose(AskedOptions(data=f"image-folder:{tmp_path}"), tmp_path / "own")


def test_data_that_is_on_another_machine_is_not_looked_for(closings, tmp_path):
    enclose(AskedOptions(data=f"image-folder:{tmp_path / 'elsewhere'}"), tmp_path / "own")
    assert closings


def test_a_folder_that_cannot_be_made_is_named(closings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write to .*file/own.*--run-dir"):
        enclose(AskedOptions(), tmp_path / "file" / "own")
    assert not closings and Path(tmp_path / "file").read_text() == ""
