"""Nothing runs but what is on the list; a torch that the wall does not know is refused.

Oracle: torch's own functions, called beside the wall's with the same bytes.
"""

import contextlib
import json
import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.distributed import rpc
from torch.distributed.rpc import WorkerInfo, _utils, api, backend_registry, internal

from suture.runtime.errors import ConfigError, WireError
from suture.runtime.rpc import functions, lockdown
from suture.runtime.rpc.lockdown import KINDS, Call, Failure, Group, Lockdown, full_name
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.api import ENDPOINTS, ServerApi
from suture.runtime.wire import codec
from suture.runtime.wire.codec import MESSAGES
from suture.runtime.wire.messages import StepDone

ROOT = Path(__file__).resolve().parents[3]
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
    return lockdown.close({full_name(allowed): allowed})


def calls(function: str, *arguments) -> bytes:
    return codec.encode(Call(function, [*arguments]), KINDS)[0]


def answers(wall: Lockdown, data: bytes):
    """What a peer would be sent for these bytes."""
    answer = internal._run_function(internal.deserialize(data, []))
    return codec.decode(*internal.serialize(answer), KINDS)


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
        calls("suture.runtime.rpc.lockdown.close"),
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
    assert codec.decode(*internal.serialize(object()), KINDS) == Failure("refused: this is not for peers")


def test_a_failure_reaches_the_caller_as_a_plain_error(wall):
    """Oracle: torch raises what the answer says; its class is never the peer's choice, nor are escapes decoded."""
    said = internal.deserialize(*codec.encode(Failure("it failed\\x41 \\N{BULLET} é"), KINDS))
    with pytest.raises(RuntimeError, match="it failed/x41 /N{BULLET} [?]") as raised:
        internal._handle_exception(said)
    assert type(raised.value) is RuntimeError


def test_a_refusal_is_logged_once_a_kind(wall, caplog):
    """Oracle: a hundred calls and a hundred broken messages, two lines; what was called is named."""
    with caplog.at_level(logging.WARNING, logger="suture.runtime.rpc.lockdown"):
        for number in range(100):
            answers(wall, calls(f"os.system{number}"))
            answers(wall, b"broken")
    assert len(caplog.messages) == 2
    assert "refused a call of a peer: 'os.system0' is no function here" in caplog.messages[0]
    assert "refused a message of a peer: not a message of the protocol" in caplog.messages[1]


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


def test_the_servers_table_is_four_functions_and_the_endpoints_behind_one_of_them():
    """Oracle: the protocol of session.py, by hand; a new function or endpoint is a decision."""
    table = functions.RpcServer(SimpleNamespace()).table()
    assert set(table) == {
        f"suture.runtime.rpc.functions.{name}" for name in ("connect", "ask", "forward", "step")
    }
    names = "hello next_turn fetch share train backward predict commit report abort finish leave"
    names += " board post begin_epoch exhibit heads"
    assert ENDPOINTS == {name: getattr(ServerApi, name) for name in names.split()}


def test_each_newcomer_gets_an_object_of_its_own():
    """Oracle: two objects of one run, which compute in one thread; a stranger's function of that name does nothing."""
    run = SimpleNamespace()
    connect = functions.RpcServer(run).table()[full_name(functions.connect)]
    one, other = connect(), connect()
    assert one is not other and type(one) is type(other) is ServerApi
    assert one._run is other._run is run and one._executor is other._executor
    assert one.member is not other.member
    with pytest.raises(AssertionError, match="only the server's table says"):
        functions.connect()


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
        lockdown.close({})
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
from suture.runtime.rpc import lockdown
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", TP_SOCKET_IFNAME="lo")
rpc.init_rpc("alone", rank=0, world_size=1)
try:
    lockdown.close({})
except Exception as error:
    print(error, flush=True)
os._exit(0)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "RPC runs in this process already, without the lockdown" in ended.stdout, ended.stderr


# Kinds of value that RPC knows and the protocol does not ------------------------------------------


def read(form, tensors=()):
    return codec.decode(json.dumps(form).encode(), [*tensors], KINDS)


def test_a_call_a_failure_and_a_worker_come_back():
    """Oracle: their fields; where only the protocol is spoken, over gRPC, none of them is known."""
    turn = Turn(TurnKind.TRAIN, "client0", 1, 2, 3, 4)
    for value in (Call("a.b", ["t", turn]), Failure("it failed")):
        assert codec.decode(*codec.encode(value, KINDS), KINDS) == value
    written = codec.encode(WorkerInfo("client0", 3), KINDS)
    worker = codec.decode(*written, KINDS)
    assert (worker.name, worker.id) == ("client0", 3)
    with pytest.raises(WireError, match="a WorkerInfo is no message of the protocol; it was not sent"):
        codec.encode(WorkerInfo("client0", 3))
    with pytest.raises(WireError, match="a 'WorkerInfo' that cannot be read"):
        codec.decode(*written)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        *(("WorkerInfo", one) for one in (["a"], ["a", "1"], ["a", -1], ["a", 2**15], [1, 1], ["a", True], "a", None)),
        *(("call", one) for one in ([], [1], "a", ["a"], ["a", "b"], [1, []], ["a", [], 1], None, {"dict": {}})),
    ],
)  # fmt: skip
def test_a_kind_with_another_content_is_refused(kind, content):
    """Oracle: the declared types, by hand."""
    with pytest.raises(WireError):
        read({kind: content})


NUMBERS = [0, 1, 50, 1, 51, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([*NUMBERS, "Tensor"], "six numbers and the type of a Python object"),
        ([*NUMBERS, "__torch__.torch.classes.dist_rpc.Evil"], "six numbers and the type of a Python object"),
        ([*NUMBERS, None], "six numbers and the type of a Python object"),
        (NUMBERS, "six numbers and the type of a Python object"),
        ([*NUMBERS, 1, "PyObject"], "six numbers and the type of a Python object"),
        ("PyObject", "six numbers and the type of a Python object"),
        (None, "six numbers and the type of a Python object"),
        *(([*NUMBERS[:at], wrong, *NUMBERS[at + 1 :], "PyObject"], "six numbers from 0") for at in range(6) for wrong in (-1, "0", 0.0, True, None, 2**63)),
        *(([*NUMBERS[:at], 2**15, *NUMBERS[at + 1 :], "PyObject"], "six numbers from 0") for at in (0, 1, 3, 5)),
    ],
)  # fmt: skip
def test_a_reference_of_another_form_is_refused_before_torch_sees_it(content, words, monkeypatch):
    """Oracle: by hand: torch parses the type's name, and takes members' numbers of 16 bits and others of 64."""
    monkeypatch.setattr(rpc.PyRRef, "_deserialize", lambda ids: pytest.fail("torch was given it"))
    monkeypatch.setattr(rpc, "get_worker_info", lambda: WorkerInfo("server", 0))
    with pytest.raises(WireError, match=f"RRef: expected {words}"):
        read({"RRef": content})


@pytest.mark.parametrize("owner", [1, 7, 2**15 - 1])
def test_a_reference_to_an_object_of_another_member_is_refused_before_torch_sees_it(owner, monkeypatch):
    """Oracle: the server owns what its clients refer to; torch would send messages to that other member."""
    monkeypatch.setattr(rpc.PyRRef, "_deserialize", lambda ids: pytest.fail("torch was given it"))
    monkeypatch.setattr(rpc, "get_worker_info", lambda: WorkerInfo("server", 0))
    with pytest.raises(WireError, match=f"RRef: an object of member {owner}, which is not this one"):
        read({"RRef": [owner, *NUMBERS[1:], "PyObject"]})


def test_a_reference_that_torch_cannot_read_is_refused():
    """Oracle: torch's own error, where no RPC runs, is one of ours."""
    with pytest.raises(WireError, match="RRef: torch cannot read it"):
        read({"RRef": [*NUMBERS, "PyObject"]})


FORMS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=7)
    | st.dictionaries(st.sampled_from([*KINDS.read, *MESSAGES, "tensor", "bytes", "dict", "x"]), inner, max_size=1),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(FORMS)
@example({"RRef": [*NUMBERS, "PyObject"]})
def test_any_form_with_rpcs_kinds_is_read_or_refused(form):
    """Fuzz. Oracle: nothing is raised but a WireError."""
    with contextlib.suppress(WireError):
        read(form, [torch.zeros(1)])
