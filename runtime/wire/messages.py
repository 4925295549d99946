"""What crosses the wire: the typed messages of the protocol. What each must pass is in ``checks``.

Shape legend: N batch; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from suture.runtime.errors import ERRORS, SutureError

PROTOCOL = 5
PHASES = ("train", "validation", "test")
# In lab mode a client may pass an attacker's own images through its bottom; they are scored by nobody.
QUERY = "query"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as an answer. Raised exceptions lose their class in RPC and print a traceback at the callee."""

    error: str
    message: str

    @classmethod
    def of(cls, error: SutureError) -> Refusal:
        return cls(type(error).__name__, str(error))

    def raise_it(self) -> None:
        """Raises the error that the other side refused with."""
        raise ERRORS.get(str(self.error), SutureError)(printable(self.message))


def printable(text: str) -> str:
    """A peer's text as it may be shown: short, and nothing that a terminal would obey."""
    return "".join(sign if sign.isprintable() else " " for sign in text[:2000])


def unwrap(answer: Any) -> Any:
    """An answer, or the error that the other side refused with."""
    if isinstance(answer, Refusal):
        answer.raise_it()
    return answer


@dataclass(frozen=True, slots=True)
class Statement:
    """What a site says and signs; the server relays it, and cannot change it. What it means is in ``consortium``.

    Attributes:
        kind: what is stated, such as "handoff" or "accusation"; signed.
        author: the site, by its certificate's name; signed.
        content: JSON; signed.
        certificate: the author's, in PEM.
        signature: hexadecimal.
    """

    kind: str
    author: str
    content: str
    certificate: str
    signature: str


@dataclass(frozen=True, slots=True)
class Board:
    """What the sites of a run have stated to each other, as the server passes it on.

    Attributes:
        epochs: `Statement`s, one for every epoch of the hand-off key, in their order.
        evidence: accusations, verdicts and withdrawals.
        requests: of each site that lacks the newest key, or was put out, its newest request.
        grants: of the newest epoch's key, to each site that has asked.
        revoked: the authority's signed list of certificates that do not count any more, in PEM; empty for none.
    """

    epochs: list[Statement]
    evidence: list[Statement]
    requests: list[Statement]
    grants: list[Statement]
    revoked: str


@dataclass(frozen=True, slots=True)
class Heads:
    """What every site has signed at its farewell: the hand-off with which its run ends."""

    statements: list[Statement]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a site is told before it joins.

    Attributes:
        run: the run's id.
        agreement: options that every site must share, as strings; "classes" where the run has them already.
    """

    run: str
    agreement: dict[str, str]


@dataclass(frozen=True, slots=True)
class Hello:
    """A client's first message; a site sends it with its request for the terms, too, where the run has no classes yet.

    Attributes:
        client: the member's name.
        agreement: options that must be the same on both sides, as strings.
        num_images: training images, for the server's log and progress.
        num_batches: training batches a turn.
        class_weights: weights_K of the loss where labels are shared and classes are weighted, else None.
    """

    client: str
    agreement: dict[str, str]
    num_images: int
    num_batches: int
    class_weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server's answer: the run that the client has joined and the folder that the server chose for it."""

    run: str
    run_dir: str
    lease: float


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor in a format of ``compression``: ``values``, and ``beside`` them what reads them, scales or places."""

    values: Tensor
    beside: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.values.nbytes + self.beside.nbytes


@dataclass(frozen=True, slots=True)
class Upload:
    """One batch of smashed data on its way up; ``labels`` only where they are shared and in training."""

    turn: int
    batch: int
    phase: str
    smashed: Tensor | Packed
    labels: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossReply:
    """Labels shared: ``loss`` is the root that the client differentiates, ``task_loss`` what it is shown."""

    loss: Tensor
    task_loss: float


@dataclass(frozen=True, slots=True)
class StepReply:
    """`LossReply` of an explicit step: the server has stepped, and d loss / d smashed (h_ND) comes with the loss."""

    loss: Tensor
    task_loss: float
    gradient: Tensor | Packed


@dataclass(frozen=True, slots=True)
class OutputGradient:
    """Labels at home, explicit step: d loss / d output, shaped like the top's output, and the client's task loss."""

    turn: int
    batch: int
    loss: float
    gradient: Tensor | Packed


@dataclass(frozen=True, slots=True)
class StepDone:
    """Backward has run: the server may step. ``loss`` is the task loss that the client saw."""

    turn: int
    batch: int
    loss: float


@dataclass(frozen=True, slots=True)
class SealedHandoff:
    """A client's parts, sealed: the server relays and keeps what it cannot read.

    Attributes:
        turn: number of the turn that produced it, 0 for the initial parts; bound as associated data.
        previous: SHA-256 of the hand-off before it (empty for the first); bound as associated data.
        nonce: 12 bytes, never used twice with one key.
        ciphertext: uint8, one dimension, authenticated.
        epoch: of the key that it is sealed with; 0 where the clients were given one key for all.
        statement: its author's signature over all of it, between hospitals; else None.
    """

    turn: int
    previous: bytes
    nonce: bytes
    ciphertext: Tensor
    epoch: int = 0
    statement: Statement | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one client of a turn of several sealed at its end; only clients can average it."""

    client: str
    sealed: SealedHandoff


@dataclass(frozen=True, slots=True)
class Report:
    """A client's scores after an evaluation turn, by phase and metric."""

    turn: int
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Farewell:
    """A client's last message: SHA-256 of its parts (hex, by part's name) and its peak memory in bytes.

    Between hospitals ``head`` names and signs the hand-off with which the run ends for it.
    """

    digests: dict[str, str]
    peak_memory: int
    head: Statement | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """The trained top, handed to a client that finished; ``best_*`` where another round validated better."""

    top: dict[str, Tensor]
    best_round: int
    best_top: dict[str, Tensor] | None = None
    best_handoff: SealedHandoff | None = None


MESSAGES = (
    Refusal,
    Statement,
    Board,
    Heads,
    Terms,
    Hello,
    Welcome,
    Packed,
    Upload,
    LossReply,
    StepDone,
    StepReply,
    OutputGradient,
    SealedHandoff,
    Share,
    Report,
    Farewell,
    Release,
)
"""What may cross the wire, beside a `scheduler.Turn`."""
