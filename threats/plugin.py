"""``name:key=value,key=value``: how a command line names a plug-in and sets its parameters.

A plug-in's parameters are the fields of the frozen config dataclass that stands beside its class; their types
say how a value is read. Parts of a chain are joined with ``+``: ``dcor:alpha=0.5+noise:scale=1``.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from suture.runtime.errors import ConfigError
from suture.threats.strength import Strength

P = TypeVar("P")


@dataclass(frozen=True, kw_only=True)
class Entry(Generic[P]):
    """One plug-in of a registry.

    Attributes:
        name: as on the command line.
        summary: one line for people.
        paper: authors, venue, year, arXiv number.
        plugin: builds it; the arguments are the registry's own, the config first.
        config: the frozen dataclass of its parameters; each field has a default and a plain type.
    """

    name: str
    summary: str
    paper: str
    plugin: Callable[..., P]
    config: type[Any]

    @property
    def strength(self) -> Strength | None:
        """What the config declares of its strength; None where it declares nothing."""
        declared: Strength | None = getattr(self.config, "strength", None)
        return declared


@dataclass(frozen=True)
class Spec(Generic[P]):
    """A plug-in that was asked for, with its parameters."""

    entry: Entry[P]
    config: Any

    def __str__(self) -> str:
        """The shortest text that says the same: parameters at their default are left out."""
        changed = [
            f"{field.name}={_shown(value)}"
            for field in dataclasses.fields(self.config)
            if (value := getattr(self.config, field.name)) != field.default
        ]
        return ":".join([self.entry.name, ",".join(changed)] if changed else [self.entry.name])


class Registry(Mapping[str, Entry[P]]):
    """The plug-ins of one kind by name, in the order given.

    Args:
        kind: "attack", "defence" or "detector", for messages.
        entries: the plug-ins.
    """

    def __init__(self, kind: str, entries: Iterable[Entry[P]] = ()) -> None:
        self.kind = kind
        self._entries = {entry.name: entry for entry in entries}

    def __getitem__(self, name: str) -> Entry[P]:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def parse(self, text: str) -> Spec[P]:
        """Reads one SPEC.

        Raises:
            ConfigError: an unknown name or parameter (the known ones are listed), a value of another type,
                or one that the plug-in's config refuses.
        """
        name, colon, rest = text.strip().partition(":")
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}; known: {', '.join(self._entries) or 'none'}")
        entry = self._entries[name]
        pairs = [part.strip() for part in rest.split(",")] if colon else []
        values: dict[str, Any] = {}
        types_ = typing.get_type_hints(entry.config)
        known = {field.name: types_[field.name] for field in dataclasses.fields(entry.config)}
        for pair in pairs:
            key, equals, value = (piece.strip() for piece in pair.partition("="))
            key = key.replace("-", "_")
            if not equals or key not in known:
                raise ConfigError(
                    f"{self.kind} {name}: unknown parameter {pair!r}; known: {parameters(entry) or 'none'} "
                    f"(written {name}:key=value,key=value)"
                )
            if key in values:
                raise ConfigError(f"{self.kind} {name}: {key} is given twice; give it once")
            values[key] = _read(value, known[key], f"{self.kind} {name}: {key}")
        return Spec(entry, entry.config(**values))

    def parse_chain(self, text: str | None) -> tuple[Spec[P], ...]:
        """Reads SPECs joined with ``+``; None, an empty text and "none" are the empty chain.

        Raises:
            ConfigError: as `parse`, and where a name comes twice.
        """
        if text is None or text.strip() in ("", "none"):
            return ()
        # A plus sign inside a number (1e+3) is followed by a digit, one between plug-ins by a letter.
        specs = tuple(self.parse(part) for part in re.split(r"\+(?=\s*[a-zA-Z])", text))
        names = [spec.entry.name for spec in specs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{self.kind} {name} is given {names.count(name)} times; give it once")
        return specs

    def help(self) -> str:
        """A few lines for ``--help``: name and parameters, what it does, the paper."""
        lines = []
        for entry in self._entries.values():
            taken = parameters(entry)
            lines.append(f"  {entry.name:22} {entry.summary}")
            lines += [
                f"      {entry.paper}",
                *textwrap.wrap(taken, 90, initial_indent="      ", subsequent_indent="      "),
            ]
        return "\n".join(lines)


def parameters(entry: Entry[Any]) -> str:
    """The parameters of a plug-in with their defaults, as they would be written."""
    return ", ".join(f"{field.name}={_shown(field.default)}" for field in dataclasses.fields(entry.config))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


_WORDS = {
    "on": True,
    "true": True,
    "yes": True,
    "1": True,
    "off": False,
    "false": False,
    "no": False,
    "0": False,
}


def _read(text: str, kind: Any, what: str) -> Any:
    """``text`` as a value of ``kind``: bool, int, float, str, a Literal of strings, or one of these or None."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if text in ("none", "None"):
            return None
        (kind,) = (member for member in typing.get_args(kind) if member is not type(None))
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise ConfigError(f"{what} must be one of {', '.join(choices)}, got {text!r}")
        return text
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ConfigError(f"{what} must be on or off, got {text!r}")
        return _WORDS[text.lower()]
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        kinds = {int: "a whole number", float: "a number"}
        raise ConfigError(f"{what} must be {kinds[kind]}, got {text!r}") from None
