"""``suture judge RUN``: the judge's process. It rebuilds every batch and scores what the attack left.

Called by the server rank at the end of an attacked run on one machine, as a process of its own: what it
computes cannot reach the server or the attack.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import suture.models.registry as nets
from suture.launch import build, keys
from suture.launch.host.cores import ready_torch
from suture.launch.host.program import SUTURE
from suture.launch.lab import lab
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.options.toml import check_names, read_toml
from suture.launch.output.figures.attacks import attack_losses, read_losses, reconstructions
from suture.launch.output.report.intervals import wilson
from suture.launch.output.run_folder import CONFIG, IDENTITY
from suture.launch.output.summary import write_summary
from suture.runtime.data.source import Task
from suture.runtime.errors import ConfigError
from suture.runtime.randomness import Randomness
from suture.runtime.records.tracking import METRICS_FILE, ClientPictures, read_metrics
from suture.runtime.state.handoff import parse_key, read_key
from suture.threats.attacks.auxiliary import Auxiliary
from suture.threats.attacks.live import (
    LEAKED_FILE,
    LOSSES_FILE,
    REPORT_FILE,
    STATE_FILE,
    ReconstructionAttack,
)
from suture.threats.judging.judge import Verdict, judge, judge_labels
from suture.threats.judging.replayed_client import ReplayedClient

log = logging.getLogger(__name__)
VERDICT = "verdict.json"
SHARES = ("reidentified", "read", "guessed")


def start_judge(options: RunOptions, run_dir: Path) -> None:
    """Judges a run that has ended, in a process of its own; a failure is told and does not fail the run."""
    command = [*SUTURE, "judge", str(run_dir)]
    if options.handoff_key is not None:
        command += ["--handoff-key", options.handoff_key]
    done = subprocess.run(command, check=False)
    if done.returncode:
        log.error("the judge failed; the run is whole: try again with 'suture judge %s'", run_dir)


def read_run(run_dir: Path) -> tuple[RunOptions, str]:
    """The options and the id of the run in a folder.

    Raises:
        ConfigError: there is none.
    """
    if not (run_dir / IDENTITY).exists():
        raise ConfigError(f"{run_dir} holds no run; name the folder of a run")
    identity = json.loads((run_dir / IDENTITY).read_text(encoding="utf-8"))
    asked = AskedOptions(**check_names(read_toml(run_dir / CONFIG), str(run_dir / CONFIG)))
    clients = asked.clients or identity["clients"]
    return replace(asked, clients=clients, run_dir=str(run_dir)).resolved(), identity["run"]


def run_key(options: RunOptions, run_dir: Path, handoff_key: str | None) -> bytes:
    """The clients' key, which only a lab has beside the server's folder.

    Raises:
        ConfigError: it is not here.
    """
    path = handoff_key or options.handoff_key
    if path is not None:
        return read_key(Path(path))
    if keys.KEY_VARIABLE in os.environ:
        return parse_key(os.environ[keys.KEY_VARIABLE], keys.KEY_VARIABLE)
    if keys.generated_key(run_dir).exists():
        return read_key(keys.generated_key(run_dir))
    raise ConfigError(f"judging {run_dir} needs the clients' key; give --handoff-key FILE")


def judge_run(
    run_dir: Path, *, handoff_key: str | None = None, folder: Path | None = None, read: bool = True
) -> dict[str, Any]:
    """Judges one attack on a run; writes verdict, summary, figures and TensorBoard's pictures.

    Args:
        run_dir: RUN.
        handoff_key: file with the clients' key, None for the one in RUN or in its options.
        folder: what the attack left; None for RUN/attack, the live one.
        read: whether a classifier of the attacker's images reads the reconstructions, which costs its training.

    Raises:
        SutureError: nothing to judge, sets overlap, or the key is not here.
    """
    options, _ = read_run(run_dir)
    folder = folder or run_dir / lab.ATTACK
    if not (folder / REPORT_FILE).exists():
        raise ConfigError(
            f"{folder} holds no finished attack; run with --attack, or 'suture attack {run_dir}'"
        )
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    options = replace(options, attack=report["spec"])
    ready_torch(options)
    key = run_key(options, run_dir, handoff_key)
    witnesses = build_witnesses(options, key)
    auxiliary, leaked = _auxiliary(options, folder)
    if report.get("target") == "label":
        found: dict[str, Any] = report | judge_labels(
            folder, witnesses, auxiliary, chosen_round=int(report["chosen_round"]) or options.epochs
        )
        add_intervals(found["scores"])
        _keep(run_dir, folder, found | {"utility": _utility(run_dir, witnesses)})
        return found
    if auxiliary is None:
        raise ConfigError(
            f"{folder}: attack {report['spec']} owns no images to compare with; use one with aux-images=N"
        )
    attack, untrained = _rebuilt(options, folder, key, len(witnesses[0].data.classes))
    entry = nets.model_entry(options.model)
    if not read:
        auxiliary = replace(auxiliary, labels=None)
    verdict = judge(
        folder,
        witnesses,
        auxiliary,
        normalisation=entry.normalisation,
        chosen_round=int(report["chosen_round"]),
        leaked=leaked,
        attack=attack,
        untrained=untrained,
    )
    found = report | verdict.summary() | {"utility": _utility(run_dir, witnesses)}
    add_intervals(found["scores"])
    _keep(run_dir, folder, found)
    _draw(run_dir, folder, verdict, witnesses, report)
    return found


def add_intervals(scores: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
    """Sets beside each share of images, by kind of image and row, its 95 % interval (Wilson's) as NAME_interval."""
    for rows in scores.values():
        for values in rows.values():
            for name in SHARES:
                if name in values and "num_images" in values:
                    n = int(values["num_images"])
                    values[f"{name}_interval"] = list(wilson(values[name] * n, n))


def build_witnesses(options: RunOptions, key: bytes) -> list[ReplayedClient]:
    """Every client of the run, rebuilt from data and key."""
    images = build.build_images(options, options.clients)
    return [
        ReplayedClient(
            build.client_name(index),
            build.build_data(options, images, index),
            Randomness(key, options.seed),
            options.batch_size,
        )
        for index in range(options.clients)
    ]


def _auxiliary(options: RunOptions, folder: Path) -> tuple[Auxiliary | None, bool]:
    """The attacker's images, None where it owns none; and whether they are the first client's own."""
    auxiliary = lab.build_auxiliary(options)
    if auxiliary is not None:
        return auxiliary, False
    if not (folder / LEAKED_FILE).exists():
        return None, False
    return Auxiliary(torch.from_numpy(np.load(folder / LEAKED_FILE)), origin="leaked"), True


def _rebuilt(
    options: RunOptions, folder: Path, key: bytes, num_classes: int
) -> tuple[ReconstructionAttack | None, torch.nn.Module]:
    """The attack with its final nets, writing nowhere, and the bottom as it was before training."""
    split = build.build_split(options, num_classes, key)
    attack = lab.build_attack(options, split.top, num_classes, None)
    if not isinstance(attack, ReconstructionAttack):
        return None, split.bottom
    attack.load_state_dict(torch.load(folder / STATE_FILE, weights_only=True))
    return attack, split.bottom


def _utility(run_dir: Path, witnesses: list[ReplayedClient]) -> dict[str, float]:
    """The clients' task metric at the end, beside what always naming the commonest class gives (rule 6)."""
    summary = _read_summary(run_dir)
    name = "accuracy" if witnesses[0].data.task is Task.CLASSIFICATION else "dice"
    values = [c["test"][name] for c in summary.get("clients", {}).values() if name in c.get("test", {})]
    majority = [replayed.data.majority_share("test") for replayed in witnesses]
    if not values:
        return {}
    return {f"test_{name}": sum(values) / len(values), "majority": sum(majority) / len(majority)}


def _read_summary(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "summary.json"
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return read


def _keep(run_dir: Path, folder: Path, found: Mapping[str, Any]) -> None:
    """Writes the verdict beside the attack and into RUN/summary.json."""
    (folder / VERDICT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    summary = _read_summary(run_dir)
    if folder == run_dir / lab.ATTACK:
        summary["attack"] = dict(found)
    else:
        summary.setdefault("attacks_afterwards", {})[folder.name] = dict(found)
    write_summary(run_dir, summary)


def _draw(
    run_dir: Path, folder: Path, verdict: Verdict, witnesses: list[ReplayedClient], report: Mapping[str, Any]
) -> None:
    """Pictures stay with their owner, under RUN/clients/NAME; figures of one machine are linked together."""
    figures = run_dir / "figures"
    figures.mkdir(exist_ok=True)
    name = folder.name if folder != run_dir / lab.ATTACK else "attack"
    if (folder / LOSSES_FILE).exists():
        attack_losses(read_losses(folder / LOSSES_FILE), figures / f"{name}_losses.png", title=report["spec"])
    records = read_metrics(run_dir / METRICS_FILE)
    steps = {int(record["round"]): int(record["step"]) for record in records}
    for replayed in witnesses:
        by_round = verdict.pairs.get(replayed.name, {})
        if not by_round:
            continue
        own = run_dir / "clients" / replayed.name
        pictures = ClientPictures(own / "tensorboard")
        for number, pairs in sorted(by_round.items()):
            pictures.reconstructions(steps.get(number, number), pairs.truth, pairs.rebuilt, name)
        pictures.close()
        shown = by_round.get(verdict.chosen_round) or by_round[max(by_round)]
        path = own / "figures" / f"{name}_reconstructions.png"
        caption = f"{report['spec']}, round {verdict.chosen_round}"
        reconstructions(
            shown.truth,
            shown.rebuilt,
            verdict.mean,
            path,
            title=f"{replayed.name}: held-out images",
            caption=caption,
        )
        link = figures / f"{replayed.name}-{path.name}"
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(path, figures))
