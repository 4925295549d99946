"""Names that are no UTF-8, and cells that a spreadsheet would compute."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from suture.launch.output.table import Table
from suture.runtime.data.text import plain_name, safe_cell

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        (b"m\xfcller.png", r"m\xfcller.png"),
        ("gr\u00f6\u00dfe \u65e5.png".encode(), "gr\u00f6\u00dfe \u65e5.png"),
        (b"a\xff\xfe", r"a\xff\xfe"),
    ],
)
def test_a_name_becomes_text_that_can_be_written(raw, plain):
    """Oracle: the bytes; under an ASCII locale Python gives even good names as single bytes."""
    assert plain_name(os.fsdecode(raw)) == plain
    assert plain_name(raw.decode("ascii", "surrogateescape")) == plain
    assert plain.encode().decode() == plain


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-x.png", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_formula_is_made_safe(cell):
    assert safe_cell(cell) == "'" + cell
    assert f"'{cell}" in Table([{"image": cell}]).to_csv()


@pytest.mark.parametrize("cell", ["-0.5", "+3", "-1e-9", "a=b", "", "0.25"])
def test_a_number_and_plain_text_stay(cell):
    assert safe_cell(cell) == cell


def test_every_text_file_is_written_and_read_as_utf_8():
    """Oracle: the modules' text; a call without an encoding takes the locale's."""
    found = []
    for package in ("runtime", "launch", "suture", "studies", "threats", "models"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if ".read_text()" in line or (
                    ".write_text(" in line and "encoding" not in line and line.rstrip().endswith(")")
                ):
                    found.append(f"{file.relative_to(ROOT)}:{number}")
    assert not found


def test_an_ascii_terminal_is_no_reason_to_stop(tmp_path):
    """Oracle: exit code and one line; the folder's name is in no encoding at all."""
    folder = tmp_path / os.fsdecode(b"m\xfcll")
    folder.mkdir()
    env = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "suture", "check", f"image-folder:{folder}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=120)
    assert done.returncode == 3 and rb"m\xfcll has no folders" in done.stderr, done.stderr
