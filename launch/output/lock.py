"""One process a folder: whoever writes RUN, or a client's own folder, holds a lock that no second process gets.

The lock is the system's (flock on a file in the folder), so a process that dies, however it dies, leaves none behind.
The file stays: it names the process that had the folder last, and deleting it would let two processes lock two files.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import IO

from suture.runtime.errors import ConfigError
from suture.runtime.state.checkpoint import cannot_write

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_NOT_HERE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def lock_folder(folder: Path, instead: str = "name another --run-dir") -> IO[str]:
    """Takes the lock of a folder that exists.

    Args:
        folder: whose.
        instead: what else may be done where another process has it, or it cannot be written.

    Returns:
        The open file that holds it: until it is closed, or garbage, or the process has ended. Processes that this one
        starts do not inherit it; one that it forks does, and holds it as well.

    Raises:
        ConfigError: another process has the folder, or it cannot be written.
        CheckpointError: the disk is full.
    """
    try:
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
        if not _is_ours(file):
            raise ConfigError(
                f"{folder} is in use by process {_holder(file)}: wait until it has ended, end the command that "
                f"started it, or {instead}"
            )
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    except OSError as error:
        raise cannot_write(folder, error, instead) from None
    return file


def who_has(folder: Path) -> str:
    """The process that holds a folder's lock, empty where none does. Takes nothing that another would wait for."""
    try:
        with (folder / LOCK_FILE).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(file)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                return _holder(file)  # it may have ended: where there are no locks, that is not known
    except (FileNotFoundError, NotADirectoryError):
        pass
    return ""


def _is_ours(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        log.warning(
            "%s cannot be locked (%s: its file system has no locks): see to it that no second process uses its folder",
            file.name,
            error.strerror,
        )
    return True


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(100).strip() or "(unknown)"
