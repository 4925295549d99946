"""A process that tries to get out of its sandbox.

    python enclosed.py on|off RUN DATA READABLE       prints {attempt: "ok" or why it failed} as JSON

RUN is its own folder, DATA holds ``scan.bin`` and must be out of reach; RUN/link leads to DATA/scan.bin, and READABLE is
a file that is left open to it. With "off" the same attempts must all succeed, or they would prove nothing.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from suture.runtime.host import sandbox

RUN, DATA, OUTSIDE = Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[3]).parent
SCAN, PARENT = DATA / "scan.bin", os.getppid()
ATTEMPTS, ALLOWED = {}, {}


def attempt(function):
    ATTEMPTS[function.__name__] = function
    return function


def allowed(function):
    ALLOWED[function.__name__] = function
    return function


@torch.jit.script
def save(tensor: torch.Tensor, path: str):  # TorchScript, which needs no Python to run
    torch.save(tensor, path)


@attempt
def read_a_file():
    SCAN.read_bytes()


@attempt
def list_the_folder():
    list(DATA.iterdir())


@attempt
def read_by_torchs_operator():
    torch.from_file(str(SCAN), False, 4)


@attempt
def write_by_torchs_operator():
    save(torch.zeros(4), str(OUTSIDE / "saved"))
    if not (OUTSIDE / "saved").exists():
        raise PermissionError("refused, which the operator does not say")


@attempt
def write_into_the_folder():
    (DATA / "new").write_text("x")


@attempt
def write_beside_the_run():
    (OUTSIDE / "new").write_text("x")


@attempt
def make_a_folder_beside_the_run():
    (OUTSIDE / "folder").mkdir()


@attempt
def truncate_a_file():
    os.truncate(DATA / "to_truncate", 1)


@attempt
def remove_a_file():
    (DATA / "to_remove").unlink()


@attempt
def start_a_program():
    subprocess.run(["/bin/true"], check=True)


@attempt
def start_a_program_through_the_loader():
    loader = next(p for p in (*Path("/lib64").glob("ld-*"), *Path("/lib").glob("ld-*")) if p.is_file())
    subprocess.run([loader, "/bin/true"], check=True)


@attempt
def read_in_a_child():
    child = os.fork()
    if child == 0:
        try:
            SCAN.read_bytes()
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise PermissionError("the child was refused")


@attempt
def read_in_a_new_thread():
    in_a_thread(SCAN.read_bytes)


@attempt
def read_through_a_symbolic_link():
    (RUN / "link").read_bytes()


@attempt
def make_a_symbolic_link():
    (RUN / "another").symlink_to(SCAN)


@attempt
def read_through_the_own_root():
    Path(f"/proc/self/root{SCAN}").read_bytes()


@attempt
def read_through_the_own_working_folder():
    os.chdir(DATA)
    Path("/proc/self/cwd/scan.bin").read_bytes()


@attempt
def read_through_another_processs_root():
    Path(f"/proc/{PARENT}/root{SCAN}").read_bytes()


@attempt
def read_another_processs_memory():
    Path(f"/proc/{PARENT}/mem").open("rb").close()


@attempt
def read_through_a_folder_opened_before():
    os.close(os.open("scan.bin", os.O_RDONLY, dir_fd=opened_before))


@attempt
def link_a_file_into_the_run():
    os.link(SCAN, RUN / "hard")


@attempt
def move_a_file_into_the_run():
    (DATA / "to_move").rename(RUN / "moved")


@attempt
def move_a_file_out_of_the_run():
    (RUN / "to_move_out").rename(OUTSIDE / "moved_out")


@attempt
def signal_a_process_outside():
    os.kill(PARENT, 0)


@allowed
def write_in_the_run():
    (RUN / "file").write_text("x")
    assert (RUN / "file").read_text() == "x"
    (RUN / "file").write_text("")


@allowed
def make_rename_and_remove_in_the_run():
    (RUN / "a").mkdir()
    (RUN / "b").mkdir()
    (RUN / "a" / "file").write_text("x")
    (RUN / "a" / "file").rename(RUN / "b" / "file")
    (RUN / "b" / "file").unlink()
    (RUN / "b").rmdir()


@allowed
def import_what_was_not_imported():
    assert "sqlite3" not in sys.modules and "torchvision.ops" not in sys.modules
    import sqlite3

    import torchvision.ops  # noqa: F401

    sqlite3.connect(":memory:").close()


@allowed
def compute_on_several_threads():
    torch.set_num_threads(2)
    left = torch.randn(300, 300, requires_grad=True)
    (left @ left).sum().backward()


@allowed
def read_what_was_left_open():
    assert Path(sys.argv[4]).read_text() == "readable"


@allowed
def read_in_an_older_thread():
    # The trap: a thread that is older than the sandbox is outside it.
    jobs.put(SCAN.read_bytes)
    if (error := answers.get(timeout=10)) is not None:
        raise error


@allowed
def see_sizes_and_permissions():
    # What Landlock does not cover, as docs/security.md says.
    assert SCAN.stat().st_size == 16
    SCAN.chmod(0o600)


def in_a_thread(work):
    errors = []

    def run():
        try:
            work()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def older():
    while True:
        try:
            jobs.get()()
            answers.put(None)
        except OSError as error:
            answers.put(error)


def outcome(function):
    try:
        function()
        return "ok"
    except (OSError, RuntimeError, AssertionError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


jobs, answers = queue.Queue(), queue.Queue()
opened_before = os.open(DATA, os.O_RDONLY)
found = {"threads_before": len(sandbox.other_threads())}
threading.Thread(target=older, daemon=True).start()
found["threads_then"] = len(sandbox.other_threads())
found["reach_before"] = sandbox.still_reaches(DATA)
if sys.argv[1] == "on":
    with SCAN.open("rb") as held:
        sandbox.close(read=[Path(sys.argv[4])], write=[RUN])
        found["reach_by_an_open_file"] = sandbox.still_reaches(DATA)
found["attempts"] = {name: outcome(function) for name, function in ATTEMPTS.items()}
found["allowed"] = {name: outcome(function) for name, function in ALLOWED.items()}
os.close(opened_before)
found["reach_after"] = sandbox.still_reaches(DATA)
print(json.dumps(found))
