"""The commands of docs/deploy that make kits, run as they stand.

Oracle: the program's own checks accept what they made, each for its role and not for the other.
"""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from launch.kit import Kit
from launch.program import python_path
from launch.provision import Project
from launch.standing import ServerStanding
from runtime.consortium.roster import Roster
from runtime.errors import BadHandoffError, ConfigError, EvictedError, PolicyError, UntrustedError
from runtime.grpc.credentials import Role

DEPLOY = Path(__file__).resolve().parents[1] / "docs" / "deploy"
PAGE = (DEPLOY / "README.md").read_text()


def run(section: str, folder: Path) -> str:
    """Runs one section's commands as they stand; what they print."""
    commands = PAGE.partition(f"<!-- {section} -->")[2].partition("<!-- end -->")[0]
    suture = f'suture() {{ "{sys.executable}" -m launch "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-c", "set -eu\n" + suture + textwrap.dedent(commands)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": python_path(), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert commands and done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """The page's kits, and what making them printed."""
    folder = tmp_path_factory.mktemp("consortium")
    return folder, run("kits", folder)


def test_the_page_s_kits_are_accepted_for_their_roles(made):
    folder, printed = made
    project = Project.read(folder / "project.toml")
    assert Kit.read(folder / "kits" / "server", Role.SERVER).credentials().name == "server"
    for name in project.sites:
        kit = Kit.read(folder / "kits" / name, Role.CLIENT)
        kit.check_listed()
        assert kit.server == project.address
        assert Roster(kit.roster).code() in printed
        with pytest.raises(ConfigError, match="suture serve takes the server's"):
            Kit.read(kit.folder, Role.SERVER)


def test_the_page_s_kit_lives_its_whole_life(made):
    """A late comer, a renewal, a revocation, in the page's order: each command, and what it leaves."""
    folder, _ = made
    asked = run("late comer", folder)
    signed = run("authority", folder)
    fingerprint = asked.rpartition("fingerprint, which they ask you for by telephone: ")[2].strip()
    assert len(fingerprint) == 64 and fingerprint in signed
    run("install", folder)
    late = Kit.read(folder / "ward_d", Role.CLIENT)
    late.check_listed()
    first = Kit.read(folder / "kits" / "ward_a", Role.CLIENT)
    assert Roster(first.roster).approves("ward_d", fingerprint)
    assert set(Roster(late.roster).fingerprints()) == {"ward_a", "ward_d"}
    before = first.credentials().certificate
    run("renewal", folder)
    assert first.credentials().certificate != before
    first.check_listed()
    run("revocation", folder)
    standing = ServerStanding(Kit.read(folder / "kits" / "server", Role.SERVER))
    for name, word in (("ward_a", ""), ("ward_b", "key compromise"), ("ward_c", "")):
        why = standing.refuses((folder / "kits" / name / "cert.pem").read_bytes())
        assert bool(why) is bool(word) and word in why


def test_systemd_starts_nobody_again_who_cannot_come_back():
    """Oracle: the exit codes of the errors that trying again does not mend."""
    (line,) = re.findall(
        r"^RestartPreventExitStatus=(.*)$", (DEPLOY / "suture-join.service").read_text(), re.M
    )
    final = {
        error.exit_code for error in (ConfigError, PolicyError, UntrustedError, BadHandoffError, EvictedError)
    }
    assert final <= set(map(int, line.split()))


@pytest.mark.parametrize("file", ["README.md", "compose.yaml", "suture-serve.service", "suture-join.service"])
def test_no_file_names_options_that_are_gone(file):
    """Oracle: the words."""
    assert not re.findall(r"--(?:cert|key|ca)\b", (DEPLOY / file).read_text())
