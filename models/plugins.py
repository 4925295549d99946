"""Plug-ins that are not in this repository: ``module:FILE_OR_PACKAGE:NAME``, and entry points of installed packages.

A kind of plug-in is called as its option is: "model", "data", "schedule", "attack", "defence", "detector". Nothing is
imported before it is named.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "module:"
FORM = f"{MODULE}FILE_OR_PACKAGE:NAME"
"""How a plug-in of one's own is named: a path that ends in .py, or a dotted module."""
_CHECKOUT = str(Path(__file__).resolve().parent.parent)


def split(text: str) -> tuple[str, str | None]:
    """A plug-in's name, and what is written after it: settings, a path. None where no colon follows the name."""
    if text.startswith(MODULE):
        _, *parts = text.split(":", 3)
        return ":".join([MODULE[:-1], *parts[:2]]), parts[2] if len(parts) == 3 else None
    name, colon, further = text.partition(":")
    return name, further if colon else None


def group(kind: str) -> str:
    """The group of a kind's entry points."""
    return "suture.data" if kind == "data" else f"suture.{kind}s"


def is_outside(kind: str, name: str) -> bool:
    """Whether ``name`` means code that is not in this repository; imports nothing. Names of a registry come first."""
    return name.startswith(MODULE) or name in _installed(kind)


def place(kind: str, name: str) -> tuple[str, str]:
    """File or dotted module, and what is taken from it, of a name that `is_outside`; imports nothing.

    Raises:
        ValueError: the name has another form than ``FORM``.
    """
    if not name.startswith(MODULE):
        point = _installed(kind)[name]
        return point.module, point.attr
    where, _, attribute = name.removeprefix(MODULE).partition(":")
    if not where or not attribute.isidentifier():
        raise ValueError(f"{kind} must have the form {FORM}, got {name!r}")
    return where, attribute


def load(kind: str, name: str) -> Any:
    """What a name that `is_outside` stands for; runs its module once in this process.

    Raises:
        ValueError: there is no such module, it cannot be imported, or it has no such name.
    """
    where, attribute = place(kind, name)
    try:
        with _searching():
            module = _file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:  # whatever the user's file raises
        raise ValueError(
            f"{kind} {name}: cannot import {where}: {first_line(error)}; name a file below {Path.cwd()} or on "
            "PYTHONPATH"
        ) from None
    if not hasattr(module, attribute):
        own = [key for key, value in vars(module).items() if key[0] != "_" and _is_of(module, value)]
        raise ValueError(f"{kind} {name}: {where} has no {attribute}; {known(attribute, own)}")
    return getattr(module, attribute)


def first_line(error: Exception) -> str:
    """What an error says, for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__


def search_path() -> list[str]:
    """Where modules are looked for: as Python does, and in the current folder, where an installed command looks not.

    It takes the place of a checkout of Suture, whose own models/ and runtime/ would hide the user's.
    """
    here = str(Path.cwd())
    places = [path for path in sys.path if path != _CHECKOUT or path == here]
    if here not in places:
        places.insert(sys.path.index(_CHECKOUT) if _CHECKOUT in sys.path else len(places), here)
    return places


@contextmanager
def _searching() -> Iterator[None]:
    """Python looks where `search_path` says; afterwards a checkout is there again, behind the current folder."""
    has_checkout = _CHECKOUT in sys.path
    sys.path[:] = search_path()
    try:
        yield
    finally:
        if has_checkout and _CHECKOUT not in sys.path:
            sys.path.insert(sys.path.index(str(Path.cwd())) + 1, _CHECKOUT)


def known(name: str, names: Iterable[str]) -> str:
    """The end of a sentence about an unknown ``name``: those that there are, and the nearest of them."""
    names = list(names)
    return f"known: {', '.join(names) or 'none'}{nearest(name, names)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean NAME?``; empty where no name is like ``name``."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


@functools.cache
def _installed(kind: str) -> dict[str, EntryPoint]:
    """Entry points by name. Read once: a sandbox may shut off the packages' descriptions later."""
    return {point.name: point for point in entry_points(group=group(kind))}


def _file(path: Path) -> ModuleType:
    """The module in a file, under a name of its own: no other module is shadowed by it."""
    path = path.expanduser().resolve()
    name = f"suture_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_of(module: ModuleType, value: Any) -> bool:
    """Whether a module defines ``value`` itself and did not import it."""
    return getattr(value, "__module__", None) == module.__name__
