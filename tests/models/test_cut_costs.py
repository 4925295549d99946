"""The table of cuts against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from suture.models.cuts import CutRow, cut_table
from suture.models.registry import MODELS, build, cut_points


def rows(name: str, px: int, **kwargs: object) -> dict[str, CutRow]:
    return {row.name: row for row in cut_table(name, px, **kwargs)}  # type: ignore[arg-type]


def test_resnet34_at_224_px_costs_what_hand_calculation_says() -> None:
    """Oracle: shapes from the paper's table 1; bytes and parameters by hand."""
    table = rows("resnet34", 224, num_outputs=1000)
    assert [row.index for row in table.values()] == list(range(9))
    assert table["maxpool"].smashed_shape == table["layer1"].smashed_shape == (64, 56, 56)
    assert table["layer4"].smashed_shape == (512, 7, 7)
    assert table["avgpool"].smashed_shape == (512, 1, 1)
    assert table["maxpool"].bytes_down == 32 * 64 * 56 * 56 * 4 == 25_690_112
    assert table["maxpool"].bytes_up == 25_690_112 + 32 * 8
    assert table["conv1"].client_params == 64 * 3 * 49
    assert table["bn1"].client_params == 64 * 3 * 49 + 128
    assert {row.total_params for row in table.values()} == {21_797_672}  # as torchvision publishes it
    conv1 = 2 * 64 * 3 * 49 * 112 * 112
    assert table["conv1"].client_flop_share == pytest.approx(
        conv1 / 7.328e9, rel=1e-3
    )  # torchvision: 3.664 G MACs


def test_with_labels_at_home_the_tops_output_crosses_too() -> None:
    """Oracle: by hand: 64x8x8 smashed and 512x1x1 from the top, four bytes a float, for eight images."""
    row = rows("resnet18", 32, batch_size=8, labels="home", num_outputs=5)["maxpool"]
    assert row.smashed_shape == (64, 8, 8)
    assert row.bytes_up == row.bytes_down == 4 * 8 * (64 * 8 * 8 + 512)
    assert row.client_params == 64 * 3 * 49 + 128 + 512 * 5 + 5


def test_a_unet_sends_as_much_as_it_receives() -> None:
    """Oracle: by hand: pooled block N up, twice its channels down, and the gradient of each back."""
    for cut, row in enumerate(cut_table("unet", 32, batch_size=2, width=4), start=1):
        assert row.smashed_shape == (4 << cut - 1, 32 >> cut, 32 >> cut)
        pixels = (32 >> cut) ** 2
        assert row.bytes_up == row.bytes_down == 4 * 2 * pixels * ((4 << cut - 1) + (4 << cut))


@pytest.mark.parametrize("name", MODELS)
def test_the_later_the_cut_the_more_the_client_works(name: str) -> None:
    """Oracle: order alone: blocks only ever move from the server to the client."""
    table = cut_table(name, 64, inside_layers=True)
    shares = [row.client_flop_share for row in table]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1
    params = [row.client_params for row in table]
    assert params == sorted(params)
    assert [row.name for row in table] == [point.name for point in cut_points(name, inside_layers=True)]


def test_the_table_draws_no_random_number() -> None:
    """Oracle: the default generator's state from before."""
    before = torch.get_rng_state()
    cut_table("resnet18", 32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["resnet18", "unet"])
def test_parameters_are_counted_as_in_a_net_with_real_weights(name: str) -> None:
    """Oracle: a net built on the CPU."""
    row = rows(name, 32)[cut_points(name)[2].name]
    split = build(name, cut=row.name, num_outputs=MODELS[name].num_outputs)
    client = [split.bottom] if split.head is None else [split.bottom, split.head]
    assert row.client_params == sum(p.numel() for part in client for p in part.parameters())


def test_bad_sizes_are_refused() -> None:
    """Oracle: the messages."""
    with pytest.raises(ValueError, match=r"^batch size must be at least 1, got 0; use --batch-size 32, say$"):
        cut_table("resnet18", 32, batch_size=0)
    with pytest.raises(ValueError, match=r"^image size must be a multiple of 16 for unet, got 33; "):
        cut_table("unet", 33)
