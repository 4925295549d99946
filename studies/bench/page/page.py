"""docs/benchmarks.md: one page of six sections, written from the JSON beside it, in which each command keeps its own.

A command replaces its section in benchmarks.json and its picture, and the page is made anew from all that is there.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.runtime.errors import ConfigError
from suture.runtime.state.checkpoint import write_atomically

DOCS, FULL = Path("docs"), Path("docs/benchmarks-full")
DATA, PAGE = "benchmarks.json", "benchmarks.md"

SECTIONS = ("train", "clients", "line", "sites", "startup", "profile")
"""In the page's order. Each module here has a ``TITLE``, and ``lines`` and ``draw`` of what was found."""

_INTRODUCTION = (
    "Each section is one command's, and says where and when it was measured; `make bench` runs them all. Its step "
    "times are of reduced sizes; `make bench-full` takes the whole of them, into docs/benchmarks-full. What is "
    "compared was alive at once and took turns, so that whatever else the machine did hit all alike. Times are "
    "medians of at least ten. Images are noise unless a "
    f"section says otherwise; every number is in [{DATA}]({DATA})."
)


def picture(name: str) -> str:
    """The file name of a section's picture."""
    return f"benchmarks-{name}.png"


def content(command: str, where: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """What a section keeps: the command, the machine, and what was measured or, as ``skipped``, why not."""
    return {"command": command, "machine": dict(where), **measured}


def section(name: str, found: Mapping[str, Any]) -> str:
    """One section, in Markdown."""
    module, where = _module(name), found["machine"]
    load = ", ".join(f"{value:.2f}" for value in where["load_before"])
    head = [
        f"## {module.TITLE}",
        "",
        f"`{found['command']}` on {where['date']}: {where['processor']}, {where['cores']} cores, "
        f"{where['memory_bytes'] / 2**30:.0f} GiB, {where['system']}, Python {where['python']}, "
        f"torch {where['torch']}, no GPU used. Load average before it began (1, 5, 15 minutes): {load}.",
        "",
    ]
    if "skipped" in found:
        return "\n".join([*head, f"Not measured: {found['skipped']}.", ""])
    return "\n".join([*head, *module.lines(found), ""])


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
            _module(name).draw(found, out / picture(name))
        pieces = []
        for other in filter(kept.__contains__, SECTIONS):
            text = (section if other == name else _kept_section)(other, kept[other])
            if "skipped" not in kept[other] and (out / picture(other)).exists():
                text += f"\n![{_module(other).TITLE}]({picture(other)})\n"
            pieces.append(text)
        text = "\n".join(["# Benchmarks", "", _INTRODUCTION, "", *pieces])
        write_atomically(out / PAGE, text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; give another --out") from None


def _kept_section(name: str, found: Mapping[str, Any]) -> str:
    """`section` of what was measured before; numbers of a version that this one cannot read stay in the JSON."""
    try:
        return section(name, found)
    except (KeyError, TypeError):
        return f"## {_module(name).TITLE}\n\nMeasured by another version of Suture: run `suture bench {name}` again.\n"


def finish(out: Path | None, name: str, found: Mapping[str, Any]) -> None:
    """Shows a section, or writes it where there is a place to."""
    if out is None:
        print(section(name, found))
    else:
        write(out, name, found)
        print(f"wrote {out / PAGE}, section {name}", flush=True)


def publish(
    name: str, where: Mapping[str, Any], measured: Mapping[str, Any], *, quick: bool, out: Path | None
) -> None:
    """`finish` for a section of one size: into docs unless told otherwise; the quick form is shown."""
    command = f"suture bench {name}{' --quick' if quick else ''}"
    finish(DOCS if out is None and not quick else out, name, content(command, where, measured))


def _kept(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ConfigError(f"{path} is no JSON; move it away or give another --out") from None
    # A file of another shape than this, such as one of an earlier version, holds nothing that a section could use.
    return {
        name: kept[name] for name in SECTIONS if isinstance(kept, dict) and isinstance(kept.get(name), dict)
    }


def _module(name: str) -> Any:
    return importlib.import_module(f"suture.studies.bench.page.{name}")
