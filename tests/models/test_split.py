"""The joined net and the reading of a cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from suture.models.split import BottomOutput, CutPoint, SplitModel, resolve_cut

POINTS = [CutPoint(0, "stem"), CutPoint(None, "layer.0"), CutPoint(1, "layer")]


class Doubling(nn.Module):
    """A bottom that sends twice its input and keeps the input as a skip."""

    def forward(self, x: Tensor) -> BottomOutput:
        return BottomOutput(2 * x, (x,))


class AddingSkip(nn.Module):
    """A head that adds its one skip."""

    def forward(self, top_output: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
        (skip,) = skips
        return top_output + skip


def test_the_joined_net_announces_each_part_before_its_forward() -> None:
    """Oracle: the list of calls, and the sum worked out by hand."""
    called: list[str] = []
    split = SplitModel(Doubling(), nn.ReLU(), AddingSkip())
    assert split.joined(called.append)(torch.tensor([3.0, -1.0])).tolist() == [9.0, -1.0]
    assert called == list(split.parts()) == ["bottom", "top", "head"]


def test_without_a_head_the_top_gives_the_logits() -> None:
    """Oracle: by hand."""
    split = SplitModel(Doubling(), nn.ReLU())
    assert split.joined()(torch.tensor([3.0, -1.0])).tolist() == [6.0, 0.0]
    assert list(split.parts()) == ["bottom", "top"]


def test_the_joined_net_shares_its_parameters_with_the_parts() -> None:
    """Oracle: identity of the parameter."""
    split = SplitModel(Doubling(), nn.Linear(2, 2))
    assert any(parameter is split.top.weight for parameter in split.joined().parameters())


@given(cut=st.integers())
def test_every_number_is_a_cut_or_refused_with_the_range(cut: int) -> None:
    """Oracle: members in the range."""
    if cut in (0, 1):
        assert resolve_cut("toy", cut, POINTS).index == cut
        assert resolve_cut("toy", str(cut), POINTS).index == cut
    else:
        for given_as in (cut, str(cut)):
            with pytest.raises(
                ValueError, match=rf"^cut must lie in 0\.\.1 for toy, got {cut}; see 'suture cuts toy'$"
            ):
                resolve_cut("toy", given_as, POINTS)


@given(cut=st.text().filter(lambda text: not text.removeprefix("-").isdecimal()))
def test_every_text_is_a_blocks_name_or_refused_with_the_known_ones(cut: str) -> None:
    """Oracle: members in the names; none of the random texts is one."""
    assert [resolve_cut("toy", point.name, POINTS) for point in POINTS] == POINTS
    with pytest.raises(ValueError, match=r"known: stem, layer\.0, layer$"):
        resolve_cut("toy", cut, POINTS)
