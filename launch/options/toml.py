"""Options written down and read back: the TOML file of ``--config`` and the arguments of a command line."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import tomli_w

from suture.launch.options.options import AskedOptions
from suture.runtime.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """Options from a file.

    Raises:
        ConfigError: the file is missing, is not TOML, or sets an option that does not exist.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read options from {path}: {error}") from None
    return check_names(values, str(path))


def check_names(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """``values`` with their types checked against `AskedOptions`.

    Raises:
        ConfigError: an unknown option (the known ones are listed) or a value of another type.
    """
    known = {option.name: option for option in fields(AskedOptions)}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        name = name.replace("-", "_")
        if name not in known:
            raise ConfigError(f"{origin}: unknown option {name!r}; known: {', '.join(known)}")
        kind = option_type(known[name])
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is str and name == "cut":
            value = str(value)
        if type(value) is not kind:
            raise ConfigError(f"{origin}: {name} must be a {kind.__name__}, got {value!r}")
        checked[name] = value
    return checked


def option_type(option: dataclasses.Field[Any]) -> type:
    """str, int, float or bool."""
    return {"str": str, "int": int, "float": float, "bool": bool}[str(option.type).split(" |")[0]]


def flag(option: dataclasses.Field[Any]) -> str:
    """An option's name on the command line, without the dashes."""
    return str(option.metadata.get("flag", option.name.replace("_", "-")))


def to_toml(options: AskedOptions, note: str, others: Collection[str] = ()) -> str:
    """A file that ``--config`` takes; options that are None, the run's own place, and ``others`` are left out."""
    left_out = ("run_dir", "resume", "accept_rollback", *others)
    values = {o.name: getattr(options, o.name) for o in fields(AskedOptions) if o.name not in left_out}
    head = "".join(f"# {line}\n" for line in note.splitlines())
    return head + tomli_w.dumps({name: value for name, value in values.items() if value is not None})


def to_arguments(options: AskedOptions) -> list[str]:
    """The command line that gives ``options``. A run that is resumed has saved others: there a default is said, too."""
    arguments = []
    for option in fields(AskedOptions):
        value, name = getattr(options, option.name), flag(option)
        if value is None or (value == option.default and (not options.resume or option.name == "resume")):
            continue
        if option_type(option) is bool:
            arguments.append(f"--{name}" if value else f"--no-{name}")
        else:
            arguments += [f"--{name}", str(value)]
    return arguments
