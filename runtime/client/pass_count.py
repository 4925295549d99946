"""How often a site releases one round's pass over its images: between hospitals its policy sets a limit."""

from __future__ import annotations

import logging

from suture.runtime.client.model import ClientConfig
from suture.runtime.errors import PolicyError
from suture.runtime.scheduler import Turn
from suture.runtime.state.rollback_guard import RollbackGuard

log = logging.getLogger(__name__)


def count_pass(turn: Turn, config: ClientConfig, memory: RollbackGuard) -> None:
    """Counts a pass over the client's images before anything of it is sent.

    Args:
        turn: in which they are passed.
        config: its ``rounds`` and ``repeats`` are the limits.
        memory: where passes are counted, a restart of the site included.

    Raises:
        PolicyError: the client has released this round's too often, or there is no such round.
    """
    if config.rounds is not None and not 1 <= turn.round <= config.rounds:
        raise PolicyError(
            f"policy epochs: the server asks for round {turn.round} of {config.rounds}; nothing of it was sent"
        )
    if config.repeats is None:
        return
    counted = dict(memory.recall_extra("passes", {}))
    one_pass = f"{turn.kind} {turn.round}"
    num = counted[one_pass] = counted.get(one_pass, 0) + 1
    if num > 1 + config.repeats:
        raise PolicyError(
            f"policy repeats: the server asks for round {turn.round} ({turn.kind}) again, {num} times in all, at most "
            f"{1 + config.repeats} are allowed; nothing of it was sent: ask its operator why turns are rolled back"
        )
    if num > 1:
        log.warning("round %d (%s) is passed again, %d times in all", turn.round, turn.kind, num)
    memory.keep_extra("passes", counted)
