"""What comes back from the server is what the endpoint answers with, or an error: over every carrier.

Oracle: each endpoint's declared answer, written out; whatever else comes is refused by name.
"""

import pytest
import torch

from suture.runtime.errors import SutureError, WireError
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.server.api import ENDPOINTS, ServerApi, check_answer
from suture.runtime.wire.messages import (
    Board,
    Heads,
    LossReply,
    Packed,
    Refusal,
    Release,
    SealedHandoff,
    Share,
    StepReply,
    Welcome,
)

H = torch.zeros(1, 2, 3)
HANDOFF = SealedHandoff(1, b"", bytes(12), torch.zeros(64, dtype=torch.uint8))
ANSWERS = {
    "a welcome": Welcome("run", "/runs/1", 60.0),
    "a turn": Turn(TurnKind.WAIT),
    "a hand-off": HANDOFF,
    "a share": Share("client0", HANDOFF),
    "a step": StepReply(H, 0.5, H),
    "a loss": LossReply(H, 0.5),
    "a tensor": H,
    "a packed tensor": Packed(H, H),
    "a release": Release({}, 1),
    "a board": Board([], [], [], [], ""),
    "heads": Heads([]),
    "nothing": None,
    "a number": 1,
    "a text": "Welcome",
    "a list": [H],
}
RIGHT = {
    "hello": {"a welcome"},
    "next_turn": {"a turn"},
    "fetch": {"a hand-off", "nothing"},
    "share": {"a share", "nothing"},
    "train": {"a step", "a tensor", "a packed tensor"},
    "backward": {"a tensor", "a packed tensor"},
    "predict": {"a tensor", "a packed tensor"},
    "commit": {"nothing"},
    "report": {"nothing"},
    "abort": {"nothing"},
    "finish": {"a release"},
    "leave": {"nothing"},
    "board": {"a board"},
    "post": {"nothing"},
    "begin_epoch": {"nothing"},
    "exhibit": {"a share"},
    "heads": {"heads"},
    "forward": {"a loss", "a tensor"},
    "step": {"nothing"},
}


def test_every_endpoint_is_here():
    """Oracle: what the carriers offer, and the two that a graph needs."""
    assert set(RIGHT) == {*ENDPOINTS, "forward", "step"}


@pytest.mark.parametrize("endpoint", RIGHT)
def test_an_answer_of_another_kind_is_refused(endpoint):
    """Oracle: the table above: what is right comes back as it is, the rest is named."""
    method = getattr(ServerApi, endpoint)
    for name, answer in ANSWERS.items():
        if name in RIGHT[endpoint]:
            assert check_answer(method, answer) is answer
        else:
            kind = type(answer).__name__
            with pytest.raises(WireError, match=f"server: {endpoint}: answered with a {kind}; refused"):
                check_answer(method, answer)


@pytest.mark.parametrize("endpoint", RIGHT)
def test_a_refusal_is_raised_whatever_is_asked(endpoint):
    """Oracle: its class and words; one of a class that nobody knows is an error of ours all the same."""
    for refusal, kind in ((Refusal("WireError", "no"), WireError), (Refusal("Nothing", "no"), SutureError)):
        with pytest.raises(kind, match="^no$"):
            check_answer(getattr(ServerApi, endpoint), refusal)
