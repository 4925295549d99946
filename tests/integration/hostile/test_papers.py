"""Certificates that are good and whose holder has no part here: ghosts, another's certificate, one that was revoked.

Real processes over gRPC. A ghost is the honest program with a certificate that the consortium's authority did sign, as an
authority in league with somebody would; no site's roster has it. Oracle: no key is released to it, no turn of its counts,
and the honest sites finish with one model. The control, a site that all rosters have, takes part by the same means.
``make hostile`` prints the table.
"""

import dataclasses
import json
from collections.abc import Iterator

import pytest
from cryptography import x509
from forker import Forker
from peer import Said
from rows import Row, Table
from runs import EVICTED, HANDOFF, UNTRUSTED, Case, Played, finished_well, play_all
from site_own import ANY_SIZE
from stage import Stage
from tls13 import shows

from suture.launch.kits.kit import Kit
from suture.launch.kits.revoke import revoke
from suture.runtime.consortium.credentials import Role
from suture.runtime.consortium.roster import Roster, fingerprint
from suture.runtime.errors import HandoffError
from suture.runtime.server.run_state import _sealed
from suture.runtime.state.checkpoint import Checkpoints
from suture.runtime.state.handoff import HandoffSeal
from suture.runtime.state.rollback_guard import RollbackGuard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECTION = "certificates"
FIRST, LAST = "aa_ghost", "zz_ghost"
"""Names that come before and after the honest ones: who comes first is asked to make the key."""
LIST = "revoked.pem"


def add_ghost(stage: Stage, name: str) -> None:
    """A kit for a site that no roster has but its own."""
    kit = Kit(folder=stage.folder / "kits" / name, role=Role.CLIENT, name=name, server=stage.address)
    kit.write()
    others = stage.authority.sites()
    stage.authority.issue(name, files=kit.certificates)
    own = fingerprint(x509.load_pem_x509_certificate(kit.certificates.cert.read_bytes()))
    Roster.create(kit.roster, others | {name: own})
    kit.policy.write_text(ANY_SIZE)
    stage.kits[name] = kit
    stage.environment |= {"HOSTILE_GHOST": str(kit.folder), "HOSTILE_GHOST_NAME": name}


def haunted(name: str, server: str = "") -> Case:
    sites = ("ward_a", "ward_b", name)
    return Case(
        change="",
        by=name,
        sites=sites,
        ghosts=(name,),
        server=server,
        prepare=lambda stage: add_ghost(stage, name),
    )


def take_back(stage: Stage, name: str, *known_to: str) -> None:
    """The authority takes a site's certificate back, and some have the list that says so."""
    certificate = x509.load_pem_x509_certificate(stage.certificates(name).cert.read_bytes())
    revoke(stage.authority, [certificate])
    for other in known_to:
        stage.kits[other].folder.joinpath(LIST).write_bytes((stage.authority.folder / LIST).read_bytes())


def in_mid_run(stage: Stage) -> None:
    stage.until(
        lambda: (
            stage.run.joinpath("turns.jsonl").exists()
            and "ward_c" in stage.run.joinpath("turns.jsonl").read_text()
        )
    )
    take_back(stage, "ward_c", "server")


def with_another_key(stage: Stage) -> None:
    """ward_a's certificate, shown by one that has ward_b's key; and by one that has its own: the control."""
    own = stage.certificates("ward_a")
    for name, key in (("stolen", stage.certificates("ward_b").key), ("its own", own.key)):
        TLS[name] = shows(stage.address, own.cert.read_bytes(), key.read_bytes())


TLS: dict[str, Said] = {}

CASES: dict[str, Case] = {
    "control: a site that all rosters have": Case(change="nothing", by="ward_c", meanwhile=with_another_key),
    "a ghost whose name comes first": haunted(FIRST),
    "a ghost whose name comes last": haunted(LAST),
    "a ghost that the server gives a turn": haunted(LAST, "gives a ghost turns"),
    "an epoch that a ghost has made, shown by the server": Case(
        change="shows a ghost's epoch",
        by="server",
        prepare=lambda stage: add_ghost(stage, LAST),
        abides=("server",),
    ),
    "a site that is revoked while it trains": Case(
        change="nothing", by="ward_c", options={"epochs": 20}, meanwhile=in_mid_run
    ),
    "a site that was revoked before it came": Case(
        change="",
        by="ward_c",
        serve=("--min-clients=2",),
        prepare=lambda stage: take_back(stage, "ward_c", "server"),
    ),
    "a revoked site, and the server keeps the list back": Case(
        change="", by="ward_c", prepare=lambda stage: take_back(stage, "ward_c", "ward_a", "ward_b")
    ),
}


@pytest.fixture(scope="module")
def played(warm: Forker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    """All runs, over."""
    return play_all(warm, tmp_path_factory.mktemp("papers"), CASES)


@pytest.fixture(scope="module", autouse=True)
def rows(played: dict[str, Played], table: Table) -> Iterator[None]:
    """One row a run, and one for each handshake."""
    for name, run in played.items():
        hostile = run.case.by
        said = run.last_line("ward_a" if hostile == "server" else hostile)
        by = (
            "server + authority"
            if hostile == "server"
            else hostile + (" + server" if run.case.server else "")
        )
        # A site with nothing changed says by its own end that it was answered.
        sent = run.was_sent or f"{hostile} " in run.stage.log("server")
        table.add(SECTION, Row(name, by, sent, said or "ended well", run.ends()))
    honest = played["control: a site that all rosters have"].ends()
    for name, said in TLS.items():
        what = (
            "ward_a's certificate and ward_b's key"
            if name == "stolen"
            else "control: ward_a's certificate and key"
        )
        table.add(
            SECTION, Row(what, "ward_b, TLS by hand", said.sent > 0, f"{said.kind}: {said.text}", honest)
        )
    yield


def keys(run: Played, name: str) -> list[bytes]:
    """The hand-off keys that a site has kept."""
    identity = json.loads((run.stage.run / "run.json").read_text())["run"]
    memory = RollbackGuard(run.stage.kits[name].folder / "state", name, identity)
    return [
        bytes.fromhex(key)
        for key in {**memory.recall_extra("keys", {}), **memory.recall_extra("made", {})}.values()
    ]


def opens(run: Played, key: bytes) -> bool:
    """Whether a key opens the hand-off with which the run ended."""
    found = Checkpoints(run.stage.run / "checkpoints").load_newest()
    assert found is not None
    handoff = _sealed(found[1]["handoff"])
    identity = json.loads((run.stage.run / "run.json").read_text())["run"]
    bare = dataclasses.replace(handoff, statement=None, epoch=0)
    try:
        HandoffSeal(key, identity).open(bare)
    except HandoffError:
        return False
    return True


def cannot_read(run: Played, name: str) -> None:
    """No key that a site has kept opens what the run ended with; the honest ones' do."""
    assert not [key for key in keys(run, name) if opens(run, key)]
    for honest in run.honest:
        assert [key for key in keys(run, honest) if opens(run, key)]


def test_the_control_takes_part(played: dict[str, Played]) -> None:
    """Oracle: one model at all three; its keys open the last hand-off."""
    run = played["control: a site that all rosters have"]
    finished_well(run, run.case.sites)
    assert "ward_c" in run.trained() and [key for key in keys(run, "ward_c") if opens(run, key)]


@pytest.mark.parametrize("attack", ["a ghost whose name comes first", "a ghost whose name comes last"])
def test_a_ghost_gets_no_key_and_no_turn(played: dict[str, Played], attack: str) -> None:
    """Oracle: its own end, the rosters that do not have it, what its keys open."""
    run = played[attack]
    assert run.codes[run.case.by] == EVICTED
    assert f"{run.case.by} was put out of this run" in run.stage.log("server")
    assert [name for name in run.honest if "not in this site's roster" in run.stage.log(name)]
    assert run.case.by not in run.trained()
    finished_well(run, run.honest, replayed=True)
    cannot_read(run, run.case.by)


def test_a_ghost_that_is_given_a_turn_opens_nothing(played: dict[str, Played]) -> None:
    """Oracle: the server sent it the turn; the ghost's own words; the others finish."""
    run = played["a ghost that the server gives a turn"]
    assert [line for line in run.stage.said("server") if line["came"] == "sent"]
    assert run.codes[LAST] == HANDOFF and "this site has no hand-off key of epoch 1" in run.last_line(LAST)
    finished_well(run, run.honest)
    cannot_read(run, LAST)


def test_an_epoch_of_a_ghosts_is_refused_by_every_site(played: dict[str, Played]) -> None:
    """Oracle: each one's words; nobody releases a key for it, and there is no model of that run."""
    run = played["an epoch that a ghost has made, shown by the server"]
    assert run.was_sent
    for name in run.case.sites:
        assert run.codes[name] == UNTRUSTED and f"{LAST} with fingerprint" in run.last_line(name)
        assert not run.stage.model(name).exists()
        assert len(set(keys(run, name))) == 1, "only the first epoch has a key"


def test_a_site_that_is_revoked_is_put_out_and_the_others_change_the_key(played: dict[str, Played]) -> None:
    """Oracle: its turns until then count; its key does not open what comes after; one model at the others."""
    run = played["a site that is revoked while it trains"]
    assert run.codes["ward_c"] == EVICTED and "was revoked" in run.last_line("ward_c")
    assert 1 <= run.trained().count("ward_c") < 20 and run.trained().count("ward_a") == 20
    assert [event["without"] for event in run.events("epoch")][-1] == ["ward_c"]
    finished_well(run, run.honest)
    cannot_read(run, "ward_c")


@pytest.mark.parametrize(
    "attack",
    ["a site that was revoked before it came", "a revoked site, and the server keeps the list back"],
)
def test_a_revoked_site_is_not_let_in(played: dict[str, Played], attack: str) -> None:
    """Oracle: refused by the server, or where that keeps the list back, by the sites that have it."""
    run = played[attack]
    assert run.codes["ward_c"] == EVICTED and "ward_c" not in run.trained()
    if "keeps" in attack:
        assert [name for name in run.honest if "certificate of ward_c was revoked" in run.stage.log(name)]
    else:
        assert "ward_c is not let in: its certificate was revoked" in run.last_line("ward_c")
    finished_well(run, run.honest)


def test_who_has_a_certificate_and_not_its_key_does_not_get_through_the_handshake(
    played: dict[str, Played],
) -> None:
    """Oracle: TLS at the server; the control, by the same hand with the right key, is answered in HTTP/2."""
    assert TLS["its own"].kind == "answer" and TLS["stolen"].kind == "closed"
    assert TLS["stolen"].sent == TLS["its own"].sent or abs(TLS["stolen"].sent - TLS["its own"].sent) < 4
