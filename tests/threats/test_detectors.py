"""What every registered detector must keep, and that each tells an honest server from a hijacker."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from suture.runtime.errors import ConfigError
from suture.runtime.hooks import Detector
from suture.threats.client_view import ClientView
from suture.threats.detectors.gradient_scrutinizer import (
    GradientScrutinizer,
    ScrutinizerConfig,
    class_cosines,
)
from suture.threats.detectors.splitguard import (
    SplitguardConfig,
    SplitguardDetector,
    guard_score,
    last_layer_gradient,
)
from suture.threats.registry import DETECTORS, build_detector

VIEW = ClientView(
    images=(1, 8, 8),
    smashed=(8, 4, 4),
    normalisation="symmetric",
    task="classification",
    num_classes=4,
    labels_shared=True,
)
SEEDS = range(1000, 1020)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Nets this small lose by a second thread; the fixture of all tests puts the number back."""
    torch.set_num_threads(1)


class _World:
    """A tiny split run: classes are patterns in noise; the server teaches them, or chases features of its own."""

    def __init__(self, seed: int, *, hostile: bool) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.patterns = torch.randn(4, 1, 8, 8, generator=self.generator)
        self.bottom = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU())
        self.top = nn.Sequential(nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 4))
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 1))
        self.hostile = hostile
        self.optimizers = [
            torch.optim.Adam(part.parameters(), lr=2e-3) for part in (self.bottom, self.top, self.critic)
        ]

    def run(self, detector: Detector, num_steps: int) -> int | None:
        """The step of the first alarm, None for none."""
        for step in range(num_steps):
            labels = torch.randint(0, 4, (16,), generator=self.generator)
            noise = torch.randn(16, 1, 8, 8, generator=self.generator)
            fake = detector.fake_labels(labels, step, self.generator)
            self._step(
                detector, self.patterns[labels] + noise, labels if fake is None else fake, fake is None
            )
            if detector.alarm():
                return step
        return None

    def _step(self, detector: Detector, images: Tensor, labels: Tensor, learns: bool) -> None:
        smashed = self.bottom(images)
        sent = smashed.detach().requires_grad_()
        if self.hostile:
            public = torch.randn(sent.shape, generator=self.generator).abs()
            client_loss = -self.critic(sent).mean()
            own_loss = self.critic(sent.detach()).mean() - self.critic(public).mean()
            own_loss = (
                own_loss + self.critic(public).square().mean() + self.critic(sent.detach()).square().mean()
            )
        else:
            client_loss = own_loss = nn.functional.cross_entropy(self.top(sent), labels)
        (gradient,) = torch.autograd.grad(client_loss, sent, retain_graph=True)
        detector.observe(smashed.detach(), gradient, labels)
        parts = [(self.optimizers[2] if self.hostile else self.optimizers[1], own_loss)]
        if learns:
            parts.append((self.optimizers[0], (smashed * gradient).sum()))
        for optimizer, loss in parts:
            optimizer.zero_grad()
            loss.backward(retain_graph=True)
            optimizer.step()


@pytest.mark.parametrize("name", DETECTORS)
def test_at_most_one_of_twenty_honest_runs_gives_alarm(name: str) -> None:
    """Oracle: counting, with the thresholds as shipped and seeds that they were not chosen on."""
    alarms = [
        _World(seed, hostile=False).run(DETECTORS[name].plugin(DETECTORS[name].config(), VIEW), 240)
        for seed in SEEDS
    ]
    print(f"{name}: {sum(step is not None for step in alarms)} of 20 honest runs with alarm")
    assert sum(step is not None for step in alarms) <= 1


@pytest.mark.parametrize("name", DETECTORS)
def test_a_server_that_chases_features_of_its_own_is_found(name: str) -> None:
    """Oracle: a small critic in place of the task's loss, the shape of FSHA; found in at least 4 of 5 runs."""
    alarms = [
        _World(seed, hostile=True).run(DETECTORS[name].plugin(DETECTORS[name].config(), VIEW), 400)
        for seed in range(5)
    ]
    print(f"{name}: alarms at steps {alarms}")
    assert sum(step is not None for step in alarms) >= 4


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_that_has_seen_nothing_is_silent(name: str) -> None:
    """Oracle: score 0, no alarm."""
    detector = build_detector(DETECTORS.parse(name), VIEW)
    assert (detector.score(), detector.alarm()) == (0.0, "")


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("gradient", [0.0, 1.0])
def test_gradients_without_any_information_leave_the_score_in_its_bounds(name: str, gradient: float) -> None:
    """Oracle: scores stay in 0..1 and are numbers for all-zero and all-equal gradients."""
    detector = build_detector(DETECTORS.parse(name), VIEW)
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        labels = torch.arange(8) % 4
        fake = detector.fake_labels(labels, step, generator)
        detector.observe(
            torch.rand(8, 8, 4, 4), torch.full((8, 8, 4, 4), gradient), labels if fake is None else fake
        )
        assert 0.0 <= detector.score() <= 1.0


def test_no_detector_asks_for_the_base_class() -> None:
    """Oracle: the null object, by which the client knows that nobody watches."""
    assert type(build_detector(None, VIEW)) is Detector


def test_fake_labels_are_all_wrong_and_come_in_the_share_asked_for_after_the_start() -> None:
    """Oracle: counting."""
    detector = SplitguardDetector(SplitguardConfig(start=10, p=0.2), VIEW)
    generator, labels = torch.Generator().manual_seed(0), torch.arange(40) % 4
    fakes = [detector.fake_labels(labels, number, generator) for number in range(1010)]
    assert all(fake is None for fake in fakes[:10])
    sent = [fake for fake in fakes if fake is not None]
    assert 160 <= len(sent) <= 240
    for fake in sent:
        assert not bool((fake == labels).any())
        assert 0 <= int(fake.min()) <= int(fake.max()) < 4


def test_whether_a_batch_is_fake_depends_on_its_place_and_key_alone() -> None:
    """Oracle: a detector that starts anew after a resume sends what the first would have sent."""
    labels = torch.arange(16) % 4
    one, other = (SplitguardDetector(SplitguardConfig(p=0.5), VIEW) for _ in range(2))
    one.fake_labels(labels, 50, torch.Generator().manual_seed(5))
    for seed in range(10):
        first = one.fake_labels(labels, 100 + seed, torch.Generator().manual_seed(seed))
        second = other.fake_labels(labels, 100 + seed, torch.Generator().manual_seed(seed))
        assert (first is None) == (second is None)
        assert first is None or second is None or torch.equal(first, second)


def test_the_guard_score_is_a_quarter_where_fake_batches_are_answered_alike() -> None:
    """Oracle: sigmoid(0) squared; and near 1 for a gradient twice as long that points elsewhere."""
    generator = torch.Generator().manual_seed(0)
    regular = [torch.tensor([1.0, 0.0, 0.0]) for _ in range(6)]
    assert guard_score(regular[0], regular) == pytest.approx(0.25)
    regular = [r + 0.05 * torch.randn(3, generator=generator) for r in regular]
    assert guard_score(torch.tensor([-2.0, 0.0, 0.0]), regular) > 0.99


def test_the_gradient_of_a_last_layer_is_that_of_a_real_one() -> None:
    """Oracle: autograd through a 1x1 convolution with identity weights."""
    smashed, grad = torch.randn(3, 5, 4, 4), torch.randn(3, 5, 4, 4)
    layer = nn.Conv2d(5, 5, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(5)[:, :, None, None])
    (layer(smashed) * grad).sum().backward()
    assert layer.weight.grad is not None
    assert torch.allclose(last_layer_gradient(smashed, grad), layer.weight.grad.flatten(), atol=1e-4)


def test_class_cosines_are_those_of_the_pairs() -> None:
    """Oracle: four gradients on a circle, worked out by hand; None where one kind of pair is missing."""
    grad = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    half = math.sqrt(0.5)
    same, different = class_cosines(grad, torch.tensor([0, 0, 1, 1])) or (0.0, 0.0)
    assert same == pytest.approx((half + 0) / 2)
    assert different == pytest.approx((0 - 1 + half - half) / 4)
    assert class_cosines(grad, torch.tensor([0, 0, 0, 0])) is None
    assert class_cosines(grad, torch.tensor([0, 1, 2, 3])) is None


def test_splitguard_is_refused_where_labels_stay_at_home() -> None:
    """Oracle: the loss at home is the client's own; the remedy names the other detector."""
    view = ClientView(**{**vars(VIEW), "labels_shared": False})
    with pytest.raises(ConfigError, match=r"labels stay at home.*gradient-scrutinizer"):
        SplitguardDetector(SplitguardConfig(), view)
    GradientScrutinizer(ScrutinizerConfig(), view)


@pytest.mark.parametrize("name", DETECTORS)
def test_segmentation_has_no_classes_to_compare(name: str) -> None:
    """Oracle: a ConfigError before anything starts."""
    view = ClientView(**{**vars(VIEW), "task": "segmentation", "labels_shared": False})
    with pytest.raises(ConfigError, match=name):
        build_detector(DETECTORS.parse(name), view)
