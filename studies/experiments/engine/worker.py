"""One run of an experiment, in a process of its own (`pool.py`).

It does what ``suture train`` and ``suture attack`` do, then keeps what tables and pictures need in result.json and
throws away what is large: checkpoints, recordings, weights.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import suture.models.registry as nets
from suture.launch import build
from suture.launch.lab import lab
from suture.launch.lab.attack_recording import attack_recording
from suture.launch.lab.judging import VERDICT, build_witnesses, judge_run
from suture.launch.options.options import AskedOptions
from suture.launch.options.toml import to_arguments
from suture.launch.output.run_folder import IDENTITY
from suture.launch.start.start import start
from suture.models.weights import whole_state_dict
from suture.runtime.errors import ConfigError
from suture.runtime.randomness import PUBLIC
from suture.runtime.scheduler import TurnKind
from suture.runtime.state.checkpoint import write_atomically
from suture.runtime.state.handoff import parse_key, part_digest
from suture.studies.experiments.engine.skips import registered
from suture.studies.experiments.pages.charts import SAMPLES
from suture.studies.experiments.registry import EXPERIMENTS
from suture.studies.experiments.runs.job import Job, inputs_folder, result_path, runs_folder
from suture.studies.experiments.runs.setting import CONFIG, Setting, expanded, read_setting
from suture.threats.judging.judge import collect

_NUM_SHOWN = 8


def work(folder: Path, name: str) -> None:
    """Runs one job of the experiment in ``folder`` and writes its result.

    Raises:
        SutureError: the run failed.
    """
    setting = read_setting(folder / CONFIG)
    job = next((job for job in EXPERIMENTS[setting.experiment].jobs(setting) if job.name == name), None)
    if job is None:
        raise ConfigError(f"{setting.experiment} has no run {name} with this setting")
    run_dir, begun = runs_folder(folder) / name, time.monotonic()
    options = prepared(job, setting, folder)
    if run_dir.exists():
        if (run_dir / "checkpoints").exists() and (run_dir / IDENTITY).exists() and not options.unsplit:
            options = replace(options, resume=True)
        else:
            shutil.rmtree(run_dir)  # killed, and nothing in it can be gone on with
    with registered(options.with_defaults().model) if job.skips == "cut off" else nullcontext():
        if not (run_dir / "summary.json").exists():
            start(options)
        if options.attack is not None and not (run_dir / lab.ATTACK / VERDICT).exists():
            judge_run(run_dir, handoff_key=options.handoff_key, read=job.read)
        for attack, spec in job.afterwards.items():
            attack_recording(run_dir, spec, handoff_key=options.handoff_key, name=attack, read=job.read)
    if options.attack is not None:
        _keep_samples(job, options, run_dir, parse_key(setting.keys[job.seed], "the experiment's key"))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result = {
        "arm": job.arm,
        "seed": job.seed,
        "facts": dict(job.facts),
        "skips": job.skips,
        "command": command(job, options, folder),
        "summary": json.loads((run_dir / "summary.json").read_text(encoding="utf-8")),
        "net_sha256": _net_sha256(run_dir),
        "seconds": time.monotonic() - begun,
        "cpu_seconds": sum(one.ru_utime + one.ru_stime for one in used),
    }
    _throw_away(run_dir)
    write_atomically(result_path(folder, name), (json.dumps(result, indent=1) + "\n").encode())


def prepared(job: Job, setting: Setting, folder: Path) -> AskedOptions:
    """A job's options with the files that it reads, which are written where they are missing."""
    inputs = inputs_folder(folder)
    inputs.mkdir(parents=True, exist_ok=True)
    key = inputs / f"handoff-{job.seed}.key"
    if not key.exists():
        draft = inputs / f".{job.name}.key"
        draft.write_text(setting.keys[job.seed] + "\n", encoding="utf-8")
        draft.chmod(0o600)
        draft.replace(key)
    options = replace(
        job.options,
        data=expanded(job.options.data),
        weights=expanded(job.options.weights or "") or None,
        handoff_key=str(key),
        run_dir=str(runs_folder(folder) / job.name),
    )
    if job.only_client:
        options = replace(options, schedule=f"replay:{_turns_of(job, inputs)}")
    if job.same_start:
        options = replace(
            options, weights=str(_start_of(replace(options, weights=None, freeze=None), inputs))
        )
    return options


def _turns_of(job: Job, inputs: Path) -> Path:
    """A schedule in which one client alone trains; the others only evaluate."""
    rounds = job.options.with_defaults().epochs
    path = inputs / f"turns-{job.only_client}-{rounds}.jsonl"
    turns = [
        {"kind": TurnKind.TRAIN, "round": number + 1, "client": job.only_client} for number in range(rounds)
    ]
    write_atomically(path, "".join(json.dumps(turn) + "\n" for turn in turns).encode())
    return path


def _start_of(options: AskedOptions, inputs: Path) -> Path:
    """Weights of the whole net that depend on the seed and the classes and not on the cut."""
    path = inputs / f"weights-{options.seed}.pt"
    if not path.exists():
        run = options.resolved()
        num_classes = len(build.build_images(run, run.clients).source.classes)
        first = nets.cut_points(run.model)[0].name
        whole = build.build_split(replace(run, cut=first), num_classes, PUBLIC)
        draft = inputs / f".weights-{options.seed}-{os.getpid()}.pt"
        torch.save(whole_state_dict(whole), draft)
        draft.replace(path)
    return path


def command(job: Job, options: AskedOptions, folder: Path) -> list[str]:
    """The commands that repeat the run, without the place of anybody's data or folder."""
    run_dir = f"{runs_folder(Path())}/{job.name}"
    weights = options.weights if job.same_start else job.options.weights
    shown = replace(options, data=job.options.data, weights=weights, run_dir=run_dir, resume=False)
    # As text: what the options name must exist when they are made.
    arguments = [text.replace(f"{inputs_folder(folder)}/", "inputs/") for text in to_arguments(shown)]
    commands = [" ".join(["suture train", *arguments])]
    commands += [
        f"suture attack {run_dir} --attack {spec} --name {name}" for name, spec in job.afterwards.items()
    ]
    if job.skips == "cut off":
        commands.append("(with studies/experiments/engine/skips.py in that process: no option of training)")
    return commands


def _keep_samples(job: Job, options: AskedOptions, run_dir: Path, key: bytes) -> None:
    """Writes a few held-out images of client0 and what each attack made of them, for the pictures."""
    for name, spec in {"live": str(options.attack), **job.afterwards}.items():
        place = run_dir / lab.ATTACK if name == "live" else run_dir / "attacks" / name
        verdict = json.loads((place / VERDICT).read_text(encoding="utf-8"))
        own = replace(options, attack=spec).resolved()
        auxiliary = lab.build_auxiliary(own)
        assert auxiliary is not None
        normalisation = nets.model_entry(own.model).normalisation
        replayed = build_witnesses(own, key)[0]
        pairs = collect(place, replayed, "held_out", int(verdict["chosen_round"]), normalisation, set())
        if pairs is None:
            continue
        kept = {
            "truth": pairs.truth[:_NUM_SHOWN],
            "rebuilt": pairs.rebuilt[:_NUM_SHOWN],
            "mean": auxiliary.unit().mean(0, keepdim=True),
        }
        as_bytes = {k: v.mul(255).round().clamp(0, 255).to(torch.uint8).numpy() for k, v in kept.items()}
        np.savez_compressed(run_dir / SAMPLES.format(name), **as_bytes)  # type: ignore[arg-type]


def _net_sha256(run_dir: Path) -> str:
    """Digest of the whole trained net, whatever its parts; empty where no model was kept."""
    path = run_dir / "clients" / "client0" / "model.pt"
    if not path.exists():
        return ""
    parts = torch.load(path, weights_only=True)["last"]["parts"]
    whole: dict[str, Any] = {}
    for state in parts.values():
        whole |= state
    return part_digest(whole)


def _throw_away(run_dir: Path) -> None:
    for folder in ("checkpoints", "recording", "tensorboard"):
        shutil.rmtree(run_dir / folder, ignore_errors=True)
    for place in (run_dir / "attack", *run_dir.glob("attacks/*")):
        for heavy in (*place.glob("round_*"), place / "observed"):
            shutil.rmtree(heavy, ignore_errors=True)
        (place / "attack.pt").unlink(missing_ok=True)
    for client in run_dir.glob("clients/*"):
        (client / "model.pt").unlink(missing_ok=True)
        shutil.rmtree(client / "tensorboard", ignore_errors=True)
