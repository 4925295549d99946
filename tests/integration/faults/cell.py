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
from site_own import ANY_SIZE
from warm import Stage

from suture.launch.kits.authority import Authority
from suture.launch.kits.provision import Project, provision
from suture.launch.kits.revoke import of_name, revoke
from suture.runtime.errors import CheckpointError, EvictedError

SITES = ("ward_a", "ward_b")
REVOKED = "ward_c"
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
LINE_TIMEOUT = 3.0
BEYOND = 1.5
DEADLINE = 150.0
MARGIN = 10.0
"""Seconds, on a machine that others use, too: restarts and a batch on top of what is promised."""


class Failed(Exception):
    """A promise was broken; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What happens to the run.

    Attributes:
        faults: in the order in which they strike.
        act: what the harness does where a fault asks: "cut" pulls out the cable of the member for longer than the
            line timeout, "client" kills the struck client and "both" the server, too; "server" kills the server
            while a member is frozen; "revoke" has the authority take a third site's certificate back. Else it is a
            function.
        lease: seconds; long where nobody may have to wait for it.
        schedule: of the server.
        grace: seconds that a server which was started again waits for the second site.
        goes_on: whether there is training left to go on with.
    """

    faults: tuple[Fault, ...]
    act: str | Callable[[], None] = ""
    lease: float = 30.0
    schedule: str = "round-robin"
    grace: float = 60.0
    goes_on: bool = True

    def lasts(self, fault: Fault) -> float:
        """Seconds after which a fault is over and the process still there; 0 where it is not."""
        if fault.kind == "ask" and self.act == "cut":
            return LINE_TIMEOUT + BEYOND
        return self.lease + BEYOND if fault.kind == "stop" else 0.0

    @property
    def promised(self) -> float:
        """Seconds in which others are promised to go on, but for restarts and the batch itself."""
        if self.act == "server":
            return self.grace
        if any(fault.kind == "stop" for fault in self.faults):
            return self.lease
        return LINE_TIMEOUT if self.act == "cut" else 1.0


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
        self._stage, self._folder, self._hosts = stage, folder, hosts
        self._events = Events(folder / "events")
        self._keepers: dict[str, int] = {}
        self._asked: set[str] = set()
        self._sites = (*SITES, REVOKED) if case.act == "revoke" else SITES
        address = f"{Hosts.first}:29500" if hosts else f"127.0.0.1:{_free_port()}"
        self._kits = provision(Project(address=address, sites=self._sites), folder / "kits")
        for name in self._sites:
            self._kits[name].policy.write_text(ANY_SIZE)

    def play(self) -> float:
        """Plays the run to its end.

        Returns:
            Seconds until training went on; see `seconds_until_training_went_on`.

        Raises:
            Failed: somebody hung, or did not end well.
        """
        try:
            self.start()
            self.until(lambda: self.codes().keys() >= {"server", *SITES})
        finally:
            self.kill()
        return self.seconds_until_training_went_on() if self.case.goes_on else 0.0

    def until(self, true: Callable[[], bool]) -> None:
        """Does what faults ask for until something is ``true``.

        Raises:
            Failed: it does not come true, or somebody has ended for good and not well.
        """
        deadline = time.monotonic() + DEADLINE
        while not true():
            if any(code for who, code in self.codes().items() if who != REVOKED):
                raise Failed(f"exit codes {self.codes()}")
            if time.monotonic() > deadline:
                raise Failed(f"it hangs; exit codes so far: {self.codes()}, ended so far: {self.ends()}")
            self._act()
            time.sleep(0.02)

    def start(self) -> None:
        """Starts everybody."""
        options = [f"--lease={self.case.lease:g}", f"--line-timeout={LINE_TIMEOUT:g}"]
        options += [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
        options += ["--test-every-round"]  # for the faults that strike while test images are scored
        members = {
            "server": [f"--clients={len(self._sites)}", f"--run-dir={self.run}"]
            + [f"--schedule={self.case.schedule}", f"--grace={self.case.grace:g}"],
            **{name: ["--patience=60", f"--run-dir={self._folder / name}"] for name in self._sites},
        }
        for who, own in members.items():
            self._keepers[who] = self._stage.start(
                who=who,
                arguments=[
                    "serve" if who == "server" else "join",
                    str(self._kits[who].folder),
                    *own,
                    *options,
                ],
                log=str(self._log(who)),
                host=self._hosts.namespace(who) if self._hosts else "",
                faults=[asdict(fault) for fault in self.case.faults],
                events=str(self._folder / "events"),
                environment={"CI": "true", "XDG_STATE_HOME": str(self._folder / "state" / who)},
            )

    def codes(self) -> dict[str, int]:
        """The exit codes of those who have ended."""
        files = {who: Path(f"{self._log(who)}.code") for who in ("server", *self._sites)}
        return {who: int(file.read_text()) for who, file in files.items() if file.exists()}

    def printed(self, who: str) -> str:
        """What a member printed."""
        return self._log(who).read_text() if self._log(who).exists() else ""

    def kill(self) -> None:
        """Leaves no process behind."""
        _end(self._keepers.values())

    def ends(self) -> list[tuple[str, int]]:
        """Who ended, and how: exit codes, or minus the number of a signal; in order, those started again, too."""
        return [(event["who"], event["code"]) for event in self._events.all() if event["what"] == "ended"]

    # What the harness does to it -----------------------------------------------------------------

    def _act(self) -> None:
        """Does what a fault asks for, and ends it after a while."""
        events = self._events.all()
        for fault in self.case.faults:
            struck = _event(events, "struck", fault)
            if struck is None:
                continue
            asks = fault.kind == "ask" or self.case.act == "server"
            if asks and fault.name not in self._asked:
                self._asked.add(fault.name)
                self._do(fault, events)
            lasts = self.case.lasts(fault)
            if not lasts or _event(events, "restored", fault) is not None:
                continue
            over = time.time() - struck["time"] > lasts
            others = fault.who == "server" or not self.case.goes_on or self._went_on(events) is not None
            if over and others:
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
        elif self.case.act == "revoke":
            self._revoke()
        elif callable(self.case.act):
            self.case.act()
        else:
            for who in self._killed_by_us():
                pid = [e["pid"] for e in events if e["what"] == "started" and e["who"] == who][-1]
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)  # the end of its connection is noticed before whoever asked goes on
        self._events.say("done", fault=fault.name)

    def _revoke(self) -> None:
        """The authority takes the third site's certificate back; the server is given its list, and has read it."""
        authority = Authority.load(self._folder / "kits" / "authority")
        revoke(authority, of_name(authority, REVOKED))
        draft = self._kits["server"].folder / ".list"
        draft.write_bytes((authority.folder / "revoked.pem").read_bytes())
        draft.rename(self._kits["server"].revoked)
        deadline = time.monotonic() + DEADLINE
        while "of revoked certificates" not in self.printed("server"):
            if time.monotonic() > deadline:
                raise Failed("the server does not read the list of revoked certificates")
            time.sleep(0.02)

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
        seconds = float(found["time"] - struck["time"])
        if seconds > self.case.promised + MARGIN:
            raise Failed(f"{seconds:.1f} s until training went on, promised are {self.case.promised:g}")
        return seconds

    def _went_on(self, events: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The first batch after the last fault that no call of the struck process had under way."""
        fault = self.case.faults[-1]
        is_server = fault.who == "server"
        since = _event(events, "restored" if is_server and self.case.lasts(fault) else "struck", fault)
        if since is None:
            return None
        fresh = set(SITES) if is_server or fault.who == "anybody" else set(SITES) - {fault.who}
        for event in events[events.index(since) + 1 :]:
            if event["what"] == "in":
                fresh.add(event["who"])
            if event["what"] == "batch" and event["client"] in fresh:
                return event
        return None

    def judge(self) -> None:
        """Compares the run with the one in which the same turns counted and nothing happened.

        Raises:
            Failed: a promise was broken.
        """
        for fault in self.case.faults:
            if _event(self._events.all(), "struck", fault) is None:
                raise Failed(f"{fault.name} did not strike")
        self._judge_ends()
        self._judge_returns()
        turns = [json.loads(line) for line in (self.run / "turns.jsonl").read_text().splitlines()]
        groups = [(turn["round"], turn["client"].split("+")) for turn in turns if turn["kind"] == "train"]
        trained = [(round, client) for round, group in groups for client in group]
        if sorted(client for round, client in trained if round == NUM_ROUNDS) != sorted(SITES):
            raise Failed(f"not everybody is back in the last round: {trained}")
        if len(set(trained)) != len(trained):
            raise Failed(f"a turn counted twice: {trained}")
        digest = json.loads((self.run / "summary.json").read_text())["weights_sha256"]
        expected = self._replay()  # every run has secrets of its own
        if digest != expected:
            raise Failed(f"weights {digest[:12]}, but {expected[:12]} where the same turns counted")

    def _judge_ends(self) -> None:
        """Whoever was not killed reconnects in the same process, and nobody shows a defect.

        Raises:
            Failed: somebody ended by itself, or printed a traceback.
        """
        killed = [fault.who for fault in self.case.faults if fault.kind == "kill"] + self._killed_by_us()
        expected = {0, CheckpointError.exit_code} if callable(self.case.act) else {0}
        ended = [(who, code) for who, code in self.ends() if code not in expected and who != REVOKED]
        if REVOKED in self._sites and (REVOKED, EvictedError.exit_code) not in self.ends():
            raise Failed(f"{REVOKED} was revoked, and ended otherwise: {self.ends()}")
        same = [("anybody" if "anybody" in killed and code < 0 else who, code) for who, code in ended]
        if sorted(same) != sorted((who, -signal.SIGKILL) for who in killed):
            raise Failed(f"{killed} were killed, and these ended: {ended}")
        for who in ("server", *SITES):
            if "Traceback" in self.printed(who) or "never retrieved" in self.printed(who):
                raise Failed(f"{who} shows a defect")

    def _judge_returns(self) -> None:
        """A site is in again soon after it was started, or was thawed, or has its cable back.

        Raises:
            Failed: it took longer.
        """
        events = self._events.all()
        names = {fault.name: fault.who for fault in self.case.faults}
        for number, event in enumerate(events):
            who = names.get(event["fault"]) if event["what"] == "restored" else event.get("who")
            if event["what"] not in ("started", "restored") or who not in SITES:
                continue
            if event["what"] == "restored" and (who, 0) in self.ends():
                continue  # it had what it needed
            later = [e for e in events[number + 1 :] if e.get("who") == who and e["what"] in ("in", "ended")]
            if not later or later[0]["time"] - event["time"] > self.case.promised + MARGIN:
                raise Failed(f"{who} is not back {self.case.promised + MARGIN:g} s after: {event}")

    def _killed_by_us(self) -> list[str]:
        act = str(self.case.act)
        return {"both": ["server", STRUCK], "server": ["server"], "client": [STRUCK]}.get(act, [])

    def _replay(self) -> str:
        arguments = [json.dumps(OPTIONS), str(self._folder / "kits"), str(self.run), *self._sites]
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


def _end(keepers: Iterable[int]) -> None:
    """Kills these processes and whatever is in their sessions, and waits until all are gone; they are not our children."""
    keepers = set(keepers)
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if process.pid in keepers or os.getsid(process.pid) in keepers:
                left.append(process)
    for keeper in keepers:  # at once: a keeper starts again who is killed before it is
        with suppress(ProcessLookupError):
            os.killpg(keeper, signal.SIGKILL)
    psutil.wait_procs(left, timeout=10)


def _event(events: list[dict[str, Any]], what: str, fault: Fault) -> dict[str, Any] | None:
    return next((e for e in events if e["what"] == what and e["fault"] == fault.name), None)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
