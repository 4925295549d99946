"""A kit's folder: what is read of it, and what is said when it is not whole.

Oracle: kits that `provision` made, each with one fault, and the sentence that a person then reads.
"""

import pickle
import shutil

import pytest

from suture.launch.kits.kit import Kit
from suture.launch.kits.provision import Project, provision
from suture.runtime.consortium.credentials import Role
from suture.runtime.consortium.roster import Roster
from suture.runtime.errors import ConfigError

ADDRESS = "hub.example:29500"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Kit]:
    return provision(Project(address=ADDRESS, sites=("ward_a", "ward_b")), tmp_path_factory.mktemp("kits"))


@pytest.fixture
def folder(made, tmp_path):
    """A site's kit of its own, to spoil."""
    shutil.copytree(made["ward_a"].folder, tmp_path / "ward_a")
    return tmp_path / "ward_a"


@pytest.mark.parametrize(("name", "role"), [("server", Role.SERVER), ("ward_a", Role.CLIENT)])
def test_a_kit_is_read_as_it_was_made(name, role, made):
    """Oracle: the project; the certificate's name; the places as the module's first lines have them."""
    kit = Kit.read(made[name].folder, role)
    assert kit == made[name] and (kit.name, kit.role, kit.server) == (name, role, ADDRESS)
    assert kit.credentials().name == name == kit.certificates.read(role).name
    places = (kit.roster, kit.policy, kit.revoked, kit.state)
    assert [place.name for place in places] == ["roster.toml", "policy.toml", "revoked.pem", "state"]
    assert {place.parent for place in places} == {kit.folder}
    assert pickle.loads(pickle.dumps(kit)) == kit  # benchmarks hand it to their processes


def test_the_state_is_made_at_first_use_and_closed_to_others(folder):
    """Oracle: the folder's mode; a second use finds it."""
    kit = Kit.read(folder, Role.CLIENT)
    assert not kit.state.exists()
    assert kit.make_state() == kit.make_state() == kit.state
    assert kit.state.stat().st_mode & 0o777 == 0o700


def test_a_state_that_cannot_be_made_is_said(folder):
    """Oracle: the message."""
    kit = Kit.read(folder, Role.CLIENT)
    kit.state.write_text("")
    with pytest.raises(
        ConfigError, match=f"cannot make {kit.state}: File exists; a site keeps there what must outlast"
    ):
        kit.make_state()


def test_what_is_no_kit_is_said(tmp_path):
    """Oracle: the whole messages."""
    remedy = "name the folder that 'suture provision' made for this machine"
    for place, what in ((tmp_path / "none", "there is no such folder"), (tmp_path, "it holds no kit.toml")):
        with pytest.raises(ConfigError) as raised:
            Kit.read(place, Role.CLIENT)
        assert str(raised.value) == f"{place} is no kit: {what}; {remedy}"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is no kit: there is no such folder"):
        Kit.read(tmp_path / "file", Role.SERVER)


@pytest.mark.parametrize(
    ("name", "role", "words"),
    [
        ("server", Role.CLIENT, "is the server's kit, of server; suture join takes a site's, and suture serve this one"),
        ("ward_a", Role.SERVER, "is a site's kit, of ward_a; suture serve takes the server's, and suture join this one"),
    ],
)  # fmt: skip
def test_a_kit_of_the_other_role_is_refused(name, role, words, made):
    """Oracle: the whole message."""
    with pytest.raises(ConfigError) as raised:
        Kit.read(made[name].folder, role)
    assert str(raised.value) == f"{made[name].folder} {words}"


@pytest.mark.parametrize("file", ["cert.pem", "key.pem", "ca.pem", "roster.toml", "policy.toml"])
def test_a_file_that_is_missing_is_named(file, folder):
    """Oracle: the whole message."""
    (folder / file).unlink()
    with pytest.raises(ConfigError) as raised:
        Kit.read(folder, Role.CLIENT)
    assert str(raised.value) == (
        f"the kit {folder} lacks {file}; copy the whole folder again, or have a new one made"
    )


def test_a_server_needs_no_roster(made):
    """Oracle: the folder: a server that had one could not release a key to anybody in it."""
    assert not made["server"].roster.exists() and Kit.read(made["server"].folder, Role.SERVER)


GOOD = f'role = "site"\nname = "ward_a"\nserver = "{ADDRESS}"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("role", "cannot read .*kit.toml: .*put the one of the kit back"),
        (GOOD + "port = 1", "kit.toml: unknown key 'port'; known: role, name, server"),
        ('role = "site"', "kit.toml: name must be a text, got None"),
        (GOOD.replace('"ward_a"', "7"), "kit.toml: name must be a text, got 7"),
        (GOOD.replace("site", "hub"), "kit.toml: role must be 'server' or 'site', got 'hub'"),
        (GOOD.replace(":29500", ""), "an address is HOST:PORT"),
    ],
)
def test_a_kit_toml_that_is_none_is_refused(text, words, folder):
    """Oracle: the messages."""
    (folder / "kit.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        Kit.read(folder, Role.CLIENT)


def test_a_certificate_of_another_site_is_said(made, folder):
    """Oracle: the message names both."""
    for file in ("cert.pem", "key.pem"):
        shutil.copy(made["ward_b"].folder / file, folder / file)
    with pytest.raises(
        ConfigError, match=r"cert.pem is for ward_b, but .*kit.toml says ward_a; a kit's files go together"
    ):
        Kit.read(folder, Role.CLIENT).credentials()


def test_a_site_looks_for_itself_in_its_roster(folder):
    """Oracle: the messages name the remedy."""
    kit = Kit.read(folder, Role.CLIENT)
    kit.check_listed()
    others = {"ward_b": Roster(kit.roster).fingerprints()["ward_b"]}
    Roster.create(kit.roster, others)
    with pytest.raises(
        ConfigError, match="does not list this site; its own is [0-9a-f]{64}: suture roster add --replace"
    ):
        kit.check_listed()
