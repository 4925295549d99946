"""Three hospitals behind firewalls, in network namespaces: one port of the server's, one of them through a proxy.

Every new connection to a site is dropped, on every port. Oracles: all three train to the end, with the weights of the same
turns in one process; `ss` finds no listening socket at a site; a capture of every byte at the server's cable holds no smashed
data, label or weight in clear, and the same search finds them in a capture of torch RPC.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import forked
import pytest
import torch
from hosts import Hosts, why_not
from replayed import replay
from site_own import ANY_SIZE, initial_secret, own_of

from suture.launch import build
from suture.launch.build import SiteOwn
from suture.launch.kits.provision import Project, provision
from suture.launch.options.options import AskedOptions, RunOptions
from suture.runtime.client.step import ClientStep
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.state.handoff import read_key, write_key

# Minutes of starting processes: `make sites` runs them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
WARDS = ("ward_a", "ward_b", "ward_c")
BY_PROXY = "ward_c"
PORT, PROXY_PORT = 29500, 8888
OPTIONS = {
    "model": "resnet18",
    "image_size": 32,
    "train_images": 24,
    "validation_images": 2,
    "test_images": 2,
    "batch_size": 8,
    "epochs": 2,
    "threads": 1,
}
KNOWN_BYTES = 48
"""Of each piece that is searched for: the chance to meet one in other bytes is none."""


def _missing() -> str:
    """What this machine lacks, empty where it lacks nothing."""
    tools = [name for name in ("tcpdump", "iptables", "tinyproxy", "ss") if shutil.which(name) is None]
    return why_not() or (
        f"needs {', '.join(tools)} (Debian: tcpdump iptables tinyproxy iproute2)" if tools else ""
    )


@pytest.fixture(scope="module")
def hosts():
    """A server, three wards whose firewalls drop what was not asked for, and a proxy."""
    if reason := _missing():
        pytest.skip(reason)
    made = Hosts(["server", *WARDS, "proxy"])
    try:
        for ward in WARDS:
            inside = made.namespace(ward)
            _in(inside, "iptables -P INPUT DROP")
            _in(inside, "iptables -A INPUT -i lo -j ACCEPT")
            _in(inside, "iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT")
        # This one's only way out is the proxy.
        _in(made.namespace(BY_PROXY), f"iptables -A OUTPUT -d {Hosts.first} -j DROP")
        yield made
    finally:
        made.remove()


def _in(namespace: str, command: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, *command.split()], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _address(hosts: Hosts, name: str) -> str:
    shown = json.loads(_in(hosts.namespace(name), "ip -json addr show dev site0"))
    return next(one["local"] for one in shown[0]["addr_info"] if one["family"] == "inet")


@contextmanager
def _started(namespace: str, command: list[str], log: Path, **environment: str):
    """A process in a namespace; it is gone afterwards."""
    with log.open("wb") as out:
        process = forked.Popen(
            ["ip", "netns", "exec", namespace, *command],
            cwd=ROOT,
            env=os.environ | {"CI": "true"} | environment,
            stdout=out,
            stderr=out,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _captured(namespace: str, interface: str, file: Path):
    """Every packet that passes an interface meanwhile, whole."""
    command = ["tcpdump", "-i", interface, "-s", "0", "-B", "65536", "-Z", "root", "-w", str(file)]
    with _started(namespace, command, file.with_suffix(".log")) as process:
        deadline = time.monotonic() + 20
        while "listening on" not in file.with_suffix(".log").read_text():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        yield
        time.sleep(1)
    assert "0 packets dropped by kernel" in file.with_suffix(".log").read_text()


@contextmanager
def _proxied(hosts: Hosts, folder: Path):
    """An HTTP proxy that connects to the server's port and nowhere else."""
    config = folder / "tinyproxy.conf"
    config.write_text(
        f"Port {PROXY_PORT}\nTimeout 600\nMaxClients 20\nLogLevel Connect\nAllow 10.98.7.0/24\nConnectPort {PORT}\n"
    )
    log = folder / "tinyproxy.log"
    with _started(hosts.namespace("proxy"), ["tinyproxy", "-d", "-c", str(config)], log):
        time.sleep(1)
        yield log


def _wait(true, logs: dict[str, Path], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "\n".join(
            f"--- {n}\n{p.read_text()[-2000:]}" for n, p in logs.items()
        )
        time.sleep(0.05)


@pytest.fixture(scope="module")
def played(hosts, tmp_path_factory):
    """A whole run over the line: exit codes, what `ss` said at each site while they trained, the capture."""
    folder = tmp_path_factory.mktemp("hospitals")
    kits = provision(Project(address=f"{Hosts.first}:{PORT}", sites=WARDS), folder / "kits")
    run = folder / "run"
    for ward in WARDS:
        kits[ward].policy.write_text(ANY_SIZE)
    given = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    logs = {name: folder / f"{name}.log" for name in ("server", *WARDS)}
    suture = [sys.executable, "-m", "suture"]
    with (
        _proxied(hosts, folder) as proxy_log,
        _captured(hosts.namespace("server"), "site0", folder / "line.pcap"),
    ):
        serve = [*suture, "serve", str(kits["server"].folder), "--clients=3", f"--run-dir={run}"]
        members = [_started(hosts.namespace("server"), [*serve, *given], logs["server"])]
        for ward in WARDS:
            join = [
                *suture,
                "join",
                str(kits[ward].folder),
                f"--run-dir={folder / ward}",
            ]
            proxy = (
                {"https_proxy": f"http://{_address(hosts, 'proxy')}:{PROXY_PORT}"} if ward == BY_PROXY else {}
            )
            state = {"XDG_STATE_HOME": str(folder / "state" / ward)}
            members.append(_started(hosts.namespace(ward), [*join, *given], logs[ward], **state, **proxy))
        with members[0] as server, members[1] as a, members[2] as b, members[3] as c:
            _wait(lambda: (run / "turns.jsonl").exists() and (run / "turns.jsonl").read_text(), logs)
            listening = {ward: _in(hosts.namespace(ward), "ss -Hltun") for ward in WARDS}
            _wait(lambda: all(process.poll() is not None for process in (server, a, b, c)), logs)
            codes = [process.returncode for process in (server, a, b, c)]
    return codes, listening, folder, proxy_log.read_text()


def test_three_sites_that_only_dial_out_train_to_the_end(played):
    """Oracle: exit codes; a replay of the turns that counted, in one process."""
    codes, _, folder, _ = played
    assert codes == [0, 0, 0, 0], "\n".join(
        (folder / f"{w}.log").read_text()[-1500:] for w in ("server", *WARDS)
    )
    run = folder / "run"
    turns = [json.loads(line) for line in (run / "turns.jsonl").read_text().splitlines()]
    trained = [turn["client"] for turn in turns if turn["kind"] == "train"]
    assert trained == [*WARDS] * OPTIONS["epochs"]
    digest = json.loads((run / "summary.json").read_text())["weights_sha256"]
    assert digest == replay(json.dumps(OPTIONS), str(folder / "kits"), str(run), *WARDS)


def test_no_site_listens_on_anything(played):
    """Oracle: `ss` in each site's namespace, while they trained; no TCP and no UDP socket listens."""
    _, listening, *_ = played
    assert listening == dict.fromkeys(WARDS, "")


def test_one_of_them_came_through_the_proxy(played):
    """Oracle: the proxy's own log; the firewall leaves that site no other way."""
    *_, proxied = played
    assert f"CONNECT {Hosts.first}:{PORT}" in proxied


def test_the_firewall_really_drops(hosts):
    """The control. Oracle: a listener at a ward that the server cannot reach, and the ward itself can."""
    code = "import socket; s = socket.create_server(('0.0.0.0', 4711)); s.accept(); s.accept()"
    with _started(hosts.namespace("ward_a"), [sys.executable, "-c", code], Path(os.devnull)):
        time.sleep(1)
        reach = f"import socket; socket.create_connection(({_address(hosts, 'ward_a')!r}, 4711), timeout=3)"

        def reached(namespace: str) -> int:
            return subprocess.run(
                ["ip", "netns", "exec", namespace, sys.executable, "-c", reach], capture_output=True
            ).returncode

        assert reached(hosts.namespace("ward_a")) == 0
        assert reached(hosts.namespace("server")) != 0


# What a listener could read --------------------------------------------------------------------------


def _known(
    options: RunOptions, key: bytes, name: str, index: int | None, own: SiteOwn | None = None
) -> dict[str, bytes]:
    """What crosses in the first step of ``name``, if it is the first to train: smashed data, labels, a weight of the top."""
    torch.set_num_threads(1)
    images = (
        build.build_site_images(options, name)
        if index is None
        else build.build_images(options, options.clients)
    )
    data = build.build_data(options, images, index or 0)
    client = build.build_client(options, data, name, key, torch.device("cpu"), None, own).model
    turn = Turn(TurnKind.TRAIN, name, 1, 1)
    batch = next(iter(client.batches(turn)))
    smashed = ClientStep(client, turn, batch).down().contiguous()
    labels = batch.targets.numpy().tobytes()
    return {"smashed data": smashed.numpy().tobytes(), "labels": labels}


def _released_weight(model: Path) -> bytes:
    """The last round's top as a client was handed it: its largest tensor."""
    top = torch.load(model, weights_only=True)["last"]["parts"]["top"]
    return max(top.values(), key=torch.Tensor.numel).contiguous().numpy().tobytes()


def _found(capture: Path, secret: bytes) -> int:
    """How many of twenty pieces of ``secret``, or of all of it where it is short, the capture holds in clear."""
    seen = capture.read_bytes()
    if len(secret) <= 2 * KNOWN_BYTES:
        return int(secret in seen)
    places = random.Random(0).sample(range(len(secret) - KNOWN_BYTES), 20)
    pieces = [piece for at in places if len(set(piece := secret[at : at + KNOWN_BYTES])) > 8]  # not all zeros
    assert len(pieces) >= 5
    return sum(piece in seen for piece in pieces)


def test_a_listener_reads_nothing_and_over_rpc_everything(hosts, played, tmp_path):
    """Oracle: known bytes, searched for in the capture of the line and, by the same search, in one of torch RPC."""
    _, _, folder, _ = played
    options = AskedOptions(**OPTIONS, clients=1).resolved()
    initial, drawn = (
        initial_secret(folder / "kits", folder / "run"),
        own_of(folder / "kits", folder / "run", "ward_a"),
    )
    secrets = _known(options, initial, "ward_a", None, drawn)
    secrets["weights"] = _released_weight(folder / "ward_a" / "clients" / "ward_a" / "model.pt")
    line = {what: _found(folder / "line.pcap", secret) for what, secret in secrets.items()}

    given = [f"--{name.replace('_', '-')}={value}" for name, value in (OPTIONS | {"epochs": 1}).items()]
    write_key(tmp_path / "handoff.key")
    key = read_key(tmp_path / "handoff.key")
    run = [
        sys.executable,
        "-m",
        "suture",
        "train",
        "--clients=1",
        f"--handoff-key={tmp_path / 'handoff.key'}",
    ]
    run += [f"--run-dir={tmp_path / 'rpc'}", *given]
    namespace = hosts.namespace("proxy")
    with (
        _captured(namespace, "lo", tmp_path / "rpc.pcap"),
        _started(namespace, [*run, "--isolate=off"], tmp_path / "rpc.log") as process,
    ):
        assert process.wait(180) == 0, (tmp_path / "rpc.log").read_text()
    plain = _known(AskedOptions(**OPTIONS | {"epochs": 1}, clients=1).resolved(), key, "client0", 0)
    plain["weights"] = _released_weight(tmp_path / "rpc" / "clients" / "client0" / "model.pt")
    rpc = {what: _found(tmp_path / "rpc.pcap", secret) for what, secret in plain.items()}
    assert line == dict.fromkeys(secrets, 0)
    assert rpc["labels"] == 1 and rpc["smashed data"] >= 5 and rpc["weights"] >= 5, rpc


def test_the_capture_holds_the_whole_run(played):
    """The control of the capture itself. Oracle: what crossed by the run's own count, which must have passed the cable."""
    _, _, folder, _ = played
    crossed = json.loads((folder / "run" / "summary.json").read_text())["wire_bytes_per_step"]
    steps = OPTIONS["epochs"] * len(WARDS) * OPTIONS["train_images"] // OPTIONS["batch_size"]
    assert (folder / "line.pcap").stat().st_size > steps * (crossed["up"] + crossed["down"])
