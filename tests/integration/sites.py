"""Sites for tests: `suture serve` and `suture join` as people start them, with their logs, and runs to compare with."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

from launch import build
from launch.config import RunOptions
from runtime import endpoints
from runtime.entry import write_token
from runtime.exchange import LocalExchange
from runtime.handoff import read_key
from runtime.members import Members
from runtime.observers import NoRecorder
from runtime.session import Member, NoKeepsakes, run_local
from runtime.tracking import read_events

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


class Sites:
    """One server and its sites, each started by itself; ``inside`` is put before every command (ip netns exec ...)."""

    def __init__(self, folder: Path, key: Path, host: str = "127.0.0.1", **options: object) -> None:
        self.folder, self.run, self.key, self.token = folder, folder / "run", key, folder / "token"
        write_token(self.token)
        self.options = OPTIONS | options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"{host}:{free.getsockname()[1]}"
        self.processes: dict[str, subprocess.Popen] = {}

    def serve(self, *more: str, inside: Sequence[str] = ()) -> None:
        self._start("server", ["serve", "--listen", self.address, "--run-dir", str(self.run), *more], inside)

    def join(self, name: str, *more: str, inside: Sequence[str] = ()) -> None:
        own = ["--name", name, "--handoff-key", str(self.key), "--run-dir", str(self.folder / name)]
        self._start(name, ["join", self.address, *own, *more], inside)

    def _start(self, name: str, command: list[str], inside: Sequence[str]) -> None:
        given = ["--token-file", str(self.token)]
        given += [f"--{option.replace('_', '-')}={value}" for option, value in self.options.items()]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*inside, sys.executable, "-m", "launch", command[0], *given, *command[1:]],
                cwd=ROOT,
                env=os.environ | {"CI": "true", "XDG_STATE_HOME": str(self.folder / "state" / name)},
                stdout=log,
                stderr=log,
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def until(self, true: Callable[[], object], timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not true():
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

    def member(self, name: str) -> psutil.Process:
        """The process that does a site's work, in a session of its own under its supervisor."""
        below = psutil.Process(self.processes[name].pid).children(recursive=True)
        return next(child for child in below if os.getsid(child.pid) == child.pid)

    def ended(self, name: str, timeout: float = 120) -> int:
        try:
            return self.processes[name].wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError("".join(self.log(n)[-2000:] for n in self.processes)) from None

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            process.wait(20)

    def digest_in_one_process(self, names: Sequence[str], schedule: str, folder: Path) -> str:
        """weights_sha256 of the same sites' run in this process, with nobody disturbing it."""
        torch.set_num_threads(1)
        options = RunOptions(**self.options, clients=len(names), schedule=schedule).resolved()
        key = read_key(self.key)
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
            members=Members(len(names), agreement),
        )
        coordinator.begin(False, lambda step: NoRecorder())
        endpoints.open_run(coordinator)
        clients = [
            build.build_client(options, own, name, key, device, None)
            for own, name in zip(data, names, strict=True)
        ]
        run_local(
            [Member(client, LocalExchange(coordinator), NoKeepsakes()) for client in clients], agreement
        )
        endpoints.close_run()
        return coordinator.weights_sha256()
