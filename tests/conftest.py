"""What all tests share: where the real images are, and a check that no test leaves a process behind."""

import atexit
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import forked
import psutil
import pytest
import torch

# Children of the tests must import torch as quietly and with as many threads as the tests do.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# Beside other workers every test has one core; what it starts has, too.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
# What clients remember of runs must not pile up in the home of whoever runs the tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="suture-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder with idrid, lungs and mnist10k; skips where SUTURE_DATA does not name it."""
    folder = os.environ.get("SUTURE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SUTURE_DATA does not name a folder of real images (see docs/data.md)")
    return Path(folder).resolve()


@pytest.fixture(autouse=True)
def no_process_left():
    """Fails a test that leaves a child process running."""
    before: set[int | None] = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    before.add(forked.pid())
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before and c.is_running()]
    left = [child for child in left if child.status() != psutil.STATUS_ZOMBIE]
    names = [" ".join(child.cmdline())[:120] for child in left]
    for child in left:
        child.kill()
    assert not names, f"processes left behind: {names}"


@pytest.fixture(autouse=True)
def threads_as_before():
    """A test may set torch's threads; the next one starts as if it had not."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def umask_as_before():
    """A command that a test runs in this process sets the umask; the next test starts as if it had not."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def logging_as_before():
    """A command that a test runs in this process sets up its log; the next test starts as if it had not."""
    root = logging.getLogger()
    before, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(before)
    root.handlers[:] = handlers


class SmallDisk:
    """A disk of 24 MB.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leaves no byte free."""
        full = pytest.raises(OSError, match="No space left")
        with (self.folder / "ballast").open("wb", buffering=0) as ballast, full:
            while True:
                ballast.write(bytes(4096))

    def empty(self) -> None:
        """Gives the room back."""
        (self.folder / "ballast").unlink()


@pytest.fixture
def small_disk(tmp_path, request):
    """A disk of its own for a run folder, or a client's folder of that name; skips where this user may not mount one."""
    folder = tmp_path / getattr(request, "param", "run")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root, and a system that lets it mount")
    try:
        yield SmallDisk(folder)
    finally:
        for place in (folder / "checkpoints", folder):
            subprocess.run(["umount", "--lazy", str(place)], capture_output=True)
