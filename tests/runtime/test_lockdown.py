"""Nothing runs but what is on the list; a torch that the wall does not know is refused.

Oracle: torch's own functions, called beside the wall's with the same bytes.
"""

import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.rpc import WorkerInfo, _utils, api, backend_registry, internal

from runtime import codec, endpoints, lockdown
from runtime.codec import Call, Failure
from runtime.errors import ConfigError, WireError
from runtime.lockdown import Group, Lockdown, full_name
from runtime.wire import StepDone

ROOT = Path(__file__).resolve().parents[2]
ran: list[int] = []


def allowed(number: int, done: StepDone) -> int:
    ran.append(number)
    if number < 0:
        raise ValueError("a defect, with /a/path in it")
    return number + 1


def forbidden(number: int) -> None:
    ran.append(number)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def torchs(monkeypatch):
    """Torch's own functions, put back after the test."""
    names = ("serialize", "deserialize", "_run_function")
    for name in names:
        monkeypatch.setattr(internal, name, getattr(internal, name))
    monkeypatch.setattr(api, "_default_pickler", api._default_pickler)
    return internal._InternalRPCPickler()


@pytest.fixture
def wall(torchs) -> Lockdown:
    ran.clear()
    return lockdown.close({full_name(allowed): allowed}, lambda data: "client7")


def calls(function: str, *arguments) -> bytes:
    return codec.encode(Call(function, arguments))[0]


def answers(wall: Lockdown, data: bytes):
    """What a peer would be sent for these bytes."""
    answer = internal._run_function(internal.deserialize(data, []))
    return codec.decode(*internal.serialize(answer))


def test_a_listed_function_runs_and_answers(wall):
    """Oracle: the function itself."""
    assert answers(wall, calls(full_name(allowed), 1, StepDone(1, 0, 0.5))) == 2
    assert ran == [1]


@pytest.mark.parametrize(
    "data",
    [
        calls(full_name(forbidden), 1),
        calls("builtins.eval", "1"),
        calls("os.system", "true"),
        calls("runtime.lockdown.close"),
        calls(full_name(allowed) + ".__globals__", 1),
        calls(full_name(allowed), 1),
        calls(full_name(allowed), "1", StepDone(1, 0, 0.5)),
        calls(full_name(allowed), 1, StepDone(1, 0, 0.5), 2),
        calls(full_name(allowed), True, StepDone(1, 0, 0.5)),
        b"1",
        b'{"failure":"run me"}',
        b"not a message",
    ],
)
def test_anything_else_is_refused_and_does_not_run(wall, data):
    """Oracle: nothing ran; the peer is told so."""
    answer = answers(wall, data)
    assert isinstance(answer, Failure) and ("refused" in answer.text or answer.text == "run me")
    assert ran == []


def test_a_pickle_that_torch_would_run_is_not_read(wall, torchs, tmp_path):
    """Oracle: torch's own unpickler makes the folder, from the same bytes."""
    for number, make in enumerate(
        (pickle.dumps, lambda evil: torchs.serialize(internal.PythonUDF(print, (evil,), {}))[0])
    ):
        path = tmp_path / f"made{number}"
        data = make(Evil(path))
        assert isinstance(answers(wall, data), Failure) and not path.exists()
        torchs.deserialize(data, [])
        assert path.exists(), "the attack is real"  # fmt: skip


def test_a_defect_is_said_without_its_text(wall, caplog):
    """Oracle: the class and the function are named; the traceback stays in this process's log."""
    answer = answers(wall, calls(full_name(allowed), -1, StepDone(1, 0, 0.5)))
    assert answer == Failure("allowed failed with ValueError; see the log there")
    assert "/a/path" in caplog.text


def test_an_answer_that_is_no_message_is_not_sent(wall):
    """A stranger who fetches an object by its reference's number gets this."""
    assert codec.decode(*internal.serialize(object())) == Failure("refused: this is not for peers")


def test_a_failure_reaches_the_caller_as_a_plain_error(wall):
    """Oracle: torch raises what the answer says; its class is never the peer's choice, nor are escapes decoded."""
    said = internal.deserialize(*codec.encode(Failure("it failed\\x41 \\N{BULLET} é")))
    with pytest.raises(RuntimeError, match="it failed/x41 /N{BULLET} [?]") as raised:
        internal._handle_exception(said)
    assert type(raised.value) is RuntimeError


def test_a_refusal_is_logged_once_a_peer_and_kind(wall, caplog):
    """Oracle: a hundred calls and a hundred broken messages, two lines; the peer and what it called are named."""
    with caplog.at_level(logging.WARNING, logger="runtime.lockdown"):
        for number in range(100):
            answers(wall, calls(f"os.system{number}"))
            answers(wall, b"broken")
    assert len(caplog.messages) == 2
    assert "refused a call from client7: 'os.system0' is no endpoint here" in caplog.messages[0]
    assert "refused a message from client7" in caplog.messages[1]


def test_a_peer_can_announce_itself_and_nothing_else():
    """Oracle: what torch's function is called with; taking out, mapping devices and strangers are refused."""
    told, group = [], None

    def admit(name: str, rank: int) -> None:
        if name == "stranger":
            raise WireError("not you")

    group = Group(admit)
    group._update = lambda *arguments: told.append(arguments)
    worker = WorkerInfo("client0", 1)
    group.announced(worker, [], {}, True)
    assert told == [(worker, [], {}, True)]
    for arguments in (
        (worker, [], {}, False),
        (worker, [0], {}, True),
        (worker, [], {"client1": {}}, True),
        (WorkerInfo("stranger", 2), [], {}, True),
    ):
        with pytest.raises(WireError):
            group.announced(*arguments)
    assert len(told) == 1 and group.devices() == [0, {}, []]
    assert set(group.table()) == {
        "torch.distributed.rpc._utils._update_group_membership",
        "torch.distributed.rpc.backend_registry._get_device_infos",
    }


def test_the_servers_table_is_its_endpoints():
    """Oracle: the protocol of session.py, by hand; a new endpoint is a decision."""
    names = "greet hello next_turn fetch share forward step train backward predict commit report abort finish leave"
    assert set(endpoints.table()) == {f"runtime.endpoints.{name}" for name in names.split()}


@pytest.mark.parametrize(
    ("module", "name", "found"),
    [
        (internal, "_run_function", None),
        (internal, "deserialize", lambda data: None),
        (internal, "RemoteException", lambda text: None),
        (_utils, "_update_group_membership", lambda worker: None),
        (backend_registry, "_get_device_infos", None),
        (api, "_default_pickler", None),
    ],
)
def test_a_torch_that_looks_different_is_refused(torchs, monkeypatch, module, name, found):
    """Fails closed. Oracle: each thing that the wall relies on, gone or of another shape; nothing is replaced then."""
    if found is None:
        monkeypatch.delattr(module, name)
    else:
        monkeypatch.setattr(module, name, found)
    before = internal.serialize
    with pytest.raises(
        ConfigError, match=rf"does not know torch {re.escape(torch.__version__)}.*pip install"
    ):
        lockdown.close({}, lambda data: "")
    assert internal.serialize is before


def test_a_wall_that_rpc_goes_round_is_noticed(wall):
    """Oracle: RPC announces a member to itself; a wall through which that did not come is not in force."""
    with pytest.raises(ConfigError, match="it runs calls by another way"):
        wall.check_in_force()
    answers(wall, calls(full_name(allowed), 1, StepDone(1, 0, 0.5)))
    wall.check_in_force()


def test_rpc_that_runs_already_is_refused():
    """Oracle: a process of its own in which plain torch has started RPC."""
    script = """
import os
from torch.distributed import rpc
from runtime import lockdown
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", TP_SOCKET_IFNAME="lo")
rpc.init_rpc("alone", rank=0, world_size=1)
try:
    lockdown.close({}, lambda data: "")
except Exception as error:
    print(error, flush=True)
os._exit(0)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "RPC runs in this process already, without the lockdown" in ended.stdout, ended.stderr


def test_no_operator_that_a_peer_can_call_opens_a_file():
    """RPC runs operators of the namespace aten alone. Oracle: their schemas; a new one with a file name must be looked at.

    ``aten::save`` takes an item of any type, which RPC cannot send (the hostile suite tries).
    """
    named = {
        schema.name
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("aten::")
        and any(
            str(argument.type) == "str" and word in argument.name
            for argument in schema.arguments
            for word in ("file", "path", "url", "dir")
        )
    }
    assert named == {"aten::from_file", "aten::save"}


def test_the_operator_that_opens_files_is_closed():
    """Oracle: a process of its own, in which the same operator opened the same file a moment before."""
    script = """
import sys, torch
from runtime import lockdown
print(len(torch.from_file(sys.argv[1], False, 4, dtype=torch.uint8)), flush=True)
lockdown.close({}, lambda data: "")
for call in (torch.from_file, torch.ops.aten.from_file):
    try:
        print(call(sys.argv[1], False, 4, dtype=torch.uint8), flush=True)
    except RuntimeError as error:
        print("refused" in str(error), flush=True)
"""
    command = [sys.executable, "-c", script, __file__]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.split() == ["4", "True", "True"], ended.stderr
