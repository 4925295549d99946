"""Distance correlation against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from suture.threats.defences.dcor import DcorConfig, DcorDefence, distance_correlation


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _by_hand(x: Tensor, z: Tensor) -> float:
    """The definition (Székely et al., 2007), written as loops in double precision."""

    def centred(rows: np.ndarray) -> np.ndarray:
        n = len(rows)
        d = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                d[i, j] = math.sqrt(sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)))
        out = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                out[i, j] = d[i, j] - d[i].mean() - d[:, j].mean() + d.mean()
        return out

    a, b = centred(x.double().numpy()), centred(z.double().numpy())
    n = len(a)
    covariance = variance_x = variance_z = 0.0
    for i in range(n):
        for j in range(n):
            covariance += a[i, j] * b[i, j]
            variance_x += a[i, j] ** 2
            variance_z += b[i, j] ** 2
    return math.sqrt(covariance / math.sqrt(variance_x * variance_z))


@pytest.mark.parametrize(("n", "d", "e"), [(4, 1, 1), (9, 3, 5), (16, 2, 7)])
def test_it_agrees_with_the_definition_written_as_loops(n: int, d: int, e: int) -> None:
    """Oracle: a slow, obvious double loop in numpy."""
    x, z = _normal(n, d), _normal(n, e, seed=1)
    z = z + x.sum(dim=1, keepdim=True)
    assert float(distance_correlation(x, z)) == pytest.approx(_by_hand(x, z), abs=1e-5)


@pytest.mark.parametrize("scale", [1.0, -3.0, 1e-6, 1e6])
def test_x_with_itself_moved_and_scaled_is_one(scale: float) -> None:
    """Oracle: the statistic does not see shift, scale and reflection."""
    x = _normal(16, 3, 4, 4)
    assert float(distance_correlation(x, scale * x + 5.0 * scale)) == pytest.approx(1.0, abs=1e-3)


def test_independent_numbers_come_near_zero_as_the_batch_grows() -> None:
    """Oracle: theory; the biased statistic falls with N and is above 0 in small batches (see its note)."""
    values = {
        n: float(distance_correlation(_normal(n, 1, seed=2), _normal(n, 1, seed=3))) for n in (16, 1000)
    }
    assert values[1000] < 0.08
    assert values[16] > values[1000]


def test_it_sees_the_square_where_linear_correlation_is_blind() -> None:
    """Oracle: x and x squared are uncorrelated for symmetric x, and dependent; the root matters for that."""
    x = torch.linspace(-1, 1, 101).unsqueeze(1)
    z = x.square()
    assert abs(float(torch.corrcoef(torch.cat((x, z), dim=1).T)[0, 1])) < 1e-5
    assert float(distance_correlation(x, z)) > 0.4
    # Without the root (squared distances) the statistic sees linear dependence only: it is 0 here.
    a, b = ((v - v.T).square() for v in (x, z))
    a, b = (m - m.mean(0, keepdim=True) - m.mean(1, keepdim=True) + m.mean() for m in (a, b))
    assert abs(float((a * b).mean())) < 1e-6


@pytest.mark.parametrize(
    ("x", "z"),
    [
        pytest.param(_normal(6, 3), torch.ones(6, 2), id="constant smashed data"),
        pytest.param(torch.ones(6, 3), _normal(6, 2), id="constant images"),
        pytest.param(_normal(3, 3).repeat(2, 1), _normal(3, 2).repeat(2, 1), id="equal rows"),
        pytest.param(_normal(1, 3), _normal(1, 2), id="a batch of one"),
        pytest.param(1e12 * _normal(6, 3), 1e-12 * _normal(6, 2), id="far apart in scale"),
    ],
)
def test_value_and_gradient_are_finite_in_the_corners(x: Tensor, z: Tensor) -> None:
    """Oracle: finiteness; and 0 by definition where one side is constant."""
    z = z.clone().requires_grad_()
    value = distance_correlation(x, z)
    value.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert 0.0 <= float(value.detach()) <= 1.0 + 1e-5
    if len(x) == 1 or bool((x == x[0]).all()) or bool((z == z[0]).all()):
        assert float(value.detach()) == 0.0


def test_the_gradient_agrees_with_finite_differences() -> None:
    """Oracle: torch.autograd.gradcheck in double precision."""
    x, z = _normal(5, 3).double(), _normal(5, 2, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: distance_correlation(x, z), (z,))


def test_a_step_down_the_penalty_lowers_the_correlation() -> None:
    """Oracle: gradient descent on the smashed data alone must make them less dependent on the images."""
    defence = DcorDefence(DcorConfig(alpha=2.0))
    x = _normal(64, 1)
    # Not z = x: there the correlation is at its maximum and the gradient 0.
    z = (x + 0.5 * _normal(64, 1, seed=1)).requires_grad_()
    before = float(defence.penalty(x, z).detach())
    for _ in range(100):
        (gradient,) = torch.autograd.grad(defence.penalty(x, z), z)
        z = (z - 2.0 * gradient).detach().requires_grad_()
    after = float(defence.penalty(x, z).detach())
    assert 1.2 < before < 2.0
    assert after < 0.5 * before
