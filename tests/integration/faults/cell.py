"""One run of a server and two sites to which something happens, and the judgement of it."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from hosts import Hosts
from plant import NUM_ROUNDS, Events, Fault
from warm import Stage

SITES = ("ward_a", "ward_b")
STRUCK = SITES[1]  # the second: when its first turn comes there is a hand-off to fetch
OPTIONS = {
    "data": "chest-phantom",
    "model": "unet",
    "width": 4,
    "image_size": 32,
    "train_images": 6,
    "validation_images": 2,
    "test_images": 2,
    "batch_size": 3,
    "epochs": NUM_ROUNDS,
    "exchange": "fused",
    "threads": 1,
}
TOKEN = "token-" + "22" * 32
BEYOND_LEASE = 1.5
DEADLINE = 150.0


class Failed(Exception):
    """A promise was broken; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What happens to the run.

    Attributes:
        faults: in the order in which they strike.
        act: what the harness does where a fault asks: "cut" pulls out the cable of the member for longer than the
            lease, "both" kills server and struck client; else it is a function.
        lease: seconds; long where nobody may have to wait for it.
        schedule: of the server.
    """

    faults: tuple[Fault, ...]
    act: str | Callable[[], None] = ""
    lease: float = 30.0
    schedule: str = "round-robin"

    @property
    def lasts(self) -> bool:
        """Whether the fault is over after a while, and the process still there."""
        return self.act == "cut" or any(fault.kind == "stop" for fault in self.faults)


class Play:
    """One run, from start to judgement.

    Args:
        stage: starts its members.
        case: what happens.
        folder: empty; everything goes there.
        hosts: a host for each member, None for one host.
    """

    def __init__(self, stage: Stage, case: Case, folder: Path, hosts: Hosts | None = None) -> None:
        self.case = case
        self.run = folder / "run"
        self.key = folder / "key"
        self._stage, self._folder, self._hosts = stage, folder, hosts
        self._events = Events(folder / "events")
        self._supervisors: dict[str, int] = {}
        self.key.write_text("11" * 32)
        self._address = f"{Hosts.first}:29500" if hosts else f"127.0.0.1:{_free_port()}"

    def play(self) -> float:
        """Plays the run to its end.

        Returns:
            Seconds until training went on; see `seconds_until_training_went_on`.

        Raises:
            Failed: somebody hung, or did not end well.
        """
        self.start()
        self.finish()
        return self.seconds_until_training_went_on()

    def finish(self) -> None:
        """Waits until everybody has ended, and ends those who do not.

        Raises:
            Failed: as `play`.
        """
        deadline = time.monotonic() + DEADLINE
        try:
            while not self.codes().keys() >= {"server", *SITES}:
                if time.monotonic() > deadline:
                    hang = sorted({"server", *SITES} - self.codes().keys())
                    raise Failed(f"{hang} have not ended; exit codes of the others: {self.codes()}")
                if any(self.codes().values()):
                    deadline = min(deadline, time.monotonic() + 30)
                self._act()
                time.sleep(0.02)
        finally:
            self.kill()
        if any(self.codes().values()):
            raise Failed(f"exit codes {self.codes()}")

    def start(self, *, faults: bool = True) -> None:
        """Starts everybody who does not run."""
        options = [f"--lease={self.case.lease:g}"]
        options += [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
        members = {
            "server": [f"--listen={self._address}", f"--clients={len(SITES)}", f"--run-dir={self.run}"]
            + [f"--schedule={self.case.schedule}"],
            **{
                name: [self._address, f"--name={name}", f"--handoff-key={self.key}", "--patience=60"]
                + [f"--run-dir={self._folder / name}"]
                for name in SITES
            },
        }
        for who, own in members.items():
            Path(f"{self._log(who)}.code").unlink(missing_ok=True)
            self._supervisors[who] = self._stage.start(
                who=who,
                arguments=["serve" if who == "server" else "join", *own, *options],
                log=str(self._log(who)),
                host=self._hosts.namespace(who) if self._hosts else "",
                faults=[asdict(fault) for fault in self.case.faults] if faults else [],
                events=str(self._folder / "events"),
                environment={
                    "CI": "true",
                    "SUTURE_TOKEN": TOKEN,
                    "XDG_STATE_HOME": str(self._folder / "state" / who),
                },
            )

    def codes(self) -> dict[str, int]:
        """The exit codes of those who have ended."""
        files = {who: Path(f"{self._log(who)}.code") for who in ("server", *SITES)}
        return {who: int(file.read_text()) for who, file in files.items() if file.exists()}

    def printed(self, who: str) -> str:
        """What a member and its supervisor printed."""
        return self._log(who).read_text() if self._log(who).exists() else ""

    def kill(self) -> None:
        """Leaves no process behind."""
        pids = {event["pid"] for event in self._events.all() if event["what"] == "started"}
        _end(pids | set(self._supervisors.values()))

    # What the harness does to it -----------------------------------------------------------------

    def _act(self) -> None:
        """Does what a fault asks for, and ends it after a while."""
        events = self._events.all()
        for fault in self.case.faults:
            struck = _event(events, "struck", fault)
            if struck is None:
                continue
            if fault.kind == "ask" and _event(events, "done", fault) is None:
                self._do(fault, events)
            lasts = fault.kind == "stop" or self.case.act == "cut"
            if not lasts or _event(events, "restored", fault) is not None:
                continue
            over = time.time() - struck["time"] > self.case.lease + BEYOND_LEASE
            if over and (fault.who == "server" or self._went_on(events) is not None):
                if fault.kind == "stop":
                    os.kill(struck["pid"], signal.SIGCONT)
                else:
                    assert self._hosts is not None
                    self._hosts.cable(fault.who, "up")
                self._events.say("restored", fault=fault.name)

    def _do(self, fault: Fault, events: list[dict[str, Any]]) -> None:
        if self.case.act == "cut":
            assert self._hosts is not None
            self._hosts.cable(fault.who, "down")
        elif callable(self.case.act):
            self.case.act()
        else:
            for who in ("server", STRUCK):
                pid = [e["pid"] for e in events if e["what"] == "started" and e["who"] == who][-1]
                os.kill(pid, signal.SIGKILL)
        self._events.say("done", fault=fault.name)

    # Judgement -----------------------------------------------------------------------------------

    def seconds_until_training_went_on(self) -> float:
        """From the last fault to the next batch of anybody; where the server was away for a while, from its return.

        Raises:
            Failed: there was no such batch.
        """
        events = self._events.all()
        found = self._went_on(events)
        if found is None:
            raise Failed("a fault did not strike, or training did not go on after it")
        fault = self.case.faults[-1]
        returned = _event(events, "restored", fault) if fault.who == "server" else None
        struck = returned or _event(events, "struck", fault)
        assert struck is not None
        return found["time"] - struck["time"]

    def _went_on(self, events: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The first batch after the last fault that no call of the struck process had under way."""
        fault = self.case.faults[-1]
        is_server = fault.who == "server"
        since = _event(events, "restored" if is_server and self.case.lasts else "struck", fault)
        if since is None:
            return None
        fresh = set(SITES) if is_server else set(SITES) - {fault.who}
        for event in events[events.index(since) + 1 :]:
            if event["what"] == "started":
                fresh.add(event["who"])
            if event["what"] == "batch" and event["client"] in fresh:
                return event
        return None

    def judge(self, digests: dict[str, str]) -> None:
        """Compares the run with the one in which the same turns counted and nothing happened.

        Args:
            digests: those that are known already, by the list of turns.

        Raises:
            Failed: a promise was broken.
        """
        for fault in self.case.faults:
            if _event(self._events.all(), "struck", fault) is None:
                raise Failed(f"{fault.name} did not strike")
        turns = [json.loads(line) for line in (self.run / "turns.jsonl").read_text().splitlines()]
        groups = [(turn["round"], turn["client"].split("+")) for turn in turns if turn["kind"] == "train"]
        trained = [(round, client) for round, group in groups for client in group]
        if sorted(client for round, client in trained if round == NUM_ROUNDS) != sorted(SITES):
            raise Failed(f"not everybody is back in the last round: {trained}")
        if len(set(trained)) != len(trained):
            raise Failed(f"a turn counted twice: {trained}")
        digest = json.loads((self.run / "summary.json").read_text())["weights_sha256"]
        same = f"{self.case.schedule}: {groups}"
        expected = digests[same] = digests.get(same) or self._replay()
        if digest != expected:
            raise Failed(f"weights {digest[:12]}, but {expected[:12]} where the same turns counted")

    def rolled_back(self) -> list[str]:
        """Whose turns were rolled back by a server that lived on."""
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        return [line["client"] for line in lines if line.get("event") == "rolled_back"]

    def _replay(self) -> str:
        arguments = [json.dumps(OPTIONS), str(self.key), str(self.run / "turns.jsonl"), *SITES]
        log = self._log("replay")
        pid = self._stage.start(who="replay", arguments=arguments, log=str(log))
        ended = Path(f"{log}.code")
        deadline = time.monotonic() + 60
        while not ended.exists():
            if time.monotonic() > deadline:
                raise Failed(f"the replay hangs: {log}")
            time.sleep(0.02)
        _end([pid])
        if ended.read_text() != "0":
            raise Failed(f"the replay failed: {log.read_text()[-2000:]}")
        return log.read_text().split()[-1]

    def _log(self, who: str) -> Path:
        return self._folder / f"{who}.log"


def _end(pids: Iterable[int]) -> None:
    """Kills these processes and waits until they are gone; they are not our children."""
    left = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(pid))
            left[-1].kill()
    psutil.wait_procs(left, timeout=10)


def _event(events: list[dict[str, Any]], what: str, fault: Fault) -> dict[str, Any] | None:
    return next((e for e in events if e["what"] == what and e["fault"] == fault.name), None)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
