"""The sandbox's ports, tried from inside, in a process of its own since it cannot be opened again.

Oracle: the same attempts by the same process without a sandbox, where every one succeeds.
"""

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from suture.runtime.host import sandbox

pytestmark = [
    pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing())),
    pytest.mark.skipif(sandbox.version() < 4, reason="this kernel's Landlock knows no ports"),
]
ROOT = Path(__file__).resolve().parents[3]
CHILD = """
import json, socket, sys, threading
from pathlib import Path
from suture.runtime.host import sandbox

told = json.loads(sys.argv[1])
found = {}

def attempt(name, work):
    try:
        work()
        found[name] = "ok"
    except OSError as error:
        found[name] = type(error).__name__

def connect(port):
    socket.create_connection(("127.0.0.1", port), 10).close()

def listen(port, host="127.0.0.1"):
    with socket.create_server((host, port)):
        pass

def send_datagram(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"x", ("127.0.0.1", port))

old = socket.create_connection(("127.0.0.1", told["other"]))
if told["ports"] is not None:
    ports = None if told["ports"] == "all" else sandbox.Ports(**{k: tuple(v) for k, v in told["ports"].items()})
    sandbox.close(write=[Path(told["folder"])], ports=ports)
attempt("connect to the port that stays", lambda: connect(told["stays"]))
attempt("connect to another port", lambda: connect(told["other"]))
attempt("listen on the port that stays", lambda: listen(told["free"]))
attempt("listen on another port", lambda: listen(told["free too"]))
attempt("listen on any port", lambda: listen(0))
attempt("listen on the port to connect to", lambda: listen(told["stays"], "127.0.0.2"))
attempt("connect to the port to listen on", lambda: connect(told["listening"]))
attempt("use a connection that is older", lambda: old.sendall(b"x"))
attempt("send a datagram", lambda: send_datagram(told["other"]))

def in_a_thread():
    attempt("connect in a new thread", lambda: connect(told["other"]))

thread = threading.Thread(target=in_a_thread)
thread.start()
thread.join()
print(json.dumps(found))
"""
ATTEMPTS = """connect to the port that stays, connect to another port, listen on the port that stays, listen on another port,
    listen on any port, listen on the port to connect to, connect to the port to listen on, use a connection that is older,
    send a datagram, connect in a new thread"""
NAMES = [" ".join(name.split()) for name in ATTEMPTS.split(",")]
# What Landlock does not cover, as the module says: what is open already, and UDP.
OPEN = {"use a connection that is older", "send a datagram"}


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What the child found with no sandbox, with one that knows no ports, with a site's, a server's, and with none left."""
    found = {}
    with ExitStack() as stack:
        stays, other, listening = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(3)
        )
        for mode in ("off", "all", "site", "server", "none"):
            free, free_too = _free_port(), _free_port()
            ports = {
                "off": None,
                "all": "all",
                "site": {"connect": [stays]},
                "server": {"listen": [free, listening]},
                "none": {},
            }[mode]
            told = {"ports": ports, "stays": stays, "other": other, "listening": listening, "free": free, "free too": free_too}  # fmt: skip
            told["folder"] = str(tmp_path_factory.mktemp(mode))
            command = [sys.executable, "-c", CHILD, json.dumps(told)]
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
            assert ended.returncode == 0, ended.stderr
            found[mode] = json.loads(ended.stdout)
    return found


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("name", NAMES)
def test_without_a_sandbox_and_with_one_that_names_no_ports_all_succeeds(tried, name):
    """Oracle: the control: whatever is refused below is refused by the sandbox."""
    assert tried["off"][name] == tried["all"][name] == "ok"


@pytest.mark.parametrize(
    ("mode", "succeed"),
    [
        ("site", {"connect to the port that stays"}),
        ("server", {"listen on the port that stays"}),
        ("none", set()),
    ],
)
def test_inside_nothing_but_the_ports_that_were_named_is_reached(tried, mode, succeed):
    """Oracle: PermissionError for every other port; to listen on a port is not to connect to it, nor the other way."""
    assert list(tried[mode]) == NAMES
    for name, outcome in tried[mode].items():
        assert outcome == ("ok" if name in succeed | OPEN else "PermissionError"), name
