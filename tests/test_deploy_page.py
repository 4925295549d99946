"""docs/deploy: its commands are run as they stand; units, compose and the page say the same of ports and exit codes.

Oracle: the program's own checks accept what the commands made, each for its role and not for the other.
"""

import contextlib
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

from suture import sites
from suture.cli import suture
from suture.launch.kits.kit import Kit
from suture.launch.kits.provision import Project
from suture.launch.kits.standing import ServerStanding
from suture.launch.options.outcome import STOPPED, outcome
from suture.runtime.consortium.credentials import Role
from suture.runtime.consortium.roster import Roster
from suture.runtime.errors import (
    ERRORS,
    BadHandoffError,
    CheckpointError,
    ConfigError,
    EvictedError,
    MemberLostError,
    PeerLostError,
    PolicyError,
    StoppedError,
    UnreachableError,
    UntrustedError,
)

DEPLOY = Path(__file__).resolve().parents[1] / "docs" / "deploy"
PAGE = (DEPLOY / "README.md").read_text()


def run(section: str, folder: Path) -> str:
    """Runs one section's commands as they stand; what they print. Suture's own are run in this process, which has it."""
    commands = textwrap.dedent(PAGE.partition(f"<!-- {section} -->")[2].partition("<!-- end -->")[0]).strip()
    printed, before = io.StringIO(), os.umask(0o022)
    assert commands
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            for is_suture, lines in itertools.groupby(
                commands.splitlines(), lambda line: line.startswith("suture ")
            ):
                if not is_suture:
                    assert shell("\n".join(lines)) == 0
                    continue
                for line in lines:
                    words = shlex.split(line, comments=True)[1:]
                    code = outcome(lambda words=words: suture.main(words, standalone_mode=False))
                    assert code == 0, line
    finally:
        os.umask(before)
    return printed.getvalue()


def shell(commands: str) -> int:
    return subprocess.run(["bash", "-c", "set -eu\n" + commands], timeout=60).returncode


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


# Units, compose and the page's own tables -----------------------------------------------------------------


def unit(name: str) -> dict[str, list[str]]:
    """A unit's settings, each with all that it is set to."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / name).read_text().splitlines():
        key, is_one, value = line.partition("=")
        if is_one and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def compose() -> dict[str, str]:
    """The services of compose.yaml, each as the text of its paragraph and of those that it takes in."""
    found: dict[str, str] = {}
    for paragraph in (DEPLOY / "compose.yaml").read_text().split("\n\n"):
        name = re.search(r"^(?:services:\n)?\s*([\w-]+):", paragraph, re.M)
        taken = re.search(r"<<: \*(\w+)", paragraph)
        assert name is not None
        found[name[1]] = paragraph + ("\n" + found[f"x-{taken[1]}"] if taken else "")
    return {name: text for name, text in found.items() if not name.startswith("x-") and name != "volumes"}


UNITS = {"serve": unit("suture-serve.service"), "join": unit("suture-join@.service")}
SERVICES = compose()
SITES = ("ward_a", "ward_b", "ward_c")


def final(command: str) -> set[int]:
    (codes,) = UNITS[command]["RestartPreventExitStatus"]
    return set(map(int, codes.split()))


def test_systemd_starts_nobody_again_who_cannot_come_back():
    """Oracle: the exit codes of the errors that trying again does not mend, and of those that it does."""
    mend = {
        error.exit_code for error in (ConfigError, PolicyError, UntrustedError, BadHandoffError, EvictedError)
    }
    passing = {
        e.exit_code for e in (CheckpointError, PeerLostError, MemberLostError, StoppedError, UnreachableError)
    }
    assert (
        mend <= final("join")
        and not passing & (final("join") | final("serve"))
        and final("serve") < final("join")
    )
    for settings in UNITS.values():
        assert settings["Restart"] == ["on-failure"] and settings["SuccessExitStatus"] == [str(STOPPED)]


def test_compose_starts_nobody_again_whom_systemd_does_not():
    """Oracle: the units; a stop is final, too."""
    for name, service in SERVICES.items():
        (codes,) = re.findall(r'SUTURE_FINAL: "(.*)"', service)
        assert set(map(int, codes.split())) == final("serve" if name == "server" else "join") | {STOPPED}
        assert re.findall(r"restart: (\S+)", service) == ["on-failure"]


def test_the_page_s_table_of_codes_is_the_units():
    """Oracle: `RestartPreventExitStatus`; every error of the program is in the table."""
    rows = re.findall(r"^\| ([\d, ]+)(?:, or a signal)? \| .* \| (yes|no)", PAGE, re.M)
    said = {int(code): again == "yes" for codes, again in rows for code in codes.split(",")}
    assert {code for code, again in said.items() if not again} == final("join") | {0, STOPPED}
    assert set(said) >= {error.exit_code for error in ERRORS.values()}


def test_only_the_server_has_a_port():
    """Oracle: the page's firewall rule; the port is the project's."""
    assert set(SERVICES) == {"server", *SITES} and not any("ports: [" in SERVICES[site] for site in SITES)
    assert 'ports: ["29500:29500"]' in SERVICES["server"]
    assert UNITS["serve"]["SocketBindAllow"] == ["tcp:29500"] and "SocketBindAllow" not in UNITS["join"]
    assert all(settings["SocketBindDeny"] == ["any"] for settings in UNITS.values())


@pytest.mark.parametrize("name", ["server", *SITES])
def test_containers_are_ordinary_users_on_a_system_that_they_cannot_write(name):
    """Oracle: the settings, and the places that may be written to."""
    settings = ("read_only: true", "cap_drop: [ALL]", 'user: "10001:10001"', '"no-new-privileges:true"')
    assert all(SERVICES[name].count(setting) == 1 for setting in settings)
    (volumes,) = re.findall(r"volumes: \[(.*)\]", SERVICES[name])
    writable = {
        volume.split(":")[-1] for volume in re.findall('"(.*?)"', volumes) if not volume.endswith(":ro")
    }
    assert writable == {"/kit", "/runs"} and "useradd --uid 10001" in (DEPLOY / "Dockerfile").read_text()


def command_lines() -> list[list[str]]:
    """Every command that the files and the page start a member with, with the example's variables put in."""
    lines = [PAGE.partition("<!-- run -->")[2].partition("<!-- end -->")[0]]
    for settings, file in zip(UNITS.values(), ("server.conf", "ward_a.conf"), strict=True):
        values = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / file).read_text(), re.M)) | {"i": "ward_a"}
        names, start = re.compile(r"[$%]\{?(\w+)\}?"), settings["ExecStart"][0]
        lines.append(names.sub(lambda name, values=values: values[name[1]], start))
    for service in SERVICES.values():
        (command,) = re.findall(r"command: >-\n((?:    .*\n?)+)", service + "\n")
        lines.append("suture " + " ".join(re.sub(r"\$\{\w+:-(.*?)\}", r"\1", command).split()))
    words = [shlex.split(line) for text in lines for line in text.strip().splitlines()]
    return [line[1:] for line in words]


@pytest.mark.parametrize("words", command_lines(), ids=lambda words: " ".join(words)[:60])
def test_what_units_compose_and_page_start_is_understood(words, made, monkeypatch):
    """Oracle: the program's own parser and checks, with the page's kits, as far as the door of the run."""
    begun: list = []
    monkeypatch.setattr(sites, "_be_member", begun.append)
    kit = made[0] / "kits" / ("server" if words[0] == "serve" else "ward_a")
    suture.main([words[0], str(kit), *words[2:]], standalone_mode=False)
    assert len(begun) == 1


@pytest.mark.parametrize(
    ("command", "final_codes", "code"),
    [("exit 0", "2 3", 0), ("exit 2", "2 3", 0), ("exit 8", "2 3", 8), ("exit 1", "", 1), ("kill -9 $$", "2 3", 137)],
)  # fmt: skip
def test_the_entrypoint_ends_with_0_what_is_final(command, final_codes, code, tmp_path):
    """Oracle: the codes that `docker` would see."""
    done = entrypoint(tmp_path, command, final_codes).wait(20)
    assert done == code


def test_the_entrypoint_passes_a_stop_on_and_waits(tmp_path):
    """Oracle: what the command wrote when it was told, before the container's first process ended."""
    process = entrypoint(
        tmp_path, f"trap 'sleep 0.3; echo told > {tmp_path}/told; exit 130' TERM; echo > {tmp_path}/up; while :; do sleep 0.1; done", "130"
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 0 and (tmp_path / "told").read_text() == "told\n"


def entrypoint(folder: Path, command: str, final_codes: str) -> subprocess.Popen:
    """The image's first process, with a shell's command in the place of suture."""
    (folder / "suture").write_text(f"#!/bin/sh\n{command}\n")
    (folder / "suture").chmod(0o755)
    return subprocess.Popen(
        [DEPLOY / "entrypoint.sh", "join"],
        env={"PATH": f"{folder}:/usr/bin:/bin", "SUTURE_FINAL": final_codes},
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_knows_every_setting_of_the_units(tmp_path):
    """Oracle: `systemd-analyze verify`, with the program put where the units expect it."""
    for name in ("suture-serve.service", "suture-join@.service"):
        text = (DEPLOY / name).read_text().replace("/opt/suture/.venv/bin/suture", "/bin/true")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    about_these = [line for line in done.stderr.splitlines() if "suture" in line]
    assert not about_these, about_these


@pytest.mark.parametrize("link", sorted({*re.findall(r"\]\(([^)#:]+)\)", PAGE)}))
def test_every_file_that_the_page_names_is_there(link):
    """Oracle: the disk."""
    assert (DEPLOY / link).exists()


@pytest.mark.parametrize("file", sorted(path.name for path in DEPLOY.iterdir()))
def test_no_file_names_options_that_are_gone(file):
    """Oracle: the words."""
    assert not re.findall(r"--(?:cert|key|ca)\b", (DEPLOY / file).read_text())
