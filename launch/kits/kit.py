"""A kit: the folder with which a machine takes part in a consortium, as server or as a site.

kit.toml      role, name, the server's address
cert.pem      this machine's certificate
key.pem       its private key, mode 0600
ca.pem        the authority's certificate
roster.toml   of a site: the sites that it takes part with, see `suture.runtime.consortium.roster`
policy.toml   of a site: what it allows
revoked.pem   certificates that the authority has withdrawn; may be missing
request.csr, next-key.pem   what 'suture request' has made and 'suture install' has not yet used
state/        of a site: what it keeps between runs; made when it is first needed
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from cryptography import x509

from suture.launch.host.address import parse_address
from suture.runtime.consortium.credentials import Credentials, Role
from suture.runtime.consortium.roster import Roster, fingerprint
from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import write_private

KIT = "kit.toml"
_ROLES = {"server": Role.SERVER, "site": Role.CLIENT}
_COMMANDS = {Role.SERVER: "suture serve", Role.CLIENT: "suture join"}


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """The files that say who this machine is.

    Attributes:
        cert: its certificate, in PEM.
        key: its private key, which no one else may read.
        ca: the authority that signs the consortium's certificates.
    """

    cert: Path
    key: Path
    ca: Path

    def read(self, role: Role) -> Credentials:
        """Reads and checks them.

        Raises:
            ConfigError: see `Credentials.read`.
        """
        return Credentials.read(self.cert, self.key, self.ca, role)


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A kit's folder and what kit.toml says.

    Attributes:
        folder: of the kit.
        role: the server's, or a site's.
        name: of the machine; the common name of its certificate.
        server: HOST:PORT at which sites reach the server.
    """

    folder: Path
    role: Role
    name: str
    server: str

    @classmethod
    def read(cls, folder: Path, role: Role) -> Kit:
        """Reads kit.toml and looks whether everything is there; certificate, key and roster are not read.

        Raises:
            ConfigError: the folder or a file is missing, kit.toml is not one, or the kit is for the other role.
        """
        kit = cls.begun(folder)
        if kit.role is not role:
            theirs, ours = (
                ("the server's", "a site's") if role is Role.CLIENT else ("a site's", "the server's")
            )
            raise ConfigError(
                f"{folder} is {theirs} kit, of {kit.name}; {_COMMANDS[role]} takes {ours}, and {_COMMANDS[kit.role]} "
                "this one"
            )
        needed = [kit.certificates.cert, kit.certificates.key, kit.certificates.ca]
        missing = [file.name for file in (*needed, *kit._of_a_site()) if not file.exists()]
        if kit.certificates.cert.name in missing and kit.request.exists():
            raise ConfigError(
                f"the kit {folder} has no certificate yet; send {kit.request} to the consortium's authority (suture "
                f"sign), then: suture install {folder} CERT.pem CA.pem"
            )
        if missing:
            raise ConfigError(
                f"the kit {folder} lacks {' and '.join(missing)}; copy the whole folder again, or have a new one made"
            )
        return kit

    @classmethod
    def begun(cls, folder: Path) -> Kit:
        """Reads kit.toml of a kit that need not be whole.

        Raises:
            ConfigError: it is missing, or is none.
        """
        path = folder / KIT
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            what = f"it holds no {KIT}" if folder.is_dir() else "there is no such folder"
            raise ConfigError(
                f"{folder} is no kit: {what}; name the folder that 'suture provision' made for this machine"
            ) from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {error}; put the one of the kit back") from None
        return cls._from(values, folder)

    @classmethod
    def _from(cls, values: dict[str, object], folder: Path) -> Kit:
        path, names = folder / KIT, ("role", "name", "server")
        if unknown := [key for key in values if key not in names]:
            raise ConfigError(f"{path}: unknown key {unknown[0]!r}; known: {', '.join(names)}")
        said = {key: values.get(key) for key in names}
        for key, value in said.items():
            if not isinstance(value, str):
                raise ConfigError(f"{path}: {key} must be a text, got {value!r}")
        if said["role"] not in _ROLES:
            raise ConfigError(f"{path}: role must be 'server' or 'site', got {said['role']!r}")
        parse_address(str(said["server"]))
        role = _ROLES[str(said["role"])]
        return cls(folder=folder, role=role, name=str(said["name"]), server=str(said["server"]))

    def write(self) -> None:
        """Makes the folder, mode 0700, with kit.toml; certificates and the rest are for others to write.

        Raises:
            OSError: there is such a folder, or it cannot be made.
        """
        self.folder.mkdir(mode=0o700)
        role = next(word for word, role in _ROLES.items() if role is self.role)
        said = {"role": role, "name": self.name, "server": self.server}
        heading = f"# A kit: '{_COMMANDS[self.role]}' takes this folder.\n"
        write_private(self.folder / KIT, (heading + tomli_w.dumps(said)).encode())

    def credentials(self) -> Credentials:
        """Reads and checks certificate, key and authority.

        Raises:
            ConfigError: see `Credentials.read`; or the certificate is not for the kit's name.
        """
        credentials = self.certificates.read(self.role)
        if credentials.name != self.name:
            raise ConfigError(
                f"the certificate {self.certificates.cert} is for {credentials.name}, but {self.folder / KIT} says "
                f"{self.name}; a kit's files go together: copy the whole folder again"
            )
        return credentials

    def check_listed(self) -> None:
        """Looks whether a site's own key stands in its roster, as it does in the others'.

        Raises:
            ConfigError: as `credentials`; the roster cannot be read, or lists another key or none for this site.
        """
        own = fingerprint(x509.load_pem_x509_certificate(self.credentials().certificate))
        listed = Roster(self.roster).fingerprints().get(self.name)
        if listed != own:
            what = (
                "does not list this site" if listed is None else f"lists another key for this site, {listed}"
            )
            raise ConfigError(
                f"the roster {self.roster} {what}; its own is {own}: suture roster add --replace {self.folder} "
                f"{self.name} {self.certificates.cert}, and tell the other sites"
            )

    def make_state(self) -> Path:
        """The folder for what a site keeps between runs, mode 0700; made where it is missing.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            self.state.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make {self.state}: {error.strerror}; a site keeps there what must outlast a run: make the "
                "kit's folder your own, on a disk that can be written"
            ) from None
        return self.state

    @property
    def certificates(self) -> Certificates:
        """The files that say who this machine is."""
        names = {"cert": "cert.pem", "key": "key.pem", "ca": "ca.pem"}
        return Certificates(**{what: self.folder / name for what, name in names.items()})

    @property
    def roster(self) -> Path:
        """The sites that a site takes part with."""
        return self.folder / "roster.toml"

    @property
    def policy(self) -> Path:
        """What a site allows."""
        return self.folder / "policy.toml"

    @property
    def revoked(self) -> Path:
        """Certificates that the authority has withdrawn."""
        return self.folder / "revoked.pem"

    @property
    def request(self) -> Path:
        """What the authority is asked to sign."""
        return self.folder / "request.csr"

    @property
    def next_key(self) -> Path:
        """The key of a request that is to take the place of the one in use."""
        return self.folder / "next-key.pem"

    @property
    def state(self) -> Path:
        """What a site keeps between runs."""
        return self.folder / "state"

    def _of_a_site(self) -> tuple[Path, ...]:
        """What a site's kit must hold beyond a server's."""
        return (self.roster, self.policy) if self.role is Role.CLIENT else ()
