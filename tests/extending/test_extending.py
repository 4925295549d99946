"""What docs/extending.md shows works as it stands there, from a folder outside the repository.

Oracle: the page itself: its files are written out as they are, and its commands are run from beside them.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from suture.cli import suture
from suture.launch import keys

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^File `([^`]+)`:\n\n```\w+\n(.*?)^```$", PAGE, flags=re.M | re.S))
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S))
COMMANDS = {
    name: command
    for name, text in SECTIONS.items()
    for command in re.findall(r"^```sh\n(.*?)\n```$", text, flags=re.M | re.S)
}


SUTURE = [sys.executable, str(ROOT / "suture" / "__main__.py")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with all files of the page, and with folders that are called like Suture's own."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "runtime").mkdir()
    (folder / "runtime" / "__init__.py").write_text(
        "raise ImportError('a folder of the user, which nobody named')\n"
    )
    return folder


def run(project: Path, command: list[str]) -> None:
    """A command as a user of a checkout starts it, from the user's folder."""
    surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    surroundings |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=project, env=surroundings, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def words(section: str) -> list[str]:
    """The arguments of a section's command."""
    name, *arguments = COMMANDS[section].split()
    assert name == "suture"
    return arguments


@pytest.fixture
def run_shown(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs the command of a section from the user's folder, in this process: a start of its own costs seconds."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return lambda section: suture.main(words(section), standalone_mode=False)


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def test_each_kind_of_plugin_has_an_example_with_a_command() -> None:
    """Oracle: the kinds, by hand; every Python file of the page is named in the command of its section."""
    kinds = {"A defence", "A detector", "An attack", "A data source", "A net", "A schedule", "An experiment"}
    assert COMMANDS.keys() == kinds
    for section, command in COMMANDS.items():
        (name,) = re.findall(r"^File `([^`]+)`", SECTIONS[section], flags=re.M)
        assert name in command or name.removesuffix(".py").replace("/", ".") in command


def test_a_defence(project: Path, run_shown: Callable[[str], None]) -> None:
    """Oracle: the run ends and keeps what was asked."""
    run_shown("A defence")
    config = (project / "blurred" / "config.toml").read_text()
    assert 'defence = "module:blur.py:BlurDefence:width=3+quantise:bits=4"' in config
    assert len(summary(project / "blurred")["weights_sha256"]) == 64


def test_a_detector(project: Path, run_shown: Callable[[str], None]) -> None:
    """Oracle: each client's record holds a score above 0, which only the detector gives."""
    run_shown("A detector")
    lines = (project / "watched" / "clients" / "client0" / "detector.jsonl").read_text().splitlines()
    scores = [json.loads(line)["score"] for line in lines]
    assert scores[0] == 0 < scores[1]


def test_an_attack(project: Path, run_shown: Callable[[str], None]) -> None:
    """Oracle: the judge's verdict on the attack's own report; both clients' test images were scored."""
    run_shown("An attack")
    verdict = json.loads((project / "attacked" / "attack" / "verdict.json").read_text())
    assert verdict["spec"] == "module:linear.py:LinearAttack:aux-images=8"
    assert verdict["auxiliary"]["images"] == 8
    assert verdict["scores"]["test"]["attack"]["mse"] > 0


def test_a_data_source(project: Path, run_shown: Callable[[str], None]) -> None:
    """Oracle: the source's name as it was asked for, and its classes in the client's model."""
    run_shown("A data source")
    assert summary(project / "striped")["data"] == "module:stripes.py:STRIPES"
    model = torch.load(project / "striped" / "clients" / "client0" / "model.pt", weights_only=True)
    assert "across" in str({key: value for key, value in model.items() if key not in ("best", "last")})


def test_a_net_in_a_folder_that_is_called_like_one_of_ours(project: Path) -> None:
    """Oracle: the run under torchrun, whose processes are started otherwise, ends with the same weights bit for bit."""
    run(project, [*SUTURE, *words("A net")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    asked = [*words("A net")[1:], "--exchange", "fused", "--run-dir", "ranks"]
    asked += ["--handoff-key", str(keys.generated_key(Path("mine")))]
    run(project, [sys.executable, *torchrun, str(ROOT / "launch" / "run.py"), *asked])
    assert summary(project / "mine")["weights_sha256"] == summary(project / "ranks")["weights_sha256"]


def test_a_schedule(project: Path, run_shown: Callable[[str], None]) -> None:
    """Oracle: the turns that counted, by hand."""
    run_shown("A schedule")
    turns = [json.loads(line) for line in (project / "forth" / "turns.jsonl").read_text().splitlines()]
    trained = [turn["client"] for turn in turns if turn["kind"] == "train"]
    assert trained == ["client0", "client1", "client1", "client0"]


def test_an_experiment(project: Path) -> None:
    """Oracle: a line for each arm in its table."""
    run(project, [*SUTURE, *words("An experiment")])
    table = (project / "augmented" / "table.md").read_text()
    assert "| augmented |" in table and "| plain |" in table
