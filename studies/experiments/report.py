"""``suture report``: one page that holds everything, and beside it tables, figures and results to compute with.

OUT/index.html             all tables and pictures inside; needs no network and no other file
OUT/NAME/                  table.md, table.csv, config.toml, figures/ of each experiment
OUT/results.json           every run: facts, scores, digest, command, seconds, machine
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suture.runtime.errors import ConfigError
from suture.runtime.state.checkpoint import write_atomically
from suture.studies.experiments.engine.provenance import MACHINE
from suture.studies.experiments.engine.results import PICTURES, load, write_results
from suture.studies.experiments.experiment import Picture
from suture.studies.experiments.pages.page import Chapter, fewer_colours, to_html
from suture.studies.experiments.registry import EXPERIMENTS
from suture.studies.experiments.runs.setting import CONFIG


def write_report(folder: Path, out: Path, foreword: Path | None = None) -> list[str]:
    """Writes the page and what stands beside it.

    Args:
        folder: where the experiments lie, each in a folder of its name; those without a result are left out.
        out: where to write; made where missing.
        foreword: a file in Markdown that stands first, written by who has read the numbers.

    Returns:
        Names of the experiments that are in it.

    Raises:
        ConfigError: there is nothing to report, or the foreword cannot be read.
    """
    found = [folder / name for name in EXPERIMENTS if (folder / name / CONFIG).exists()]
    chapters, results = [], {}
    for place in found:
        write_results(place)
        chapter, own = _chapter(place)
        if own["runs"]:
            chapters.append(chapter)
            results[chapter.name] = own
    if not chapters:
        raise ConfigError(f"{folder} holds no experiment with a result; run 'suture experiment all' first")
    try:
        said = foreword.read_text(encoding="utf-8") if foreword else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the foreword {foreword}: {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "index.html", to_html(chapters, said).encode())
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    for chapter in chapters:
        _copy(folder / chapter.name, out / chapter.name, chapter.pictures)
    return [chapter.name for chapter in chapters]


def _chapter(place: Path) -> tuple[Chapter, dict[str, Any]]:
    experiment, setting, results = load(place)
    told = json.loads((place / PICTURES).read_text(encoding="utf-8")) if (place / PICTURES).exists() else []
    machine = json.loads((place / MACHINE).read_text(encoding="utf-8")) if (place / MACHINE).exists() else {}
    runs = []
    for job in results.jobs:
        result = results.result(job)
        runs.append(
            {
                "run": job.name,
                "seed": job.seed,
                **job.facts,
                **experiment.facts(job, result),
                "weights_sha256": result["summary"]["weights_sha256"],
                "seconds": round(result["seconds"], 1),
                "cpu_seconds": round(result["cpu_seconds"], 1),
                "command": result["command"],
            }
        )
    chapter = Chapter(
        name=experiment.name,
        question=experiment.question,
        tables=experiment.tables(setting, results) if runs else [],
        pictures=[Picture(place / "figures" / one["file"], one["caption"]) for one in told],
        machine=machine,
        runs=runs,
        planned=len(experiment.jobs(setting)),
    )
    return chapter, {"machine": machine, "runs": runs}


def _copy(place: Path, out: Path, pictures: Sequence[Picture]) -> None:
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name in ("table.md", "table.csv", CONFIG):
        shutil.copyfile(place / name, out / name)
    for picture in pictures:
        write_atomically(out / "figures" / picture.path.name, fewer_colours(picture.path))
