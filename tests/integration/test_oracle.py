"""Split training over real processes equals unsplit training, to the last bit.

Oracle: `suture.launch.roles.unsplit.Unsplit`, ordinary training of the joined net with the same seeds, images and order.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from suture.launch import build
from suture.launch.kits.provision import Project, provision
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.roles.one_process import play_locally
from suture.launch.roles.unsplit import Unsplit
from suture.runtime.scheduler import Together, parse_schedule

KEY = bytes(range(32))
RESNET = {
    "model": "resnet18",
    "image_size": 32,
    "train_images": 8,
    "validation_images": 0,
    "test_images": 4,
    "batch_size": 4,
    "epochs": 2,
    "lr": 1e-3,
    "exchange": "autograd",
}
UNET = RESNET | {"data": "chest-phantom", "model": "unet", "width": 4}


def _cases() -> list[dict]:
    cases = [RESNET | {"cut": str(cut), "clients": 1 + cut % 2} for cut in range(9)]
    cases += [RESNET | {"cut": "layer2.0", "clients": 2}, RESNET | {"cut": "3", "clients": 1}]
    cases += [UNET | {"cut": str(cut), "clients": clients} for cut in (1, 2, 3, 4) for clients in (1, 2)]
    cases += [
        RESNET | {"cut": "5", "clients": 2, "labels": "home"},
        RESNET | {"cut": "3", "clients": 2, "optimizer": "sgd", "lr": 0.01},
        RESNET | {"cut": "3", "clients": 2, "schedule": "shuffled", "class_weights": "balanced"},
        RESNET | {"cut": "3", "clients": 2, "norms": "local"},
    ]
    fused = [RESNET | {"cut": cut, "clients": 1} for cut in "0137"] + [UNET | {"cut": "2", "clients": 2}]
    fused += [UNET | {"cut": "4", "clients": 1}, RESNET | {"cut": "5", "clients": 2, "labels": "home"}]
    return cases + [case | {"exchange": "fused", "epochs": 1} for case in fused]


# The unsplit oracle cannot follow what a wire format leaves out, or a weight that is one step old: over RPC and in one
# process they are the same.
FUSED = {"exchange": "fused", "epochs": 1}
INEXACT = [
    RESNET | FUSED | {"cut": "3", "clients": 2, "wire": "int8"},
    # autograd's own casts
    RESNET
    | {"cut": "5", "clients": 1, "epochs": 1, "labels": "home", "exchange": "autograd", "wire": "bf16"},
    RESNET | FUSED | {"cut": "3", "clients": 2, "overlap": True},
    UNET | FUSED | {"cut": "2", "clients": 2, "overlap": True},
    UNET | FUSED | {"cut": "2", "clients": 1, "wire": "int8"},
    RESNET
    | FUSED
    | {"cut": "3", "clients": 1, "batch_size": 8, "train_images": 21, "overlap": True}
    | {"defence": "dcor+noise:scale=0.1", "wire": "topk:0.2"},
]
# What clients come to who train at once, tests/runtime/server/test_step_order.py compares with training written down plainly.
AT_ONCE = [
    UNET | FUSED | {"cut": "2", "clients": 2, "epochs": 2, "schedule": schedule} for schedule in Together
]
AT_ONCE += [RESNET | FUSED | {"cut": "3", "clients": 2, "schedule": schedule} for schedule in Together]
OVER_GRPC = [
    case | {"carrier": "grpc"}
    for case in (
        RESNET | FUSED | {"cut": "1", "clients": 2},
        RESNET | FUSED | {"cut": "5", "clients": 1, "labels": "home", "overlap": True},
        RESNET | FUSED | {"cut": "3", "clients": 2, "wire": "topk:0.2", "defence": "dcor"},
        UNET | FUSED | {"cut": "2", "clients": 2, "epochs": 2},
        UNET | FUSED | {"cut": "2", "clients": 2, "schedule": "parallel"},
        UNET | FUSED | {"cut": "2", "clients": 2, "epochs": 2, "norms": "local"},
        UNET | FUSED | {"cut": "2", "clients": 2, "schedule": "concat"},
    )
]
EXACT = _cases()
TRACED = RESNET | FUSED | {"cut": "3", "clients": 1, "train_images": 12, "trace": True}
CASES = [*EXACT, *INEXACT, *AT_ONCE, *OVER_GRPC, TRACED]
TOLD = ("carrier", "labels", "optimizer", "schedule", "exchange", "wire", "overlap", "norms")
NAMES = [
    f"{c['model']}-cut{c['cut']}-{c['clients']}-{''.join(str(c.get(name, '')) for name in TOLD)}"
    for c in CASES
]


pytestmark = pytest.mark.timeout(900)  # all cases are played before the first is compared


def play(cases: list[dict], out: Path) -> dict[int, dict]:
    """All ``cases``, played by one server and two client processes; what each rank reported."""
    # Each case listens on a port of its own: of the address the certificate has the host.
    provision(Project(address="127.0.0.1:1", sites=("client0", "client1")), out / "kits")
    (out / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("world.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(port), str(out / "cases.json"), str(out)],
            env=os.environ | {"WORLD": "3", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=800)
            assert rank.returncode == 0, errors[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return {rank: json.loads((out / f"{rank}.json").read_text()) for rank in range(3)}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[int, dict]:
    """All cases, played once."""
    return play(CASES, tmp_path_factory.mktemp("world"))


def _options(case: dict) -> RunOptions:
    return AskedOptions(
        **{name: value for name, value in case.items() if name not in ("carrier", "trace")}
    ).resolved()


def _unsplit(case: dict) -> Unsplit:
    torch.set_num_threads(1)
    options = _options(case)
    images = build.build_images(options, options.clients)
    names = [build.client_name(index) for index in range(options.clients)]
    data = {name: build.build_data(options, images, index) for index, name in enumerate(names)}
    trainer = Unsplit(options, data, KEY, len(images.source.classes))
    scheduler = parse_schedule(options.schedule, options.seed)
    for round in range(1, options.epochs + 1):
        for (client,) in scheduler.order(round, names):
            losses = [
                trainer.train_step(round, client, batch) for batch in trainer.train_batches(round, client)
            ]
            trainer.losses[client] = sum(losses) / len(losses)
    return trainer


@pytest.mark.parametrize("number", range(len(EXACT)), ids=NAMES[: len(EXACT)])
def test_processes_end_with_the_weights_of_unsplit_training(world, number):
    """Oracle: unsplit training, bit for bit; losses and test scores are its own, too."""
    expected = _unsplit(CASES[number])
    served = world[0]["cases"][number]
    assert served["weights_sha256"] == expected.weights_sha256()
    assert served["train_loss"] == expected.losses
    last = expected.options.epochs
    for client, scores in served["scores"].items():
        assert scores["test"] == pytest.approx(expected.evaluate(client, last)["test"], abs=1e-6)


ALSO_LOCAL = [*range(0, len(EXACT), 3), *range(len(EXACT), len(CASES))]


@pytest.mark.parametrize("number", ALSO_LOCAL, ids=[NAMES[number] for number in ALSO_LOCAL])
def test_one_process_ends_with_the_weights_of_many(world, number, tmp_path):
    """Oracle: the same case over RPC; the explicit step of one process is that of `--exchange fused`, too."""
    torch.set_num_threads(1)
    coordinator = play_locally(_options(CASES[number]), KEY, tmp_path)
    assert coordinator.weights_sha256() == world[0]["cases"][number]["weights_sha256"]


@pytest.mark.parametrize("number", range(len(CASES)), ids=NAMES)
def test_the_server_owns_one_object_a_client_and_none_that_nobody_refers_to(world, number):
    """Oracle: torch's own count of remote references' owners, at every training step and after the last client left."""
    served = world[0]["cases"][number]
    by_reference = CASES[number]["clients"] if "carrier" not in CASES[number] else 0
    assert served["owned_while_training"] == [by_reference]
    assert served["owned_after_leaving"] == 0


def test_one_step_enters_the_modules_that_the_page_lists(world):
    """Oracle: Python's profiler, in all threads of both processes, from one step's end to the next one's."""
    entered = set(world[0]["cases"][-1]["entered"]) | set(world[1]["cases"][-1]["entered"])
    page = (Path(__file__).resolve().parents[2] / "docs" / "architecture.md").read_text()
    table = page[page.index("The hops of such a step") : page.index("## A turn and a run")]
    listed = {name for name in re.findall(r"`([a-z_/]+\.py)`", table) if not name.startswith("tests/")}
    assert entered == listed
    assert len(entered) <= 16


def test_no_client_receives_a_python_call(world):
    """Oracle: the functions that RPC ran at each rank; the server's are the four of its table and no others."""
    assert world[1]["calls"] == [] and world[2]["calls"] == []
    # RPC itself announces a newcomer to the server.
    assert set(world[0]["calls"]) - {"announced", "devices"} == {"connect", "ask", "forward", "step"}


REAL = {
    "ResNet-34 on photographs": {
        "data": "kaggle-dr:{}/idrid",
        "model": "resnet34",
        "cut": "3",
        "image_size": 64,
        "train_images": 48,
        "validation_images": 8,
        "test_images": 16,
        "batch_size": 16,
    },
    "U-Net on lungs": {
        "data": "kaggle-cxr:{}/lungs",
        "model": "unet",
        "cut": "2",
        "width": 16,
        "image_size": 64,
        "train_images": 16,
        "validation_images": 2,
        "test_images": 4,
        "batch_size": 4,
    },
}


@pytest.mark.slow
def test_real_images_over_every_carrier_end_with_the_same_weights(real_images, tmp_path):
    """Oracle: the same run in one process; gRPC, RPC fused and RPC autograd, two clients, bit for bit. Prints the digests."""
    ways = ({"carrier": "grpc"}, {"exchange": "fused"}, {"exchange": "autograd"})
    cases = [
        case | {"data": case["data"].format(real_images), "clients": 2, "epochs": 2, "threads": 1} | way
        for case in REAL.values()
        for way in ways
    ]
    digests = [played["weights_sha256"] for played in play(cases, tmp_path)[0]["cases"]]
    for number, name in enumerate(REAL):
        torch.set_num_threads(1)
        folder = tmp_path / f"local{number}"
        folder.mkdir()
        local = play_locally(_options(cases[3 * number + 1]), KEY, folder).weights_sha256()
        print(
            f"\n{name}: gRPC, RPC fused, RPC autograd, local: {digests[3 * number : 3 * number + 3]}, {local}"
        )
        assert digests[3 * number : 3 * number + 3] == [local] * 3
