"""docs/benchmarks.md: one page of four sections, written from the JSON beside it, in which each command keeps its own.

A command replaces its section in benchmarks.json and its picture, and the page is made anew from all that is there.
NAME.md here is a section's text, whose open places ``fill`` of the module NAME fills.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from suture.launch.output.table import Table
from suture.runtime.errors import ConfigError
from suture.runtime.state.checkpoint import write_atomically
from suture.studies.bench.page import clients, line, sites, train

DOCS, FULL = Path("docs"), Path("docs/benchmarks-full")
DATA, PAGE = "benchmarks.json", "benchmarks.md"

_SECTIONS = {
    "train": (train.fill, train.draw),
    "clients": (clients.fill, clients.draw),
    "line": (line.fill, line.draw),
    "sites": (sites.fill, sites.draw),
}
SECTIONS = tuple(_SECTIONS)
"""In the page's order."""

_MEASURED = """\
`{command}` on {date}: {processor}, {cores} cores, {memory:.0f} GiB, {system}, Python {python}, torch {torch}, no GPU
used. Load average before it began (1, 5, 15 minutes): {load}."""


def picture(name: str) -> str:
    """The file name of a section's picture."""
    return f"benchmarks-{name}.png"


def content(command: str, where: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """What a section keeps: the command, the machine, and what was measured or, as ``skipped``, why not."""
    return {"command": command, "machine": dict(where), **measured}


def section(name: str, found: Mapping[str, Any]) -> str:
    """One section, in Markdown."""
    where = found["machine"]
    measured = _MEASURED.format(
        command=found["command"],
        memory=where["memory_bytes"] / 2**30,
        load=", ".join(f"{value:.2f}" for value in where["load_before"]),
        **where,
    )
    if "skipped" in found:
        return f"{_title(name)}\n\n{measured}\n\nNot measured: {found['skipped']}.\n"
    filled = {
        place: told.to_markdown().rstrip() if isinstance(told, Table) else told
        for place, told in _SECTIONS[name][0](found).items()
    }
    return _text(name).format_map({**found, **filled, "measured": measured})


def _text(name: str) -> str:
    return (files(__package__) / f"{name}.md").read_text(encoding="utf-8")


def _title(name: str) -> str:
    return _text(name).partition("\n")[0]


def write(out: Path, name: str, found: Mapping[str, Any]) -> None:
    """Puts one section into OUT/benchmarks.json, draws its picture and makes OUT/benchmarks.md anew.

    Raises:
        ConfigError: the folder cannot be written, or what is there is no such file.
    """
    path = out / DATA
    try:
        out.mkdir(parents=True, exist_ok=True)
        kept = _kept(path) | {name: dict(found)}
        write_atomically(path, (json.dumps(kept, indent=1) + "\n").encode())
        if "skipped" not in found:
            _SECTIONS[name][1](found, out / picture(name))
        pieces = []
        for other in filter(kept.__contains__, SECTIONS):
            text = (section if other == name else _kept_section)(other, kept[other])
            if "skipped" not in kept[other] and (out / picture(other)).exists():
                text += f"\n![{_title(other).removeprefix('## ')}]({picture(other)})\n"
            pieces.append(text)
        write_atomically(out / PAGE, "\n".join([_text("introduction"), *pieces]).encode())
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; give another --out") from None


def _kept_section(name: str, found: Mapping[str, Any]) -> str:
    """`section` of what was measured before; numbers of a version that this one cannot read stay in the JSON."""
    try:
        return section(name, found)
    except (KeyError, TypeError):
        return f"{_title(name)}\n\nMeasured by another version of Suture: run `suture bench {name}` again.\n"


def finish(out: Path | None, name: str, found: Mapping[str, Any]) -> None:
    """Shows a section, or writes it where there is a place to."""
    if out is None:
        print(section(name, found))
    else:
        write(out, name, found)
        print(f"wrote {out / PAGE}, section {name}", flush=True)


def _kept(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ConfigError(f"{path} is no JSON; move it away or give another --out") from None
    # A file of another shape than this, such as one of an earlier version, holds nothing that a section could use.
    return {
        name: kept[name] for name in SECTIONS if isinstance(kept, dict) and isinstance(kept.get(name), dict)
    }
