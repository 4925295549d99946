"""Every random choice of a run, as a pure function of (secret, seed, purpose, place): nothing to save or restore.

What the server must not know (initial bottom and head, data order, augmentation, dropout and noise at the
client) is derived from the clients' hand-off key; what it may know (the initial top) from the public seed
alone. Because each draw names its place (round, client, batch), a killed and resumed run repeats it exactly.

References: HKDF, RFC 5869 (Krawczyk and Eronen 2010); MT19937 (Matsumoto and Nishimura 1998).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

PUBLIC = b"public"  # the server's "secret": its draws depend on the seed alone

# Where torch's serialised CPU generator keeps MT19937's 624 words, each in eight bytes, after 24 bytes of
# header; `_state` checks it against torch itself.
_WORDS, _HEADER = 624, 24


class BatchAddress(NamedTuple):
    """Where in a run the draws for one batch are: client, server and judge name them all by this.

    Attributes:
        round: of the turn, from 1.
        client: whose images they are.
        batch: a training batch's number in its turn, from 0; an evaluation batch's counts down from -1.
    """

    round: int
    client: str
    batch: int

    @classmethod
    def evaluation(cls, round: int, client: str, batch: int) -> BatchAddress:
        """Of the evaluation batch with this number, from 0; apart from every training batch's."""
        return cls(round, client, -1 - batch)


class Randomness:
    """Derives generators from a secret.

    ``torch.manual_seed`` keeps 32 bits of a seed, few enough to try them all, so a derived generator's whole
    state comes from the secret.

    Args:
        secret: the hand-off key at a client, ``PUBLIC`` at the server.
        seed: the run's public ``--seed``.
    """

    def __init__(self, secret: bytes, seed: int) -> None:
        self._secret = secret
        self._salt = seed.to_bytes(16, "big", signed=True)

    def derive(self, length: int, purpose: str, *place: int | str) -> bytes:
        """``length`` bytes (at most 8,160) for ``purpose`` at ``place``, such as ("order", round, client)."""
        info = "/".join(("suture", purpose, *map(str, place))).encode()
        return HKDF(SHA256(), length=length, salt=self._salt, info=info).derive(self._secret)

    def generator(self, purpose: str, *place: int | str) -> torch.Generator:
        """A CPU generator of its own for ``purpose`` at ``place``."""
        generator = torch.Generator()
        generator.set_state(self._state(purpose, *place))
        return generator

    def turn_draws(self, round: int, client: str) -> tuple[torch.Generator, Callable[[int], torch.Generator]]:
        """What a turn's training batches draw from: the images' order, and by a batch's number its augmentation."""
        return (
            self.generator("order", round, client),
            lambda batch: self.generator("augment", *BatchAddress(round, client, batch)),
        )

    def reseed(self, purpose: str, *place: int | str) -> None:
        """Puts torch's default generators (CPU and GPU) where ``purpose`` at ``place`` begins.

        Dropout, stochastic depth and weight initialisation draw from them.
        """
        torch.default_generator.set_state(self._state(purpose, *place))
        if torch.cuda.is_available():
            # Philox takes 64 bits of key.
            torch.cuda.manual_seed_all(int.from_bytes(self.derive(8, purpose, *place), "big") >> 1)

    def _state(self, purpose: str, *place: int | str) -> Tensor:
        # A freshly seeded generator's header says: no words used, make new ones at the first draw.
        state = torch.Generator().manual_seed(0).get_state()
        words = np.frombuffer(self.derive(4 * _WORDS, purpose, *place), dtype="<u4").astype("<u8")
        state[_HEADER : _HEADER + 8 * _WORDS] = torch.from_numpy(words.view(np.uint8))
        return state

    def __reduce__(self) -> str:
        raise TypeError("Randomness holds the run's secret and refuses to be pickled")
