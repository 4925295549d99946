"""Hosts joined by cables that can be pulled out: network namespaces on one switch."""

import os
import shutil
import subprocess
from collections.abc import Sequence

_SUBNET = "10.98.7"


def why_not() -> str:
    """Why there can be no such hosts here, empty where there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2"
    probe = f"suture_probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return "" if made else "the system makes no network namespaces"


class Hosts:
    """A host for each of ``names``; the first has the address ``first``."""

    first = f"{_SUBNET}.1"

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._switch = f"switch{os.getpid()}"
        try:
            self._build()
        except BaseException:
            self.remove()
            raise

    def _build(self) -> None:
        _ip(f"netns add {self._switch}")
        _ip(f"-n {self._switch} link add switch type bridge")
        _ip(f"-n {self._switch} link set switch up")
        for number, name in enumerate(self._names):
            host, port = self.namespace(name), f"p{number}"
            _ip(f"netns add {host}")
            _ip(f"link add site0 netns {host} type veth peer name {port} netns {self._switch}")
            _ip(f"-n {self._switch} link set {port} master switch up")
            _ip(f"-n {host} addr add {_SUBNET}.{number + 1}/24 dev site0")
            for link in ("site0", "lo"):
                _ip(f"-n {host} link set {link} up")

    def namespace(self, name: str) -> str:
        """The network namespace of a host."""
        return f"{name}{os.getpid()}"

    def cable(self, name: str, state: str) -> None:
        """Pulls a host's cable out ("down") or puts it in again ("up")."""
        _ip(f"-n {self._switch} link set p{self._names.index(name)} {state}")

    def remove(self) -> None:
        """Takes all hosts away."""
        for host in [self._switch, *map(self.namespace, self._names)]:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


def _ip(command: str) -> None:
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {command}: {done.stderr.strip()}")
