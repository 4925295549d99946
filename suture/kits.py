"""``suture provision`` and ``suture roster``: kits, and whom a site takes part with."""

from __future__ import annotations

from pathlib import Path

import click
from cryptography import x509

from suture.launch.kits.kit import Kit
from suture.launch.kits.provision import Project
from suture.launch.kits.provision import provision as make
from suture.runtime.consortium.credentials import Role, common_name
from suture.runtime.consortium.roster import FINGERPRINT, Roster
from suture.runtime.consortium.roster import fingerprint as fingerprint_of
from suture.runtime.errors import ConfigError
from suture.runtime.state.handoff import write_key

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("project", type=_FOLDER, metavar="PROJECT.toml")
@click.option("--out", type=_FOLDER, required=True, metavar="DIR", help="a new folder")
@click.option("--days", type=int, default=365, help="how long certificates count [365]")
@click.option("--authority-only", is_flag=True, help="no kits: server and sites say 'suture request'")
def provision(project: Path, out: Path, days: int, authority_only: bool) -> None:
    """Make a certificate authority, and a kit for the server and for each site, under DIR.

    PROJECT.toml: [server] with address = "HOST:PORT", where sites reach the server; [sites] with
    names = ["ward_a", "ward_b"]. Run it at a hospital or at a person of the consortium, never at the
    server's operator: whoever holds DIR/authority can certify a site that does not exist.
    """
    kits = make(Project.read(project), out, days, authority_only=authority_only)
    if authority_only:
        click.echo(
            f"wrote {out}: authority; keep it offline, and give {out / 'authority' / 'ca.pem'} to everybody"
        )
        return
    click.echo(f"wrote {out}: authority, {', '.join(kits)}")
    click.echo(
        "give each kit to its machine over a channel you trust, and delete it here; keep authority offline"
    )
    site = next(kit for kit in kits.values() if kit.role is Role.CLIENT)
    click.echo(f"roster code, which all sites compare by telephone: {Roster(site.roster).code()}")


@click.group()
def roster() -> None:
    """The sites that a site takes part with: show them, add one."""


@roster.command()
@click.argument("kit", type=_FOLDER)
def show(kit: Path) -> None:
    """Print the sites of KIT's roster, and its code.

    Compare the code with the other sites by telephone, and the names with those you expect: equal codes mean that
    nobody has listed a site, or another key, at one of you.
    """
    own = Kit.read(kit, Role.CLIENT)
    listed = Roster(own.roster)
    sites = listed.fingerprints()
    width = max(map(len, sites), default=0)
    for name, of_key in sorted(sites.items()):
        click.echo(f"{name:{width}}  {of_key}{'  (this site)' if name == own.name else ''}")
    click.echo(f"{len(sites)} sites; code: {listed.code()}")


@roster.command()
@click.argument("kit", type=_FOLDER)
@click.argument("name")
@click.argument("key", metavar="CERT.pem|FINGERPRINT")
@click.option("--replace", is_flag=True, help="take the place of the key that NAME has in the roster")
def add(kit: Path, name: str, key: str, replace: bool) -> None:
    """List the site NAME in KIT's roster, by its certificate or the fingerprint of its key.

    Ask the site for its fingerprint by telephone: the server and the authority together could make a certificate for a
    site that does not exist. Counts at once, also for a run that goes on.
    """
    listed = Roster(Kit.read(kit, Role.CLIENT).roster)
    of_key = _fingerprint(key, name)
    listed.add(name, of_key, replace=replace)
    click.echo(f"{name}  {of_key}")
    click.echo(f"{len(listed.fingerprints())} sites; code: {listed.code()}")


def _fingerprint(text: str, name: str) -> str:
    """Of a certificate file, which must be for the site ``name``, or as it was typed."""
    if FINGERPRINT.fullmatch(typed := text.lower().replace(":", "")):
        return typed
    path = Path(text)
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{text!r:.100} is no fingerprint (64 hex digits), and no certificate: {error.strerror}"
        ) from None
    except ValueError:
        raise ConfigError(f"{path} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from None
    if common_name(certificate) != name:
        raise ConfigError(
            f"the certificate {path} is for {common_name(certificate)!r:.60}, not for {name}; give {name}'s own"
        )
    return fingerprint_of(certificate)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def keygen(file: Path) -> None:
    """Make a hand-off key for the clients; give FILE to every client and not to the server."""
    write_key(file)
    click.echo(f"wrote {file}; copy it to every client over a channel you trust, and not to the server")
