"""Command-line options made from `AskedOptions`: one definition for the command line, ``--config`` and the run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from suture.launch.options.options import DEFAULTS, AskedOptions
from suture.launch.options.toml import flag, option_type, read_toml
from suture.launch.output.run_folder import with_saved
from suture.models.plugins import FORM
from suture.runtime.data.registry import SOURCES
from suture.runtime.scheduler import SCHEDULES
from suture.runtime.wire.compression import FORMATS, names
from suture.threats.registry import ATTACKS, DEFENCES, DETECTORS


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a click command every option of a run and ``--config``; it receives `AskedOptions`, ``options``.

    With ``--resume`` what is not given is what the run in ``--run-dir`` has saved.
    """

    @functools.wraps(command)
    def with_options(asked: dict[str, Any], **others: Any) -> Any:
        return command(options=AskedOptions(**with_saved(asked)), **others)

    return asked_options(with_options)


def asked_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """As `run_options`, for a command that is told the rest by a server: it receives what a person gave, ``asked``."""

    @functools.wraps(command)
    def with_options(config: str | None, **given: Any) -> Any:
        others = {name: given.pop(name) for name in list(given) if name not in _NAMES}
        return command(asked=asked_for(config, given), **others)

    wrapped: Callable[..., Any] = with_options
    for option in reversed(fields(AskedOptions)):
        name = "--" + flag(option)
        help_text, kind = option.metadata["help"], option_type(option)
        shown = _shown_default(option.name, option.default)
        if kind is bool:
            flags = (option.name, f"{name}/--no-{name[2:]}")
            wrapped = click.option(*flags, default=None, help=help_text + shown)(wrapped)
        else:
            metavar = None if kind is not str else "TEXT"
            choices = option.metadata.get("choices")
            metavar = "|".join(choices) if choices else metavar
            wrapped = click.option(name, type=kind, default=None, metavar=metavar, help=help_text + shown)(
                wrapped
            )
    wrapped = click.option("--no-augment", "augment", flag_value="none", help="the same as --augment none")(
        wrapped
    )
    return click.option("--config", metavar="FILE.toml", help="options from a file; the command line wins")(
        wrapped
    )


def asked_for(config: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The options of ``--config``, then those of the command line over them."""
    values = {} if config is None else read_toml(Path(config))
    return values | {name: value for name, value in given.items() if value is not None}


def _shown_default(name: str, default: Any) -> str:
    by_task = {task: values[name] for task, values in DEFAULTS.items() if name in values}
    if by_task:
        return " [" + ", ".join(f"{task}: {value}" for task, value in by_task.items()) + "]"
    if default is None or isinstance(default, bool):
        return "" if default is None else f" [{'on' if default else 'off'}]"
    return f" [{default}]"


def sources_help() -> str:
    """The data sources, a line each, for ``--help``."""
    lines = []
    for entry in SOURCES.values():
        spec = entry.name + (f":{entry.argument}" if entry.argument else "")
        lines.append(f"  {spec:24} {entry.description}")
    return "\n".join([*lines, _OWN])


def schedules_help() -> str:
    """The schedules, a line each, for ``--help``."""
    return "\n".join([*(f"  {entry.form:24} {entry.help}" for entry in SCHEDULES.values()), _OWN])


def threats_help() -> str:
    """Attacks, defences and detectors, a few lines each, for ``--help``."""
    parts = (
        ("Attacks (--attack)", ATTACKS),
        ("Defences (--defence)", DEFENCES),
        ("Detectors (--detector)", DETECTORS),
    )
    # A paragraph of click's that begins with this sign is not wrapped anew.
    return "\n\n".join(
        f"\b\n{heading}, NAME:key=value,key=value\n{registry.help()}" for heading, registry in parts
    )


def formats_help() -> str:
    """The wire formats, a line each, for ``--help``."""
    lines = (f"  {name:24} {entry.summary}" for name, entry in zip(names(), FORMATS.values(), strict=True))
    return "\n".join(lines)


_NAMES = {option.name for option in fields(AskedOptions)}
_OWN = f"  {FORM}\n  {'':24} one of your own: docs/extending.md"
EPILOG = (
    f"\b\nData sources:\n{sources_help()}\n\n\b\nSchedules (--schedule):\n{schedules_help()}\n\n"
    f"\b\nWire formats (--wire):\n{formats_help()}\n\n{threats_help()}"
)
"""What ``--help`` says below the options."""
