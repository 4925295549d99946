"""``suture request | install`` at a machine, ``suture sign | revoke`` at the authority: keys that never travel."""

from __future__ import annotations

from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from suture.launch.kits.authority import Authority
from suture.launch.kits.request import SERVER, ask_again, begin_kit, fingerprint_asked_for
from suture.launch.kits.request import install as put
from suture.launch.kits.revoke import REASONS, of_key, of_name
from suture.launch.kits.revoke import revoke as take_back
from suture.launch.kits.sign import sign_request
from suture.runtime.consortium.credentials import Role, common_name
from suture.runtime.consortium.revocations import REVOKED
from suture.runtime.consortium.roster import Roster, fingerprint
from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import write_private

_FOLDER = click.Path(path_type=Path)
_DAY = "%Y-%m-%d"


@click.command()
@click.argument("kit", type=_FOLDER)
@click.option("--name", help="of a new kit: the site's, or 'server' for the server's own")
@click.option("--server", metavar="HOST:PORT", help="of a new kit: where sites reach the server")
@click.option("--new-key", is_flag=True, help="ask for another key than the kit's; see docs/deploy")
def request(kit: Path, name: str | None, server: str | None, new_key: bool) -> None:
    """Ask the consortium's authority for a certificate: writes KIT/request.csr.

    With --name and --server KIT is new, and gets a private key that never leaves it. Without them KIT is there
    already, and asks for a renewal with the key that it has. Send request.csr to the authority, which says 'suture
    sign'; what comes back goes into the kit with 'suture install'.
    """
    if (name is None) is not (server is None):
        raise ConfigError(
            "a new kit needs both --name NAME and --server HOST:PORT; for a renewal leave both out"
        )
    if name is not None and server is not None:
        if new_key:
            raise ConfigError("a new kit has a new key anyway; leave --new-key out")
        if (kit / "kit.toml").exists():
            raise ConfigError(f"{kit} is a kit already; leave --name and --server out to ask for a renewal")
        asked = begin_kit(kit, name, server)
    else:
        asked = ask_again(kit, with_new_key=new_key)
    click.echo(f"wrote {asked.request}: send it to the authority, where they say")
    click.echo(f"    suture sign AUTHORITY {asked.name} request.csr --out {asked.name}.pem")
    click.echo(f"fingerprint, which they ask you for by telephone: {fingerprint_asked_for(asked)}")
    if new_key:
        click.echo(
            "a new key counts from the next run on: install it between two runs, after the other sites have listed it"
        )


@click.command()
@click.argument("kit", type=_FOLDER)
@click.argument("certificate", type=_FOLDER, metavar="CERT.pem")
@click.argument("authority", type=_FOLDER, metavar="[CA.pem]", required=False)
def install(kit: Path, certificate: Path, authority: Path | None) -> None:
    """Put CERT.pem, which the authority has signed, into KIT; a new kit takes the authority's CA.pem, too.

    Certificate, key, name and authority must go together. A site's new kit gets a roster with this site alone, and a
    policy.toml. A renewal is taken up by a 'suture join' that is running; 'suture serve' must be started again.
    """
    whole = put(kit, certificate, authority)
    own = x509.load_pem_x509_certificate(whole.certificates.cert.read_bytes())
    ca = x509.load_pem_x509_certificate(whole.certificates.ca.read_bytes())
    click.echo(f"{whole.folder} is whole: {whole.name}, until {own.not_valid_after_utc:{_DAY}}")
    click.echo(
        f"authority, to compare by telephone: {common_name(ca)}, SHA-256 {ca.fingerprint(SHA256()).hex()}"
    )
    if whole.role is Role.CLIENT:
        click.echo(
            f"at the other sites, if they do not list it: suture roster add KIT {whole.name} {fingerprint(own)}"
        )
        if len(Roster(whole.roster).fingerprints()) == 1:
            click.echo(
                f"and them here: suture roster add {whole.folder} NAME FINGERPRINT; then read {whole.policy}"
            )


@click.command()
@click.argument("authority", type=_FOLDER)
@click.argument("name")
@click.argument("request", type=_FOLDER, metavar="REQUEST.csr")
@click.option("--out", type=_FOLDER, required=True, metavar="CERT.pem", help="a new file")
@click.option("--days", type=int, default=365, help="how long it counts [365]")
@click.option("--replace", is_flag=True, help="NAME has another key than before; ask it by telephone")
def sign(authority: Path, name: str, request: Path, out: Path, days: int, replace: bool) -> None:
    """Sign a certificate for NAME ('server': the server's) and the public key in REQUEST.csr.

    AUTHORITY is the folder that 'suture provision' made. Nothing but the key is taken from the request. First
    ask NAME by telephone for the fingerprint that 'suture request' printed: whose key you sign, is NAME from then on.
    """
    signer = Authority.load(authority)
    try:
        asked = request.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {request}: {error.strerror}; name the request.csr that was sent"
        ) from None
    if out.exists():
        raise ConfigError(f"{out} is there already, and nothing is ever overwritten; name a new file")
    signed = sign_request(signer, name, asked, days=days, replace=replace)
    try:
        write_private(out, signed)
    except OSError as error:
        raise ConfigError(
            f"cannot write {out}: {error.strerror}; a copy is in {authority / 'issued'}"
        ) from None
    own = x509.load_pem_x509_certificate(signed)
    click.echo(f"wrote {out}: {name}, until {own.not_valid_after_utc:{_DAY}}; fingerprint {fingerprint(own)}")
    click.echo(f"send it back with {signer.ca}: suture install KIT {out.name} {signer.ca.name}")
    if signer.places.server and name != SERVER:
        click.echo(f"its kit.toml must say: server = {signer.places.server}")


@click.command()
@click.argument("authority", type=_FOLDER)
@click.argument("what", metavar="NAME|CERT.pem")
@click.option("--reason", type=click.Choice(list(REASONS)), default="unspecified", help="goes into the list")
def revoke(authority: Path, what: str, reason: str) -> None:
    """Take back all certificates of NAME, or that in CERT.pem and all others of its key.

    Writes AUTHORITY/revoked.pem, a standard list (X.509 CRL). Copy it to KIT/revoked.pem at the server, which refuses
    NAME at once, puts it out of a run, and shows the list to the sites; copy it to the sites, too, if you do not trust
    the server to do so.
    """
    signer = Authority.load(authority)
    path = Path(what)
    found = of_key(signer, path.read_bytes()) if path.is_file() else of_name(signer, what)
    taken = take_back(signer, found, reason)
    names = ", ".join(sorted({common_name(one) for one in taken.certificates}))
    click.echo(
        f"revoked {len(taken.certificates)} of {names}; wrote {signer.folder / REVOKED}, list {taken.number}"
    )
    click.echo(f"copy it to {REVOKED} in the server's kit now, and in the sites' kits")
