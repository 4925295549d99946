"""An evaluation as one page of HTML that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from suture.launch.output.report import __name__ as report_package
from suture.launch.output.table import Table
from suture.launch.output.text import text
from suture.runtime.data.source import Task

SummedUp = tuple[list[str], list[Table]]


def to_html(
    title: str, facts: Sequence[str], tables: Sequence[Table], pictures: Sequence[tuple[Path, str]]
) -> str:
    """The page; what follows from data and files is escaped."""
    style = (files(report_package) / "page.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    body = [f"<h1>{text(title)}</h1>", *(f"<p>{text(fact)}</p>" for fact in facts)]
    body += [f"<section><h2>{text(table.title)}</h2>{table.to_html()}</section>" for table in tables]
    body += [
        f'<section><img style="max-width:100%" alt="{text(said)}" src="data:image/png;base64,{_inlined(path)}">'
        f'<p class="note">{text(said)}</p></section>'
        for path, said in pictures
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def shown(score: Mapping[str, Any], name: str = "value", interval: str = "interval") -> str:
    """``0.912 (0.85 to 0.95)``; a dash where nothing was measured."""
    if name not in score:
        return "–"
    if interval not in score:
        return f"{score[name]:.3f}"
    low, high = score[interval]
    return f"{score[name]:.3f} ({low:.3f} to {high:.3f})"


def _of_classes(found: Mapping[str, Any]) -> SummedUp:
    cut, how = found["threshold"], found["threshold_chosen"]
    decided = f"Decided on {how}." if cut is None else f"Threshold {cut:.3f}: {how}."
    facts = [f"Accuracy {shown(found['accuracy'])}. {decided}"]
    if "quadratic_kappa" in found:
        facts.append(
            f"Quadratic weighted kappa {shown(found['quadratic_kappa'])}: agreement beyond chance, 1 is the best."
        )
    by_class = [
        {
            "class": name,
            "images": own["num_images"],
            "AUROC": shown(own, "auroc", "auroc_interval"),
            "average precision": shown(own, "average_precision", "average_precision_interval"),
            "recall": shown(own["recall"]),
            "calibration error": shown(own, "calibration_error"),
        }
        for name, own in found["classes"].items()
    ]
    by_site = [
        {
            "site": name or "not said",
            "images": own["accuracy"]["num_images"],
            "AUROC": shown(own, "auroc"),
            "accuracy": shown(own["accuracy"]),
        }
        for name, own in found["sites"].items()
    ]
    return facts, [Table(by_class, "By class"), Table(by_site, "By site")]


def _of_findings(found: Mapping[str, Any]) -> SummedUp:
    by_finding = [
        {
            "finding": name,
            "images with it": own["num_images"],
            "AUROC": shown(own, "auroc", "auroc_interval"),
            "average precision": shown(own, "average_precision", "average_precision_interval"),
            "threshold": f"{own['threshold']:.3f}",
            "sensitivity": shown(own["sensitivity"]),
            "specificity": shown(own["specificity"]),
        }
        for name, own in found["findings"].items()
    ]
    by_site = [
        {"site": name or "not said", "images": own["num_images"], "AUROC": shown(own, "auroc")}
        for name, own in found["sites"].items()
    ]
    how = sorted({own["threshold_chosen"] for own in found["findings"].values()})
    facts = [
        f"Mean AUROC {shown(found, 'auroc')}, over the findings that some images have and some not. "
        f"Thresholds, a finding each: {'; or '.join(how)}."
    ]
    return facts, [Table(by_finding, "By finding"), Table(by_site, "By site")]


def _of_masks(found: Mapping[str, Any]) -> SummedUp:
    rows = [
        {"site": name or "not said", "images": own["num_images"], "Dice": shown(own)}
        for name, own in found["sites"].items()
    ]
    return [f"Dice {shown(found['dice'])}, mean over images."], [Table(rows, "By site")]


SUMMED_UP: dict[Task, Callable[[Mapping[str, Any]], SummedUp]] = {
    Task.CLASSIFICATION: _of_classes,
    Task.ORDINAL: _of_classes,
    Task.MULTI_LABEL: _of_findings,
    Task.SEGMENTATION: _of_masks,
}
"""By task: sentences and tables from the numbers."""


def _inlined(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
