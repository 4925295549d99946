"""Nets of others by name: torchvision's and a user's own factory, in the registry and in a whole run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from suture.cli import suture
from suture.launch.deploy.trained import load_trained
from suture.launch.options.options import AskedOptions
from suture.launch.roles.one_process import run_in_one_process
from suture.launch.roles.unsplit import run_unsplit
from suture.models.cuts import cut_table
from suture.models.registry import build, cut_points, model_entry, validate_image_size, whole_state_dict
from suture.runtime.errors import ConfigError
from suture.runtime.state.handoff import write_key

OWN = """
import torch
from torch import nn

number = 3

def make(num_outputs):
    rate = torch.linspace(0, 0.5, 3)[1].item()  # fails on meta
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(rate),
        nn.Flatten(), nn.Linear(4 * 7 * 7, num_outputs),
    )

def wrong(num_outputs):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1))

def failing(num_outputs):
    raise FileNotFoundError("no weights.pt")

def no_net(num_outputs):
    return "net"
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a user's own net, in a package below a folder on Python's path."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "ward").mkdir()
    (folder / "ward" / "nets.py").write_text(OWN)
    (folder / "ward" / "broken.py").write_text("import no_such_package")
    sys.path.append(str(folder))
    yield "module:ward.nets:make"
    sys.path.remove(str(folder))


def seeded(**by_part: int) -> dict[str, dict[str, torch.Tensor]]:
    split = build(
        "torchvision:squeezenet1_1", cut=3, num_outputs=3, labels="home", init=lambda part: torch.manual_seed(by_part[part])
    )  # fmt: skip
    return {name: part.state_dict() for name, part in split.parts().items()}


def test_a_parts_initial_weights_depend_on_its_own_seed_only() -> None:
    """Oracle: the same build with one part's seed changed, and torchvision's own draw from that seed."""
    same = {"bottom": 1, "top": 2, "head": 3}
    first = seeded(**same)
    for changed in same:
        second = seeded(**same | {changed: 9})
        for part, state in first.items():
            equal = all(torch.equal(value, second[part][key]) for key, value in state.items())
            assert equal == (part != changed)
    torch.manual_seed(2)
    expected = model_entry("torchvision:squeezenet1_1").build_net(3, None).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in first["top"].items())


def test_torchvisions_resnet_costs_at_its_blocks_what_the_registrys_does() -> None:
    """Oracle: the table of the registry's resnet18, which is built anew for each cut."""
    for labels in ("shared", "home"):
        expected = {row.name: row for row in cut_table("resnet18", 64, 4, labels=labels, inside_layers=True)}
        rows = {row.name: row for row in cut_table("torchvision:resnet18", 64, 4, labels=labels)}
        same = expected.keys() & rows.keys()
        assert {"conv1", "maxpool", "layer1", "layer2.0", "layer3"} <= same
        assert ("layer4" in rows) == ("layer4" in expected) == (labels == "shared")
        fields = ("smashed_shape", "bytes_up", "bytes_down", "client_params", "total_params")
        for name in same:
            assert [getattr(rows[name], f) for f in fields] == [getattr(expected[name], f) for f in fields], (
                name
            )
            assert rows[name].client_flop_share == pytest.approx(expected[name].client_flop_share)


def test_the_table_draws_no_random_number(own: str) -> None:
    """Oracle: the default generator's state from before; the user's net is built off meta."""
    before = torch.get_rng_state()
    assert [row.name for row in cut_table(own, 16)] == ["_0", "_1", "_2", "_3", "_4"]
    cut_table("torchvision:squeezenet1_1", 32)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_cut_is_its_index_its_name_or_a_block_that_ends_there() -> None:
    """Oracle: the bottoms' names."""
    name = "torchvision:squeezenet1_1"
    with torch.device("meta"):
        points = {point.name: point for point in cut_points(name)}
        assert points["features"].aliases == ("features.12",)
        cuts = [points["features"].index, str(points["features"].index), "features", "features.12"]
        names = [list(build(name, cut=cut, num_outputs=2).bottom.state_dict()) for cut in cuts]
    assert all(found == names[0] for found in names) and len(names[0]) == 50
    with pytest.raises(
        ValueError, match=rf"^cut must lie in 0\.\.{len(points) - 1} for .*, got 58; see 'suture cuts"
    ):
        build(name, cut=58, num_outputs=2)


@pytest.mark.parametrize(
    ("name", "px", "words"),
    [
        ("torchvision:vit_b_32", 64, "image size must be 224 for torchvision:vit_b_32, got 64; use --image-size 224"),
        ("torchvision:alexnet", 48, "image size must be at least 63 for torchvision:alexnet, got 48; use --image-size 63 or more"),
        ("module:ward.nets:make", 9, "image size must lie in 15..16 for module:ward.nets:make, got 9; use --image-size 16"),
        ("module:ward.nets:make", 20, "image size must be 16 for module:ward.nets:make, got 20; use --image-size 16"),
    ],
)  # fmt: skip
def test_an_image_size_that_a_net_does_not_take_is_answered_with_one_that_it_does(
    name: str, px: int, words: str, own: str
) -> None:
    """Oracle: the messages; sizes by the nets' papers or, for the user's net, by hand."""
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        validate_image_size(name, px)


def test_batch_norm_refuses_one_image_where_it_is_one_value_a_channel() -> None:
    """Oracle: the message; at 32 px shufflenet's last feature map is one pixel."""
    validate_image_size("torchvision:shufflenet_v2_x0_5", 32, batch_size=2)
    with pytest.raises(
        ValueError, match="^batch size must be at least 2 for .* at 32 px, got 1: .*; use --batch-size 2"
    ):
        validate_image_size("torchvision:shufflenet_v2_x0_5", 32, batch_size=1)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("vgg11", "model must be one of resnet18, resnet34, resnet50, unet, torchvision:NAME, module:FILE_OR_PACKAGE:NAME, got 'vgg11'"),
        ("torchvision:vgg12", "model must be torchvision:NAME with NAME one of alexnet, .*, got 'torchvision:vgg12'"),
        ("module:ward.nets", "model must have the form module:FILE_OR_PACKAGE:NAME, got 'module:ward.nets'"),
        ("module:ward.nowhere:make", "model .*: cannot import ward.nowhere: ModuleNotFoundError: .*; name a file below "),
        ("module:ward.broken:make", "model .*: cannot import ward.broken: ModuleNotFoundError: .*no_such_package"),
        ("module:ward.nets:number", "model .*: number must be a factory that takes the number of outputs, got int"),
        ("module:ward.nets:mak", "model .*: ward.nets has no mak; known: make, wrong, failing, no_net; did you mean make.$"),
        ("resnet43", "model must be one of .*, got 'resnet43'; did you mean resnet34.$"),
        ("module:ward.nets:failing", "model .*: its factory failed for 2 outputs: FileNotFoundError: no weights.pt"),
        ("module:ward.nets:no_net", "model .*: its factory must return an nn.Module, got str"),
        ("module:ward.nets:wrong", r"model .* must give one logit an image and class, \(32, 2\) for .*, got \(32, 4, 1, 1\)"),
    ],
)  # fmt: skip
def test_what_names_no_net_is_refused_before_a_run_starts(model: str, words: str, own: str) -> None:
    """Oracle: the messages, written out."""
    with pytest.raises(ConfigError, match=f"^{words}"):
        AskedOptions(model=model, cut="1").resolved()


def test_the_command_lists_every_point(own: str) -> None:
    """Oracle: the points; a piped table has room for whole names."""
    result = CliRunner().invoke(suture, ["cuts", "torchvision:squeezenet1_1", "--image-size", "32"])
    assert result.exit_code == 0
    assert all(point.name in result.output for point in cut_points("torchvision:squeezenet1_1"))


@pytest.mark.parametrize(("model", "cut", "px"), [("torchvision:mobilenet_v3_small", "features.4", 32), ("module:ward.nets:make", "_1", 16)])  # fmt: skip
def test_a_run_of_a_net_with_dropout_ends_with_the_unsplit_runs_weights(
    model: str, cut: str, px: int, own: str, tmp_path: Path
) -> None:
    """Oracle: weights_sha256 of `--unsplit`; the model that the client keeps has the same digest and predicts."""
    write_key(tmp_path / "key")
    options = AskedOptions(
        model=model, cut=cut, image_size=px, clients=1, train_images=4, validation_images=2, test_images=2,
        batch_size=4, epochs=1, threads=1, handoff_key=str(tmp_path / "key"), run_dir=str(tmp_path / "split"),
    )  # fmt: skip
    run_in_one_process(options)
    run_unsplit(AskedOptions(**{**vars(options), "unsplit": True, "run_dir": str(tmp_path / "unsplit")}))
    digests = [
        json.loads((tmp_path / run / "summary.json").read_text())["weights_sha256"]
        for run in ("split", "unsplit")
    ]
    assert digests[0] == digests[1]
    trained = load_trained(tmp_path / "split", "last")
    assert trained.weights_sha256 == digests[0]
    assert trained.net(torch.rand(1, 3, px, px)).sum() == pytest.approx(1)
    assert not whole_state_dict(build(model, cut=cut, num_outputs=2)).keys() ^ {
        key
        for part in torch.load(tmp_path / "split/clients/client0/model.pt")["last"]["parts"].values()
        for key in part
    }
