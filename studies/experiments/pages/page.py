"""The report's page: HTML with its pictures and its style inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from suture.studies.experiments.pages.study import study
from suture.studies.table import Table

_TITLE = "The study, redone"
_COLOURS = 128
_BROAD = 800  # pixels beyond which a picture scrolls on a phone rather than shrink
_RUN_COLUMNS = ("run", "seed", "command", "seconds", "cpu_seconds", "weights_sha256")


@dataclass(frozen=True)
class Shown:
    """A picture and what stands below it."""

    path: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One experiment.

    Attributes:
        name: of the experiment.
        question: that it answers.
        tables: as they are shown.
        pictures: those that were drawn.
        machine: where it was run.
        runs: run by run, with the columns of ``_RUN_COLUMNS``.
        planned: how many runs there are to be.
    """

    name: str
    question: str
    tables: Sequence[Table]
    pictures: Sequence[Shown]
    machine: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    planned: int


def to_html(chapters: Sequence[Chapter], foreword: Iterable[str] = ()) -> str:
    """The whole page.

    Args:
        chapters: in the order in which they stand.
        foreword: paragraphs; one that begins with "# " is a heading.
    """
    style = (files(__package__) / "page.css").read_text()
    links = "".join(f'<li><a href="#{c.name}">{html.escape(c.question)}</a></li>' for c in chapters)
    body = [
        f"<h1>{_TITLE}</h1>",
        "<p>Every experiment of the published study "
        f"({html.escape(study()['source'])}) run again, scored on images that no client trained on, with what it did "
        "not control for held fixed. Published figures stand beside ours.</p>",
        *map(_paragraph, foreword),
        "<h2>Questions</h2>",
        f"<ol>{links}</ol>",
        *map(_chapter, chapters),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_TITLE}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _chapter(chapter: Chapter) -> str:
    parts = [
        f'<section id="{chapter.name}">',
        f"<h2>{html.escape(chapter.question)}</h2>",
        f"<p><code>{html.escape(str(chapter.machine.get('command', '')))}</code>, experiment <b>{chapter.name}</b>: "
        f"{len(chapter.runs)} of {chapter.planned} runs are done.</p>",
        *(table.to_html() for table in chapter.tables),
        *(_figure(picture) for picture in chapter.pictures),
        _machine(chapter.machine),
        _runs(chapter.runs),
        "</section>",
    ]
    return "\n".join(parts)


def _figure(picture: Shown) -> str:
    width, data = inlined(picture.path)
    caption = html.escape(picture.caption)
    broad = " class=broad" if width > _BROAD else ""
    image = f'<div class=wide><img{broad} alt="{caption}" style="width:{width}px" src="{data}"></div>'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def inlined(path: Path) -> tuple[int, str]:
    """A PNG's width on the page and the picture as a data URI, in whichever form is smaller."""
    from PIL import Image

    with Image.open(path) as image:
        width = round(image.width * 96 / 150)  # figures are drawn at 150 dots an inch
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="WEBP", quality=85, method=6)
    forms = {"png": fewer_colours(path), "webp": buffer.getvalue()}
    form = min(forms, key=lambda name: len(forms[name]))
    return width, f"data:image/{form};base64,{base64.b64encode(forms[form]).decode()}"


def fewer_colours(path: Path) -> bytes:
    """A PNG with so few colours that a page of them stays small; charts and galleries look the same."""
    from PIL import Image

    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(_COLOURS).save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()


def _machine(machine: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "command")
    return f"<p class=small>Where: {html.escape(told)}.</p>"


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join("<tr>" + "".join(_cell(column, run) for column in _RUN_COLUMNS) + "</tr>" for run in runs)
    head = "".join(f"<th>{column.replace('_', ' ')}</th>" for column in _RUN_COLUMNS)
    return (
        f"<details><summary>All {len(runs)} runs: commands, seeds, times, weights</summary>"
        f'<div class="wide runs"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _cell(column: str, run: Mapping[str, Any]) -> str:
    value = run[column]
    if column == "command":
        return "<td>" + "<br>".join(f"<code>{html.escape(line)}</code>" for line in value) + "</td>"
    shown = str(value)[:16] if column == "weights_sha256" else str(value)
    return f"<td>{html.escape(shown)}</td>"


def _paragraph(text: str) -> str:
    if text.startswith("# "):
        return f"<h2>{html.escape(text[2:])}</h2>"
    return f"<p>{html.escape(text)}</p>"
