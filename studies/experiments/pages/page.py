"""The report's page: Markdown made into one HTML file with its pictures and its style inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from PIL import Image

from suture.launch.output.table import Table
from suture.studies.experiments.experiment import Picture

_TITLE = "The study, redone"
_ABOUT = (
    "Every experiment of the published study (Split Learning for Healthcare (2023), notebooks) run again, scored on "
    "images that no client trained on, with what it did not control for held fixed. Published figures stand beside "
    "ours."
)
_COLOURS = 128


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One experiment.

    Attributes:
        name: of the experiment.
        question: that it answers.
        tables: as they are shown.
        pictures: those that were drawn.
        machine: where it was run.
        runs: run by run: name, seed, commands, seconds, digest.
        planned: how many runs there are to be.
    """

    name: str
    question: str
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    machine: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    planned: int


class _Renderer(RendererHTML):
    """Wide tables scroll sideways by themselves, intervals stay on a line, and pictures are in the page."""

    def text(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return super().text(tokens, idx, options, env).replace(" ± ", "&nbsp;±&nbsp;")

    def table_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return '<div class="wide"><table>\n'

    def table_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return "</table></div>\n"

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        path = Path(env[str(tokens[idx].attrs["src"])])
        width, data = inlined(path)
        alt = html.escape(tokens[idx].content)
        return f'<img alt="{alt}" style="width:{width}px" src="{data}">'


def to_html(chapters: Sequence[Chapter], foreword: str = "") -> str:
    """The whole page.

    Args:
        chapters: in the order in which they stand.
        foreword: Markdown, stands first.
    """
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    links = "\n".join(f"1. [{chapter.question}](#{chapter.name})" for chapter in chapters)
    body = [_rendered(f"# {_TITLE}\n\n{_ABOUT}\n\n{foreword}\n\n## Questions\n\n{links}")]
    body += map(_section, chapters)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_TITLE}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _rendered(text: str, pictures: Mapping[str, Path] | None = None) -> str:
    """Markdown as HTML; whatever looks like HTML in it stays text."""
    page = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
    return str(page.render(text, dict(pictures or {})))


def _section(chapter: Chapter) -> str:
    pictures = {f"figures/{number}": shown for number, shown in enumerate(chapter.pictures)}
    told = ", ".join(f"{name} {value}" for name, value in chapter.machine.items() if name != "command")
    parts = [
        f"## {chapter.question}",
        f"`{chapter.machine.get('command', '')}`, experiment **{chapter.name}**: {len(chapter.runs)} of "
        f"{chapter.planned} runs are done.",
        *(table.to_markdown(level=3) for table in chapter.tables),
        *(f"![{shown.caption}]({name})\n\n*{shown.caption}*" for name, shown in pictures.items()),
        f"*Where: {told}.*",
    ]
    runs = [
        {
            "run": run["run"],
            "seed": run["seed"],
            "command": " ".join(f"`{line}`" for line in run["command"]),
            "seconds": run["seconds"],
            "cpu seconds": run["cpu_seconds"],
            "weights sha256": run["weights_sha256"][:16],
        }
        for run in chapter.runs
    ]
    return (
        f'<section id="{chapter.name}">\n'
        + _rendered("\n\n".join(parts), {name: shown.path for name, shown in pictures.items()})
        + f"<details><summary>All {len(runs)} runs: commands, seeds, times, weights</summary>\n"
        + f'<div class="runs">{_rendered(Table(runs).to_markdown())}</div></details>\n</section>'
    )


def inlined(path: Path) -> tuple[int, str]:
    """A PNG's width on the page and the picture as a data URI, in whichever form is smaller."""
    with Image.open(path) as image:
        width = round(image.width * 96 / 150)  # figures are drawn at 150 dots an inch
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="WEBP", quality=85, method=6)
    forms = {"png": fewer_colours(path), "webp": buffer.getvalue()}
    form = min(forms, key=lambda name: len(forms[name]))
    return width, f"data:image/{form};base64,{base64.b64encode(forms[form]).decode()}"


def fewer_colours(path: Path) -> bytes:
    """A PNG with so few colours that a page of them stays small; charts and galleries look the same."""
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(_COLOURS).save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()
