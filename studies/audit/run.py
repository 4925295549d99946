"""``suture audit``: runs what is missing of an audit and writes its table and picture.

AUDIT/audit.json        what is audited; another audit is refused in the same folder
AUDIT/points/NAME.json  one file a run: what exists is not run again
AUDIT/points/NAME.npz   a few held-out images of that run and what the attackers made of them
AUDIT/audit.csv, audit.md, frontier.png, pictures_cutN.png
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import suture.models.registry as nets
from suture.launch.host.cores import ready_torch
from suture.launch.options.options import AskedOptions
from suture.launch.options.toml import to_arguments
from suture.models.plugins import split
from suture.runtime.data.registry import split_spec
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError
from suture.runtime.randomness import Randomness
from suture.runtime.state.checkpoint import write_atomically
from suture.runtime.state.handoff import parse_key, read_key, write_key
from suture.studies.audit.check import check_with_processes
from suture.studies.audit.page import to_markdown
from suture.studies.audit.pictures import FRONTIER, draw_frontier, draw_gallery, gallery_name
from suture.studies.audit.plan import MOST_STRENGTHS, Point, fitting_strengths, points
from suture.studies.audit.point import Means, options_of, run_point
from suture.studies.audit.report import Group, grouped, to_csv

AUDIT = "audit.json"
_REPORT_SECONDS = 180.0

_DEFAULTS: dict[Task, dict[str, Any]] = {
    Task.CLASSIFICATION: {
        "model": "resnet18",
        "image_size": 32,
        "clients": 2,
        "train_images": 256,
        "validation_images": 0,
        "test_images": 200,
        "held_out_images": 50,
        "epochs": 5,
        "lr": 1e-3,
    },
    Task.SEGMENTATION: {
        "image_size": 32,
        "clients": 2,
        "validation_images": 0,
        "held_out_images": 8,
        "epochs": 10,
    },
}
"""What an audit uses where nothing is set: smaller than training's own defaults, for there are dozens of runs."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What is audited.

    Attributes:
        cuts: as ``--cut`` takes them.
        families: defences, see `plan.parse_defences`.
        num_seeds: runs of each point; they count up from the options' seed.
        means: what the attackers have.
        budget: minutes; None for all strengths, however long it takes.
        check: also train one point with real processes and compare the weights.
    """

    cuts: tuple[str, ...]
    families: tuple[str, ...]
    num_seeds: int = 3
    means: Means = field(default_factory=Means)
    budget: float | None = None
    check: bool = False

    def __post_init__(self) -> None:
        if self.num_seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {self.num_seeds}")
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise ConfigError(f"budget must be above 0 minutes, got {self.budget}")


def run_audit(config: AuditConfig, given: AskedOptions, folder: Path) -> None:
    """Runs what is missing and writes the report; after a stop the same command goes on where it stopped.

    Raises:
        SutureError: an option cannot work, the folder holds another audit, or a run failed.
    """
    begun = time.monotonic()
    base = audit_options(given)
    ready_torch(base)
    for cut in config.cuts:  # all of them, before the first run is paid for
        options_of(Point(cut, "none", "none", 0, base.seed), base, config.means, "static")
    key = _open(folder, config, base)
    seeds = range(base.seed, base.seed + config.num_seeds)
    plan = points(config.cuts, config.families, seeds, MOST_STRENGTHS)
    ended_early = False
    columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("audit", total=len(plan))
        number, reported = 0, begun
        try:
            while number < len(plan):
                point = plan[number]
                progress.update(bar, description=f"cut {point.cut}, {point.defence}, seed {point.seed}")
                path = folder / "points" / f"{point.name}.json"
                if not path.exists():
                    if config.budget is not None and time.monotonic() - begun > 60 * config.budget:
                        ended_early = True
                        break
                    result = run_point(
                        point, base, config.means, seed_key(key, point.seed), path.with_suffix(".npz")
                    )
                    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
                    if not console.is_terminal:
                        print(f"[{number + 1}/{len(plan)}] {_told(result)}", file=sys.stderr, flush=True)
                    # Drawing costs seconds: not after every run.
                    if time.monotonic() - reported > _REPORT_SECONDS:
                        _report(folder, config, base, plan, ended_early=False)
                        reported = time.monotonic()
                if number == 0 and config.budget is not None:
                    plan = _scaled(config, seeds, folder, path)
                    progress.update(bar, total=len(plan))
                progress.advance(bar)
                number += 1
        finally:  # after a stop or a failed run too
            results = _report(folder, config, base, plan, ended_early=ended_early)
    print(f"{len(results)} of {len(plan)} runs done; see {folder / 'audit.md'} and {folder / FRONTIER}")
    if ended_early:
        print(f"The budget of {config.budget:g} minutes is used up; the same command goes on.")
    if config.check and results:
        print(
            check_with_processes(plan[0], results[0], base, config.means, folder, seed_key(key, plan[0].seed))
        )


def audit_options(given: AskedOptions) -> AskedOptions:
    """The options of every run: what a person set, else an audit's own defaults, else those of training."""
    if given.attack or given.defence or given.unsplit:
        raise ConfigError(
            "an audit brings attacks and defences itself: leave out --attack, --defence and --unsplit"
        )
    plain, entry = AskedOptions(), split_spec(given.data)[0]
    own = {
        name: value
        for name, value in _DEFAULTS[entry.task].items()
        if getattr(given, name) == getattr(plain, name)
    }
    if given.model is not None and nets.model_entry(given.model).task != entry.task:
        own.pop("model", None)
    return replace(given, **own, exchange="local", cut=None, run_dir=None)


def _scaled(config: AuditConfig, seeds: Sequence[int], folder: Path, first: Path) -> list[Point]:
    """The plan that fits the budget by the time of the first run; decided once and kept for going on."""
    about = json.loads((folder / AUDIT).read_text(encoding="utf-8"))
    if about.get("strengths") is None:
        seconds = float(json.loads(first.read_text(encoding="utf-8"))["seconds"])
        assert config.budget is not None
        about["strengths"] = fitting_strengths(
            config.cuts, config.families, seeds, seconds, 60 * config.budget
        )
        write_atomically(folder / AUDIT, (json.dumps(about, indent=2) + "\n").encode())
    return points(config.cuts, config.families, seeds, int(about["strengths"]))


def _open(folder: Path, config: AuditConfig, base: AskedOptions) -> str:
    """Makes the folder or takes it up again; returns the clients' key.

    Raises:
        ConfigError: it holds another audit.
    """
    means = config.means
    about: dict[str, Any] = {"options": to_arguments(base), "aux_images": means.aux_images}
    about |= {"attackers": means.parameters()}
    path, key = folder / AUDIT, folder / "handoff.key"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        same = {name: found.get(name) for name in about}
        # The order of the options is not part of an audit: it is that of `AskedOptions`.
        same["options"], about["options"] = sorted(found.get("options", [])), sorted(about["options"])
        if same != about:
            raise ConfigError(
                f"{folder} holds an audit with other options ({' '.join(found['options'])}); repeat those, or name "
                "another --out"
            )
        return read_key(key).hex()
    (folder / "points").mkdir(parents=True, exist_ok=True)
    if not key.exists():
        write_key(key)
    write_atomically(path, (json.dumps(about, indent=2) + "\n").encode())
    return read_key(key).hex()


def seed_key(key: str, seed: int) -> str:
    """A seed's own key (hex), from the audit's: seeds that shared one would share order, noise and initial weights."""
    return Randomness(parse_key(key, "the audit's key"), 0).derive(32, "audit", seed).hex()


def _told(result: Mapping[str, Any]) -> str:
    group = grouped([result])[0]
    void = ", VOID" if group.is_void else ""
    return (
        f"cut {group.cut}, {group.defence}, seed {result['seed']}: {result['metric_name']} {group.metric[0]:.3f}"
        f"{void}; "
        f"SSIM {group.leak('ssim', 'static')[0]:.3f} static, {group.leak('ssim', 'adaptive')[0]:.3f} adaptive; "
        f"{result['seconds']:.0f} s"
    )


def _report(
    folder: Path, config: AuditConfig, base: AskedOptions, plan: Sequence[Point], *, ended_early: bool
) -> list[dict[str, Any]]:
    """Writes table and picture of what is done so far."""
    paths = [folder / "points" / f"{point.name}.json" for point in plan]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    if not results:
        return results
    resolved = options_of(plan[0], base, config.means, "static")
    about = {
        "command": _command(config, base),
        "data": split(base.data)[0],
        "model": resolved.model,
        "image_size": resolved.image_size,
        "clients": resolved.clients,
        "train_images": resolved.train_images,
        "epochs": resolved.epochs,
        "aux_images": config.means.aux_images,
        "attackers": config.means.parameters(),
        "done": len(results),
        "planned": len(plan),
        "note": "the budget ended first" if ended_early else "",
    }
    groups = grouped(results)
    seeds = (
        f"{config.num_seeds} seeds; bars: SSIM from smallest to largest, else 95 %"
        if config.num_seeds > 1
        else "one seed"
    )
    caption = f"{about['model']} on {about['data']}, {seeds}; lower right is better"
    draw_frontier(groups, folder / FRONTIER, caption=caption)
    galleries = _draw_galleries(
        folder, plan, groups, f"{about['model']} on {about['data']}, seed {base.seed}"
    )
    write_atomically(folder / "audit.csv", to_csv(results).encode())
    write_atomically(folder / "audit.md", to_markdown(results, about, FRONTIER, galleries).encode())
    return results


def _command(config: AuditConfig, base: AskedOptions) -> str:
    """What repeats the audit, without the place of anybody's data."""
    name, path = split(base.data)
    shown = [
        f"{name}:PATH" if argument == base.data and path else argument for argument in to_arguments(base)
    ]
    asked = ["--cuts", ",".join(config.cuts), "--defences", ",".join(config.families)]
    asked += ["--seeds", str(config.num_seeds), "--aux-images", str(config.means.aux_images)]
    if config.means.effort > 1:
        asked += ["--effort", str(config.means.effort)]
    return " ".join(["suture audit", *asked, *shown])


def _draw_galleries(
    folder: Path, plan: Sequence[Point], groups: Sequence[Group], caption: str
) -> dict[str, str]:
    """Draws each cut's reconstructions; returns the file names by cut."""
    drawn = {}
    for cut in dict.fromkeys(group.cut for group in groups):
        own = [point for point in plan if point.cut == cut and point.seed == plan[0].seed]
        samples = {point.defence: folder / "points" / f"{point.name}.npz" for point in own}
        path = folder / gallery_name(cut)
        draw_gallery([group for group in groups if group.cut == cut], samples, path, caption=caption)
        if path.exists():
            drawn[cut] = path.name
    return drawn
