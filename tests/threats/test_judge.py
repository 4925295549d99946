"""The judge: it pairs what it should, refuses shared images, and flags what no attack was needed for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from suture.runtime.data.client_data import ClientData
from suture.runtime.data.fundus_phantom import FundusPhantom
from suture.runtime.data.partition import PartitionConfig, Share, partition
from suture.runtime.errors import DataError
from suture.runtime.randomness import Randomness
from suture.threats.attacks.auxiliary import Auxiliary, read_auxiliary
from suture.threats.attacks.live import reconstruction_path
from suture.threats.judging import judge as judging
from suture.threats.judging import reader
from suture.threats.judging.judge import Verdict, check_four_sets, judge
from suture.threats.judging.replayed_client import ReplayedClient

SIZE = 16


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and a reader that has hardly learnt to read."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(judging, "train_reader", lambda auxiliary: reader.train_reader(auxiliary, steps=20))
    yield
    torch.set_num_threads(before)


def lab(num_aux: int = 24) -> tuple[ReplayedClient, Auxiliary]:
    source = FundusPhantom(80, 0)
    config = PartitionConfig(train_images=12, validation_images=0, test_images=6, held_out_images=6)
    (share,) = partition(source, config, 1, 0)
    data = ClientData(source, share, image_size=SIZE, channels=3, normalisation="imagenet", augment="light")
    taken = [*share.train, *share.test, *share.held_out]
    auxiliary = read_auxiliary(source, num_aux, image_size=SIZE, channels=3, seed=0, taken=taken)
    return ReplayedClient("client0", data, Randomness(b"k" * 32, 0), 4), auxiliary


def leave(folder: Path, round: int, phase: str, number: int, images: Tensor) -> None:
    path = reconstruction_path(folder, round, "client0", phase, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, images.mul(255).round().clamp(0, 255).to(torch.uint8).numpy())


def perfect(folder: Path, replayed: ReplayedClient, round: int) -> None:
    """What an attack would leave that sees everything."""
    from suture.runtime.data.normalise import denormalise

    for number, batch in enumerate(replayed.train_batches(round)):
        leave(folder, round, "train", number, denormalise(batch.inputs, "imagenet"))
    for kind in ("test", "held_out"):
        for number, batch in replayed.evaluated(kind):
            leave(folder, round, "test", number, denormalise(batch.inputs, "imagenet"))


def verdict_on(folder: Path, replayed: ReplayedClient, auxiliary: Auxiliary) -> Verdict:
    return judge(folder, [replayed], auxiliary, normalisation="imagenet")


def test_a_perfect_attack_is_paired_with_the_augmented_and_the_held_out_images(tmp_path: Path) -> None:
    """Oracle: copies of the truth, which only the right order and augmentation can match."""
    replayed, auxiliary = lab()
    perfect(tmp_path, replayed, 2)
    verdict = verdict_on(tmp_path, replayed, auxiliary)
    assert set(verdict.scores) == {"held_out", "train", "test"}
    for rows in verdict.scores.values():
        assert rows["attack"]["mse"] < 1e-5 and rows["attack"]["reidentified"] == 1
        assert rows["shuffled"]["mse"] > 100 * rows["attack"]["mse"]
        assert rows["mean image"]["mse"] > 100 * rows["attack"]["mse"]
    assert verdict.scores["train"]["attack"]["num_images"] == 12
    assert verdict.chosen_round == 2 and set(verdict.by_round) == {2}


def test_another_key_pairs_nothing_rightly(tmp_path: Path) -> None:
    """Oracle: with a wrong key the order of training is another one."""
    replayed, auxiliary = lab()
    perfect(tmp_path, replayed, 2)
    stranger = ReplayedClient("client0", replayed.data, Randomness(b"z" * 32, 0), 4)
    verdict = verdict_on(tmp_path, stranger, auxiliary)
    assert verdict.scores["train"]["attack"]["reidentified"] < 0.7
    assert verdict.scores["held_out"]["attack"]["mse"] < 1e-5  # evaluation has no secret order


def test_sets_that_share_an_image_are_refused_with_the_count() -> None:
    replayed, auxiliary = lab()
    stolen = Auxiliary(torch.cat([auxiliary.images, replayed.data.pixels("held_out")[:3]]))
    with pytest.raises(DataError, match="attacker-auxiliary and client-held-out share 3 images"):
        check_four_sets([replayed], stolen)


def test_leaked_images_may_be_trained_on_but_are_not_judged(tmp_path: Path) -> None:
    replayed, _ = lab()
    perfect(tmp_path, replayed, 1)
    leaked = Auxiliary(replayed.data.pixels("train")[:5], origin="leaked")
    verdict = judge(tmp_path, [replayed], leaked, normalisation="imagenet", leaked=True)
    assert verdict.scores["train"]["attack"]["num_images"] == 7
    assert verdict.overlaps["attacker-auxiliary and client-train"] == 5


def test_held_out_images_are_a_set_of_their_own() -> None:
    source = FundusPhantom(80, 0)
    config = PartitionConfig(train_images=8, validation_images=4, test_images=4, held_out_images=4)
    sets = [
        split
        for s in partition(source, config, 2, 0)
        for split in (s.train, s.validation, s.test, s.held_out)
    ]
    assert sum(map(len, sets)) == len({index for split in sets for index in split}) == 40


def test_without_held_out_images_shares_are_dealt_as_before() -> None:
    """Oracle: the shares of a run that knows no attack."""
    source = FundusPhantom(80, 0)
    plain = partition(source, PartitionConfig(train_images=8, validation_images=4, test_images=4), 2, 0)
    assert all(isinstance(share, Share) and share.held_out == () for share in plain)


def test_nothing_to_judge_is_named(tmp_path: Path) -> None:
    replayed, auxiliary = lab()
    with pytest.raises(DataError, match="holds no reconstructions"):
        verdict_on(tmp_path, replayed, auxiliary)
