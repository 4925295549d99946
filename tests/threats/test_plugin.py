"""How plug-ins are named on a command line, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from suture.models import plugins
from suture.runtime.errors import ConfigError
from suture.threats.needs import Needs
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


OWN = """
from __future__ import annotations
from dataclasses import dataclass
from suture.runtime.hooks import Defence
from suture.threats.attacks.live import LiveAttack

@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 3

@dataclass
class Loose:
    width: int = 3

class Blur(Defence):
    \"\"\"Blurs.

    More of it.
    \"\"\"
    def __init__(self, config: Config, view: object) -> None: ...

class Bare(Defence): ...

class Changeable(Defence):
    def __init__(self, config: Loose, view: object) -> None: ...

class Typeless(Defence):
    def __init__(self, config: Nowhere, view: object) -> None: ...

class Silent(LiveAttack):
    def __init__(self, config: Config, view: object, images: object) -> None: ...
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with plug-ins in a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "ward.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("import no_such_package")
    return tmp_path


def test_a_plugin_of_ones_own_takes_its_parameters_like_any_other(own: Path) -> None:
    """Oracle: the file, written above; the text that it prints as parses to it."""
    name = "module:ward.py:Blur"
    first, second = DEFENCES.parse_chain(f"dcor:alpha=1e+1+{name}:width=5")
    assert (first.entry.name, second.entry.name, second.config.width) == ("dcor", name, 5)
    assert second.entry.summary == "Blurs." and str(second) == f"{name}:width=5"
    assert DEFENCES.names(f"dcor:alpha=1e+1+{name}:width=5") == ["dcor", name]
    assert DEFENCES.parse(f"module:{own}/ward.py:Blur").entry.plugin is second.entry.plugin


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module:ward.py", "defence must have the form module:FILE_OR_PACKAGE:NAME, got 'module:ward.py'"),
        ("module:ward.py:Blurr", r"ward.py has no Blurr; known: Config, Loose, Blur, .*; did you mean Blur"),
        ("module:ward.py:Blur:depth=3", "unknown parameter 'depth=3'; known: width=3"),
        ("module:ward.py:Config", "must be a class that extends Defence, got <class"),
        ("module:ward.py:Bare", "the first argument of Bare must be annotated with its config, a frozen dataclass, got"),
        ("module:ward.py:Changeable", "first argument of Changeable must be annotated with its config, a frozen"),
        ("module:ward.py:Typeless", "arguments' annotations cannot be read: name 'Nowhere' is not defined"),
        ("module:broken.py:Blur", "cannot import broken.py: ModuleNotFoundError: No module named 'no_such_package'"),
        ("module:nowhere.py:Blur", "cannot import nowhere.py: FileNotFoundError: .*; name a file below /"),
        ("module:nowhere:Blur", "cannot import nowhere: ModuleNotFoundError"),
        ("drop-out", "unknown defence 'drop-out'; known: dcor, proxy, noise, quantise, dropout; did you mean dropout"),
    ],
)  # fmt: skip
def test_what_is_no_plugin_is_refused_with_what_was_looked_for(text: str, message: str, own: Path) -> None:
    """Oracle: the message."""
    with pytest.raises(ConfigError, match=message):
        DEFENCES.parse(text)


def test_an_attack_must_say_what_it_needs(own: Path) -> None:
    """Oracle: the message; the registry's own say it for every parameter."""
    with pytest.raises(
        ConfigError, match=r"attack module:ward.py:Silent: Config must say what it needs: needs = "
    ):
        assert ATTACKS.parse("module:ward.py:Silent").needs
    assert ATTACKS.parse("fsha:aux-images=7").needs == Needs(images=7)
    kinds = {"leaked": "private", "query": "auxiliary", "shadow": "none"}
    for origin, queries in kinds.items():
        needs = ATTACKS.parse(f"adra:origin={origin},average=3").needs
        assert (needs.queries, needs.live, needs.query_rounds) == (queries, False, 3)
        assert needs.labels == (origin == "shadow")
    with pytest.raises(ConfigError, match="needs: images must be 0 or at least 2, got 1"):
        Needs(images=1)


def test_an_installed_package_is_found_by_its_entry_points_and_not_before_it_is_named(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a package's description as pip writes it; the module is imported with the first use of its name."""
    about = own / "ward_tools-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ward-tools\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[suture.defences]\nhaze = ward:Blur\ndcor = ward:Blur\n")
    monkeypatch.syspath_prepend(own)
    plugins._installed.cache_clear()
    try:
        assert DEFENCES.is_outside("haze") and not DEFENCES.is_outside("dcor") and "ward" not in sys.modules
        assert DEFENCES.parse("haze:width=9").config.width == 9 and "ward" in sys.modules
        assert DEFENCES.parse("dcor").entry is DEFENCES["dcor"]
    finally:
        plugins._installed.cache_clear()
        sys.modules.pop("ward", None)


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
