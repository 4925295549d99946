"""The wall that the operating system puts up: Linux Landlock takes a process's right to files away, for good.

Whatever a peer might make a process do, closed before the network starts the sandbox leaves it Python's files to read
and its own folder to write; and, between hospitals, one port to connect to or to listen on.

It holds for the calling thread and for the threads and processes that it starts from then on, **not** for threads that
are older (`other_threads` names them). Files that are open stay open (`still_reaches` finds them). What Landlock does
not cover: names and sizes (stat), permissions and times (chmod, utime), UDP, connections to named UNIX sockets; of
TCP it knows ports and no addresses.

The three system calls are made here by ctypes: the package ``landlock`` on PyPI is an alpha that knows no scopes and
takes an old errno for a new error.

References: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import site
import stat
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

from suture.runtime.errors import ConfigError

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_ASK_VERSION, _PATH_BENEATH, _NET_PORT, _SET_NO_NEW_PRIVILEGES = 1, 1, 2, 38
_BIND_TCP, _CONNECT_TCP = 1, 2  # LANDLOCK_ACCESS_NET_*, from version 4 on


class _Right(IntFlag):
    """LANDLOCK_ACCESS_FS_*, in the kernel's order."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # link or rename into another folder, from version 2 on; before that always refused
    TRUNCATE = 1 << 14  # from version 3 on
    IOCTL_DEV = 1 << 15  # from version 5 on


_ON_FILES = _Right.EXECUTE | _Right.WRITE_FILE | _Right.READ_FILE | _Right.TRUNCATE | _Right.IOCTL_DEV
# Nowhere EXECUTE: a closed process starts no program. A shared library is mapped, which needs READ_FILE only.
_READ = _Right.READ_FILE | _Right.READ_DIR
_WRITE = (
    _READ
    | _Right.WRITE_FILE
    | _Right.TRUNCATE
    | _Right.MAKE_REG
    | _Right.MAKE_DIR
    | _Right.REMOVE_FILE
    | _Right.REMOVE_DIR
    | _Right.REFER
)
# No link is made unless asked for: one that leads elsewhere is refused inside, but not to who follows it outside.
_LINK = _Right.MAKE_SYM
_DEVICE = _Right.READ_FILE | _Right.WRITE_FILE | _Right.IOCTL_DEV

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_SYSTEM = (
    *(f"/etc/{name}" for name in ("ld.so.cache", "localtime", "passwd", "group", "nsswitch.conf")),
    *(f"/etc/{name}" for name in ("hosts", "host.conf", "resolv.conf", "gai.conf", "services", "protocols")),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node"),
    *("/dev/zero", "/dev/random", "/dev/urandom"),
)

_closed = False


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),  # from version 4 on
        ("scoped", ctypes.c_uint64),  # from version 6 on
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _NetPort(ctypes.Structure):
    _fields_ = (("allowed_access", ctypes.c_uint64), ("port", ctypes.c_uint64))


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The TCP ports that stay: all others are neither connected to nor listened on.

    Attributes:
        connect: may be connected to, wherever they are.
        listen: may be listened on.
    """

    connect: tuple[int, ...] = ()
    listen: tuple[int, ...] = ()


def version() -> int:
    """Landlock's version in this kernel, 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        return _call(_CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError:
        return 0


def missing() -> str | None:
    """Why there can be no sandbox here; None where there can."""
    if version() > 0:
        return None
    if not sys.platform.startswith("linux"):
        return f"Landlock is Linux's, this is {sys.platform}"
    return (
        f"kernel {os.uname().release} offers no Landlock (Linux 5.13 or newer, with 'landlock' in its list of "
        "security modules; a container may forbid the call)"
    )


def is_closed() -> bool:
    """Whether this process has closed its sandbox."""
    return _closed


def close(
    *,
    read: Iterable[Path] = (),
    write: Iterable[Path] = (),
    links: Iterable[Path] = (),
    ports: Ports | None = None,
) -> None:
    """Closes the sandbox: from here on nothing but Python's own files and what is named is reached.

    Cannot be undone. Also forbids signals to processes outside and, on a kernel that knows scopes (6.12), abstract
    UNIX sockets.

    Args:
        read: files and folders that stay readable, beside `python_files`.
        write: folders that stay readable and writable; they must exist.
        links: folders, writable too, in which symbolic links may be made.
        ports: the ports that stay; None for all. A kernel before 6.7 (version 4) knows no ports, and all stay.

    Raises:
        ConfigError: no Landlock, or a folder to write is missing; nothing was closed.
    """
    global _closed
    if (reason := missing()) is not None:
        raise ConfigError(f"the sandbox cannot be closed: {reason}; use --sandbox off")
    known = _known_rights(version())
    network = _BIND_TCP | _CONNECT_TCP if ports is not None and version() >= 4 else 0
    rules = _Ruleset(known, network, 0b11 if version() >= 6 else 0)
    fd = _call(_CREATE_RULESET, ctypes.byref(rules), _size(version()), 0)
    try:
        for path in (*python_files(), *read):
            _allow(fd, path, _READ & known, optional=True)
        for path in (Path("/dev/null"), *Path("/dev").glob("nvidia*")):
            _allow(fd, path, _DEVICE & known, optional=True)
        for path in write:
            _allow(fd, path, _WRITE & known)
        for path in links:
            _allow(fd, path, (_WRITE | _LINK) & known)
        if network and ports is not None:
            rights = [(port, _CONNECT_TCP) for port in ports.connect]
            for port, right in [*rights, *((port, _BIND_TCP) for port in ports.listen)]:
                _call(_ADD_RULE, fd, _NET_PORT, ctypes.byref(_NetPort(right, port)), 0)
        _prctl(_SET_NO_NEW_PRIVILEGES)
        _call(_RESTRICT_SELF, fd, 0)
    finally:
        os.close(fd)
    _closed = True


def python_files() -> Iterator[Path]:
    """What Python and torch read while they run: interpreter, packages, shared libraries, a little of the system.

    A package that is imported is among them wherever it lies; the folder that it lies in is not, and neither is the
    current one.
    """
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}:
        yield from (Path(prefix) / "lib", Path(prefix) / "lib64")
    yield from (Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    yield from map(Path, site.getsitepackages())
    if site.ENABLE_USER_SITE:
        yield Path(site.getusersitepackages())
    own = __name__.partition(".")[0]
    for name, module in list(sys.modules.items()):
        if not getattr(module, "__file__", None):
            continue
        if (
            name == own
        ):  # in a checkout its __path__ holds the repository, too: its packages stand for themselves
            yield Path(str(module.__file__)).parent
        elif "." not in name.removeprefix(f"{own}."):
            yield from map(Path, getattr(module, "__path__", ()))
    yield from map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    yield from map(Path, (*_LIBRARIES, *_SYSTEM))


def other_threads() -> list[str]:
    """Names of this process's threads but for the calling one: those that closing would leave outside."""
    own = str(threading.get_native_id())
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != own]
    return sorted((task / "comm").read_text(encoding="utf-8").strip() for task in tasks)


def still_reaches(path: Path) -> str | None:
    """How this process still gets at a file or folder and what lies in it; None where it does not.

    Looks at whether it opens, and at every file that is open or mapped.
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        return "it opens"
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            return f"opening it says {error.strerror}, not that it is forbidden"
    place = path.resolve()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            held = entry.readlink()
        except OSError:
            continue  # the listing's own
        if held.is_relative_to(place):
            return "one of its files is open"
    if any(f" {place}" in line for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()):
        return "one of its files is mapped"
    return None


def _allow(ruleset: int, path: Path, rights: _Right, *, optional: bool = False) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if optional:
            return
        raise ConfigError(
            f"the sandbox cannot leave {path} open: {error.strerror}; make the folder, or use --sandbox off"
        ) from None
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _ON_FILES
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(_PathBeneath(rights, fd)), 0)
    finally:
        os.close(fd)


def _known_rights(abi: int) -> _Right:
    known = ~_Right(0)
    for since, right in ((2, _Right.REFER), (3, _Right.TRUNCATE), (5, _Right.IOCTL_DEV)):
        if abi < since:
            known &= ~right
    return known


def _size(abi: int) -> int:
    """A kernel takes no structure with fields that it does not know."""
    return 8 * (1 + (abi >= 4) + (abi >= 6))


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    plain = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    result: int = libc.syscall(ctypes.c_long(number), *plain)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _prctl(option: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(n) for n in (1, 0, 0, 0))) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
