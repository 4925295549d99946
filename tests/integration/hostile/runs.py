"""Runs with one hostile member, played several at a time, and what is looked at afterwards."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from forker import Forker
from replayed import replay
from stage import SITES, Stage

AT_ONCE = 3
"""Runs that are played at the same time: each waits for its own members most of the time."""
PATIENCE = 100
"""Seconds until a run that goes on counts as one that hangs."""
EVICTED, UNTRUSTED, HANDOFF, WIRE, POLICY, STOPPED, CONFIG = 18, 16, 5, 4, 15, 9, 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run.

    Attributes:
        change: what the hostile member does otherwise.
        by: who it is; "server" or a site's name.
        sites: who takes part.
        serve: more of the server's command line.
        server: what the server does otherwise, where a site is in league with it.
        options: of the run, beside `stage.TINY`.
        join: more of every site's command line.
        prepare: what is done to the stage before it is played.
        meanwhile: what is done while it is played.
        abides: members that do not end by themselves, and are ended when all others have.
        ghosts: of the sites, those that no roster has: ``prepare`` makes their kits.
    """

    change: str
    by: str = "ward_b"
    sites: Sequence[str] = SITES
    serve: Sequence[str] = ()
    server: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    join: Sequence[str] = ("--patience=20",)
    prepare: Callable[[Stage], None] = lambda stage: None
    meanwhile: Callable[[Stage], None] = lambda stage: None
    abides: Sequence[str] = ()
    ghosts: Sequence[str] = ()


@dataclass(frozen=True)
class Played:
    """A run that is over.

    Attributes:
        case: what it was.
        stage: its folders and logs.
        codes: everybody's exit code; of those that were ended from outside, none.
    """

    case: Case
    stage: Stage
    codes: dict[str, int]

    def said(self, name: str = "") -> list[dict[str, Any]]:
        """What the hostile member told of its attacks."""
        return self.stage.said(name or self.case.by)

    @property
    def was_sent(self) -> bool:
        """Whether the attack left the hostile member, and the other side answered."""
        return any(line["came"] == "sent" or line.get("answered") for line in self.said())

    @property
    def honest(self) -> list[str]:
        """The sites that changed nothing."""
        return [name for name in self.case.sites if name != self.case.by]

    def last_line(self, name: str) -> str:
        """With what a command ended, where that was an error."""
        lines = [line for line in self.stage.log(name).splitlines() if line.startswith("suture: ")]
        return lines[-1].removeprefix("suture: ") if lines else ""

    def ends(self) -> str:
        """How it ended for the honest sites, in a few words."""
        ends = {name: self.codes.get(name) for name in self.honest}
        kept = [name for name in self.honest if self.stage.model(name).exists()]
        if not any(ends.values()):
            return f"{', '.join(ends)}: 0, {'one model' if len(kept) == len(ends) else 'NO MODEL'}"
        return ", ".join(f"{name}: {code}" for name, code in ends.items())

    def trained(self) -> list[str]:
        """Who has a training turn that counted."""
        return [
            name
            for turn in self.stage.turns()
            if turn["kind"] == "train"
            for name in turn["client"].split("+")
        ]

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the server wrote down of that kind."""
        lines = (self.stage.run / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line.get("event") == name]


def play_all(warm: Forker, folder: Path, cases: Mapping[str, Case]) -> dict[str, Played]:
    """Plays the runs, several at a time."""
    places = {name: folder / f"{number:02}" for number, name in enumerate(cases)}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        coming = {name: pool.submit(play, warm, places[name], case) for name, case in cases.items()}
        return {name: one.result() for name, one in coming.items()}


def play(warm: Forker, folder: Path, case: Case) -> Played:
    """Plays one run to its end."""
    known = [name for name in case.sites if name not in case.ghosts]
    stage = Stage(folder, sites=known, warm=warm, **case.options)
    try:
        case.prepare(stage)
        change = case.change if case.by == "server" else case.server
        stage.serve(len(case.sites), "--grace=1", *case.serve, change=change)
        for name in case.sites:
            stage.join(name, *case.join, change=case.change if name == case.by else "")
        case.meanwhile(stage)
        left = [name for name in stage.processes if name not in case.abides]
        with suppress(AssertionError):  # who hangs has no exit code: its own test fails, and not all of them
            stage.until(lambda: all(stage.code(name) is not None for name in left), PATIENCE)
        return Played(case, stage, {name: code for name in left if (code := stage.code(name)) is not None})
    finally:
        stage.stop()


def finished_well(played: Played, names: Sequence[str], replayed: bool = False) -> None:
    """The honest sites ended with code 0, no defect, and one model, which is the server's.

    Args:
        played: the run.
        names: the sites.
        replayed: whether the model must be that of the run in which only the turns that counted were played.
    """
    stage = played.stage
    assert {name: played.codes[name] for name in (*names, "server")} == dict.fromkeys((*names, "server"), 0)
    assert not [name for name in (*names, "server") if "Traceback" in stage.log(name)]
    models = [torch.load(stage.model(name), weights_only=True)["last"] for name in names]
    digests = {model["weights_sha256"] for model in models}
    summary = json.loads((stage.run / "summary.json").read_text())
    assert digests == {summary["weights_sha256"]}
    parts = models[0]["parts"].values()
    assert all(torch.isfinite(t).all() for part in parts for t in part.values() if t.is_floating_point())
    if replayed:
        took_part = sorted(set(played.trained()))
        kits = str(stage.folder / "kits")
        assert digests == {replay(json.dumps(dict(stage.options)), kits, str(stage.run), *took_part)}
