"""The command line as a whole: what it lists, and what it imports before a command is called."""

import os
import subprocess
import sys

import click
import pytest

from suture import __version__
from suture.cli import COMMANDS, suture
from suture.launch.options.outcome import outcome

SLOW = ("torch", "numpy", "torchvision", "pydicom", "matplotlib", "grpc")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_where_the_list_says_and_its_help_begins_as_it_says(name):
    """Oracle: the command itself, imported."""
    command = suture.get_command(click.Context(suture), name)
    assert command.name == name
    assert " ".join(command.help.split()).startswith(COMMANDS[name][1])


def said(*words, **environment):
    """What the command says and which slow modules it has imported by then, in a process of its own."""
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print([m for m in {SLOW} if m in sys.modules], file=sys.stderr))\n"
        f"sys.argv = {['suture', *words]!r}\n"
        "from suture.entry import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
    )
    *rest, imported = done.stderr.splitlines()
    return done.returncode, done.stdout, rest, imported


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], "Train between hospitals"),
        (["-h"], "Attack and measure"),
        (["--version"], f"suture {__version__}\n"),
    ],
)
def test_help_and_version_import_nothing_slow(words, shown):
    """Oracle: Python's table of imported modules at the end; a command takes seconds to import."""
    code, output, errors, imported = said(*words)
    assert (code, errors, imported) == (0, [], "[]") and shown in output


def test_a_shell_completes_a_command_without_importing_any():
    """Oracle: click's own protocol: what bash asks for at `suture pr<TAB>`."""
    code, output, errors, imported = said(
        _SUTURE_COMPLETE="bash_complete", COMP_WORDS="suture pr", COMP_CWORD="1"
    )
    assert (code, errors, imported) == (0, [], "[]")
    assert output.split() == ["plain,predict", "plain,provision"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("trian", "train"), ("evalute", "evaluate"), ("jion", "join"), ("--verison", "--version")],
)
def test_a_misspelt_command_is_named_with_what_was_meant(typed, meant, capsys, monkeypatch):
    """Oracle: the sentence and the exit code of a wrong command line."""
    monkeypatch.setattr("sys.argv", ["suture", typed])
    assert outcome(lambda: suture.main(standalone_mode=False)) == 2
    error = capsys.readouterr().err
    assert f"No such {'option' if typed.startswith('-') else 'command'}" in error and meant in error


def test_what_is_like_no_command_gets_no_suggestion(capsys, monkeypatch):
    """Oracle: the sentence ends with the name."""
    monkeypatch.setattr("sys.argv", ["suture", "zzz"])
    assert outcome(lambda: suture.main(standalone_mode=False)) == 2
    assert capsys.readouterr().err.rstrip().endswith("No such command 'zzz'.")
