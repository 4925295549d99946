"""What every registered defence must keep, and what each one does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from suture.runtime.errors import ConfigError
from suture.runtime.hooks import Defence
from suture.threats.client_view import ClientView
from suture.threats.defences.noise import NoiseConfig, NoiseDefence
from suture.threats.defences.proxy import ProxyConfig, ProxyDecoder, ProxyDefence, relative_error
from suture.threats.defences.quantise import QuantiseConfig, QuantiseDefence
from suture.threats.registry import DEFENCES, build_defence

VIEW = ClientView(
    images=(1, 16, 16),
    smashed=(6, 4, 4),
    normalisation="symmetric",
    task="classification",
    num_classes=3,
    labels_shared=True,
)
CHAINS = [*DEFENCES, "+".join(DEFENCES), "quantise+noise:scale=0.1"]


def _build(chain: str, seed: int = 0) -> Defence:
    torch.manual_seed(seed)
    return build_defence(DEFENCES.parse_chain(chain), VIEW)


def _batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(8, 1, 16, 16, generator=generator) * 2 - 1
    return images, torch.randn(8, 6, 4, 4, generator=generator)


def test_the_empty_chain_is_the_undefended_client() -> None:
    """Oracle: the base class itself, so that an undefended run has no node more in its graph."""
    assert type(_build("none")) is Defence


@pytest.mark.parametrize("chain", CHAINS)
def test_what_crosses_the_wire_keeps_its_shape_and_is_finite_and_differentiable(chain: str) -> None:
    """Oracle: the contract of door 1 and 2."""
    defence = _build(chain)
    images, smashed = _batch()
    smashed.requires_grad_()
    sent = defence.transform(smashed)
    total = sent.square().sum() + defence.penalty(images, smashed)
    (gradient,) = torch.autograd.grad(total, smashed)
    assert sent.shape == smashed.shape
    assert sent.dtype == smashed.dtype
    assert torch.isfinite(sent).all()
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("chain", CHAINS)
def test_a_defence_that_changes_what_is_sent_does_so_in_evaluation_too(chain: str) -> None:
    """Oracle: test patients' smashed data cross the same wire; what acts must say so, what does not must not."""
    defence = _build(chain)
    _, smashed = _batch()
    changes = not torch.equal(defence.transform(smashed), smashed)
    assert defence.acts_in_evaluation is changes


@pytest.mark.parametrize("chain", CHAINS)
def test_all_randomness_comes_from_the_place_where_the_client_put_it(chain: str) -> None:
    """Oracle: the same seed gives the same tensors bit for bit; penalty and step draw nothing at all."""
    images, smashed = _batch()
    sent = []
    for _ in range(2):
        defence = _build(chain)
        torch.manual_seed(7)
        sent.append(defence.transform(smashed))
        before = torch.get_rng_state()
        defence.penalty(images, smashed)
        defence.step()
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(sent[0], sent[1])


@pytest.mark.parametrize("chain", CHAINS)
def test_state_travels_in_the_hand_off(chain: str) -> None:
    """Oracle: a defence with the state of another one goes on exactly as that would have."""
    images, smashed = _batch()
    one, other = _build(chain, seed=1), _build(chain, seed=2)
    for _ in range(3):
        one.penalty(images, smashed)
        one.step()
    other.load_state_dict(copy.deepcopy(one.state_dict()))  # the hand-off is bytes: nothing is shared
    penalties = []
    for defence in (one, other):
        defence.penalty(images, smashed)
        defence.step()
        penalties.append(torch.as_tensor(defence.penalty(images, smashed)))
    assert torch.equal(*penalties)


@pytest.mark.parametrize("chain", CHAINS)
def test_the_penalty_leaves_the_defences_own_nets_without_gradients(chain: str) -> None:
    """Oracle: .grad of a net that the client's backward does not own stays None (a distributed context has none)."""
    defence = _build(chain)
    images, smashed = _batch()
    total = torch.as_tensor(defence.penalty(images, smashed.requires_grad_())) + smashed.sum()
    total.backward()  # type: ignore[no-untyped-call]
    nets = [part for part in vars(defence).values() if isinstance(part, nn.Module)]
    assert all(parameter.grad is None for net in nets for parameter in net.parameters())


def test_a_chain_is_applied_from_left_to_right() -> None:
    """Oracle: what the last one leaves: quantised values are few, noisy ones are not."""
    _, smashed = _batch()
    assert len(_build("noise+quantise:bits=2").transform(smashed).mul(1e4).round().unique()) <= 4
    assert len(_build("quantise:bits=2+noise").transform(smashed).unique()) > 100


def test_penalties_of_a_chain_are_added() -> None:
    """Oracle: the sum of the parts' own penalties."""
    images, smashed = _batch()
    parts = [_build(name).penalty(images, smashed) for name in ("dcor", "proxy")]
    torch.manual_seed(0)
    both = build_defence(DEFENCES.parse_chain("dcor+proxy"), VIEW, lambda name: torch.manual_seed(0) and None)
    assert float(both.penalty(images, smashed)) == pytest.approx(float(sum(parts)))


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_noise_has_the_deviation_and_the_tails_that_it_says(kind: str) -> None:
    """Oracle: moments; deviation = scale x clip, kurtosis 3 for Gaussian and 6 for Laplace noise."""
    torch.manual_seed(0)
    defence = NoiseDefence(NoiseConfig(kind=kind, scale=0.5, clip=2.0))  # type: ignore[arg-type]
    noise = defence.transform(torch.zeros(400, 500))
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)
    kurtosis = float((noise**4).mean() / noise.var() ** 2)
    assert kurtosis == pytest.approx(3.0 if kind == "gaussian" else 6.0, rel=0.1)


def test_noise_without_clipping_follows_the_deviation_of_the_batch() -> None:
    """Oracle: activations ten times larger get noise ten times larger, so growing them does not outrun it."""
    smashed = _batch()[1]
    sizes = []
    for factor in (1.0, 10.0):
        torch.manual_seed(0)
        sent = NoiseDefence(NoiseConfig(scale=1.0)).transform(factor * smashed)
        sizes.append(float((sent - factor * smashed).std()))
    assert sizes[1] == pytest.approx(10 * sizes[0], rel=1e-4)


def test_clipped_values_send_no_gradient_back() -> None:
    """Oracle: the slope of a clamp."""
    smashed = torch.tensor([[-3.0, 0.5, 3.0]], requires_grad=True)
    sent = NoiseDefence(NoiseConfig(scale=0.0, clip=1.0)).transform(smashed)
    (gradient,) = torch.autograd.grad(sent.sum(), smashed)
    assert sent.tolist() == [[-1.0, 0.5, 1.0]]
    assert gradient.tolist() == [[0.0, 1.0, 0.0]]


def test_laplace_noise_needs_a_clip() -> None:
    """Oracle: without a bound on the values the noise promises nothing."""
    with pytest.raises(ConfigError, match=r"laplace needs clip above 0.*write clip=1"):
        NoiseConfig(kind="laplace")


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_quantisation_keeps_the_ends_and_rounds_to_two_to_the_bits_levels(bits: int) -> None:
    """Oracle: number of levels, largest error of half a step, and a gradient that passes unchanged."""
    smashed = torch.linspace(-1, 3, 4001).reshape(1, -1).requires_grad_()
    sent = QuantiseDefence(QuantiseConfig(bits=bits)).transform(smashed)
    step = 4 / (2**bits - 1)
    assert len(sent.detach().mul(1e4).round().unique()) == 2**bits
    assert float((sent - smashed).abs().max().detach()) <= step / 2 + 1e-5
    assert (float(sent.detach().min()), float(sent.detach().max())) == pytest.approx((-1.0, 3.0), abs=1e-5)
    (gradient,) = torch.autograd.grad(sent.sum(), smashed)
    assert bool((gradient == 1).all())


def test_quantisation_of_a_constant_batch_changes_nothing() -> None:
    """Oracle: no range, no step to divide by."""
    smashed = torch.full((2, 3), 0.7)
    assert torch.equal(QuantiseDefence(QuantiseConfig()).transform(smashed), smashed)


def test_dropout_takes_whole_channels_and_keeps_the_mean() -> None:
    """Oracle: each channel is all zero or scaled by 1 / (1 - p); the share of zeros is p."""
    torch.manual_seed(0)
    sent = _build("dropout:p=0.25").transform(torch.ones(400, 6, 4, 4))
    per_channel = sent.flatten(2)
    assert torch.equal(per_channel.amin(dim=2), per_channel.amax(dim=2))
    assert float((per_channel[..., 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(sent.mean()) == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize("smashed", [(6, 4, 4), (3, 16, 16), (5, 6, 6), (32,), (17, 8)])
def test_the_proxy_decoder_fits_any_cut(smashed: tuple[int, ...]) -> None:
    """Oracle: shape and range of an image."""
    rebuilt = ProxyDecoder(smashed, (3, 20, 20), 8)(torch.randn(2, *smashed))
    assert rebuilt.shape == (2, 3, 20, 20)
    assert 0 <= float(rebuilt.detach().min()) <= float(rebuilt.detach().max()) <= 1


def test_the_proxy_learns_to_invert_and_the_bottom_moves_against_it() -> None:
    """Oracle: on smashed data that hold the image the proxy's error falls well below the mean image's, and the
    penalty's gradient points where that error grows."""
    torch.manual_seed(0)
    view = ClientView(
        images=(1, 8, 8),
        smashed=(1, 8, 8),
        normalisation="symmetric",
        task="classification",
        num_classes=2,
        labels_shared=True,
    )
    defence = ProxyDefence(ProxyConfig(width=8, lr=1e-2), view)
    images = torch.rand(32, 1, 8, 8) * 2 - 1
    for _ in range(150):
        defence.penalty(images, images)
        defence.step()
    error = -float(defence.penalty(images, images))
    assert error < 0.5
    smashed = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(defence.penalty(images, smashed), smashed)
    moved = -float(defence.penalty(images, smashed.detach() - 0.5 * gradient / gradient.abs().max()))
    assert moved > error


def test_the_proxy_acts_within_the_first_batches_of_a_run() -> None:
    """Oracle: on dark pictures it answers with their mean image at first (error 1, not the 4 of a grey picture) and is
    better after ten batches; until it is, the defence gives no gradient and a short run is not defended at all."""
    torch.manual_seed(0)
    view = ClientView(
        images=(1, 16, 16),
        smashed=(8, 8, 8),
        normalisation="symmetric",
        task="classification",
        num_classes=2,
        labels_shared=True,
    )
    defence = ProxyDefence(ProxyConfig(width=8, lr=1e-2, task_weight=0.5), view)
    bottom = torch.nn.Conv2d(1, 8, 3, stride=2, padding=1)
    dark = torch.nn.functional.interpolate((torch.rand(64, 1, 4, 4) < 0.2).float(), 16, mode="bilinear")
    errors = []
    for batch in range(10):
        images = dark[32 * (batch % 2) :][:32] * 2 - 1
        smashed = bottom(images)
        errors.append(-float(defence.penalty(images, smashed).detach()))
        defence.step()
    assert errors[0] > 0.9
    assert errors[-1] < 0.9
    (gradient,) = torch.autograd.grad(defence.penalty(images, smashed), smashed)
    assert gradient.any()
    assert relative_error(defence.net(torch.zeros(32, 8, 8, 8)), (images + 1) / 2) < 1.5


def test_beyond_the_threshold_the_proxy_is_left_alone() -> None:
    """Oracle: a constant penalty has no gradient; an unbounded one would reward turning pictures into negatives."""
    images, smashed = _batch()
    smashed.requires_grad_()
    defence = ProxyDefence(ProxyConfig(threshold=1e-3), VIEW)
    penalty = defence.penalty(images, smashed)
    (gradient,) = torch.autograd.grad(penalty, smashed)
    assert float(penalty.detach()) == pytest.approx(-1e-3)
    assert not gradient.any()


def test_the_relative_error_of_the_mean_image_is_one() -> None:
    """Oracle: the definition."""
    images = torch.rand(16, 1, 4, 4)
    assert float(relative_error(images.mean(dim=0).expand_as(images), images)) == pytest.approx(1.0)
    assert float(relative_error(images, images)) == 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dcor:alpha=-1", "alpha must be at least 0, got -1"),
        ("dcor:alpha=nan", "alpha must be at least 0, got nan"),
        ("dcor:alpha=inf", "alpha must be at least 0, got inf"),
        ("proxy:task_weight=0", "task_weight must be above 0 and at most 1, got 0"),
        ("proxy:steps=0", "steps must be at least 1"),
        ("noise:scale=-0.1", "scale must be at least 0"),
        ("quantise:bits=0", "bits must be at least 1 and at most 16, got 0"),
        ("dropout:p=1", "p must be at least 0 and at most 0.95, got 1"),
    ],
)
def test_values_that_cannot_work_are_refused(text: str, message: str) -> None:
    """Oracle: the message names value and bound."""
    with pytest.raises(ConfigError, match=message):
        DEFENCES.parse_chain(text)


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        ("noise:scale=0.1", "noise:scale=2"),
        ("quantise:bits=8", "quantise:bits=1"),
        ("dropout:p=0.1", "dropout:p=0.9"),
    ],
)
def test_a_stronger_setting_sends_less_of_what_the_bottom_computed(weak: str, strong: str) -> None:
    """Oracle: squared distance between sent and computed values grows with the strength."""
    _, smashed = _batch()

    def moved(chain: str) -> float:
        return float((_build(chain).transform(smashed) - smashed).square().mean())

    assert moved(strong) > 2 * moved(weak)
