"""Kits of a consortium whose sites sign, on the authority of the tests in this folder."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from house import LIMITS, LONG, House
from tiny import build_client

from suture.launch.kits.authority import DAY, Authority
from suture.launch.kits.kit import Kit
from suture.launch.kits.provision import fill_site
from suture.launch.kits.revoke import revoke
from suture.launch.kits.standing import SiteStanding
from suture.runtime.consortium.board import ServerBoard
from suture.runtime.consortium.credentials import Role
from suture.runtime.consortium.identity import Identity, Trust
from suture.runtime.consortium.revocations import Revocations
from suture.runtime.consortium.roster import Roster
from suture.runtime.consortium.site import SiteConsortium
from suture.runtime.grpc.client import GrpcClientConfig
from suture.runtime.host.private_files import replace_private


class Consortium:
    """An authority with kits for so many sites, each of which lists all.

    Args:
        folder: for everything.
        num_sites: client0 and so on.
    """

    def __init__(self, folder: Path, num_sites: int) -> None:
        self.authority = Authority(folder / "authority")
        self.names = [f"client{index}" for index in range(num_sites)]
        self.hub = self.authority.issue("hub", Role.SERVER).read(Role.SERVER)
        self.kits = {name: self._make(folder / name, name) for name in self.names}
        for kit in self.kits.values():
            fill_site(kit, self.authority.sites())
        self.revoked = self.authority.folder / "revoked.pem"
        self.revocations = Revocations(self.authority.ca.read_bytes(), self.revoked)
        self.board = ServerBoard(Trust(self.authority.ca.read_bytes(), None, self.revocations), "run")

    def _make(self, folder: Path, name: str) -> Kit:
        kit = Kit(folder=folder, role=Role.CLIENT, name=name, server="127.0.0.1:1")
        kit.write()
        self.authority.issue(name, files=kit.certificates)
        return kit

    def certificate(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.pem(name))

    def pem(self, name: str) -> bytes:
        return self.kits[name].certificates.cert.read_bytes()

    def renew(self, name: str, days: float = 60) -> bytes:
        """Puts a certificate for the same key into a site's kit, as `suture install` does."""
        kit = self.kits[name]
        key = load_pem_private_key(kit.certificates.key.read_bytes(), None).public_key()
        signed = self.authority.sign(name, Role.CLIENT, key, ends=days * DAY)
        replace_private(kit.certificates.cert, signed)
        return signed

    def revoke(self, name: str) -> None:
        given = [one for one in self.authority.issued() if one.subject == self.certificate(name).subject]
        revoke(self.authority, given, "key-compromise")

    def standing(self, name: str, **more: object) -> SiteStanding:
        return SiteStanding(self.kits[name], **more)

    def client(self, index: int, standing: SiteStanding, folder: Path, **more: object):
        """A tiny client that signs."""
        kit = self.kits[f"client{index}"]
        trust = Trust(self.authority.ca.read_bytes(), Roster(kit.roster), standing.revocations)
        signs = SiteConsortium(Identity.of(kit.credentials()), trust)
        return build_client(index, consortium=signs, memory=folder / f"memory{index}", **more)

    def config(self, made: House, name: str, port: int = 0) -> GrpcClientConfig:
        """How that site dials."""
        return GrpcClientConfig(
            host="127.0.0.1",
            port=port or made.port,
            credentials=self.kits[name].credentials(),
            limits=LIMITS,
            lease=LONG,
            line_timeout=3.0,
        )


__all__ = ["Consortium"]
