"""Hospitals with kits of their own, which play a tiny run in one process through a board that passes on what they state."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from cryptography import x509
from tiny import SGD, build_client, build_coordinator, build_server

from suture.launch.kits.authority import Authority
from suture.runtime.client.client import Client
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.consortium.credentials import Role
from suture.runtime.consortium.identity import Identity, Trust
from suture.runtime.consortium.roster import Roster, fingerprint
from suture.runtime.consortium.site import SiteConsortium
from suture.runtime.errors import SutureError
from suture.runtime.exchange import LocalExchange
from suture.runtime.exchange.turnstile import side_by_side
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.coordinator import Coordinator
from suture.runtime.server.membership import OpenMembership
from suture.runtime.session import end, join, take_turn
from suture.runtime.wire.messages import SealedHandoff, unwrap

NAMES = ("ward_a", "ward_b", "ward_c")


class Revoked:
    """A list of names that do not count any more, as the authority's list says it of certificates."""

    pem = b"list"

    def __init__(self) -> None:
        self.serials: set[int] = set()

    def revoked(self, certificate: x509.Certificate) -> bool:
        return certificate.serial_number in self.serials

    def says(self, signed_list: bytes, certificate: x509.Certificate) -> bool:
        return bool(signed_list) and self.revoked(certificate)

    def take(self, signed_list: bytes) -> None: ...


@dataclass
class Wards:
    """A consortium: its authority, and what each site needs to take part.

    Args:
        folder: for certificates, rosters and what sites keep.
        names: of the sites.
    """

    folder: Path
    names: tuple[str, ...]
    ghosts: tuple[str, ...] = ()
    revoked: Revoked = field(default_factory=Revoked)

    def __post_init__(self) -> None:
        self.authority = Authority(self.folder / "consortium")
        kits = {name: self.authority.issue(name) for name in (*self.names, *self.ghosts)}
        self.credentials = {name: kit.read(Role.CLIENT) for name, kit in kits.items()}
        listed = {name: fingerprint(self.certificate(name)) for name in self.names}
        for name in kits:
            Roster.create(self.folder / f"{name}.toml", listed | {name: fingerprint(self.certificate(name))})

    def certificate(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.credentials[name].certificate)

    def identity(self, name: str) -> Identity:
        return Identity.of(self.credentials[name])

    def trust(self, name: str = "") -> Trust:
        roster = Roster(self.folder / f"{name}.toml") if name else None
        return Trust(self.authority.ca.read_bytes(), roster, self.revoked)

    def consortium(self, name: str, shared: bytes | None = None) -> SiteConsortium:
        return SiteConsortium(self.identity(name), self.trust(name), shared)

    def coordinator(self, run_dir: Path, clients: int, **more: Any) -> Coordinator:
        more = {"rounds": 2, "door": OpenMembership(least=clients, grace=60.0)} | more
        return build_coordinator(
            run_dir, build_server(), clients, board=ServerBoard(self.trust(), "run"), **more
        )

    def client(self, name: str, shared: bytes | None = None, **more: Any) -> Client:
        """A tiny client that signs; the index of its images follows from its place among the names."""
        more = {"memory": self.folder / f"state-{name}", "optimizer": SGD} | more
        index = (*self.names, *self.ghosts).index(name)
        return build_client(index, name=name, consortium=self.consortium(name, shared), **more)


class Play:
    """A run of some wards; `until` plays turns as they come."""

    def __init__(self, coordinator: Coordinator, clients: list[Client]) -> None:
        self.coordinator = coordinator
        self.membership = [
            Participant(client, LocalExchange(coordinator), NoClientObserver()) for client in clients
        ]
        self.turns: list[Turn] = []
        self.errors: dict[str, SutureError] = {}
        self._waiting: dict[str, Any] = {}
        self.ended: list[str] = []
        for member in self.membership:
            join(member, {})

    def ask(self, member: Participant) -> None:
        self._waiting[member.client.name] = (member, member.exchange.ask_turn())

    def until(self, true: Callable[[Turn], bool] = lambda turn: False) -> Turn | None:
        """Plays until ``true`` of the turn that comes next, which is returned and not played; else to the end."""
        for member in self.membership:
            if member.client.name not in (*self._waiting, *self.errors, *self.ended):
                self.ask(member)
        ending: list[Callable[[], None]] = []
        while granted := [item for item in self._waiting.values() if item[1].done()]:
            playing = []
            for member, future in granted:
                name = member.client.name
                del self._waiting[name]
                try:
                    turn = unwrap(future.value())
                except SutureError as error:
                    self.errors[name] = error
                    continue
                self.turns.append(turn)
                if true(turn):
                    return turn
                if turn.kind is TurnKind.END:
                    self.ended.append(name)
                    ending.append(partial(self._end, member, turn))
                else:
                    playing.append(partial(self._take, member, turn))
            side_by_side(playing)
        # Each waits for the others' farewell.
        threads = [Thread(target=say) for say in ending]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        return None

    def _take(self, member: Participant, turn: Turn) -> None:
        try:
            take_turn(member, turn)
            self.ask(member)
        except SutureError as error:
            self.errors[member.client.name] = error

    def _end(self, member: Participant, turn: Turn) -> None:
        try:
            end(member, turn)
            member.exchange.leave()
        except SutureError as error:
            self.errors[member.client.name] = error

    def kinds(self, kind: TurnKind) -> list[str]:
        return [turn.client for turn in self.turns if turn.kind is kind]


def trains(name: str, number: int = 0) -> Any:
    """Says of a turn whether it is that site's training turn, not before that number."""
    return lambda turn: turn.kind is TurnKind.TRAIN and turn.client == name and turn.number >= number


def replay(wards: Wards, folder: Path, names: tuple[str, ...]) -> str:
    """The digest of the run that these have by themselves."""
    others = Wards(folder, wards.names)
    coordinator = others.coordinator(folder / "run", len(names))
    play = Play(coordinator, [others.client(name) for name in names])
    assert play.until() is None and not play.errors
    return coordinator.weights_sha256()


def sealing(client: Client, change: Callable[[dict[str, Any]], None], at: int = 1) -> Client:
    """A client that changes what it seals from its ``at``th training turn on, and signs it all the same."""
    state, seen = client.state, []

    def changed() -> dict[str, Any]:
        taken = copy.deepcopy(state())
        if len(seen) >= at:
            change(taken)
        return taken

    def seal(turn: Turn) -> SealedHandoff:
        seen.append(turn)
        if not turn.together:
            return client._seal.seal(changed(), turn.number, client._newest)
        share = {"state": changed(), "num_images": client.model.num_trained}
        return client._seal.seal(share, turn.number, client._newest, sharer=client.name)

    client.seal = seal
    return client


def _moments(state: dict[str, Any]) -> dict[str, Any]:
    return next(iter(state["optimizer"]["state"].values()))


def _drop(state: dict[str, Any]) -> None:
    del state["parts"]["bottom"]["conv.bias"]


BAD: dict[str, Callable[[dict[str, Any]], None]] = {
    "a weight that is not a number": lambda s: s["parts"]["bottom"]["conv.weight"].fill_(float("nan")),
    "an infinite moment": lambda s: _moments(s)["momentum_buffer"].fill_(float("inf")),
    "another shape": lambda s: s["parts"]["bottom"].update({"conv.weight": torch.zeros(3, 1, 3, 3)}),
    "another type": lambda s: s["parts"]["bottom"].update({"conv.bias": torch.zeros(2, dtype=torch.float64)}),
    "a name too few": _drop,
    "a name too many": lambda s: s["parts"].update({"head": {}}),
    "a number for a tensor": lambda s: s["parts"]["bottom"].update({"conv.bias": 1.0}),
    "a moment of no parameter": lambda s: s["optimizer"]["state"].update({7: _moments(s)}),
    "moments of another kind": lambda s: s["optimizer"]["state"].update({0: {"step": torch.zeros(())}}),
    "a state of a defence that there is none of": lambda s: s.update({"defence": {"x": torch.zeros(1)}}),
    "nothing": lambda s: s.clear(),
}
