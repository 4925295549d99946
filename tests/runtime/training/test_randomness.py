"""Every draw is a function of secret, seed, purpose and place, of the secret's whole entropy, and of nothing else.

Oracle: HKDF written out with hmac; torch's own generator for the layout of its state.
"""

import copy
import hashlib
import hmac
import pickle

import numpy as np
import pytest
import torch

from suture.runtime.randomness import PUBLIC, Randomness

KEY = bytes(range(32))


def _draw(secret=KEY, seed=0, *place) -> torch.Tensor:
    return torch.rand(8, generator=Randomness(secret, seed).generator(*(place or ("order", 1, "client0", 2))))


def test_the_same_place_draws_the_same():
    """Oracle: a second object, and draws in between elsewhere, change nothing."""
    randomness = Randomness(KEY, 0)
    first = torch.rand(8, generator=randomness.generator("order", 1, "client0", 2))
    torch.rand(8, generator=randomness.generator("augment", 1, "client0", 2))
    torch.rand(5)
    assert torch.equal(first, torch.rand(8, generator=randomness.generator("order", 1, "client0", 2)))
    assert torch.equal(first, _draw())


@pytest.mark.parametrize(
    ("secret", "seed", "place"),
    [
        (KEY, 0, ("augment", 1, "client0", 2)),
        (KEY, 0, ("order", 2, "client0", 2)),
        (KEY, 0, ("order", 1, "client1", 2)),
        (KEY, 0, ("order", 1, "client0", 3)),
        (KEY, 0, ("order", 1, "client0")),
        (KEY, 0, ("order", 1, "client0", 2, 0)),
        (KEY, 0, ("order", 1, "client0", -2)),
        (KEY, 1, ("order", 1, "client0", 2)),
        (KEY, 2**63 - 1, ("order", 1, "client0", 2)),
        (bytes(32), 0, ("order", 1, "client0", 2)),
        (PUBLIC, 0, ("order", 1, "client0", 2)),
        (KEY[:-1] + b"\x00", 0, ("order", 1, "client0", 2)),
    ],
)
def test_every_part_of_the_place_counts(secret, seed, place):
    """Oracle: the draw at ("order", 1, "client0", 2) under KEY and seed 0; not one of eight numbers is equal."""
    assert not (_draw() == _draw(secret, seed, *place)).any()


def test_derived_bytes_are_hkdf():
    """Oracle: RFC 5869's extract and expand, written out."""
    salt = (5).to_bytes(16, "big", signed=True)
    extracted = hmac.new(salt, KEY, hashlib.sha256).digest()
    one = hmac.new(extracted, b"suture/order/1/client0\x01", hashlib.sha256).digest()
    two = hmac.new(extracted, one + b"suture/order/1/client0\x02", hashlib.sha256).digest()
    assert Randomness(KEY, 5).derive(48, "order", 1, "client0") == (one + two)[:48]


def test_moments_are_those_of_the_distributions():
    """Oracle: mean and variance of uniform and normal numbers, to six standard errors of 100,000 draws."""
    generator = Randomness(KEY, 0).generator("moments")
    uniform = torch.rand(100_000, generator=generator, dtype=torch.float64)
    normal = torch.randn(100_000, generator=generator, dtype=torch.float64)
    assert abs(uniform.mean() - 1 / 2) < 6 * (1 / 12 / 1e5) ** 0.5
    assert abs(uniform.var() - 1 / 12) < 6 * (1 / 180 / 1e5) ** 0.5
    assert abs(normal.mean()) < 6 / 1e5**0.5
    assert abs(normal.var() - 1) < 6 * (2 / 1e5) ** 0.5
    assert abs(torch.corrcoef(torch.stack((uniform, normal)))[0, 1]) < 6 / 1e5**0.5


def test_first_draws_of_neighbouring_places_are_independent():
    """Oracle: 2,000 first draws, each of a generator of its own, look uniform and are not correlated."""
    randomness = Randomness(KEY, 0)
    drawn = [
        float(torch.rand(1, generator=randomness.generator("noise", 1, "client0", n))) for n in range(2000)
    ]
    values = torch.tensor(drawn, dtype=torch.float64)
    assert abs(values.mean() - 1 / 2) < 6 * (1 / 12 / 2000) ** 0.5
    assert abs(torch.corrcoef(torch.stack((values[:-1], values[1:])))[0, 1]) < 6 / 2000**0.5


def test_reseeding_puts_the_default_generator_where_a_generator_of_its_own_begins():
    """Oracle: `generator` at the same place; uniform, normal, integers, a permutation, dropout."""
    randomness = Randomness(KEY, 0)
    own = randomness.generator("bottom", 1)
    randomness.reseed("bottom", 1)
    for draw in (
        lambda **g: torch.rand(7, **g),
        lambda **g: torch.randn(33, **g),
        lambda **g: torch.randint(0, 1000, (5,), **g),
        lambda **g: torch.randperm(50, **g),
    ):
        assert torch.equal(draw(), draw(generator=own))
    randomness.reseed("bottom", 1)
    once = torch.nn.functional.dropout(torch.ones(100))
    randomness.reseed("bottom", 1)
    assert torch.equal(torch.nn.functional.dropout(torch.ones(100)), once)


def test_a_pending_normal_number_does_not_survive_reseeding():
    """Oracle: the same draw after an odd number of normal draws, which leave the second of a pair behind."""
    randomness = Randomness(KEY, 0)
    randomness.reseed("bottom", 1)
    first = torch.randn(3)
    torch.randn(1)
    torch.randn(1, dtype=torch.float64)
    randomness.reseed("bottom", 1)
    assert torch.equal(torch.randn(3), first)


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 1])
def test_torch_keeps_its_words_where_we_put_ours(seed):
    """Oracle: MT19937's seeding (Matsumoto and Nishimura 2002) written out, against torch's own state.

    This is what must be looked at first when a new torch moves its state.
    """
    words = [seed & 0xFFFFFFFF]
    for i in range(1, 624):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + i) & 0xFFFFFFFF)
    state = torch.Generator().manual_seed(seed).get_state()
    stored = state[24 : 24 + 8 * 624].numpy().view("<u8")
    assert np.array_equal(stored, np.array(words, dtype="<u8")) and int(stored[0]) == seed


def test_our_state_is_torchs_with_our_words():
    """Oracle: torch's header and tail; the words are the derived bytes."""
    randomness = Randomness(KEY, 0)
    ours = randomness.generator("order", 1).get_state()
    torchs = torch.Generator().manual_seed(0).get_state()
    words = ours[24 : 24 + 8 * 624].numpy().view("<u8").astype("<u4").tobytes()
    assert words == randomness.derive(4 * 624, "order", 1)
    ours[24 : 24 + 8 * 624] = torchs[24 : 24 + 8 * 624]
    assert torch.equal(ours, torchs)


def test_more_than_32_bits_of_the_secret_count():
    """Oracle: two places whose derived low 32 bits collide (found by search) still draw differently.

    ``torch.manual_seed`` on those bits would draw the same, and 2**32 seeds can be tried one by one.
    """
    randomness, seen = Randomness(KEY, 0), {}
    for number in range(400_000):
        low = randomness.derive(4, "order", number)
        if low in seen:
            break
        seen[low] = number
    else:
        pytest.fail("no collision found")
    one, two = seen[low], number
    seeded = [torch.Generator().manual_seed(int.from_bytes(low, "big")) for _ in range(2)]
    assert torch.equal(*(torch.rand(8, generator=generator) for generator in seeded))
    assert not (_draw(KEY, 0, "order", one) == _draw(KEY, 0, "order", two)).any()


def test_two_generators_differ_in_all_their_words():
    """Oracle: of 624 words of two places next to none is equal by accident."""
    states = [Randomness(KEY, 0).generator("order", n).get_state()[24 : 24 + 8 * 624] for n in (1, 2)]
    words = [state.numpy().view("<u8") for state in states]
    assert (words[0] != words[1]).all()


def test_randomness_refuses_to_be_pickled():
    """Oracle: TypeError, so that no secret is written or sent by accident."""
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds the run's secret and refuses to be pickled"):
            copying(Randomness(KEY, 0))


def test_the_secret_is_not_shown():
    """Oracle: the key's hex digits and its Python form are in neither text."""
    randomness = Randomness(KEY, 0)
    for text in (repr(randomness), str(randomness)):
        assert KEY.hex() not in text and repr(KEY) not in text
