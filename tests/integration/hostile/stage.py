"""A server and sites as people start them, or forked from a warm process, for hostile ones to come to."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from forker import Forker, Order
from site_own import ANY_SIZE

from suture.launch import build
from suture.launch.kits.authority import Authority
from suture.launch.kits.kit import Certificates
from suture.launch.kits.provision import Project, provision
from suture.launch.options.options import SITES_OWN, AskedOptions

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = {
    "model": "resnet18",
    "image_size": 32,
    "train_images": 8,
    "validation_images": 0,
    "test_images": 2,
    "batch_size": 4,
    "threads": 1,
    "lease": 6,
}
TINY = {
    "data": "chest-phantom",
    "model": "unet",
    "width": 4,
    "image_size": 32,
    "train_images": 6,
    "validation_images": 0,
    "test_images": 2,
    "batch_size": 3,
    "epochs": 2,
    "threads": 1,
    "lease": 20,
}
"""A net of a few kilobytes, for runs of which there are many."""
SITES = ("ward_a", "ward_b", "ward_c")


class Stage:
    """The processes, their logs, and what a member must agree on.

    Args:
        folder: empty; everything goes there.
        sites: who has a kit, and stands in everybody's roster.
        warm: from which members are forked; None to start each as a command.
        options: of the run, beside `OPTIONS`, or `TINY` where members are forked.
    """

    def __init__(
        self, folder: Path, sites: Sequence[str] = SITES, warm: Forker | None = None, **options: object
    ) -> None:
        self.folder, self.run, self._warm = folder, folder / "run", warm
        folder.mkdir(exist_ok=True)
        self.options = (OPTIONS if warm is None else TINY) | options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.kits = provision(Project(address=self.address, sites=tuple(sites)), folder / "kits")
        for name in sites:
            self.kits[name].policy.write_text(ANY_SIZE)
        self.authority = Authority.load(folder / "kits" / "authority")
        self.processes: dict[str, subprocess.Popen[bytes] | int] = {}
        self.environment: dict[str, str] = {}

    def serve(self, clients: int, *more: str, change: str = "") -> None:
        """Starts the server and waits until it listens."""
        self._start("server", ["serve", f"--clients={clients}", f"--run-dir={self.run}", *more], change)
        self.until(lambda: "listening on" in self.log("server"))

    def join(self, name: str, *more: str, change: str = "") -> None:
        """Starts a site."""
        self._start(name, ["join", f"--run-dir={self.folder / name}", *more], change)

    def certificates(self, name: str) -> Certificates:
        """Those of a kit."""
        return self.kits[name].certificates

    def agreement(self) -> dict[str, str]:
        """What a member says that it was started with."""
        options = AskedOptions(**self.options, clients=1).resolved()
        return options.site_agreement(build.build_site_images(options, "ward_a").source.classes)

    def log(self, name: str) -> str:
        """What a process has printed."""
        file = self.folder / f"{name}.log"
        return file.read_text() if file.exists() else ""

    def said(self, name: str) -> list[dict[str, Any]]:
        """What a hostile process has told of its attacks; see `traitor.tell`."""
        lines = [line.partition("HOSTILE ")[2] for line in self.log(name).splitlines()]
        return [json.loads(line) for line in lines if line]

    def turns(self) -> list[dict[str, Any]]:
        """The turns that counted."""
        return [json.loads(line) for line in (self.run / "turns.jsonl").read_text().splitlines()]

    def model(self, name: str) -> Path:
        """Where a site keeps the model that it ends with."""
        return self.folder / name / "clients" / name / "model.pt"

    def until(self, true: Callable[[], object], timeout: float = 120) -> None:
        """Waits; shows all logs where it does not come true."""
        deadline = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < deadline, "".join(
                f"--- {n} ({self.code(n)})\n{self.log(n)[-3000:]}" for n in self.processes
            )
            time.sleep(0.02)

    def code(self, name: str) -> int | None:
        """The exit code of a process that has ended."""
        process = self.processes[name]
        if isinstance(process, subprocess.Popen):
            return process.poll()
        file = self.folder / f"{name}.log.code"
        return int(file.read_text()) if file.exists() else None

    def ended(self, name: str, timeout: float = 120) -> int:
        """The exit code of a process that ends by itself."""
        self.until(lambda: self.code(name) is not None, timeout)
        code = self.code(name)
        assert code is not None
        return code

    def all_ended(self, timeout: float = 120) -> dict[str, int]:
        """Everybody's exit code."""
        return {name: self.ended(name, timeout) for name in self.processes}

    def memory(self, name: str) -> int:
        """Resident bytes of a process that was started as a command."""
        process = self.processes[name]
        assert isinstance(process, subprocess.Popen)
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def stop(self) -> None:
        """Leaves no process behind."""
        for process in self.processes.values():
            if isinstance(process, subprocess.Popen):
                process.kill()
                process.wait()
            else:
                _end_session(process)

    def _start(self, name: str, command: list[str], change: str) -> None:
        chosen = self.options.items() if command[0] == "serve" else _own(self.options).items()
        given = [f"--{option.replace('_', '-')}={value}" for option, value in chosen]
        arguments = [command[0], str(self.kits[name].folder), *given, *command[1:]]
        environment = {"CI": "true", "XDG_STATE_HOME": str(self.folder / "state" / name)} | self.environment
        log = self.folder / f"{name}.log"
        if self._warm is not None:
            order = Order(arguments=arguments, log=str(log), change=change, environment=environment)
            self.processes[name] = self._warm.start(order)
            return
        assert not change
        with log.open("ab") as file:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "suture", *arguments],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=file,
                stderr=file,
            )


def _own(options: dict[str, object]) -> dict[str, object]:
    """What a site says itself; the rest it is told."""
    return {name: value for name, value in options.items() if name in (*SITES_OWN, "threads", "lease")}


def _end_session(leader: int) -> None:
    """Kills a forked member, which is not our child, and waits until it is gone."""
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader:
                left.append(process)
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    psutil.wait_procs(left, timeout=10)
