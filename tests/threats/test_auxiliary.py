"""Auxiliary data: disjoint from every client's by content, of the net's shape, reproducible."""

from __future__ import annotations

import pytest
import torch
from glyphs import glyphs

from suture.runtime.data.fundus_phantom import FundusPhantom
from suture.runtime.errors import ConfigError, DataError
from suture.threats.attacks.auxiliary import Auxiliary, check_disjoint, read_auxiliary


def test_images_that_a_client_also_has_are_refused_with_their_number() -> None:
    own = glyphs(20, 1)
    theirs = torch.cat([glyphs(5, 2), own[3:7]])
    with pytest.raises(DataError, match=r"4 of 20 images are also client1's own"):
        check_disjoint(own, theirs, "client1")
    check_disjoint(own, theirs[:5], "client1")


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shape \(3, 32, 32\).*got \(3, 16, 16\)"):
        Auxiliary(glyphs(4, 1)).check_shape((3, 32, 32))


def test_only_uint8_is_taken_so_that_scales_cannot_be_mixed_up() -> None:
    with pytest.raises(ConfigError, match="must be uint8"):
        Auxiliary(torch.rand(4, 3, 16, 16))


def test_images_of_the_clients_patients_are_left_out_and_too_few_are_named() -> None:
    source = FundusPhantom(40, 0)
    taken = range(30)
    read = read_auxiliary(source, 10, image_size=16, channels=3, seed=0, taken=taken)
    theirs = torch.stack([source.read(index, 16, 3)[0] for index in taken])
    check_disjoint(read.images, theirs, "client0")
    again = read_auxiliary(source, 10, image_size=16, channels=3, seed=0, taken=taken)
    assert torch.equal(read.images, again.images)
    with pytest.raises(DataError, match="aux-images is 11, but .* has 10 images"):
        read_auxiliary(source, 11, image_size=16, channels=3, seed=0, taken=taken)
