"""Who listens: on the line, and at the server. And what the noise of a defence is drawn from.

Real processes over gRPC. A relay records every byte between the sites and the server, and the server writes down every
message that it receives and sends, in the clear. Oracle: neither recording holds the hand-off key or a bottom's weights,
and none of the keys that can be made of anything in them opens a hand-off. The controls: the key that a site keeps opens
each hand-off, the same search then finds the weights; and it finds in the recordings what may be found there.
``make hostile`` prints the table.
"""

import base64
import dataclasses
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from forker import Forker
from rows import Row, Table
from runs import Case, Played, finished_well
from stage import SITES, TINY, Stage
from torch import Tensor

from suture.launch import build
from suture.launch.options.options import AskedOptions
from suture.launch.site.secret import run_secret
from suture.runtime.client.step import ClientStep
from suture.runtime.errors import HandoffError, WireError
from suture.runtime.scheduler import Turn, TurnKind
from suture.runtime.state.handoff import HandoffSeal
from suture.runtime.state.rollback_guard import RollbackGuard
from suture.runtime.wire import frames
from suture.runtime.wire.messages import SealedHandoff, Statement

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECTION = "who listens"
PLAIN = b"what a listener would read if nothing sealed it"


class Relay:
    """Passes bytes on between sites and a server, and keeps a copy."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._server = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.at = self._listening.getsockname()
        self.address = f"127.0.0.1:{self.at[1]}"
        self.recording = bytearray()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                site, _ = self._listening.accept()
                server = socket.create_connection(self._server)
                for one, other in ((site, server), (server, site)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(2**16):
                self.recording += data
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listening.close()


@dataclass(frozen=True)
class Heard:
    """A run that was recorded.

    Attributes:
        run: what was played.
        line: every byte that crossed.
        messages: every message that the server received or sent, as its bytes.
    """

    run: Played
    line: bytes
    messages: list[bytes]

    @property
    def identity(self) -> str:
        return str(json.loads((self.run.stage.run / "run.json").read_text())["run"])

    def values(self) -> list[Any]:
        """The messages, decoded."""
        return [frames.unpack(torch.frombuffer(bytearray(one), dtype=torch.uint8)) for one in self.messages]

    def key(self, site: str) -> bytes:
        """The hand-off key that a site keeps."""
        memory = RollbackGuard(self.run.stage.kits[site].folder / "state", site, self.identity)
        (key,) = memory.recall_extra("keys", {}).values()
        return bytes.fromhex(key)

    def parts(self) -> dict[str, list[bytes]]:
        """By part, bytes of the weights with which the run ended; see `weights`."""
        model = torch.load(self.run.stage.model("ward_a"), weights_only=True)["last"]["parts"]
        return {name: weights(state) for name, state in model.items()}

    def open(self, handoff: SealedHandoff, key: bytes) -> dict[str, Any] | None:
        """What a hand-off holds, where that key opens it."""
        bare = dataclasses.replace(handoff, statement=None, epoch=0)
        try:
            return HandoffSeal(key, self.identity).open(bare)
        except (HandoffError, WireError):
            return None


@pytest.fixture(scope="module")
def heard(warm: Forker, tmp_path_factory: pytest.TempPathFactory) -> Heard:
    """A run of three honest sites, all of it recorded."""
    stage = Stage(tmp_path_factory.mktemp("heard"), warm=warm)
    recording = stage.folder / "messages"
    stage.environment["HOSTILE_RECORDING"] = str(recording)
    try:
        stage.serve(len(SITES), "--grace=1", change="records")
        with closing(Relay(stage.address)) as relay:
            with closing(socket.create_connection(relay.at)) as plain:  # the control of the relay's recording
                plain.sendall(PLAIN)
                stage.until(lambda: PLAIN in relay.recording, 20)
            for name in SITES:
                stage.join(name, f"--server={relay.address}", "--patience=20")
            codes = stage.all_ended()
    finally:
        stage.stop()
    run = Played(Case(change="records", by="server"), stage, codes)
    return Heard(run, bytes(relay.recording), list(_split(recording.read_bytes())))


def _split(recording: bytes) -> Iterator[bytes]:
    """The messages in the server's recording; each follows its length."""
    while recording:
        (length,) = struct.unpack("<Q", recording[:8])
        yield recording[8 : 8 + length]
        recording = recording[8 + length :]


def within(value: Any, kind: type) -> Iterator[Any]:
    """All of a kind in a message."""
    if isinstance(value, kind):
        yield value
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list):
        for item in value:
            yield from within(item, kind)


@pytest.fixture(scope="module")
def relayed(heard: Heard) -> list[SealedHandoff]:
    """Every hand-off that the server has relayed, each once."""
    found = {bytes(one.ciphertext): one for value in heard.values() for one in within(value, SealedHandoff)}
    return list(found.values())


def weights(state: Mapping[str, Tensor]) -> list[bytes]:
    """Bytes by which a part's weights are known: those of its larger tensors."""
    return [t.numpy().tobytes() for t in state.values() if t.is_floating_point() and t.nbytes >= 64]


def finds(needles: list[bytes], haystack: bytes) -> int:
    """How many are in it, as they are, as hex digits or in base64."""
    forms = [(one, one.hex().encode(), base64.b64encode(one)[4:-4]) for one in needles]
    return sum(any(form in haystack for form in each) for each in forms)


def candidates(statements: list[Statement]) -> set[bytes]:
    """All keys of 32 bytes that can be cut out of what sites have stated, and out of their certificates."""
    texts = [one.content for one in statements] + [one.signature for one in statements]
    wholes = [bytes.fromhex(digits) for text in texts for digits in re.findall(r"(?:[0-9a-f]{2}){32,}", text)]
    certificates = {one.certificate for one in statements}
    wholes += [
        x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER) for pem in certificates
    ]
    return {whole[at : at + 32] for whole in wholes for at in range(len(whole) - 31)}


@pytest.fixture(scope="module")
def tried(heard: Heard, relayed: list[SealedHandoff]) -> tuple[int, int]:
    """With how many keys a listener at the server tries to open hand-offs, and how many open."""
    keys = candidates([one for value in heard.values() for one in within(value, Statement)])
    return len(keys), sum(heard.open(relayed[-1], key) is not None for key in keys)


@pytest.fixture(scope="module", autouse=True)
def rows(heard: Heard, relayed: list[SealedHandoff], tried: tuple[int, int], table: Table) -> Iterator[None]:
    """What each of the two has heard, and found."""
    parts = heard.parts()
    for who, recording in (("on the line", heard.line), ("the server", b"".join(heard.messages))):
        size = f"{len(recording) / 1e6:.1f} MB"
        for what, needles in (
            ("the hand-off key", [heard.key("ward_a")]),
            ("a bottom's weights", parts["bottom"]),
        ):
            came = f"{finds(needles, recording)} of {len(needles)} found in {size}"
            table.add(
                SECTION, Row(f"looks for {what} in all that it heard", who, True, came, heard.run.ends())
            )
    came = f"{tried[1]} of {tried[0]} keys made of it open a hand-off"
    table.add(
        SECTION, Row("tries all that could be a key", "the server", bool(tried[0]), came, heard.run.ends())
    )
    opened = sum(heard.open(one, heard.key("ward_a")) is not None for one in relayed)
    came = f"{opened} of {len(relayed)} open"
    table.add(SECTION, Row("control: the key that ward_a keeps", "ward_a", True, came, heard.run.ends()))
    yield


def test_the_run_that_was_recorded_ended_well(heard: Heard) -> None:
    """Oracle: one model; the relay has carried at least what the server received and sent."""
    finished_well(heard.run, SITES)
    assert PLAIN in heard.line and len(heard.line) > sum(map(len, heard.messages))


def test_a_listener_on_the_line_reads_nothing(heard: Heard) -> None:
    """Oracle: key, weights and names are not in its recording; what was sent in the clear by the same way is."""
    parts = heard.parts()
    assert finds([heard.key("ward_a"), *parts["bottom"], *parts["head"], *parts["top"]], heard.line) == 0
    assert not [word for word in (b"ward_", b"suture", b"statement", b"CERTIFICATE") if word in heard.line]
    assert PLAIN in heard.line


def test_the_server_finds_neither_the_key_nor_a_bottom_in_what_it_relayed(heard: Heard) -> None:
    """Oracle: the same search finds the top, which the server itself has sent."""
    parts, everything = heard.parts(), b"".join(heard.messages)
    assert finds([heard.key("ward_a"), *parts["bottom"], *parts["head"]], everything) == 0
    assert finds(parts["top"], everything) == len(parts["top"]) > 3
    assert len(parts["bottom"]) > 3 and len({heard.key(name) for name in SITES}) == 1


def test_no_key_that_the_server_can_make_opens_a_hand_off(heard: Heard, tried: tuple[int, int]) -> None:
    """Oracle: every 32 bytes that can be cut out of the statements and certificates that it relayed."""
    number, opened = tried
    assert number > 1000 and opened == 0


def test_the_key_that_a_site_keeps_opens_every_hand_off(heard: Heard, relayed: list[SealedHandoff]) -> None:
    """The control. Oracle: all that were relayed, and in the last one the weights that the sites ended with."""
    key = heard.key("ward_a")
    states = [heard.open(one, key) for one in relayed]
    assert len(relayed) == 1 + 2 * len(SITES) and all(states)
    last = max(zip(relayed, states, strict=True), key=lambda pair: pair[0].turn)[1]
    assert last is not None
    plain = b"".join(bytes(piece) for piece in frames.pack(last["parts"]))
    parts = heard.parts()
    assert finds(parts["bottom"], plain) == len(parts["bottom"])


# Noise ---------------------------------------------------------------------------------------------

NOISY = {name: value for name, value in TINY.items() if name != "lease"} | {"defence": "noise:scale=1.0"}
KEY = bytes(range(32))


class Noise:
    """What a site's defence adds to the first batch of a round, for one image place."""

    def __init__(self) -> None:
        self._options = AskedOptions(**NOISY, clients=1).resolved()
        images = build.build_site_images(self._options, "ward_a")
        self._data = build.build_data(self._options, images, 0)

    def drawn(self, secret: bytes | None) -> Tensor:
        """Of ward_a, with the hand-off key that all have and this secret of its own; None for none of its own."""
        own = None if secret is None else build.SiteOwn(secret, None, None)
        cpu = torch.device("cpu")
        client = build.build_client(self._options, self._data, "ward_a", KEY, cpu, None, own).model
        turn = Turn(TurnKind.TRAIN, "ward_a", 1, 1)
        batch = next(
            client.data.train_batches(
                3, torch.Generator().manual_seed(0), lambda number: torch.Generator().manual_seed(0)
            )
        )
        client.bottom.train()
        with torch.no_grad():
            smashed = client.bottom(batch.inputs)
            sent = ClientStep(client, turn, batch).down()
        plain = smashed[0] if isinstance(smashed, tuple) else smashed
        return sent - plain


def test_noise_follows_from_a_secret_of_the_sites_own_for_each_run(tmp_path: Path, table: Table) -> None:
    """Unit level. Oracle: two sites with one --handoff-key, and one site in two runs of one seed, draw other noise at the
    same place; the site that starts again in the same run draws the same; without a secret of its own all would.
    """
    noise, ours, theirs = Noise(), tmp_path / "ours", tmp_path / "theirs"
    first = noise.drawn(run_secret(ours, "ward_a", "one run"))
    assert first.abs().mean() > 0.1
    cases = {
        "another site's secret, the same --handoff-key": (run_secret(theirs, "ward_a", "one run"), False),
        "the site's own in another run of the same seed": (run_secret(ours, "ward_a", "another run"), False),
        "control: the site's own, started again": (run_secret(ours, "ward_a", "one run"), True),
    }
    for name, (secret, same) in cases.items():
        again = noise.drawn(secret)
        came = "the same noise" if torch.equal(first, again) else "other noise"
        table.add(SECTION, Row(f"noise drawn with {name}", "a site (unit)", True, came, ""))
        assert torch.equal(first, again) is same
        if not same:
            assert abs(float(torch.corrcoef(torch.stack([first.flatten(), again.flatten()]))[0, 1])) < 0.25
    assert torch.equal(noise.drawn(None), noise.drawn(None)), (
        "drawn from the key alone, anybody who has it repeats it"
    )
