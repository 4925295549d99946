"""The run in which the same turns counted and nothing happened, in one process: the oracle of every fault."""

import json
import tempfile
from pathlib import Path

import torch
from site_own import initial_secret, own_of

from suture.launch import build
from suture.launch.options.options import AskedOptions
from suture.runtime.exchange import LocalExchange
from suture.runtime.one_process import run_local
from suture.runtime.participant.participant import NoClientObserver, Participant
from suture.runtime.records.observers import NoRecorder
from suture.runtime.server.membership import Membership


def replay(options: str, kits: str, run: str, *names: str) -> str:
    """Plays ``--schedule replay:turns`` with ``--exchange local``, each client with its own site's images.

    Args:
        options: a JSON object of `RunOptions`.
        kits: the folder with the sites' kits.
        run: the run's folder, with its turns.jsonl.
        names: the sites'.

    Returns:
        weights_sha256.
    """
    torch.set_num_threads(1)
    chosen = AskedOptions(
        **json.loads(options), clients=len(names), schedule=f"replay:{run}/turns.jsonl"
    ).resolved()
    images = [build.build_site_images(chosen, name) for name in names]
    classes, device = images[0].source.classes, torch.device("cpu")
    agreement = chosen.site_agreement(classes)
    initial = initial_secret(Path(kits), Path(run))
    with tempfile.TemporaryDirectory() as folder:
        coordinator = build.build_coordinator(
            chosen,
            build.build_server(chosen, len(classes), device),
            run="replay",
            run_dir=Path(folder),
            num_classes=len(classes),
            membership=Membership(len(names), agreement),
        )
        coordinator.begin(False, lambda step: NoRecorder())
        membership = []
        for name, own in zip(names, images, strict=True):
            data = build.build_data(chosen, own, 0)
            drawn = own_of(Path(kits), Path(run), name)
            client = build.build_client(chosen, data, name, initial, device, None, drawn)
            membership.append(Participant(client, LocalExchange(coordinator), NoClientObserver()))
        run_local(membership, agreement)
    return coordinator.weights_sha256()
