"""Loading a whole net's weights into the parts."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18  # type: ignore[import-untyped, unused-ignore]

from suture.models.registry import MODELS, build, cut_points, load_weights, whole_state_dict
from suture.models.split import SplitModel

CASES = [
    (name, labels, cut)
    for name, entry in MODELS.items()
    if name not in ("resnet34", "resnet50")
    for labels in entry.labels
    for cut in (cut_points(name, labels)[0].name, "layer2.0" if "resnet" in name else "enc3")
]


def small(name: str, cut: str = "layer2.0", labels: str | None = None, num_outputs: int = 2) -> SplitModel:
    width = None if MODELS[name].width is None else 4
    return build(name, cut=cut, num_outputs=num_outputs, labels=labels, width=width)


def cloned(split: SplitModel) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in whole_state_dict(split).items()}


@pytest.mark.parametrize(("name", "labels", "cut"), CASES)
def test_what_is_loaded_is_what_the_parts_then_hold(name: str, labels: str, cut: str) -> None:
    """Oracle: the state dict that was loaded, of a net cut elsewhere and trained for a step."""
    source = small(name, cut_points(name, labels)[1].name, labels)
    source.joined()(torch.rand(2, MODELS[name].in_channels, 32, 32))  # moves batch norm's buffers
    target = small(name, cut, labels)
    load_weights(target, whole_state_dict(source))
    loaded = whole_state_dict(target)
    assert all(torch.equal(loaded[key], value) for key, value in whole_state_dict(source).items())


def test_a_file_of_torchvisions_own_loads() -> None:
    """Oracle: torchvision's state dict, without batch norm's counters as in its published files."""
    theirs = resnet18(weights=None, num_classes=2).state_dict()
    published = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    split = small("resnet18")
    load_weights(split, published)
    assert len(published) == 102
    assert all(torch.equal(value, theirs[key]) for key, value in whole_state_dict(split).items())


@pytest.mark.parametrize(
    ("name", "labels", "final"),
    [("resnet18", "shared", "fc"), ("resnet18", "home", "fc"), ("unet", "home", "out")],
)
def test_a_file_without_the_final_layer_keeps_the_initial_one(name: str, labels: str, final: str) -> None:
    """Oracle: the final layer from before, the rest from the file."""
    split = small(name, cut_points(name)[1].name, labels)
    before = cloned(split)
    body = {key: value + 1 for key, value in before.items() if not key.startswith(final)}
    load_weights(split, body)
    for key, value in whole_state_dict(split).items():
        assert torch.equal(value, before[key] if key.startswith(final) else body[key]), key


def test_another_class_count_keeps_the_initial_final_layer() -> None:
    """Oracle: the final layer from before, the rest from the file, and what is returned."""
    split = small("resnet18")
    before, theirs = cloned(split), resnet18(weights=None, num_classes=1000).state_dict()
    assert not load_weights(split, theirs)
    for key, value in whole_state_dict(split).items():
        assert torch.equal(value, before[key] if key.startswith("fc.") else theirs[key]), key
    assert load_weights(split, before)


def test_a_final_layer_of_another_width_is_refused_and_nothing_is_loaded() -> None:
    """Oracle: the message, written out, and the weights from before."""
    split = small("resnet18")
    before = cloned(split)
    message = (
        "weights do not fit the net: mis-shaped fc.weight (needs (2, 512), got (2, 99)); "
        "give the state dict of the same net, uncut"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(split, before | {"fc.weight": torch.zeros(2, 99)})
    assert all(torch.equal(value, before[key]) for key, value in whole_state_dict(split).items())


def test_half_a_final_layer_is_missing_keys() -> None:
    """Oracle: the message."""
    split = small("resnet18")
    state = cloned(split)
    del state["fc.bias"]
    with pytest.raises(ValueError, match=r"missing fc\.bias; give the state dict of the same net, uncut$"):
        load_weights(split, state)


def test_at_most_five_keys_of_each_kind_are_named() -> None:
    """Oracle: the message, written out."""
    split = small("resnet18")
    state: dict[str, Tensor] = {f"other_{key}": value for key, value in cloned(split).items()}
    with pytest.raises(
        ValueError, match=r"missing conv1\.weight, (\S+, ){3}\S+ and 95 more; unexpected other_conv1"
    ) as raised:
        load_weights(split, state)
    assert str(raised.value).count("other_") == 5


def test_a_checkpoint_around_the_state_dict_is_refused() -> None:
    """Oracle: the message."""
    with pytest.raises(ValueError, match=r"unexpected model, epoch; give the state dict"):
        load_weights(small("resnet18"), {"model": {}, "epoch": 3})  # type: ignore[dict-item]


def test_a_value_that_is_no_tensor_is_mis_shaped() -> None:
    """Oracle: the message."""
    split = small("resnet18")
    with pytest.raises(ValueError, match=r"mis-shaped conv1\.weight \(needs \(64, 3, 7, 7\), got str\)"):
        load_weights(split, cloned(split) | {"conv1.weight": "weights"})  # type: ignore[dict-item]


def test_a_name_in_two_parts_is_refused() -> None:
    """Oracle: the message."""
    split = SplitModel(nn.Sequential(nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(
        ValueError, match=r"^parameter names must be unique .* got 0\.bias, 0\.weight again in the top; "
    ):
        whole_state_dict(split)
