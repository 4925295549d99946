"""What a person types for serve and join: addresses, names, options of the other end, and what the member is told.

Oracle: messages written out; the options that went in.
"""

import socket

import psutil
import pytest
import torch

from launch import site_commands
from launch.address import interface_towards, parse_address
from launch.cli import suture
from launch.config import RunOptions
from launch.sites import JoinConfig, find_server
from runtime.errors import ConfigError, UnreachableError


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


def test_the_interface_is_the_one_that_leads_there():
    """Oracle: the interface that has 127.0.0.1; none for all addresses at once, nor for a name that nobody has."""
    loopback = interface_towards("127.0.0.1", 1)
    assert any(a.address == "127.0.0.1" for a in psutil.net_if_addrs()[loopback])
    assert interface_towards("0.0.0.0", 1) is None
    assert interface_towards("no.such.name.invalid", 1) is None


@pytest.mark.parametrize(
    "name", ["", "1", "ward-a", "ward.a", "ward a", "server", "w" * 41, "../x", "stationä"]
)
def test_a_name_is_letters_digits_and_underscores(name):
    """Oracle: RPC takes no other, and a name is a folder's, too."""
    with pytest.raises(
        ConfigError, match="name must be a letter and then up to 39 letters, digits or underscores"
    ):
        JoinConfig(server="hub:1", name=name)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["serve", "--clients", "2", "--handoff-key", "k"], "handoff_key is an option of suture join; leave it out"),
        (["serve"], "serve needs --clients N"),
        (["serve", "--clients", "2", "--attack", "fsha"], "attack is for a lab"),
        (["serve", "--clients", "2", "--min-clients", "0"], "min_clients must be at least 1, got 0"),
        (["serve", "--clients", "2", "--min-clients", "3"], r"min_clients must lie in 1..2 \(--clients\), got 3"),
        (["serve", "--clients", "2", "--listen", "29500"], "an address is HOST:PORT"),
        (["serve", "--clients", "2", "--grace", "-1"], "grace must be at least 0 seconds, got -1"),
        (["serve", "--clients", "2", "--exchange", "local"], "exchange local plays all roles in one process"),
        (["join", "hub:1", "--name", "a", "--clients", "2"], "clients is an option of suture serve; leave it out"),
        (["join", "hub:1", "--name", "a", "--schedule", "shuffled"], "schedule is an option of suture serve"),
        (["join", "hub:1", "--name", "a", "--patience", "0"], "patience must be above 0 seconds, got 0"),
        (["join", "hub", "--name", "a"], "an address is HOST:PORT"),
        (["join", "hub:1", "--name", "a", "--cut", "99"], "99"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_before_anything_is_started(command, words, monkeypatch):
    """Oracle: the messages; no member is started."""
    monkeypatch.setattr(site_commands, "supervise", lambda *_: pytest.fail("a member was started"))
    with pytest.raises(ConfigError, match=words):
        suture.main(command, standalone_mode=False)


@pytest.mark.parametrize("given", [[], ["--run-dir", "mine"]])
def test_the_member_is_told_what_was_typed(given, monkeypatch):
    """Oracle: what a fork does, and the command line of a fresh Python, parsed again: the same server, name, options and
    folder, which stays; the supervisor has one thread, so it can fork."""
    starts, members = [], []
    monkeypatch.setattr(site_commands, "supervise", lambda member, config: starts.append(member) or 0)
    monkeypatch.setattr(site_commands, "join_site", lambda *told: members.append(told))
    monkeypatch.setattr(site_commands, "_be_member", lambda work: work())
    typed = "join hub:29500 --name ward_a --patience 7 --lr 0.5 --no-augment".split()
    suture.main([*typed, *given], standalone_mode=False)
    assert torch.get_num_threads() == 1
    starts[0].run()
    assert starts[0].command[1:4] == ["-m", "launch", "join"]
    suture.main(starts[0].command[3:], standalone_mode=False)
    (options, config), again = members[0], members[1]
    assert (options, config) == again and len(members) == 2
    assert config == JoinConfig(server="hub:29500", name="ward_a", patience=7.0)
    folder = "mine" if given else options.run_dir
    assert options == RunOptions(lr=0.5, augment=False, run_dir=folder)
    assert given or (folder.startswith("runs/") and folder.endswith("_ward_a"))


def test_a_wrong_address_is_said_at_once_and_given_up_in_the_end(caplog):
    """Oracle: nobody listens on the port; half a second of patience."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = JoinConfig(server=address, name="ward_a", patience=0.5)
    with (
        caplog.at_level("WARNING"),
        pytest.raises(
            UnreachableError,
            match=f"no server at {address} for 0.5 s .*is the address right.*--patience SECONDS waits longer",
        ),
    ):
        find_server(RunOptions(), config)
    assert f"no server at {address} yet (Connection refused); looking for it" in caplog.text
