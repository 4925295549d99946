"""A run that is over in a moment: a net of a few weights, images of noise, two batches a turn and more.

For tests of what carries a run; what is computed is real, and the same wherever it is carried.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torch.futures import Future

from suture.launch.options.options import AskedOptions
from suture.models.split import BottomOutput, SplitModel
from suture.runtime.client.client import Client
from suture.runtime.client.model import ClientConfig, ClientModel
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.consortium.site import SiteConsortium
from suture.runtime.data.client_data import ClientData
from suture.runtime.data.partition import Share
from suture.runtime.data.source import Example, Source, Task
from suture.runtime.randomness import Randomness
from suture.runtime.records.observers import NoRecorder, Recorder
from suture.runtime.scheduler import RoundRobin, Scheduler
from suture.runtime.server.api import ServerApi
from suture.runtime.server.coordinator import Coordinator, RunConfig
from suture.runtime.server.membership import Membership, OpenMembership
from suture.runtime.server.model import ServerModel
from suture.runtime.server.run_state import RunState
from suture.runtime.server.turn_log import TurnLog
from suture.runtime.state.checkpoint import Checkpoints
from suture.runtime.training.optim import OptimizerConfig
from suture.runtime.wire.checks import TensorSpec
from suture.runtime.wire.messages import unwrap

KEY, SGD = bytes(range(32)), OptimizerConfig(name="sgd", lr=0.1)
BATCH, NUM_BATCHES = 2, 3


class Bottom(nn.Module):
    """1x4x4 images to 2x4x4 smashed data; the skip is a tensor of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        out = self.conv(x)
        return BottomOutput(torch.tanh(out), (out * 0.5,))


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 2)

    def forward(self, out, skips):
        return self.linear((out + skips[0]).flatten(1))


class Drawn(Source):
    """Fifty-five images of noise with two classes, for five clients."""

    def __init__(self):
        examples = [Example(f"i{n}", f"p{n}", n % 2) for n in range(55)]
        super().__init__("drawn", Task.CLASSIFICATION, ("well", "ill"), examples)

    def read(self, index, size, channels):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (channels, size, size), dtype=torch.uint8, generator=generator)
        return image, torch.tensor(index % 2)


def build_parts(home: bool) -> SplitModel:
    torch.manual_seed(1)
    if home:
        return SplitModel(Bottom(), nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh()), Head())
    return SplitModel(Bottom(), nn.Sequential(nn.Flatten(), nn.Linear(32, 2)))


def build_client(
    index,
    home=False,
    defence=None,
    detector=None,
    *,
    num_train=6,
    consortium: SiteConsortium | None = None,
    **config,
) -> Client:
    """A client of eleven images; ``config`` changes how it trains, see `ClientConfig`."""
    first = 11 * index
    share = Share(
        train=tuple(range(first, first + num_train)),
        validation=tuple(range(first + num_train, first + 8)),
        test=tuple(range(first + 8, first + 11)),
    )
    config = {"name": f"client{index}", "batch_size": BATCH, "optimizer": SGD} | config
    data = ClientData(Drawn(), share, image_size=4, channels=1, normalisation="symmetric", augment="none")
    model = ClientModel(
        build_parts(home),
        data,
        ClientConfig(labels_shared=not home, **config),
        randomness=Randomness(KEY, 0),
        output=TensorSpec((2, 4, 4) if home else (2,), torch.float32, config["batch_size"]),
        defence=defence,
        detector=detector,
    )
    return Client(model, KEY, consortium)


def build_server(home=False, attack=None, *, batch_size=BATCH) -> ServerModel:
    labels = None if home else TensorSpec((), torch.int64, batch_size, below=2)
    smashed = TensorSpec((2, 4, 4), torch.float32, batch_size)
    top = build_parts(home).top
    return ServerModel(
        top,
        SGD.build(top.parameters()),
        smashed=smashed,
        labels=labels,
        attack=attack,
    )


def asked(api: ServerApi, endpoint: str, *messages):
    """What the server answers at once; raises what it refuses with."""
    answer = getattr(api, endpoint)(*messages)
    return unwrap(answer.value() if isinstance(answer, Future) else answer)


def build_coordinator(
    run_dir: Path,
    server: ServerModel,
    num_clients: int,
    *,
    rounds: int = 1,
    recorder: Recorder | None = None,
    scheduler: Scheduler | None = None,
    door: OpenMembership | None = None,
    lease: float = 60.0,
    resume: bool = False,
    in_flight: int = 1,
    board: ServerBoard | None = None,
) -> Coordinator:
    """A run that has begun and waits for its clients."""
    run_dir.mkdir(exist_ok=True)
    turn_log = TurnLog(scheduler or RoundRobin(), rounds)
    kept = Checkpoints(run_dir / "checkpoints")
    run_state = RunState("run", run_dir, server, turn_log, kept, ("auroc",), board)
    config = RunConfig(run="run", run_dir=run_dir, lease=lease, in_flight=in_flight)
    coordinator = Coordinator(run_state, Membership(num_clients, {}, door), config)
    coordinator.begin(resume, lambda step: recorder or NoRecorder())
    return coordinator


def tiny_net(num_outputs):
    """3 x 16 x 16 images to 8 x 8 x 8 at the cut and 16 features before the last layer."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, 8, 3, stride=2, padding=1),
            act=nn.ReLU(),
            second=nn.Conv2d(8, 16, 3, stride=2, padding=1),
            norm=nn.BatchNorm2d(16),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            last=nn.Linear(16, num_outputs),
        )
    )


TINY = AskedOptions(
    model=f"module:{__name__}:tiny_net",
    cut="act",
    image_size=16,
    clients=1,
    train_images=8,
    validation_images=0,
    test_images=2,
    batch_size=4,
    epochs=2,
    lr=1e-2,
    augment="none",
    exchange="local",
)
