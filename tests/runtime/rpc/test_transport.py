"""Joining, calling and losing the server, over real processes on this machine.

Oracle: signals sent to a real server; CPU time as the system counts it. Every child has a hard timeout.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from suture.runtime.errors import ConfigError, PeerLostError, WireError
from suture.runtime.rpc.transport import Transport, TransportConfig, loopback_store
from suture.runtime.wire.messages import Refusal, unwrap

ROOT = Path(__file__).resolve().parents[3]

# The server: a coordinator's run with no turns to give (it waits for a second member that never comes).
_SERVER = """
import sys, time
from pathlib import Path
import torch
from suture.runtime.state.checkpoint import Checkpoints
from suture.runtime.wire.checks import TensorSpec
from suture.runtime.server.coordinator import Coordinator, RunConfig
from suture.runtime.server.run_state import RunState
from suture.runtime.server.turn_log import TurnLog
from suture.runtime.server.membership import Membership
from suture.runtime.records.observers import NoRecorder
from suture.runtime.rpc import transport
from suture.runtime.rpc.functions import RpcServer
from suture.runtime.scheduler import RoundRobin
from suture.runtime.server.model import ServerModel
torch.set_num_threads(1)
port, folder = int(sys.argv[1]), Path(sys.argv[2])
top = torch.nn.Linear(2, 2)
spec = TensorSpec((2,), torch.float32, 4)
server = ServerModel(top, torch.optim.SGD(top.parameters(), lr=0.1), smashed=spec, labels=None)
turn_log = TurnLog(RoundRobin(), 1)
run_state = RunState("run", folder, server, turn_log, Checkpoints(folder / "checkpoints"), ())
run = Coordinator(run_state, Membership(2, {}), RunConfig(run="run", run_dir=folder, lease=60))
run.begin(False, lambda step: NoRecorder())
line = transport.Transport(transport.TransportConfig(host="127.0.0.1", port=port, rank=0, timeout=60))
served = RpcServer(run)
line.join(transport.SERVER, served.table())
print("ready", flush=True)
served.serve()
"""

# A client: joins, then waits for a turn or calls as told on its standard input, and says how that ended.
_CLIENT = """
import json, sys
import torch
from torch.distributed import rpc
from suture.runtime.exchange import AutogradExchange
from suture.runtime.rpc import lockdown
from suture.runtime.rpc import transport
from suture.runtime.wire.messages import Hello
torch.set_num_threads(1)
port, timeout = int(sys.argv[1]), float(sys.argv[2])
line = transport.Transport(transport.TransportConfig(host="127.0.0.1", port=port, rank=1, timeout=timeout))
line.join("client0")
exchange = AutogradExchange()
print(json.dumps(exchange.join(Hello("client0", {}, 8, 2)).run), flush=True)
written = dict(lockdown.KINDS.write)
for order in sys.stdin:
    try:
        if order.strip() == "call":
            said = exchange.fetch()
        elif order.strip() == "wait":
            answer = exchange.next_turn()
            print(json.dumps("waiting"), flush=True)
            said = answer()
        elif order.strip() == "refused":
            said = exchange.join(Hello("client0", {}, 8, 2))
        elif order.startswith("refer"):  # to what these numbers name
            lockdown.KINDS.write[rpc.PyRRef] = ("RRef", lambda _, ids=json.loads(order[5:]): ids)
            try:
                said = exchange.fetch()
            finally:
                lockdown.KINDS.write.update(written)
        else:
            break
    except Exception as error:
        said = [type(error).__name__, str(error)]
    print(json.dumps(said), flush=True)
import os
os._exit(0)
"""


class Child:
    """A process that talks in lines."""

    def __init__(self, script, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()[-3000:]
        return line.strip()

    def told(self, order: str):
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return json.loads(self.says())

    def end(self):
        self.process.kill()
        self.process.communicate(timeout=10)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def pair(tmp_path):
    """Starts a server and a client that has joined it; both are gone after the test, whatever happened."""
    children = []

    def make(timeout: float):
        port = free_port()
        children.append(Child(_SERVER, port, tmp_path))
        children.append(Child(_CLIENT, port, timeout))
        watchdog = (
            f"import os, time; time.sleep(60)\nfor p in {[c.process.pid for c in children]}: os.kill(p, 9)"
        )
        children.append(Child(watchdog))
        assert children[0].says() == "ready" and children[1].says() == '"run"'
        return children[0], children[1]

    yield make
    for child in reversed(children):
        child.end()


def test_a_stopped_server_is_noticed_within_the_timeout_and_a_killed_one_at_once(pair):
    """Oracle: SIGSTOP leaves the connections open, so that only the timeout can tell; SIGKILL closes them.

    The words of the two errors say which of the two it was.
    """
    server, client = pair(5)
    assert client.told("call") is None, "there is no hand-off yet"
    refused = client.told("refused")
    assert refused == ["NameTakenError", "client0 is in the run already; give every client a name of its own"]
    server.process.send_signal(signal.SIGSTOP)
    while psutil.Process(server.process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)  # a busy machine takes its time to stop the last thread
    kind, message = client.told("call")
    server.process.send_signal(signal.SIGCONT)
    assert kind == "PeerLostError" and "ran for more than" in message
    assert client.told("call") is None, "it was only asleep"
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    kind, message = client.told("call")
    assert kind == "PeerLostError" and "the server is gone or does not answer" in message
    assert "ran for more than" not in message


def test_idle_ranks_use_next_to_no_processor_and_one_that_waits_notices_the_end(pair):
    """Oracle: CPU time (not wall time) that the system counted for each over three seconds: below 2 % of a core.

    Then the server is killed: the client's call, under way since before, ends long before its timeout.
    """
    server, client = pair(60)
    assert client.told("wait") == "waiting"
    ranks = [psutil.Process(child.process.pid) for child in (server, client)]
    time.sleep(0.5)
    before = [sum(rank.cpu_times()[:2]) for rank in ranks]
    time.sleep(3)
    used = [sum(rank.cpu_times()[:2]) - start for rank, start in zip(ranks, before, strict=True)]
    assert max(used) < 0.02 * 3, used
    server.process.send_signal(signal.SIGKILL)
    kind, message = json.loads(client.says())
    assert kind == "PeerLostError" and "the server is gone" in message and "ran for more than" not in message


FORGED = {
    "an object of the client": ([1, 1, 0, 1, 90, 1], "an object of member 1, which is not this one"),
    "an object of nobody": ([7, 1, 0, 1, 91, 1], "an object of member 7, which is not this one"),
    "a copy from nobody": ([0, 1, 0, 1, 92, 9], "torch cannot read it"),
    "a negative number": ([0, -1, 0, 1, 93, 1], "expected six numbers from 0"),
    "a number beyond a member's": ([0, 2**40, 0, 1, 94, 1], "expected six numbers from 0"),
}


def test_a_reference_that_was_made_up_is_refused_and_the_true_one_goes_on(pair):
    """Oracle: the refusals, and what the same call answers with the reference that the server gave."""
    _, client = pair(60)
    for what, (numbers, words) in FORGED.items():
        assert client.told(f"refer {json.dumps([*numbers, 'PyObject'])}") == [
            "WireError",
            f"server: RRef: {words}; refused",
        ], what
    kind, message = client.told(f"refer {json.dumps([0, 1, 0, 1, 95, 1, 'Tensor'])}")
    assert kind == "WireError" and "the type of a Python object" in message
    assert client.told("call") is None


def test_no_rendezvous_is_said_with_its_address():
    """Oracle: nobody listens on the port; the timeout is a second."""
    port = free_port()
    with pytest.raises(
        PeerLostError, match=f"no rendezvous at 127.0.0.1:{port} within 1 s .*is its port open"
    ):
        Transport(TransportConfig(host="127.0.0.1", port=port, rank=1, timeout=1))


def test_a_rendezvous_that_goes_away_is_said():
    """Oracle: the server dies after a site has found it and before the site says anything."""
    config = {"host": "127.0.0.1", "port": free_port(), "timeout": 5}
    keeps_the_store = Transport(TransportConfig(**config, rank=0))
    line = Transport(TransportConfig(**config, rank=1))
    del keeps_the_store
    with pytest.raises(
        PeerLostError, match=r"the rendezvous at 127.0.0.1:\d+ is gone .*see the server's log"
    ):
        line.publish("classes", "[]")


def test_a_server_that_never_joins_is_said(monkeypatch):
    """Oracle: the store is there and the server is not; so is a rank that never publishes (an hour, cut short)."""
    monkeypatch.setattr("suture.runtime.rpc.transport.START_SECONDS", 1)
    config = {"host": "127.0.0.1", "port": free_port()}
    keeps_the_store = Transport(TransportConfig(**config, rank=0, timeout=5))
    line = Transport(TransportConfig(**config, rank=1, timeout=1))
    with pytest.raises(PeerLostError, match=r"client0 could not join within 1 s .*is the server running\?"):
        line.join("client0")
    with pytest.raises(
        PeerLostError, match=r"no rank said 'run_dir' within 1 s; see the other ranks' errors"
    ):
        line.hear("run_dir")
    keeps_the_store.publish("run_dir", "here")
    keeps_the_store.publish("run_dir", "there")
    assert line.hear("run_dir") == "here", "the first value stays"
    assert line.of_earlier_attempt("run_dir") is None
    again = Transport(TransportConfig(**config, rank=1, timeout=1, attempt=1))
    assert again.of_earlier_attempt("run_dir") == "there"
    line.leave()


def test_an_unknown_interface_lists_the_known():
    """Oracle: the interfaces that this machine has, all of them named; a known one is taken."""
    known = sorted(psutil.net_if_addrs())
    with pytest.raises(ConfigError, match=f"interface must be one of {', '.join(known)}, got 'eth99'"):
        TransportConfig(host="127.0.0.1", port=1, rank=0, interface="eth99")
    assert TransportConfig(host="127.0.0.1", port=1, rank=0, interface=known[0]).interface == known[0]


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_must_be_above_zero(timeout):
    """Oracle: the message."""
    with pytest.raises(ConfigError, match="the timeout must be above 0 seconds, got "):
        TransportConfig(host="127.0.0.1", port=1, rank=0, timeout=timeout)


@pytest.mark.parametrize(
    ("local", "agent", "one_host", "hosted"), [("3", "True", True, True), ("2", "False", False, False)]
)
def test_torchruns_environment_is_honoured(local, agent, one_host, hosted, monkeypatch):
    """Oracle: torchrun's variables, by hand."""
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC")]:
        monkeypatch.delenv(name)
    for name, value in {
        "RANK": "2", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": local, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500",
        "TORCHELASTIC_USE_AGENT_STORE": agent, "TORCHELASTIC_RESTART_COUNT": "4",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert TransportConfig.from_environment(None, 7) == TransportConfig(
        host="10.0.0.7", port=29500, rank=2, hosted=hosted, attempt=4, one_host=one_host, timeout=7
    )


def test_unwrap_gives_the_answer_or_raises_the_refusal():
    """Oracle: an answer is passed on untouched, None too."""
    answer = object()
    assert unwrap(answer) is answer and unwrap(None) is None
    with pytest.raises(WireError, match="^client0: smashed: refused$"):
        unwrap(Refusal("WireError", "client0: smashed: refused"))


def test_the_store_of_a_run_on_one_machine_is_reached_from_there_alone():
    """Oracle: the addresses on which this process listens, as the system lists them; torchrun's would be all."""
    store = loopback_store()
    listening = {
        entry.laddr.ip
        for entry in psutil.Process().net_connections("tcp")
        if entry.status == psutil.CONN_LISTEN and entry.laddr.port == store.port
    }
    assert listening == {"127.0.0.1"}
    store.set("key", "value")
    assert store.get("key") == b"value"
