"""What a person types for serve and join: addresses, kits, options of the other end, and what is begun.

Oracle: messages written out; the options that went in.
"""

import json
import signal
from dataclasses import replace
from pathlib import Path

import click
import pytest

from suture import sites
from suture.cli import suture
from suture.launch.host.address import parse_address
from suture.launch.kits.kit import Kit
from suture.launch.kits.provision import Project, provision
from suture.launch.options.classes import read_classes
from suture.launch.options.options import AskedOptions
from suture.launch.output.run_folder import open_folder
from suture.launch.roles.site_server import ServeConfig, with_task
from suture.launch.site.join import JoinConfig, proxy_ports
from suture.launch.site.own_images import SiteDataConfig
from suture.runtime.consortium.roster import Roster
from suture.runtime.errors import ConfigError, WireError


@pytest.fixture(scope="module")
def kits(tmp_path_factory) -> dict[str, Kit]:
    """By command: the server's, and that of the site ward_a."""
    project = Project(address="hub.example:29500", sites=("ward_a", "ward_b"))
    made = provision(project, tmp_path_factory.mktemp("consortium"))
    return {"serve": made["server"], "join": made["ward_a"]}


def line(command: str, kits: dict[str, Kit]) -> list[str]:
    """What is typed, with the kit of that command as its one argument."""
    name, *options = command.split()
    return [name, str(kits[name].folder), *options]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("10.0.0.1:29500", ("10.0.0.1", 29500)),
        ("[fe80::1]:1", ("fe80::1", 1)),
        ("hub.example:65535", ("hub.example", 65535)),
    ],
)
def test_an_address_is_host_and_port(text, parsed):
    """Oracle: by hand."""
    assert parse_address(text) == parsed


@pytest.mark.parametrize("text", ["", "hub", ":29500", "hub:", "hub:0", "hub:65536", "hub:http", "hub:-1"])
def test_what_is_no_address_is_refused(text):
    """Oracle: the message repeats what was typed."""
    with pytest.raises(ConfigError, match=f"an address is HOST:PORT with a port in 1..65535, got '{text}'"):
        parse_address(text)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serve --clients 2 --handoff-key k", "handoff_key is an option of suture join; leave it out"),
        ("serve", "serve needs --clients N"),
        ("serve --clients 2 --attack fsha", "attack is for a lab"),
        ("serve --clients 2 --class-weights balanced", "class_weights is an option of suture join; leave it out"),
        ("serve --clients 2 --classes ill", "expected 2 to 1000 names of classes, got 1; write them as --classes"),
        ("serve --clients 2 --data chest-phantom --classes a,b,c", "names 3 classes, and unet marks one against its"),
        ("serve --clients 2 --recording all", "recording is for a lab"),
        ("serve --clients 2 --min-clients 0", "min_clients must be at least 1, got 0"),
        ("serve --clients 2 --min-clients 3", r"min_clients must lie in 1..2 \(--clients\), got 3"),
        ("serve --clients 2 --listen 29500", "an address is HOST:PORT"),
        ("serve --clients 2 --grace -1", "grace must be at least 0 seconds, got -1"),
        ("serve --clients 2 --line-timeout 0.5", "line_timeout must be at least 1 second, got 0.5"),
        ("serve --clients 2 --exchange local", "exchange local is for one machine or cluster .* it is fused: leave it"),
        ("serve --clients 2 --exchange autograd", "exchange autograd is for one machine or cluster"),
        ("serve --clients 2 --interface lo", "interface is for ranks that talk RPC; .* leave it out"),
        ("serve --clients 2 --isolate on", "isolate is for suture train, .* leave it out"),
        ("join --isolate on", "isolate is for suture train, .* leave it out"),
        ("join --clients 2", "clients is an option of suture serve; leave it out"),
        ("join --schedule shuffled", "schedule is an option of suture serve"),
        ("join --patience 0", "patience must be above 0 seconds, got 0"),
        ("join --proxy-ca ca.pem", "proxy_ca is for a proxy that opens TLS: give --tls proxy, too"),
        ("join --line-timeout nan", "line_timeout must be at least 1 second, got nan"),
        ("join --validation 16", "--validation is a share of the images, .* use --validation-images"),
        ("join --test .3 --test-images 9", "--test is a share of all images and --test-images a number of balanced ones"),
        ("join --evaluate-only --test .3", "--test is for a site that trains; with --evaluate-only all images"),
        ("join --evaluate-only --class-weights balanced", "class_weights is for a site that trains"),
        ("join --class-map ill", "expected pairs of this site's name and the run's"),
        ("join --server hub", "an address is HOST:PORT"),
        ("join --exchange autograd", "exchange autograd is for one machine or cluster"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_before_anything_is_started(command, words, kits, monkeypatch):
    """Oracle: the messages; no member is started."""
    monkeypatch.setattr(sites, "_be_member", lambda _: pytest.fail("a member was started"))
    with pytest.raises(ConfigError, match=words):
        suture.main(line(command, kits), standalone_mode=False)


@pytest.mark.parametrize(
    ("command", "other", "words"),
    [
        ("serve --clients 2", "join", "is a site's kit, of ward_a; suture serve takes the server's, and suture join this"),
        ("join", "serve", "is the server's kit, of server; suture join takes a site's, and suture serve this"),
    ],
)  # fmt: skip
def test_a_kit_of_the_other_end_is_said_before_anything_is_started(command, other, words, kits, monkeypatch):
    """Oracle: the messages; which end a kit is for stands in it."""
    monkeypatch.setattr(sites, "_be_member", lambda _: pytest.fail("a member was started"))
    with pytest.raises(ConfigError, match=words):
        suture.main(line(command, kits | {command.split()[0]: kits[other]}), standalone_mode=False)


@pytest.mark.parametrize("command", ["serve --clients 2", "join"])
def test_neither_end_goes_without_a_kit(command, monkeypatch):
    """Oracle: click's message names the argument."""
    monkeypatch.setattr(sites, "_be_member", lambda _: pytest.fail("a member was started"))
    with pytest.raises(click.MissingParameter) as raised:
        suture.main(command.split(), standalone_mode=False)
    assert "Missing argument 'KIT'" in raised.value.format_message()


def test_a_site_that_its_own_roster_does_not_list_is_told_the_remedy(tmp_path, monkeypatch):
    """Oracle: the message's own command, run as it stands, after which the site starts."""
    begun = []
    monkeypatch.setattr(sites, "_be_member", begun.append)
    kit = provision(Project(address="hub:1", sites=("ward_a",)), tmp_path / "kits")["ward_a"]
    Roster.create(kit.roster, {"ward_a": "0" * 64})
    with pytest.raises(
        ConfigError, match=f"roster .* lists another key for this site, {'0' * 64}; its own"
    ) as raised:
        suture.main(["join", str(kit.folder)], standalone_mode=False)
    remedy = str(raised.value).partition("suture ")[2].partition(", and tell")[0]
    suture.main(remedy.split(), standalone_mode=False)
    suture.main(["join", str(kit.folder)], standalone_mode=False)
    assert len(begun) == 1


@pytest.fixture
def begun(monkeypatch) -> list:
    """What `join_site` and `serve_site` were given: they are only noted, and the process goes on."""
    noted: list = []
    monkeypatch.setattr(sites, "join_site", lambda *told: noted.append(told))
    monkeypatch.setattr(sites, "serve_site", lambda *told: noted.append(told))
    monkeypatch.setattr(sites, "_be_member", lambda work: work())
    return noted


@pytest.mark.parametrize("given", [[], ["--run-dir", "mine"]])
def test_a_site_is_begun_with_what_was_typed(given, kits, begun):
    """Oracle: the same server, options and folder; the name in the folder is the kit's."""
    typed = line(
        "join --server relay:1 --patience 7 --line-timeout 3 --lr 0.5 --augment none --tls proxy --proxy-ca p.pem",
        kits,
    )
    suture.main([*typed, *given], standalone_mode=False)
    ((asked, config),) = begun
    assert config == JoinConfig(
        kit=kits["join"],
        server="relay:1",
        patience=7.0,
        line_timeout=3.0,
        tls="proxy",
        proxy_ca=Path("p.pem"),
    )
    folder = "mine" if given else asked["run_dir"]
    assert asked == {"lr": 0.5, "augment": "none", "run_dir": folder}
    assert given or (folder.startswith("runs/") and folder.endswith("_ward_a"))


def test_a_site_that_only_evaluates_is_begun_as_one(kits, begun):
    """Oracle: what the site is told."""
    suture.main(line("join --evaluate-only --test-images 9", kits), standalone_mode=False)
    ((options, config),) = begun
    assert config.data.evaluate_only and options["test_images"] == 9 and "train_images" not in options


def test_a_site_says_what_its_classes_are_in_the_run_and_which_shares_it_keeps(kits, begun):
    """Oracle: what the site is told."""
    suture.main(
        [*line("join --validation .2 --test .3 --class-map", kits), "ill=diseased, well=healthy"],
        standalone_mode=False,
    )
    ((_, config),) = begun
    assert config.data == SiteDataConfig(
        class_map={"ill": "diseased", "well": "healthy"}, validation=0.2, test=0.3
    )


def test_a_server_names_the_classes(kits, begun):
    """Oracle: names and order."""
    suture.main([*line("serve --clients 2 --classes", kits), "healthy,diseased"], standalone_mode=False)
    ((_, config),) = begun
    assert config.classes == ("healthy", "diseased")


@pytest.mark.parametrize("given", [[], ["--run-dir", "mine"]])
def test_a_server_is_begun_with_what_was_typed(given, kits, begun):
    """Oracle: the same address, numbers, options and folder."""
    typed = line(
        "serve --listen 0.0.0.0:29500 --clients 3 --min-clients 2 --grace 5 --lr 0.5 --tls proxy", kits
    )
    suture.main([*typed, *given], standalone_mode=False)
    ((options, config),) = begun
    assert config == ServeConfig(
        kit=kits["serve"], listen="0.0.0.0:29500", min_clients=2, grace=5.0, tls="proxy"
    )
    folder = "mine" if given else options.run_dir
    assert options == AskedOptions(lr=0.5, clients=3, run_dir=folder).resolved() and (
        given or folder.startswith("runs/")
    )


def test_a_server_that_is_started_again_needs_its_folder_and_no_more(kits, begun, tmp_path):
    """Oracle: what it was begun with; what is given wins where it may change, and is refused where it may not."""
    run = str(tmp_path / "run")
    typed = (
        "--listen 0.0.0.0:29500 --clients 3 --min-clients 2 --grace 5 --lr 0.5 --tls proxy --revoked r.pem"
    )
    suture.main(line(f"serve {typed} --run-dir {run}", kits), standalone_mode=False)
    ((first, before),) = begun
    open_folder(first, "abc", before.saved()).lock.close()
    suture.main(line(f"serve --run-dir {run} --grace 7 --epochs 9", kits), standalone_mode=False)
    (_, (options, config)) = begun
    assert config == replace(before, grace=7.0, revoked=Path("r.pem").absolute())
    assert options == replace(first, epochs=9, resume=True)
    with pytest.raises(ConfigError, match=r"was started with lr = 0.5, got 0.1; leave --lr out"):
        suture.main(line(f"serve --run-dir {run} --lr 0.1", kits), standalone_mode=False)


def test_what_a_server_saved_and_somebody_spoilt_is_said(kits):
    """Oracle: the message."""
    with pytest.raises(ConfigError, match=r"run.json says of the server is damaged: .*'speed'"):
        ServeConfig.given(kits["serve"], {"speed": 3})


def test_both_ends_take_the_address_of_their_kits(kits, begun):
    """Oracle: the project's address."""
    for command in ("serve --clients 2", "join"):
        suture.main(line(command, kits), standalone_mode=False)
    (_, server), (_, site) = begun
    assert server.listen == site.server == "hub.example:29500"


@pytest.mark.parametrize("ends", ["returns", "is told to stop"])
def test_a_member_ends_with_a_code_and_by_sigterm_as_by_an_interrupt(ends, monkeypatch):
    """Oracle: the codes: 0, and the shell's for an interrupt, which systemd's stop comes to as well."""
    codes, before = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sites, "exit_as_rank", codes.append)
    try:
        sites._be_member(lambda: signal.raise_signal(signal.SIGTERM) if ends == "is told to stop" else None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert codes == [0 if ends == "returns" else 130]


# What a site's machine and the first site say ----------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "ports"),
    [
        ({}, ()),
        ({"https_proxy": "http://proxy:3128"}, (3128,)),
        ({"https_proxy": "proxy:3128"}, (3128,)),
        ({"https_proxy": "http://proxy"}, (80,)),
        ({"https_proxy": "http://user:word@[fe80::1]:8080/"}, (8080,)),
        ({"http_proxy": "http://a:1", "https_proxy": "http://b:2", "grpc_proxy": "http://c:3"}, (3,)),
        ({"http_proxy": "http://a:1", "https_proxy": ""}, (1,)),
    ],
)
def test_the_port_of_the_proxy_is_the_one_that_grpc_will_use(environment, ports, monkeypatch):
    """Oracle: gRPC's documented order of variables; no port is port 80, as gRPC takes it."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_ports() == ports


def test_a_proxy_without_a_proper_port_is_said(monkeypatch):
    """Oracle: the message."""
    monkeypatch.delenv("grpc_proxy", raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:99999")
    with pytest.raises(
        ConfigError, match="the proxy 'http://proxy:99999' has no proper port; set https_proxy="
    ):
        proxy_ports()


def test_the_first_sites_classes_are_the_runs():
    """Oracle: the names that went in."""
    classes = ("no finding", "mild, or moderate", "x" * 100)
    assert read_classes(AskedOptions(clients=1).resolved().site_agreement(classes), "ward_a") == classes


@pytest.mark.parametrize(
    "said",
    [
        "",
        "healthy, ill",
        "[]",
        '["a", "a"]',
        '["a", 1]',
        '{"a": 1}',
        "3",
        '"ab"',
        "[" * 100_000,
        str([1] * 1001),
        '["a", "\\u001b[2J"]',
        json.dumps(["a", "b" * 201]),
    ],
    ids=lambda said: said[:12],
)
def test_classes_that_are_no_names_are_refused(said):
    """Oracle: the message names the site; whatever it says, nothing else is raised."""
    with pytest.raises(WireError, match="ward_a said .* of the run's classes; refused"):
        read_classes({"classes": said}, "ward_a")


def test_a_site_that_says_no_classes_is_refused():
    """Oracle: the message."""
    with pytest.raises(WireError, match="ward_a said '' of the run's classes; refused"):
        read_classes({}, "ward_a")


@pytest.mark.parametrize(
    ("asked", "data"),
    [
        ({"model": "unet"}, "chest-phantom"),
        ({"model": "resnet18"}, "fundus-phantom"),
        ({"model": "unet", "data": "lungs:/here"}, "lungs:/here"),
        ({"lr": 0.1}, None),
    ],
)
def test_a_server_needs_no_data_to_know_its_task(asked, data):
    """Oracle: the net's task; what a person gave stays."""
    assert with_task(asked) == asked | ({} if data is None else {"data": data})
