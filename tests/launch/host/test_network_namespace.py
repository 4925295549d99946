"""The ranks of `suture train` in a network namespace of their own: made by real processes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from suture.launch import rank
from suture.launch.host import network_namespace
from suture.launch.options.options import AskedOptions
from suture.launch.start import agent
from suture.runtime.errors import ConfigError
from suture.runtime.state.handoff import write_key

ROOT = Path(__file__).resolve().parents[3]
SHOW = (
    "import os, socket; from suture.launch.host import network_namespace; network_namespace.isolate(); "
    "print(os.readlink('/proc/self/ns/net'), repr(network_namespace.why_not_isolated()), os.geteuid()); "
    "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname(), timeout=5)"
)


def _possible() -> bool:
    return not network_namespace._in_a_child()


def _own() -> str:
    return str(Path("/proc/self/ns/net").readlink())


def _shown(user: int | None) -> list[str]:
    # Another user may not read this environment's Python; the module needs nothing but the standard library.
    python = sys.executable if user is None else shutil.which("python3", path="/usr/bin:/usr/local/bin")
    command = [str(python), "-c", SHOW]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        user=user,
        env={"PATH": os.environ["PATH"]},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not _possible(), reason="this system lets nobody make a network namespace")
def test_the_namespace_is_another_and_its_loopback_works():
    """Oracle: the system's own name of the namespace; a connection over the new loopback."""
    namespace, why_not, user = _shown(None)
    assert why_not == "''" and user == str(os.geteuid())
    assert namespace != _own()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_an_ordinary_user_gets_one_where_the_system_allows_it_and_stays_who_it_is():
    """Oracle: as above; where the system forbids it the reason is said and the network is the old one."""
    try:
        namespace, why_not, user = _shown(65534)
    except (AssertionError, PermissionError) as error:
        pytest.skip(f"another user cannot run this Python: {str(error)[-80:]}")
    assert user == "65534"
    assert (why_not == "''") == (namespace != _own())


def test_an_interface_of_the_machine_is_not_left_behind(monkeypatch):
    """Oracle: nothing is tried, and the reason names the option; in a new namespace there is no eth0."""
    monkeypatch.setenv(network_namespace.ISOLATED, "")
    monkeypatch.setattr(network_namespace, "_in_a_child", pytest.fail)
    network_namespace.isolate("eth0")
    assert network_namespace.why_not_isolated() == "--interface eth0 is the machine's own"


def test_root_that_may_not_make_a_network_keeps_its_rights(monkeypatch):
    """Oracle: no user namespace is asked for, in which root could not read the images of others."""
    asked = []

    def refuse(what):
        asked.append(what)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(network_namespace, "_unshare", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(PermissionError):
        network_namespace._enter()
    assert asked == [network_namespace._NEW_NETWORK]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "auto"),
        (["train", "--isolate", "off"], "off"),
        (["train", "--isolate=on", "--seed", "1"], "on"),
        (["train", "--config", "{}"], "off"),
        (["train", "--config", "{}", "--isolate=on"], "on"),
        (["train", "--config", "nowhere.toml"], "auto"),
    ],
)
def test_the_command_line_is_read_before_click_reads_it(words, said, tmp_path):
    """Oracle: the command line wins over the file, and a file that is not there is for others to complain of."""
    config = tmp_path / "run.toml"
    config.write_text('isolate = "off"\n')
    assert network_namespace.said([word.format(config) for word in words], "isolate", "auto") == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--resume", "--run-dir", "{}"], "off"),
        (["train", "--resume", "--run-dir={}", "--isolate", "on"], "on"),
        (["train", "--run-dir", "{}"], "auto"),
        (["train", "--resume", "--run-dir", "{}/no"], "auto"),
    ],
)
def test_a_run_that_is_resumed_says_it_again(words, said, tmp_path):
    """Oracle: what the run has saved, unless the command line says something else, or nothing is resumed."""
    (tmp_path / "config.toml").write_text('isolate = "off"\n')
    assert network_namespace.said([word.format(tmp_path) for word in words], "isolate", "auto") == said


def test_on_is_refused_where_it_does_not_work_and_auto_says_so(monkeypatch, capsys):
    """Oracle: one sentence each, with the system's reason."""
    monkeypatch.setenv(network_namespace.ISOLATED, "Operation not permitted")
    with pytest.raises(ConfigError, match="isolate is on, but .*Operation not permitted.*--isolate auto"):
        agent._check_isolation(AskedOptions(isolate="on").isolate)
    agent._check_isolation("auto")
    assert "other users of this machine reach their ports" in capsys.readouterr().err
    monkeypatch.setenv(network_namespace.ISOLATED, "")
    agent._check_isolation("on")
    assert "a network of their own: no other user" in capsys.readouterr().err


@pytest.mark.skipif(not _possible(), reason="this system lets nobody make a network namespace")
def test_a_run_s_ranks_are_all_in_it(tmp_path):
    """Oracle: the ranks' own namespaces, read from outside while they train; of their ports, which the kernel lists, none
    can be reached from here; the digest of the same run in one process.
    """
    options = (
        "--clients 2 --model resnet18 --image-size 32 --train-images 16 --validation-images 2 --test-images 2"
    )
    key = tmp_path / "key"
    write_key(key)
    command = [
        sys.executable,
        "-m",
        "suture",
        "train",
        *options.split(),
        "--batch-size=4",
        "--epochs=2",
        "--threads=1",
        f"--handoff-key={key}",
    ]
    process = subprocess.Popen(
        [*command, "--isolate=on", f"--run-dir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=os.environ | {"CI": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen: set[str] = set()
    ports: set[int] = set()
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                seen.add(str(Path(f"/proc/{child.pid}/ns/net").readlink()))
                listening = _listening(child.pid)
            except OSError:
                continue
            ports |= listening
            # Somebody of this machine's own may have a port of the same number.
            assert not {port for port in listening - _listening(os.getpid()) if _is_reached(port)}
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 0, process.stdout.read()
    process.stdout.close()
    assert len(seen) == 1 and _own() not in seen
    assert ports  # of RPC and its store
    local = [*command, "--exchange=local", f"--run-dir={tmp_path / 'local'}"]
    subprocess.run(local, cwd=ROOT, env=os.environ | {"CI": "true"}, capture_output=True, check=True)
    digests = [
        json.loads((tmp_path / run / "summary.json").read_text())["weights_sha256"]
        for run in ("run", "local")
    ]
    assert digests[0] == digests[1]


def _listening(pid: int) -> set[int]:
    """TCP ports on which somebody listens in that process's network."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A":
                found.add(int(local.rpartition(":")[2], 16))
    return found


def _is_reached(port: int) -> bool:
    with socket.socket() as here:
        here.settimeout(1.0)
        return here.connect_ex(("127.0.0.1", port)) == 0


def test_torchrun_makes_no_network_and_says_so(monkeypatch):
    """Oracle: the message; silence would let a person believe in a wall that is not there."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv(network_namespace.ISOLATED, raising=False)
    with pytest.raises(ConfigError, match=r"isolate is for suture train, .* leave it out"):
        rank.rank.main(["--isolate=on"], standalone_mode=False)
