"""A hostile server against honest sites: `suture serve` with one thing changed, in a process of its own (`false_server`).

Real processes over gRPC. Oracle: the site that is lied to stops with one sentence that says what the server did, no author
of a hand-off is accused for it, nothing of its images leaves it beyond what its policy allows, and no code is run. A
control by the same means, with nothing changed, ends well. What a hostile server can always do is to stop a run.
``make hostile`` prints the table.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from false_server import TERMS, VICTIM
from forker import Forker
from rows import Row, Table
from runs import CONFIG, HANDOFF, POLICY, UNTRUSTED, Case, Played, finished_well, play_all
from site_own import ANY_SIZE
from stage import Stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECTION = "a hostile server"
TWO_REPEATS = ANY_SIZE.replace("repeats = 50", "repeats = 2")


def strict(stage: Stage) -> None:
    stage.kits[VICTIM].policy.write_text(TWO_REPEATS)


@dataclass(frozen=True, kw_only=True)
class Lie(Case):
    """A run whose server lies to one site.

    Attributes:
        code: with which the one that is lied to ends.
        words: of its error.
    """

    code: int = HANDOFF
    words: str = ""
    by: str = "server"
    join: tuple[str, ...] = ("--patience=5",)


LIES: dict[str, Lie] = {
    "one bit of a ciphertext altered": Lie(
        change="alters a ciphertext",
        words="the server offered a hand-off of turn 1 that is not what its author signed: the server",
    ),
    "an old hand-off offered": Lie(
        change="offers an old hand-off",
        words="the server offered the hand-off of turn 1, but this client has seen",
    ),
    "a share of a mean dropped": Lie(
        change="drops a share",
        serve=("--schedule=parallel",),
        words="the mean of turn 1 leaves this site's share out, which the server had taken",
    ),
    "its own farewell kept from a site": Lie(
        change="withholds the own head",
        words="the server does not pass on what this site signed at its farewell",
    ),
    "a new key asked for without reason": Lie(
        change="asks for a key", code=UNTRUSTED, words="asks for a new hand-off key, and nobody was put out"
    ),
    "a verdict asked for, and nobody is accused": Lie(
        change="asks for a verdict", code=UNTRUSTED, words="asks for a verdict, and nobody is accused"
    ),
    "a turn of a round that there is none of": Lie(
        change="goes beyond the rounds", code=POLICY, words="policy epochs: the server asks for round 99 of 2"
    ),
    "the same pass again and again": Lie(
        change="asks again and again",
        code=POLICY,
        words="policy repeats: the server asks for round 1 (train) again, 4 times in all, at most 3 are allowed",
        prepare=strict,
    ),
}
"""What one site is lied to about; the others finish without it."""

FORKS: dict[str, Case] = {
    "two histories": Case(change="forks", by="server", join=("--patience=5",)),
    "two histories, and farewells kept apart": Case(
        change="forks and keeps apart", by="server", join=("--patience=5",)
    ),
}
CONTROL = {"control: nothing changed": Case(change="nothing", by="server")}

NET = """from pathlib import Path
Path({marker!r}).touch()
from torch import nn
def net(num_outputs):
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, num_outputs, 1))
"""
"""A net of the server's, in a file that the site has on its disk; whoever imports it leaves a mark."""


def policies() -> dict[str, tuple[str, str]]:
    """By what a site is told, its policy and words of its refusal; in the policies {code} and {digest} are the net's."""
    own_net = 'nets = ["unet", "module:{code}:net"]\nearliest_cut = {{unet = 2, "module:{code}:net" = 1}}\n'
    noise = "[defences]\nnoise = 1.0\n"
    return {
        "cut": ("", "policy earliest_cut: unet may be cut at 2 or later, got 1"),
        "net": (
            'nets = ["unet"]\nearliest_cut = {{unet = 2}}\n',
            "policy nets: 'resnet18' is not among unet",
        ),
        "code": ("", "is code of one's own that is not listed"),
        "digest": (own_net + f'own_code = ["{"00" * 32}"]\n', "policy own_code: module:"),
        "listed": (own_net + 'own_code = ["{digest}"]\n', ""),
        "weaker": (noise, "policy defences: noise: scale"),
        "undefended": (noise, "policy defences: noise (scale 1 or higher) must be on, got none"),
        "unknown": ("", "policy: the server set 'steal_images', an option that suture"),
        "mine": ("", "policy: the server set sandbox, which is for this site alone to say"),
        "elsewhere": ("", "policy: the server set data, which is for this site alone to say"),
        "rounds": ("", "policy epochs: must lie in 1..200, got 1e+06"),
        "huge": ("", "policy image_size: must lie in 8..512, got 1e+09"),
        "control": ("", ""),
    }


def tell_terms(stage: Stage) -> None:
    """Each site's policy, and the net's file, which all of them can read."""
    for name, (policy, _) in policies().items():
        code, marker = stage.folder / f"{name}_net.py", stage.folder / f"{name}.imported"
        code.write_text(NET.format(marker=str(marker)))
        digest = hashlib.sha256(code.read_bytes()).hexdigest()
        stage.kits[name].policy.write_text(ANY_SIZE + policy.format(code=code.stem, digest=digest))
    stage.environment |= {"HOSTILE_CODE": "SITE_net", "PYTHONPATH": str(stage.folder)}


OFFERS = {
    "terms": Case(
        change="tells false terms",
        by="server",
        sites=tuple(TERMS),
        serve=("--min-clients=1",),
        prepare=tell_terms,
        join=("--patience=5",),
    )
}


@pytest.fixture(scope="module")
def played(warm: Forker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    """All runs, over."""
    return play_all(warm, tmp_path_factory.mktemp("servers"), {**LIES, **FORKS, **CONTROL, **OFFERS})


@pytest.fixture(scope="module", autouse=True)
def rows(played: dict[str, Played], table: Table) -> Iterator[None]:
    """One row a run, and for terms one a site."""
    for name, run in played.items():
        if name in OFFERS:
            continue
        came = run.last_line(VICTIM) or missed(run, VICTIM) or "ended well"
        table.add(SECTION, Row(name, "server", run.was_sent, came, run.ends()))
    offered = played["terms"]
    told = {line["attack"]: line for line in offered.said()}
    for name in TERMS:
        sent = told.get(f"terms: {name}")
        what = ", ".join(f"{key} = {value}"[-40:] for key, value in (sent or {}).get("terms", {}).items())
        came = offered.last_line(name) or "ended well"
        honest = f"it: {offered.codes.get(name)}, {left(offered, name)} messages left it"
        table.add(SECTION, Row(f"terms: {name}: {what}", "server", sent is not None, came, honest))
    yield


def missed(run: Played, name: str) -> str:
    """The warning of a site that is told too little at the end."""
    lines = [line for line in run.stage.log(name).splitlines() if "nothing says what it ends with" in line]
    return lines[-1].partition(f"{name}: ")[2] if lines else ""


def left(run: Played, name: str) -> int:
    """Messages that left a site for a run, by its own log of them."""
    file = run.stage.folder / name / "clients" / name / "left.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def passes(run: Played, name: str) -> list[dict[str, Any]]:
    """The first batch of each pass over a site's training images, by its own log of what left it."""
    file = run.stage.folder / name / "clients" / name / "left.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train" and line.get("batch") == 0]


@pytest.mark.parametrize("attack", LIES)
def test_who_is_lied_to_stops_and_says_what_the_server_did(played: dict[str, Played], attack: str) -> None:
    """Oracle: its exit code and words; no site is accused or put out; the others finish with one model."""
    run, lie = played[attack], LIES[attack]
    assert run.was_sent
    assert run.codes[VICTIM] == lie.code and lie.words in run.last_line(VICTIM)
    assert not run.stage.model(VICTIM).exists()
    for name in ("server", *run.case.sites):
        assert " accuses " not in run.stage.log(name) and "put out of this run" not in run.stage.log(name)
    finished_well(run, [name for name in run.case.sites if name != VICTIM])


def test_no_pass_goes_beyond_what_the_policy_allows(played: dict[str, Played]) -> None:
    """Oracle: the site's own log of what left it: three passes for one round, where two repeats are allowed; none of
    round 99.
    """
    again = played["the same pass again and again"]
    assert len([line for line in again.said() if line["attack"] == "the same pass again and again"]) == 3
    assert [line["round"] for line in passes(again, VICTIM)] == [1, 1, 1]
    beyond = played["a turn of a round that there is none of"]
    assert [line["round"] for line in passes(beyond, VICTIM)] == [1]


def test_two_histories_are_found_at_the_farewell(played: dict[str, Played]) -> None:
    """Oracle: the one of three that was shown another history keeps no model; the two others are told who it was."""
    run = played["two histories"]
    assert run.was_sent and run.codes["ward_c"] == HANDOFF and not run.stage.model("ward_c").exists()
    assert (
        "the server has shown them different histories, or they lie; keep no model of this run"
        in run.last_line("ward_c")
    )
    for name in ("ward_a", "ward_b"):
        assert run.codes[name] == 0 and run.stage.model(name).exists()
        assert "ward_c ends with the hand-off of turn" in run.stage.log(name)
        assert "the fewer were shown another history by the server, or lie" in run.stage.log(name)


def test_where_farewells_are_kept_apart_each_site_is_told_whose_word_is_missing(
    played: dict[str, Played],
) -> None:
    """Oracle: each side's warning names the other side; what they are to compare by telephone differs."""
    run = played["two histories, and farewells kept apart"]
    assert run.was_sent
    for name, absent in (("ward_a", "ward_c"), ("ward_b", "ward_c"), ("ward_c", "ward_a")):
        assert missed(run, name).startswith(absent)
    assert missed(run, "ward_a")[-16:] == missed(run, "ward_b")[-16:] != missed(run, "ward_c")[-16:]


def test_the_control_ends_well(played: dict[str, Played]) -> None:
    """Oracle: the model of the turns that counted."""
    run = played["control: nothing changed"]
    finished_well(run, run.case.sites, replayed=True)
    assert len(passes(run, VICTIM)) == 2 and not missed(run, VICTIM)


@pytest.mark.parametrize("name", [name for name, (_, words) in policies().items() if words])
def test_terms_that_a_policy_forbids_end_in_a_refusal_and_nothing_leaves_the_site(
    played: dict[str, Played], name: str
) -> None:
    """Oracle: the server really told them; the site's exit code and words; its own log of what left it."""
    run, words = played["terms"], policies()[name][1]
    assert [line for line in run.said() if line["attack"] == f"terms: {name}" and line["terms"]]
    assert run.codes[name] == POLICY and words in run.last_line(name)
    assert left(run, name) == 0 and f"{name} joined" not in run.stage.log("server")


def test_no_code_of_the_servers_is_run(played: dict[str, Played]) -> None:
    """Oracle: the mark that the file leaves when it is imported. The control: where policy and digest list it, it is."""
    run = played["terms"]
    marks = {name for name in TERMS if (run.stage.folder / f"{name}.imported").exists()}
    assert marks == {"listed"}
    assert run.codes["listed"] == CONFIG, "the net is for another task than the run's"


def test_honest_terms_by_the_same_means_are_taken(played: dict[str, Played]) -> None:
    """The control. Oracle: a whole run."""
    run = played["terms"]
    finished_well(run, ["control"])
    assert len(passes(run, "control")) == 2
