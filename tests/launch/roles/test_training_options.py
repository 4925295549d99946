"""What changes how a net is trained: freezing, learning rates, weight decay, clipping, smoothing, patience.

Oracle of most: ordinary training of the joined net (`Unsplit`), bit for bit, and a run that was not killed.
"""

import hashlib
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import TINY, tiny_net
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torchvision.models import ResNet18_Weights, resnet18

import suture.models.registry as nets
from suture.launch import build
from suture.launch.options.options import AskedOptions, RunOptions
from suture.launch.roles.one_process import play_locally
from suture.launch.roles.unsplit import Unsplit
from suture.models.freezing import freeze, frozen_names, train_mode
from suture.models.precision import to_bf16
from suture.runtime.errors import ConfigError
from suture.runtime.scheduler import Together, parse_schedule
from suture.runtime.server.run_state import RunState
from suture.runtime.training.learning_rates import LearningRates

KEY = bytes(range(32))
CASES = {
    "cosine with warm-up, the bottom's own rate": {"lr_schedule": "cosine", "warm_up": 1, "lr_bottom": 1e-3},
    "step, weight decay": {"lr_schedule": "step", "weight_decay": 0.1, "optimizer": "adamw"},
    "clipping, labels at home": {"clip": 0.01, "labels": "home", "optimizer": "sgd"},
    "label smoothing": {"label_smoothing": 0.2, "clip": 0.01},
    "label smoothing, labels at home": {"label_smoothing": 0.2, "labels": "home"},
    "FedProx": {"prox": 5.0},
    "FedProx, labels at home": {"prox": 5.0, "labels": "home"},
    "bf16": {"precision": "bf16"},
    "bf16, labels at home": {"precision": "bf16", "labels": "home", "prox": 1.0},
    "frozen bottom": {"freeze": "bottom"},
    "all but the head, labels at home": {"freeze": "all-but-head", "labels": "home"},
    "all before a cut, augmented": {"freeze": "3", "augment": "fundus"},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A whole net's weights, whose batch norm has seen images."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    net = tiny_net(2)
    net(torch.rand(4, 3, 16, 16))
    path = tmp_path_factory.mktemp("weights") / "net.pt"
    torch.save(net.state_dict(), path)
    return path


def options_of(case: dict, weights: Path) -> RunOptions:
    return replace(TINY, **{"clients": 2, "epochs": 3, "weights": str(weights)} | case).resolved()


def unsplit(options: RunOptions) -> Unsplit:
    images = build.build_images(options, options.clients)
    names = [build.client_name(index) for index in range(options.clients)]
    data = {name: build.build_data(options, images, index) for index, name in enumerate(names)}
    trainer = Unsplit(options, data, KEY, len(images.source.classes))
    for round in range(1, options.epochs + 1):
        for (client,) in parse_schedule(options.schedule, options.seed).order(round, names):
            for batch in trainer.train_batches(round, client):
                trainer.train_step(round, client, batch)
    return trainer


@pytest.mark.parametrize("case", CASES)
def test_a_split_run_ends_with_the_weights_of_unsplit_training_killed_or_not(
    case, weights, tmp_path, monkeypatch
):
    """Oracle: unsplit training; the same run killed after the second turn's checkpoint; the plain run differs."""
    # Where the processor has no bf16 torch computes the same more slowly.
    monkeypatch.setattr(build, "has_bf16", lambda device: True)
    options = options_of(CASES[case], weights)
    expected = unsplit(options).weights_sha256()
    assert expected != plain_digest(options.labels, weights)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    assert play_locally(options, KEY, tmp_path / "whole").weights_sha256() == expected
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    with pytest.raises(Killed), monkeypatch.context() as patch:
        die_after_saving(patch, 2)
        play_locally(options, KEY, tmp_path / "killed")
    assert play_locally(options, KEY, tmp_path / "killed", resume=True).weights_sha256() == expected


AT_ONCE = {
    "FedProx, cosine": {"prox": 5.0, "lr_schedule": "cosine"},
    "frozen, step": {"freeze": "2", "lr_schedule": "step", "weight_decay": 0.1},
    "bf16, warm-up, labels at home": {"precision": "bf16", "warm_up": 1, "labels": "home"},
}


@pytest.mark.parametrize("schedule", list(Together))
@pytest.mark.parametrize("case", AT_ONCE)
def test_clients_that_train_at_once_resume_with_the_same_weights(
    case, schedule, weights, tmp_path, monkeypatch
):
    """Oracle: the run that was not killed; killed while the second round's parts were not yet averaged. Frozen weights
    are those of the file, bit for bit.
    """
    monkeypatch.setattr(build, "has_bf16", lambda device: True)
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    options = options_of(AT_ONCE[case] | {"schedule": schedule}, weights)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    whole = play_locally(options, KEY, tmp_path / "whole")
    plain = {name: value for name, value in AT_ONCE[case].items() if name == "labels"}
    (tmp_path / "plain").mkdir()
    without = play_locally(options_of(plain | {"schedule": schedule}, weights), KEY, tmp_path / "plain")
    assert whole.weights_sha256() != without.weights_sha256()
    with pytest.raises(Killed), monkeypatch.context() as patch:
        die_after_saving(patch, 4)  # a round is what was trained, its mean, and its end
        play_locally(options, KEY, tmp_path / "killed")
    assert (
        play_locally(options, KEY, tmp_path / "killed", resume=True).weights_sha256()
        == whole.weights_sha256()
    )
    if "freeze" in AT_ONCE[case]:
        file, top = torch.load(weights), whole.run_state.server.top.state_dict()
        assert torch.equal(top["second.weight"], file["second.weight"])
        assert not torch.equal(top["last.weight"], file["last.weight"])


@cache
def plain_digest(labels: str, weights: Path) -> str:
    """What the run without any of these options ends with."""
    return unsplit(options_of({"labels": labels}, weights)).weights_sha256()


class Killed(BaseException):
    """The process died here."""


def die_after_saving(patch: pytest.MonkeyPatch, times: int) -> None:
    save, saved = RunState.save, []

    def dying(run_state):
        save(run_state)
        saved.append(1)
        if len(saved) == times:
            raise Killed

    patch.setattr(RunState, "save", dying)


# Frozen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freeze", "moved"),
    [
        ("bottom", {"second", "norm", "last"}),
        ("all-but-head", {"last"}),
        ("2", {"norm", "last"}),
        ("3", {"last"}),
    ],
)
@pytest.mark.parametrize("overlap", [False, True])
def test_frozen_weights_and_statistics_are_unmoved_bit_for_bit(freeze, moved, overlap, weights, tmp_path):
    """Oracle: the file that training started from; all other modules have moved."""
    options = options_of({"freeze": freeze, "overlap": overlap, "clients": 1}, weights)
    coordinator = play_locally(options, KEY, tmp_path)
    before = torch.load(weights)
    split = build.build_split(options, 2, KEY)
    top = coordinator.run_state.server.top.state_dict()
    trained = {name for name in before if name in top and not torch.equal(top[name], before[name])}
    frozen_top = {name for name in top if name.split(".")[0] not in moved}
    assert not trained & frozen_top
    assert {name.split(".")[0] for name in trained} == moved & {name.split(".")[0] for name in top}
    assert not [name for name, p in split.bottom.named_parameters() if p.requires_grad]


def test_a_batch_norm_that_is_not_frozen_trains_beside_one_that_is():
    """Oracle: running statistics after a forward in training mode: moved, and not."""
    with torch.device("cpu"):
        split = nets.build("resnet18", cut="3", num_outputs=2)
    freeze(split, frozen_names(split, "bottom", "resnet18"))
    before = {name: t.clone() for name, t in nets.whole_state_dict(split).items()}
    train_mode(split.bottom), train_mode(split.top)
    split.joined()(torch.rand(2, 3, 32, 32))
    after = nets.whole_state_dict(split)
    assert torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])
    assert not torch.equal(after["layer1.0.bn1.running_mean"], before["layer1.0.bn1.running_mean"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"freeze": "bottom"},
            "freeze bottom keeps weights as they are, and without --weights they are random",
        ),
        ({"freeze": "top", "weights": True}, "freeze must be one of bottom, all-but-head, N, got 'top'"),
        ({"freeze": "99", "weights": True}, "cut must lie in 0..5 for module:tiny:tiny_net, got 99"),
        ({"lr_bottom": 0.0}, "lr-bottom must be above 0 and finite, got 0.0"),
        ({"clip": -1.0}, "clip must be above 0 and finite, got -1.0"),
        ({"weight_decay": -1.0}, "weight-decay must be at least 0 and finite, got -1.0"),
        ({"warm_up": 2}, "warm-up must be fewer rounds than the run's 2, got 2; raise --epochs"),
        ({"label_smoothing": 1.0}, "label-smoothing must lie in 0 to below 1, got 1.0; use 0.1, say"),
        ({"prox": -1.0}, "prox must be at least 0 and finite, got -1.0"),
        ({"early_stop": 1}, "early-stop 1 looks at validation scores, and validation-images is 0"),
        ({"weights": "nowhere.pt"}, "weights nowhere.pt is no file; name a state dict"),
    ],
)
def test_what_cannot_work_is_refused(given, words, weights):
    """Oracle: the message names value, bound and remedy."""
    if given.get("weights") is True:
        given = given | {"weights": str(weights)}
    with pytest.raises(ConfigError, match=re.escape(words)):
        replace(TINY, **given).resolved()


def test_label_smoothing_is_refused_for_masks():
    """Oracle: the message."""
    with pytest.raises(
        ConfigError, match="label-smoothing is for classification, and unet is for segmentation"
    ):
        AskedOptions(data="chest-phantom", label_smoothing=0.1).resolved()


# FedProx and bf16 -------------------------------------------------------------------------------------


def test_a_strong_pull_keeps_the_bottom_near_its_start_and_leaves_the_top_alone(weights, tmp_path):
    """Oracle: how far a run without the pull moves; the first turn of both starts from one file."""
    moved = []
    for number, prox in enumerate((0.0, 100.0)):
        options = options_of(
            {"prox": prox, "clients": 1, "epochs": 1, "optimizer": "sgd", "lr": 1e-3, "train_images": 32},
            weights,
        )
        trainer, before = unsplit(options), torch.load(weights)
        parts = trainer._parts
        moved.append(
            {
                name: sum(float((t.detach() - before[key]).norm()) for key, t in part.named_parameters())
                for name, part in parts.items()
            }
        )
        (tmp_path / str(number)).mkdir()
        assert play_locally(options, KEY, tmp_path / str(number)).weights_sha256() == trainer.weights_sha256()
    free, held = moved
    assert held["bottom"] < 0.9 * free["bottom"] and held["top"] > 0.9 * free["top"]


def test_bf16_computes_in_bf16_and_gives_fp32():
    """Oracle: torch's autocast around each part by hand; the state dict is that of the net without it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        split = nets.build("resnet18", cut="3", num_outputs=2)
    names, image = list(nets.whole_state_dict(split)), torch.rand(2, 3, 32, 32)
    joined = split.joined().eval()
    exact = joined(image)
    with torch.autocast("cpu", torch.bfloat16):
        smashed = split.bottom(image).smashed
    with torch.autocast("cpu", torch.bfloat16):
        expected = split.top(smashed.float()).float()
    to_bf16(split)
    assert torch.equal(split.bottom(image).smashed, smashed.float())
    output = split.joined().eval()(image)
    assert output.dtype is torch.float32 and torch.equal(output, expected) and not torch.equal(output, exact)
    assert list(nets.whole_state_dict(split)) == names


def test_bf16_is_refused_where_the_processor_has_none(weights, monkeypatch):
    """Oracle: the message."""
    monkeypatch.setattr(build, "has_bf16", lambda device: False)
    with pytest.raises(ConfigError, match="precision is bf16, and this machine's cpu has none"):
        build.device_of(options_of({"precision": "bf16", "device": "cpu"}, weights), 0)


# Learning rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("cosine", lambda optimizer: CosineAnnealingLR(optimizer, 6)),
        ("step", lambda optimizer: StepLR(optimizer, 2)),
    ],
)
def test_a_schedule_is_torchs_own(schedule, theirs):
    """Oracle: torch's scheduler, stepped once a round."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler, expected = theirs(optimizer), []
    for _ in range(6):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step(), scheduler.step()
    rates = LearningRates(schedule=schedule, rounds=6)
    assert [0.5 * rates.factor(round) for round in range(1, 7)] == pytest.approx(expected, rel=1e-12)


def test_a_warm_up_grows_in_equal_steps_and_the_schedule_follows():
    """Oracle: by hand."""
    rates = LearningRates(warm_up=3, rounds=5)
    assert [rates.factor(round) for round in range(1, 6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


# Patience and the best round --------------------------------------------------------------------------


def scored(patch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Makes the validation score of each round what ``values`` say."""
    keep = RunState._keep_best

    def rigged(run_state):
        for scores in run_state.scores.values():
            scores["validation"]["auroc"] = values[run_state.turn_log.round - 1]
        keep(run_state)

    patch.setattr(RunState, "_keep_best", rigged)


@pytest.mark.parametrize(
    ("values", "best", "last"),
    [
        ([0.5, 0.9, 0.8, 0.9, 0.95], 2, 4),
        ([0.9, 0.8, 0.7, 0.99, 1.0], 1, 3),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 5, 5),
    ],
)
def test_early_stop_ends_the_run_and_keeps_the_best_round(values, best, last, weights, tmp_path, monkeypatch):
    """Oracle: by hand from the scores; the best round's top and hand-off are those of a run with as many rounds."""
    options = options_of({"validation_images": 4, "epochs": 5, "early_stop": 2, "test_images": 4}, weights)
    scored(monkeypatch, values)
    folders = [tmp_path / name for name in ("run", "short")]
    for folder in folders:
        folder.mkdir()
    state = play_locally(options, KEY, folders[0]).run_state
    assert (state.best_round, state.turn_log.round) == (best, last)
    assert all("test" in scores for scores in state.best_scores.values())
    short = play_locally(replace(options, epochs=best), KEY, folders[1]).run_state
    release = state.release()
    top = release.best_top if best != last else release.top
    assert top is not None and all(torch.equal(t, short.server.top.state_dict()[n]) for n, t in top.items())
    if best != last:
        assert release.best_handoff is not None and release.best_handoff.turn == short.handoff.turn


def test_a_run_that_stopped_early_stays_ended_when_it_is_resumed(weights, tmp_path, monkeypatch):
    """Oracle: the run that was not killed: its turns and its digest."""
    monkeypatch.setattr(build, "new_run_id", lambda: "run")
    options = options_of({"validation_images": 4, "epochs": 5, "early_stop": 1, "test_images": 4}, weights)
    scored(monkeypatch, [0.9, 0.8, 0.7, 0.6, 0.5])
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = play_locally(options, KEY, tmp_path / "whole")
    with pytest.raises(Killed), monkeypatch.context() as patch:
        die_after_saving(patch, 6)  # two rounds of two clients, and the two rounds' ends
        play_locally(options, KEY, tmp_path / "killed")
    resumed = play_locally(options, KEY, tmp_path / "killed", resume=True)
    assert resumed.run_state.turn_log.round == whole.run_state.turn_log.round == 2
    assert resumed.weights_sha256() == whole.weights_sha256()
    assert resumed.run_state.best_scores == whole.run_state.best_scores


# Weights to start from --------------------------------------------------------------------------------


def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A file of the right shape in torch's cache, in place of torchvision's, which a test cannot download."""
    torch.manual_seed(5)
    state = resnet18(weights=None).state_dict()
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(state, cache / "draft")
    digest = hashlib.sha256((cache / "draft").read_bytes()).hexdigest()
    name = f"resnet18-{digest[:8]}.pth"
    (cache / "draft").rename(cache / name)
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", f"http://localhost:1/{name}")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return state


RESNET = AskedOptions(model="resnet18", image_size=32, weights="imagenet", clients=1)


@pytest.mark.parametrize("model", ["resnet18", "torchvision:resnet18"])
def test_imagenet_weights_are_torchvisions_with_a_head_that_is_newly_drawn(model, tmp_path, monkeypatch):
    """Oracle: the cached file of 1,000 classes; the run without it, for the head of two."""
    state = published(tmp_path, monkeypatch)
    options = replace(RESNET, model=model).resolved()
    generator = torch.get_rng_state()
    loaded = nets.whole_state_dict(build.build_split(options, 2, KEY))
    drawn = nets.whole_state_dict(build.build_split(replace(options, weights=None), 2, KEY))
    assert all(
        torch.equal(loaded[name], (drawn if name.startswith("fc.") else state)[name]) for name in loaded
    )
    assert len(loaded["fc.bias"]) == 2 and len(generator) == len(torch.get_rng_state())
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    assert options.agreement(2)["weights"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_damaged_file_in_the_cache_is_refused(tmp_path, monkeypatch):
    """Oracle: one byte more than was published."""
    published(tmp_path, monkeypatch)
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(
        ConfigError, match="is damaged: its SHA-256 begins .* remove it, and it is fetched again"
    ):
        RESNET.resolved()


def test_without_a_network_the_sentence_says_where_the_file_belongs(tmp_path, monkeypatch):
    """Oracle: a port that nobody listens on."""
    published(tmp_path, monkeypatch)
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    file.unlink()
    words = f"weights imagenet: cannot download http://localhost:1/.*; bring the file to {file}, or give --weights"
    with pytest.raises(ConfigError, match=words):
        RESNET.resolved()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("unet", "weights imagenet are torchvision's, and it has none for unet"),
        ("torchvision:googlenet", "wants its pixels scaled in another way"),
    ],
)
def test_a_net_without_fitting_weights_is_refused(model, words):
    """Oracle: the message."""
    data = "chest-phantom" if model == "unet" else "fundus-phantom"
    size = 224 if "google" in model else None
    with pytest.raises(ConfigError, match=words):
        AskedOptions(data=data, model=model, weights="imagenet", image_size=size, cut="2").resolved()


def test_a_safetensors_file_is_read_as_a_torch_file(weights, tmp_path):
    """Oracle: the run from the same weights in torch's format."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(torch.load(weights), tmp_path / "net.safetensors")
    one, two = (
        nets.whole_state_dict(build.build_split(options_of({}, path), 2, KEY))
        for path in (weights, tmp_path / "net.safetensors")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
