"""A network namespace of its own for `suture train`, so that no one else on this machine reaches its ranks' ports.

Whoever reaches a rank's port can have torch compute there, and read its memory (docs/security.md). On loopback that
is every user of the machine. In a namespace of their own the ranks have a loopback of their own, on which they are
alone. An ordinary user may make one where the system allows user namespaces.

Kept free of imports that start threads or take long: it must happen while the process has one thread, before the fork
server begins. Reference: namespaces(7), user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ISOLATED = "SUTURE_ISOLATED"
"""In the environment once it was tried: empty where it worked, else why it did not."""
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1


def said(words: Sequence[str], option: str, otherwise: str) -> str:
    """What a command line, its configuration file or the run that it resumes says of an option, else ``otherwise``."""
    value = _value(words, f"--{option}")
    if value:
        return value
    files = [_value(words, "--config")]
    if "--resume" in words:
        files.append(str(Path(_value(words, "--run-dir"), "config.toml")))
    for file in files:
        try:
            values = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # no such file: whoever reads the options says so
        if option in values:
            return str(values[option])
    return otherwise


def _value(words: Sequence[str], option: str) -> str:
    for number, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and number + 1 < len(words):
            return words[number + 1]
    return ""


def isolate(interface: str = "lo") -> None:
    """Moves this process, and all that it starts, into a network namespace of its own, if that works.

    It is tried in a child first: a system may allow half of it, and there is no way back.

    Args:
        interface: what the ranks are to use; one of the machine's own does not exist in a new namespace.
    """
    why_not = _in_a_child() if interface == "lo" else f"--interface {interface} is the machine's own"
    if not why_not:
        _enter()
    os.environ[ISOLATED] = why_not


def why_not_isolated() -> str | None:
    """Why this process has no namespace of its own; empty where it has one, None where that was not tried."""
    return os.environ.get(ISOLATED)


def _in_a_child() -> str:
    if not sys.platform.startswith("linux"):
        return f"network namespaces are Linux's, this is {sys.platform}"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _enter()
        except OSError as error:
            os.write(writer, f"{error.strerror or error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as said:
        why_not = said.read()
    os.waitpid(child, 0)
    return why_not


def _enter() -> None:
    """Makes the namespace: directly where that is allowed, else within a user namespace, in which this user stays who
    it is.

    Raises:
        OSError: the system does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        _unshare(_NEW_NETWORK)
    except PermissionError:
        # In a user namespace root would lose its rights over the files of others, images among them.
        if user == 0:
            raise
        _unshare(_NEW_USER | _NEW_NETWORK)
        Path("/proc/self/setgroups").write_text("deny", encoding="utf-8")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="utf-8")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="utf-8")
    _bring_up("lo")


def _unshare(what: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(what) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _bring_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        asked = struct.pack("16sh", interface.encode(), 0)
        (flags,) = struct.unpack("16xh", fcntl.ioctl(control, _GET_FLAGS, asked))
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sh", interface.encode(), flags | _UP))
