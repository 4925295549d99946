"""ADRA: its decoders at every cut, its origins of pairs, and that it beats its controls on a tiny problem."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from glyphs import glyphs, small_bottom
from torch import Tensor, nn

from suture.models.registry import build
from suture.models.shapes import smashed_shape
from suture.models.split import BottomOutput
from suture.runtime.errors import ConfigError, DataError
from suture.runtime.hooks import SmashedBatch
from suture.threats.attacks.adra.attack import AdraAttack, AdraConfig
from suture.threats.attacks.adra.nets import AdraDecoder
from suture.threats.attacks.adra.training import reconstruction_loss
from suture.threats.attacks.auxiliary import Auxiliary
from suture.threats.attacks.server_view import ServerView

IMAGE = (3, 16, 16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small lose more by two threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def server_view(**known: object) -> ServerView:
    return ServerView(**({"smashed_shape": (8, 4, 4), "image_shape": IMAGE, "seed": 1} | known))  # type: ignore[arg-type]


def send(attack: AdraAttack, smashed: Tensor, phase: str, round: int = 1, number: int = 0) -> None:
    attack.observe(SmashedBatch(smashed, None, ("client0",), round, number, phase))


def smash(bottom: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return bottom.eval()(images.float() / 127.5 - 1)


@pytest.mark.parametrize("cut", ["0", "1", "2", "3", "4", "5", "6", "7", "8"])
@pytest.mark.parametrize("size", [32, 50])
def test_decoder_fits_every_cut_of_resnet34(cut: str, size: int) -> None:
    """Oracle: shapes alone, at a size that halves evenly and one that does not."""
    shape = smashed_shape(build("resnet34", cut=cut, num_outputs=2), size)
    image = (3, size, size)
    rebuilt = AdraDecoder(shape, image, width=0.25)(torch.rand(2, *shape))
    assert rebuilt.shape == (2, *image) and 0 <= rebuilt.detach().min() and rebuilt.detach().max() <= 1


def test_the_studys_decoder_at_cut_7() -> None:
    """Oracle: the study's layer list at 224 px: conv 512 to 32, four transposed to 32, one to 3, all stride 2."""
    decoder = AdraDecoder((512, 7, 7), (3, 224, 224))
    convs = [m for m in decoder.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [(type(m).__name__, m.in_channels, m.out_channels) for m in convs] == [
        ("Conv2d", 512, 32),
        *[("ConvTranspose2d", 32, 32)] * 4,
        ("ConvTranspose2d", 32, 3),
    ]
    assert all(m.stride == (2, 2) for m in convs[1:])


def test_losses_are_zero_for_a_perfect_copy_and_known_for_a_constant_error() -> None:
    """Oracle: closed forms; L1 of an error of 0.1 is 0.1, its MSE 0.01."""
    x = torch.rand(2, 3, 16, 16) * 0.8
    assert all(
        float(reconstruction_loss(n, x, x)) == pytest.approx(0, abs=1e-5) for n in ("l1", "mse", "ssim")
    )
    assert float(reconstruction_loss("l1", x + 0.1, x)) == pytest.approx(0.1, rel=1e-4)
    assert float(reconstruction_loss("mse", x + 0.1, x)) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("loss", ["l1", "mse", "ssim"])
def test_queries_rebuild_images_it_never_saw_and_shuffled_pairs_do_not(loss: str) -> None:
    """Oracle: the mean image; and the same decoder trained on pairs that do not belong together."""
    bottom, own, private = small_bottom(), glyphs(256, 1), glyphs(64, 2)
    truth = private.float() / 255
    mean = float((own.float().div(255).mean(0) - truth).square().mean())
    errors = {}
    for name, order in (("attack", torch.arange(256)), ("control", torch.arange(256).roll(1))):
        attack = AdraAttack(
            AdraConfig(loss=loss, epochs=15, aux_images=256, lr=5e-3, width=0.5),
            server_view(),
            Auxiliary(own),
        )  # type: ignore[arg-type]
        send(attack, smash(bottom, own)[order], "query")
        attack.finish()
        errors[name] = float((attack.reconstruct(smash(bottom, private)) - truth).square().mean())
    assert errors["attack"] < 0.4 * mean, (errors, mean)
    assert errors["control"] > 0.8 * mean, (errors, mean)


def _learnt(epochs: int) -> AdraAttack:
    own = glyphs(128, 1)
    config = AdraConfig(epochs=epochs, patience=3, aux_images=128, lr=5e-3, width=0.25)
    attack = AdraAttack(config, server_view(), Auxiliary(own))
    send(attack, smash(small_bottom(), own), "query")
    attack.finish()
    return attack


def test_an_attacker_cut_short_says_that_it_was_still_learning(caplog: pytest.LogCaptureFixture) -> None:
    """Oracle: the report and the log of one that gets three passes, and of one that gets all it can use."""
    short = _learnt(3)
    learning = short.report()["learning"]
    assert learning["ended"] == "still learning" and learning["budget"] == "3 passes over 116 pairs"
    assert "was still learning when its budget ended (3 passes over 116 pairs)" in caplog.text
    assert [point[0] for point in learning["curve"]] == [4, 8, 12] and short.steps == 12
    caplog.clear()
    whole = _learnt(400)
    learning = whole.report()["learning"]
    assert learning["ended"] == "plateau" and whole.steps < 400 * 4 and "still learning" not in caplog.text
    curve = learning["curve"]
    assert len(curve) <= 62 and curve[-1][0] == whole.steps and curve[-1][2] < curve[0][2]
    assert min(loss for *_, loss in curve) < min(loss for *_, loss in short.report()["learning"]["curve"])


def test_the_control_of_shuffled_pairs_falls_to_the_mean_image() -> None:
    """Oracle: the mean image's error; the attack itself, from the same pairs put right, is far below."""
    bottom, own, private = small_bottom(), glyphs(256, 1), glyphs(64, 2)
    truth = private.float() / 255
    mean = float((own.float().div(255).mean(0) - truth).square().mean())
    errors = {}
    for shuffled in (False, True):
        config = AdraConfig(epochs=60, aux_images=256, lr=5e-3, width=0.25, patience=4, shuffled=shuffled)
        attack = AdraAttack(config, server_view(), Auxiliary(own))
        send(attack, smash(bottom, own), "query")
        attack.finish()
        errors[shuffled] = float((attack.reconstruct(smash(bottom, private)) - truth).square().mean())
    assert errors[False] < 0.4 * mean and errors[True] > 0.95 * mean, (errors, mean)


def test_averaging_rounds_helps_against_noise() -> None:
    """Oracle: the same attack with one pass; noise differs from round to round where the image does not."""
    bottom, own, private = small_bottom(), glyphs(256, 1), glyphs(64, 2)
    generator = torch.Generator().manual_seed(0)
    own_clean, private_clean = smash(bottom, own), smash(bottom, private)
    noise = float(own_clean.std()) * 2
    errors = []
    for average in (1, 8):
        attack = AdraAttack(
            AdraConfig(epochs=15, average=average, aux_images=256), server_view(num_rounds=8), Auxiliary(own)
        )
        for round in range(1, 9):
            for phase, clean in (("query", own_clean), ("test", private_clean)):
                send(attack, clean + noise * torch.randn(clean.shape, generator=generator), phase, round)
        attack.fit(*attack.pairs())
        (heard,) = attack._averaged(attack._recorded("test"))
        errors.append(float((attack.reconstruct(heard.smashed) - private.float() / 255).square().mean()))
    assert errors[1] < 0.7 * errors[0], errors


def test_a_shadow_needs_no_access_to_the_client() -> None:
    """Oracle: the mean image; the attacker sees smashed data, its own top and its own labelled images only."""
    torch.manual_seed(0)
    own, private = glyphs(256, 1), glyphs(64, 2)

    class Bottom(nn.Sequential):
        def forward(self, x: Tensor) -> BottomOutput:  # type: ignore[override]
            return BottomOutput(super().forward(x))

    client, top = small_bottom(3), nn.Sequential(nn.Flatten(), nn.Linear(128, 2))
    labels = (own.float().mean((1, 2, 3)) > own.float().mean()).long()
    known = server_view(top=top, fresh_bottom=lambda: Bottom(*small_bottom(7)))
    config = AdraConfig(origin="shadow", epochs=5, shadow_epochs=3, aux_images=256)
    attack = AdraAttack(config, known, Auxiliary(own, labels))
    before = [p.clone() for p in top.parameters()]
    send(attack, smash(client, private), "test")
    attack.finish()
    assert not attack.stopped and attack.steps > 0
    assert all(torch.equal(a, b) for a, b in zip(before, top.parameters(), strict=True))
    assert attack.reconstruct(smash(client, private)).shape == private.shape


def test_a_shadow_is_refused_where_labels_stay_at_home() -> None:
    with pytest.raises(ConfigError, match="labels, which stay at home.*--labels shared"):
        AdraAttack(AdraConfig(origin="shadow"), server_view(labels_shared=False), Auxiliary(glyphs(4, 1)))


def test_queries_that_nobody_answered_are_named() -> None:
    attack = AdraAttack(AdraConfig(), server_view(), Auxiliary(glyphs(8, 1)))
    with pytest.raises(DataError, match="origin=query needs a client that passed the attacker's images"):
        attack.finish()


def test_it_leaves_reconstructions_where_the_judge_looks_and_no_smashed_data(tmp_path: Path) -> None:
    bottom, own = small_bottom(), glyphs(64, 1)
    attack = AdraAttack(AdraConfig(epochs=1, aux_images=64), server_view(folder=tmp_path), Auxiliary(own))
    send(attack, smash(bottom, own), "query")
    send(attack, smash(bottom, glyphs(10, 2)), "test", number=3)
    attack.finish()
    assert [p.name for p in tmp_path.glob("round_*/*")] == ["client0-test-00003.npy"]
    assert not (tmp_path / "observed").exists()
    assert {"report.json", "attack.pt", "losses.jsonl"} <= {p.name for p in tmp_path.iterdir()}
