"""The bounds of a run's messages leave room for the longest honest one, and not for much more.

Oracle: the messages themselves, made by a real client and server and packed as they cross.
"""

import dataclasses

import pytest
import torch

from suture.launch import build
from suture.launch.options.options import AskedOptions
from suture.runtime.grpc.chunks import SMALL
from suture.runtime.randomness import Randomness
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.wire import frames
from suture.runtime.wire.compression import Packer
from suture.runtime.wire.messages import OutputGradient, Release, Share, StepReply, Upload

KEY, CPU = bytes(range(32)), torch.device("cpu")
CASES = {
    "resnet": {"model": "resnet18", "image_size": 32, "cut": "4"},
    "resnet, labels at home": {"model": "resnet18", "image_size": 32, "cut": "3", "labels": "home"},
    "resnet, late": {"model": "resnet18", "image_size": 32, "cut": "8"},
    "unet": {"data": "chest-phantom", "model": "unet", "width": 8, "image_size": 32, "labels": "home"},
    "with a defence's net": {"model": "resnet18", "image_size": 32, "cut": "4", "defence": "proxy:width=8"},
}
WIRES = ("fp32", "bf16", "int8", "topk:0.5", "topk:1")


def length(message) -> int:
    return sum(len(piece) for piece in frames.pack([message]))


@pytest.fixture(params=CASES)
def made(request):
    """Options, a client that has stepped once, so that its optimizer has a state, a server, and how many classes."""
    torch.set_num_threads(1)
    case = CASES[request.param]
    options = AskedOptions(
        clients=1, train_images=8, validation_images=0, test_images=2, batch_size=4, optimizer="adam", **case
    ).resolved()
    images = build.build_images(options, 1)
    data = build.build_data(options, images, 0)
    client = build.build_client(options, data, "client0", KEY, CPU, None)
    for parameter in client.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    client.model.optimizer.step()
    client.join("run")
    return options, client, build.build_server(options, len(data.classes), CPU), len(data.classes)


def test_what_an_honest_run_sends_fits(made):
    """Oracle: the lengths of the messages; a hand-off has weights and two moments, a release the top twice."""
    options, client, server, num_classes = made
    limits = build.wire_limits(options, num_classes)
    turn = Turn(TurnKind.TRAIN, "client0", 1, 1)
    handoff = client.seal(turn)
    share = Share("client0", client.seal(dataclasses.replace(turn, together=True)))
    top = server.top.state_dict()
    release = Release(top, 1, top, handoff)
    defences = build._DEFENCE_BYTES if options.defence_specs() else 0
    assert max(length(handoff), length(share)) <= limits.handoff <= 2 * length(handoff) + 2 * SMALL + defences
    assert length(release) <= limits.release <= 2 * length(release) + 4 * SMALL + defences


@pytest.mark.parametrize("wire", WIRES)
def test_a_whole_batch_fits_in_every_format(made, wire):
    """Oracle: the lengths, of smashed data with labels, of an output, of their gradients."""
    options, client, server, num_classes = made
    limits, packer = build.wire_limits(options, num_classes), Packer(wire, Randomness(KEY, 0))
    smashed = torch.randn(options.batch_size, *server.smashed.shape)
    output = torch.randn(options.batch_size, *client.model.output.shape)
    sent, back = (packer.pack(tensor, "smashed", 1, "client0", 0) for tensor in (smashed, output))
    labels = torch.zeros(options.batch_size, dtype=torch.int64)
    messages = (
        Upload(1, 0, "train", sent, labels),
        OutputGradient(1, 0, 0.5, back),
        StepReply(torch.tensor(0.5), 0.5, sent),
        back,
    )
    assert max(map(length, messages)) <= limits.batch <= 4 * smashed.nbytes + 4 * output.nbytes + SMALL
    names = ("train", "backward", "predict")
    assert {limits.up(name) for name in names} == {limits.down(name) for name in names} == {limits.batch}


def test_nothing_is_computed_for_the_bounds():
    """Oracle: a net that would not fit into memory: only its shapes are multiplied."""
    options = AskedOptions(
        model="unet", data="chest-phantom", width=2048, image_size=64, labels="home", clients=1
    )
    assert build.wire_limits(options.resolved(), 2).release > 2**36
