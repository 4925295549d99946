"""Secrets that a person hands over: a file that only this program's user may read, or an environment variable."""

from __future__ import annotations

import ctypes
import os
import secrets
from pathlib import Path

from suture.runtime.errors import ConfigError

_OTHERS = 0o077


def check_private(path: Path, what: str) -> None:
    """Refuses a file with a secret that another user may read, or has made.

    Args:
        path: the file; a link is followed.
        what: names its kind in errors, such as "token file".

    Raises:
        ConfigError: its mode lets others in, or it belongs to another user.
        OSError: there is none, or it cannot be looked at.
    """
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{what} {path} belongs to user {found.st_uid}, but this program runs as user {os.geteuid()}: "
            "whoever owns the file could exchange it; make it your own with chown, or name a copy of your own"
        )
    if found.st_mode & _OTHERS:
        raise ConfigError(
            f"{what} {path} has mode {found.st_mode & 0o777:o}: others may read it; chmod 600 {path}"
        )


def take_variable(name: str) -> str | None:
    """The value of an environment variable, which leaves the environment; None where it is not set.

    No child inherits it from then on, and /proc/PID/environ does not show it: the bytes with which the system started
    this process are overwritten, which ``unsetenv`` would leave as they are.
    """
    value = os.environ.get(name)
    if value is None:
        return None
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    if place := libc.getenv(os.fsencode(name)):
        ctypes.memset(place, 0, len(os.fsencode(value)))
    del os.environ[name]
    return value


def write_private(path: Path, data: bytes) -> None:
    """Writes a new file with mode 0600, whatever the umask says.

    Raises:
        FileExistsError: there is one; nothing is ever overwritten.
        OSError: it cannot be written.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_private(path: Path, data: bytes) -> None:
    """Writes a file with mode 0600 in one step: a crash leaves the old one or the new one, never half of one.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_private(draft, data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
