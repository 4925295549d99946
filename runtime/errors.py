"""Every error a person can meet, one class a kind; each message names the value, the bound and the remedy.

Errors cross the wire as (class name, message), see ``wire.Refusal``; ``ERRORS`` turns the name back into
the class. They therefore take one message string and nothing else.
"""

from typing import Any


class SutureError(RuntimeError):
    """Base of all errors that are not a defect of the program: shown without a traceback."""

    exit_code = 1


class ConfigError(SutureError):
    """An option has a value that cannot work; nothing was started. Correct the option."""

    exit_code = 2


class PolicyError(SutureError):
    """This site's policy.toml forbids what the run asks for; nothing was sent. Change what is asked, or the policy."""

    exit_code = 15


class DataError(SutureError):
    """A data source is missing, damaged or too small; nothing was trained on it. Mend the data."""

    exit_code = 3


class WireError(SutureError):
    """A peer sent something that the protocol does not allow; it was refused and not used."""

    exit_code = 4


class HandoffError(SutureError):
    """A sealed hand-off could not be opened: wrong key, altered, of another run, or older than allowed."""

    exit_code = 5


class CheckpointError(SutureError):
    """A checkpoint could not be written or none can be read; the last whole one stays where it is."""

    exit_code = 6


class DivergedError(SutureError):
    """The loss or a gradient is not finite; training stopped and the last good checkpoint was kept."""

    exit_code = 7


class PeerLostError(SutureError):
    """The other side cannot be reached, or did not answer within the timeout. Start again with --resume."""

    exit_code = 8


class MemberLostError(PeerLostError):
    """The server took this client for lost, silent for longer than the lease. It must join again, as a new member."""

    exit_code = 13


class TurnUndoneError(SutureError):
    """Another client of the same turn failed, and all of it was rolled back: what this one did in it never happened."""

    exit_code = 14


class UnreachableError(SutureError):
    """Nobody answered at the server's address for as long as this site was willing to wait. Check the address."""

    exit_code = 11


class NameTakenError(SutureError):
    """A client of this name is in the run; the server takes one that died for gone when its lease has run out."""

    exit_code = 12


class StoppedError(SutureError):
    """The run was stopped by what happened at another rank; the message repeats that rank's error."""

    exit_code = 9


class AlarmError(SutureError):
    """A client's detector holds the server for hostile, and the client left before sending more. Ask the server."""

    exit_code = 10


class EvictedError(SutureError):
    """This site was put out of the run: revoked, withdrawn, or convicted by two other sites. It cannot come back."""

    exit_code = 18


class UntrustedError(SutureError):
    """What another site is said to have stated is not signed by a site of this one's roster. It was not used."""

    exit_code = 16


class BadHandoffError(HandoffError):
    """A hand-off that its author did sign holds what no honest site seals. Its author is accused.

    Attributes:
        exhibit: the `wire.Share` that it speaks of; what accuses is not sent with the message.
    """

    exit_code = 17
    exhibit: Any = None


ERRORS: dict[str, type[SutureError]] = {
    error.__name__: error
    for error in (
        SutureError,
        ConfigError,
        PolicyError,
        DataError,
        WireError,
        HandoffError,
        CheckpointError,
        DivergedError,
        PeerLostError,
        MemberLostError,
        TurnUndoneError,
        UnreachableError,
        NameTakenError,
        StoppedError,
        AlarmError,
        EvictedError,
        UntrustedError,
        BadHandoffError,
    )
}
