"""FSHA: its mathematics against closed forms, its place in the protocol, and that it works on a tiny problem."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from glyphs import glyphs, small_bottom
from torch import Tensor, nn

from suture.runtime.hooks import SmashedBatch
from suture.threats.attacks.auxiliary import Auxiliary
from suture.threats.attacks.fsha.attack import FshaAttack, gradient_penalty
from suture.threats.attacks.fsha.config import FshaConfig
from suture.threats.attacks.fsha.nets import Critic, Decoder, Pilot
from suture.threats.attacks.server_view import ServerView

IMAGE = (3, 16, 16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small lose more by two threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def has_foot(images: Tensor) -> Tensor:
    """Whether a glyph's stroke is brighter below than above, y_N."""
    rows = images[:, 0].float().sum(2)
    return (rows[:, 8:].sum(1) > rows[:, :8].sum(1)).long()


def batch(smashed: Tensor, number: int = 0, phase: str = "train") -> SmashedBatch:
    return SmashedBatch(smashed, torch.zeros(len(smashed), dtype=torch.int64), ("client0",), 1, number, phase)


def attack(**config: object) -> FshaAttack:
    chosen = FshaConfig(**({"pretrain": 60, "width": 0.5} | config))  # type: ignore[arg-type]
    server_view = ServerView(smashed_shape=(8, 4, 4), image_shape=IMAGE, nonnegative=True, seed=1)
    return FshaAttack(chosen, server_view, Auxiliary(glyphs(300, 1)))


def test_gradient_penalty_of_a_linear_critic_is_its_norm_less_one_squared() -> None:
    """Oracle: D(h) = a . h has gradient a everywhere, so the penalty is (|a| - 1)^2."""
    a = torch.randn(5, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(7, 5, requires_grad=True)
    found = gradient_penalty(inputs @ a, inputs)
    assert float(found.detach()) == pytest.approx((float(a.norm()) - 1) ** 2, rel=1e-5)


def test_gradient_penalty_of_a_quadratic_critic_depends_on_each_sample_alone() -> None:
    """Oracle: D(h) = |h|^2 / 2 has gradient h, so the penalty is the mean of (|h| - 1)^2 over samples."""
    inputs = torch.tensor([[3.0, 4.0], [0.0, 2.0]], requires_grad=True)
    found = gradient_penalty(inputs.square().sum(1) / 2, inputs)
    assert float(found.detach()) == pytest.approx(((5 - 1) ** 2 + (2 - 1) ** 2) / 2)


@pytest.mark.parametrize("loss", ["wgan", "gan"])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_gradient_at_the_cut_is_the_critics(loss: str, scale: float) -> None:
    """Oracle: the client's published loss, mean D(z) or its GAN form, differentiated through a copy of the critic
    as it stood before its own step."""
    hijacker = attack(loss=loss, scale=scale, pretrain=1)
    hijacker.prepare()
    smashed = torch.rand(6, 8, 4, 4).requires_grad_()
    scores = hijacker.critic(smashed)
    client_loss = scores.mean() if loss == "wgan" else nn.functional.softplus(scores).mean()
    (wanted,) = torch.autograd.grad(client_loss, smashed)
    reply = hijacker.loss(batch(smashed), torch.tensor(1.0))
    (found,) = torch.autograd.grad(reply, smashed)
    torch.testing.assert_close(found, scale * wanted, rtol=1e-4, atol=1e-7)


def test_with_labels_at_home_the_answer_is_the_same_gradient() -> None:
    """Oracle: two equal attacks, one through each door."""
    by_loss, by_gradient = attack(pretrain=1), attack(pretrain=1)
    smashed = torch.rand(6, 8, 4, 4)
    asked = smashed.clone().requires_grad_()
    (first,) = torch.autograd.grad(by_loss.loss(batch(asked), torch.tensor(1.0)), asked)
    second = by_gradient.gradient(batch(smashed), torch.zeros_like(smashed))
    assert torch.equal(first, second)


def test_the_attacks_nets_step_before_the_clients_backward_and_are_not_in_its_graph() -> None:
    """Oracle: the client's backward after the attack's nets have stepped neither fails nor reaches them."""
    hijacker = attack(pretrain=1)
    smashed = torch.rand(6, 8, 4, 4, requires_grad=True)
    reply = hijacker.loss(batch(smashed), torch.tensor(1.0))
    reply.backward()
    assert all(p.grad is None for net in hijacker.nets.values() for p in net.parameters())


@pytest.mark.parametrize(
    "shape", [(64, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1), (512,), (9, 5, 5)]
)
@pytest.mark.parametrize("size", [32, 30])
def test_nets_fit_every_cut(shape: tuple[int, ...], size: int) -> None:
    """Oracle: shapes alone; ResNet's cuts at 32 px, an odd one, and features without a picture."""
    image = (3, size, size)
    x = torch.rand(2, *image)
    pilot = Pilot(image, shape, 8, nonnegative=True)
    assert pilot(x).shape == (2, *shape)
    assert Decoder(shape, image, 8)(pilot(x)).shape == x.shape
    assert Critic(shape, 8, 1)(pilot(x)).shape == (2,)


def test_published_nets_have_the_published_sizes() -> None:
    """Oracle: the paper's critic: 256 channels, 6 residual blocks of two 3x3 convolutions, one score."""
    config = FshaConfig.published()
    assert (config.penalty, config.lr, config.critic_lr) == (500.0, 1e-5, 1e-4)
    critic = Critic((64, 8, 8), 256, 6)
    block = 2 * (256 * 256 * 9 + 256)
    last = 256 * 256 * 9 + 256 + 256 * 16 + 1
    assert sum(p.numel() for p in critic.parameters()) == 64 * 256 * 9 + 256 + 6 * block + last


def test_state_repeats_the_attack_bit_for_bit() -> None:
    """Oracle: the same steps twice from one state, as after a rolled-back turn."""
    hijacker = attack(pretrain=3)
    hijacker.prepare()
    smashed = torch.rand(6, 8, 4, 4)
    hijacker.hijack(smashed)
    state = torch.load(_saved(hijacker.state_dict()), weights_only=True)
    first = [hijacker.hijack(smashed) for _ in range(2)]
    hijacker.load_state_dict(state)
    second = [hijacker.hijack(smashed) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nan_stops_the_attack_and_not_the_training(caplog: pytest.LogCaptureFixture) -> None:
    """Oracle: after the stop the doors are those of the honest server."""
    hijacker = attack(pretrain=1)
    with torch.no_grad():
        next(hijacker.critic.parameters()).fill_(math.nan)
    task = torch.tensor(1.5)
    assert hijacker.loss(batch(torch.rand(4, 8, 4, 4)), task) is task
    assert "not finite" in hijacker.stopped and "training goes on" in caplog.text
    assert hijacker.loss(batch(torch.rand(4, 8, 4, 4), 1), task) is task
    assert "not finite" in hijacker.report()["stopped"]


@pytest.mark.timeout(120)
def test_it_rebuilds_images_it_never_saw_and_beats_both_controls() -> None:
    """Oracle: the mean image and the answer to other people's smashed data, on images nobody trained on."""
    hijacker, bottom = attack(pretrain=150, critic_steps=2), small_bottom()
    private, held_out = glyphs(300, 2).float() / 255, glyphs(64, 3).float() / 255
    optimizer = torch.optim.Adam(bottom.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for number in range(250):
        x = private[torch.randint(300, (32,), generator=generator)]
        smashed = bottom(x * 2 - 1)
        loss = hijacker.loss(batch(smashed, number), torch.tensor(0.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hijacker.step()
    bottom.eval()
    with torch.no_grad():
        rebuilt = hijacker.reconstruct(bottom(held_out * 2 - 1))
    error = float((rebuilt - held_out).square().mean())
    mean = float((hijacker.auxiliary.unit().mean(0) - held_out).square().mean())
    shuffled = float((rebuilt.roll(1, 0) - held_out).square().mean())
    assert error < 0.6 * mean and error < 0.4 * shuffled, (error, mean, shuffled)


def _saved(state: object) -> object:
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.timeout(120)
def test_property_inference_reads_labels_that_stayed_at_home() -> None:
    """Oracle: the share of the commonest class; the server gets no label of the client."""
    own, private, held_out = glyphs(300, 1), glyphs(300, 2), glyphs(100, 3)
    server_view = ServerView(
        smashed_shape=(8, 4, 4), image_shape=IMAGE, nonnegative=True, seed=1, labels_shared=False
    )
    config = FshaConfig(target="label", pretrain=150, width=0.5, critic_steps=2)
    hijacker, bottom = FshaAttack(config, server_view, Auxiliary(own, has_foot(own))), small_bottom()
    optimizer = torch.optim.Adam(bottom.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for number in range(300):
        x = private[torch.randint(300, (32,), generator=generator)].float() / 127.5 - 1
        smashed = bottom(x)
        at_home = SmashedBatch(smashed.detach(), None, ("client0",), 1, number)
        gradient = hijacker.gradient(at_home, torch.zeros_like(smashed))
        optimizer.zero_grad()
        smashed.backward(gradient)
        optimizer.step()
    with torch.no_grad():
        guessed = hijacker.guess(bottom.eval()(held_out.float() / 127.5 - 1))
    true = has_foot(held_out)
    commonest = float(torch.bincount(true).max()) / len(true)
    assert float((guessed == true).float().mean()) > commonest + 0.15
