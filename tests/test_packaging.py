"""What is installed is what stands in the repository."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import suture

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("models", "runtime", "threats", "launch", "studies")


def _setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def test_every_package_is_installed():
    """Oracle: the folders that hold an __init__.py."""
    there = {
        "suture." + ".".join(file.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("__init__.py")
    }
    assert set(_setup()["options"]["packages"].split()) == there | {"suture"}


def test_every_folder_with_a_module_is_a_package():
    """Oracle: a module in a folder without __init__.py would be left out of a wheel."""
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file


def test_a_checkout_with_nothing_but_the_dependencies_starts(tmp_path):
    """Oracle: -S leaves out site-packages' .pth files, and with them an editable install; the dependencies come by path."""
    path = [entry for entry in sys.path if entry.endswith("site-packages")]
    for program, says in (
        ("launch/run.py", "launch/run.py is started by torchrun"),
        ("suture/__main__.py", "Usage:"),
    ):
        code = f"import sys, runpy; sys.path += {path!r}; sys.argv = ['x']; runpy.run_path({str(ROOT / program)!r}, run_name='__main__')"
        done = subprocess.run(
            [sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert says in done.stdout + done.stderr


def test_the_version_is_said_once():
    """Oracle: the number in suture/__init__.py, three numbers with dots."""
    assert _setup()["metadata"]["version"] == "attr: suture.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", suture.__version__)
