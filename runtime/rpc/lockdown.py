"""RPC without pickles: a peer can make this process run no Python but the functions on a list.

torch RPC pickles every call and answer, and whoever reads a pickle runs what it names. `close` replaces the two
functions by which RPC reads what arrives and runs what it asks for. No pickle is read any more (see ``codec``), and
what a call names is looked up in this member's table: at the server its functions, at a client nothing. Members that
are told of a newcomer by RPC itself take its word for no one else: see `Group`.

This keeps mistakes of trusted peers small. It does not make a peer that is not trusted harmless: torch's built-in
operators run without any Python, and one of them reads memory beyond its arguments (docs/security.md).

Tried with torch 2.14.1 and 2.15.0; a torch whose internals look different is refused.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from torch.distributed import rpc
from torch.distributed.rpc import WorkerInfo, _utils, api, backend_registry, internal

from suture.runtime.errors import ConfigError, WireError
from suture.runtime.wire import codec
from suture.runtime.wire.codec import Kinds

log = logging.getLogger(__name__)

Function = Callable[..., Any]

_EXPECTED: dict[tuple[Any, str], tuple[str, ...]] = {
    (internal, "serialize"): ("obj",),
    (internal, "deserialize"): ("binary_data", "tensor_table"),
    (internal, "_run_function"): ("python_udf",),
    (internal, "_handle_exception"): ("result",),
    (internal, "PythonUDF"): ("func", "args", "kwargs"),
    (internal, "RemoteException"): ("msg", "exception_type"),
    (_utils, "_update_group_membership"): ("worker_info", "my_devices", "reverse_device_map", "is_join"),
    (backend_registry, "_get_device_infos"): (),
    (backend_registry, "_set_devices_and_reverse_device_map"): ("agent",),
}
"""What of torch's is replaced or relied on, and the names of its parameters."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call on its way: the function's full name and its arguments."""

    function: str
    arguments: list[Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """What the other side met that is no `messages.Refusal`: a defect, or a call that it refused."""

    text: str


def _call(content: Any) -> Call:
    if type(content) is not list or len(content) != 2 or not codec.fits(content[0], str):
        raise WireError("a call without a function's name")
    if type(content[1]) is not list:
        raise WireError("a call without a list of arguments")
    return Call(content[0], content[1])


def _worker(content: Any) -> WorkerInfo:
    fits = type(content) is list and len(content) == 2 and type(content[1]) is int
    if not fits or type(content[0]) is not str or not 0 <= content[1] < 2**15:
        raise WireError("WorkerInfo: expected a name and a rank")
    try:
        return WorkerInfo(*content)
    except RuntimeError:
        raise WireError("WorkerInfo: torch does not take the name") from None


def _reference(content: Any) -> rpc.PyRRef[Any]:
    # Who owns it; its id and this copy's, of two numbers each, of which the first is a member's; whose copy it is; and
    # the type, which torch would parse.
    if type(content) is not list or len(content) != 7 or content[6] != _ANY_OBJECT:
        raise WireError("RRef: expected six numbers and the type of a Python object")
    for number, above in zip(content, (2**15, 2**15, 2**63, 2**15, 2**63, 2**15), strict=False):
        if type(number) is not int or not 0 <= number < above:
            raise WireError("RRef: expected six numbers from 0")
    try:
        if content[0] == rpc.get_worker_info().id:
            reference: rpc.PyRRef[Any] = rpc.PyRRef._deserialize(tuple(content))
            return reference
    except RuntimeError:  # it names a member that is not there, or RPC has ended
        raise WireError("RRef: torch cannot read it") from None
    raise WireError(f"RRef: an object of member {content[0]}, which is not this one")


_ANY_OBJECT = "PyObject"
KINDS = Kinds(
    write={
        Call: ("call", lambda call: [call.function, call.arguments]),
        Failure: ("failure", lambda failure: failure.text),
        WorkerInfo: ("WorkerInfo", lambda worker: [worker.name, worker.id]),
        rpc.PyRRef: ("RRef", lambda reference: list(reference._serialize())),
    },
    read={
        "call": _call,
        "failure": lambda content: Failure(str(content)),
        "WorkerInfo": _worker,
        "RRef": _reference,
    },
)
"""What RPC's messages hold beside the protocol's: a remote reference crosses as its ids."""


class Group:
    """What RPC itself calls when a member joins, so that it can announce itself and nothing more.

    Args:
        admit: is asked before a newcomer is written down; raises WireError to refuse it.
    """

    def __init__(self, admit: Callable[[str, int], None]) -> None:
        self._admit = admit
        self._update: Function = _utils._update_group_membership

    def table(self) -> dict[str, Function]:
        """The two functions under the names that torch calls them by."""
        return {
            full_name(_utils._update_group_membership): self.announced,
            full_name(backend_registry._get_device_infos): self.devices,
        }

    def announced(self, worker: WorkerInfo, devices: list, devices_of: dict, joins: bool) -> None:  # type: ignore[type-arg]
        """A newcomer says its name and rank. Nobody is taken out at a peer's word, and no device is mapped."""
        if not joins or devices or devices_of:
            raise WireError("a peer tried to change the group by more than joining it")
        self._admit(worker.name, worker.id)
        self._update(worker, [], {}, True)

    def devices(self) -> list:  # type: ignore[type-arg]
        """Tensors cross the wire on the CPU: no devices, whatever this machine has."""
        return [0, {}, []]


class Lockdown:
    """The wall of one process, up from `close` on. RPC threads call it, any number at a time.

    Args:
        table: the functions that a peer may call, by full name; may be changed while the wall stands.
    """

    def __init__(self, table: Mapping[str, Function]) -> None:
        self.table = dict(table)
        self._has_run = False
        self._said: set[str] = set()

    # The parameters bear torch's names, so that `close` finds what it expects when it is called again.

    def serialize(self, obj: Any) -> tuple[bytes, list[torch.Tensor]]:
        """In the place of torch's pickler, for calls and answers alike."""
        if isinstance(obj, internal.PythonUDF):
            return codec.encode(Call(full_name(obj.func), list(obj.args)), KINDS)
        if isinstance(obj, internal.RemoteException):
            return codec.encode(Failure(obj.msg), KINDS)
        try:
            return codec.encode(obj, KINDS)
        except WireError as error:
            self._refused("something to send", str(error))
            return codec.encode(Failure("refused: this is not for peers"), KINDS)

    def deserialize(self, binary_data: bytes, tensor_table: list[torch.Tensor]) -> Any:
        """In the place of torch's unpickler. Never raises: what is refused becomes an error that RPC can carry."""
        try:
            value = codec.decode(binary_data, tensor_table, KINDS)
        except WireError as error:
            return self._refused("a message", str(error))
        if isinstance(value, Failure):
            return _failed(value.text)
        return self._looked_up(value) if isinstance(value, Call) else value

    def _looked_up(self, call: Call) -> Any:
        function = self.table.get(call.function)
        if function is None:
            return self._refused("a call", f"{call.function!r:.80} is no function here")
        expected = _argument_types(function)
        if len(expected) != len(call.arguments) or not all(map(codec.fits, call.arguments, expected)):
            return self._refused("a call", f"{call.function} takes other arguments")
        return internal.PythonUDF(function, tuple(call.arguments), {})

    def run_function(self, python_udf: Any) -> Any:
        """In the place of torch's runner: runs what `deserialize` looked up, and nothing else."""
        self._has_run = True
        if isinstance(python_udf, internal.RemoteException):
            return python_udf
        if not isinstance(python_udf, internal.PythonUDF):
            return self._refused("a call", "it is none")
        try:
            return python_udf.func(*python_udf.args)
        except WireError as error:
            return self._refused("a call", str(error))
        except Exception as error:  # a defect; its traceback stays here
            log.exception("%s failed", python_udf.func.__name__)
            return _failed(
                f"{python_udf.func.__name__} failed with {type(error).__name__}; see the log there"
            )

    def _refused(self, kind: str, why: str) -> Any:
        """What a refused call comes to. Logged once a kind: a flood of refusals is no flood of lines."""
        if kind not in self._said:
            self._said.add(kind)
            log.warning("refused %s of a peer: %s (further ones are not logged)", kind, why)
        return _failed(f"refused: {why}")

    def check_in_force(self) -> None:
        """Called when this process has announced itself to itself, over RPC.

        Raises:
            ConfigError: RPC ran that by another way than through this wall.
        """
        if not self._has_run:
            raise ConfigError(_unknown_torch("it runs calls by another way"))


def close(table: Mapping[str, Function]) -> Lockdown:
    """Puts the wall up. Call before RPC starts: RPC takes these functions down once, when it starts.

    Raises:
        ConfigError: this torch is not the one that the wall was built for, or RPC runs already.
    """
    for (module, name), parameters in _EXPECTED.items():
        found = getattr(module, name, None)
        if found is None:
            raise ConfigError(_unknown_torch(f"it has no {name}"))
        if tuple(inspect.signature(found).parameters) != parameters:
            raise ConfigError(_unknown_torch(f"its {name} takes other arguments"))
    if not hasattr(api, "_default_pickler"):
        raise ConfigError(_unknown_torch("it pickles elsewhere"))
    if api._is_current_rpc_agent_set():
        raise ConfigError("RPC runs in this process already, without the lockdown; start a new process")
    wall = Lockdown(table)
    internal.serialize, internal.deserialize = wall.serialize, wall.deserialize
    internal._run_function = wall.run_function
    api._default_pickler = wall  # type: ignore[assignment]
    return wall


@functools.cache
def _argument_types(function: Function) -> tuple[Any, ...]:
    hints = get_type_hints(function)
    return tuple(hints[name] for name in inspect.signature(function).parameters)


def full_name(function: Function) -> str:
    """The name by which a function is called over the wire."""
    return f"{function.__module__}.{function.__qualname__}"


def _failed(text: str) -> Any:
    # RPC decodes escapes in this text: there must be none.
    plain = text.encode("ascii", "replace").decode().replace("\\", "/")[:2000]
    return internal.RemoteException(plain, RuntimeError)


def _unknown_torch(why: str) -> str:
    return (
        f"the lockdown does not know torch {torch.__version__} ({why}), so nothing is started: a peer could run "
        "code here; install one that it was tried with: pip install torch==2.14.1 torchvision==0.29.1"
    )
