"""A hostile site: `suture join` with one thing changed, so that it joins, takes turns and signs as an honest one does.

    python traitor.py CHANGE join KIT [OPTIONS]

Each change of `CHANGES` is one attack, or several that are refused at once and are tried one after the other. What was
sent and what the server answered is printed in lines that begin with HOSTILE; see `tell`.
"""

import contextlib
import copy
import dataclasses
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[3])]

import torch

import suture.runtime.client.client
import suture.runtime.session
import suture.runtime.state.handoff
from suture.runtime.client.client import Client
from suture.runtime.client.model import ClientModel
from suture.runtime.consortium import evidence, site
from suture.runtime.consortium.epochs import EPOCH, EpochChain
from suture.runtime.consortium.keys import REQUEST
from suture.runtime.consortium.site import HEAD, REFUSAL, SiteConsortium
from suture.runtime.errors import SutureError, TurnUndoneError
from suture.runtime.exchange.grpc import GrpcExchange
from suture.runtime.grpc.client import GrpcClient
from suture.runtime.participant import errands
from suture.runtime.participant.participant import Participant
from suture.runtime.scheduler import Turn
from suture.runtime.state.handoff import HANDOFF, handoff_digest, named
from suture.runtime.wire import frames
from suture.runtime.wire.messages import Refusal, SealedHandoff, Share, Statement
from suture.runtime.wire.statements import digest

State = dict[str, Any]
_answers: list[str] = []
"""What the server answered to each call, by kind; of a call that ended without an answer, nothing."""


def tell(attack: str, came: str, text: str = "", **more: Any) -> None:
    """Prints what came of something that was sent.

    Args:
        attack: its name.
        came: "taken" or "refused".
        text: of the refusal.
        more: whatever the test wants to know.
    """
    print("HOSTILE " + json.dumps({"attack": attack, "came": came, "text": text} | more), flush=True)


def attempt(attack: str, ask: Callable[[], Any]) -> Any:
    """Asks the server for something that it must not grant, and tells what it answered; a refusal is swallowed."""
    _answers.clear()
    try:
        answer = ask()
    except SutureError as error:
        tell(attack, "refused", f"{type(error).__name__}: {error}", answered=_answers[-1:])
        return None
    tell(attack, "taken", answered=_answers[-1:])
    return answer


def _listen() -> None:
    """Notes what kind of answer the server gives to each call."""
    real = GrpcClient.begin

    def begin(line: GrpcClient, *arguments: Any, **more: Any) -> Callable[[], Any]:
        wait = real(line, *arguments, **more)

        def answered() -> Any:
            answer = wait()
            _answers.append("refusal" if isinstance(answer, Refusal) else "answer")
            return answer

        return answered

    GrpcClient.begin = begin  # type: ignore[method-assign]


def _instead(owner: Any, name: str, other: Callable[..., Any]) -> None:
    """``other`` in a method's place; it is given the method first."""
    real = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **more: other(real, *arguments, **more))


# What a bad hand-off holds ------------------------------------------------------------------------


def _bottom(state: State) -> dict[str, torch.Tensor]:
    bottom: dict[str, torch.Tensor] = state["parts"]["bottom"]
    return bottom


def _a_weight(state: State) -> str:
    return next(name for name, tensor in _bottom(state).items() if tensor.is_floating_point())


def _nan(state: State) -> None:
    _bottom(state)[_a_weight(state)].fill_(float("nan"))


def _shape(state: State) -> None:
    _bottom(state)[_a_weight(state)] = torch.zeros(3, 1)


def _too_few(state: State) -> None:
    del _bottom(state)[_a_weight(state)]


def _too_many(state: State) -> None:
    _bottom(state)["more"] = torch.zeros(1)


def _moment(state: State) -> None:
    next(iter(state["optimizer"]["state"].values()))["exp_avg"].fill_(float("inf"))


def _nothing(state: State) -> None:
    state.clear()


def _poison(state: State) -> None:
    for tensor in _bottom(state).values():
        if tensor.is_floating_point():
            tensor.fill_(1e30)


BAD: dict[str, Callable[[State], None]] = {
    "NaN": _nan,
    "an infinite moment": _moment,
    "wrong shapes": _shape,
    "a name too few": _too_few,
    "a name too many": _too_many,
    "nothing at all": _nothing,
}
"""What is sealed in place of an honest state, and properly signed."""


@contextlib.contextmanager
def _changed_state(client: Client, change: Callable[[State], None]) -> Iterator[None]:
    """Within, the client's own state is another, and it does not look at what it seals."""
    state, check = client.state, suture.runtime.client.client.check_weights

    def changed() -> State:
        taken = copy.deepcopy(state())
        change(taken)
        return taken

    client.state, suture.runtime.client.client.check_weights = changed, lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del client.state  # type: ignore[method-assign]
        suture.runtime.client.client.check_weights = check


def _seals(
    what: str, sealing: Callable[[Callable[..., Any], Client, Turn], SealedHandoff], round: int = 1
) -> None:
    """From ``round`` on the client seals with ``sealing``, and tells when the server has taken that."""
    sealed: list[SealedHandoff] = []

    def seal(real: Callable[..., Any], client: Client, turn: Turn) -> Any:
        if turn.round < round:
            return real(client, turn)
        sealed.append(sealing(real, client, turn))
        return sealed[-1]

    def commit(real: Callable[..., Any], exchange: GrpcExchange, handoff: SealedHandoff) -> None:
        real(exchange, handoff)
        if sealed and handoff is sealed[-1]:
            tell(what, "taken", answered=_answers[-1:], bytes=handoff.ciphertext.numel())

    _instead(Client, "seal", seal)
    _instead(GrpcExchange, "commit", commit)


def _with_state(change: Callable[[State], None]) -> Callable[..., SealedHandoff]:
    def sealing(real: Callable[..., Any], client: Client, turn: Turn) -> SealedHandoff:
        with _changed_state(client, change):
            sealed: SealedHandoff = real(client, turn)
        return sealed

    return sealing


def _truncated(real: Callable[..., Any], client: Client, turn: Turn) -> SealedHandoff:
    """The frame inside is cut off in its middle; what is around it is whole."""

    def pack(value: Any) -> list[memoryview]:
        whole = b"".join(frames.pack(value))
        return [memoryview(whole[: len(whole) // 2])]

    suture.runtime.state.handoff.frames = SimpleNamespace(pack=pack, unpack=frames.unpack)  # type: ignore[assignment]
    try:
        sealed: SealedHandoff = real(client, turn)
    finally:
        suture.runtime.state.handoff.frames = frames
    return sealed


def _under_another_key(real: Callable[..., Any], client: Client, turn: Turn) -> SealedHandoff:
    seal = client._seal
    assert seal is not None
    seal._derived = lambda epoch: bytes(32)  # type: ignore[method-assign]
    try:
        sealed: SealedHandoff = real(client, turn)
    finally:
        del seal._derived  # type: ignore[method-assign]
    return sealed


def _signed_again(client: Client, turn: Turn, sealed: SealedHandoff) -> SealedHandoff:
    """Another hand-off's ciphertext, signed as what this turn has sealed."""
    assert client.consortium is not None
    made = SealedHandoff(
        turn.number, handoff_digest(client._newest), sealed.nonce, sealed.ciphertext, client.consortium.epoch
    )
    return dataclasses.replace(made, statement=client.consortium.sign(HANDOFF, **named(made, client._run)))


def _replayed() -> Callable[..., SealedHandoff]:
    own: list[SealedHandoff] = []

    def sealing(real: Callable[..., Any], client: Client, turn: Turn) -> SealedHandoff:
        own.append(real(client, turn))
        return own[0] if len(own) == 1 else _signed_again(client, turn, own[0])

    return sealing


def _foreign(real: Callable[..., Any], client: Client, turn: Turn) -> SealedHandoff:
    seal = client._seal
    assert seal is not None
    run, seal._run = seal._run, "another run"
    try:
        sealed = real(client, turn)
    finally:
        seal._run = run
    return _signed_again(client, turn, sealed)


# What the server refuses at once ---------------------------------------------------------------------


def _bad_commits() -> None:
    """In its turn the site offers one bad hand-off after the other, and then the honest one: the control."""
    clients: list[Client] = []
    own: list[SealedHandoff] = []

    def seal(real: Callable[..., Any], client: Client, turn: Turn) -> Any:
        clients[:] = [client]
        return real(client, turn)

    def commit(real: Callable[..., Any], exchange: GrpcExchange, handoff: SealedHandoff) -> None:
        if own:
            for attack, bad in _variants(clients[0], exchange, handoff, own[0]):
                attempt(f"hand-off: {attack}", lambda bad=bad: real(exchange, bad))
        _answers.clear()
        real(exchange, handoff)
        if own:
            tell("control: the honest hand-off after them", "taken", answered=_answers[-1:])
        own.append(handoff)

    _instead(Client, "seal", seal)
    _instead(GrpcExchange, "commit", commit)


def _variants(
    client: Client, exchange: GrpcExchange, good: SealedHandoff, old: SealedHandoff
) -> Iterator[tuple[str, SealedHandoff]]:
    consortium, run = client.consortium, client._run
    assert consortium is not None and good.statement is not None
    newest = exchange.fetch()
    assert newest is not None and newest.statement is not None

    def signed(handoff: SealedHandoff, **other: Any) -> SealedHandoff:
        content = named(handoff, run) | other
        return dataclasses.replace(handoff, statement=consortium.sign(HANDOFF, **content))

    def with_statement(**fields: str) -> SealedHandoff:
        assert good.statement is not None
        return dataclasses.replace(good, statement=dataclasses.replace(good.statement, **fields))

    yield "replayed as it was", old
    yield "another site's, as it was", newest
    yield "of another run", signed(good, run="another run")
    yield "signed by nobody", dataclasses.replace(good, statement=None)
    yield "the signature of other content", dataclasses.replace(good, statement=old.statement)
    yield "the signature of other bytes", signed(good, sha256="00" * 32)
    yield "a signature that is none", with_statement(signature="00" * 70)
    yield "another site's certificate", with_statement(certificate=newest.statement.certificate)
    yield (
        "in another site's name, with its certificate",
        with_statement(author=newest.statement.author, certificate=newest.statement.certificate),
    )
    yield (
        "signed as a share",
        dataclasses.replace(good, statement=consortium.sign("share", **named(good, run))),
    )
    yield "of an epoch to come", signed(dataclasses.replace(good, epoch=good.epoch + 1))
    yield "of no epoch", signed(dataclasses.replace(good, epoch=0))
    yield "of a turn to come", signed(dataclasses.replace(good, turn=good.turn + 1))
    yield "that follows another one", signed(dataclasses.replace(good, previous=bytes(32)))


def _bad_statements() -> None:
    """In its turn the site states what it may not, one after the other, and then goes on as an honest one."""

    def commit(real: Callable[..., Any], exchange: GrpcExchange, handoff: SealedHandoff) -> None:
        if not done:
            done.append(True)
            _state_badly(members[0])
        real(exchange, handoff)

    done: list[bool] = []
    asked: list[bool] = []
    members: list[Participant[Any]] = []

    def ask_for_key(real: Callable[..., Any], member: Participant[Any]) -> None:
        members[:] = [member]
        real(member)
        if not asked:
            asked.append(True)
            attempt("statement: an accusation without a turn", lambda: _accuse_out_of_turn(member))

    _instead(GrpcExchange, "commit", commit)
    _instead(errands, "ask_for_key", ask_for_key)


def _accuse_out_of_turn(member: Participant[Any]) -> None:
    consortium = member.client.consortium
    assert consortium is not None
    signed = consortium.identity.state(HANDOFF, run="x")
    made = SealedHandoff(1, b"", bytes(12), torch.zeros(64, dtype=torch.uint8), 1, signed)
    member.exchange.post(consortium.accuse(Share("ward_a", made), "it is bad"))


def _state_badly(member: Participant[Any]) -> None:
    client, exchange = member.client, member.exchange
    consortium, run = client.consortium, client._run
    assert consortium is not None
    identity, newest, board = consortium.identity, exchange.fetch(), exchange.board()
    author = newest.statement.author
    forged = dataclasses.replace(
        newest.statement, content=newest.statement.content.replace('"turn":', '"turn":1')
    )
    never = dataclasses.replace(newest, statement=forged)
    in_its_name = dataclasses.replace(
        newest, statement=dataclasses.replace(identity.state(HANDOFF, **named(newest, run)), author=author)
    )
    own = dataclasses.replace(newest, statement=identity.state(HANDOFF, **named(newest, run)))

    def post(attack: str, statement: Statement) -> None:
        attempt(f"statement: {attack}", lambda: exchange.post(statement))

    def accuses(of: SealedHandoff, by: str) -> Statement:
        return consortium.accuse(Share(by, of), "it is bad")

    post("an accusation of a hand-off that was never made", accuses(never, author))
    post("an accusation of one signed in another's name", accuses(in_its_name, author))
    post("an accusation of itself", accuses(own, identity.name))
    post("an accusation of nothing", identity.state(evidence.ACCUSATION, run=run, handoff=["x"], why=""))
    accusation = accuses(newest, author)
    post("a verdict that nobody asked for", consortium.give_verdict(accusation, "it is bad"))
    last = board.epochs[-1]
    content = json.loads(last.content) | {
        "number": 2,
        "before": digest(last),
        "removed": {"ward_c": "so I say"},
    }
    evicts = identity.state(EPOCH, **content)
    post("an epoch that puts ward_c out, posted", evicts)
    attempt(
        "statement: an epoch that puts ward_c out, begun unasked",
        lambda: exchange.begin_epoch(evicts, newest),
    )
    grant = identity.state(
        "key grant", run=run, epoch=digest(last), to="ward_c", request="00", ephemeral="", sealed=""
    )
    post("a grant that nobody waits for", grant)
    leaves = consortium.withdraw()
    post("a withdrawal in another's name", dataclasses.replace(leaves, author=author))
    certificate = newest.statement.certificate
    both = dataclasses.replace(leaves, author=author, certificate=certificate)
    post("a withdrawal in another's name, with its certificate", both)
    post(
        "a withdrawal of its own with another's certificate",
        dataclasses.replace(leaves, certificate=certificate),
    )
    post(
        "a withdrawal of its own with no good signature",
        dataclasses.replace(leaves, content=leaves.content + " "),
    )
    post("another site's statement, passed on", newest.statement)
    post("a request of another run's", identity.state(REQUEST, run="another run", has=0, ephemeral=""))
    post("a head", identity.state("head", run=run))
    post("a refusal of another epoch", identity.state(REFUSAL, run=run, epoch="00", to=author, why=""))
    post(
        "a refusal of the key that it has",
        identity.state(REFUSAL, run=run, epoch=digest(last), to=author, why=""),
    )
    long = identity.state(evidence.WITHDRAWAL, run=run, more="x" * 2**18)
    post("one of 256 KB", long)
    attempt("statement: an exhibit where nobody is accused", exchange.exhibit)
    attempt("statement: the heads before the goodbye", exchange.heads)
    _answers.clear()
    exchange.post(consortium.request())
    tell("control: a request of its own", "taken", answered=_answers[-1:])


# Other things that a member may try -----------------------------------------------------------------


FORGED = "bad\n12:00:00 server: ward_a was put out of this run: so I say\x1b[2J"
"""A reason that would be a line of the log by itself, and clear a terminal."""


def _false_accusation() -> None:
    """In its turn it accuses the author of the hand-off that it has just opened, which is good."""

    def begin(real: Callable[..., Any], client: Client, turn: Turn) -> None:
        exchange, consortium = lines[-1], client.consortium
        assert consortium is not None
        newest = exchange.fetch()
        if newest is not None and newest.statement is not None and newest.statement.author != client.name:
            statement = consortium.accuse(Share(newest.statement.author, newest), FORGED)
            _answers.clear()
            exchange.post(statement)
            tell("a false accusation", "taken", answered=_answers[-1:])
        real(client, turn)

    lines: list[GrpcExchange] = []
    _instead(Client, "begin", begin)
    _remember(lines)


def _remember(lines: list[GrpcExchange]) -> None:
    def join(real: Callable[..., Any], exchange: GrpcExchange, hello: Any) -> Any:
        lines.append(exchange)
        return real(exchange, hello)

    _instead(GrpcExchange, "join", join)


def _leaves(when: str) -> None:
    """It seals NaN, and says that it leaves for good: as soon as somebody accuses it, or at once."""
    lines: list[GrpcExchange] = []
    clients: list[Client] = []

    def commit(real: Callable[..., Any], exchange: GrpcExchange, handoff: SealedHandoff) -> None:
        real(exchange, handoff)
        if when == "at once":
            leave()
        else:
            threading.Thread(target=leave_in_time, daemon=True).start()

    def seal(real: Callable[..., Any], client: Client, turn: Turn) -> Any:
        clients[:] = [client]
        return real(client, turn)

    def leave() -> None:
        consortium = clients[0].consortium
        assert consortium is not None
        lines[-1].post(consortium.withdraw())
        tell(f"leaves for good {when}", "taken", answered=["answer"])

    def leave_in_time() -> None:
        began = time.monotonic()
        with contextlib.suppress(SutureError):
            while time.monotonic() - began < 60:
                if [one for one in lines[-1].board().evidence if one.kind == evidence.ACCUSATION]:
                    leave()
                    return

    _seals("NaN", _with_state(_nan))
    _remember(lines)
    _instead(Client, "seal", seal)
    _instead(GrpcExchange, "commit", commit)


def _refuses_the_key_for_ever() -> None:
    """It says that it has the key, and whenever it has a turn, that it does not trust whoever made it."""
    refused = [0]

    def catch_up(real: Callable[..., Any], member: Participant[Any], turn: Turn) -> None:
        real(member, turn)
        if turn.kind not in errands.ERRANDS:
            consortium, board = member.client.consortium, member.exchange.board()
            assert consortium is not None
            first = board.epochs[0]
            content = {"run": member.client._run, "to": first.author, "epoch": digest(first), "why": "no"}
            refused[0] += 1
            if refused[0] in (1, 10, 100):
                tell(
                    f"refuses the key in its turn, for the {refused[0]}th time", "taken", answered=["answer"]
                )
            member.exchange.post(consortium.identity.state(REFUSAL, **content))
            raise TurnUndoneError("it refuses")

    _instead(errands, "catch_up", catch_up)


def _never_says_goodbye() -> None:
    """When the run is over it stays, pings, and says nothing."""

    def end(real: Callable[..., Any], member: Participant[Any], turn: Turn) -> None:
        tell("never says goodbye", "taken", answered=["answer"])
        while True:
            time.sleep(1)

    _instead(suture.runtime.session, "end", end)


def _false_farewell() -> None:
    """It signs that it ends with a hand-off that there is none of."""

    def head(real: Callable[..., Any], consortium: SiteConsortium, handoff: SealedHandoff) -> Statement:
        content = json.loads(real(consortium, handoff).content) | {"handoff": "00" * 32}
        return consortium.identity.state(HEAD, **content)

    def finish(real: Callable[..., Any], exchange: GrpcExchange, farewell: Any) -> Any:
        answer = real(exchange, farewell)
        tell("a false farewell", "taken", answered=_answers[-1:])
        return answer

    _instead(SiteConsortium, "head", head)
    _instead(GrpcExchange, "finish", finish)


def _batches_without_end() -> None:
    """It announces 10**12 batches, trains one and seals."""

    def hello(real: Callable[..., Any], client: Client, agreement: Any) -> Any:
        return dataclasses.replace(real(client, agreement), num_images=10**12, num_batches=10**12)

    def batches(real: Callable[..., Any], client: ClientModel, turn: Turn) -> Any:
        yield next(real(client, turn))

    def commit(real: Callable[..., Any], exchange: GrpcExchange, handoff: SealedHandoff) -> None:
        real(exchange, handoff)
        tell("announces 10**12 batches and sends one", "taken", answered=_answers[-1:])

    _instead(Client, "hello", hello)
    _instead(ClientModel, "batches", batches)
    _instead(GrpcExchange, "commit", commit)


def _too_many_images(real: Callable[..., Any], client: Client, turn: Turn) -> Any:
    """Its share counts for 10**308 images, with which finite weights are infinite in the mean."""
    seal = client._seal
    assert seal is not None
    state = client.state()
    for tensor in _bottom(state).values():
        if tensor.is_floating_point():
            tensor.fill_(100.0)
    share = {"state": state, "num_images": 10**308}
    return seal.seal(share, turn.number, client._newest, sharer=client.name)


def _leaves_a_share_out() -> None:
    """As the one that averages it leaves the share of ward_b out of the mean."""

    def average(real: Callable[..., Any], client: Client, turn: Turn, shares: Any) -> Any:
        return real(client, turn, (share for share in shares if share.client != "ward_b"))

    def commit(real: Callable[..., Any], exchange: GrpcExchange, handoff: SealedHandoff) -> None:
        real(exchange, handoff)
        assert handoff.statement is not None
        if "shares" in json.loads(handoff.statement.content):
            tell("a share left out of the mean", "taken", answered=_answers[-1:])

    _instead(Client, "average", average)
    _instead(GrpcExchange, "commit", commit)


# What a founder may try ------------------------------------------------------------------------------


def _bad_founding() -> None:
    """The initial parts that everybody takes are not numbers."""

    def begin_epoch(real: Callable[..., Any], client: Client, handoff: SealedHandoff | None) -> Any:
        with _changed_state(client, _nan):
            return real(client, handoff)

    def sent(
        real: Callable[..., Any], exchange: GrpcExchange, epoch: Statement, handoff: SealedHandoff
    ) -> None:
        real(exchange, epoch, handoff)
        tell("NaN in the initial parts", "taken", answered=_answers[-1:])

    _instead(Client, "begin_epoch", begin_epoch)
    _instead(GrpcExchange, "begin_epoch", sent)


def _garbage_key() -> None:
    """It releases keys that are not the one that it seals with."""

    def grant(
        real: Callable[..., Any], identity: Any, trust: Any, request: Any, run: str, epoch: Any, key: bytes
    ) -> Any:
        return real(identity, trust, request, run, epoch, secrets.token_bytes(len(key)))

    _instead(site, "grant", grant)
    _tell_grants("grants of a key that is none")


def _garbled_grant() -> None:
    """What it releases does not open."""

    def grant(real: Callable[..., Any], *arguments: Any) -> Any:
        identity, made = arguments[0], real(*arguments)
        return identity.state(made.kind, **json.loads(made.content) | {"sealed": "00" * 48})

    _instead(site, "grant", grant)
    _tell_grants("grants that do not open")


def _tell_grants(attack: str) -> None:
    def post(real: Callable[..., Any], exchange: GrpcExchange, statement: Statement) -> None:
        real(exchange, statement)
        if statement.kind == "key grant":
            tell(attack, "taken", answered=_answers[-1:])

    _instead(GrpcExchange, "post", post)


def _evicting_founder() -> None:
    """Its first epoch puts ward_c out."""

    def new_epoch(
        real: Callable[..., Any], consortium: SiteConsortium, board: Any, handoff: Any
    ) -> Statement:
        made = real(consortium, board, handoff)
        content = json.loads(made.content) | {"removed": {"ward_c": "so I say"}}
        statement = consortium.identity.state(EPOCH, **content)
        consortium._made[digest(statement)] = consortium._keys[consortium._pending].hex()
        return statement

    def begin_epoch(
        real: Callable[..., Any], exchange: GrpcExchange, epoch: Statement, handoff: SealedHandoff
    ) -> None:
        _answers.clear()
        try:
            real(exchange, epoch, handoff)
        except SutureError as error:
            tell("a first epoch that puts ward_c out", "refused", str(error), answered=_answers[-1:])
            raise
        tell("a first epoch that puts ward_c out", "taken", answered=_answers[-1:])

    _instead(SiteConsortium, "new_epoch", new_epoch)
    _instead(GrpcExchange, "begin_epoch", begin_epoch)
    _instead(EpochChain, "_check_removed", lambda *_: None)  # it believes itself
    EpochChain.removed = property(lambda chain: {})  # and releases the key to all  # type: ignore[assignment]


CHANGES: dict[str, Callable[[], None]] = {
    "nothing": lambda: _seals("nothing changed", _with_state(lambda state: None)),
    **{
        name: lambda name=name, change=change: _seals(name, _with_state(change))
        for name, change in BAD.items()
    },
    "truncated inside": lambda: _seals("truncated inside", _truncated),
    "under another key": lambda: _seals("under another key", _under_another_key),
    "replayed, signed again": lambda: _seals("replayed, signed again", _replayed()),
    "of another run, signed again": lambda: _seals("of another run, signed again", _foreign),
    "bad commits": _bad_commits,
    "bad statements": _bad_statements,
    "a false accusation": _false_accusation,
    "leaves while it is accused": lambda: _leaves("while it is accused"),
    "leaves at once": lambda: _leaves("at once"),
    "refuses the key for ever": _refuses_the_key_for_ever,
    "never says goodbye": _never_says_goodbye,
    "a false farewell": _false_farewell,
    "announces 10**12 batches and sends one": _batches_without_end,
    "a share that counts 10**308 images": lambda: _seals(
        "a share that counts 10**308 images", _too_many_images
    ),
    "a share left out of the mean": _leaves_a_share_out,
    "finite poison": lambda: _seals("finite poison", _with_state(_poison)),
    "NaN in the initial parts": _bad_founding,
    "grants of a key that is none": _garbage_key,
    "grants that do not open": _garbled_grant,
    "a first epoch that puts ward_c out": _evicting_founder,
}


def change(name: str) -> None:
    """Makes this process's site hostile in one way."""
    _listen()
    CHANGES[name]()


if __name__ == "__main__":
    change(sys.argv.pop(1))
    from suture.cli import main

    main()
