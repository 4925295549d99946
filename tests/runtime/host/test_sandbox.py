"""The sandbox, tried from inside, in a process of its own since it cannot be opened again.

Oracle: the same attempts by the same process without a sandbox, where every one succeeds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from suture.runtime.errors import ConfigError
from suture.runtime.host import sandbox
from suture.runtime.rpc.transport import Transport, TransportConfig

needs_landlock = pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing()))

ATTEMPTS = """read_a_file list_the_folder read_by_torchs_operator write_by_torchs_operator write_into_the_folder
    write_beside_the_run make_a_folder_beside_the_run truncate_a_file remove_a_file start_a_program
    start_a_program_through_the_loader read_in_a_child read_in_a_new_thread read_through_a_symbolic_link
    make_a_symbolic_link read_through_the_own_root read_through_the_own_working_folder
    read_through_another_processs_root read_another_processs_memory read_through_a_folder_opened_before
    link_a_file_into_the_run move_a_file_into_the_run move_a_file_out_of_the_run signal_a_process_outside""".split()
SINCE = {"truncate_a_file": 3, "signal_a_process_outside": 6}  # Landlock's version that knows them


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> dict[str, dict]:
    """What enclosed.py found, inside ("on") and without a sandbox ("off")."""
    found = {}
    for mode in ("on", "off"):
        place = tmp_path_factory.mktemp(mode)
        run, data, readable = place / "run", place / "data", place / "readable"
        run.mkdir(), data.mkdir(), readable.write_text("readable")
        for name in ("scan.bin", "to_truncate", "to_remove", "to_move"):
            (data / name).write_bytes(bytes(16))
        (run / "link").symlink_to(data / "scan.bin")
        (run / "to_move_out").write_text("x")
        ended = subprocess.run(
            [sys.executable, Path(__file__).with_name("enclosed.py"), mode, run, data, readable],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TMPDIR": str(run)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr
        found[mode] = json.loads(ended.stdout)
    return found


@needs_landlock
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_an_attempt_succeeds_without_a_sandbox_and_is_refused_inside(tried, attempt):
    assert tried["off"]["attempts"][attempt] == "ok"
    if sandbox.version() < SINCE.get(attempt, 1):
        pytest.skip(f"needs Landlock {SINCE[attempt]}, this kernel has {sandbox.version()}")
    refusal = tried["on"]["attempts"][attempt]
    assert any(sign in refusal for sign in ("ermission", "not permitted", "cross-device", "refused")), refusal


@needs_landlock
def test_every_attempt_is_looked_at(tried):
    assert sorted(tried["on"]["attempts"]) == sorted(ATTEMPTS)


@needs_landlock
def test_inside_a_rank_can_do_its_work_and_what_is_documented_as_open_is_open(tried):
    """Writing in its folder, late imports, threads; and the two traps: older threads, sizes and permissions."""
    assert set(tried["on"]["allowed"].values()) == {"ok"}, tried["on"]["allowed"]


@needs_landlock
def test_older_threads_are_counted(tried):
    assert (tried["on"]["threads_before"], tried["on"]["threads_then"]) == (0, 1)


@needs_landlock
def test_what_is_still_within_reach_is_found(tried):
    assert tried["on"]["reach_before"] == "it opens"
    assert tried["on"]["reach_by_an_open_file"] == "one of its files is open"
    assert tried["on"]["reach_after"] is None
    assert tried["off"]["reach_after"] == "it opens"


def test_a_file_that_is_mapped_is_found(tmp_path, monkeypatch):
    import mmap

    scan = tmp_path / "scan"
    scan.write_bytes(bytes(16))
    with scan.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

    def refuse(path, flags):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sandbox.os, "open", refuse)
    # mmap keeps a descriptor of its own, which is found first.
    assert sandbox.still_reaches(tmp_path) in ("one of its files is open", "one of its files is mapped")
    mapped.close()
    assert sandbox.still_reaches(tmp_path) is None


def test_without_landlock_nothing_is_closed_and_the_error_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "version", lambda: 0)
    with pytest.raises(ConfigError, match="Landlock.*--sandbox off"):
        sandbox.close(write=[tmp_path])
    assert not sandbox.is_closed()


@needs_landlock
def test_a_folder_to_write_that_is_missing_is_refused_and_nothing_is_closed(tmp_path):
    with pytest.raises(ConfigError, match="nowhere open: No such file"):
        sandbox.close(write=[tmp_path / "nowhere"])
    assert not sandbox.is_closed()
    (tmp_path / "still").write_text("x")


def test_the_working_folder_and_the_folder_of_our_packages_are_not_pythons_files():
    files = {path.resolve() for path in sandbox.python_files()}
    root = Path(__file__).resolve().parents[3]
    assert root / "runtime" in files
    assert not files & {root, *root.parents, Path.cwd(), Path.home()}


@pytest.mark.parametrize(("closed", "channels"), [(False, ["cma", "basic"]), (True, ["basic"])])
def test_a_closed_process_copies_nothing_out_of_anothers_memory(monkeypatch, closed, channels):
    """cma reads the peer's memory, which the kernel refuses between sandboxes: calls would hang."""
    monkeypatch.setattr(sandbox, "_closed", closed)
    asked = {}
    monkeypatch.setattr(
        "suture.runtime.rpc.transport.rpc.TensorPipeRpcBackendOptions",
        lambda **options: asked.update(options),
    )
    line = Transport.__new__(Transport)
    line.config = TransportConfig(host="127.0.0.1", port=1, rank=1)
    line._options()
    assert asked["_channels"] == channels
