"""How plug-ins are named on a command line, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import pytest

from suture.runtime.errors import ConfigError
from suture.threats.plugin import Entry, Registry
from suture.threats.registry import ATTACKS, DEFENCES, DETECTORS

ENTRIES = [
    pytest.param(registry, entry, id=f"{registry.kind}-{entry.name}")
    for registry in (ATTACKS, DEFENCES, DETECTORS)
    for entry in registry.values()
]


@dataclass(frozen=True, kw_only=True)
class _Config:
    count: int = 3
    scale: float = 1.5
    is_on: bool = False
    kind: Literal["soft", "hard"] = "soft"
    limit: float | None = None


def _registry() -> Registry[object]:
    entries = [
        Entry(name=name, summary="", paper="", plugin=lambda config: config, config=_Config)
        for name in ("a", "b")
    ]
    return Registry("gadget", entries)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", _Config()),
        ("a:count=7", _Config(count=7)),
        ("a: scale=2 , is-on=on", _Config(scale=2.0, is_on=True)),
        ("a:kind=hard,limit=.5", _Config(kind="hard", limit=0.5)),
        ("a:limit=none,is_on=false", _Config()),
    ],
)
def test_parameters_are_read_by_the_types_of_the_config(text: str, expected: _Config) -> None:
    """Oracle: the config built by hand."""
    assert _registry().parse(text).config == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c", "unknown gadget 'c'; known: a, b"),
        (
            "a:size=1",
            r"unknown parameter 'size=1'; known: count=3, scale=1.5, is_on=off, kind=soft, limit=None",
        ),
        ("a:count", "unknown parameter 'count'"),
        ("a:", "unknown parameter ''"),
        ("a:count=2.5", "count must be a whole number, got '2.5'"),
        ("a:scale=big", "scale must be a number, got 'big'"),
        ("a:is_on=maybe", "is_on must be on or off, got 'maybe'"),
        ("a:kind=mild", "kind must be one of soft, hard, got 'mild'"),
        ("a:count=1,count=2", "count is given twice"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_is_known(text: str, message: str) -> None:
    """Oracle: the message names value, bound and remedy."""
    with pytest.raises(ConfigError, match=message):
        _registry().parse(text)


def test_a_chain_keeps_its_order_and_numbers_with_a_plus_sign() -> None:
    """Oracle: the names in order; 1e+2 is one number."""
    chain = _registry().parse_chain("b:scale=1e+2+a:count=1")
    assert [spec.entry.name for spec in chain] == ["b", "a"]
    assert chain[0].config.scale == 100.0


@pytest.mark.parametrize("text", [None, "", "none"])
def test_nothing_is_the_empty_chain(text: str | None) -> None:
    """Oracle: no plug-in at all."""
    assert _registry().parse_chain(text) == ()


def test_a_name_twice_in_a_chain_is_refused() -> None:
    """Oracle: their states would travel under one name."""
    with pytest.raises(ConfigError, match="a is given 2 times"):
        _registry().parse_chain("a+a")


def test_a_spec_prints_as_the_text_that_parses_to_it() -> None:
    """Oracle: parse of the print."""
    registry = _registry()
    for text in ("a", "b:count=4,is_on=on", "a:scale=0.001,kind=hard"):
        spec = registry.parse(text)
        assert str(spec) == text
        assert registry.parse(str(spec)).config == spec.config


@pytest.mark.parametrize(("registry", "entry"), ENTRIES)
def test_every_entry_stands_on_its_defaults_and_in_the_help(
    registry: Registry[Any], entry: Entry[Any]
) -> None:
    """Oracle: a frozen config in which each field has a default and a line in its docstring; name and paper shown."""
    assert is_dataclass(entry.config)
    assert entry.config.__dataclass_params__.frozen
    assert registry.parse(entry.name).config == entry.config()
    assert entry.summary
    assert entry.paper
    assert f"  {entry.name}" in registry.help()
    assert entry.paper in registry.help()
    for field in fields(entry.config):
        assert field.name in (entry.config.__doc__ or ""), (
            f"{entry.config.__name__}: {field.name} is not described"
        )
