"""``name:key=value,key=value``: how a command line names a plug-in and sets its parameters.

A plug-in's parameters are the fields of the frozen config dataclass that stands beside its class; their types
say how a value is read. Parts of a chain are joined with ``+``: ``dcor:alpha=0.5+noise:scale=1``.
One's own plug-in is a class whose first argument is annotated with its config: ``module:FILE_OR_PACKAGE:NAME`` or an
entry point, and the parameters follow as always: ``module:ward/blur.py:Blur:width=3``.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from suture.models.plugins import FORM, is_outside, known, split
from suture.runtime.errors import ConfigError
from suture.runtime.plugins import load
from suture.threats.needs import Cost, Needs
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

    @property
    def needs(self) -> Needs:
        """What an attack needs of the run.

        Raises:
            ConfigError: its config does not say it.
        """
        if not isinstance(declared := getattr(self.config, "needs", None), Needs):
            raise ConfigError(
                f"attack {self.entry.name}: {type(self.config).__name__} must say what it needs: needs = Needs(...)"
            )
        return declared

    @property
    def cost(self) -> Cost:
        """What it costs; nothing where its config says nothing."""
        declared: Cost = getattr(self.config, "cost", Cost())
        return declared

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
        kind: "attack", "defence" or "detector", for messages and entry points.
        entries: the plug-ins.
        base: what the class of a plug-in that is not among them must extend.
    """

    def __init__(self, kind: str, entries: Iterable[Entry[P]] = (), base: type[Any] = object) -> None:
        self.kind = kind
        self._base = base
        self._entries = {entry.name: entry for entry in entries}

    def __getitem__(self, name: str) -> Entry[P]:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def is_outside(self, name: str) -> bool:
        """Whether ``name`` means code that is not in this repository; runs none of it."""
        return name not in self._entries and is_outside(self.kind, name)

    def find(self, name: str) -> Entry[P]:
        """The plug-in of that name, of this registry or from outside; the latter's module is run.

        Raises:
            ConfigError: there is none, or it is no plug-in of this kind.
        """
        if name in self._entries:
            return self._entries[name]
        if is_outside(self.kind, name):
            return _entry(self.kind, name, load(self.kind, name), self._base)
        raise ConfigError(f"unknown {self.kind} {name!r}; {known(name, self._entries)}")

    def parse(self, text: str) -> Spec[P]:
        """Reads one SPEC.

        Raises:
            ConfigError: an unknown name or parameter (the known ones are listed), a value of another type,
                or one that the plug-in's config refuses.
        """
        name, rest = split(text.strip())
        entry = self.find(name)
        pairs = [part.strip() for part in rest.split(",")] if rest is not None else []
        values: dict[str, Any] = {}
        types_ = typing.get_type_hints(entry.config)
        kinds = {field.name: types_[field.name] for field in dataclasses.fields(entry.config)}
        for pair in pairs:
            key, equals, value = (piece.strip() for piece in pair.partition("="))
            key = key.replace("-", "_")
            if not equals or key not in kinds:
                raise ConfigError(
                    f"{self.kind} {name}: unknown parameter {pair!r}; known: {parameters(entry) or 'none'} "
                    f"(written {name}:key=value,key=value)"
                )
            if key in values:
                raise ConfigError(f"{self.kind} {name}: {key} is given twice; give it once")
            values[key] = _read(value, kinds[key], f"{self.kind} {name}: {key}")
        return Spec(entry, entry.config(**values))

    def parse_chain(self, text: str | None) -> tuple[Spec[P], ...]:
        """Reads SPECs joined with ``+``; None, an empty text and "none" are the empty chain.

        Raises:
            ConfigError: as `parse`, and where a name comes twice.
        """
        specs = tuple(self.parse(part) for part in _parts(text))
        names = [spec.entry.name for spec in specs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{self.kind} {name} is given {names.count(name)} times; give it once")
        return specs

    def names(self, text: str | None) -> list[str]:
        """The names in SPECs joined with ``+``, known or not; runs no code of theirs."""
        return [split(part.strip())[0] for part in _parts(text)]

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
        lines.append(f"  {FORM + ':key=value,...':22}\n      one of your own: docs/extending.md")
        return "\n".join(lines)


def _parts(text: str | None) -> list[str]:
    if text is None or text.strip() in ("", "none"):
        return []
    # A plus sign inside a number (1e+3) is followed by a digit, one between plug-ins by a letter.
    return re.split(r"\+(?=\s*[a-zA-Z])", text)


def _entry(kind: str, name: str, plugin: Any, base: type[Any]) -> Entry[Any]:
    """The entry of a class from outside: its config is what its first argument is annotated with."""
    if not isinstance(plugin, type) or not issubclass(plugin, base):
        raise ConfigError(f"{kind} {name}: must be a class that extends {base.__name__}, got {plugin!r:.80}")
    try:
        taken = inspect.signature(plugin, eval_str=True).parameters.values()
    except NameError as error:
        raise ConfigError(f"{kind} {name}: its arguments' annotations cannot be read: {error}") from None
    config = next((argument.annotation for argument in taken), None)
    frozen = getattr(getattr(config, "__dataclass_params__", None), "frozen", False)
    if not isinstance(config, type) or not frozen:
        raise ConfigError(
            f"{kind} {name}: the first argument of {plugin.__name__} must be annotated with its config, a frozen "
            f"dataclass, got {config!r:.60}"
        )
    summary = (plugin.__doc__ or "").strip().partition("\n")[0]
    return Entry(name=name, summary=summary, paper="the user's own", plugin=plugin, config=config)


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
