"""Sites for tests: `suture serve` and `suture join` as people start them, with their logs, and runs to compare with.

A member that a signal or an error has ended is started again, as systemd with Restart=on-failure does (docs/deploy).
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import forked
import psutil
import torch
from site_own import ANY_SIZE, FINAL, initial_secret, own_of

from suture.launch import build
from suture.launch.kits.provision import Project, provision
from suture.launch.options.options import AskedOptions
from suture.runtime.exchange import LocalExchange
from suture.runtime.one_process import run_local
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.records.observers import NoRecorder
from suture.runtime.records.tracking import read_events, read_metrics
from suture.runtime.server.membership import Membership

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "model": "resnet18",
    "image_size": 32,
    "train_images": 8,
    "validation_images": 2,
    "test_images": 2,
    "batch_size": 4,
    "threads": 1,
}
TURNS, METRICS = "turns.jsonl", "metrics.jsonl"
PAUSE = 0.25
"""Seconds until it is started again."""


class Sites:
    """One server and its sites, each started by itself; ``inside`` is put before every command (ip netns exec ...)."""

    NAMES = ("ward_a", "ward_b", "ward_c")
    """Who has a kit, and stands in everybody's roster, whether it joins or not."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", **options: object) -> None:
        self.folder, self.run = folder, folder / "run"
        self.options = OPTIONS | options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"{host}:{free.getsockname()[1]}"
        self.kits = provision(Project(address=self.address, sites=self.NAMES), folder / "kits")
        for name in self.NAMES:
            self.kits[name].policy.write_text(ANY_SIZE)
        self.processes: dict[str, subprocess.Popen] = {}
        self._commands: dict[str, list[str]] = {}
        self._ended_at: dict[str, float] = {}

    def serve(self, *more: str, inside: Sequence[str] = ()) -> None:
        own = [str(self.kits["server"].folder), "--run-dir", str(self.run)]
        self._start("server", ["serve", *own, *more], inside)

    def join(self, name: str, *more: str, inside: Sequence[str] = (), at: str = "") -> None:
        """Joins the server, or whoever passes bytes on to it ``at`` another address."""
        own = [str(self.kits[name].folder), f"--run-dir={self.folder / name}"]
        self._start(name, ["join", *own, *([f"--server={at}"] if at else []), *more], inside)

    def ask(self, command: str, name: str, *more: str) -> tuple[int, str]:
        """`suture leave` or `suture pause` at a site: its code, and all that it said."""
        typed = [sys.executable, "-m", "suture", command, str(self.kits[name].folder), *more]
        done = forked.run(
            typed, cwd=ROOT, env=os.environ | {"CI": "true"}, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    def _start(self, name: str, command: list[str], inside: Sequence[str]) -> None:
        given = [f"--{option.replace('_', '-')}={value}" for option, value in self.options.items()]
        self._commands[name] = [
            *inside, sys.executable, "-m", "suture", command[0], *given, *command[1:]
        ]  # fmt: skip
        self._run(name)

    def go_on(self, name: str, command: list[str]) -> None:
        """Starts a member that was stopped with another command than it had."""
        self._commands[name] = command
        self._run(name)

    def _run(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = forked.Popen(
                self._commands[name],
                cwd=ROOT,
                env=os.environ | {"CI": "true", "XDG_STATE_HOME": str(self.folder / "state" / name)},
                stdout=log,
                stderr=log,
            )

    def _start_again(self) -> None:
        """Starts whoever was ended by what is no person's mistake."""
        for name, process in self.processes.items():
            code = process.poll()
            if code is None or code in FINAL:
                continue
            ended_at = self._ended_at.setdefault(name, time.monotonic())
            if time.monotonic() - ended_at < PAUSE:
                continue
            del self._ended_at[name]
            how = signal.Signals(-code).name if code < 0 else f"code {code}"
            with (self.folder / f"{name}.log").open("a") as log:
                log.write(f"test: it ended with {how}; starting it again\n")
            self._run(name)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def until(self, true: Callable[[], object], timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not true():
            self._start_again()
            logs = "".join(f"--- {name}\n{self.log(name)[-2000:]}" for name in self.processes)
            assert time.monotonic() < deadline, logs
            time.sleep(0.02)

    def says(self, name: str, text: str) -> Callable[[], bool]:
        return lambda: text in self.log(name)

    def events(self, name: str, client: str) -> int:
        """How often the server wrote this event about this client."""
        if not (self.run / METRICS).exists():
            return 0
        return sum(e["event"] == name and e.get("client") == client for e in read_events(self.run / METRICS))

    def turns(self) -> int:
        return len((self.run / TURNS).read_text().splitlines()) if (self.run / TURNS).exists() else 0

    def steps(self, client: str) -> int:
        """Training steps of a client so far."""
        if not (self.run / METRICS).exists():
            return 0
        return sum(
            line["phase"] == "train" and line["client"] == client for line in read_metrics(self.run / METRICS)
        )

    def member(self, name: str) -> psutil.Process:
        """The process that is a member now."""
        return psutil.Process(self.processes[name].pid)

    def ended(self, name: str, timeout: float = 120) -> int:
        """The code with which a member ended for good."""
        self.until(lambda: self.processes[name].poll() in FINAL, timeout)
        return self.processes[name].returncode

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            process.wait(20)

    def digest_in_one_process(self, names: Sequence[str], schedule: str, folder: Path) -> str:
        """weights_sha256 of the same sites' run in this process, with nobody disturbing it."""
        torch.set_num_threads(1)
        chosen = {name: value for name, value in self.options.items() if name != "line_timeout"}
        options = AskedOptions(**chosen, clients=len(names), schedule=schedule).resolved()
        data = [build.build_data(options, build.build_site_images(options, name), 0) for name in names]
        agreement = options.site_agreement(data[0].classes)
        num_classes, device = len(data[0].classes), torch.device("cpu")
        folder.mkdir()
        coordinator = build.build_coordinator(
            options,
            build.build_server(options, num_classes, device),
            run="compared",
            run_dir=folder,
            num_classes=num_classes,
            membership=Membership(len(names), agreement),
        )
        coordinator.begin(False, lambda step: NoRecorder())
        initial = initial_secret(self.folder / "kits", self.run)
        clients = [
            build.build_client(
                options, own, name, initial, device, None, own_of(self.folder / "kits", self.run, name)
            )
            for own, name in zip(data, names, strict=True)
        ]
        run_local(
            [Participant(client, LocalExchange(coordinator), NoClientObserver()) for client in clients],
            agreement,
        )
        return coordinator.weights_sha256()
