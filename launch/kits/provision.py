"""A consortium's certificate authority and the kits of its server and sites, made in one step."""

from __future__ import annotations

import errno
import ipaddress
import re
import shutil
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.launch.host.address import parse_address
from suture.launch.kits.authority import AUTHORITY_DAYS, DAY, Authority
from suture.launch.kits.kit import Kit
from suture.launch.policy.policy import Policy
from suture.runtime.consortium.credentials import SITE_NAME, Role
from suture.runtime.consortium.roster import Roster
from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import write_private

_KNOWN = {"server": ("address",), "sites": ("names",)}
_TAKEN = ("server", "authority")
"""Folders that are not a site's."""
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Project:
    """Who takes part.

    Attributes:
        address: HOST:PORT at which sites reach the server.
        sites: their names.
    """

    address: str
    sites: tuple[str, ...]

    def __post_init__(self) -> None:
        check_host(parse_address(self.address)[0])
        if not self.sites:
            raise ConfigError("sites.names must name at least one site, got none")
        for name in self.sites:
            check_site_name(name)
            # A file system may not tell upper case from lower, and neither does everybody on the telephone.
            alike = [other for other in self.sites if other.lower() == name.lower()]
            if len(alike) > 1:
                raise ConfigError(
                    f"sites.names has {alike[0]!r} and {alike[1]!r}, which are too much alike: give each site a "
                    "name of its own"
                )

    @property
    def host(self) -> str:
        """Of the server's address."""
        return parse_address(self.address)[0]

    @classmethod
    def read(cls, path: Path) -> Project:
        """Reads PROJECT.toml: ``[server] address`` and ``[sites] names``.

        Raises:
            ConfigError: it cannot be read, has a key that is not known, lacks one, or a value cannot be.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read the project {path}: {error}") from None
        for table, keys in values.items():
            if table not in _KNOWN:
                raise ConfigError(f"{path}: unknown key {table!r}; known: [server] address, [sites] names")
            if not isinstance(keys, dict):
                raise ConfigError(f"{path}: {table} must be a table, [{table}], got {keys!r:.80}")
            if unknown := [key for key in keys if key not in _KNOWN[table]]:
                raise ConfigError(
                    f"{path}: unknown key {unknown[0]!r} in [{table}]; known: {', '.join(_KNOWN[table])}"
                )
        address, names = _get(values, "server", "address", path), _get(values, "sites", "names", path)
        if not isinstance(address, str):
            raise ConfigError(f"{path}: server.address must be a text, HOST:PORT, got {address!r:.80}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{path}: sites.names must be a list of names, got {names!r:.80}")
        try:
            return cls(address=address, sites=tuple(names))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _get(values: dict[str, Any], table: str, key: str, path: Path) -> Any:
    try:
        return values[table][key]
    except KeyError:
        what = "where sites reach the server, HOST:PORT" if key == "address" else "the sites' names"
        raise ConfigError(f"{path} lacks {key} in [{table}]: {what}") from None


def check_site_name(name: str) -> None:
    """Refuses what no site can be called.

    Raises:
        ConfigError: says what a name is.
    """
    if not SITE_NAME.fullmatch(name) or name.lower() in _TAKEN:
        raise ConfigError(
            f"a site's name is a letter and then up to 39 letters, digits or underscores, and not 'server' or "
            f"'authority', got {name!r:.60}"
        )


def check_host(host: str) -> None:
    """Refuses a host that no certificate can name, or that no site can dial.

    Raises:
        ConfigError: says what it must be.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
            raise ConfigError(
                "the server's host must be an IP address or a DNS name of letters, digits and hyphens, got "
                f"{host!r:.80}"
            ) from None
        return
    if address.is_unspecified or getattr(address, "scope_id", None):
        raise ConfigError(
            f"the server's address is where the sites dial, and {host} is no such place; name the server's own "
            "address, and let 'suture serve --listen' name another one where it must listen elsewhere"
        )


def provision(
    project: Project, out: Path, days: int = 365, *, authority_only: bool = False
) -> dict[str, Kit]:
    """Makes ``out`` with the folders authority, server and one for each site: all of it or nothing.

    Args:
        project: who takes part.
        out: must not exist, or be an empty folder.
        days: how long certificates count, but for the authority's own.
        authority_only: whether server and sites are to make their own kits (`request`), and none is made here.

    Returns:
        By name, the kits, the server's under "server".

    Raises:
        ConfigError: ``out`` has something in it or cannot be made; ``days`` lies outside 1..3650.
    """
    if not 1 <= days <= AUTHORITY_DAYS:
        raise ConfigError(
            f"days must lie in 1..{AUTHORITY_DAYS}, for which the authority itself is valid, got {days}"
        )
    out = out.resolve()
    full = ConfigError(f"{out} is not empty, and nothing is ever overwritten; name a new folder")
    draft = None
    try:
        if out.exists() and any(out.iterdir()):
            raise full
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        authority = Authority(
            draft / "authority", (project.host,), f"authority of {out.name}", project.address
        )
        if not authority_only:
            _make(project, draft, authority, days)
        draft.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise full from None
        raise ConfigError(f"cannot make {out}: {error.strerror}; name a folder that can be made") from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    if authority_only:
        return {}
    made = {"server": Kit.read(out / "server", Role.SERVER)}
    return made | {name: Kit.read(out / name, Role.CLIENT) for name in project.sites}


def _make(project: Project, folder: Path, authority: Authority, days: int) -> None:
    people = {"server": Role.SERVER} | dict.fromkeys(project.sites, Role.CLIENT)
    for who, role in people.items():
        kit = Kit(folder=folder / who, role=role, name=who, server=project.address)
        kit.write()
        authority.issue(who, role, ends=days * DAY, files=kit.certificates)
    sites = authority.sites()
    for site in project.sites:
        fill_site(Kit(folder=folder / site, role=Role.CLIENT, name=site, server=project.address), sites)


def fill_site(kit: Kit, sites: dict[str, str]) -> None:
    """Writes what only a site's kit has, for the site alone to change. What is there stays.

    Args:
        kit: the site's.
        sites: by name, the fingerprints of the sites that it takes part with.

    Raises:
        ConfigError: the roster cannot be written.
        OSError: the policy cannot be written.
    """
    if not kit.roster.exists():
        Roster.create(kit.roster, sites)
    if not kit.policy.exists():
        write_private(kit.policy, Policy.default_text().encode())
