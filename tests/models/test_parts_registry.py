"""What holds for every net of the registry at every cut; a new entry is tested by these tests."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from suture.models.registry import (
    MODELS,
    build,
    cut_points,
    num_cuts,
    smashed_shape,
    top_output_shape,
    validate_image_size,
    whole_state_dict,
)
from suture.models.split import SplitModel

FAST = [name for name in MODELS if name not in ("resnet34", "resnet50")]
EVERY_CUT = [
    (name, labels, point.name)
    for name, entry in MODELS.items()
    for labels in entry.labels
    for point in cut_points(name, labels, inside_layers=name in FAST)
]
FAST_CUTS = [case for case in EVERY_CUT if case[0] in FAST and (case[2] == "layer2.0" or "." not in case[2])]


def small(name: str, cut: int | str, labels: str | None = None, **kwargs: object) -> SplitModel:
    """The net at three outputs, of width 4 where it lets its width be chosen."""
    width = None if MODELS[name].width is None else 4
    return build(name, cut=cut, num_outputs=3, labels=labels, width=width, **kwargs)  # type: ignore[arg-type]


def seeds(**by_part: int) -> object:
    return lambda part: torch.manual_seed(by_part[part])


@pytest.mark.parametrize(("name", "labels", "cut"), EVERY_CUT)
def test_the_parts_hold_the_uncut_nets_state_in_its_order(name: str, labels: str, cut: str) -> None:
    """Oracle: the state dict of the uncut net, built on its own."""
    with torch.device("meta"):
        split = small(name, cut, labels)
        whole = MODELS[name].build_net(3, None if MODELS[name].width is None else 4)
    assert {key: value.shape for key, value in whole_state_dict(split).items()} == {
        key: value.shape for key, value in whole.state_dict().items()
    }
    assert list(whole_state_dict(split)) == list(whole.state_dict())


@pytest.mark.parametrize(("name", "labels", "cut"), EVERY_CUT)
def test_no_module_works_in_place(name: str, labels: str, cut: str) -> None:
    """Oracle: ruling 11, read off every module's own flag."""
    with torch.device("meta"):
        split = small(name, cut, labels)
    assert not any(
        getattr(module, "inplace", False) for part in split.parts().values() for module in part.modules()
    )


@pytest.mark.parametrize(("name", "labels", "cut"), FAST_CUTS)
def test_training_the_top_leaves_the_smashed_data_as_it_was(name: str, labels: str, cut: str) -> None:
    """Oracle: a copy of the smashed data from before the top's forward and backward."""
    split = small(name, cut, labels)
    smashed = split.bottom(torch.rand(2, MODELS[name].in_channels, 32, 32)).smashed.detach().requires_grad_()
    before = smashed.detach().clone()
    split.top(smashed).sum().backward()
    assert torch.equal(smashed, before)
    assert smashed.grad is not None and smashed.grad.shape == smashed.shape


@pytest.mark.parametrize(("name", "labels", "cut"), FAST_CUTS)
def test_shapes_agree_with_a_real_forward_and_change_nothing(name: str, labels: str, cut: str) -> None:
    """Oracle: a forward pass of one image; state and train modes compared with copies from before."""
    split = small(name, cut, labels)
    split.bottom.eval()
    next(split.top.modules()).train()
    state = copy.deepcopy(whole_state_dict(split))
    modes = [module.training for part in split.parts().values() for module in part.modules()]

    shapes = smashed_shape(split, 48), top_output_shape(split, 48)

    assert modes == [module.training for part in split.parts().values() for module in part.modules()]
    assert all(torch.equal(value, state[key]) for key, value in whole_state_dict(split).items())
    with torch.no_grad():
        smashed = split.bottom.eval()(torch.rand(1, MODELS[name].in_channels, 48, 48)).smashed
        assert shapes == (smashed.shape[1:], split.top.eval()(smashed).shape[1:])


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("changed", ["bottom", "top", "head"])
def test_a_parts_initial_weights_depend_on_its_own_seed_only(name: str, changed: str) -> None:
    """Oracle: the same build with one part's seed changed; that part differs and the others are equal."""
    cut = cut_points(name, "home")[-1].name
    cut = "layer2.0" if name.startswith("resnet") else cut
    same = {"bottom": 1, "top": 2, "head": 3}
    torch.manual_seed(10)
    first = small(name, cut, "home", init=seeds(**same))
    torch.manual_seed(11)  # how the uncut net was drawn must not show
    second = small(name, cut, "home", init=seeds(**same | {changed: 99}))
    for part, module in first.parts().items():
        other = second.parts()[part].state_dict()
        equal = [torch.equal(value, other[key]) for key, value in module.state_dict().items()]
        drawn = [key for key, value in module.state_dict().items() if value.dim() > 1]
        assert all(equal) == (part != changed)
        assert all(torch.equal(module.state_dict()[key], other[key]) == (part != changed) for key in drawn)


@pytest.mark.parametrize("name", FAST)
def test_a_parts_initial_weights_do_not_depend_on_the_parts_before_it(name: str) -> None:
    """Oracle: nets of other output counts, whose heads differ in size, have the same top."""
    init = seeds(bottom=1, top=2, head=3)
    width = None if MODELS[name].width is None else 4
    tops = [
        build(name, cut=3, num_outputs=k, labels="home", width=width, init=init).top.state_dict()  # type: ignore[arg-type]
        for k in (2, 7)
    ]
    assert all(torch.equal(tops[0][key], tops[1][key]) for key in tops[0])


@pytest.mark.parametrize("name", FAST)
def test_init_is_called_for_each_part_in_forward_order(name: str) -> None:
    """Oracle: the list of calls."""
    for labels in MODELS[name].labels:
        called: list[str] = []
        small(name, 2, labels, init=called.append)
        assert called == ["bottom", "top"] + ["head"] * (labels == "home")


@pytest.mark.parametrize("name", MODELS)
def test_a_number_its_text_and_the_blocks_name_are_the_same_cut(name: str) -> None:
    """Oracle: the bottoms' parameter names."""
    with torch.device("meta"):
        for point in cut_points(name):
            keys = [
                list(small(name, cut).bottom.state_dict())
                for cut in (point.index, str(point.index), point.name)
            ]
            assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize("name", MODELS)
def test_every_bad_value_is_named_with_its_bound_and_a_remedy(name: str) -> None:
    """Oracle: the messages, written out."""
    numbered = [point.index for point in cut_points(name)]
    bounds = f"{numbered[0]}..{numbered[-1]}"
    for cut in (12, -1, "12", "-1"):
        with pytest.raises(
            ValueError, match=rf"^cut must lie in {bounds} for {name}, got {cut}; see 'suture cuts {name}'$"
        ):
            build(name, cut=cut, num_outputs=2)
    known = ", ".join(point.name for point in cut_points(name, inside_layers=True))
    with pytest.raises(ValueError, match=rf"^cut must name a block of {name}, got 'layer9'; known: {known}$"):
        build(name, cut="layer9", num_outputs=2)
    with pytest.raises(ValueError, match=rf"^num_outputs must be at least 1 for {name}, got 0; "):
        build(name, cut=3, num_outputs=0)
    with pytest.raises(ValueError, match=rf"^labels must be .* for {name}, got 'nowhere'; use --labels "):
        build(name, cut=3, num_outputs=2, labels="nowhere")
    with pytest.raises(ValueError, match=rf"^width .* for {name}, got 0; "):
        build(name, cut=3, num_outputs=2, width=0)
    with pytest.raises(
        ValueError, match=rf"^image size must be at least \d+ for {name}, got 4; use --image-size \d+"
    ):
        validate_image_size(name, 4)
    with pytest.raises(ValueError, match=rf"^batch size must be at least 2 for {name} at 16 px, got 1: "):
        validate_image_size(name, 16, batch_size=1)


def test_an_unknown_net_is_answered_with_the_known_ones() -> None:
    """Oracle: the message, written out."""
    with pytest.raises(
        ValueError,
        match=r"^model must be one of resnet18, resnet34, resnet50, unet, torchvision:NAME, "
        r"module:FILE_OR_PACKAGE:NAME, got 'vgg'$",
    ):
        build("vgg", cut=3, num_outputs=2)


@pytest.mark.parametrize("name", FAST)
def test_the_smallest_image_that_passes_the_check_trains(name: str) -> None:
    """Oracle: a step of training at the smallest size, with the smallest batch let through."""
    px = MODELS[name].min_image_size
    validate_image_size(name, px, batch_size=2)
    small(name, 2).joined()(torch.rand(2, MODELS[name].in_channels, px, px)).sum().backward()


@pytest.mark.parametrize("name", FAST)
def test_batch_norm_fails_on_one_image_exactly_where_the_check_says_so(name: str) -> None:
    """Oracle: training on one image, at the net's stride and just above it."""
    net = small(name, 2).joined()
    stride, channels = MODELS[name].stride, MODELS[name].in_channels
    above = stride + MODELS[name].image_size_multiple
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        net(torch.rand(1, channels, stride, stride))
    validate_image_size(name, above, batch_size=1)
    net(torch.rand(1, channels, above, above))


def test_entries_are_keyed_by_name_and_cannot_be_changed() -> None:
    """Oracle: the entries themselves."""
    assert all(key == entry.name and entry.paper and entry.description for key, entry in MODELS.items())
    with pytest.raises(FrozenInstanceError):
        MODELS["unet"].name = "vnet"  # type: ignore[misc]


def test_cuts_are_counted_as_in_the_study() -> None:
    """Oracle: the study's numbering; with labels at home the cut after avgpool leaves no top."""
    assert num_cuts("resnet34") == 9
    assert num_cuts("resnet34", "home") == 7
    assert num_cuts("unet") == 4


def test_a_bottom_without_a_convolution_is_refused() -> None:
    """Oracle: the message."""
    with pytest.raises(ValueError, match=r"^the bottom must hold a Conv2d .* got none; "):
        smashed_shape(SplitModel(nn.Identity(), nn.Linear(2, 2)), 32)
