"""MONAI's and torchvision's segmentation nets, and MONAI's DenseNet, by name: in the registry and in whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from suture.launch.deploy.export import export
from suture.launch.deploy.trained import load_trained
from suture.launch.options.options import AskedOptions
from suture.launch.roles.one_process import run_in_one_process
from suture.launch.roles.unsplit import run_unsplit
from suture.models.cuts import cut_table, step_bytes
from suture.models.pretrained import weights_file
from suture.models.registry import build, cut_place, cut_points, model_entry, validate_image_size
from suture.models.shapes import part_shapes
from suture.runtime.errors import ConfigError
from suture.runtime.state.handoff import write_key

OWN = """
from monai.networks.nets import BasicUNet, DenseNet121, UNet

def grey(num_outputs):
    return BasicUNet(2, 1, num_outputs, features=(4, 4, 8, 8, 16, 4), dropout=0.1)

def rgb(num_outputs):
    return BasicUNet(2, 3, num_outputs, features=(4, 4, 8, 8, 16, 4))

def unet(num_outputs):
    return UNet(2, 1, num_outputs, (4, 8, 16), (2, 2))

def published(num_outputs):
    return BasicUNet(2, 1, num_outputs)

def dense(num_outputs):
    return DenseNet121(2, 1, num_outputs, dropout_prob=0.1)

def dense_rgb(num_outputs):
    return DenseNet121(2, 3, num_outputs)
"""
DEEPLAB = "torchvision:deeplabv3_mobilenet_v3_large"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the user's file, to which that of a factory is added."""
    path = tmp_path_factory.mktemp("own") / "nets.py"
    path.write_text(OWN)
    return f"module:{path}:"


def test_what_a_net_is_for_shows_when_it_runs(own: str) -> None:
    """Oracle: the nets' papers, and the factories above."""
    told = {
        name: (entry.task, entry.labels, entry.in_channels, entry.normalisation)
        for name in ("grey", "rgb", "dense", "dense_rgb")
        for entry in [model_entry(own + name)]
    }
    assert told == {
        "grey": ("segmentation", ("home",), 1, "symmetric"),
        "rgb": ("segmentation", ("home",), 3, "imagenet"),
        "dense": ("classification", ("shared", "home"), 1, "symmetric"),
        "dense_rgb": ("classification", ("shared", "home"), 3, "imagenet"),
    }
    assert model_entry(DEEPLAB).task == "segmentation"


def test_a_cut_is_its_number_either_name_or_both(own: str) -> None:
    """Oracle: the bottoms' names; places are in the order of the numbers."""
    points = cut_points(own + "grey")
    numbers = {name: point.index for point in points for name in point.aliases}
    middle = numbers["down_2.max_pooling"]
    cuts = [middle, str(middle), "down_2.max_pooling:upcat_3", "down_2.max_pooling"]
    with torch.device("meta"):
        names = [list(build(own + "grey", cut=cut, num_outputs=1).bottom.state_dict()) for cut in cuts]
    assert all(found == names[0] for found in names)
    assert {name.split(".")[0] for name in names[0]} == {"conv_0", "down_1"}
    assert [cut_place(own + "grey", points[place].name) for place in (0, 20, 40)] == [0, 20, 40]


def test_the_table_costs_what_the_parts_do(own: str) -> None:
    """Oracle: shapes, work and weights of the parts themselves, which the table never builds."""
    before = torch.get_rng_state()
    rows = cut_table(own + "rgb", 48, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert [row.name for row in rows] == [point.name for point in cut_points(own + "rgb")]
    shares = [row.client_flop_share for row in rows]
    assert shares == sorted(shares)
    for row in rows[:: len(rows) // 3]:
        with torch.device("meta"):
            split = build(own + "rgb", cut=row.name, num_outputs=1)
        work = {part: FlopCounterMode(display=False) for part in split.parts()}
        shapes = part_shapes(split, 48, work.__getitem__)
        weights = {
            part: sum(p.numel() for p in module.parameters()) for part, module in split.parts().items()
        }
        flops = {part: counter.get_total_flops() for part, counter in work.items()}
        assert row.smashed_shape == shapes.smashed
        assert (row.bytes_up, row.bytes_down) == step_bytes(shapes, 4, has_head=True)
        assert (row.client_params, row.total_params) == (
            sum(weights.values()) - weights["top"],
            sum(weights.values()),
        )
        assert row.client_flop_share == pytest.approx(1 - flops["top"] / sum(flops.values()))


@pytest.mark.parametrize(
    ("name", "px", "batch", "words"),
    [
        ("unet", 30, None, "image size must be 28 or 32 for .*, got 30; use --image-size 28 or 32$"),
        ("grey", 16, None, "image size must be at least 32 for .*, got 16; use --image-size 32 or more$"),
        (
            DEEPLAB,
            64,
            1,
            "batch size must be at least 2 for .* at 64 px, got 1: .*; use --batch-size 2 or more$",
        ),
    ],
)
def test_sizes_that_a_segmenter_does_not_take_are_answered(
    name: str, px: int, batch: int | None, words: str, own: str
) -> None:
    """Oracle: two halvings and no padding; instance norm of one pixel; batch norm of one image's mean."""
    with pytest.raises(ValueError, match=f"^{words}"):
        validate_image_size(name if ":" in name else own + name, px, batch)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"labels": "shared"}, "labels must be home for module:.*, got 'shared'; use --labels home$"),
        (
            {"data": "fundus-phantom"},
            "model module:.* is for segmentation, data fundus-phantom is for classification",
        ),
        (
            {"cut": "upcat_1"},
            "cut must name a block of module:.*, got 'upcat_1'; known: conv_0.conv_0.conv:upcat_1, ",
        ),
        ({"cut": "99"}, r"cut must lie in 0\.\.40 for module:.*, got 99; see 'suture cuts module:"),
    ],
)
def test_a_run_that_does_not_fit_a_segmenter_is_refused(
    changed: dict[str, str], words: str, own: str
) -> None:
    """Oracle: the messages."""
    options = {"model": own + "grey", "cut": "8", "data": "chest-phantom", "image_size": 32}
    with pytest.raises(ConfigError, match=f"^{words}"):
        AskedOptions(**options | changed).resolved()  # type: ignore[arg-type]


def test_torchvisions_weights_of_segmenters_are_no_imagenet() -> None:
    """Oracle: the message; they are of COCO, with an auxiliary output."""
    with pytest.raises(
        ValueError, match="^weights imagenet: torchvision's weights of deeplabv3_.* are of COCO"
    ):
        weights_file(DEEPLAB, "imagenet")


@pytest.mark.parametrize(
    ("net", "cut", "data", "clients"),
    [
        ("grey", "down_1.max_pooling", "chest-phantom", 2),
        ("rgb", "down_3", "chest-phantom", 1),
        (DEEPLAB, "backbone.4", "chest-phantom", 1),
        ("dense", "features.transition1", "fundus-phantom", 1),
    ],
)
def test_a_run_ends_with_the_unsplit_runs_weights_and_a_model_that_predicts(
    net: str, cut: str, data: str, clients: int, own: str, tmp_path: Path
) -> None:
    """Oracle: weights_sha256 of `--unsplit`; the exported file is compared with torch."""
    write_key(tmp_path / "key")
    model = net if ":" in net else own + net
    options = AskedOptions(
        model=model, cut=cut, data=data, image_size=32, clients=clients, train_images=4, validation_images=2, test_images=2,
        batch_size=2, epochs=clients, threads=1, handoff_key=str(tmp_path / "key"), run_dir=str(tmp_path / "split"),
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
    p = trained.net(torch.rand(2, trained.channels, 32, 32))
    assert p.shape == ((2, 2) if data == "fundus-phantom" else (2, 1, 32, 32))
    assert bool((p >= 0).all() and (p <= 1).all())
    assert export(trained, "torchscript", tmp_path / "model.pt").startswith("verified with torch.jit")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_monais_basic_unet_learns_the_lungs(own: str, real_images: Path, tmp_path: Path) -> None:
    """Oracle: the true masks of 16 radiographs of patients of their own; the command stands in docs/nets.md."""
    options = AskedOptions(
        model=own + "published", cut="down_1.max_pooling", data=f"kaggle-cxr:{real_images / 'lungs'}", clients=2,
        run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    run_in_one_process(options)
    clients = json.loads((tmp_path / "run" / "summary.json").read_text())["clients"]
    assert sum(client["test"]["num_images"] for client in clients.values()) == 16
    assert sum(client["test"]["jaccard"] for client in clients.values()) / 2 > 0.85
