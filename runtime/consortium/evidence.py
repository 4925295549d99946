"""What convicts a site: statements that every site of the consortium can check for itself.

A site that opens a hand-off which its author signed, and finds what no honest site seals, accuses the author. A second
site opens the same hand-off and gives its verdict. The accusation holds the author's own signature over the hand-off's
digest, so that the two cannot speak of a hand-off that the author never made. Two sites that lie together can put out
a third; one cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from suture.runtime.consortium.identity import Identity
from suture.runtime.errors import UntrustedError
from suture.runtime.wire.messages import Share, Statement
from suture.runtime.wire.statements import digest

ACCUSATION, VERDICT, WITHDRAWAL = "accusation", "verdict", "withdrawal"
KINDS = (ACCUSATION, VERDICT, WITHDRAWAL)

Check = Callable[[Statement, str], dict[str, Any]]
"""What a statement of that kind says; raises UntrustedError. See `Trust.check`."""


def accuse(identity: Identity, run: str, accused: Share, why: str) -> Statement:
    """Says that what ``accused`` holds is bad."""
    signed = accused.sealed.statement
    assert signed is not None
    fields = [signed.kind, signed.author, signed.content, signed.certificate, signed.signature]
    return identity.state(ACCUSATION, run=run, handoff=fields, why=why[:500])


def give_verdict(identity: Identity, run: str, accusation: Statement, why: str) -> Statement:
    """Says what a second look found: ``why`` the hand-off is bad, empty where it opens."""
    return identity.state(VERDICT, run=run, accusation=digest(accusation), is_bad=bool(why), why=why[:500])


def accused_handoff(accusation: dict[str, Any]) -> Statement:
    """The signed hand-off that an accusation speaks of, from its content.

    Raises:
        UntrustedError: it holds none.
    """
    fields = accusation.get("handoff")
    if (
        not isinstance(fields, list)
        or len(fields) != 5
        or not all(isinstance(field, str) for field in fields)
    ):
        raise UntrustedError("an accusation of nothing; refused")
    return Statement(*fields)


@dataclass(frozen=True)
class Conviction:
    """What became of an accusation.

    Attributes:
        guilty: the site that is put out: the author, or who accused it falsely.
        handoff: digest (hex) of the bad hand-off; empty where the accusation was false.
        why: in words.
    """

    guilty: str
    handoff: str
    why: str


def convictions(run: str, evidence: Iterable[Statement], check: Check) -> list[Conviction]:
    """What the evidence comes to: accusations that a second site, which is neither of the two, has looked at.

    A statement whose author this side does not believe counts for nothing.
    """
    accusations: dict[str, tuple[Statement, Statement, str]] = {}
    found = []
    for statement, content in _believed(evidence, check):
        if statement.kind == ACCUSATION:
            try:
                signed = accused_handoff(content)
            except UntrustedError:
                continue
            if not _believed([signed], check):
                continue
            if content.get("run") == run and signed.kind in ("handoff", "share"):
                accusations[digest(statement)] = (statement, signed, str(content.get("why"))[:500])
        elif statement.kind == VERDICT:
            named = accusations.get(str(content.get("accusation")))
            if named is None or content.get("run") != run:
                continue
            accusation, signed, why = named
            if statement.author in (accusation.author, signed.author):
                continue
            if content.get("is_bad") is True:
                both = f"{accusation.author} and {statement.author} say"
                found.append(Conviction(signed.author, digest(signed), f"{both}: {why}"))
            elif content.get("is_bad") is False:
                found.append(
                    Conviction(
                        accusation.author,
                        "",
                        f"it accused {signed.author} of a bad hand-off, which {statement.author} opened",
                    )
                )
    return found


def withdrawn(run: str, evidence: Iterable[Statement], check: Check) -> set[str]:
    """The sites that have said that they leave for good."""
    stated = _believed((one for one in evidence if one.kind == WITHDRAWAL), check)
    return {one.author for one, content in stated if content.get("run") == run}


def _believed(evidence: Iterable[Statement], check: Check) -> list[tuple[Statement, dict[str, Any]]]:
    found = []
    for statement in evidence:
        with suppress(UntrustedError):
            found.append((statement, check(statement, statement.kind)))
    return found
