"""Every random choice of a run, as a pure function of (secret, seed, purpose, place): nothing to save or restore.

What the server must not know (initial bottom and head, data order, augmentation, dropout and noise at the
client) is derived from the clients' hand-off key; what it may know (the initial top) from the public seed
alone. Because each draw names its place (round, client, batch), a killed and resumed run repeats it exactly.

Reference: HKDF, RFC 5869 (Krawczyk and Eronen 2010).
"""

from __future__ import annotations

import torch
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PUBLIC = b"public"  # the server's "secret": its draws depend on the seed alone
EVALUATION_BATCH = -1  # dropout is off in evaluation; noise defences still draw


class Randomness:
    """Derives seeds from a secret.

    Args:
        secret: the hand-off key at a client, ``PUBLIC`` at the server.
        seed: the run's public ``--seed``.
    """

    def __init__(self, secret: bytes, seed: int) -> None:
        self._secret = secret
        self._salt = seed.to_bytes(16, "big", signed=True)

    def seed(self, purpose: str, *place: int | str) -> int:
        """A seed in 0 .. 2**63 - 1 for ``purpose`` at ``place``, for example ("order", round, client)."""
        info = "/".join(("suture", purpose, *map(str, place))).encode()
        derived = HKDF(SHA256(), length=8, salt=self._salt, info=info).derive(self._secret)
        return int.from_bytes(derived, "big") >> 1

    def reseed(self, purpose: str, *place: int | str) -> None:
        """Seeds torch's default generators (CPU and GPU), which dropout and weight initialisation draw from."""
        torch.manual_seed(self.seed(purpose, *place))

    def __reduce__(self) -> str:
        raise TypeError("Randomness holds the run's secret and refuses to be pickled")
