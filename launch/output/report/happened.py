"""Events of a run in words: its warnings, and what happened to it besides training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MOST = 40
_MOST_CHARACTERS = 600


def warnings(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The warnings, newest first; one that was repeated stands once, with the rounds it was given in."""
    rounds: dict[str, list[Any]] = {}
    for event in events:
        if event.get("event") == "warning":
            who, said = str(event.get("client") or ""), str(event.get("text") or event.get("kind") or "")
            text = f"{who}: {said}" if who and who not in said else said
            given = rounds.setdefault(text, [])
            if event.get("round") not in given:
                given.append(event.get("round"))
    newest = list(reversed(rounds.items()))[:_MOST]
    return [f"{_rounds(given)}{text}"[:_MOST_CHARACTERS] for text, given in newest]


def happened(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """What befell the run, oldest first, with its round (0 before the first); of very many the newest."""
    told: list[tuple[int, str]] = []
    begun = False
    known: set[str] = set()
    for event in events:
        name, client = event.get("event"), str(event.get("client", ""))
        text = _sentence(event, client)
        if name == "joined" and begun:
            text = f"{client} came back" if client in known else f"{client} joined"
        begun |= name == "begun"
        known.add(client)
        if text:
            round = event.get("round")
            told.append((round if isinstance(round, int) else 0, text[:_MOST_CHARACTERS]))
    return _counted(told)[-_MOST:]


def _sentence(event: Mapping[str, Any], client: str) -> str:
    name, reason = event.get("event"), str(event.get("reason") or "")
    because = f": {reason}" if reason else ""
    if name == "lost":
        return f"{client} was lost{because}"
    if name == "put_out":
        return f"{client} was put out{because}"
    if name == "rolled_back":
        return f"turn {event.get('turn')} of {client.replace('+', ', ')} was rolled back{because}"
    if name == "went_back":
        return f"the run went back to what held after turn {event.get('after_turn')}"
    if name == "resumed":
        return f"the run was started again and went on after turn {event.get('after_turn')}"
    if name == "missing":
        return f"{client} missed the evaluation of this round"
    if name == "waits":
        present = event.get("clients")
        here = ", ".join(map(str, present)) if isinstance(present, list) and present else "none"
        return f"the run waited for sites to come back; present: {here}"
    return ""


def _counted(told: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Equal ones that follow each other become one, with how often."""
    runs: list[tuple[int, str, int]] = []
    for round, text in told:
        if runs and runs[-1][:2] == (round, text):
            runs[-1] = (round, text, runs[-1][2] + 1)
        else:
            runs.append((round, text, 1))
    return [(round, text if times == 1 else f"{text} ({times} times)") for round, text, times in runs]


def _rounds(given: Sequence[Any]) -> str:
    numbers = [str(round) for round in given if isinstance(round, int)]
    if not numbers:
        return ""
    shown = ", ".join(numbers) if len(numbers) <= 6 else f"{', '.join(numbers[:3])} … {numbers[-1]}"
    return f"round{'s' if len(numbers) > 1 else ''} {shown}: "
