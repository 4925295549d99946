"""``suture attack RUN --attack SPEC``: an attack on the wire recording of a run that has ended."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from suture.launch import build
from suture.launch.deploy.trained import load_trained
from suture.launch.host.cores import ready_torch
from suture.launch.lab import lab
from suture.launch.lab.judging import judge_run, read_run, run_key
from suture.launch.options.options import RunOptions
from suture.runtime.errors import CheckpointError, ConfigError
from suture.runtime.hooks import SmashedBatch
from suture.runtime.randomness import PUBLIC, BatchAddress
from suture.runtime.state.checkpoint import Checkpoints
from suture.threats.attacks.live import LiveAttack
from suture.threats.attacks.recording import Recording
from suture.threats.needs import Needs

log = logging.getLogger(__name__)


def attack_recording(
    run_dir: Path, spec: str, *, handoff_key: str | None = None, name: str | None = None, read: bool = True
) -> dict[str, Any]:
    """Attacks RUN/recording, judges what came of it and returns the verdict.

    Args:
        run_dir: RUN, ended, recorded with ``--recording``.
        spec: as for ``--attack``; the attack must be passive.
        handoff_key: file with the clients' key, which the lab needs for queries and for the judge.
        name: folder under RUN/attacks; None for one named after the attack.
        read: see `judging.judge_run`.

    Raises:
        SutureError: no recording, a recording of another run or cut, an active attack, or no key.
    """
    recorded, run = read_run(run_dir)
    options = replace(recorded, attack=spec)
    ready_torch(options)
    asked = options.attack_spec()
    if asked is None or asked.needs.live:
        raise ConfigError(
            f"attack {spec} acts while the net is trained; run it live with 'suture train --attack {spec}'"
        )
    key = run_key(options, run_dir, handoff_key)
    folder = run_dir / "attacks" / (name or re.sub(r"[^\w.-]+", "-", spec))
    if folder.exists():
        shutil.rmtree(folder)
    num_classes, top = _final_top(options, run_dir)
    attack = lab.build_attack(options, top, num_classes, folder)
    assert attack is not None
    split = build.build_split(options, num_classes, key)
    recording = Recording.open(
        run_dir / lab.RECORDING, lab.recording_origin(options, run, build.smashed_spec(options, split).shape)
    )
    for batch in recording.play():
        if batch.phase != "query":  # queries of another attack's images, if any
            attack.observe(batch)
            if (gradient := recording.received(batch)) is not None:
                attack.received(batch, gradient)
    if asked.needs.known is not None:
        data = build.build_data(options, build.build_images(options, options.clients), 0)
        lab.tell_known(asked.needs.known, options, data, folder, key)
    if asked.needs.queries != "none":
        _query(options, asked.needs, attack, run_dir, key)
    attack.finish()
    return judge_run(run_dir, handoff_key=handoff_key, folder=folder, read=read)


def _final_top(options: RunOptions, run_dir: Path) -> tuple[int, torch.nn.Module]:
    """The server's own top after the last turn, which a server keeps."""
    newest = Checkpoints(run_dir / "checkpoints").load_newest()
    if newest is None:
        raise CheckpointError(f"{run_dir}/checkpoints is empty; the attack needs the server's top")
    state = newest[1]["server"]["top"]
    num_classes = len(build.build_images(options, options.clients).source.classes)
    top = build.build_split(options, num_classes, PUBLIC).top
    top.load_state_dict(state)
    return num_classes, top


def _query(options: RunOptions, needs: Needs, attack: LiveAttack, run_dir: Path, key: bytes) -> None:
    """Has client0, rebuilt with its trained bottom and its defence, pass the attacker's images through it."""
    images = build.build_images(options, options.clients)
    data = build.build_data(options, images, 0)
    name, round = build.client_name(0), options.epochs
    assert attack.server_view.folder is not None
    auxiliary = attack.auxiliary if needs.queries == "auxiliary" else None
    lab.offer_queries(needs, data, auxiliary, attack.server_view.folder)
    client = build.build_client(options, data, name, key, torch.device("cpu"), None).model
    trained = load_trained(run_dir / "clients" / name / "model.pt", "last")
    client.bottom.load_state_dict(trained.net.joined.bottom.state_dict())
    client.bottom.eval()
    for passed in range(needs.query_rounds):
        with torch.no_grad():
            for batch in data.test_batches(options.batch_size, "offered"):
                address = BatchAddress.evaluation(round - passed, name, batch.number)
                client.randomness.reseed("bottom/offered", *address)
                smashed = client.bottom(batch.inputs)[0]
                defended = client.defence.transform(smashed) if client.defence.acts_in_evaluation else smashed
                attack.observe(SmashedBatch(defended, None, (name,), round - passed, batch.number, "query"))
