"""A machine's standing in its consortium while a run goes on: what was revoked, what ends soon, what was renewed.

Each end looks at its own kit every few seconds, in a thread of its own. What it finds there is files that people or
commands put in place of older ones; one that cannot be used changes nothing, and is said once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from suture.launch.kits.expiry import ExpiryWarnings, now
from suture.launch.kits.kit import Kit
from suture.launch.kits.shown_certificate import server_certificate
from suture.runtime.consortium.credentials import Credentials
from suture.runtime.consortium.identity import Identity
from suture.runtime.consortium.revocations import REVOKED, Revocations
from suture.runtime.consortium.roster import fingerprint
from suture.runtime.errors import ConfigError, SutureError
from suture.runtime.grpc.client import GrpcClientConfig
from suture.runtime.grpc.service import MUTUAL

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_OF_A_SESSION = 86400.0
"""A site of which nothing was heard for so long is not spoken of any more."""


class Standing:
    """What server and site watch alike: revocations and the ends of certificates. Renewal is each subclass's own.

    Args:
        kit: this machine's.
        revoked: a list that people put there, see `Revocations`; None for the kit's own place, where none need be.
        clock: what time it is, for what ends.

    Attributes:
        revocations: the newest list; for `Trust`.

    Raises:
        ConfigError: ``revoked`` is named and missing; a list cannot be used.
    """

    def __init__(
        self,
        kit: Kit,
        revoked: Path | None = None,
        clock: Callable[[], datetime] = now,
        memory: Path | None = None,
    ) -> None:
        if revoked is not None and not revoked.is_file():
            raise ConfigError(
                f"there is no list of revoked certificates at {revoked}; name the authority's revoked.pem, or leave "
                "--revoked out until there is one"
            )
        self.kit = kit
        self._list = (revoked or kit.revoked).absolute()
        self._credentials = kit.credentials()
        self.revocations = Revocations(self._credentials.authority, self._list, memory)
        if reason := self.revocations.why_refused(_first(self._credentials.certificate)):
            raise ConfigError(
                f"{kit.name} has no part in its consortium any more: {reason}; ask who keeps its authority"
            )
        self._clock, self._warnings = clock, ExpiryWarnings(clock)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def folders(self) -> list[Path]:
        """What the sandbox must leave readable: files are replaced by renaming, so their folders."""
        return [self.kit.folder, self._list.parent]

    def look(self) -> None:
        """Looks at everything once."""
        authorities = x509.load_pem_x509_certificates(self._credentials.authority)
        self._warnings.look(
            authorities,
            "the authority's",
            "none of its certificates counts after that: plan new kits for all (suture provision)",
        )
        own = x509.load_pem_x509_certificates(self._credentials.certificate)[:1]
        self._warnings.look(own, "this machine's own", self._what_to_do())
        self.revocations.look()

    def _what_to_do(self) -> str:
        folder = self.kit.folder
        return f"suture request {folder}, then suture sign at the authority, then suture install {folder} CERT.pem"

    def start(self) -> None:
        """Looks from now on until it is closed; to be called when the sandbox is closed."""
        self.look()
        self._thread = threading.Thread(target=self._go_on, name="standing", daemon=True)
        self._thread.start()

    def _go_on(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            try:
                self.look()
            except Exception:  # a defect here must end no run
                log.exception("cannot look after the kit %s", self.kit.folder)

    def close(self) -> None:
        """Ends the thread. May be called again."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> None:
        self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ServerStanding(Standing):
    """The server's; see `Standing`. Its own renewal is taken up when it is started again."""

    def __init__(self, kit: Kit, revoked: Path | None = None, clock: Callable[[], datetime] = now) -> None:
        super().__init__(kit, revoked, clock)
        self._sites: dict[bytes, tuple[x509.Certificate, float]] = {}

    def refuses(self, certificate: bytes) -> str:
        """For `GrpcServerConfig`: why a site's certificate (PEM) counts no more, empty where it does."""
        known = self._sites.get(certificate)
        own = x509.load_pem_x509_certificate(certificate) if known is None else known[0]
        self._sites[certificate] = own, time.monotonic()
        reason = self.revocations.why_refused(certificate)
        if known is None and not reason:
            self._look_at_sites()
        return reason

    def look(self) -> None:
        super().look()
        self._look_at_sites()

    def _look_at_sites(self) -> None:
        since = time.monotonic() - _SECONDS_OF_A_SESSION
        here = [(pem, one, heard) for pem, (one, heard) in list(self._sites.items())]
        for pem, _, heard in here:
            if heard < since:
                self._sites.pop(pem, None)
        self._warnings.look(
            [one for _, one, heard in here if heard >= since],
            "",
            "tell it: suture request there, then suture sign at the authority, then suture install",
        )

    def _what_to_do(self) -> str:
        return f"{super()._what_to_do()}, and start suture serve again"


class Connection(Protocol):
    """The way to the server that is in use; see `GrpcClient`."""

    def renew(self, credentials: Credentials) -> bool: ...


class Signer(Protocol):
    """Who signs for the site; see `SiteConsortium`."""

    def renew(self, identity: Identity) -> None: ...


class SiteStanding(Standing):
    """A site's; see `Standing`. Keeps the newest list that it was shown in the kit's folder ``state``.

    A certificate that is renewed in the kit is taken up without leaving the run, if its key is the same. With another
    key the site goes on with what it has: hand-offs that it has signed so far are signed with that.
    """

    def __init__(self, kit: Kit, revoked: Path | None = None, clock: Callable[[], datetime] = now) -> None:
        super().__init__(kit, revoked, clock, kit.make_state() / REVOKED)
        self._connection: Connection | None = None
        self._signer: Signer | None = None
        self._seen = _stamp(kit)
        self._lock = threading.Lock()

    def dial(self, config: GrpcClientConfig) -> GrpcClientConfig:
        """How to connect, with the newest certificate; looks at the server's first where any was revoked.

        Raises:
            ConfigError: this site's certificate has ended, or the server's counts no more; nothing was said to it.
        """
        self._take_up()
        ends = self._credentials.expires
        if self._clock() > ends:
            raise ConfigError(
                f"this site's certificate {self.kit.certificates.cert} expired on {ends:%Y-%m-%d %H:%M} UTC, and the "
                f"server takes no connection with it; {self._what_to_do()}, and start suture join again"
            )
        refuses = self.revocations.why_refused
        if config.tls == MUTUAL and self.revocations.number:
            shown = server_certificate(config.host, config.port, self.kit.certificates)
            if shown and (reason := refuses(shown)):
                raise ConfigError(
                    f"the server at {config.host}:{config.port} has no part in the consortium any more: {reason}; "
                    "nothing was said to it: ask who keeps the consortium's authority"
                )
        return replace(config, credentials=self._credentials, refuses=refuses)

    def carries(self, connection: Connection, signer: Signer | None) -> None:
        """Says what is to go on with a renewed certificate: the connection in use, and who signs for the site."""
        self._connection, self._signer = connection, signer

    def look(self) -> None:
        self._take_up()
        super().look()

    def _take_up(self) -> None:
        """Looks whether the kit has another certificate, and goes on with that."""
        with self._lock:
            stamp = _stamp(self.kit)
            if stamp == self._seen:
                return
            try:
                new = self.kit.credentials()
                self._check_renewal(new)
                if self._signer is not None:
                    self._signer.renew(Identity.of(new))
            except SutureError as error:
                # Where it is another one by now, somebody is writing there: it is looked at again.
                if _stamp(self.kit) == stamp:
                    self._seen = stamp
                    log.warning("goes on with the certificate that it has: %s", error)
                return
            self._seen, self._credentials = stamp, new
            connection = self._connection
        log.info("goes on with the renewed certificate, which ends on %s", f"{new.expires:%Y-%m-%d}")
        try:
            if connection is not None:
                connection.renew(new)
        except (
            SutureError
        ) as error:  # it holds as long as it holds, and the next one is with the new certificate
            log.warning("the connection that there is stays: %s", error)

    def _check_renewal(self, new: Credentials) -> None:
        own, before = (
            x509.load_pem_x509_certificates(pem)[0]
            for pem in (new.certificate, self._credentials.certificate)
        )
        if fingerprint(own) != fingerprint(before):
            raise ConfigError(
                f"{self.kit.folder} has a certificate for another key, which counts from the next run on: start suture "
                f"join again for that one, when the others have said suture roster add --replace KIT {new.name} "
                f"{fingerprint(own)}"
            )
        if reason := self.revocations.why_refused(_first(new.certificate)):
            raise ConfigError(f"{self.kit.certificates.cert} counts no more: {reason}")


def _first(chain: bytes) -> bytes:
    """The first certificate of a chain, PEM."""
    return x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.PEM)


def _stamp(kit: Kit) -> tuple[tuple[int, int, int], ...]:
    """Changes when certificate or key do."""
    stamps = []
    for file in (kit.certificates.cert, kit.certificates.key):
        try:
            found = file.stat()
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            stamps.append((0, 0, 0))
    return tuple(stamps)
