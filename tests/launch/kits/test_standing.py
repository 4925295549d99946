"""What a machine says of its own and others' certificates while a run goes on.

Oracle: a clock that the test sets; kits whose files change as the commands change them; messages written out.
"""

from datetime import timedelta

import pytest
from cryptography import x509

from suture.cli import suture
from suture.launch.kits.authority import Authority
from suture.launch.kits.expiry import now
from suture.launch.kits.kit import Kit
from suture.launch.kits.provision import Project, provision
from suture.launch.kits.request import ask_again, install
from suture.launch.kits.sign import sign_request
from suture.launch.kits.standing import ServerStanding, SiteStanding
from suture.runtime.consortium.identity import Identity
from suture.runtime.errors import ConfigError, PeerLostError
from suture.runtime.grpc.chunks import Limits
from suture.runtime.grpc.client import GrpcClientConfig


class Clock:
    def __init__(self) -> None:
        self.now = now()

    def __call__(self):
        return self.now

    def go_on(self, **time: float) -> None:
        self.now += timedelta(**time)


class Line:
    """A connection that notes what it goes on with."""

    def __init__(self, error: Exception | None = None) -> None:
        self.renewed, self.error = [], error

    def renew(self, credentials) -> bool:
        self.renewed.append(credentials.certificate)
        if self.error is not None:
            raise self.error
        return True


class Signs:
    """Who signs for a site."""

    def __init__(self) -> None:
        self.identities: list[Identity] = []

    def renew(self, identity: Identity) -> None:
        self.identities.append(identity)


@pytest.fixture
def kits(tmp_path) -> dict[str, Kit]:
    return provision(Project(address="hub:1", sites=("ward_a", "ward_b")), tmp_path / "kits", days=40)


@pytest.fixture
def authority(kits) -> Authority:
    return Authority.load(kits["server"].folder.parent / "authority")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def renew(kit: Kit, authority: Authority, days: int = 200, new_key: bool = False) -> bytes:
    """The three commands of a renewal."""
    ask_again(kit.folder, with_new_key=new_key)
    signed = sign_request(authority, kit.name, kit.request.read_bytes(), days=days, replace=new_key)
    out = kit.folder.parent / "signed.pem"
    out.write_bytes(signed)
    install(kit.folder, out)
    return signed


def dialled(kit: Kit) -> GrpcClientConfig:
    limits = Limits(batch=1, handoff=1, release=1)
    return GrpcClientConfig(
        host="hub", port=1, credentials=kit.credentials(), limits=limits, lease=1.0, line_timeout=1.0
    )


# What ends soon -------------------------------------------------------------------------------------------


def test_a_site_s_own_certificate_is_spoken_of_from_thirty_days_before_its_end_once_a_day(
    kits, clock, caplog
):
    """Oracle: who, when, and the commands that help; one line a day; nothing before."""
    kit = kits["ward_a"]
    standing, ends = SiteStanding(kit, clock=clock), kit.credentials().expires
    clock.go_on(days=9, hours=23)
    standing.look()
    assert caplog.messages == []
    for _ in range(2):
        clock.go_on(days=1)
        for _ in range(3):
            standing.look()
    clock.now = ends + timedelta(days=1)
    standing.look()
    remedy = f"suture request {kit.folder}, then suture sign at the authority, then suture install {kit.folder} CERT.pem"
    who, day = "this machine's own certificate (ward_a)", f"{ends:%Y-%m-%d %H:%M} UTC"
    assert caplog.messages == [
        f"{who} ends on {day}, in 29 days; {remedy}",
        f"{who} ends on {day}, in 28 days; {remedy}",
        f"{who} ended on {day}; {remedy}",
    ]


def test_the_authority_s_end_is_spoken_of_at_both_ends(kits, authority, clock, caplog):
    """Oracle: who, when, what to do."""
    clock.now = authority.ends - timedelta(days=3, minutes=-1)
    for standing in (ServerStanding(kits["server"], clock=clock), SiteStanding(kits["ward_a"], clock=clock)):
        caplog.clear()
        standing.look()
        said = [message for message in caplog.messages if message.startswith("the authority's certificate")]
        assert len(said) == 1 and f"ends on {authority.ends:%Y-%m-%d}" in said[0]
        assert "in 2 days; none of its certificates counts after that: plan new kits for all" in said[0]


def test_the_server_speaks_of_itself_and_of_the_sites_that_are_there(kits, clock, caplog):
    """Oracle: the sites that it was asked about, at once when one comes and then daily; ward_b never came."""
    standing = ServerStanding(kits["server"], clock=clock)
    site = kits["ward_a"].certificates.cert.read_bytes()
    clock.go_on(days=35)
    assert standing.refuses(site) == ""
    (said,) = caplog.messages
    assert (
        said.startswith("ward_a's certificate ends on ")
        and "in 4 days; tell it: suture request there" in said
    )
    standing.look()
    assert len(caplog.messages) == 2 and caplog.messages[1].startswith(
        "this machine's own certificate (server) ends"
    )
    assert caplog.messages[1].endswith("CERT.pem, and start suture serve again")
    caplog.clear()
    clock.go_on(days=1)
    standing.refuses(site)
    standing.look()
    assert sorted(message.split()[0] for message in caplog.messages) == ["this", "ward_a's"]


def test_a_thread_looks_while_the_run_goes_on_and_ends_with_it(kits, clock, monkeypatch, caplog):
    """Oracle: the line comes by itself, when the clock has gone on; no thread is left."""
    monkeypatch.setattr("suture.launch.kits.standing.SECONDS_BETWEEN_LOOKS", 0.01)
    standing = SiteStanding(kits["ward_a"], clock=clock)
    with standing:
        assert caplog.messages == []
        clock.go_on(days=35)
        for _ in range(500):
            if caplog.messages:
                break
            standing._ended.wait(0.01)
    assert len(caplog.messages) == 1 and not standing._thread.is_alive()
    standing.close()


def test_a_site_whose_certificate_has_ended_does_not_dial(kits, clock):
    """Oracle: the whole sentence."""
    kit = kits["ward_a"]
    standing, ends = SiteStanding(kit, clock=clock), kit.credentials().expires
    clock.now = ends + timedelta(seconds=1)
    with pytest.raises(ConfigError) as raised:
        standing.dial(dialled(kit))
    assert str(raised.value) == (
        f"this site's certificate {kit.certificates.cert} expired on {ends:%Y-%m-%d %H:%M} UTC, and the server takes no "
        f"connection with it; suture request {kit.folder}, then suture sign at the authority, then suture install "
        f"{kit.folder} CERT.pem, and start suture join again"
    )


# What was renewed -----------------------------------------------------------------------------------------


def test_a_renewal_is_taken_up_by_the_connection_and_by_who_signs(kits, authority, clock):
    """Oracle: the new certificate at both, once; the next connection is made with it."""
    kit, line, signs = kits["ward_a"], Line(), Signs()
    standing = SiteStanding(kit, clock=clock)
    standing.carries(line, signs)
    standing.look()
    assert line.renewed == []
    new = renew(kit, authority)
    standing.look()
    standing.look()
    assert line.renewed == [new] and [one.certificate.encode() for one in signs.identities] == [new]
    clock.go_on(days=100)
    assert standing.dial(dialled(kit)).credentials.certificate == new


def test_a_renewal_that_the_server_does_not_take_now_is_for_the_next_connection(kits, authority, caplog):
    """Oracle: the words; what is dialled next."""
    kit, line = kits["ward_a"], Line(PeerLostError("it is gone"))
    standing = SiteStanding(kit)
    standing.carries(line, None)
    new = renew(kit, authority)
    standing.look()
    standing.look()
    assert len(line.renewed) == 1 and "the connection that there is stays: it is gone" in caplog.text
    assert standing.dial(dialled(kit)).credentials.certificate == new


def test_another_key_is_not_taken_up_in_a_run(kits, authority, caplog):
    """Oracle: the words, once, which say what the others must do; the old certificate goes on."""
    kit, line, signs = kits["ward_a"], Line(), Signs()
    standing, old = SiteStanding(kit), kit.credentials().certificate
    standing.carries(line, signs)
    config = dialled(kit)
    renew(kit, authority, new_key=True)
    for _ in range(2):
        standing.look()
    assert line.renewed == [] and signs.identities == []
    (said,) = caplog.messages
    assert said.startswith("goes on with the certificate that it has: ")
    assert "for another key, which counts from the next run on" in said
    assert "when the others have said suture roster add --replace KIT ward_a" in said
    assert standing.dial(config).credentials.certificate == old
    assert SiteStanding(kit).dial(config).credentials.certificate != old


def test_half_of_a_renewal_changes_nothing_and_the_rest_is_taken_up(kits, authority, caplog):
    """Oracle: a certificate of another site in the way, and then the right one."""
    kit, line = kits["ward_a"], Line()
    standing = SiteStanding(kit)
    standing.carries(line, None)
    kit.certificates.cert.write_bytes(kits["ward_b"].certificates.cert.read_bytes())
    standing.look()
    assert line.renewed == [] and "is not that of the certificate" in caplog.text
    kit.certificates.cert.unlink()
    standing.look()
    new = renew(kit, authority)
    standing.look()
    assert line.renewed == [new]


def test_a_renewal_that_was_revoked_is_not_taken_up(kits, authority, caplog):
    """Oracle: the words."""
    kit, line = kits["ward_a"], Line()
    standing = SiteStanding(kit)
    standing.carries(line, None)
    renew(kit, authority)
    suture.main(["revoke", str(authority.folder), "ward_a"], standalone_mode=False)
    standing.revocations.take((authority.folder / "revoked.pem").read_bytes())
    standing.look()
    assert line.renewed == [] and "counts no more: its certificate was revoked on" in caplog.text


# What was revoked -----------------------------------------------------------------------------------------


def revoked(authority: Authority, name: str) -> bytes:
    suture.main(["revoke", str(authority.folder), name], standalone_mode=False)
    return (authority.folder / "revoked.pem").read_bytes()


@pytest.mark.parametrize("where", ["kit", "elsewhere"])
def test_the_list_is_the_kit_s_or_the_one_that_was_named(where, kits, authority, tmp_path):
    """Oracle: the server's answer, before and after a file came; the sandbox leaves its folder readable."""
    path = kits["server"].revoked if where == "kit" else tmp_path / "lists" / "all.pem"
    path.parent.mkdir(exist_ok=True)
    site = kits["ward_a"].certificates.cert.read_bytes()
    if where == "elsewhere":
        path.write_bytes(revoked(authority, "ward_b"))
    standing = ServerStanding(kits["server"], None if where == "kit" else path)
    assert path.parent.absolute() in standing.folders and kits["server"].folder in standing.folders
    assert standing.refuses(site) == ""
    draft = path.with_name("draft")
    draft.write_bytes(revoked(authority, "ward_a"))
    draft.replace(path)
    assert standing.refuses(site).startswith("its certificate was revoked on ")


def test_a_list_that_is_named_and_missing_is_said(kits, tmp_path):
    """Oracle: the message."""
    with pytest.raises(
        ConfigError, match="there is no list of revoked certificates at .*none.pem; name the authority's"
    ):
        ServerStanding(kits["server"], tmp_path / "none.pem")


def test_who_was_revoked_itself_does_not_start(kits, authority):
    """Oracle: the messages at both ends."""
    for name, make in (("ward_a", SiteStanding), ("server", ServerStanding)):
        kits[name].revoked.write_bytes(revoked(authority, name))
        with pytest.raises(
            ConfigError, match=f"{name} has no part in its consortium any more: its certificate was"
        ):
            make(kits[name])


def test_both_commands_take_a_list(kits, tmp_path, monkeypatch):
    """Oracle: what is begun."""
    begun: list = []
    monkeypatch.setattr("suture.sites.join_site", lambda *told: begun.append(told[1].revoked))
    monkeypatch.setattr("suture.sites.serve_site", lambda *told: begun.append(told[1].revoked))
    monkeypatch.setattr("suture.sites._be_member", lambda work: work())
    for command, name, more in (("join", "ward_a", []), ("serve", "server", ["--clients", "2"])):
        for given in ([], ["--revoked", str(tmp_path / "all.pem")]):
            suture.main([command, str(kits[name].folder), *more, *given], standalone_mode=False)
    assert begun == [None, tmp_path / "all.pem"] * 2


def test_a_certificate_of_the_server_is_read_as_one(kits):
    """Oracle: the chain's first certificate, which the list is asked about."""
    from suture.launch.kits.standing import _first

    chain = kits["server"].certificates.cert.read_bytes() + kits["server"].certificates.ca.read_bytes()
    own = x509.load_pem_x509_certificate(kits["server"].certificates.cert.read_bytes())
    assert x509.load_pem_x509_certificate(_first(chain)) == own
