"""What a site draws its noise, order and dropout from: a secret of its own that never leaves it, with a nonce a run.

The secret is made at the site, not by whoever made the kit. With a nonce for every run a second run of the same seed
repeats no noise; the nonce is kept, so that a site that starts again goes on with what it drew before.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from suture.runtime.state.handoff import shared_key
from suture.runtime.state.rollback_guard import RollbackGuard

_SECRET = "secret.key"


def run_secret(state: Path, name: str, run: str) -> bytes:
    """The secret of a site for one run, 32 bytes; made where it is missing, and the same when it is asked again.

    Args:
        state: the kit's folder for what a site keeps.
        name: the site's.
        run: the run's id.

    Raises:
        ConfigError: the secret cannot be read or made, or others may read it.
    """
    own = shared_key(state / _SECRET)
    memory = RollbackGuard(state, name, run)
    nonce = memory.recall_extra("nonce", None)
    if nonce is None:
        nonce = secrets.token_hex(16)
        memory.keep_extra("nonce", nonce)
    return HKDF(SHA256(), length=32, salt=bytes.fromhex(nonce), info=f"suture/site/{run}".encode()).derive(
        own
    )
